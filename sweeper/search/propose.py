"""From a search space to one schedule, by asking for its parameters one by one.

Restarts are on/off slots with a position inside each slot. This is not the encoding with the least regret
(benchmarks/), but positions on a grid let trials share their beginnings.
A parameter that would change nothing is not asked for (the position of a restart that is off, a step_scale without
restarts). Two samplers are exceptions: ``gp``, a Gaussian process, needs every parameter in every trial, and ``grid``
should visit each schedule once, so a slot offers only the positions that the slots before it leave free.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import floor
from typing import Any, Protocol

import numpy as np

from sweeper.config import Parameter, Restarts, Search, Sweep
from sweeper.errors import ConfigError
from sweeper.schedules import AT_RESTARTS, Duration, TimeBase
from sweeper.schedules.decay import filled, free_names

STEPS = 4  # assumed per epoch while the data set is not known


class Suggest(Protocol):
    """The part of an Optuna trial that a proposal needs."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Drawn:
    """A ``Suggest`` that draws uniformly: what a study without history proposes. For plans and checks.

    What ``answers`` has is not drawn, as in a trial that was enqueued with them.
    """

    def __init__(self, seed: int, answers: Mapping[str, Any] | None = None) -> None:
        self._random = np.random.default_rng(seed)
        self._answers = answers or {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if name in self._answers:
            return float(self._answers[name])
        if step is not None:
            return low + step * int(self._random.integers(0, int((high - low) / step + 1e-9) + 1))
        if log:
            return float(np.exp(self._random.uniform(np.log(low), np.log(high))))
        return float(self._random.uniform(low, high))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        if name in self._answers:
            return int(self._answers[name])
        return low + step * int(self._random.integers(0, (high - low) // step + 1))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name in self._answers:
            return self._answers[name]
        return choices[int(self._random.integers(0, len(choices)))]


def propose(sweep: Sweep, suggest: Suggest, time: TimeBase | None = None) -> dict[str, Any]:
    """One schedule as a spec (all defaults written out), drawn from ``sweep.search`` through ``suggest``.

    ``time`` is needed where a warm-up is written in steps or images: restarts come after it. Raises ConfigError for a
    space that cannot be.
    """
    search, whole = sweep.search, sweep.sampler == "gp"
    written: dict[str, Any] = {"family": search.family}
    if (trunk := sweep.trunk) is not None:
        written["trunk"] = trunk.spec
    cycles = most = most_cycles(search)
    if search.restarts is not None:
        places = slots(sweep, time)
        draw = _free_restarts if sweep.sampler == "grid" else _restarts
        written["steps"] = draw(places, search.restarts, suggest, whole)
        cycles = len(written["steps"]) + 1
    of_choice: dict[str, Any] = {}
    # A parameter that belongs to the choice made overrides a parameter of the same name for all choices.
    for name, parameter in sorted(search.params.items(), key=lambda item: not item[1].own):
        idle = cycles == 1 and search.restarts is not None and (name in AT_RESTARTS or trunk is not None)
        acting = name not in of_choice and not idle
        if not (acting or whole):
            continue
        if not parameter.per_cycle:
            answers = _answers(name, parameter, suggest, whole)
            written.update({name: answers.pop(name)} if acting else {})
            of_choice.update(answers if acting else {})
            continue
        first = first_cycle(search, name)
        last = most if whole else cycles
        drawn = [
            _answers(f"{name}_{number - first + 1}", parameter, suggest, whole) for number in range(first, last + 1)
        ]
        values = [next(iter(answers.values())) for answers in drawn[: cycles - first + 1]]
        if values and acting:
            written[name] = values
    return sweep.spec({**written, **of_choice})


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
    if parameter.choices is not None:
        choices = list(parameter.choices)
        choice: Any = suggest.suggest_categorical(name, choices) if parameter.searched else choices[0]
        of_choice: dict[str, Any] = {}
        for label, below in parameter.own.items():
            chosen = label == parameter.label(choice)
            for inner, inner_parameter in below.items():
                if chosen or whole:
                    answers = _answers(f"{inner}_{label}", inner_parameter, suggest, whole)
                    of_choice.update({inner: answers[f"{inner}_{label}"]} if chosen else {})
        if of_choice and isinstance(choice, str):
            choice = filled(choice, {key: of_choice.pop(key) for key in free_names(choice) & of_choice.keys()})
        return {name: choice, **of_choice}
    if parameter.range is None:
        return {name: parameter.value}
    limits = parameter.range
    whole_numbers = all(float(value).is_integer() for value in (limits.low, limits.high, limits.step or 0.5))
    if whole_numbers and limits.step is not None:
        return {name: suggest.suggest_int(name, int(limits.low), int(limits.high), step=int(limits.step))}
    return {name: suggest.suggest_float(name, limits.low, limits.high, step=limits.step, log=limits.log)}


def slots(sweep: Sweep, time: TimeBase | None = None) -> list[range]:
    """The epochs at which each slot's restart may come: equal shares of the grid from ``first`` to ``last``.

    A restart comes after the (longest) warm-up. Raises ConfigError where the restarts do not fit; [] without any.
    """
    search, restarts = sweep.search, sweep.search.restarts
    if restarts is None:
        return []
    every = restarts.every
    earliest = floor(_warmup(sweep, time) + 1e-6) + 1  # 0.29dur of 100 epochs are 29, not 28.999999999999996
    first, last = _first_and_last(restarts, sweep.epochs, earliest, "the " if search.trunk is None else "the trunk's ")
    grid = range(first, last + 1, every)
    if not len(grid) or (restarts.max - 1) * _gap(restarts) > grid[-1] - first:
        raise ConfigError(
            f"search.restarts: {restarts.max} restarts do not fit between epochs {first} and {last} in steps of "
            f"{every} with distance {restarts.distance}; expected fewer or a longer run"
        )
    edges = [round(len(grid) * slot / restarts.max) for slot in range(restarts.max + 1)]
    return [grid[low:high] for low, high in pairwise(edges)]


def _first_and_last(restarts: Restarts, epochs: int, earliest: int, whose: str) -> tuple[int, int]:
    """The first and the last epoch at which a restart may come in a run of ``epochs``, of which ``earliest`` is the
    first after the warm-up. Raises ConfigError if there is no such epoch."""
    if earliest >= epochs:
        raise ConfigError(
            f"search.restarts: {whose}warm-up leaves no epoch of {epochs} for a restart; expected a shorter warm-up or "
            "a longer run"
        )
    for name, epoch in (("first", restarts.first), ("last", restarts.last)):
        if epoch is not None and epoch < earliest:
            raise ConfigError(
                f"search.restarts: {name} {epoch} is not after {whose}warm-up; expected epoch {earliest} or later, "
                "or a shorter warm-up"
            )
        if epoch is not None and epoch >= epochs:
            raise ConfigError(
                f"search.restarts: {name} {epoch} does not lie inside the run; expected {earliest} (after {whose}"
                f"warm-up) to {epochs - 1}"
            )
    first = restarts.first
    if first is None:
        behind = max(earliest - restarts.distance, 0)
        first = restarts.distance + -(-behind // restarts.every) * restarts.every
    last = restarts.last if restarts.last is not None else epochs - restarts.distance
    if first > last and restarts.last is None:
        raise ConfigError(
            f"search.restarts: a run of {epochs} epochs is too short for a restart from epoch {first} on that is "
            f"{restarts.distance} epochs (distance) before the end; expected at least {first + restarts.distance} "
            "epochs or a smaller distance"
        )
    if first > last:
        raise ConfigError(f"search.restarts: first {first} is after last {last}; expected a last of {first} or more")
    return first, last


def parts(sweep: Sweep, time: TimeBase) -> set[int]:
    """The epochs after which schedules of the sweep may part: possible restarts, and where branches begin."""
    epochs = set().union(*slots(sweep, time))
    params = sweep.search.params
    fixed = params["steps"].value if "steps" in params else None
    for written in fixed if isinstance(fixed, list | tuple) else ():
        epochs.add(floor(Duration.parse(written, "steps").epochs(time)))
    if (places := params.get("from")) is not None:
        written = places.examples()
        if places.range is not None:
            low, high, step = places.range.low, places.range.high, places.range.step or 1.0
            written = tuple(low + step * number for number in range(int((high - low) / step + 1e-9) + 1))
        epochs |= {floor(Duration.parse(each, "from").epochs(time)) for each in written}
    begins = [schedule.begins(time) for schedule in sweep.named_baselines.values()]
    return epochs | {step // time.steps_per_epoch for step in begins if step is not None}


def _warmup(sweep: Sweep, time: TimeBase | None) -> float:
    """The longest warm-up of the space in epochs; 0 where only a time base could tell and there is none."""
    if sweep.trunk is not None:
        known = time or TimeBase(sweep.epochs, STEPS)
        return sweep.trunk.warm(known) / known.steps_per_epoch
    longest, params = 0.0, sweep.search.params
    kinds = params.get("warmup_kind", Parameter())
    default = "3ep" if "trainer" in kinds.examples() else 0  # the trainer's own
    warmups = [params.get("warmup", Parameter(value=default))]
    warmups += [below["warmup"] for each in params.values() for below in each.own.values() if "warmup" in below]
    for written in (written for each in warmups for written in each.examples()):
        length = Duration.parse(written, "warmup")
        if time is not None or length.unit in ("ep", "dur"):
            longest = max(longest, length.epochs(time or TimeBase(sweep.epochs, 1)))
    return longest


def _gap(restarts: Restarts) -> int:
    """The least distance between two restarts that keeps both on the grid."""
    return -(-restarts.distance // restarts.every) * restarts.every


def _restarts(places: list[range], restarts: Restarts, suggest: Suggest, whole: bool) -> list[int]:
    """Restart epochs, ascending; neighbours that are too near are moved apart, later first. All ranges are fixed."""
    steps: list[int] = []
    for index, place in enumerate(places):
        # A slot is on without a question if all slots that are left are needed for the minimum.
        forced = restarts.min - len(steps) >= len(places) - index
        on = forced
        if not forced or (whole and restarts.min < restarts.max):
            on = suggest.suggest_categorical(f"restart_{index + 1}", ["off", "on"]) == "on" or forced
        if on or whole:
            at = place[0]
            if len(place) > 1:
                at = suggest.suggest_int(f"steps_{index + 1}", place[0], place[-1], step=restarts.every)
            steps += [at] if on else []
    gap = _gap(restarts)
    for index in range(1, len(steps)):
        steps[index] = max(steps[index], steps[index - 1] + gap)
    end = places[-1][-1] + gap
    for index in reversed(range(len(steps))):
        steps[index] = end = min(steps[index], end - gap)
    return steps


def _free_restarts(places: list[range], restarts: Restarts, suggest: Suggest, whole: bool) -> list[int]:
    """The same for ``grid``, where a schedule has one set of answers: a slot offers positions that keep distance.

    The ranges depend on earlier answers. That suits a sampler that walks the space, and misleads one that models it.
    """
    gap = _gap(restarts)

    def room(index: int, after: int) -> int:
        """How many more restarts fit into the slots from ``index`` on, the last one so far being at ``after``."""
        count = 0
        for place in places[index:]:
            free = [at for at in place if at >= after + gap]
            if free:
                count, after = count + 1, free[0]
        return count

    steps: list[int] = []
    for index, place in enumerate(places):
        after = steps[-1] if steps else -gap
        need = restarts.min - len(steps)
        free = [at for at in place if at >= after + gap and 1 + room(index + 1, at) >= need]
        may_be_off = room(index + 1, after) >= need
        if not free:
            continue
        if may_be_off and suggest.suggest_categorical(f"restart_{index + 1}", ["off", "on"]) == "off":
            continue
        at = free[0]
        if len(free) > 1:
            at = suggest.suggest_int(f"steps_{index + 1}", free[0], free[-1], step=restarts.every)
        steps.append(at)
    return steps
