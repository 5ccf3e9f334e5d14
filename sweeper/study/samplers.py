"""Samplers by name, and the trials that they learn from.

Each proposal has a sampler of its own, whose seed is derived from the study's seed and the trial's number. Therefore
parallel workers propose different schedules, a study with one worker is reproducible, and the death of a worker loses
no state of a sampler. The sampler proposes in an in-memory study, so that only the accepted proposal is stored.
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
from sweeper.search import Suggest, seed_effects
from sweeper.study.trial import REPLICATE

TRIES = 50  # The most proposals for one trial, the last one of which is accepted even if it is a known schedule.
IMPORTANCE_TRIALS = 8  # Fewer finished trials give importances that are mostly chance.

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # `group` is needed for conditional parameters; `constant_liar` keeps parallel workers from equal proposals.
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
    # It proposes every point once, conditional ones too, and then starts over; every range needs a step. Running trials
    # count as visited: with `avoid_premature_stop` two workers could get the same point.
    "grid": lambda seed: BruteForceSampler(seed=seed),
}


def make(name: str, seed: int, number: int, attempt: int = 0) -> BaseSampler:
    """Return the sampler ``name`` (a key of SAMPLERS, or ``module:Class``) for trial ``number``; raises ConfigError.

    ``attempt`` counts the rejected proposals for that trial. TPE takes the best of 24 draws, which on a coarse grid are
    the same few points each time; after a rejection it therefore takes a single draw, and from half of TRIES on a
    uniform one. After a rejected proposal of a Gaussian process, every draw is uniform.
    """
    text = f"{seed}/{number}" + (f"/{attempt}" if attempt else "")
    own_seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name in ("tpe", "gp") and attempt >= (TRIES // 2 if name == "tpe" else 1):
            return RandomSampler(seed=own_seed)
        if name == "tpe" and attempt:
            return TPESampler(seed=own_seed, multivariate=True, group=True, constant_liar=True, n_ei_candidates=1)
        if name in SAMPLERS:
            return SAMPLERS[name](own_seed)
        return _imported(name, own_seed)


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
    """The storage of an in-memory study with the trials of ``history`` and one proposed trial, which is ``number``.

    The study's system attributes are read from and written to ``storage``, because a sampler stores its own state
    there, for instance its position in a quasi-random sequence.
    """

    def __init__(self, history: Sequence[FrozenTrial], number: int, storage: BaseStorage, study_id: int) -> None:
        super().__init__()
        self._history, self._number = history, number
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
        trials = [trial for trial in (*self._history, *proposed) if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


def ask(
    sampler: BaseSampler,
    history: Sequence[FrozenTrial],
    number: int,
    fixed: Mapping[str, Any],
    fn: Callable[[Suggest], Mapping[str, Any]],
    storage: BaseStorage,
    study_id: int,
) -> tuple[Mapping[str, Any], FrozenTrial]:
    """Return ``fn(suggest)`` for trial ``number``, and the trial with its parameters.

    Parameters in ``fixed`` have the value given there, the sampler proposes the others. It learns from ``history``, see
    :func:`history`. The study is ``study_id`` in ``storage``.
    """
    memory = _InMemory(history, number, storage, study_id)
    study = optuna.create_study(storage=memory, sampler=sampler, direction="maximize")
    if fixed:
        study.enqueue_trial(dict(fixed))
    trial = study.ask()
    return fn(trial), memory.get_trial(trial._trial_id)


def history(begun: Sequence[FrozenTrial], reference: str | None = None) -> list[FrozenTrial]:
    """Return copies of the trials in ``begun`` (those that have begun, by number) as a sampler should see them.

    Trials without parameters (baselines, confirmation runs, controls) are left out, because they would count as
    start-up trials, be among TPE's best trials, empty the GP's common search space and end the grid at its root.

    With a ``reference``, the name of a baseline, a schedule and its replicates appear as one trial, whose value is
    their mean difference to the baseline on the same seeds: scores vary several times more between seeds than between
    schedules, and the difference cancels the seed's part. What the differences of all schedules have in common on a
    seed (``search.seed_effects``) is subtracted, too. A finished trial appears as running until the baseline has
    finished on its seed.
    """
    trials = [trial for trial in begun if trial.distributions]
    if reference is None:
        return [_with_value(trial, trial.values[0]) if trial.values else trial for trial in trials]
    reference_scores = {
        trial.user_attrs["seed"]: trial.values[0]
        for trial in reversed(begun)
        if trial.state is TrialState.COMPLETE
        and trial.user_attrs.get("stage") == "baseline"
        and trial.user_attrs.get("name") == reference
    }
    seeds: dict[int, int] = {trial.number: trial.user_attrs["seed"] for trial in trials}
    differences = {
        trial.number: trial.values[0] - reference_scores[seeds[trial.number]]
        for trial in trials
        if trial.values and seeds[trial.number] in reference_scores
    }
    by_schedule: dict[int, dict[int, float]] = defaultdict(dict)
    for trial in trials:
        if trial.state is TrialState.COMPLETE and trial.number in differences:
            schedule = trial.user_attrs.get(REPLICATE, trial.number)
            by_schedule[schedule][seeds[trial.number]] = differences[trial.number]
    effects = seed_effects(by_schedule)
    means = {number: difference - effects.get(seeds[number], 0.0) for number, difference in differences.items()}
    for number, scores in by_schedule.items():
        means[number] = fmean(difference - effects[seed] for seed, difference in scores.items())
    return [
        _with_value(trial, means.get(trial.number)) if trial.values else trial
        for trial in trials
        if REPLICATE not in trial.user_attrs
    ]


def _with_value(trial: FrozenTrial, value: float | None) -> FrozenTrial:
    """Return a copy of a finished trial with the score ``value``, or as running where ``value`` is None.

    In a pruned trial ``value`` also replaces the objective by epoch, because TPE ranks a pruned trial by its last
    epoch, which may lie in the dip after a restart.
    """
    changed = copy.copy(trial)
    if value is None:
        changed.state, changed.values, changed.datetime_complete = TrialState.RUNNING, None, None
        return changed
    changed.values = [value]
    if trial.state is TrialState.PRUNED and trial.intermediate_values:
        changed.intermediate_values = {max(trial.intermediate_values): value}
    return changed


def importance(frozen: Sequence[FrozenTrial]) -> tuple[dict[str, float], int]:
    """Return each parameter's importance for being among the best trials, largest first, and the number of trials.

    The importances sum to 1; they are computed by PED-ANOVA, which allows parameters that only some trials have. The
    trials are the finished ones of the search on its first seed. The dict is empty for fewer than IMPORTANCE_TRIALS
    trials and where all scores are equal.
    """
    trials = [
        trial
        for trial in frozen
        if trial.user_attrs.get("stage") == "search"
        and trial.params
        and REPLICATE not in trial.user_attrs
        and trial.state is TrialState.COMPLETE
    ]
    if len(trials) < IMPORTANCE_TRIALS or len({trial.values[0] for trial in trials}) < 2:
        return {}, len(trials)
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns that it is experimental; the report states its limits.
        importances = optuna.importance.get_param_importances(study)
    return {name: float(value) for name, value in importances.items()}, len(trials)
