"""Samplers by name, each proposal a function of (study's seed, trial's number, history).

A sampler is made anew for every proposal, with a seed drawn from the study's seed and the trial's number. So parallel
workers don't propose the same, a study with one worker can be repeated, and nothing is lost with a worker's memory.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import warnings
from collections.abc import Callable, Container
from typing import Any

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from sweeper.errors import ConfigError

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # Conditional parameters want `group`; `constant_liar` keeps parallel workers away from each other's proposals.
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
    # Every point once, conditional ones too; needs a step on every range. A finished grid starts over.
    "grid": lambda seed: BruteForceSampler(seed=seed, avoid_premature_stop=True),
}


def make(name: str, seed: int, number: int) -> BaseSampler:
    """The sampler ``name`` (a key of SAMPLERS, or ``module:Class``) for trial ``number``; raises ConfigError."""
    own = int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name in SAMPLERS:
            return SAMPLERS[name](own)
        return _imported(name, own)


def _imported(name: str, seed: int) -> BaseSampler:
    module, _, attribute = name.partition(":")
    expected = f"expected one of {', '.join(SAMPLERS)}, or module:Class of an Optuna sampler"
    if not attribute:
        raise ConfigError(f"sampler: {name!r} is not known; {expected}")
    try:
        kind: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"sampler: {name!r} cannot be imported: {error}; {expected}") from error
    if not (inspect.isclass(kind) and issubclass(kind, BaseSampler)):
        raise ConfigError(f"sampler: {name!r} is no subclass of optuna.samplers.BaseSampler; {expected}")
    try:
        own = {"seed": seed} if "seed" in inspect.signature(kind).parameters else {}
        sampler: BaseSampler = kind(**own)
        return sampler
    except TypeError as error:
        raise ConfigError(f"sampler: {name!r} cannot be made: {error}; expected a seed or no arguments") from error


class SearchTrials:
    """A storage that shows samplers the trials that have something to teach them.

    Baselines, confirmations and controls have no parameters. Shown to a sampler they would count as start-up trials,
    take places among TPE's good ones, empty the GP's common search space and close the grid at its root.
    Everything but :meth:`get_all_trials` is passed on.
    """

    def __init__(self, storage: optuna.storages.BaseStorage, number: int) -> None:
        self._storage = storage
        self._number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials with parameters, and the one that is being proposed."""
        trials = self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        return [_annealed(trial) for trial in trials if trial.distributions or trial.number == self._number]


def _annealed(trial: FrozenTrial) -> FrozenTrial:
    """A pruned trial as judged by the value it was told: TPE would take its last epoch, which may lie in a dip."""
    if trial.state is not TrialState.PRUNED or not trial.intermediate_values or trial.values is None:
        return trial
    fields = {name: getattr(trial, name) for name in ("number", "state", "datetime_start", "datetime_complete")}
    seen = FrozenTrial(
        **fields,
        value=None,
        values=list(trial.values),
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
        intermediate_values={max(trial.intermediate_values): trial.values[0]},
        trial_id=trial._trial_id,
    )
    return seen
