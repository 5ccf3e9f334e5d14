"""A schedule is a family and its parameters; :func:`parse` makes one, :meth:`Schedule.trace` gives its LRs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sweeper.errors import ScheduleError, did_you_mean
from sweeper.schedules import branch
from sweeper.schedules.families import FAMILIES
from sweeper.schedules.trace import CONTROLS, Trace
from sweeper.schedules.values import NO_EFFECT, FloatArray, TimeBase, whole

MAIN = "main"  # The main parameter group's name.
MAX_GROUPS = 64


@dataclass(frozen=True)
class Schedule:
    """A checked schedule, made by :func:`parse`. ``params`` are all parameters of the family, defaults included.

    ``groups`` are the parameters in which a parameter group differs from the main group, by the group's name. A branch
    has a ``trunk``, the schedule from which it branches off. A control run has ``of``, the schedule that it controls.
    """

    family: str
    params: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trunk: "Schedule | None" = None
    of: "Schedule | None" = None

    @property
    def spec(self) -> dict[str, Any]:
        """The schedule as plain data for JSON or YAML; ``parse(schedule.spec) == schedule``."""
        nested: dict[str, Any] = {} if self.trunk is None else {"trunk": self.trunk.spec}
        nested |= {"groups": {name: dict(over) for name, over in self.groups.items()}} if self.groups else {}
        control = {} if self.of is None else {"of": self.of.spec}
        spec = {"family": self.family, **control, **self.params, **nested}
        return json.loads(json.dumps(spec))  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return hash(json.dumps(self.spec, sort_keys=True))

    def values(self, time: TimeBase, group: str = MAIN) -> FloatArray:
        """The LR of parameter group ``group`` at every step of the run, float64[steps], before rounding to float32.

        In CAWB's reference mode with ``last_epoch`` = k the first value is that of epoch k's first step. Raises
        ScheduleError, with the step, for an LR that is negative or not finite.
        """
        return self.values_at(time, np.arange(self._epochs(time) * time.steps_per_epoch, dtype=np.float64), group)

    def values_at(self, time: TimeBase, steps: FloatArray, group: str = MAIN) -> FloatArray:
        """The LR of ``group`` at ``steps`` (>= 0, ascending), float64. They may lie past the end of the run, where a
        family goes on by its formula and a control run keeps its last LR. Raises ScheduleError as :meth:`values`."""
        steps = np.asarray(steps, np.float64)
        if self.of is not None:
            column = self.trace(time).group(group).astype(np.float64)
            return column[np.minimum(steps, len(column) - 1).astype(np.int64)]
        params = {**self.params, **self.groups.get(group, {})}
        with np.errstate(all="ignore"):  # Values that are not finite are refused below.
            if self.trunk is None:
                values = FAMILIES[self.family].curve(params, time, group)(steps) + 0.0
            else:
                values = self._branched(self.trunk, time, steps, group)
        bad = ~(np.isfinite(values) & (values >= 0) & (values <= np.finfo(np.float32).max))
        if bad.any():
            i = int(bad.argmax())
            step, what = int(steps[i]), "" if np.isfinite(values[i]) else " (complex, undefined or infinite)"
            decay = f"decay {params['decay']!r}: " if "decay" in params else ""
            raise ScheduleError(
                f"{self.family}: {decay}the LR is {values[i]:g}{what} at step {step} (epoch "
                f"{step // time.steps_per_epoch}); expected a finite number of at least 0"
            )
        return values

    def trace(self, time: TimeBase) -> Trace:
        """The LR trace of the run: the LR of all groups, the momentum if the family changes it, and the breaks.

        >>> parse({"family": "cawb", "lr": 0.1, "steps": [5]}).trace(TimeBase(epochs=10, steps_per_epoch=2)).marks
        (10,)
        """
        if self.of is not None:
            return self._control(self.of.trace(time))
        lr = self.values(time)
        if self.trunk is not None:
            stem = self.trunk.trace(time)
            names, momentum, marks = {*stem.groups}, stem.momentum, self._marks(self.trunk, stem, time)
        else:
            family = FAMILIES[self.family]
            curve = family.momentum(self.params, time)
            momentum = None if curve is None else curve(np.arange(len(lr), dtype=np.float64)).astype(np.float32)
            names, marks = {*family.groups(self.params)}, family.marks(self.params, time)
        return Trace(
            lr.astype(np.float32),
            {name: self.values(time, name).astype(np.float32) for name in {*names, *self.groups}},
            momentum,
            time.steps_per_epoch,
            self._epochs(time),
            tuple(mark for mark in marks if 0 < mark < len(lr)),
        )

    @property
    def base_lr(self) -> float:
        """The base LR of the main group, ``lr``; a branch has its trunk's."""
        return float(self.params["lr"]) if self.trunk is None else self.trunk.base_lr

    def warmup_steps(self, time: TimeBase) -> float:
        """The length of the warm-up in steps; a branch has its trunk's."""
        if self.trunk is not None:
            return self.trunk.warmup_steps(time)
        return float(FAMILIES[self.family].warm(self.params, time))

    def begins(self, time: TimeBase) -> int | None:
        """The first step at which this branch may differ from its trunk; None if it has no trunk or never leaves it."""
        if self.trunk is None:
            return None
        return branch.begins(self.family, self.params, time, self.trunk.warmup_steps(time))

    def _epochs(self, time: TimeBase) -> int:
        """The number of epochs that are trained. CAWB's reference mode trains only those from ``last_epoch`` on."""
        if self.of is not None:
            return self.of._epochs(time)
        return max(time.epochs - int(self.params.get("last_epoch", 0)), 1)

    def _control(self, trace: Trace) -> Trace:
        """The trace of this control run; ``trace`` is that of the controlled run, whose restarts count from 1."""
        restart, steps = self.params["restart"], [jump.step for jump in trace.jumps() if jump.kind == "restart"]
        if restart > len(steps):
            raise ScheduleError(
                f"{self.family}: restart: {restart} does not exist; expected at most {len(steps)}, the last restart"
            )
        return CONTROLS[self.family](trace, steps[restart - 1])

    def _branched(self, trunk: "Schedule", time: TimeBase, steps: FloatArray, group: str) -> FloatArray:
        """:meth:`values_at` of a branch: the trunk's values, and from the branch's first step on the family's."""
        over, values = self.groups.get(group, {}), trunk.values_at(time, steps, group)
        params, warm = {**self.params, **over}, trunk.warmup_steps(time)
        begin = branch.begins(self.family, params, time, warm)
        later = np.zeros(len(steps), bool) if begin is None else steps >= begin
        if begin is None or not later.any():
            return values
        if "lr" not in over:
            first = np.array([begin], np.float64)
            main, base = (float(trunk.values_at(time, first, name)[0]) for name in (MAIN, group))
            params["lr"] = params["lr"] * (base / main if base != main and main else 1.0) if "lr" in params else base
        if not params["lr"]:
            raise ScheduleError(
                f"{self.family}: from: {self.params['from']}: the trunk's LR is 0 there; expected an lr of the branch"
            )
        values[later] = branch.curve(self.family, params, time, group, warm, begin)(steps[later])
        return values

    def _marks(self, trunk: "Schedule", stem: Trace, time: TimeBase) -> list[int]:
        """The steps at which the LR of a branch breaks: its trunk's up to the branch, then its own. ``stem`` is the
        trunk's trace."""
        if (begin := self.begins(time)) is None:
            return list(stem.marks)
        first = np.array([begin], np.float64)
        jumps = not np.isclose(self.values_at(time, first)[0], trunk.values_at(time, first)[0], rtol=1e-9, atol=0.0)
        later = branch.marks(self.family, {"lr": self.base_lr, **self.params}, time, trunk.warmup_steps(time), begin)
        before = [mark for mark in stem.marks if mark < begin]
        return [*before, *([begin] if jumps else []), *sorted(set(later))]


