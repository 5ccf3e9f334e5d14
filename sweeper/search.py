"""Search space <-> Optuna parameters <-> schedule.

``propose`` asks anything that has Optuna's ``suggest_*`` methods for the parameters of one schedule. Restarts are
on/off slots with a position inside each slot: of sixteen encodings tried, the one with the least regret. Many
parameter vectors mean one schedule; what identifies a schedule is its trace, never its parameters.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from sweeper import schedules
from sweeper.config import Parameter, Restarts, Sweep
from sweeper.errors import ConfigError, ScheduleError
from sweeper.schedules import TimeBase


class Suggest(Protocol):
    """The part of an Optuna trial that a proposal needs."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Drawn:
    """A ``Suggest`` that draws uniformly: what a study without history proposes. For plans and checks."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step is not None:
            return low + step * int(self._random.integers(0, int((high - low) / step + 1e-9) + 1))
        if log:
            return float(np.exp(self._random.uniform(np.log(low), np.log(high))))
        return float(self._random.uniform(low, high))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return low + step * int(self._random.integers(0, (high - low) // step + 1))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[int(self._random.integers(0, len(choices)))]


def propose(sweep: Sweep, suggest: Suggest) -> dict[str, Any]:
    """One schedule as a spec (all defaults written out), drawn from ``sweep.search`` through ``suggest``."""
    search = sweep.search
    written: dict[str, Any] = {"family": search.family}
    cycles = 1
    if search.restarts is not None:
        written["steps"] = _restarts(slots(search.restarts, sweep.epochs), search.restarts, suggest)
        cycles = len(written["steps"]) + 1
    for name, parameter in search.params.items():
        if parameter.per_cycle:
            # step_scale acts at restarts only, so the first cycle has none
            count = cycles - 1 if name == "step_scale" else cycles
            if count:
                written[name] = [_one(f"{name}_{index + 1}", parameter, suggest) for index in range(count)]
        else:
            written[name] = _one(name, parameter, suggest)
    return sweep.spec(written)


def slots(restarts: Restarts, epochs: int) -> list[range]:
    """The epochs at which each slot's restart may come; equal shares of the grid from ``first`` to ``last``.

    >>> slots(Restarts(max=2, every=5, distance=10), epochs=50)
    [range(10, 30, 5), range(30, 45, 5)]
    """
    first = restarts.first if restarts.first is not None else restarts.distance
    last = restarts.last if restarts.last is not None else epochs - restarts.distance
    grid = range(first, last + 1, restarts.every)
    if last >= epochs or first >= epochs:
        raise ConfigError(
            f"search.restarts: first {first} to last {last} does not lie inside the run; expected 1 to {epochs - 1}"
        )
    if len(grid) < restarts.max or (restarts.max - 1) * restarts.distance > last - first:
        raise ConfigError(
            f"search.restarts: {restarts.max} restarts do not fit between epochs {first} and {last} in steps of "
            f"{restarts.every} with distance {restarts.distance}; expected fewer or a longer run"
        )
    edges = [round(len(grid) * slot / restarts.max) for slot in range(restarts.max + 1)]
    return [grid[low:high] for low, high in pairwise(edges)]


def _restarts(places: list[range], restarts: Restarts, suggest: Suggest) -> list[int]:
    """Restart epochs, ascending, at least ``distance`` apart; one that no longer fits is left out."""
    steps: list[int] = []
    for index, place in enumerate(places):
        # forced on when the slots that are left are needed to reach the minimum; else Optuna decides
        forced = restarts.min - len(steps) >= len(places) - index
        if not forced and suggest.suggest_categorical(f"restart_{index + 1}", ["off", "on"]) == "off":
            continue
        at = (
            suggest.suggest_int(f"steps_{index + 1}", place[0], place[-1], step=restarts.every)
            if len(place) > 1
            else place[0]
        )
        if steps:
            at = max(at, steps[-1] + restarts.distance)
        if at <= places[-1][-1]:
            steps.append(at)
    return steps


def _one(name: str, parameter: Parameter, suggest: Suggest) -> Any:
    if not parameter.searched:
        return parameter.examples()[0]
    if parameter.choices is not None:
        return suggest.suggest_categorical(name, list(parameter.choices))
    assert parameter.range is not None
    limits = parameter.range
    whole = all(float(value).is_integer() for value in (limits.low, limits.high, limits.step or 0.5))
    if whole and limits.step is not None:
        return suggest.suggest_int(name, int(limits.low), int(limits.high), step=int(limits.step))
    return suggest.suggest_float(name, limits.low, limits.high, step=limits.step, log=limits.log)


def corners(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Schedules at the edges of the space: each parameter at each of its examples, with no, and with most restarts."""

    class Corner(Drawn):
        def __init__(self, name: str, value: Any, restarts: str, at: int) -> None:
            super().__init__(0)
            self._name, self._value, self._restarts, self._at = name, value, restarts, at

        def suggest_float(
            self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
        ) -> float:
            return float(self._value) if name.startswith(self._name) else low

        def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
            if name.startswith("steps_"):
                return (low, high)[self._at]
            return int(self._value) if name.startswith(self._name) else low

        def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
            if name.startswith("restart_"):
                return self._restarts
            return self._value if name.startswith(self._name) else choices[0]

    for restarts in ("off", "on") if sweep.search.restarts is not None else ("off",):
        for at in (0, 1):
            for name, parameter in {"-": Parameter(), **sweep.search.params}.items():
                for value in parameter.examples():
                    yield propose(sweep, Corner(name, value, restarts, at))


def check(sweep: Sweep, time: TimeBase | None = None) -> None:
    """Try the baselines and the corners of the space; ConfigError for what cannot be traced.

    Without a time base the steps per epoch are not known yet; epochs are, and most mistakes are about those.
    """
    time = time or TimeBase(epochs=sweep.epochs, steps_per_epoch=4)
    if sweep.search.restarts is not None:
        slots(sweep.search.restarts, sweep.epochs)
    for where, specs in (("baselines", map(sweep.spec, sweep.baselines)), ("search", corners(sweep))):
        try:
            for spec in specs:
                schedules.parse(spec).trace(time)
        except ScheduleError as error:
            raise ConfigError(f"{where}: {error}") from None
