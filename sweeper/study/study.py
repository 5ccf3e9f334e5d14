"""A study: N trials as slots with leases, claimed, adopted and finished by any number of workers that may die."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeper.database import Connection, Database, IntegrityError, Session, column, delete, or_, select, table, update
from sweeper.errors import ConfigError, DatabaseError
from sweeper.study import samplers
from sweeper.study.fence import FencedStorage, open_storage
from sweeper.study.rows import TrialRow, WorkerRow
from sweeper.study.slot import Lease, Slot

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Optuna's own table, as far as we look into it.
_TRIALS = table("trials", column("trial_id"), column("study_id"), column("number"))


class Study:
    """One sweep in the database; a plain Optuna study to everybody else. Made by :meth:`create` or :meth:`open`."""

    def __init__(
        self, database: Database, storage: FencedStorage, row: Any, lease_seconds: float, attempts: int
    ) -> None:
        self.name: str = row.name
        self.config: dict[str, Any] = json.loads(row.config)
        self.sampler: str = row.sampler
        self.seed: int = row.seed
        self._id: str = row.id
        self._study_id: int = row.study_id
        self._database = database
        self._storage = storage
        self._lease_seconds = lease_seconds
        self._attempts = attempts
        self._optuna = database.retry(
            lambda: optuna.load_study(study_name=self.name, storage=storage, sampler=optuna.samplers.RandomSampler())
        )

    @classmethod
    def create(
        cls,
        database: Database,
        name: str,
        *,
        config: Mapping[str, Any],
        slots: Sequence[Mapping[str, Any]],
        sampler: str,
        seed: int,
        free_keys: Sequence[str] = (),
        lease_seconds: float = 60.0,
        attempts: int = 3,
    ) -> Study:
        """Make the study and its slots, or whatever of them is missing; any number of workers may do so at once.

        ``config`` (JSON) must be the launched one but for ``free_keys`` (names of keys, dotted where nested; a name
        stands for all below it). ``slots`` are as in :meth:`add`. ``lease_seconds`` and ``attempts`` are this
        process's own. Raises ConfigError saying which keys changed, for an unknown sampler, or for a study of that
        name that somebody else made; DatabaseError.
        """
        samplers.make(sampler, seed, 0)
        storage = open_storage(database)
        _forget_deleted(database, storage, name)
        database.retry(
            lambda: optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(),
            )
        )
        study_id = database.retry(lambda: storage.get_study_id_from_name(name))
        studies = database.tables.studies
        text = json.dumps(dict(config), sort_keys=True)
        ours = {"id": uuid.uuid4().hex, "name": name, "study_id": study_id, "config": text}

        def register(connection: Connection) -> Any:
            insert = database.upsert(studies).values(**ours, sampler=sampler, seed=seed).on_conflict_do_nothing()
            made = connection.execute(insert).rowcount == 1
            if made and connection.execute(select(_TRIALS).where(_TRIALS.c.study_id == study_id)).first() is not None:
                raise ConfigError(
                    f"study {name!r}: there is one in {database} that sweeper did not make; choose another name"
                )
            row = connection.execute(select(studies).where(studies.c.name == name)).one()
            changed = _changes(json.loads(row.config), json.loads(text), free_keys)
            changed += _changes({"sampler": row.sampler, "seed": row.seed}, {"sampler": sampler, "seed": seed}, ())
            if changed:
                raise ConfigError(
                    f"study {name!r} was launched with another configuration: {', '.join(changed)}; "
                    "give the sweep a new name, or undo the change"
                )
            if row.config == text:
                return row
            connection.execute(update(studies).where(studies.c.id == row.id).values(config=text))
            return connection.execute(select(studies).where(studies.c.id == row.id)).one()

        study = cls(database, storage, database.transaction(register), lease_seconds, attempts)
        study.add(slots)
        return study

    @classmethod
    def open(cls, database: Database, name: str, *, lease_seconds: float = 60.0, attempts: int = 3) -> Study:
        """The launched study ``name``; raises DatabaseError if there is none."""
        storage = open_storage(database)
        studies = database.tables.studies
        rows = database.transaction(lambda connection: connection.execute(select(studies)).all())
        for row in rows:
            if row.name == name and row.study_id == _optuna_id(database, storage, name):
                return cls(database, storage, row, lease_seconds, attempts)
        known = ", ".join(sorted(row.name for row in rows)) or "none"
        raise DatabaseError(f"study {name!r}: not in {database}, which has: {known}; launch it first")

    # -- slots

    def add(self, slots: Sequence[Mapping[str, Any]]) -> None:
        """See to it that there is a trial for each of ``slots``; those that exist already are left alone.

        A slot is {"stage": "baseline"|"search"|"confirm"|"control", "schedule": spec or None, "seed": int, ...}; it
        becomes the trial's user attributes. A slot with a schedule is known by its content, one without by its place
        among those of its stage; so to raise the budget, pass the whole longer list. "params" (name -> value) fixes
        what the sampler would propose for a search slot.
        """
        table_ = self._database.tables.slots
        known = select(table_.c.item).where(table_.c.study == self._id, table_.c.item.is_not(None))
        have = set(self._database.transaction(lambda connection: connection.execute(known).scalars().all()))
        seen: Counter[str] = Counter()
        for slot in slots:
            content = json.dumps({**slot, "seed": 0} if slot.get("schedule") is None else dict(slot), sort_keys=True)
            name = f"{slot['stage']}/{hashlib.sha256(content.encode()).hexdigest()[:16]}"
            item = f"{name}/{seen[name]}"
            seen[name] += 1
            if item not in have:
                try:
                    self._enqueue(slot, item)
                except IntegrityError:  # another worker has made it in the meantime
                    continue

    def _enqueue(self, slot: Mapping[str, Any], item: str, instead_of: Lease | None = None) -> None:
        """A WAITING trial and its slot, in one transaction; takes over the item of a slot that was taken from us."""
        attrs = {key: value for key, value in slot.items() if value is not None and key != "params"}
        fixed = {"fixed_params": dict(slot["params"])} if slot.get("params") else {}
        waiting = optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=attrs, system_attrs=fixed)
        slots, spec = self._database.tables.slots, json.dumps(dict(slot))

        def guard(session: Session) -> None:
            session.flush()
            if instead_of is not None:
                instead_of.guard(state="foreign", item=None, worker=None, expires=None)(session)
            # Optuna holds the study's row, so the newest trial is the one being made.
            mine = select(_TRIALS.c.trial_id, _TRIALS.c.number).where(_TRIALS.c.study_id == self._study_id)
            trial_id, number = session.execute(mine.order_by(_TRIALS.c.trial_id.desc()).limit(1)).one()
            row = {"study": self._id, "number": number, "trial_id": trial_id, "item": item, "spec": spec}
            session.execute(slots.insert().values(**row, first=slot["stage"] == "baseline"))

        with self._storage.fenced(guard):
            self._database.retry(lambda: self._storage.create_new_trial(self._study_id, waiting))

    def claim(self, worker: str) -> Slot | None:
        """The next trial to work on, with a lease, or None if there is none to be had now (see :attr:`done`).

        Baselines first, then by number. A trial whose worker let its lease run out is adopted: the same number, the
        stored parameters, the values so far. ``worker`` must be unique among living workers.
        """
        while (lease := self._take(worker)) is not None:
            slot = self._begin(lease)
            if slot is not None:
                return slot
        return None

    def _take(self, worker: str) -> Lease | None:
        slots, now, claim = self._database.tables.slots, self._database.now, uuid.uuid4().hex

        def take(connection: Connection) -> Lease | None:
            free = or_(slots.c.worker.is_(None), slots.c.expires < now, slots.c.claim == claim)
            first = (
                select(slots)
                .where(slots.c.study == self._id, slots.c.state == "open", free)
                .order_by(slots.c.first.desc(), slots.c.number)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            row = connection.execute(first).first()
            if row is None:
                return None
            reasons: list[str] = json.loads(row.reasons)
            died = row.worker is not None and row.claim != claim
            if died:
                reasons.append(f"{row.worker} stopped renewing its lease (attempt {row.attempt})")
            lease = Lease(
                self._database,
                self._storage,
                self._id,
                row.number,
                row.trial_id,
                row.item,
                json.loads(row.spec),
                row.started,
                worker,
                row.attempt + 1,
                row.strikes + died,
                tuple(reasons),
                self._lease_seconds,
                self._attempts,
            )
            connection.execute(
                update(slots)
                .where(slots.c.study == self._id, slots.c.number == row.number)
                .values(
                    worker=worker,
                    claim=claim,
                    expires=now + self._lease_seconds,
                    attempt=lease.attempt,
                    strikes=lease.strikes,
                    reasons=json.dumps(reasons),
                )
            )
            return lease

        return self._database.transaction(take)

    def _begin(self, lease: Lease) -> Slot | None:
        """The slot of a lease just taken; None if its trial turns out not to be for us to work on."""
        trial = self._trial(lease)
        if lease.strikes >= lease.limit and not trial.state.is_finished():
            lease.fail(lease.reasons)
            return None
        if not lease.started:
            if trial.state is TrialState.WAITING:
                lease.start()
                trial = self._trial(lease)
            if not lease.is_started():
                # Somebody else's `optuna ask` took it: theirs to finish; ours is a new one in its place.
                self._enqueue(lease.spec, lease.item, instead_of=lease)
                return None
        if trial.state.is_finished():  # told by somebody else, `optuna tell` or a dashboard
            lease.renew(state="closed")
            return None
        return Slot(lease, trial, self._optuna, self.sampler, self.seed)

    def _trial(self, lease: Lease) -> FrozenTrial:
        try:
            return self._database.retry(lambda: self._storage.get_trial(lease.trial_id))
        except KeyError:
            raise DatabaseError(
                f"study {self.name!r}: trial {lease.number} was deleted from {self._database}; launch under a new name"
            ) from None

    # -- what it tells

    @property
    def done(self) -> bool:
        """Whether every slot is closed. One query, whatever the size."""
        slots = self._database.tables.slots
        left = select(slots.c.number).where(slots.c.study == self._id, slots.c.state == "open").limit(1)
        return self._database.transaction(lambda connection: connection.execute(left).first()) is None

    def rows(self) -> list[TrialRow]:
        """All trials by number, also those that somebody else asked for."""
        slots = self._slots()
        return [_row(trial, slots.get(trial.number)) for trial in self._trials()]

    def counts(self) -> dict[str, int]:
        """Trials by state in small letters, with "total" slots, and "foreign" ones that are counted nowhere else."""
        slots = self._slots()
        ours = {number for number, slot in slots.items() if slot.state != "foreign"}
        counts = dict.fromkeys(("waiting", "running", "complete", "pruned", "fail"), 0)
        trials = self._trials()
        for trial in trials:
            if trial.number in ours:
                counts[trial.state.name.lower()] += 1
        return {**counts, "foreign": len(trials) - len(ours), "total": len(ours)}

    @property
    def best(self) -> TrialRow | None:
        """The COMPLETE trial with the highest value, the first of equals."""
        complete = [trial for trial in self._trials() if trial.state is TrialState.COMPLETE]
        if not complete:
            return None
        trial = max(complete, key=lambda trial: (trial.values[0], -trial.number))
        return _row(trial, self._slots().get(trial.number))

    def find(self, trace: str, seed: int, recipe: str) -> TrialRow | None:
        """The first COMPLETE trial with these user attributes: the same training, whose value can be told at once."""
        wanted = {"trace": trace, "seed": seed, "recipe": recipe}
        for trial in self._trials():
            if trial.state is TrialState.COMPLETE and wanted.items() <= trial.user_attrs.items():
                return _row(trial, self._slots().get(trial.number))
        return None

    def beat(
        self, worker: str, *, host: str, pid: int, device: str, number: int | None = None, epoch: int | None = None
    ) -> None:
        """Note that ``worker`` is alive and what it is at, for :meth:`workers`."""
        workers = self._database.tables.workers
        said = {"host": host, "pid": pid, "device": device, "number": number, "epoch": epoch}
        said["beat"] = self._database.now
        insert = self._database.upsert(workers).values(study=self._id, worker=worker, **said)
        upsert = insert.on_conflict_do_update(index_elements=["study", "worker"], set_=said)
        self._database.transaction(lambda connection: connection.execute(upsert))

    def workers(self) -> list[WorkerRow]:
        """All workers that ever said anything, the last heard of first."""
        workers = self._database.tables.workers
        age = (self._database.now - workers.c.beat).label("age")
        query = select(workers, age).where(workers.c.study == self._id).order_by(age)
        rows = self._database.transaction(lambda connection: connection.execute(query).all())
        return [WorkerRow(row.worker, row.host, row.pid, row.device, row.number, row.epoch, row.age) for row in rows]

    def _trials(self) -> list[FrozenTrial]:
        return self._database.retry(lambda: self._optuna.get_trials(deepcopy=False))

    def _slots(self) -> dict[int, Any]:
        slots = self._database.tables.slots
        query = select(slots).where(slots.c.study == self._id)
        rows = self._database.transaction(lambda connection: connection.execute(query).all())
        return {row.number: row for row in rows}


def _row(trial: FrozenTrial, slot: Any | None) -> TrialRow:
    ours = slot is not None and slot.state != "foreign"
    seconds = None
    if trial.datetime_start is not None and trial.datetime_complete is not None:
        seconds = (trial.datetime_complete - trial.datetime_start).total_seconds()
    return TrialRow(
        number=trial.number,
        state=trial.state.name,
        stage=trial.user_attrs["stage"] if ours else "foreign",
        seed=trial.user_attrs.get("seed"),
        params=dict(trial.params),
        schedule=trial.user_attrs.get("schedule"),
        value=None if trial.values is None else trial.values[0],
        values=dict(trial.intermediate_values),
        attrs=dict(trial.user_attrs),
        seconds=seconds,
        attempt=slot.attempt if slot is not None else 0,
        worker=slot.worker if slot is not None else None,
        reasons=tuple(json.loads(slot.reasons)) if slot is not None else (),
    )


def _forget_deleted(database: Database, storage: FencedStorage, name: str) -> None:
    """Remove our rows of a study that was deleted with Optuna's means, so that its name can be used again."""
    tables = database.tables
    query = select(tables.studies).where(tables.studies.c.name == name)
    row = database.transaction(lambda connection: connection.execute(query).first())
    if row is None or row.study_id == _optuna_id(database, storage, name):
        return

    def forget(connection: Connection) -> None:  # by our own name for it: a new one's rows are not touched
        connection.execute(delete(tables.slots).where(tables.slots.c.study == row.id))
        connection.execute(delete(tables.workers).where(tables.workers.c.study == row.id))
        connection.execute(delete(tables.studies).where(tables.studies.c.id == row.id))

    database.transaction(forget)


def _optuna_id(database: Database, storage: FencedStorage, name: str) -> int | None:
    try:
        return database.retry(lambda: storage.get_study_id_from_name(name))
    except KeyError:
        return None


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str]) -> list[str]:
    """ "key: old -> new" for every key that differs and does not lie in ``free``."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{name}.") for name in free)
    ]


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
