"""A study of N trials, which any number of workers claim and finish; the trial of a worker that dies is adopted."""

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
from sweeper.schedules import flatten
from sweeper.study import samplers
from sweeper.study.fence import FencedStorage, open_storage
from sweeper.study.queue import TRIALS, Queue, Slot
from sweeper.study.samplers import importance
from sweeper.study.trial import Trial, Wanted

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class WorkerRow:
    """A worker's last heartbeat; ``age_s`` is the time since then, in seconds by the database's clock."""

    worker: str
    pid: int
    device: str
    number: int | None
    epoch: int | None
    age_s: float


class Study:
    """One sweep in the database, which Optuna's tools see as a plain study. Use :meth:`create` or :meth:`open`."""

    def __init__(
        self, database: Database, storage: FencedStorage, row: Any, lease_seconds: float = 60.0, attempts: int = 3
    ) -> None:
        self.name: str = row.name
        self.config: dict[str, Any] = json.loads(row.config)
        self.id = str(row.id)  #: A random id: a deleted study and a new one of the same name differ in it.
        self._database = database
        #: Returns the trials that should exist now; :meth:`claim` adds them. None: no trials are added later.
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
        """Create the study and its slots where they are missing; any number of workers may do so at once.

        If the study exists, ``config`` (JSON) must equal the stored one, except for ``free_keys``: names of keys,
        dotted where nested, each with all keys below it. ``trials`` are as in :meth:`add`. ``lease_seconds`` and
        ``attempts`` apply to this process only and are not stored. Raises ConfigError, naming the keys, for a changed
        configuration, for an unknown sampler, and for an Optuna study of that name that sweeper did not create.
        """
        samplers.make(sampler, seed, 0)
        storage = open_storage(database)
        _forget_deleted(database, storage, name)
        make = partial(optuna.create_study, storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        optuna_study = database.retry(make)
        study_id = database.retry(lambda: storage.get_study_id_from_name(name))
        studies, launched = database.tables.studies, json.dumps(dict(config), sort_keys=True)
        row = {"id": uuid.uuid4().hex, "name": name, "study_id": study_id, "sampler": sampler, "seed": seed}

        def register(connection: Connection) -> Any:
            insert = database.upsert(studies).values(**row, config=launched).on_conflict_do_nothing()
            registered = connection.execute(insert.returning(studies.c.id)).first() is not None
            used = connection.execute(select(TRIALS).where(TRIALS.c.study_id == study_id)).first() is not None
            if registered and (used or optuna_study.directions != [optuna.study.StudyDirection.MAXIMIZE]):
                raise ConfigError(
                    f"study {name!r}: {database} has one of this name that sweeper did not create; choose another name"
                )
            return connection.execute(select(studies).where(studies.c.name == name)).one()

        study = cls(database, storage, database.transaction(register), lease_seconds, attempts)
        study.check(config, free_keys)
        newest = update(studies).where(studies.c.id == study.id).values(config=launched)
        database.transaction(lambda connection: connection.execute(newest))
        study.config = json.loads(launched)
        study.add(trials)
        return study

    @classmethod
    def open(cls, database: Database, name: str, **leases: Any) -> Study:
        """Return the study ``name``; raises DatabaseError if there is none. ``leases`` as for :meth:`create`."""
        for study in cls.all(database, (name,), **leases):
            return study
        existing = ", ".join(study.name for study in cls.all(database)) or "none"
        raise DatabaseError(f"study {name!r}: not in {database}, which has: {existing}; launch it first")

    @classmethod
    def all(cls, database: Database, names: Collection[str] | None = None, **leases: Any) -> list[Study]:
        """Return the studies of these ``names`` (None: all) that exist, sorted by name."""
        studies = database.tables.studies
        query = select(studies).order_by(studies.c.name)
        query = query if names is None else query.where(studies.c.name.in_(names))
        if not (rows := database.transaction(lambda connection: connection.execute(query).all())):
            return []  # A query must not create Optuna's tables, as opening the storage does.
        storage = open_storage(database)
        return [
            cls(database, storage, row, **leases)
            for row in rows
            if row.study_id == _optuna_id(database, storage, row.name)  # Otherwise somebody deleted it with Optuna.
        ]

    def check(self, config: Mapping[str, Any], free_keys: Sequence[str] = ()) -> None:
        """Raise ConfigError, naming the changed keys, if ``config`` differs outside ``free_keys`` from the launched."""
        if changed := self.changes(config, free_keys):
            raise ConfigError(
                f"study {self.name!r} was launched with another configuration: {', '.join(changed)}; "
                "give the sweep a new name, or undo the change"
            )

    def changes(self, config: Mapping[str, Any], free_keys: Sequence[str] = ()) -> list[str]:
        """Return "key: launched -> now" for every key outside ``free_keys`` that differs from the launched one."""
        before, after = dict(flatten(self.config)), dict(flatten(json.loads(json.dumps(dict(config)))))
        return [
            f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{name}.") for name in free_keys)
        ]

    # -- slots

    def add(self, trials: Sequence[Wanted]) -> None:
        """Create those of ``trials`` that do not exist yet.

        A trial with a schedule is identified by its content, a trial without one by its position among those of its
        stage. To add proposals, pass the complete longer list.
        """
        for item, wanted in self._queue.missing(trials).items():
            self._queue.enqueue(wanted, item)

    def claim(
        self,
        worker: str,
        excluded: Collection[int] = (),
        on_exhausted: Callable[[Slot], None] = lambda slot: None,
    ) -> Slot | None:
        """Return the next trial under a lease, or None if no trial can be claimed now (see :attr:`done`).

        The agenda's trials are created first, so that the replicates that follow from the last result of a race can be
        claimed at once. Baselines and replicates come first, then the others by number. A trial whose lease expired is
        adopted with its number, its stored parameters and its epochs so far. ``worker`` must be unique among living
        workers. Trials whose number is in ``excluded`` are not claimed. ``on_exhausted`` is called for a trial whose
        attempts are used up, before the trial is closed as FAIL; if this worker dies between the two, the next worker
        calls its own again.
        """
        if self.agenda is not None:
            self.add(self.agenda())
        return self._queue.claim(worker, excluded, on_exhausted)

    # -- queries

    @property
    def done(self) -> bool:
        """Whether every slot is closed and the agenda has no trial to add. Without an agenda this is one query."""
        return self._queue.done() and not self.grows

    @property
    def grows(self) -> bool:
        """Whether the agenda has trials to add now."""
        return self.agenda is not None and self.missing(self.agenda())

    def missing(self, trials: Sequence[Wanted]) -> bool:
        """Whether one of ``trials`` does not exist yet."""
        return bool(self._queue.missing(trials))

    @property
    def notes(self) -> dict[str, Any]:
        """The values that were stored with :meth:`note`, by key."""
        return dict(self._database.retry(lambda: self._optuna.user_attrs))

    def note(self, key: str, value: Any) -> None:
        """Store ``value`` (anything that JSON can represent) as a user attribute of the Optuna study."""
        self._database.retry(lambda: self._optuna.set_user_attr(key, value))

    def trials(self) -> list[Trial]:
        """Return the trials that have a slot, by number; a trial that a person added with Optuna has none."""
        slots = self._queue.rows()
        return [Trial.of(trial, slots[trial.number]) for trial in self._queue.trials() if trial.number in slots]

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each :attr:`Trial.shown_state`, and their "total"."""
        counts = Counter(trial.shown_state for trial in self.trials())
        states = ("waiting", "running", "complete", "pruned", "fail")
        return {**{state: counts[state] for state in states}, "total": counts.total()}

    def importance(self) -> tuple[dict[str, float], int]:
        """Return each parameter's importance and the number of trials; see :func:`samplers.importance`."""
        return importance(self._queue.trials())

    def find(self, trace: str, seed: int, recipe: str) -> Trial | None:
        """Return the first COMPLETE trial with this seed and these digests of trace and recipe, or None."""
        wanted = (trace, seed, recipe, "COMPLETE")
        for trial in self.trials():
            if (trial.facts.trace, trial.seed, trial.facts.recipe, trial.state) == wanted:
                return trial
        return None

    def heartbeat(
        self, worker: str, *, host: str, pid: int, device: str, number: int | None = None, epoch: int | None = None
    ) -> None:
        """Store that ``worker`` is alive, and the trial and epoch that it trains, for :meth:`workers`."""
        workers = self._database.tables.workers
        row = {"host": host, "pid": pid, "device": device, "number": number, "epoch": epoch, "beat": self._database.now}
        insert = self._database.upsert(workers).values(study=self.id, worker=worker, **row)
        upsert = insert.on_conflict_do_update(index_elements=["study", "worker"], set_=row)
        self._database.transaction(lambda connection: connection.execute(upsert))

    def workers(self) -> list[WorkerRow]:
        """Return the last heartbeat of every worker that ever sent one, the latest first."""
        workers = self._database.tables.workers
        age = (self._database.now - workers.c.beat).label("age_s")
        columns = (workers.c[name] for name in ("worker", "pid", "device", "number", "epoch"))
        query = select(*columns, age).where(workers.c.study == self.id).order_by(age)
        rows = self._database.transaction(lambda connection: connection.execute(query).all())
        return [WorkerRow(**row._mapping) for row in rows]


def _forget_deleted(database: Database, storage: FencedStorage, name: str) -> None:
    """Delete sweeper's rows of a study that somebody deleted with Optuna, so that its name can be used again."""
    tables = database.tables
    query = select(tables.studies).where(tables.studies.c.name == name)
    row = database.transaction(lambda connection: connection.execute(query).first())
    if row is None or row.study_id == _optuna_id(database, storage, name):
        return

    def forget(connection: Connection) -> None:
        # By the random id, because another worker may have created a new study of that name since the query.
        for table in (tables.slots, tables.workers):
            connection.execute(delete(table).where(table.c.study == row.id))
        connection.execute(delete(tables.pins).where(tables.pins.c.owner.startswith(f"{row.id}/")))
        connection.execute(delete(tables.studies).where(tables.studies.c.id == row.id))

    database.transaction(forget)


def _optuna_id(database: Database, storage: FencedStorage, name: str) -> int | None:
    try:
        return database.retry(lambda: storage.get_study_id_from_name(name))
    except KeyError:
        return None
