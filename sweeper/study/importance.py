"""Which search parameters mattered, as Optuna tells it."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeper.study.raced import REPLICATE

FEWEST = 8  # trials below which a share is a coin toss


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
