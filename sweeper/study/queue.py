"""The queue of slots, a row in a table of sweeper for each trial, and the slot that a worker holds under a lease."""

from __future__ import annotations

import contextlib
import json
import math
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from sweeper.database import Connection, Database, IntegrityError, Session, column, or_, select, table, update
from sweeper.errors import DatabaseError, LeaseLost, NotFinite
from sweeper.search import Suggest
from sweeper.study import samplers
from sweeper.study.fence import FencedStorage
from sweeper.study.trial import Facts, Stage, Wanted

TRIALS = table("trials", column("trial_id"), column("study_id"), column("number"))  #: Optuna's table


def unfinished(database: Database) -> list[str]:
    """Return :attr:`Slot.owner` of every unfinished trial, over all studies in the database."""
    slots = database.tables.slots
    query = select(slots.c.study, slots.c.number).where(slots.c.state == "open")
    rows = database.transaction(lambda connection: connection.execute(query).all())
    return [f"{row.study}/{row.number}" for row in rows]


class Slot:
    """A trial that this worker holds under a lease.

    Every method that writes raises LeaseLost once another worker holds the trial or the trial is finished.
    ``number`` is Optuna's. ``owner``, ``STUDY_ID/NUMBER`` with the study's random id, identifies the trial where states
    are pinned and in the rows of epochs that it trained. ``spec`` is the schedule as plain data, None before
    :meth:`propose`. ``attempt``, the fencing token, counts claims from 1. ``reasons`` are the reasons why earlier
    attempts ended. ``adopted`` says that the previous worker neither finished nor released the trial: its lease
    expired. ``curve`` maps each reported epoch to the objective; ``facts`` are the stored attributes.
    """

    def __init__(self, queue: Queue, row: Any, trial: FrozenTrial, adopted: bool) -> None:
        self._queue, self._claimed, self._trial_id = queue, trial, row.trial_id
        self.number: int = row.number
        self.owner = f"{row.study}/{row.number}"
        self.worker: str = row.worker
        self.attempt: int = row.attempt
        self.reasons: tuple[str, ...] = tuple(json.loads(row.reasons))
        self.adopted = adopted
        self._bad_attempts: int = row.strikes
        self.stage: Stage = trial.user_attrs["stage"]
        self.seed = int(trial.user_attrs["seed"])
        self.spec: dict[str, Any] | None = trial.user_attrs.get("schedule")
        self.facts = Facts.of(trial.user_attrs)
        self.curve: dict[int, float] = dict(trial.intermediate_values)

    @property
    def last_attempt(self) -> bool:
        """Whether the trial fails for good if this attempt ends badly."""
        return self._bad_attempts + 1 >= self._queue.attempts

    def propose(
        self,
        fn: Callable[[Suggest], Mapping[str, Any]],
        known: Callable[[Mapping[str, Any]], bool] | None = None,
        reference: str | None = None,
    ) -> dict[str, Any]:
        """Return the trial's schedule as plain data; if it has none yet, ``fn(suggest)`` proposes it and it is stored.

        While ``known(schedule)`` is true, the sampler proposes again, up to ``samplers.TRIES`` times, so ``fn`` may be
        called several times; the attribute "proposals" stores how often. Parameter values that were enqueued with the
        trial, or stored by an earlier attempt, are used instead of the sampler's. The sampler learns from scores; with
        the name of a baseline as ``reference`` it learns from differences to that baseline, see
        :func:`samplers.history`.
        """
        if self.spec is not None:
            return self.spec
        name, claimed, storage = self._queue.row.sampler, self._claimed, self._queue.storage
        fixed = claimed.params | claimed.system_attrs.get("fixed_params", {})
        begun = [trial for trial in self._queue.trials() if trial.state is not TrialState.WAITING]
        history = samplers.history([trial for trial in begun if trial.number != self.number], reference)
        for count in range(1, samplers.TRIES + 1):
            sampler = samplers.make(name, self._queue.row.seed, self.number, count - 1)
            proposed, trial = self._queue.database.retry(
                partial(samplers.ask, sampler, history, self.number, fixed, fn, storage, self._queue.row.study_id)
            )
            if fixed or known is None or not known(proposed):
                break
        for key, distribution in trial.distributions.items():
            if key not in claimed.params:
                value = distribution.to_internal_repr(trial.params[key])
                self._write(partial(storage.set_trial_param, self._trial_id, key, value, distribution))
        if name not in samplers.SAMPLERS:  # An imported sampler may read its own attributes of earlier trials.
            for key, value in trial.system_attrs.items():
                self._write(partial(storage.set_trial_system_attr, self._trial_id, key, value))
        if count > 1:
            self.set("proposals", count)
        self.spec = json.loads(json.dumps(proposed))
        self._set("schedule", self.spec)
        return dict(self.spec)

    def renew(self, **values: Any) -> None:
        """Renew the lease and set ``values`` in the slot's row; safe to call from another thread."""
        self._queue.database.transaction(lambda connection: self._hold(connection, **values))

    def report(self, epoch: int, value: float) -> None:
        """Store the objective after ``epoch`` (from 0); a second report of an epoch replaces the first.

        A new epoch resets the count of bad attempts, because only bad attempts without progress fail a trial.
        """
        changed = {"strikes": 0} if self._bad_attempts and epoch not in self.curve else {}
        number = float(value)
        self._write(lambda: self._queue.storage.set_trial_intermediate_value(self._trial_id, epoch, number), **changed)
        self._bad_attempts = changed.get("strikes", self._bad_attempts)
        self.curve[epoch] = number

    def set(self, key: str, value: Any) -> None:
        """Store the attribute ``key``, a field of :class:`Facts`; raises TypeError for any other name."""
        facts = replace(self.facts, **{key: value})
        self._set(key, value)
        self.facts = facts

    def tell(self, value: float) -> None:
        """Finish the trial as COMPLETE with its score; raises NotFinite for NaN and infinity (use :meth:`fail`)."""
        self._finish(TrialState.COMPLETE, value)

    def prune(self, value: float) -> None:
        """Finish the trial as PRUNED with its best value so far, from which samplers then learn."""
        self._finish(TrialState.PRUNED, value)

    def fail(self, reason: str | None = None) -> None:
        """Finish the trial as FAIL; ``reason`` and those of earlier attempts are stored with the trial and its slot."""
        reasons = [*self.reasons, reason] if reason else list(self.reasons)
        self._set("reasons", reasons)
        self.renew(reasons=json.dumps(reasons))
        self._finish(TrialState.FAIL)

    def release(self, reason: str | None = None) -> None:
        """End the lease, so that another worker can claim the trial at once.

        With a ``reason`` the attempt counts as a bad one. A lease that is already lost is no error, because nothing
        remains to be released.
        """
        with contextlib.suppress(LeaseLost):
            reasons = json.dumps([*self.reasons, reason] if reason else self.reasons)
            bad_attempts = self._bad_attempts + bool(reason)
            self.renew(worker=None, claim=None, expires=None, strikes=bad_attempts, reasons=reasons)

    # -- the lease

    def _hold(self, connection: Connection | Session, **values: Any) -> None:
        """Renew the lease and set ``values`` in the slot's row; raises LeaseLost if this attempt does not hold it."""
        database, slots = self._queue.database, self._queue.database.tables.slots
        values.setdefault("expires", database.now + self._queue.lease_seconds)
        renewal = (
            update(slots)
            .where(slots.c.study == self._queue.row.id, slots.c.number == self.number, slots.c.state == "open")
            .where(slots.c.worker == self.worker, slots.c.attempt == self.attempt)
            .values(**values)
        )
        if connection.execute(renewal).rowcount == 0:  # type: ignore[attr-defined]
            raise self._lost()

    def _write(self, work: Callable[[], object], **values: Any) -> None:
        """Call ``work`` behind the fence, again after transient errors.

        Its transaction renews the lease and sets ``values`` in the slot's row.
        """
        try:
            with self._queue.storage.fenced(partial(self._hold, **values)):
                self._queue.database.retry(work)
        except (UpdateFinishedTrialError, KeyError):  # Another program finished or deleted the trial.
            raise self._lost() from None

    def _set(self, key: str, value: Any) -> None:
        self._write(lambda: self._queue.storage.set_trial_user_attr(self._trial_id, key, value))

    def _finish(self, state: TrialState, value: float | None = None) -> None:
        """Set the trial's final state and close its slot, in one transaction."""
        if value is not None and not math.isfinite(value):
            raise NotFinite(f"trial {self.number}: the objective is {value}; expected a finite number")
        values = None if value is None else [float(value)]
        finish = partial(self._queue.storage.set_trial_state_values, self._trial_id, state, values)
        try:
            self._write(finish, state="closed")
        except LeaseLost:
            # If the connection broke after the database had committed, the repeated transaction finds a closed slot.
            # It was closed by this attempt, so the trial is finished as intended.
            row = self._queue.rows().get(self.number)
            if row is None or (row.state, row.attempt) != ("closed", self.attempt):
                raise

    def _lost(self) -> LeaseLost:
        return LeaseLost(
            f"trial {self.number}: {self.worker} no longer holds attempt {self.attempt}: its lease expired, and "
            "another worker has taken or finished the trial; this worker stops without writing"
        )