def parse(spec: Mapping[str, Any] | Schedule) -> Schedule:
    """The schedule of ``spec``: a mapping with ``family`` and the family's parameters, or already a Schedule.

    ``lr`` may be a list with a base LR for each parameter group: the first is the main group's, the others are for the
    groups "1", "2" ... ``groups`` = {"bias": {"lr": 0.2}} gives a group other parameters of the same family. ``trunk``
    is the schedule, or its family's name, from which this one branches off, see :mod:`sweeper.schedules.branch`. A
    control run of a restart is ``{family: counterfactual | matched_peak, of: SPEC, restart: 1}``, see
    :mod:`sweeper.schedules.trace`.

    Raises ScheduleError with the parameter and what is allowed. What depends on the length of the run is checked by
    :meth:`Schedule.trace`.

    >>> parse({"family": "cawb", "lr": 0.1, "steps": [31, 81], "warmup": "3ep"}).params["step_scale"]
    0.8
    """
    return spec if isinstance(spec, Schedule) else _read(spec)


def _read(spec: Mapping[str, Any], lr: object = None, depth: int = 0) -> Schedule:
    """:func:`parse` of a mapping. A trunk is read with its ``depth`` (1 for the trunk of the schedule itself) and with
    the ``lr`` of its branch, which it has unless it names another."""
    if not isinstance(spec, Mapping):
        raise ScheduleError(f"schedule: {str(spec)[:80]!r} is not a mapping; expected family: and its parameters")
    family = spec.get("family")
    if isinstance(family, str) and family in CONTROLS:
        return _control(family, spec)
    if not isinstance(family, str) or family not in FAMILIES:
        what = f"{str(family)[:80]!r} is not known" if "family" in spec else "is missing"
        raise ScheduleError(
            f"family: {what}; expected one of {', '.join(FAMILIES)}{did_you_mean(family, FAMILIES) if family else ''}"
        )
    given = {key: value for key, value in spec.items() if key not in ("family", "groups", "trunk")}
    trunk = None
    if spec.get("trunk") is not None:
        trunk = _trunk(family, spec["trunk"], given.get("lr", lr), depth + 1)
        if family == "cawb":
            given.setdefault("lr", trunk.base_lr)
    elif lr is not None:
        given.setdefault("lr", lr)
    groups = _groups(family, given, spec.get("groups"))
    params = _checked(family, family, given, trunk)
    overrides = {}
    for group, over in groups.items():
        of_group = _checked(family, f"{family}: groups.{group}", {**given, **over}, trunk)
        for key in ("mode", "last_epoch", "warmup_kind"):
            if key in over:
                raise ScheduleError(f"{family}: groups.{group}: {key} is one for all groups; move it out of groups")
        differs = {key: value for key, value in of_group.items() if key not in params or params[key] != value}
        if differs:
            overrides[group] = differs
    return Schedule(family, params, dict(sorted(overrides.items())), trunk)


