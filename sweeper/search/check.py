"""Checks a search space at its edges before anything is trained, and translates enqueued schedules into its answers."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from sweeper import schedules
from sweeper.config import Parameter, Search, Sweep
from sweeper.errors import ConfigError, ScheduleError
from sweeper.schedules import TimeBase, Trace
from sweeper.schedules.decay import free_names
from sweeper.search.propose import STEPS, Drawn, first_cycle, most_cycles, propose, slots

DRAWS = 50  # proposals that a check tries beside the corners


class Given:
    """A ``Suggest`` that answers from ``answers``, else with the low end or first choice; ``asked`` records all.

    Raises ConfigError for an answer that is not among those allowed.
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers
        self.asked: dict[str, Any] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        value = self.answers.get(name, low)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        on_grid = number and (step is None or abs((value - low) / step - round((value - low) / step)) < 1e-9)
        return float(self._checked(name, value, number and low <= value <= high and on_grid, f"{low:g} to {high:g}"))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        value = self.answers.get(name, low)
        allowed = value in range(low, high + 1, step)
        return int(self._checked(name, value, allowed, f"{low} to {high} in steps of {step}"))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        value = self.answers.get(name, choices[0])
        return self._checked(name, value, value in choices, f"one of {', '.join(map(str, choices))}")

    def _checked(self, name: str, value: Any, allowed: bool, expected: str) -> Any:
        if not allowed:
            raise ConfigError(f"{name}: {value!r} is not in the search space; expected {expected}")
        self.asked[name] = value
        return value


def corners(sweep: Sweep, time: TimeBase | None = None) -> Iterator[dict[str, Any]]:
    """Schedules at the edges of the space: each parameter at each of its ends or choices, with no and most restarts."""
    restarts = sweep.search.restarts
    most = restarts.max if restarts is not None else 0
    cycles, places = most_cycles(sweep.search), slots(sweep, time)
    for on in ("off", "on") if restarts is not None else ("off",):
        for end in (0, -1):
            begun: dict[str, Any] = {f"restart_{slot + 1}": on for slot in range(most)}
            begun |= {f"steps_{slot + 1}": place[end] for slot, place in enumerate(places)} if on == "on" else {}
            for name, parameter in {"-": Parameter(), **sweep.search.params}.items():
                names = [f"{name}_{cycle + 1}" for cycle in range(cycles)] if parameter.per_cycle else [name]
                for answers in _edges(name, parameter):
                    spread = dict.fromkeys(names, answers[name]) if name in answers else {}
                    given = Given({**answers, **spread, **begun})
                    yield propose(_with_fixed_ranges(sweep), given, time)


def _with_fixed_ranges(sweep: Sweep) -> Sweep:
    """The sweep as ``tpe`` sees it: fixed ranges, in which any answer is allowed."""
    return sweep.model_copy(update={"sampler": "tpe"})


def _edges(name: str, parameter: Parameter) -> Iterator[dict[str, Any]]:
    """Answers for a parameter, by Optuna's names: one after the other its ends, or its choices with theirs."""
    if parameter.range is not None:
        yield from ({name: end} for end in _ends(parameter))
        return
    if parameter.choices is None:
        yield {}
        return
    for choice in parameter.choices:
        label = parameter.label(choice)
        below = parameter.own.get(label, {})
        yield {name: choice}
        for inner, inner_parameter in below.items():
            for answers in _edges(f"{inner}_{label}", inner_parameter):
                yield {name: choice, **answers}


def _ends(parameter: Parameter) -> tuple[float, float]:
    """A range's low end and the highest value that a draw can give."""
    assert parameter.range is not None
    low, high, step = parameter.range.low, parameter.range.high, parameter.range.step
    return low, high if step is None else low + step * int((high - low) / step + 1e-9)


