"""A schedule is a family and its parameters; :func:`parse` is the only way in, the trace the only way out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeper.errors import ScheduleError
from sweeper.schedules.checks import IDLE, whole
from sweeper.schedules.controls import CONTROLS, at_restart
from sweeper.schedules.families import FAMILIES
from sweeper.schedules.shapes import did_you_mean
from sweeper.schedules.time import FloatArray, TimeBase
from sweeper.schedules.trace import Trace

MAIN = "main"
MAX_GROUPS = 64


@dataclass(frozen=True)
class Schedule:
    """A checked schedule; make one with :func:`parse`. ``params`` has every default written out.

    ``groups``: what a parameter group has instead of the main group's parameters, by the group's name.
    """

    family: str
    params: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]]

    @property
    def spec(self) -> dict[str, Any]:
        """This schedule as plain data for JSON or YAML; ``parse(schedule.spec) == schedule``.

        >>> parse({"family": "constant", "lr": "1e-3"}).spec
        {'family': 'constant', 'lr': 0.001, 'warmup': '0ep', 'warmup_start': 0.0, 'granularity': 'step'}
        """
        own = {"groups": {name: dict(over) for name, over in self.groups.items()}} if self.groups else {}
        return json.loads(json.dumps({"family": self.family, **self.params, **own}))  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return hash(json.dumps(self.spec, sort_keys=True))

    def values(self, time: TimeBase, group: str = MAIN) -> FloatArray:
        """The LR of every step of the run, float64[steps], before the rounding to float32; ``group`` by name.

        In CAWB's reference mode with ``last_epoch`` = k the first value is that of epoch k's first step. Raises
        ScheduleError naming the first step at which the LR is not a finite number of at least 0.

        >>> parse({"family": "cosine", "lr": 0.1, "T_max": "2it"}).values(TimeBase(1, 4)).round(3).tolist()
        [0.1, 0.05, 0.0, 0.05]
        """
        return self.at(time, np.arange(self._rows(time) * time.steps_per_epoch, dtype=np.float64), group)

    def at(self, time: TimeBase, steps: FloatArray, group: str = MAIN) -> FloatArray:
        """The same at any ``steps`` (>= 0, ascending), also past the end of the run, where each family says what is.

        >>> parse({"family": "cawb", "lr": 0.1}).at(TimeBase(10, 2), np.array([0.0, 20.0, 99.0])).round(4).tolist()
        [0.1, 0.005, 0.005]
        """
        if self.family in CONTROLS:
            column = self.trace(time).group(group).astype(np.float64)
            return column[np.minimum(np.asarray(steps), len(column) - 1).astype(np.int64)]
        params = {**self.params, **self.groups.get(group, {})}
        with np.errstate(all="ignore"):  # what is not finite is refused below, with its step
            values = FAMILIES[self.family].curve(params, time, group)(np.asarray(steps, np.float64))
            values = values + 0.0
        bad = ~(np.isfinite(values) & (values >= 0) & (values <= np.finfo(np.float32).max))
        if bad.any():
            i = int(bad.argmax())
            step, what = int(steps[i]), "" if np.isfinite(values[i]) else " (complex, undefined or infinite)"
            epoch = step // time.steps_per_epoch
            decay = f"decay {params['decay']!r}: " if "decay" in params else ""
            raise ScheduleError(
                f"{self.family}: {decay}the LR is {values[i]:g}{what} at step {step} (epoch {epoch}); "
                "expected a finite number of at least 0"
            )
        return values

    def trace(self, time: TimeBase) -> Trace:
        """The LR trace of the run, float32: all groups, the momentum if the family drives it, the breaks marked.

        >>> run = parse({"family": "cawb", "lr": 0.1, "steps": [5], "floor": 0.0}).trace(TimeBase(10, 2))
        >>> [(jump.step, jump.epoch, jump.kind) for jump in run.jumps()]
        [(10, 5, 'restart')]
        """
        if self.family in CONTROLS:
            return at_restart(self.family, parse(self.params["of"]).trace(time), self.params["restart"])
        family = FAMILIES[self.family]
        lr = self.values(time)
        momentum = family.momentum(self.params, time)
        rows = self._rows(time)
        axis = np.arange(len(lr), dtype=np.float64)
        marks = [mark for mark in family.marks(self.params, time) if 0 < mark < len(lr)]
        groups = sorted({*family.groups, *self.groups})
        return Trace(
            lr.astype(np.float32),
            {name: self.values(time, name).astype(np.float32) for name in groups},
            None if momentum is None else momentum(axis).astype(np.float32),
            time.steps_per_epoch,
            rows,
            tuple(marks),
        )

    def _rows(self, time: TimeBase) -> int:
        if self.family in CONTROLS:
            return parse(self.params["of"])._rows(time)
        return max(FAMILIES[self.family].rows(self.params, time), 1)


def parse(spec: Mapping[str, Any]) -> Schedule:
    """Read a schedule from plain data: ``family``, its parameters, and perhaps ``groups``.

    ``lr`` may be a list, one base LR per parameter group: the first is the main group, the others are called "1", "2"
    ... ``groups``: {"bias": {"lr": 0.2}} gives a group other parameters of the same family. Everything that does not
    depend on the length of the run is checked here. The control runs of a restart are schedules, too:
    ``{family: counterfactual | matched_peak, of: SPEC, restart: 1}``, see :mod:`sweeper.schedules.controls`.
    Raises ScheduleError naming the parameter and what is allowed.

    >>> parse({"family": "cawb", "lr": 0.1, "steps": [31, 81], "warmup": "3ep"}).params["step_scale"]
    0.8
    >>> parse({"family": "cawb", "lr": 0.1, "step": [31]})
    Traceback (most recent call last):
        ...
    sweeper.errors.ScheduleError: cawb: step is not a parameter; known are lr, mode, steps, step_scale, epoch_scale, \
