"""Samplers by name, each proposal a function of (study's seed, trial's number, history).

A sampler is made anew for every proposal, with a seed drawn from the study's seed and the trial's number. So parallel
workers don't propose the same, a study with one worker can be repeated, and nothing is lost with a worker's memory.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, GPSampler, PartialFixedSampler, RandomSampler, TPESampler

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


TRIES = 50  # proposals for one trial, while they are known already


def make(name: str, seed: int, number: int, attempt: int = 0) -> BaseSampler:
    """The sampler ``name`` (a key of SAMPLERS, or ``module:Class``) for trial ``number``; raises ConfigError.

    ``attempt`` counts proposals for that trial that were turned down. TPE, which takes the best of 24 draws and on a
    coarse grid arrives at the same few points again and again, then takes a single draw; in the second half of the
    attempts, as after a single one of a Gaussian process, the draw is uniform.
    """
    said = f"{seed}/{number}" + (f"/{attempt}" if attempt else "")
    own = int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name in ("tpe", "gp") and attempt >= (TRIES // 2 if name == "tpe" else 1):
            return RandomSampler(seed=own)
        if name == "tpe" and attempt:
            return TPESampler(seed=own, multivariate=True, group=True, constant_liar=True, n_ei_candidates=1)
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


def decided(params: Mapping[str, Any]) -> BaseSampler:
    """A sampler that gives the answers that were decided on before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PartialFixedSampler(dict(params), RandomSampler())
