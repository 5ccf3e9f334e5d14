"""The queue of slots: one row of ours for each trial, made with it, claimed and handed on under a lease."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from sweeper.database import Connection, Database, IntegrityError, Session, column, or_, select, table, update
from sweeper.errors import DatabaseError, LeaseLost
from sweeper.study.fence import FencedStorage, Guard
from sweeper.study.trial import Wanted

T = TypeVar("T")

TRIALS = table("trials", column("trial_id"), column("study_id"), column("number"))  #: Optuna's own


def unfinished(database: Database) -> list[str]:
    """:attr:`Slot.owner` of every trial of every study in the database that is not finished."""
    slots = database.tables.slots
    query = select(slots.c.study, slots.c.number).where(slots.c.state == "open")
    rows = database.transaction(lambda connection: connection.execute(query).all())
    return [f"{row.study}/{row.number}" for row in rows]


@dataclass(frozen=True)
class Lease:
    """What is needed to hold a slot: where it is, whose, and with which fencing token."""

    database: Database
    storage: FencedStorage
    study: str
    number: int
    trial_id: int
    worker: str
    attempt: int
    strikes: int
    reasons: tuple[str, ...]
    seconds: float
    limit: int
    adopted: bool = False  # from one who stopped renewing, as the last of ``reasons`` says

    def holds(self, **values: Any) -> Any:
        """The statement that renews the lease and sets ``values``, and touches no row once somebody else owns it."""
        slots = self.database.tables.slots
        values.setdefault("expires", self.database.now + self.seconds)
        return (
            update(slots)
            .where(slots.c.study == self.study, slots.c.number == self.number, slots.c.state == "open")
            .where(slots.c.worker == self.worker, slots.c.attempt == self.attempt)
            .values(**values)
        )

    def guard(self, **values: Any) -> Guard:
        """For :meth:`FencedStorage.fenced`."""

        def check(session: Session) -> None:
            if session.execute(self.holds(**values)).rowcount == 0:  # type: ignore[attr-defined]
                raise self.lost()

        return check

    def write(self, work: Callable[[], T], **values: Any) -> T:
        """Do ``work`` behind the fence, again after transient errors, and set ``values`` on the slot with it."""
        with self.storage.fenced(self.guard(**values)):
            return self.database.retry(work)

    def renew(self, **values: Any) -> None:
        """Hold the slot for another ``seconds``; raises LeaseLost."""
        if self.database.transaction(lambda connection: connection.execute(self.holds(**values)).rowcount) == 0:
            raise self.lost()

    def start(self) -> None:
        """WAITING to RUNNING. A trial that somebody else's ``optuna ask`` has set to RUNNING is still ours."""
        with contextlib.suppress(UpdateFinishedTrialError):  # the next write says so, too
            self.write(lambda: self.storage.set_trial_state_values(self.trial_id, TrialState.RUNNING))

    def lost(self) -> LeaseLost:
        return LeaseLost(
            f"trial {self.number}: {self.worker} no longer holds attempt {self.attempt}; "
            "the lease ran out and the trial is somebody else's or finished; stop without writing"
        )

    def finish(self, state: TrialState, value: float | None = None) -> None:
        """Set the trial's final state and close the slot, in one transaction; raises LeaseLost."""
        values = None if value is None else [float(value)]
        try:
            self.write(lambda: self.storage.set_trial_state_values(self.trial_id, state, values), state="closed")
        except UpdateFinishedTrialError:
            # Ours, if the commit took place and only its answer got lost.
            slots = self.database.tables.slots
            closed = select(slots.c.number).where(slots.c.study == self.study, slots.c.number == self.number)
            closed = closed.where(slots.c.state == "closed", slots.c.attempt == self.attempt)
            if self.database.transaction(lambda connection: connection.execute(closed).first()) is None:
                raise self.lost() from None
        except KeyError:  # deleted
            raise self.lost() from None

    def store(self, work: Callable[[], None], **values: Any) -> None:
        """Behind the fence, store something on the trial; raises LeaseLost also if it is finished or deleted."""
        try:
            self.write(work, **values)
        except (UpdateFinishedTrialError, KeyError):
            raise self.lost() from None

    def set(self, key: str, value: Any) -> None:
        """Store a user attribute."""
        self.store(lambda: self.storage.set_trial_user_attr(self.trial_id, key, value))

    def fail(self, reasons: Sequence[str]) -> None:
        """Close the slot with the trial as FAIL and the reasons on both."""
        self.set("reasons", list(reasons))
        self.renew(reasons=json.dumps(list(reasons)))
        self.finish(TrialState.FAIL)