warmup, decay, floor, power, warmup_start, granularity, horizon, groups (did you mean steps?)
    """
    if not isinstance(spec, Mapping):
        raise ScheduleError(f"schedule: {str(spec)[:80]!r} is not a mapping; expected family: and its parameters")
    name = spec.get("family")
    if isinstance(name, str) and name in CONTROLS:
        return _control(name, spec)
    if not isinstance(name, str) or name not in FAMILIES:
        raise ScheduleError(
            f"family: {str(name)[:80]!r} is not known; expected one of {', '.join(FAMILIES)}"
            + did_you_mean(name, list(FAMILIES))
        )
    given = {key: value for key, value in spec.items() if key not in ("family", "groups")}
    groups = _groups(name, given, spec.get("groups"))
    params = _checked(name, given)
    overrides = {}
    for group, over in groups.items():
        whole = _checked(f"{name}: groups.{group}", {**given, **over}, name)
        for key in ("mode", "last_epoch"):
            if key in over:
                raise ScheduleError(f"{name}: groups.{group}: {key} is one for all groups; move it out of groups")
        differs = {key: value for key, value in whole.items() if key not in params or params[key] != value}
        if differs:
            overrides[group] = differs
    return Schedule(name, params, dict(sorted(overrides.items())))


def _control(name: str, spec: Mapping[str, Any]) -> Schedule:
    """A control run of the schedule ``of``, whose ``restart`` (from 1) it does without."""
    of, unknown = spec.get("of"), sorted(map(str, spec.keys() - {"family", "of", "restart"}))
    if unknown:
        raise ScheduleError(f"{name}: {unknown[0][:80]} is not a parameter; known are of, restart")
    if not isinstance(of, Mapping) or of.get("family") in CONTROLS:
        raise ScheduleError(f"{name}: of: {str(of)[:80]!r} is not allowed; expected the schedule that it controls")
    restart = whole(1, 1_000)(f"{name}: restart", spec.get("restart", 1))
    return Schedule(name, {"of": parse(of).spec, "restart": restart}, {})


def _groups(name: str, given: dict[str, Any], groups: object) -> dict[str, dict[str, Any]]:
    """The overrides by group as given; a list of base LRs is taken apart (``given`` keeps the first)."""
    if groups is None:
        groups = {}
    if not isinstance(groups, Mapping) or not all(isinstance(over, Mapping) for over in groups.values()):
        raise ScheduleError(
            f"{name}: groups: {str(groups)[:80]!r} is not allowed; expected for example bias: {{lr: 0.2}}"
        )
    found = {str(group): dict(over) for group, over in groups.items()}
    if MAIN in found or "" in found:
        raise ScheduleError(f"{name}: groups: {MAIN} is what the schedule itself says; expected other groups' names")
    lr = given.get("lr")
    if isinstance(lr, list | tuple):
        if not lr:
            raise ScheduleError(f"{name}: lr: [] is empty; expected one base LR per parameter group")
        given["lr"] = lr[0]
        for index, base in enumerate(lr[1:], start=1):
            found.setdefault(str(index), {}).setdefault("lr", base)
    if len(found) > MAX_GROUPS:
        raise ScheduleError(f"{name}: groups: {len(found)} are too many; expected at most {MAX_GROUPS}")
    return found


def _checked(what: str, given: Mapping[str, Any], family: str | None = None) -> dict[str, Any]:
    """Every parameter of the family, checked, in the family's order, defaults written out."""
    keys = FAMILIES[family or what].keys(given)
    for key in given:
        if key not in keys:
            known = [*keys, "groups"]
            raise ScheduleError(
                f"{what}: {str(key)[:80]} is not a parameter; known are {', '.join(known)}" + did_you_mean(key, known)
            )
    params: dict[str, Any] = {}
    for name, rule in keys.items():
        if name in given:
            value = rule.check(f"{what}: {name}", given[name])
        elif rule.required:
            raise ScheduleError(f"{what}: {name} is missing; it has no default")
        else:
            value = rule.default
        if value is not IDLE:
            params[name] = value
    return params
