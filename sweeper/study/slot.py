"""One claimed trial: what its owner may do with it, every write fenced by the lease."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweeper.errors import LeaseLost, NotFinite
from sweeper.search import Suggest
from sweeper.study import samplers
from sweeper.study.queue import Lease
from sweeper.study.trial import Facts, Stage, stored


class Slot:
    """A trial that this worker holds. All that writes raises LeaseLost once somebody else holds it.

    ``number`` is Optuna's. ``owner`` is ``id/number`` with the study's random id: in whose name states are pinned and
    epochs were trained. ``spec`` is the schedule as plain data, None before :meth:`propose`. ``attempt`` counts claims
    from 1, ``reasons`` say how earlier ones ended; ``adopted``: the last one just stopped renewing its lease. ``curve``
    is the objective reported so far by epoch, ``facts`` are the stored attributes.
    """

    def __init__(
        self, lease: Lease, trial: FrozenTrial, history: Callable[[], list[FrozenTrial]], sampler: str, seed: int
    ) -> None:
        self._lease = lease
        self.number, self.attempt, self.worker = lease.number, lease.attempt, lease.worker
        self.owner = f"{lease.study}/{lease.number}"
        self.reasons, self.adopted = lease.reasons, lease.adopted
        self._claimed, self._history = trial, history
        self._sampler = (sampler, seed)
        self.stage: Stage = trial.user_attrs["stage"]
        self.seed = int(trial.user_attrs["seed"])
        self.spec: dict[str, Any] | None = trial.user_attrs.get("schedule")
        self.facts = Facts.of(trial.user_attrs)
        self.curve: dict[int, float] = dict(trial.intermediate_values)

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
        the attribute "proposals" counts. Answers that are given, or that an earlier attempt stored, are kept. The
        sampler learns from scores, or with the name of a baseline as ``reference`` from differences to it on the same
        seed, those of a schedule's replicates together. ``fn`` may be called any number of times. Raises LeaseLost.
        """
        if self.spec is not None:
            return self.spec
        name, seed = self._sampler
        lease, storage, claimed = self._lease, self._lease.storage, self._claimed
        given = claimed.params | claimed.system_attrs.get("fixed_params", {})
        searched = samplers.learned([trial for trial in self._history() if trial.number != self.number], reference)
        for count in range(1, samplers.TRIES + 1):
            sampler = samplers.make(name, seed, self.number, count - 1)
            proposed, trial = samplers.ask(sampler, searched, self.number, given, fn)
            if given or known is None or not known(proposed):
                break
        for key, distribution in trial.distributions.items():
            if key not in claimed.params:
                value = distribution.to_internal_repr(trial.params[key])
                lease.store(functools.partial(storage.set_trial_param, lease.trial_id, key, value, distribution))
        if name not in samplers.SAMPLERS:  # a sampler from elsewhere may keep notes on its trials
            for key, note in trial.system_attrs.items():
                lease.store(functools.partial(storage.set_trial_system_attr, lease.trial_id, key, note))
        if count > 1:
            self.set("proposals", count)
        self.spec = json.loads(json.dumps(proposed))
        lease.set("schedule", self.spec)
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
