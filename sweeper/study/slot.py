"""One claimed trial: what its owner may do with it, every write fenced by the lease."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from sweeper.database import Database, Session, select, update
from sweeper.errors import ConfigError, LeaseLost, NotFinite
from sweeper.study import samplers
from sweeper.study.fence import FencedStorage, Guard
from sweeper.study.history import History, Rehearsal, SearchStorage
from sweeper.study.trial import Facts, Stage, stored

T = TypeVar("T")


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


class Suggest:
    """What a proposal may ask for; stands for Optuna's trial, and says in one line what it cannot do."""

    def __init__(self, trial: optuna.trial.Trial) -> None:
        self._trial = trial

    def suggest_float(self, name: str, low: float, high: float, step: float | None = None, log: bool = False) -> float:
        """A number in [low, high], on a grid of ``step`` from ``low``, or on a log scale."""
        return self._ask(name, lambda: self._trial.suggest_float(name, low, high, step=step, log=log))

    def suggest_int(self, name: str, low: int, high: int, step: int = 1, log: bool = False) -> int:
        """A whole number in [low, high]."""
        return self._ask(name, lambda: self._trial.suggest_int(name, low, high, step=step, log=log))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of ``choices``, each None, a bool, a number or a string."""
        for choice in choices:
            if not (choice is None or isinstance(choice, (bool, int, float, str))):
                raise ConfigError(
                    f"search.{name}: {choice!r} cannot be stored as a choice; "
                    "expected numbers, strings, true, false or null"
                )
        return self._ask(name, lambda: self._trial.suggest_categorical(name, choices))

    def _ask(self, name: str, work: Callable[[], T]) -> T:
        try:
            return work()
        except ValueError as error:  # what Optuna raises for a space that is impossible, or not the study's
            line = " ".join(str(error).split())
            raise ConfigError(
                f"search.{name}: {line}; a study's search space is fixed, rename it for a new one"
            ) from error


class Slot:
    """A trial that this worker holds. All that writes raises LeaseLost once somebody else holds it.

    ``number`` is Optuna's, ``stage`` and ``seed`` the launched slot's, ``spec`` its fixed schedule or what was
    proposed before, as plain data (None before :meth:`propose`). ``attempt`` counts claims from 1, ``facts`` are the
    stored attributes, ``curve`` is the objective reported so far by epoch, ``reasons`` say how earlier attempts ended.
    """

    def __init__(self, lease: Lease, trial: FrozenTrial, history: History, study: str, sampler: str, seed: int) -> None:
        self._lease = lease
        self._history = history
        self._study = study
        self._sampler = (sampler, seed)
        self.stage: Stage = trial.user_attrs["stage"]
        self.seed = int(trial.user_attrs["seed"])
        self.spec: dict[str, Any] | None = trial.user_attrs.get("schedule")
        self.facts = Facts.of(trial.user_attrs)
        self.curve: dict[int, float] = dict(trial.intermediate_values)

    @property
    def number(self) -> int:
        return self._lease.number

    @property
    def owner(self) -> str:
        """``id/number``, with the study's random id: in whose name states are pinned and epochs were trained."""
        return f"{self._lease.study}/{self.number}"

    @property
    def attempt(self) -> int:
        return self._lease.attempt

    @property
    def worker(self) -> str:
        return self._lease.worker

    @property
    def reasons(self) -> tuple[str, ...]:
        return self._lease.reasons

    @property
    def adopted(self) -> bool:
        """Whether the attempt before this one just stopped renewing its lease; the last of ``reasons`` says whose."""
        return self._lease.adopted

    @property
    def last_attempt(self) -> bool:
        """Whether the trial fails for good if this attempt ends badly, too."""
        return self._lease.strikes + 1 >= self._lease.limit

    def propose(
        self,
        fn: Callable[[Suggest], Mapping[str, Any]],
        known: Callable[[Mapping[str, Any]], bool] | None = None,
        reference: str | None = None,
    ) -> dict[str, Any]:
        """The trial's schedule: the fixed one, the one stored by an earlier attempt, or ``fn(suggest)``, stored.

        While ``known`` says of a proposal that there is nothing new in it, the sampler is asked again, up to 50 times;
        the attribute "proposals" counts. The sampler learns from scores, or with the name of a baseline as
        ``reference`` from differences to it on the same seed, those of a schedule's replicates together. ``fn`` may
        be called any number of times. Raises ConfigError for a space that cannot be, LeaseLost.
        """
        if self.spec is not None:
            return self.spec
        name, seed = self._sampler
        view = SearchStorage(self._history, self.number, reference)
        trial_id = self._lease.trial_id

        def ask(storage: Any, sampler: optuna.samplers.BaseSampler) -> Mapping[str, Any]:
            # a storage in all but name
            study = optuna.Study(self._study, storage, sampler, optuna.pruners.NopPruner())
            return fn(Suggest(optuna.trial.Trial(study, trial_id)))

        sampler, count = samplers.make(name, seed, self.number), 1
        begun = view.get_trial(trial_id)
        # Answers that are given, or that an earlier attempt stored, are not turned down. A sampler from elsewhere may
        # keep notes on its trials, so it proposes only once.
        if (
            known is not None
            and name in samplers.SAMPLERS
            and not (begun.params or "fixed_params" in begun.system_attrs)
        ):
            for count in range(1, samplers.TRIES + 1):
                rehearsal = Rehearsal(view, trial_id)
                if not known(ask(rehearsal, samplers.make(name, seed, self.number, count - 1))):
                    break
            sampler = samplers.decided(rehearsal.trial.params)

        try:
            proposed = self._lease.write(lambda: ask(view, sampler))
        except UpdateFinishedTrialError:  # somebody else had it meanwhile
            raise self._lease.lost() from None
        if count > 1:
            self.set("proposals", count)
        self.spec = json.loads(json.dumps(proposed))
        self._lease.set("schedule", self.spec)
        return dict(self.spec)

    def renew(self) -> None:
        """Say that the worker is alive; safe to call from another thread."""
        self._lease.renew()

    def report(self, epoch: int, value: float) -> None:
        """Store the objective after ``epoch`` (from 0); a second report of an epoch replaces the first."""
        lease, number = self._lease, float(value)
        strikes = lease.strikes if epoch in self.curve else 0  # a trial that gets on is not broken
        work = functools.partial(lease.storage.set_trial_intermediate_value, lease.trial_id, epoch, number)
        lease.store(work, **({"strikes": strikes} if strikes != lease.strikes else {}))
        self._lease = replace(lease, strikes=strikes)
        self.curve[epoch] = number

    def set(self, key: str, value: Any) -> None:
        """Store one of its :class:`Facts`; TypeError for a name that is none of them."""
        facts = replace(self.facts, **{key: value})
        self._lease.set(key, stored(value))
        self.facts = facts

    def tell(self, value: float) -> None:
        """Finish the trial with its objective; raises NotFinite for NaN (use :meth:`fail`)."""
        self._lease.finish(TrialState.COMPLETE, self._checked(value))

    def prune(self, value: float) -> None:
        """Finish the trial early with the best annealed value so far, which is what samplers then learn from."""
        self._lease.finish(TrialState.PRUNED, self._checked(value))

    def fail(self, reason: str) -> None:
        """Give the trial up for good."""
        self._lease.fail([*self.reasons, reason])

    def give_back(self, reason: str | None = None) -> None:
        """Let the next worker adopt the trial at once. With a ``reason`` the attempt counts as a bad one.

        The last attempt allowed to end badly fails the trial. A lease that was lost already is no error: there is
        nothing left to give back.
        """
        lease = self._lease
        reasons = [*self.reasons, reason] if reason else list(self.reasons)
        strikes = lease.strikes + bool(reason)
        try:
            if strikes >= lease.limit:
                lease.fail(reasons)
            else:
                lease.renew(worker=None, claim=None, expires=None, strikes=strikes, reasons=json.dumps(reasons))
        except LeaseLost:
            return

    def _checked(self, value: float) -> float:
        if not math.isfinite(value):
            raise NotFinite(f"trial {self.number}: the objective is {value}; expected a finite number")
        return value