@dataclass(frozen=True)
class Queue:
    """The slots of one study; ``row`` is the study's row in sweeper's table ``studies``."""

    database: Database
    storage: FencedStorage
    optuna: optuna.Study
    row: Any
    lease_seconds: float
    attempts: int

    def missing(self, trials: Sequence[Wanted]) -> dict[str, Wanted]:
        """Return those of ``trials`` that have no slot yet, by the value of their slot's column ``item``."""
        existing = {row.item for row in self.rows().values()}
        counts: Counter[str] = Counter()
        missing = {}
        for wanted in trials:
            item = f"{wanted.item}/{counts[wanted.item]}"  # The n-th of several equal trials ends in /n.
            counts[wanted.item] += 1
            if item not in existing:
                missing[item] = wanted
        return missing

    def enqueue(self, wanted: Wanted, item: str) -> None:
        """Create a WAITING trial and its slot in one transaction; do nothing if another worker has created ``item``."""
        attrs = {key: value for key, value in wanted.given.items() if key != "params"}
        fixed = {"fixed_params": dict(wanted.params)} if wanted.params else {}
        waiting = optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=attrs, system_attrs=fixed)
        if wanted.replicate_of is not None:  # A replicate has the parameters and the schedule of its original.
            original = self._trial(wanted.replicate_of, self.rows()[wanted.replicate_of].trial_id)
            waiting.params, waiting.distributions = original.params, original.distributions
            waiting.set_user_attr("schedule", original.user_attrs["schedule"])
        slots, study_id = self.database.tables.slots, self.row.study_id

        def guard(session: Session) -> None:
            session.flush()
            # Optuna has locked the study's row in this transaction, so the newest trial is the one being created.
            trials = select(TRIALS.c.trial_id, TRIALS.c.number).where(TRIALS.c.study_id == study_id)
            trial_id, number = session.execute(trials.order_by(TRIALS.c.trial_id.desc()).limit(1)).one()
            row = {"study": self.row.id, "number": number, "trial_id": trial_id, "item": item}
            first = wanted.stage == "baseline" or wanted.replicate_of is not None
            session.execute(slots.insert().values(**row, first=first))

        with contextlib.suppress(IntegrityError), self.storage.fenced(guard):
            self.database.retry(lambda: self.storage.create_new_trial(study_id, waiting))

    def claim(self, worker: str, excluded: Collection[int], on_exhausted: Callable[[Slot], None]) -> Slot | None:
        """Lease a trial and set it to RUNNING; return None if no trial can be claimed now. See :meth:`Study.claim`."""
        while (leased := self._lease(worker, excluded)) is not None:
            row, adopted = leased
            slot = Slot(self, row, trial := self._trial(row.number, row.trial_id), adopted)
            # A worker that is suspended here loses the new lease to another worker and then claims another trial.
            with contextlib.suppress(LeaseLost):
                if trial.state.is_finished():  # A person finished it with `optuna tell` or a dashboard.
                    slot.renew(state="closed")
                elif row.strikes >= self.attempts:
                    on_exhausted(slot)
                    slot.fail()
                else:
                    if trial.state is TrialState.WAITING:
                        slot._write(partial(self.storage.set_trial_state_values, row.trial_id, TrialState.RUNNING))
                    return slot
        return None

    def _lease(self, worker: str, excluded: Collection[int]) -> tuple[Any, bool] | None:
        """Lease the next free slot to ``worker``; return its row and whether the lease of its last worker expired.

        The transaction is repeated if the connection breaks, also if it broke after the commit. The random ``claim``
        then finds the slot that is already leased, so that the worker does not lease a second one.
        """
        slots, now, claim = self.database.tables.slots, self.database.now, uuid.uuid4().hex
        free = or_(slots.c.worker.is_(None), slots.c.expires < now, slots.c.claim == claim)
        first = (
            select(slots)
            .where(slots.c.study == self.row.id, slots.c.state == "open", free)
            .where(slots.c.number.not_in(excluded))
            .order_by(slots.c.first.desc(), slots.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )

        def lease(connection: Connection) -> tuple[Any, bool] | None:
            row = connection.execute(first).first()
            if row is None:
                return None
            reasons: list[str] = json.loads(row.reasons)
            expired = row.worker is not None and row.claim != claim
            if expired:
                reasons.append(f"{row.worker} stopped renewing its lease (attempt {row.attempt})")
            leased = (
                update(slots)
                .where(slots.c.study == self.row.id, slots.c.number == row.number)
                .values(worker=worker, claim=claim, expires=now + self.lease_seconds, attempt=row.attempt + 1)
                .values(strikes=row.strikes + expired, reasons=json.dumps(reasons))
            )
            return connection.execute(leased.returning(slots)).one(), expired

        return self.database.transaction(lease)

    def _trial(self, number: int, trial_id: int) -> FrozenTrial:
        try:
            return self.database.retry(lambda: self.storage.get_trial(trial_id))
        except KeyError:
            raise DatabaseError(
                f"trial {number} was deleted from {self.database}; launch the sweep under a new name"
            ) from None

    def trials(self) -> list[FrozenTrial]:
        """Return all trials of the study, by number: Optuna's cached objects, which callers must not change."""
        return self.database.retry(lambda: self.optuna.get_trials(deepcopy=False))

    def done(self) -> bool:
        """Whether every slot is closed; one query that reads at most one row."""
        slots = self.database.tables.slots
        unfinished = select(slots.c.number).where(slots.c.study == self.row.id, slots.c.state == "open").limit(1)
        return self.database.transaction(lambda connection: connection.execute(unfinished).first()) is None

    def rows(self) -> dict[int, Any]:
        """Return the rows of the slots by the number of their trial."""
        slots = self.database.tables.slots
        query = select(slots).where(slots.c.study == self.row.id)
        rows = self.database.transaction(lambda connection: connection.execute(query).all())
        return {row.number: row for row in rows}
