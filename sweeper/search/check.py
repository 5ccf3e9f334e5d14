"""Checks a search space at its edges before anything is trained, and translates enqueued schedules into its answers."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from sweeper.config import Parameter, Range, Sweep
from sweeper.errors import ConfigError, ScheduleError
from sweeper.schedules import Schedule, TimeBase
from sweeper.search.propose import STEPS, Drawn, first_cycle, most_cycles, propose, slots

DRAWS = 50  # proposals that a check tries beside the corners


def check(sweep: Sweep, time: TimeBase | None = None) -> None:
    """Try the baselines, the enqueued schedules, the corners of the space and some draws; ConfigError in one line.

    Without a time base the steps per epoch are not known yet. What is written in steps or images is then left to a
    second look; most mistakes are about epochs.
    """
    scale, pruner = sweep.search.params.get("step_scale"), sweep.pruner
    if scale is not None and scale.per_cycle and most_cycles(sweep.search) == 1:
        raise ConfigError(
            "search.step_scale: is one for each restart, and there are none; expected search.restarts, "
            "steps: [30, 60], or a single step_scale"
        )
    if pruner.name != "none" and (pruner.from_epoch or 0) >= sweep.epochs:
        raise ConfigError(
            f"pruner.from_epoch: {pruner.from_epoch} is not inside the run, nothing would be stopped; expected less "
            f"than {sweep.epochs}, or pruner=none"
        )
    if time is None and _in_steps(sweep):
        return
    time = time or TimeBase(epochs=sweep.epochs, steps_per_epoch=STEPS)
    slots(sweep, time)
    drawn = (propose(sweep, Drawn(seed), time) for seed in range(DRAWS))
    proposals = chain(_everything(sweep, time), corners(sweep, time), drawn)
    for where, tried in (("baselines", sweep.named_baselines.values()), ("search", proposals)):
        try:
            for schedule in tried:
                schedule.trace(time)
        except ScheduleError as error:
            raise ConfigError(f"{where}: {error}") from None
    enqueued(sweep, time)


def _in_steps(sweep: Sweep) -> bool:
    """Whether a duration of the sweep depends on the number of steps per epoch."""
    text = json.dumps([sweep.search.model_dump(mode="json"), sweep.baselines, sweep.enqueue])
    return re.search(r'"\s*[0-9.]+([eE][+-]?[0-9]+)?\s*(it|img)\s*"', text) is not None


def _everything(sweep: Sweep, time: TimeBase) -> Iterator[Schedule]:
    """A proposal for which every parameter is asked. A name must have one meaning, and a grid a number of values."""
    drawn = Drawn(None)
    yield propose(_as(sweep, "gp"), drawn, time)
    for name, limits in drawn.limits.items() if sweep.sampler == "grid" else ():
        if isinstance(limits, Range) and limits.step is None:
            raise ConfigError(
                f"search.{name}: {limits.low:g} to {limits.high:g} has no step, and a grid cannot be walked; expected "
                "a step, a list, or another sampler"
            )


def _as(sweep: Sweep, sampler: str) -> Sweep:
    """The sweep with another sampler: ``gp`` asks everything, and for ``tpe`` any answer is allowed, because ranges do
    not depend on earlier answers."""
    return sweep.model_copy(update={"sampler": sampler})


def corners(sweep: Sweep, time: TimeBase | None = None) -> Iterator[Schedule]:
    """Schedules at the edges of the space: each parameter at each of its ends or choices, with no and most restarts."""
    restarts, places, cycles = sweep.search.restarts, slots(sweep, time), most_cycles(sweep.search)
    for on in ("off", "on") if restarts is not None else ("off",):
        for end in (0, -1):
            begun: dict[str, Any] = {}
            for number, place in enumerate(places, start=1):
                begun |= {f"restart_{number}": on} | ({f"steps_{number}": place[end]} if on == "on" else {})
            for name, parameter in {"-": Parameter(), **sweep.search.params}.items():
                names = [f"{name}_{cycle + 1}" for cycle in range(cycles)] if parameter.per_cycle else [name]
                for answers in _edges(name, parameter):
                    spread = dict.fromkeys(names, answers[name]) if name in answers else {}
                    yield propose(_as(sweep, "tpe"), Drawn(None, {**answers, **spread, **begun}), time)


def _edges(name: str, parameter: Parameter) -> Iterator[dict[str, Any]]:
    """Answers for a parameter, by Optuna's names: one after the other its ends, or its choices with theirs."""
    if parameter.range is None and parameter.choices is None:
        yield {}
        return
    for value in parameter.examples():
        yield {name: value}
        label = "" if parameter.choices is None else parameter.label(value)
        for inner, inner_parameter in parameter.conditional.get(label, {}).items():
            yield from ({name: value, **answers} for answers in _edges(f"{inner}_{label}", inner_parameter))