def check(sweep: Sweep, time: TimeBase | None = None) -> None:
    """Try the baselines, the enqueued schedules, the corners of the space and some draws; ConfigError in one line.

    Without a time base the steps per epoch are not known yet; epochs are, and most mistakes are about those. What is
    written in steps or images is then left to the second look.
    """
    known = time is not None
    time = time or TimeBase(epochs=sweep.epochs, steps_per_epoch=STEPS)
    _check_names(sweep)
    _check_questions(sweep.search)
    most, pruner = most_cycles(sweep.search), sweep.pruner
    if most == 1 and (scale := sweep.search.params.get("step_scale")) is not None and scale.per_cycle:
        raise ConfigError(
            "search.step_scale: is one for each restart, and there are none; expected search.restarts, "
            "steps: [30, 60], or a single step_scale"
        )
    if pruner.name != "none" and (pruner.from_epoch or 0) >= sweep.epochs:
        raise ConfigError(
            f"pruner.from_epoch: {pruner.from_epoch} is not inside the run, nothing would be stopped; expected less "
            f"than {sweep.epochs}, or pruner=none"
        )
    if known or not _in_steps(sweep):
        slots(sweep, time)
        drawn = (propose(sweep, Drawn(seed), time) for seed in range(DRAWS))
        for where, specs in (
            ("baselines", sweep.named_baselines.values()),
            ("search", chain(corners(sweep, time), drawn)),
        ):
            try:
                for spec in specs:
                    schedules.parse(spec).trace(time)
            except ScheduleError as error:
                raise ConfigError(f"{where}: {error}") from None
        enqueued(sweep, time)


def _in_steps(sweep: Sweep) -> bool:
    """Whether a duration of the sweep depends on the number of steps per epoch."""
    text = json.dumps([sweep.search.model_dump(mode="json"), sweep.baselines, sweep.enqueue])
    return re.search(r'"\s*[0-9.]+([eE][+-]?[0-9]+)?\s*(it|img)\s*"', text) is not None


def _check_names(sweep: Sweep) -> None:
    """Own parameters must be the family's or a constant of their choice; a grid's are countable."""
    search = sweep.search
    for name, parameter in search.params.items():
        for choice in parameter.choices or (parameter.value,):
            below = parameter.own.get(parameter.label(choice), {}) if parameter.choices else {}
            open_names = free_names(choice) if isinstance(choice, str) and not choice.isidentifier() else set()
            family = schedules.FAMILIES.get(search.family)
            known = {} if family is None else {**family.keys({}), **family.keys({name: choice})}
            for inner in below.keys() - known.keys() - open_names:
                constants = f" or of its constants {', '.join(sorted(open_names))}" if open_names else ""
                raise ConfigError(
                    f"search.{name}: {choice!r} has a parameter {inner!r} of its own, which is not one of "
                    f"{search.family}'s{constants}"
                )
            if name == "decay" and (missing := sorted(open_names - below.keys())):
                raise ConfigError(
                    f"search.decay: {choice!r} leaves {', '.join(missing)} open; expected for example "
                    f"- {choice}: {{{missing[0]}: {{low: 0.5, high: 2}}}}"
                )
    if sweep.sampler == "grid":
        for name, range_ in _ranges(search.params):
            if range_.step is None:
                raise ConfigError(
                    f"search.{name}: {range_.low:g} to {range_.high:g} has no step, and a grid cannot be walked; "
                    "expected a step, a list, or another sampler"
                )


def _check_questions(search: Search) -> None:
    """One name, one distribution: Optuna refuses another one in the middle of a study."""
    seen: dict[str, tuple[str, Any]] = {}
    for where, name, distribution in _questions(search):
        before, known = seen.setdefault(name, (where, distribution))
        if known != distribution:
            raise ConfigError(
                f"search.{where}: its {name} would have the name of another parameter, {before}'s; expected the same "
                "values for both, or one of them held"
            )


def _questions(search: Search) -> Iterator[tuple[str, str, Any]]:
    """(where it is written, Optuna's name, distribution) of everything that may be asked for."""
    if search.restarts is not None:
        for slot in range(1, search.restarts.max + 1):
            yield "restarts", f"restart_{slot}", "a switch"
            yield "restarts", f"steps_{slot}", "a position"
    for name, parameter in search.params.items():
        numbers = range(1, most_cycles(search) + 2 - first_cycle(search, name))
        for asked in [f"{name}_{number}" for number in numbers] if parameter.per_cycle else [name]:
            yield from ((name, *question) for question in _asked(asked, parameter))


def _asked(name: str, parameter: Parameter) -> Iterator[tuple[str, Any]]:
    if parameter.searched:
        yield name, (parameter.choices, parameter.range)
    for label, below in parameter.own.items():
        for inner, inner_parameter in below.items():
            yield from _asked(f"{inner}_{label}", inner_parameter)


def _ranges(params: Mapping[str, Parameter]) -> Iterator[tuple[str, Any]]:
    for name, parameter in params.items():
        if parameter.range is not None:
            yield name, parameter.range
        for below in parameter.own.values():
            yield from _ranges(below)


