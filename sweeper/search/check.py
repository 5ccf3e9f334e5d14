"""Checks a search space before anything is trained, and translates enqueued schedules into Optuna parameters."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from sweeper.config import Parameter, Range, Sweep
from sweeper.errors import ConfigError, ScheduleError
from sweeper.schedules import Schedule, TimeBase
from sweeper.search.propose import STEPS, OfflineTrial, first_cycle, most_cycles, propose, restart_sections

DRAWS = 50  # Random proposals that a check tries, beside the corners.


def check(sweep: Sweep, time: TimeBase | None = None) -> None:
    """Raise ConfigError, in one line, if a schedule of the sweep is not valid.

    The check makes the traces of the baselines, the enqueued schedules, the corners of the space and some random
    proposals. Without a time base the steps per epoch are not known; a sweep that is written in steps or images is then
    not checked, until a later call has the time base.
    """
    scale, pruner = sweep.search.params.get("step_scale"), sweep.pruner
    if scale is not None and scale.per_cycle and most_cycles(sweep.search) == 1:
        raise ConfigError(
            "search.step_scale: is drawn for each restart, but the search has no restarts; expected search.restarts, "
            "steps: [30, 60], or a single step_scale"
        )
    if pruner.name != "none" and (pruner.from_epoch or 0) >= sweep.epochs:
        raise ConfigError(
            f"pruner.from_epoch: {pruner.from_epoch} is not inside the run, so that no trial would be stopped; "
            f"expected less than {sweep.epochs}, or pruner=none"
        )
    if time is None and _in_steps(sweep):
        return
    time = time or TimeBase(epochs=sweep.epochs, steps_per_epoch=STEPS)
    restart_sections(sweep, time)  # Raises ConfigError.
    drawn = (propose(sweep, OfflineTrial(seed), time) for seed in range(DRAWS))
    proposals = chain(_with_all_parameters(sweep, time), corners(sweep, time), drawn)
    for where, schedules in (("baselines", sweep.named_baselines.values()), ("search", proposals)):
        try:
            for schedule in schedules:
                schedule.trace(time)
        except ScheduleError as error:
            raise ConfigError(f"{where}: {error}") from None
    enqueued(sweep, time)


def _in_steps(sweep: Sweep) -> bool:
    """Whether a duration of the sweep is in steps or images, so that it depends on the number of steps per epoch."""
    text = json.dumps([sweep.search.model_dump(mode="json"), sweep.baselines, sweep.enqueue])
    return re.search(r'"\s*[0-9.]+([eE][+-]?[0-9]+)?\s*(it|img)\s*"', text) is not None


def _with_all_parameters(sweep: Sweep, time: TimeBase) -> Iterator[Schedule]:
    """A proposal for which every parameter is suggested. Raises ConfigError for a name with two distributions, and for
    ``grid`` if a range has no step."""
    trial = OfflineTrial(None)
    yield propose(_with_sampler(sweep, "gp"), trial, time)
    for name, distribution in trial.distributions.items() if sweep.sampler == "grid" else ():
        if isinstance(distribution, Range) and distribution.step is None:
            raise ConfigError(
                f"search.{name}: {distribution.low:g} to {distribution.high:g} has no step, so that a grid has no end; "
                "expected a step, a list, or another sampler"
            )


def _with_sampler(sweep: Sweep, sampler: str) -> Sweep:
    """The sweep with another sampler. With ``gp`` all parameters are suggested. With ``tpe`` every value is allowed,
    because distributions do not depend on the values before."""
    return sweep.model_copy(update={"sampler": sampler})


def corners(sweep: Sweep, time: TimeBase | None = None) -> Iterator[Schedule]:
    """Schedules at the edges of the space: each parameter at each of its ends or choices, with no and most restarts."""
    restarts, sections, cycles = sweep.search.restarts, restart_sections(sweep, time), most_cycles(sweep.search)
    for switch in ("off", "on") if restarts is not None else ("off",):
        for end in (0, -1):
            of_restarts: dict[str, Any] = {}
            for number, section in enumerate(sections, start=1):
                of_restarts[f"restart_{number}"] = switch
                if switch == "on":
                    of_restarts[f"steps_{number}"] = section[end]
            for name, parameter in {"-": Parameter(), **sweep.search.params}.items():
                names = [f"{name}_{cycle + 1}" for cycle in range(cycles)] if parameter.per_cycle else [name]
                for params in _edges(name, parameter):
                    per_cycle = dict.fromkeys(names, params[name]) if name in params else {}
                    trial = OfflineTrial(None, {**params, **per_cycle, **of_restarts})
                    yield propose(_with_sampler(sweep, "tpe"), trial, time)


def _edges(name: str, parameter: Parameter) -> Iterator[dict[str, Any]]:
    """Optuna parameters for each end of a range, or for each choice and the edges of its conditional parameters."""
    if parameter.range is None and parameter.choices is None:
        yield {}
        return
    for value in parameter.examples():
        yield {name: value}
        label = "" if parameter.choices is None else parameter.label(value)
        for inner, inner_parameter in parameter.conditional.get(label, {}).items():
            yield from ({name: value, **params} for params in _edges(f"{inner}_{label}", inner_parameter))


@dataclass(frozen=True)
class Enqueued:
    """An entry of ``enqueue``. ``params`` are values of Optuna parameters, from which the sampler learns. For a
    schedule outside the space they are None, and ``schedule`` is trained as it is."""

    params: Mapping[str, Any] | None = None
    schedule: Schedule | None = None


def enqueued(sweep: Sweep, time: TimeBase) -> list[Enqueued]:
    """The entries of ``sweep.enqueue``, in order, for the first search trials. Raises ConfigError."""
    entries: list[Enqueued] = []
    for number, written in enumerate(sweep.enqueue, start=1):
        try:
            if isinstance(written, str) or "family" in written:
                schedule = sweep.schedule(written)
                params = _params_of(sweep, schedule, time)
                entries.append(Enqueued(schedule=schedule) if params is None else Enqueued(params))
            else:
                entries.append(Enqueued(_checked_params(sweep, written, time)))
        except ConfigError as error:
            raise ConfigError(f"enqueue: {number}: {error}") from None
    if sweep.trials is not None and len(entries) > sweep.trials:
        raise ConfigError(
            f"enqueue: {len(entries)} schedules are more than the {sweep.trials} trials; expected "
            f"trials={len(entries)} or more"
        )
    return entries


def _checked_params(sweep: Sweep, written: Mapping[str, Any], time: TimeBase) -> dict[str, Any]:
    """Optuna parameters from ``enqueue``, checked. Raises ConfigError for a parameter or value outside the space, and
    for restarts that a proposal would move to other epochs.

    With ``grid``, a restart that is not given is added as off.
    """
    # YAML reads `on` without quotes as true.
    given = {
        name: ("on" if value else "off") if isinstance(value, bool) and name.startswith("restart_") else value
        for name, value in written.items()
    }
    complete, trial = OfflineTrial(None, given), OfflineTrial(None, given)
    propose(_with_sampler(sweep, "gp"), complete, time)
    if unknown := [name for name in given if name not in complete.params]:
        raise ConfigError(
            f"{unknown[0]}: is not a parameter of the search; expected a schedule with its family, or some of "
            f"{', '.join(complete.params)}"
        )
    schedule = propose(sweep, trial, time)
    schedule.trace(time)
    if (restarts := sweep.search.restarts) is None:
        return given
    steps, most_off = schedule.params["steps"], restarts.max - restarts.min
    switches = {number: given.get(f"restart_{number}") for number in range(1, restarts.max + 1)}
    if (off := list(switches.values()).count("off")) > most_off:
        raise ConfigError(f"{off} restarts are off; expected at most {most_off}, because min is {restarts.min}")
    for number, switch in switches.items():
        epoch = given.get(f"steps_{number}")
        if epoch is not None and (switch == "on" or most_off == 0) and epoch not in steps:
            raise ConfigError(
                f"steps_{number}: {epoch} would be moved, to restarts at {', '.join(map(str, steps))}; "
                f"expected restarts at least {restarts.distance} epochs apart"
            )
    of_restarts = {name: value for name, value in trial.params.items() if name.startswith(("restart_", "steps_"))}
    if sweep.sampler == "grid" and of_restarts.keys() & given.keys():
        # In a grid the positions of a restart depend on the restarts before it. If one of these were left to the
        # sampler, its value could make a later given one impossible.
        return of_restarts | given
    return given


def _params_of(sweep: Sweep, schedule: Schedule, time: TimeBase) -> dict[str, Any] | None:
    """The Optuna parameters for which the space gives the trace of ``schedule``; None if the space has no such ones."""
    trace, written = schedule.trace(time), schedule.params
    if schedule.family != sweep.search.family or (sweep.search.restarts is None and written.get("steps")):
        return None
    params: dict[str, Any] = {}
    steps = [step for step in written.get("steps", []) if isinstance(step, int)]
    for number, section in enumerate(restart_sections(sweep, time), start=1):
        inside = [step for step in steps if step in section]
        params[f"restart_{number}"] = "on" if inside else "off"
        params |= {f"steps_{number}": inside[0]} if inside else {}
    for name, parameter in sweep.search.params.items():
        value = written.get(name)
        if parameter.per_cycle:
            count = len(steps) + 2 - first_cycle(sweep.search, name)
            values = value[-count:] if isinstance(value, list) and count else [value] * count
            params |= {f"{name}_{number}": value for number, value in enumerate(values, start=1)}
        elif parameter.searched:
            params[name] = value
        for label, conditional in parameter.conditional.items():
            params |= {f"{inner}_{label}": written[inner] for inner in conditional if inner in written}
    trial = OfflineTrial(None, params)
    try:
        # Only for a grid the distributions depend on the values before.
        proposal = propose(sweep if sweep.sampler == "grid" else _with_sampler(sweep, "tpe"), trial, time)
        return trial.params if proposal.trace(time) == trace else None
    except ConfigError:  # A value is not in the space.
        return None