@dataclass(frozen=True)
class Queue:
    """The slots of one study. ``study`` is our name for it, ``study_id`` Optuna's."""

    database: Database
    storage: FencedStorage
    study: str
    study_id: int
    lease_seconds: float
    attempts: int

    def add(self, trials: Sequence[Wanted]) -> None:
        """See :meth:`Study.add`."""
        for item, wanted in self.missing(trials).items():
            with contextlib.suppress(IntegrityError):  # another worker has made it in the meantime
                self._enqueue(wanted, item)

    def missing(self, trials: Sequence[Wanted]) -> dict[str, Wanted]:
        """Those of ``trials`` that are not there yet, by the name under which they are known."""
        t = self.database.tables.slots
        known = select(t.c.item).where(t.c.study == self.study)
        have = set(self.database.transaction(lambda connection: connection.execute(known).scalars().all()))
        seen: Counter[str] = Counter()
        missing = {}
        for wanted in trials:
            name = wanted.item
            item = f"{name}/{seen[name]}"
            seen[name] += 1
            if item not in have:
                missing[item] = wanted
        return missing

    def _enqueue(self, wanted: Wanted, item: str) -> None:
        """A WAITING trial and its slot, in one transaction."""
        attrs = {key: value for key, value in wanted.given.items() if key != "params"}
        fixed = {"fixed_params": dict(wanted.params)} if wanted.params else {}
        waiting = optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=attrs, system_attrs=fixed)
        if wanted.replicate_of is not None:  # the sampler's answers and the schedule are those of the original
            original = self._numbered(wanted.replicate_of)
            waiting.params, waiting.distributions = original.params, original.distributions
            waiting.set_user_attr("schedule", original.user_attrs["schedule"])
        slots = self.database.tables.slots

        def guard(session: Session) -> None:
            session.flush()
            # Optuna holds the study's row, so the newest trial is the one being made.
            mine = select(TRIALS.c.trial_id, TRIALS.c.number).where(TRIALS.c.study_id == self.study_id)
            trial_id, number = session.execute(mine.order_by(TRIALS.c.trial_id.desc()).limit(1)).one()
            row = {"study": self.study, "number": number, "trial_id": trial_id, "item": item}
            first = wanted.stage == "baseline" or wanted.replicate_of is not None
            session.execute(slots.insert().values(**row, first=first))

        with self.storage.fenced(guard):
            self.database.retry(lambda: self.storage.create_new_trial(self.study_id, waiting))

    def claim(
        self, worker: str, passing_over: Collection[int], giving_up: Callable[[Lease, FrozenTrial], None]
    ) -> tuple[Lease, FrozenTrial] | None:
        """A lease and its trial, RUNNING; None if there is nothing to be had now. See :meth:`Study.claim`."""
        while (lease := self._take(worker, passing_over)) is not None:
            try:
                trial = self._begin(lease, giving_up)
            except LeaseLost:  # frozen between taking and beginning: somebody else has it now
                continue
            if trial is not None:
                return lease, trial
        return None

    def _take(self, worker: str, passing_over: Collection[int]) -> Lease | None:
        slots, now, claim = self.database.tables.slots, self.database.now, uuid.uuid4().hex

        def take(connection: Connection) -> Lease | None:
            free = or_(slots.c.worker.is_(None), slots.c.expires < now, slots.c.claim == claim)
            first = (
                select(slots)
                .where(slots.c.study == self.study, slots.c.state == "open", free)
                .where(slots.c.number.not_in(passing_over))
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
                self.database,
                self.storage,
                self.study,
                row.number,
                row.trial_id,
                worker,
                row.attempt + 1,
                row.strikes + died,
                tuple(reasons),
                self.lease_seconds,
                self.attempts,
                adopted=died,
            )
            connection.execute(
                update(slots)
                .where(slots.c.study == self.study, slots.c.number == row.number)
                .values(
                    worker=worker,
                    claim=claim,
                    expires=now + self.lease_seconds,
                    attempt=lease.attempt,
                    strikes=lease.strikes,
                    reasons=json.dumps(reasons),
                )
            )
            return lease

        return self.database.transaction(take)

    def _begin(self, lease: Lease, giving_up: Callable[[Lease, FrozenTrial], None]) -> FrozenTrial | None:
        """The trial of a lease just taken; None if it turns out not to be for us to work on."""
        trial = self._trial(lease)
        if lease.strikes >= lease.limit and not trial.state.is_finished():
            giving_up(lease, trial)
            lease.fail(lease.reasons)
            return None
        if trial.state is TrialState.WAITING:
            lease.start()
        if trial.state.is_finished():  # told by somebody else, `optuna tell` or a dashboard
            lease.renew(state="closed")
            return None
        return trial

    def _trial(self, lease: Lease) -> FrozenTrial:
        try:
            return self.database.retry(lambda: self.storage.get_trial(lease.trial_id))
        except KeyError:
            raise DatabaseError(
                f"trial {lease.number} was deleted from {self.database}; launch the sweep under a new name"
            ) from None

    def _numbered(self, number: int) -> FrozenTrial:
        """A trial of ours by Optuna's number."""
        t = self.database.tables.slots
        query = select(t.c.trial_id).where(t.c.study == self.study, t.c.number == number)
        trial_id = self.database.transaction(lambda connection: connection.execute(query).scalar_one())
        return self.database.retry(lambda: self.storage.get_trial(trial_id))

    def done(self) -> bool:
        """Whether every slot is closed. One query, whatever the size."""
        t = self.database.tables.slots
        left = select(t.c.number).where(t.c.study == self.study, t.c.state == "open").limit(1)
        return self.database.transaction(lambda connection: connection.execute(left).first()) is None

    def rows(self) -> dict[int, Any]:
        """The slots' rows by the trial's number."""
        t = self.database.tables.slots
        query = select(t).where(t.c.study == self.study)
        rows = self.database.transaction(lambda connection: connection.execute(query).all())
        return {row.number: row for row in rows}