def enqueued(sweep: Sweep, time: TimeBase) -> list[dict[str, Any]]:
    """What the first search slots are given, one for each of ``sweep.enqueue``.

    {"params": answers} for a schedule that lies in the space, so that the sampler learns from it, and for answers
    written as such; else {"schedule": spec}, which is trained as it is. Raises ConfigError.
    """
    given: list[dict[str, Any]] = []
    for number, written in enumerate(sweep.enqueue, start=1):
        try:
            if isinstance(written, str) or "family" in written:
                spec = sweep.spec(written)
                trace = schedules.parse(spec).trace(time)
                answers = _encoded(sweep, spec, trace, time)
                given.append({"schedule": spec} if answers is None else {"params": answers})
            else:
                given.append({"params": _checked_answers(sweep, written, time)})
        except ConfigError as error:
            raise ConfigError(f"enqueue: {number}: {error}") from None
    if sweep.trials is not None and len(given) > sweep.trials:
        raise ConfigError(
            f"enqueue: {len(given)} schedules are more than the {sweep.trials} trials; expected trials={len(given)} "
            "or more"
        )
    return given


def _checked_answers(sweep: Sweep, written: Mapping[str, Any], time: TimeBase) -> dict[str, Any]:
    """Answers as they stand in the file. ConfigError unless the space has each of them and they come out as written.

    With ``grid``, restarts that are left out are added as off.
    """
    # YAML reads on without quotes as true
    switches = {True: "on", False: "off"}
    written = {
        name: switches[value] if isinstance(value, bool) and name.startswith("restart_") else value
        for name, value in written.items()
    }
    everything = Given(written)
    propose(sweep.model_copy(update={"sampler": "gp"}), everything, time)  # asks for every parameter there is
    for name in written:
        if name not in everything.asked:
            raise ConfigError(
                f"{name}: is not a parameter of the search; expected a schedule with its family, or some of "
                f"{', '.join(everything.asked)}"
            )
    given = Given(written)
    spec = propose(sweep, given, time)
    schedules.parse(spec).trace(time)
    if (restarts := sweep.search.restarts) is None:
        return written
    off = sum(written.get(f"restart_{slot}") == "off" for slot in range(1, restarts.max + 1))
    if off > restarts.max - restarts.min:
        raise ConfigError(
            f"{off} restarts are off; expected at most {restarts.max - restarts.min}, min is {restarts.min}"
        )
    for slot in range(1, restarts.max + 1):
        on, at = written.get(f"restart_{slot}"), written.get(f"steps_{slot}")
        if at is not None and (on == "on" or restarts.min == restarts.max) and at not in spec["steps"]:
            raise ConfigError(
                f"steps_{slot}: {at} comes out otherwise, with restarts at {', '.join(map(str, spec['steps']))}; "
                f"expected restarts at least {restarts.distance} epochs apart"
            )
    slot_names = [name for name in given.asked if re.fullmatch(r"(restart|steps)_[0-9]+", name)]
    if sweep.sampler == "grid" and any(name in written for name in slot_names):
        # In a grid the places of a restart depend on the restarts before it. So no restart may be left to the sampler:
        # it could make a later answer impossible.
        return {name: given.asked[name] for name in slot_names} | written
    return written


def _encoded(sweep: Sweep, spec: Mapping[str, Any], trace: Trace, time: TimeBase) -> dict[str, Any] | None:
    """The answers with which the space gives this very trace; None if it lies outside."""
    if spec["family"] != sweep.search.family or (sweep.search.restarts is None and spec.get("steps")):
        return None
    answers: dict[str, Any] = {}
    steps = [step for step in spec.get("steps", []) if isinstance(step, int)]
    for index, place in enumerate(slots(sweep, time)):
        inside = [step for step in steps if step in place]
        answers[f"restart_{index + 1}"] = "on" if inside else "off"
        answers |= {f"steps_{index + 1}": inside[0]} if inside else {}
    for name, parameter in sweep.search.params.items():
        value = spec.get(name)
        if parameter.per_cycle:
            count = len(steps) + 2 - first_cycle(sweep.search, name)
            values = value[-count:] if isinstance(value, list) and count else [value] * count
            answers |= {f"{name}_{index + 1}": each for index, each in enumerate(values)}
        elif parameter.searched:
            answers[name] = value
        for label, below in parameter.own.items():
            answers |= {f"{inner}_{label}": spec[inner] for inner in below if inner in spec}
    given = Given(answers)
    try:
        asking = sweep if sweep.sampler == "grid" else _with_fixed_ranges(sweep)  # a grid has none
        same = schedules.parse(propose(asking, given, time)).trace(time) == trace
    except ConfigError:  # an answer that the space does not have
        return None
    return given.asked if same else None
