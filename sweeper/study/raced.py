"""What a sampler is told of trials that were raced over seeds: differences to the trunk, not scores.

Optuna's values stay the raw scores. A score mixes what the schedule is worth with the luck of its seed, which is
several times larger; the trunk on the same seed had the same luck, so the difference is what there is to learn from.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeper.search import shrunk
from sweeper.study.trial import REPLICATE

FEWEST = 8  # trials below which a share is a coin toss

#: How the seeds of a schedule are summed up for the sampler: one trial with the mean difference, one with the mean
#: shrunk by how few seeds it stands on, or every replicate as a trial of its own.
Told = Literal["mean", "shrunk", "each"]


def reference_scores(trials: Sequence[FrozenTrial], reference: str) -> dict[int, float]:
    """seed -> score of the baseline called ``reference``, where it has finished."""
    return {
        int(trial.user_attrs["seed"]): trial.values[0]
        for trial in reversed(trials)
        if trial.state is TrialState.COMPLETE
        and trial.user_attrs.get("stage") == "baseline"
        and trial.user_attrs.get("name") == reference
    }


def learned(trials: Sequence[FrozenTrial], reference: Mapping[int, float], told: Told) -> list[FrozenTrial]:
    """``trials`` (those with parameters, by number) as a sampler should see them, none of the given ones changed.

    ``reference``: seed -> score of the trunk. A finished trial whose seed the trunk has not finished yet appears as
    running: its parameters are known, its difference is not.
    """
    differences: dict[int, list[float]] = {}
    for trial in trials:
        if trial.state is TrialState.COMPLETE and (against := reference.get(_seed(trial))) is not None:
            original = int(trial.user_attrs.get(REPLICATE, trial.number))
            differences.setdefault(original, []).append(trial.values[0] - against)
    if told == "each":
        return [_seen(trial, _difference(trial, reference)) for trial in trials]
    worth = shrunk(differences) if told == "shrunk" else {n: fmean(each) for n, each in differences.items()}
    return [
        _seen(trial, worth.get(trial.number, _difference(trial, reference)))
        for trial in trials
        if REPLICATE not in trial.user_attrs
    ]


def _seed(trial: FrozenTrial) -> Any:
    return trial.user_attrs.get("seed")


def _difference(trial: FrozenTrial, reference: Mapping[int, float]) -> float | None:
    against = reference.get(_seed(trial))
    return None if against is None or trial.values is None else trial.values[0] - against


def _seen(trial: FrozenTrial, value: float | None) -> FrozenTrial:
    if trial.values is None:
        return trial
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
    trials = [
        trial
        for trial in everything
        if trial.state is TrialState.COMPLETE
        and trial.user_attrs.get("stage") == "search"
        and trial.params
        and REPLICATE not in trial.user_attrs  # all on the same seed
    ]
    if len(trials) < FEWEST or len({trial.values[0] for trial in trials}) < 2:
        return {}, len(trials)
    searched = optuna.create_study(direction="maximize")
    searched.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental in Optuna; what it is worth stands in the report
        found = optuna.importance.get_param_importances(searched)
    return {name: float(share) for name, share in found.items()}, len(trials)
