"""Samplers by name, and what they learn from: each proposal is a function of (study's seed, trial's number, history).

A sampler is made anew for every proposal, with a seed drawn from the study's seed and the trial's number. So parallel
workers don't propose the same, a study with one worker can be repeated, and nothing is lost with a worker's memory.
It proposes in a study in memory, so that only the proposal that is taken is stored.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from statistics import fmean
from typing import Any

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from sweeper.errors import ConfigError
from sweeper.search import Suggest
from sweeper.study.trial import REPLICATE

TRIES = 50  # proposals for one trial, while they are known already
FEWEST = 8  # trials below which a share is a coin toss

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # Conditional parameters want `group`; `constant_liar` keeps parallel workers away from each other's proposals.
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
    # Every point once, conditional ones too; needs a step on every range. A finished grid starts over.
    # What others are training counts as visited: with `avoid_premature_stop` two workers would get one point.
    "grid": lambda seed: BruteForceSampler(seed=seed),
}


def make(name: str, seed: int, number: int, attempt: int = 0) -> BaseSampler:
    """The sampler ``name`` (a key of SAMPLERS, or ``module:Class``) for trial ``number``; raises ConfigError.

    ``attempt`` counts proposals for that trial that were turned down. TPE, which takes the best of 24 draws and on a
    coarse grid arrives at the same few points again and again, then takes a single draw; in the second half of the
    attempts, as after a single one of a Gaussian process, the draw is uniform.
    """
    text = f"{seed}/{number}" + (f"/{attempt}" if attempt else "")
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name in ("tpe", "gp") and attempt >= (TRIES // 2 if name == "tpe" else 1):
            return RandomSampler(seed=drawn)
        if name == "tpe" and attempt:
            return TPESampler(seed=drawn, multivariate=True, group=True, constant_liar=True, n_ei_candidates=1)
        if name in SAMPLERS:
            return SAMPLERS[name](drawn)
        return _imported(name, drawn)


def _imported(name: str, seed: int) -> BaseSampler:
    module, _, attribute = name.partition(":")
    try:
        kind: Any = getattr(importlib.import_module(module), attribute)
        if not (inspect.isclass(kind) and issubclass(kind, BaseSampler)):
            raise TypeError(f"{attribute} is no subclass of optuna.samplers.BaseSampler")
        return kind(**({"seed": seed} if "seed" in inspect.signature(kind).parameters else {}))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"sampler: {name!r} cannot be made: {error}; expected one of {', '.join(SAMPLERS)}, or module:Class of an "
            "Optuna sampler that takes a seed or no arguments"
        ) from error


class _InMemory(InMemoryStorage):
    """The trials that a sampler learns from, and the one that it proposes, which has its real number.

    What a sampler notes of the study as a whole, its place in a sequence for one, is kept in the study itself.
    """

    def __init__(self, searched: Sequence[FrozenTrial], number: int, storage: BaseStorage, study_id: int) -> None:
        super().__init__()
        self._searched, self._number = searched, number
        self._storage, self._study_id = storage, study_id

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._storage.get_study_system_attrs(self._study_id)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._storage.set_study_system_attr(self._study_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trial = copy.copy(super().get_trial(trial_id))
        trial.number = self._number
        return trial

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        proposed = [self.get_trial(trial._trial_id) for trial in super().get_all_trials(study_id, deepcopy=False)]
        trials = [trial for trial in (*self._searched, *proposed) if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


def ask(
    sampler: BaseSampler,
    searched: Sequence[FrozenTrial],
    number: int,
    given: Mapping[str, Any],
    fn: Callable[[Suggest], Mapping[str, Any]],
    storage: BaseStorage,
    study_id: int,
) -> tuple[Mapping[str, Any], FrozenTrial]:
    """``fn(suggest)`` for trial ``number``, and the trial with the answers: those ``given``, the others the sampler's.

    ``searched``: what it learns from, see :func:`learned`. ``storage`` and ``study_id``: where the study is.
    """
    memory = _InMemory(searched, number, storage, study_id)
    study = optuna.create_study(storage=memory, sampler=sampler, direction="maximize")
    if given:
        study.enqueue_trial(dict(given))
    trial = study.ask()
    return fn(trial), memory.get_trial(trial._trial_id)


def learned(begun: Sequence[FrozenTrial], reference: str | None = None) -> list[FrozenTrial]:
    """The trials that have begun (by number) as a sampler should see them; none of the given ones is changed.

    Baselines, confirmations and controls, which have no parameters, are left out: they would count as start-up trials,
    take places among TPE's good ones, empty the GP's common search space and close the grid at its root.

    With a ``reference``, the name of a baseline, a schedule is one trial with the mean difference of its replicates to
    the baseline on the same seeds: the luck of a seed, which both had, is several times larger than what schedules
    differ by. A finished trial whose seed the baseline has not finished yet appears as running.
    """
    trials = [trial for trial in begun if trial.distributions]
    if reference is None:
        return [_with_value(trial, trial.values[0]) if trial.values else trial for trial in trials]
    against = {
        trial.user_attrs["seed"]: trial.values[0]
        for trial in reversed(begun)
        if trial.state is TrialState.COMPLETE
        and trial.user_attrs.get("stage") == "baseline"
        and trial.user_attrs.get("name") == reference
    }
    compared = {
        trial.number: trial.values[0] - against[trial.user_attrs["seed"]]
        for trial in trials
        if trial.values and trial.user_attrs.get("seed") in against
    }
    differences: dict[int, list[float]] = defaultdict(list)
    for trial in trials:
        if trial.state is TrialState.COMPLETE and trial.number in compared:
            differences[trial.user_attrs.get(REPLICATE, trial.number)].append(compared[trial.number])
    means = compared | {number: fmean(each) for number, each in differences.items()}
    return [
        _with_value(trial, means.get(trial.number)) if trial.values else trial
        for trial in trials
        if REPLICATE not in trial.user_attrs
    ]


def _with_value(trial: FrozenTrial, value: float | None) -> FrozenTrial:
    """A finished trial with another value; running if there is none.

    A pruned one is judged by that value, too: TPE would take its last epoch, which may lie in a dip.
    """
    seen = copy.copy(trial)
    if value is None:
        seen.state, seen.values, seen.datetime_complete = TrialState.RUNNING, None, None
        return seen
    seen.values = [value]
    if trial.state is TrialState.PRUNED and trial.intermediate_values:
        seen.intermediate_values = {max(trial.intermediate_values): value}
    return seen


def importance(everything: Sequence[FrozenTrial]) -> tuple[dict[str, float], int]:
    """Parameter -> share of 1 in getting among the best, largest first, and of how many finished search trials.

    PED-ANOVA, which knows parameters that only some trials have (the place of a restart that is off). Empty for fewer
    than 8 trials, or where nothing varies.
    """
    searched = (trial for trial in everything if trial.user_attrs.get("stage") == "search" and trial.params)
    on_one_seed = (trial for trial in searched if REPLICATE not in trial.user_attrs)
    trials = [trial for trial in on_one_seed if trial.state is TrialState.COMPLETE]
    if len(trials) < FEWEST or len({trial.values[0] for trial in trials}) < 2:
        return {}, len(trials)
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental in Optuna; what it is worth stands in the report
        shares = optuna.importance.get_param_importances(study)
    return {name: float(share) for name, share in shares.items()}, len(trials)
