"""The queue of slots, a row of ours for each trial, claimed and handed on under a lease; and the trial that is held."""

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

TRIALS = table("trials", column("trial_id"), column("study_id"), column("number"))  #: Optuna's own


def unfinished(database: Database) -> list[str]:
    """:attr:`Slot.owner` of every trial of every study in the database that is not finished."""
    slots = database.tables.slots
    query = select(slots.c.study, slots.c.number).where(slots.c.state == "open")
    rows = database.transaction(lambda connection: connection.execute(query).all())
    return [f"{row.study}/{row.number}" for row in rows]


class Slot:
    """A trial that this worker holds. All that writes raises LeaseLost once somebody else holds it, or it is finished.

    ``number`` is Optuna's. ``owner`` is ``id/number`` with the study's random id: in whose name states are pinned and
    epochs were trained. ``spec`` is the schedule as plain data, None before :meth:`propose`. ``attempt``, the fencing
    token, counts claims from 1, ``reasons`` say how earlier ones ended; ``adopted``: the last one just stopped renewing
    its lease. ``curve`` is the objective reported so far by epoch, ``facts`` are the stored attributes.
    """

    def __init__(self, queue: Queue, row: Any, trial: FrozenTrial, adopted: bool) -> None:
        self._queue, self._claimed, self._trial_id = queue, trial, row.trial_id
        self.number: int = row.number
        self.owner = f"{row.study}/{row.number}"
        self.worker: str = row.worker
        self.attempt: int = row.attempt
        self.reasons: tuple[str, ...] = tuple(json.loads(row.reasons))
        self.adopted = adopted
        self._strikes: int = row.strikes
        self.stage: Stage = trial.user_attrs["stage"]
        self.seed = int(trial.user_attrs["seed"])
        self.spec: dict[str, Any] | None = trial.user_attrs.get("schedule")
        self.facts = Facts.of(trial.user_attrs)
        self.curve: dict[int, float] = dict(trial.intermediate_values)

    @property
    def last_attempt(self) -> bool:
        """Whether the trial fails for good if this attempt ends badly, too."""
        return self._strikes + 1 >= self._queue.attempts

    def propose(
        self,
        fn: Callable[[Suggest], Mapping[str, Any]],
        known: Callable[[Mapping[str, Any]], bool] | None = None,
        reference: str | None = None,
    ) -> dict[str, Any]:
        """The trial's schedule: the fixed one, the one stored by an earlier attempt, or ``fn(suggest)``, stored.

        While ``known`` says of a proposal that there is nothing new in it, the sampler is asked again, up to 50 times;
        the attribute "proposals" counts. Answers that are given, or that an earlier attempt stored, are kept. The
        sampler learns from scores, or with the name of a baseline as ``reference`` from differences to it on the same
        seed, those of a schedule's replicates together. ``fn`` may be called any number of times.
        """
        if self.spec is not None:
            return self.spec
        name, claimed, storage = self._queue.row.sampler, self._claimed, self._queue.storage
        given = claimed.params | claimed.system_attrs.get("fixed_params", {})
        others = [trial for trial in self._queue.trials() if trial.state is not TrialState.WAITING]
        searched = samplers.learned([trial for trial in others if trial.number != self.number], reference)
        for count in range(1, samplers.TRIES + 1):
            sampler = samplers.make(name, self._queue.row.seed, self.number, count - 1)
            proposed, trial = self._queue.database.retry(
                partial(samplers.ask, sampler, searched, self.number, given, fn, storage, self._queue.row.study_id)
            )
            if given or known is None or not known(proposed):
                break
        for key, distribution in trial.distributions.items():
            if key not in claimed.params:
                value = distribution.to_internal_repr(trial.params[key])
                self._write(partial(storage.set_trial_param, self._trial_id, key, value, distribution))
        if name not in samplers.SAMPLERS:  # a sampler from elsewhere may keep notes on its trials
            for key, note in trial.system_attrs.items():
                self._write(partial(storage.set_trial_system_attr, self._trial_id, key, note))
        if count > 1:
            self.set("proposals", count)
        self.spec = json.loads(json.dumps(proposed))
        self._set("schedule", self.spec)
        return dict(self.spec)

    def renew(self, **values: Any) -> None:
        """Say that the worker is alive, and set ``values`` on the slot; safe to call from another thread."""
        self._queue.database.transaction(lambda connection: self._hold(connection, **values))

    def report(self, epoch: int, value: float) -> None:
        """Store the objective after ``epoch`` (from 0); a second report of an epoch replaces the first."""
        strikes = self._strikes if epoch in self.curve else 0  # a trial that gets on is not broken
        changed = {"strikes": strikes} if strikes != self._strikes else {}
        number = float(value)
        self._write(lambda: self._queue.storage.set_trial_intermediate_value(self._trial_id, epoch, number), **changed)
        self._strikes = strikes
        self.curve[epoch] = number

    def set(self, key: str, value: Any) -> None:
        """Store one of its :class:`Facts`; TypeError for a name that is none of them."""
        facts = replace(self.facts, **{key: value})
        self._set(key, value)
        self.facts = facts

    def tell(self, value: float) -> None:
        """Finish the trial with its objective; raises NotFinite for NaN (use :meth:`fail`)."""
        self._finish(TrialState.COMPLETE, value)

    def prune(self, value: float) -> None:
        """Finish the trial early with the best annealed value so far, which is what samplers then learn from."""
        self._finish(TrialState.PRUNED, value)

    def fail(self, reason: str | None = None) -> None:
        """Give the trial up for good, for the reasons so far and this one, which go to the trial and its slot."""
        reasons = [*self.reasons, reason] if reason else list(self.reasons)
        self._set("reasons", reasons)
        self.renew(reasons=json.dumps(reasons))
        self._finish(TrialState.FAIL)

    def give_back(self, reason: str | None = None) -> None:
        """Let the next worker adopt the trial at once. With a ``reason`` the attempt counts as a bad one.

        The last attempt allowed to end badly fails the trial. A lease that was lost already is no error: there is
        nothing left to give back.
        """
        with contextlib.suppress(LeaseLost):
            if reason and self.last_attempt:
                self.fail(reason)
                return
            reasons = json.dumps([*self.reasons, reason] if reason else self.reasons)
            strikes = self._strikes + bool(reason)
            self.renew(worker=None, claim=None, expires=None, strikes=strikes, reasons=reasons)

    # -- the lease

    def _hold(self, connection: Connection | Session, **values: Any) -> None:
        """Renew the lease and set ``values`` on the slot; raises LeaseLost if somebody else owns it."""
        database, slots = self._queue.database, self._queue.database.tables.slots
        values.setdefault("expires", database.now + self._queue.lease_seconds)
        held = (
            update(slots)
            .where(slots.c.study == self._queue.row.id, slots.c.number == self.number, slots.c.state == "open")
            .where(slots.c.worker == self.worker, slots.c.attempt == self.attempt)
            .values(**values)
        )
        if connection.execute(held).rowcount == 0:  # type: ignore[attr-defined]
            raise self._lost()

    def _write(self, work: Callable[[], object], **values: Any) -> None:
        """Do ``work`` behind the fence, again after transient errors, and set ``values`` on the slot with it."""
        try:
            with self._queue.storage.fenced(partial(self._hold, **values)):
                self._queue.database.retry(work)
        except (UpdateFinishedTrialError, KeyError):  # finished or deleted
            raise self._lost() from None

    def _set(self, key: str, value: Any) -> None:
        self._write(lambda: self._queue.storage.set_trial_user_attr(self._trial_id, key, value))

    def _finish(self, state: TrialState, value: float | None = None) -> None:
        """Set the trial's final state and close the slot, in one transaction."""
        if value is not None and not math.isfinite(value):
            raise NotFinite(f"trial {self.number}: the objective is {value}; expected a finite number")
        values = None if value is None else [float(value)]
        finish = partial(self._queue.storage.set_trial_state_values, self._trial_id, state, values)
        try:
            self._write(finish, state="closed")
        except LeaseLost:
            # Closed in this attempt: the commit took place, and only its answer got lost.
            row = self._queue.rows().get(self.number)
            if row is None or (row.state, row.attempt) != ("closed", self.attempt):
                raise

    def _lost(self) -> LeaseLost:
        return LeaseLost(
            f"trial {self.number}: {self.worker} no longer holds attempt {self.attempt}; "
            "the lease ran out and the trial is somebody else's or finished; stop without writing"
        )


