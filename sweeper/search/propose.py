"""From a search space to one schedule, by asking for its parameters one by one.

Restarts are on/off slots with a position inside each slot. This is not the encoding with the least regret
(benchmarks/), but positions on a grid let trials share their beginnings.
A parameter that would change nothing is not asked for (the position of a restart that is off, a step_scale without
restarts). Two samplers are exceptions: ``gp``, a Gaussian process, needs every parameter in every trial, and ``grid``
should visit each schedule once, so a slot offers only the positions that the slots before it leave free.
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

STEPS = 4  # assumed per epoch while the data set is not known


Limits = Range | range | tuple[Any, ...]
"""What may be answered: a range of numbers or of whole numbers, or one of some choices."""


class Suggest(Protocol):
    """The part of an Optuna trial that a proposal needs."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Drawn:
    """A ``Suggest`` without a study: it gives ``answers``, and draws the others uniformly with ``seed``; without a seed
    they are the low end or the first choice.

    ``asked`` has everything that was asked for with its answer, ``limits`` what may be answered. Raises ConfigError for
    an answer that may not be, and for a name that is asked for a second time with other limits, which Optuna would
    refuse in the middle of a study.
    """

    def __init__(self, seed: int | None, answers: Mapping[str, Any] | None = None) -> None:
        self._random = None if seed is None else np.random.default_rng(seed)
        self._answers = answers or {}
        self.asked: dict[str, Any] = {}
        self.limits: dict[str, Limits] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        def draw(random: np.random.Generator) -> float:
            if step is not None:
                return min(low + step * int(random.integers(0, int((high - low) / step + 1e-9) + 1)), high)
            return float(np.exp(random.uniform(np.log(low), np.log(high)))) if log else float(random.uniform(low, high))

        limits = Range(low=low, high=high, step=step, log=log)
        return float(self._answer(name, low, draw, limits, f"{low:g} to {high:g}"))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        def draw(random: np.random.Generator) -> int:
            return low + step * int(random.integers(0, (high - low) // step + 1))

        limits = range(low, high + 1, step)
        return int(self._answer(name, low, draw, limits, f"{low} to {high} in steps of {step}"))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        def draw(random: np.random.Generator) -> Any:
            return choices[int(random.integers(0, len(choices)))]

        return self._answer(name, choices[0], draw, tuple(choices), f"one of {', '.join(map(str, choices))}")

    def _answer(
        self, name: str, first: Any, draw: Callable[[np.random.Generator], Any], limits: Limits, expected: str
    ) -> Any:
        value = self._answers[name] if name in self._answers else draw(self._random) if self._random else first
        if value not in limits:
            raise ConfigError(f"{name}: {value!r} is not in the search space; expected {expected}")
        if self.limits.setdefault(name, limits) != limits:
            raise ConfigError(
                f"search: {name} would be the name of two parameters that differ; expected the same values for both, "
                "or one of them held"
            )
        self.asked[name] = value
        return value


def propose(sweep: Sweep, suggest: Suggest, time: TimeBase | None = None) -> Schedule:
    """One schedule, drawn from ``sweep.search`` through ``suggest``.

    ``time`` is needed where a warm-up is written in steps or images: restarts come after it. Raises ConfigError for a
    space that cannot be.
    """
    search, whole = sweep.search, sweep.sampler == "gp"
    written: dict[str, Any] = {"family": search.family}
    if sweep.trunk is not None:
        written["trunk"] = sweep.trunk.spec
    cycles = most = most_cycles(search)
    if search.restarts is not None:
        written["steps"] = _restarts(slots(sweep, time), search.restarts, suggest, sweep.sampler)
        cycles = len(written["steps"]) + 1
    of_choice: dict[str, Any] = {}
    # A parameter that belongs to the choice made overrides a parameter of the same name for all choices.
    for name, parameter in sorted(search.params.items(), key=lambda item: not item[1].conditional):
        idle = cycles == 1 and search.restarts is not None and (name in AT_RESTARTS or sweep.trunk is not None)
        acting = name not in of_choice and not idle
        if not (acting or whole):
            continue
        first = first_cycle(search, name)
        numbers = range(1, (most if whole else cycles) - first + 2)
        keys = [f"{name}_{number}" for number in numbers] if parameter.per_cycle else [name]
        drawn = [_answers(key, parameter, suggest, whole) for key in keys]
        values = [answers.pop(key) for key, answers in zip(keys, drawn, strict=True)]
        if acting and not parameter.per_cycle:
            written[name] = values[0]
            of_choice |= drawn[0]
        elif acting and (values := values[: cycles - first + 1]):
            written[name] = values
    return sweep.schedule({**written, **of_choice})


def first_cycle(search: Search, name: str) -> int:
    """The first cycle, 1 or 2, on which a parameter drawn per cycle acts. A trunk or no restart begins cycle 1."""
    return 2 if name == "step_scale" or search.trunk is not None else 1


def most_cycles(search: Search) -> int:
    """How many cycles a schedule of the space has at most, as far as restarts or fixed steps tell; else 1."""
    if search.restarts is not None:
        return search.restarts.max + 1
    steps = search.params["steps"].value if "steps" in search.params else None
    return len(set(map(str, steps))) + 1 if isinstance(steps, list | tuple) else 1


def _answers(name: str, parameter: Parameter, suggest: Suggest, whole: bool) -> dict[str, Any]:
    """A parameter's value and those of the parameters that belong to the choice made, by name."""
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
    for label, below in parameter.conditional.items():
        chosen = label == parameter.label(choice)
        for inner, inner_parameter in below.items():
            if chosen or whole:
                answers = _answers(f"{inner}_{label}", inner_parameter, suggest, whole)
                of_choice.update({inner: answers[f"{inner}_{label}"]} if chosen else {})
    if of_choice and isinstance(choice, str):
        choice = substitute(choice, {key: of_choice.pop(key) for key in free_names(choice) & of_choice.keys()})
    return {name: choice, **of_choice}


def slots(sweep: Sweep, time: TimeBase | None = None) -> list[range]:
    """The epochs at which each slot's restart may come: equal shares of the grid from ``first`` to ``last``.

    A restart comes after the (longest) warm-up. Raises ConfigError where the restarts do not fit; [] without any.
    """
    restarts = sweep.search.restarts
    if restarts is None:
        return []
    earliest = floor(_warmup(sweep, time) + 1e-6) + 1  # 0.29dur of 100 epochs are 29, not 28.999999999999996
    whose = "the " if sweep.search.trunk is None else "the trunk's "
    first, last = _first_and_last(restarts, sweep.epochs, earliest, whose)
    grid = range(first, last + 1, restarts.every)
    if not len(grid) or (restarts.max - 1) * _gap(restarts) > grid[-1] - first:
        raise ConfigError(
            f"search.restarts: {restarts.max} restarts do not fit between epochs {first} and {last} in steps of "
            f"{restarts.every} with distance {restarts.distance}; expected fewer or a longer run"
        )
    edges = [round(len(grid) * slot / restarts.max) for slot in range(restarts.max + 1)]
    return [grid[low:high] for low, high in pairwise(edges)]


def _first_and_last(restarts: Restarts, epochs: int, earliest: int, whose: str) -> tuple[int, int]:
    """The first and the last epoch at which a restart may come in a run of ``epochs``, of which ``earliest`` is the
    first after the warm-up. Raises ConfigError if there is no such epoch."""
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


def parts(sweep: Sweep, time: TimeBase) -> set[int]:
    """The epochs after which schedules of the sweep may part: possible restarts, and where branches begin."""
    epochs = set().union(*slots(sweep, time))
    steps, begins = (sweep.search.params.get(name, Parameter()) for name in ("steps", "from"))
    places = list(steps.value) if isinstance(steps.value, list | tuple) else []
    places += begins.range.grid() if begins.range is not None else begins.examples()
    epochs |= {floor(Duration.parse(place).epochs(time)) for place in places if place is not None}
    baselines = [schedule.begins(time) for schedule in sweep.named_baselines.values()]
    return epochs | {step // time.steps_per_epoch for step in baselines if step is not None}


def _warmup(sweep: Sweep, time: TimeBase | None) -> float:
    """The longest warm-up of the space in epochs; 0 where only a time base could tell and there is none."""
    if sweep.trunk is not None:
        run = time or TimeBase(sweep.epochs, STEPS)
        return sweep.trunk.warmup_steps(run) / run.steps_per_epoch
    params = sweep.search.params
    default = "3ep" if "trainer" in params.get("warmup_kind", Parameter()).examples() else 0  # the trainer's own
    warmups = [params.get("warmup", Parameter(value=default))]
    warmups += [below["warmup"] for each in params.values() for below in each.conditional.values() if "warmup" in below]
    lengths = [Duration.parse(written, "warmup") for each in warmups for written in each.examples()]
    certain = [length for length in lengths if time is not None or length.unit in ("ep", "dur")]
    return max((length.epochs(time or TimeBase(sweep.epochs, 1)) for length in certain), default=0.0)


def _gap(restarts: Restarts) -> int:
    """The least distance between two restarts that keeps both on the grid."""
    return -(-restarts.distance // restarts.every) * restarts.every


def _restarts(places: list[range], restarts: Restarts, suggest: Suggest, sampler: str) -> list[int]:
    """Restart epochs, ascending. Neighbours that are too near are moved apart, later first.

    For ``grid``, where a schedule has one set of answers, a slot offers only positions that keep the distance to the
    restart before it. These ranges depend on earlier answers, which suits a sampler that walks the space and misleads
    one that models it; for all other samplers the ranges are fixed.
    """
    gap, walks, whole = _gap(restarts), sampler == "grid", sampler == "gp"
    steps: list[int] = []

    def positions(index: int, after: int) -> list[int]:
        return [at for at in places[index] if at >= after + gap or not walks]

    def room(index: int, after: int) -> int:
        """How many more restarts fit into the slots from ``index`` on, the last one so far being at ``after``."""
        count = 0
        for slot in range(index, len(places)):
            if free := positions(slot, after):
                count, after = count + 1, free[0]
        return count

    for index in range(len(places)):
        after, need = steps[-1] if steps else -gap, restarts.min - len(steps)
        free = [at for at in positions(index, after) if 1 + room(index + 1, at) >= need]
        if not free:
            continue
        # A slot is on without a question if all slots that are left are needed for the minimum.
        forced = on = room(index + 1, after) < need
        if not forced or (whole and restarts.min < restarts.max):
            on = suggest.suggest_categorical(f"restart_{index + 1}", ["off", "on"]) == "on" or forced
        if on or whole:
            at = free[0]
            if len(free) > 1:
                at = suggest.suggest_int(f"steps_{index + 1}", free[0], free[-1], step=restarts.every)
            steps += [at] if on else []
    for index in range(1, len(steps)):
        steps[index] = max(steps[index], steps[index - 1] + gap)
    end = places[-1][-1] + gap
    for index in reversed(range(len(steps))):
        steps[index] = end = min(steps[index], end - gap)
    return steps