@dataclass(frozen=True)
class Enqueued:
    """What a search slot is given: ``answers`` to the search's questions, from which the sampler learns, or for a
    schedule that the space does not contain the ``schedule``, which is trained as it is."""

    answers: Mapping[str, Any] | None = None
    schedule: Schedule | None = None


def enqueued(sweep: Sweep, time: TimeBase) -> list[Enqueued]:
    """What the first search slots are given, one for each of ``sweep.enqueue``. Raises ConfigError."""
    starts: list[Enqueued] = []
    for number, written in enumerate(sweep.enqueue, start=1):
        try:
            if isinstance(written, str) or "family" in written:
                schedule = sweep.schedule(written)
                answers = _encoded(sweep, schedule, time)
                starts.append(Enqueued(schedule=schedule) if answers is None else Enqueued(answers))
            else:
                starts.append(Enqueued(_checked_answers(sweep, written, time)))
        except ConfigError as error:
            raise ConfigError(f"enqueue: {number}: {error}") from None
    if sweep.trials is not None and len(starts) > sweep.trials:
        raise ConfigError(
            f"enqueue: {len(starts)} schedules are more than the {sweep.trials} trials; expected trials={len(starts)} "
            "or more"
        )
    return starts


def _checked_answers(sweep: Sweep, written: Mapping[str, Any], time: TimeBase) -> dict[str, Any]:
    """Answers as they stand in the file. ConfigError unless the space has each of them and they come out as written.

    With ``grid``, restarts that are left out are added as off.
    """
    # YAML reads on without quotes as true
    answers = {
        name: ("on" if value else "off") if isinstance(value, bool) and name.startswith("restart_") else value
        for name, value in written.items()
    }
    everything, drawn = Drawn(None, answers), Drawn(None, answers)
    propose(_as(sweep, "gp"), everything, time)
    if unknown := [name for name in answers if name not in everything.asked]:
        raise ConfigError(
            f"{unknown[0]}: is not a parameter of the search; expected a schedule with its family, or some of "
            f"{', '.join(everything.asked)}"
        )
    schedule = propose(sweep, drawn, time)
    schedule.trace(time)
    if (restarts := sweep.search.restarts) is None:
        return answers
    steps, most = schedule.params["steps"], restarts.max - restarts.min
    on = {number: answers.get(f"restart_{number}") for number in range(1, restarts.max + 1)}
    if (off := list(on.values()).count("off")) > most:
        raise ConfigError(f"{off} restarts are off; expected at most {most}, min is {restarts.min}")
    for number, switch in on.items():
        at = answers.get(f"steps_{number}")
        if at is not None and (switch == "on" or most == 0) and at not in steps:
            raise ConfigError(
                f"steps_{number}: {at} comes out otherwise, with restarts at {', '.join(map(str, steps))}; "
                f"expected restarts at least {restarts.distance} epochs apart"
            )
    of_restarts = {name: value for name, value in drawn.asked.items() if name.startswith(("restart_", "steps_"))}
    if sweep.sampler == "grid" and of_restarts.keys() & answers.keys():
        # In a grid the places of a restart depend on the restarts before it. So no restart may be left to the sampler:
        # it could make a later answer impossible.
        return of_restarts | answers
    return answers


def _encoded(sweep: Sweep, schedule: Schedule, time: TimeBase) -> dict[str, Any] | None:
    """The answers with which the space gives the very trace of ``schedule``; None if it lies outside."""
    trace, params = schedule.trace(time), schedule.params
    if schedule.family != sweep.search.family or (sweep.search.restarts is None and params.get("steps")):
        return None
    answers: dict[str, Any] = {}
    steps = [step for step in params.get("steps", []) if isinstance(step, int)]
    for number, place in enumerate(slots(sweep, time), start=1):
        inside = [step for step in steps if step in place]
        answers[f"restart_{number}"] = "on" if inside else "off"
        answers |= {f"steps_{number}": inside[0]} if inside else {}
    for name, parameter in sweep.search.params.items():
        value = params.get(name)
        if parameter.per_cycle:
            count = len(steps) + 2 - first_cycle(sweep.search, name)
            values = value[-count:] if isinstance(value, list) and count else [value] * count
            answers |= {f"{name}_{number}": each for number, each in enumerate(values, start=1)}
        elif parameter.searched:
            answers[name] = value
        for label, below in parameter.conditional.items():
            answers |= {f"{inner}_{label}": params[inner] for inner in below if inner in params}
    drawn = Drawn(None, answers)
    try:
        # the ranges of a grid do depend on earlier answers
        same = propose(sweep if sweep.sampler == "grid" else _as(sweep, "tpe"), drawn, time).trace(time) == trace
    except ConfigError:  # an answer that the space does not have
        return None
    return drawn.asked if same else None