@dataclass(frozen=True)
class Queue:
    """The slots of one study; ``row`` is ours of that study."""

    database: Database
    storage: FencedStorage
    optuna: optuna.Study
    row: Any
    lease_seconds: float
    attempts: int

    def missing(self, trials: Sequence[Wanted]) -> dict[str, Wanted]:
        """Those of ``trials`` that are not there yet, by the name under which they are known."""
        have = {row.item for row in self.rows().values()}
        seen: Counter[str] = Counter()
        missing = {}
        for wanted in trials:
            name = wanted.item
            item = f"{name}/{seen[name]}"
            seen[name] += 1
            if item not in have:
                missing[item] = wanted
        return missing

    def enqueue(self, wanted: Wanted, item: str) -> None:
        """Make a WAITING trial and its slot, in one transaction; nothing if another worker has made it meanwhile."""
        attrs = {key: value for key, value in wanted.given.items() if key != "params"}
        fixed = {"fixed_params": dict(wanted.params)} if wanted.params else {}
        waiting = optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=attrs, system_attrs=fixed)
        if wanted.replicate_of is not None:  # the sampler's answers and the schedule are those of the original
            original = self._trial(wanted.replicate_of, self.rows()[wanted.replicate_of].trial_id)
            waiting.params, waiting.distributions = original.params, original.distributions
            waiting.set_user_attr("schedule", original.user_attrs["schedule"])
        slots, study_id = self.database.tables.slots, self.row.study_id

        def guard(session: Session) -> None:
            session.flush()
            # Optuna holds the study's row, so the newest trial is the one being made.
            mine = select(TRIALS.c.trial_id, TRIALS.c.number).where(TRIALS.c.study_id == study_id)
            trial_id, number = session.execute(mine.order_by(TRIALS.c.trial_id.desc()).limit(1)).one()
            row = {"study": self.row.id, "number": number, "trial_id": trial_id, "item": item}
            first = wanted.stage == "baseline" or wanted.replicate_of is not None
            session.execute(slots.insert().values(**row, first=first))

        with contextlib.suppress(IntegrityError), self.storage.fenced(guard):
            self.database.retry(lambda: self.storage.create_new_trial(study_id, waiting))

    def claim(self, worker: str, passing_over: Collection[int], giving_up: Callable[[Slot], None]) -> Slot | None:
        """A trial under a lease, RUNNING; None if there is nothing to be had now. See :meth:`Study.claim`."""
        while (taken := self._take(worker, passing_over)) is not None:
            row, adopted = taken
            slot = Slot(self, row, trial := self._trial(row.number, row.trial_id), adopted)
            with contextlib.suppress(LeaseLost):  # frozen between taking and beginning: somebody else has it now
                if trial.state.is_finished():  # told by somebody else, `optuna tell` or a dashboard
                    slot.renew(state="closed")
                elif row.strikes >= self.attempts:
                    giving_up(slot)
                    slot.fail()
                else:
                    if trial.state is TrialState.WAITING:
                        slot._write(partial(self.storage.set_trial_state_values, row.trial_id, TrialState.RUNNING))
                    return slot
        return None

    def _take(self, worker: str, passing_over: Collection[int]) -> tuple[Any, bool] | None:
        """The row of the next slot, now ours, and whether its last worker just stopped renewing its lease."""
        slots, now, claim = self.database.tables.slots, self.database.now, uuid.uuid4().hex
        free = or_(slots.c.worker.is_(None), slots.c.expires < now, slots.c.claim == claim)
        first = (
            select(slots)
            .where(slots.c.study == self.row.id, slots.c.state == "open", free)
            .where(slots.c.number.not_in(passing_over))
            .order_by(slots.c.first.desc(), slots.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )

        def take(connection: Connection) -> tuple[Any, bool] | None:
            row = connection.execute(first).first()
            if row is None:
                return None
            reasons: list[str] = json.loads(row.reasons)
            died = row.worker is not None and row.claim != claim
            if died:
                reasons.append(f"{row.worker} stopped renewing its lease (attempt {row.attempt})")
            taken = (
                update(slots)
                .where(slots.c.study == self.row.id, slots.c.number == row.number)
                .values(worker=worker, claim=claim, expires=now + self.lease_seconds, attempt=row.attempt + 1)
                .values(strikes=row.strikes + died, reasons=json.dumps(reasons))
            )
            return connection.execute(taken.returning(slots)).one(), died

        return self.database.transaction(take)

    def _trial(self, number: int, trial_id: int) -> FrozenTrial:
        try:
            return self.database.retry(lambda: self.storage.get_trial(trial_id))
        except KeyError:
            raise DatabaseError(
                f"trial {number} was deleted from {self.database}; launch the sweep under a new name"
            ) from None

    def trials(self) -> list[FrozenTrial]:
        """All trials of the study as Optuna has them, by number. Not to be changed: they are kept."""
        return self.database.retry(lambda: self.optuna.get_trials(deepcopy=False))

    def done(self) -> bool:
        """Whether every slot is closed. One query, whatever the size."""
        t = self.database.tables.slots
        left = select(t.c.number).where(t.c.study == self.row.id, t.c.state == "open").limit(1)
        return self.database.transaction(lambda connection: connection.execute(left).first()) is None

    def rows(self) -> dict[int, Any]:
        """The slots' rows by the trial's number."""
        t = self.database.tables.slots
        query = select(t).where(t.c.study == self.row.id)
        rows = self.database.transaction(lambda connection: connection.execute(query).all())
        return {row.number: row for row in rows}
