"""Draws one schedule from a search space, by suggesting its Optuna parameters one by one.

The run is cut into sections for restarts. Each section has a switch, on or off, and a position. Other encodings have
less regret (benchmarks/), but positions on a grid let trials share their first epochs.

A parameter without effect is not suggested, such as the position of a restart that is off, or step_scale without
restarts. Two samplers differ. ``gp``, a Gaussian process, needs every parameter in every trial, so all are suggested.
``grid`` should visit each schedule once, so a section offers only positions that the sections before it leave.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import floor
from typing import Any, Protocol

import numpy as np

from sweeper.config import Parameter, Range, Restarts, Search, Sweep
from sweeper.errors import ConfigError
from sweeper.schedules import AT_RESTARTS, Duration, Schedule, TimeBase
from sweeper.schedules.decay import free_names, substitute

STEPS = 4  # Steps per epoch that are assumed while the data set is not known.

Distribution = Range | range | tuple[Any, ...]
"""The values that an Optuna parameter may have: a range of numbers, a range of whole numbers, or choices."""


class Suggest(Protocol):
    """The part of an Optuna trial that a proposal needs."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class OfflineTrial:
    """A ``Suggest`` without a study. It returns the values in ``given``; other parameters it draws uniformly with
    ``seed``, or, if that is None, sets to the low end of their range or to the first choice.

    ``params`` and ``distributions`` hold every suggested parameter, as in an Optuna trial. Raises ConfigError for a
    given value outside its distribution. Raises it also for a name that is suggested twice with different
    distributions, because Optuna would refuse that in the middle of a study.
    """

    def __init__(self, seed: int | None, given: Mapping[str, Any] | None = None) -> None:
        self._random = None if seed is None else np.random.default_rng(seed)
        self._given = given or {}
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, Distribution] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        def draw(random: np.random.Generator) -> float:
            if step is not None:
                return min(low + step * int(random.integers(0, int((high - low) / step + 1e-9) + 1)), high)
            return float(np.exp(random.uniform(np.log(low), np.log(high)))) if log else float(random.uniform(low, high))

        distribution = Range(low=low, high=high, step=step, log=log)
        return float(self._value(name, low, draw, distribution, f"{low:g} to {high:g}"))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        def draw(random: np.random.Generator) -> int:
            return low + step * int(random.integers(0, (high - low) // step + 1))

        distribution = range(low, high + 1, step)
        return int(self._value(name, low, draw, distribution, f"{low} to {high} in steps of {step}"))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        def draw(random: np.random.Generator) -> Any:
            return choices[int(random.integers(0, len(choices)))]

        return self._value(name, choices[0], draw, tuple(choices), f"one of {', '.join(map(str, choices))}")

    def _value(
        self,
        name: str,
        first: Any,
        draw: Callable[[np.random.Generator], Any],
        distribution: Distribution,
        expected: str,
    ) -> Any:
        value = self._given[name] if name in self._given else draw(self._random) if self._random else first
        if value not in distribution:
            raise ConfigError(f"{name}: {value!r} is not in the search space; expected {expected}")
        if self.distributions.setdefault(name, distribution) != distribution:
            raise ConfigError(
                f"search: {name} would be the name of two parameters with different values; expected the same values "
                "for both, or a single value for one of them"
            )
        self.params[name] = value
        return value


def propose(sweep: Sweep, suggest: Suggest, time: TimeBase | None = None) -> Schedule:
    """One schedule from ``sweep.search``, whose parameters are suggested by ``suggest``.

    ``time`` is needed for a warm-up that is written in steps or images, because restarts come after the warm-up. Raises
    ConfigError for a space without a valid schedule.
    """
    search, suggest_all = sweep.search, sweep.sampler == "gp"
    spec: dict[str, Any] = {"family": search.family}
    if sweep.trunk is not None:
        spec["trunk"] = sweep.trunk.spec
    cycles = most = most_cycles(search)
    if search.restarts is not None:
        spec["steps"] = _restarts(restart_sections(sweep, time), search.restarts, suggest, sweep.sampler)
        cycles = len(spec["steps"]) + 1
    of_choice: dict[str, Any] = {}
    # Parameters with conditional ones come first, because a conditional parameter of the chosen value overrides the
    # parameter of the same name for all choices.
    for name, parameter in sorted(search.params.items(), key=lambda item: not item[1].conditional):
        needs_restart = search.restarts is not None and (name in AT_RESTARTS or sweep.trunk is not None)
        has_effect = name not in of_choice and not (needs_restart and cycles == 1)
        if not (has_effect or suggest_all):
            continue
        first = first_cycle(search, name)
        numbers = range(1, (most if suggest_all else cycles) - first + 2)
        keys = [f"{name}_{number}" for number in numbers] if parameter.per_cycle else [name]
        suggested = [_suggested(key, parameter, suggest, suggest_all) for key in keys]
        values = [params.pop(key) for key, params in zip(keys, suggested, strict=True)]
        if has_effect and not parameter.per_cycle:
            spec[name] = values[0]
            of_choice |= suggested[0]
        elif has_effect and (values := values[: cycles - first + 1]):
            spec[name] = values
    return sweep.schedule({**spec, **of_choice})


def first_cycle(search: Search, name: str) -> int:
    """The number, 1 or 2, of the first cycle on which a parameter that is drawn per cycle has an effect.

    It is 2 for step_scale, because no restart begins cycle 1, and in a branch, because its cycle 1 is the trunk."""
    return 2 if name == "step_scale" or search.trunk is not None else 1


def most_cycles(search: Search) -> int:
    """The largest number of cycles of a schedule in the space; 1 without ``restarts`` and without fixed ``steps``."""
    if search.restarts is not None:
        return search.restarts.max + 1
    steps = search.params["steps"].value if "steps" in search.params else None
    return len(set(map(str, steps))) + 1 if isinstance(steps, list | tuple) else 1


def _suggested(name: str, parameter: Parameter, suggest: Suggest, suggest_all: bool) -> dict[str, Any]:
    """The suggested value of a parameter and the values of the chosen value's conditional parameters, by name."""
    if (limits := parameter.range) is not None:
        low, high, step = limits.low, limits.high, limits.step
        if step is not None and low.is_integer() and high.is_integer() and step.is_integer():
            return {name: suggest.suggest_int(name, int(low), int(high), step=int(step))}
        return {name: suggest.suggest_float(name, low, high, step=step, log=limits.log)}
    if parameter.choices is None:
        return {name: parameter.value}
    choices = list(parameter.choices)
    choice: Any = suggest.suggest_categorical(name, choices) if parameter.searched else choices[0]
    of_choice: dict[str, Any] = {}
    for label, conditional in parameter.conditional.items():
        chosen = label == parameter.label(choice)
        for inner, inner_parameter in conditional.items():
            if chosen or suggest_all:
                values = _suggested(f"{inner}_{label}", inner_parameter, suggest, suggest_all)
                of_choice.update({inner: values[f"{inner}_{label}"]} if chosen else {})
    if of_choice and isinstance(choice, str):
        choice = substitute(choice, {key: of_choice.pop(key) for key in free_names(choice) & of_choice.keys()})
    return {name: choice, **of_choice}


def restart_sections(sweep: Sweep, time: TimeBase | None = None) -> list[range]:
    """For each section the epochs at which its restart may come: equal shares of the grid from ``first`` to ``last``.

    Restarts come after the longest warm-up of the space. The list is empty without ``search.restarts``. Raises
    ConfigError if the restarts do not fit into the run.
    """
    restarts = sweep.search.restarts
    if restarts is None:
        return []
    earliest = floor(_warmup(sweep, time) + 1e-6) + 1  # 0.29dur of 100 epochs are 29 epochs, but 0.29 * 100 is less.
    whose = "the " if sweep.search.trunk is None else "the trunk's "
    first, last = _first_and_last(restarts, sweep.epochs, earliest, whose)
    grid = range(first, last + 1, restarts.every)
    if not len(grid) or (restarts.max - 1) * _gap(restarts) > grid[-1] - first:
        raise ConfigError(
            f"search.restarts: {restarts.max} restarts do not fit between epochs {first} and {last} in steps of "
            f"{restarts.every} with distance {restarts.distance}; expected fewer or a longer run"
        )
    edges = [round(len(grid) * section / restarts.max) for section in range(restarts.max + 1)]
    return [grid[low:high] for low, high in pairwise(edges)]


def _first_and_last(restarts: Restarts, epochs: int, earliest: int, whose: str) -> tuple[int, int]:
    """The first and the last epoch at which a restart may come, in a run of ``epochs`` whose warm-up ends before epoch
    ``earliest``. ``whose`` says in a message whose warm-up that is. Raises ConfigError if there is no such epoch."""
    where, first, last, distance = "search.restarts:", restarts.first, restarts.last, restarts.distance
    if earliest >= epochs:
        raise ConfigError(
            f"{where} {whose}warm-up leaves no epoch of {epochs} for a restart; expected a shorter warm-up or a longer "
            "run"
        )
    for name, epoch in (("first", first), ("last", last)):
        if epoch is not None and epoch < earliest:
            raise ConfigError(
                f"{where} {name} {epoch} is not after {whose}warm-up; expected epoch {earliest} or later, or a shorter "
                "warm-up"
            )
        if epoch is not None and epoch >= epochs:
            raise ConfigError(
                f"{where} {name} {epoch} does not lie inside the run; expected {earliest} (after {whose}warm-up) to "
                f"{epochs - 1}"
            )
    if first is None:
        first = distance + -(-max(earliest - distance, 0) // restarts.every) * restarts.every
    if last is None and first > epochs - distance:
        raise ConfigError(
            f"{where} a run of {epochs} epochs is too short for a restart from epoch {first} on that is {distance} "
            f"epochs (distance) before the end; expected at least {first + distance} epochs or a smaller distance"
        )
    last = epochs - distance if last is None else last
    if first > last:
        raise ConfigError(f"{where} first {first} is after last {last}; expected a last of {first} or more")
    return first, last


def branch_epochs(sweep: Sweep, time: TimeBase) -> set[int]:
    """The epochs at which a schedule of the sweep may leave another one: at a restart, or where a branch begins."""
    epochs = set().union(*restart_sections(sweep, time))
    steps, begins = (sweep.search.params.get(name, Parameter()) for name in ("steps", "from"))
    positions = list(steps.value) if isinstance(steps.value, list | tuple) else []
    positions += begins.range.grid() if begins.range is not None else begins.examples()
    epochs |= {floor(Duration.parse(position).epochs(time)) for position in positions if position is not None}
    baselines = [schedule.begins(time) for schedule in sweep.named_baselines.values()]
    return epochs | {step // time.steps_per_epoch for step in baselines if step is not None}


def _warmup(sweep: Sweep, time: TimeBase | None) -> float:
    """The longest warm-up of the space in epochs. Without ``time``, warm-ups in steps or images are not counted."""
    if sweep.trunk is not None:
        run = time or TimeBase(sweep.epochs, STEPS)
        return sweep.trunk.warmup_steps(run) / run.steps_per_epoch
    params = sweep.search.params
    default = "3ep" if "trainer" in params.get("warmup_kind", Parameter()).examples() else 0
    warmups = [params.get("warmup", Parameter(value=default))]
    for parameter in params.values():
        warmups += [inner["warmup"] for inner in parameter.conditional.values() if "warmup" in inner]
    lengths = [Duration.parse(written, "warmup") for warmup in warmups for written in warmup.examples()]
    known = [length for length in lengths if time is not None or length.unit in ("ep", "dur")]
    return max((length.epochs(time or TimeBase(sweep.epochs, 1)) for length in known), default=0.0)


def _gap(restarts: Restarts) -> int:
    """The least distance in epochs between two restarts: ``distance``, rounded up to the grid."""
    return -(-restarts.distance // restarts.every) * restarts.every


def _restarts(sections: list[range], restarts: Restarts, suggest: Suggest, sampler: str) -> list[int]:
    """The epochs of the restarts, ascending. Restarts that are too near to each other are moved apart.

    For ``grid``, which should give each schedule once, a section offers only positions that keep the distance to the
    restart before it. So its distributions depend on earlier values, which is right for a sampler that enumerates the
    space and wrong for one that models it. For all other samplers the distributions are fixed.
    """
    gap, is_grid, suggest_all = _gap(restarts), sampler == "grid", sampler == "gp"
    steps: list[int] = []

    def positions(section: int, last: int) -> list[int]:
        """The epochs that ``section`` offers if the last restart before it is at epoch ``last``."""
        return [epoch for epoch in sections[section] if epoch >= last + gap or not is_grid]

    def capacity(section: int, last: int) -> int:
        """The number of restarts that fit into the sections from ``section`` on, after a restart at ``last``."""
        count = 0
        for later in range(section, len(sections)):
            if free := positions(later, last):
                count, last = count + 1, free[0]
        return count

    for section in range(len(sections)):
        last, missing = steps[-1] if steps else -gap, restarts.min - len(steps)
        free = [epoch for epoch in positions(section, last) if 1 + capacity(section + 1, epoch) >= missing]
        if not free:
            continue
        # A section is on without a question if the later sections alone cannot hold the minimum of restarts.
        forced = on = capacity(section + 1, last) < missing
        if not forced or (suggest_all and restarts.min < restarts.max):
            on = suggest.suggest_categorical(f"restart_{section + 1}", ["off", "on"]) == "on" or forced
        if on or suggest_all:
            epoch = free[0]
            if len(free) > 1:
                epoch = suggest.suggest_int(f"steps_{section + 1}", free[0], free[-1], step=restarts.every)
            steps += [epoch] if on else []
    # A restart that is too near to the one before it moves to a later epoch. Restarts that then lie behind the last
    # position move to earlier epochs.
    for index in range(1, len(steps)):
        steps[index] = max(steps[index], steps[index - 1] + gap)
    end = sections[-1][-1] + gap
    for index in reversed(range(len(steps))):
        steps[index] = end = min(steps[index], end - gap)
    return steps