def _checked(family: str, where: str, given: Mapping[str, Any], trunk: Schedule | None) -> dict[str, Any]:
    """Every parameter of the family, or of a branch of it, checked, in the family's order, defaults included."""
    keys = FAMILIES[family].keys(given) if trunk is None else branch.keys(family, given)
    if "from" in given and "from" not in keys:
        raise ScheduleError(f"{where}: from: is allowed in a branch only; expected trunk: beside it")
    if unknown := [key for key in given if key not in keys]:
        names = [*keys, "groups", "trunk"]
        raise ScheduleError(
            f"{where}: {str(unknown[0])[:80]} is not a parameter; known are {', '.join(names)}"
            + did_you_mean(unknown[0], names)
        )
    params: dict[str, Any] = {}
    for name, rule in keys.items():
        if name not in given and rule.required:
            raise ScheduleError(f"{where}: {name} is missing; it has no default")
        value = rule.check(f"{where}: {name}", given[name]) if name in given else rule.default
        if value is not NO_EFFECT:
            params[name] = value
    return params


def _groups(family: str, given: dict[str, Any], groups: object) -> dict[str, dict[str, Any]]:
    """The parameters that ``groups`` and a list of base LRs give to each group. ``given`` keeps the list's first LR."""
    groups = {} if groups is None else groups
    if not isinstance(groups, Mapping) or not all(isinstance(over, Mapping) for over in groups.values()):
        raise ScheduleError(
            f"{family}: groups: {str(groups)[:80]!r} is not allowed; expected for example bias: {{lr: 0.2}}"
        )
    overrides = {str(group): dict(over) for group, over in groups.items()}
    if MAIN in overrides or "" in overrides:
        raise ScheduleError(f"{family}: groups: {MAIN} is the group of the schedule itself; expected other groups")
    lr = given.get("lr")
    if isinstance(lr, list | tuple) and lr:
        given["lr"] = lr[0]
        for index, base in enumerate(lr[1:], start=1):
            overrides.setdefault(str(index), {}).setdefault("lr", base)
    if len(overrides) > MAX_GROUPS:
        raise ScheduleError(f"{family}: groups: {len(overrides)} are too many; expected at most {MAX_GROUPS}")
    return overrides


def _trunk(family: str, written: object, lr: object, depth: int) -> Schedule:
    """The trunk of a branch of ``family``; ``lr`` is the branch's base LR and ``depth`` as in :func:`_read`."""
    spec = {"family": written} if isinstance(written, str) else written
    if not isinstance(spec, Mapping):
        raise ScheduleError(
            f"{family}: trunk: {str(spec)[:80]!r} is not a schedule; expected a family's name, or family: and its "
            "parameters"
        )
    if isinstance(spec.get("family"), str) and spec["family"] in CONTROLS:
        raise ScheduleError(f"{family}: trunk: {spec['family']} is a control run; expected a schedule")
    if spec.get("last_epoch"):
        raise ScheduleError(f"{family}: trunk: last_epoch: a trunk begins with the run; remove last_epoch")
    if depth > branch.DEEPEST:
        raise ScheduleError(
            f"{family}: trunk: is a branch of a branch {depth} times; expected at most {branch.DEEPEST}"
        )
    try:
        return _read(spec, lr, depth)
    except ScheduleError as error:
        raise ScheduleError(f"{family}: trunk: {error}") from None


def _control(family: str, spec: Mapping[str, Any]) -> Schedule:
    """The control run for the ``restart`` (from 1) of the schedule ``of``."""
    of = spec.get("of")
    if unknown := sorted(map(str, spec.keys() - {"family", "of", "restart"})):
        raise ScheduleError(f"{family}: {unknown[0][:80]} is not a parameter; known are of, restart")
    if not isinstance(of, Mapping) or of.get("family") in CONTROLS:
        raise ScheduleError(f"{family}: of: {str(of)[:80]!r} is not allowed; expected the schedule that it controls")
    restart = whole(1, 1_000)(f"{family}: restart", spec.get("restart", 1))
    return Schedule(family, {"restart": restart}, of=parse(of))
