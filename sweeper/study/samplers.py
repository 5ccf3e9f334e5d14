"""Samplers by name, each proposal a function of (study's seed, trial's number, history).

A sampler is made anew for every proposal, with a seed drawn from the study's seed and the trial's number. So parallel
workers don't propose the same, a study with one worker can be repeated, and nothing is lost with a worker's memory.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, GPSampler, RandomSampler, TPESampler

from sweeper.errors import ConfigError

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # Conditional parameters want `group`; `constant_liar` keeps parallel workers away from each other's proposals.
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
    # Every point once, conditional ones too; needs a step on every range. A finished grid starts over.
    # What others are training counts as visited: with `avoid_premature_stop` two workers would get one point.
    "grid": lambda seed: BruteForceSampler(seed=seed),
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
