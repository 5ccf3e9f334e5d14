"""Samplers by name, each proposal a function of (study's seed, trial's number, history).

A sampler is made anew for every proposal, with a seed drawn from the study's seed and the trial's number. So parallel
workers don't propose the same, a study with one worker can be repeated, and nothing is lost with a worker's memory.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import optuna
from optuna.samplers import BaseSampler, BruteForceSampler, GPSampler, PartialFixedSampler, RandomSampler, TPESampler

from sweeper.errors import ConfigError

T = TypeVar("T")

TRIES = 50  # proposals for one trial, while they are known already

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
        seeded = {"seed": seed} if "seed" in inspect.signature(kind).parameters else {}
        sampler: BaseSampler = kind(**seeded)
        return sampler
    except TypeError as error:
        raise ConfigError(f"sampler: {name!r} cannot be made: {error}; expected a seed or no arguments") from error


def decided(params: Mapping[str, Any]) -> BaseSampler:
    """A sampler that gives the answers that were decided on before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PartialFixedSampler(dict(params), RandomSampler())


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
