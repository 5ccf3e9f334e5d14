"""A study: N trials as slots with leases, claimed, adopted and finished by any number of workers that may die."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna

from sweeper.database import Connection, Database, delete, select, update
from sweeper.errors import ConfigError, DatabaseError
from sweeper.schedules import flat
from sweeper.study import samplers
from sweeper.study.fence import FencedStorage, open_storage
from sweeper.study.queue import TRIALS, Queue, Slot
from sweeper.study.samplers import importance
from sweeper.study.trial import Trial, Wanted

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class WorkerRow:
    """A worker as it last said of itself; ``age_s`` is the time since, by the database's clock."""

    worker: str
    pid: int
    device: str
    number: int | None
    epoch: int | None
    age_s: float


class Study:
    """One sweep in the database; a plain Optuna study to everybody else. Made by :meth:`create` or :meth:`open`."""

    def __init__(
        self, database: Database, storage: FencedStorage, row: Any, lease_seconds: float = 60.0, attempts: int = 3
    ) -> None:
        self.name: str = row.name
        self.config: dict[str, Any] = json.loads(row.config)
        self.id = str(row.id)  #: random: a study made anew under the name has another
        self._database = database
        #: Names the trials that should be there by now; see :meth:`claim` and :attr:`done`. None: nothing comes later.
        self.agenda: Callable[[], Sequence[Wanted]] | None = None
        self._optuna = database.retry(lambda: optuna.load_study(study_name=self.name, storage=storage))
        self._queue = Queue(database, storage, self._optuna, row, lease_seconds, attempts)

    @classmethod
    def create(
        cls,
        database: Database,
        name: str,
        *,
        config: Mapping[str, Any],
        trials: Sequence[Wanted],
        sampler: str,
        seed: int,
        free_keys: Sequence[str] = (),
        lease_seconds: float = 60.0,
        attempts: int = 3,
    ) -> Study:
        """Make the study and its slots, or whatever of them is missing; any number of workers may do so at once.

        ``config`` (JSON) must be the launched one but for ``free_keys`` (names of keys, dotted where nested; a name
        stands for all below it). ``trials`` are as in :meth:`add`. ``lease_seconds`` and ``attempts`` are this
        process's own. Raises ConfigError saying which keys changed, for an unknown sampler, or for a study of that
        name that somebody else made; DatabaseError.
        """
        samplers.make(sampler, seed, 0)
        storage = open_storage(database)
        _forget_deleted(database, storage, name)
        make = partial(optuna.create_study, storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        optuna_study = database.retry(make)
        study_id = database.retry(lambda: storage.get_study_id_from_name(name))
        studies, launched = database.tables.studies, json.dumps(dict(config), sort_keys=True)
        ours = {"id": uuid.uuid4().hex, "name": name, "study_id": study_id, "sampler": sampler, "seed": seed}

        def register(connection: Connection) -> Any:
            insert = database.upsert(studies).values(**ours, config=launched).on_conflict_do_nothing()
            made = connection.execute(insert.returning(studies.c.id)).first() is not None
            used = connection.execute(select(TRIALS).where(TRIALS.c.study_id == study_id)).first() is not None
            if made and (used or optuna_study.directions != [optuna.study.StudyDirection.MAXIMIZE]):
                raise ConfigError(
                    f"study {name!r}: there is one in {database} that sweeper did not make; choose another name"
                )
            return connection.execute(select(studies).where(studies.c.name == name)).one()

        study = cls(database, storage, database.transaction(register), lease_seconds, attempts)
        study.check(config, free_keys)
        newer = update(studies).where(studies.c.id == study.id).values(config=launched)
        database.transaction(lambda connection: connection.execute(newer))
        study.config = json.loads(launched)
        study.add(trials)
        return study

    @classmethod
    def open(cls, database: Database, name: str, **leases: Any) -> Study:
        """The launched study ``name``; raises DatabaseError if there is none. ``leases`` as for :meth:`create`."""
        for study in cls.all(database, (name,), **leases):
            return study
        known = ", ".join(study.name for study in cls.all(database)) or "none"
        raise DatabaseError(f"study {name!r}: not in {database}, which has: {known}; launch it first")

    @classmethod
    def all(cls, database: Database, names: Collection[str] | None = None, **leases: Any) -> list[Study]:
        """The launched studies (None: all) in the order of their names; [] where there are none of these."""
        studies = database.tables.studies
        query = select(studies).order_by(studies.c.name)
        query = query if names is None else query.where(studies.c.name.in_(names))
        if not (rows := database.transaction(lambda connection: connection.execute(query).all())):
            return []  # Optuna's tables are not made by asking
        storage = open_storage(database)
        return [
            cls(database, storage, row, **leases)
            for row in rows
            if row.study_id == _optuna_id(database, storage, row.name)  # else it was deleted with Optuna's means
        ]

    def check(self, config: Mapping[str, Any], free_keys: Sequence[str] = ()) -> None:
        """Raise ConfigError, saying which keys changed, unless ``config`` is the launched one but for ``free_keys``."""
        if changed := self.changes(config, free_keys):
            raise ConfigError(
                f"study {self.name!r} was launched with another configuration: {', '.join(changed)}; "
                "give the sweep a new name, or undo the change"
            )

    def changes(self, config: Mapping[str, Any], free_keys: Sequence[str] = ()) -> list[str]:
        """ "key: launched -> now" for every key that differs from the launched configuration, but for ``free_keys``."""
        before, after = dict(flat(self.config)), dict(flat(json.loads(json.dumps(dict(config)))))
        return [
            f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{name}.") for name in free_keys)
        ]

    # -- slots

    def add(self, trials: Sequence[Wanted]) -> None:
        """See to it that there are all of ``trials``; those that exist already are left alone.

        One with a schedule is known by its content, one that is yet to be proposed by its place among those of its
        stage: to raise the budget, pass the whole longer list.
        """
        for item, wanted in self._queue.missing(trials).items():
            self._queue.enqueue(wanted, item)

    def claim(
        self,
        worker: str,
        passing_over: Collection[int] = (),
        giving_up: Callable[[Slot], None] = lambda slot: None,
    ) -> Slot | None:
        """The next trial to work on, with a lease, or None if there is none to be had now (see :attr:`done`).

        What the agenda names is made first, so that the last trial of a race makes way for those that follow from it.
        Baselines and replicates first, then by number. A trial whose worker let its lease run out is adopted: the
        same number, the stored parameters, the values so far. ``worker`` must be unique among living workers. Trials
        numbered in ``passing_over`` are left to others. ``giving_up`` hears of a trial whose attempts are used up
        before it is closed as FAIL, again by another worker should this one die meanwhile.
        """
        if self.agenda is not None:
            self.add(self.agenda())
        return self._queue.claim(worker, passing_over, giving_up)

    # -- what it tells

    @property
    def done(self) -> bool:
        """Whether every slot is closed, and the agenda has none to add. Without an agenda it is one query."""
        return self._queue.done() and not self.grows

    @property
    def grows(self) -> bool:
        """Whether the agenda has trials to add by now."""
        return self.agenda is not None and self.missing(self.agenda())

    def missing(self, trials: Sequence[Wanted]) -> bool:
        """Whether one of ``trials`` is not there yet."""
        return bool(self._queue.missing(trials))

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted with :meth:`note`."""
        return dict(self._database.retry(lambda: self._optuna.user_attrs))

    def note(self, key: str, value: Any) -> None:
        """Keep ``value`` (anything JSON can hold) with the study; Optuna's tools show it as an attribute of it."""
        self._database.retry(lambda: self._optuna.set_user_attr(key, value))

    def trials(self) -> list[Trial]:
        """The study's trials by number. One that somebody else added with Optuna's means is none of them."""
        slots = self._queue.rows()
        return [Trial.of(trial, slots[trial.number]) for trial in self._queue.trials() if trial.number in slots]

    def counts(self) -> dict[str, int]:
        """Trials by :attr:`Trial.shown_state`, and their "total"."""
        counts = Counter(trial.shown_state for trial in self.trials())
        states = ("waiting", "running", "complete", "pruned", "fail")
        return {**{state: counts[state] for state in states}, "total": counts.total()}

    def importance(self) -> tuple[dict[str, float], int]:
        """Parameter -> share in getting among the best, and of how many trials; see :func:`importance`."""
        return importance(self._queue.trials())

    def find(self, trace: str, seed: int, recipe: str) -> Trial | None:
        """The first COMPLETE trial with this seed and these digests: the same training, known at once."""
        same = (row for row in self.trials() if (row.facts.trace, row.seed, row.facts.recipe) == (trace, seed, recipe))
        return next((row for row in same if row.state == "COMPLETE"), None)

    def beat(
        self, worker: str, *, host: str, pid: int, device: str, number: int | None = None, epoch: int | None = None
    ) -> None:
        """Note that ``worker`` is alive and what it is at, for :meth:`workers`."""
        workers = self._database.tables.workers
        row = {"host": host, "pid": pid, "device": device, "number": number, "epoch": epoch, "beat": self._database.now}
        insert = self._database.upsert(workers).values(study=self.id, worker=worker, **row)
        upsert = insert.on_conflict_do_update(index_elements=["study", "worker"], set_=row)
        self._database.transaction(lambda connection: connection.execute(upsert))

    def workers(self) -> list[WorkerRow]:
        """All workers that ever said anything, the last heard of first."""
        workers = self._database.tables.workers
        age = (self._database.now - workers.c.beat).label("age_s")
        columns = (workers.c[name] for name in ("worker", "pid", "device", "number", "epoch"))
        query = select(*columns, age).where(workers.c.study == self.id).order_by(age)
        rows = self._database.transaction(lambda connection: connection.execute(query).all())
        return [WorkerRow(**row._mapping) for row in rows]


def _forget_deleted(database: Database, storage: FencedStorage, name: str) -> None:
    """Remove our rows of a study that was deleted with Optuna's means, so that its name can be used again."""
    tables = database.tables
    query = select(tables.studies).where(tables.studies.c.name == name)
    row = database.transaction(lambda connection: connection.execute(query).first())
    if row is None or row.study_id == _optuna_id(database, storage, name):
        return

    def forget(connection: Connection) -> None:  # by our own name for it: a new one's rows are not touched
        for each in (tables.slots, tables.workers):
            connection.execute(delete(each).where(each.c.study == row.id))
        connection.execute(delete(tables.pins).where(tables.pins.c.owner.startswith(f"{row.id}/")))
        connection.execute(delete(tables.studies).where(tables.studies.c.id == row.id))

    database.transaction(forget)


def _optuna_id(database: Database, storage: FencedStorage, name: str) -> int | None:
    try:
        return database.retry(lambda: storage.get_study_id_from_name(name))
    except KeyError:
        return None
