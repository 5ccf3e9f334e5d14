"""A schedule is a family and its parameters; :func:`parse` is the only way in, the trace the only way out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sweeper.errors import ScheduleError
from sweeper.schedules import branch
from sweeper.schedules.checks import whole
from sweeper.schedules.controls import CONTROLS, at_restart
from sweeper.schedules.decay import did_you_mean
from sweeper.schedules.families import FAMILIES
from sweeper.schedules.spec import MAIN, checked, groups_of, with_lr
from sweeper.schedules.time import FloatArray, TimeBase
from sweeper.schedules.trace import Trace


@dataclass(frozen=True)
class Schedule:
    """A checked schedule; make one with :func:`parse`. ``params`` has every default written out.

    ``groups``: what a parameter group has instead of the main group's parameters, by the group's name. ``trunk``: the
    schedule that this one is a branch of, see :mod:`sweeper.schedules.branch`.
    """

    family: str
    params: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]]
    trunk: "Schedule | None" = None

    @property
    def spec(self) -> dict[str, Any]:
        """This schedule as plain data for JSON or YAML; ``parse(schedule.spec) == schedule``.

        >>> parse({"family": "constant", "lr": "1e-3"}).spec
        {'family': 'constant', 'lr': 0.001, 'warmup': '0ep', 'warmup_start': 0.0, 'granularity': 'step'}
        """
        nested: dict[str, Any] = {} if self.trunk is None else {"trunk": self.trunk.spec}
        nested |= {"groups": {name: dict(over) for name, over in self.groups.items()}} if self.groups else {}
        return json.loads(json.dumps({"family": self.family, **self.params, **nested}))  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
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
        steps = np.asarray(steps, np.float64)
        with np.errstate(all="ignore"):  # what is not finite is refused below, with its step
            if self.trunk is None:
                params = {**self.params, **self.groups.get(group, {})}
                values = FAMILIES[self.family].curve(params, time, group)(steps) + 0.0
            else:
                values = self._branched(self.trunk, time, steps, group)
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
        if self.trunk is not None:
            return self._branch(self.trunk, time)
        family = FAMILIES[self.family]
        lr = self.values(time)
        momentum = family.momentum(self.params, time)
        rows = self._rows(time)
        axis = np.arange(len(lr), dtype=np.float64)
        marks = [mark for mark in family.marks(self.params, time) if 0 < mark < len(lr)]
        groups = sorted({*family.groups(self.params), *self.groups})
        return Trace(
            lr.astype(np.float32),
            {name: self.values(time, name).astype(np.float32) for name in groups},
            None if momentum is None else momentum(axis).astype(np.float32),
            time.steps_per_epoch,
            rows,
            tuple(marks),
        )

    @property
    def base(self) -> float:
        """The base LR of the main group, ``lr``; a branch has its trunk's."""
        return float(self.params["lr"]) if self.trunk is None else self.trunk.base

    def warm(self, time: TimeBase) -> float:
        """The steps of the warm-up; a branch has its trunk's.

        >>> parse({"family": "yolo_linear", "lr": 0.1}).warm(TimeBase(10, 4))
        12.0
        """
        steps = self.trunk.warm(time) if self.trunk is not None else FAMILIES[self.family].warm(self.params, time)
        return float(steps)

    def begins(self, time: TimeBase) -> int | None:
        """The first step at which this branch may differ from its trunk; None if it has no trunk or never leaves it.

        >>> parse({"family": "cosine", "lr": 0.1, "trunk": "yolo_linear", "from": 5}).begins(TimeBase(10, 4))
        20
        """
        if self.trunk is None:
            return None
        at = branch.begin(self.family, self.params, time, self.trunk.warm(time))
        return None if at is None else at.step

    def _branched(self, trunk: "Schedule", time: TimeBase, steps: FloatArray, group: str) -> FloatArray:
        """:meth:`at` of a branch: the trunk's values, and from the branch's first step on the family's."""
        values = trunk.at(time, steps, group)
        over, warm = self.groups.get(group, {}), trunk.warm(time)
        params = {**self.params, **over}
        at = branch.begin(self.family, params, time, warm)
        later = np.zeros(len(steps), bool) if at is None else steps >= at.step
        if at is None or not later.any():
            return values
        if "lr" not in over:
            here = np.array([at.step], np.float64)
            main, base = (float(trunk.at(time, here, name)[0]) for name in (MAIN, group))
            params["lr"] = params["lr"] * (base / main if base != main and main else 1.0) if "lr" in params else base
        if not params["lr"]:
            raise ScheduleError(
                f"{self.family}: from: {self.params['from']}: the trunk's LR is 0 there; give the branch an lr"
            )
        values[later] = branch.curve(self.family, params, time, group, warm, at)(steps[later])
        return values

    def _branch(self, trunk: "Schedule", time: TimeBase) -> Trace:
        """:meth:`trace` of a branch; the momentum is the trunk's."""
        whole, warm = trunk.trace(time), trunk.warm(time)
        at = branch.begin(self.family, self.params, time, warm)
        lr = self.values(time)
        marks = whole.marks
        if at is not None:
            here = np.array([at.step], np.float64)
            jumps = not np.isclose(self.at(time, here)[0], trunk.at(time, here)[0], rtol=1e-9, atol=0.0)
            later = {"lr": self.base, **self.params}
            inner = branch.marks(self.family, later, time, warm, at)
            marks = (
                *(mark for mark in marks if mark < at.step),
                *sorted({*([at.step] if jumps else []), *(mark for mark in inner if at.step < mark < len(lr))}),
            )
        groups = sorted({*whole.groups, *self.groups})
        return Trace(
            lr.astype(np.float32),
            {name: self.values(time, name).astype(np.float32) for name in groups},
            whole.momentum,
            time.steps_per_epoch,
            time.epochs,
            tuple(marks),
        )

    def _rows(self, time: TimeBase) -> int:
        if self.family in CONTROLS:
            return parse(self.params["of"])._rows(time)
        return max(time.epochs - int(self.params.get("last_epoch", 0)), 1)


def parse(spec: Mapping[str, Any] | Schedule) -> Schedule:
    """Read a schedule from plain data: ``family``, its parameters, and perhaps ``groups``. A Schedule stays as it is.

    ``lr`` may be a list, one base LR per parameter group: the first is the main group, the others are called "1", "2"
    ... ``groups``: {"bias": {"lr": 0.2}} gives a group other parameters of the same family. Everything that does not
    depend on the length of the run is checked here. ``trunk``: the schedule (or its family's name) that this one is a
    branch of, see :mod:`sweeper.schedules.branch`. The control runs of a restart are schedules, too:
    ``{family: counterfactual | matched_peak, of: SPEC, restart: 1}``, see :mod:`sweeper.schedules.controls`.
    Raises ScheduleError naming the parameter and what is allowed.

    >>> parse({"family": "cawb", "lr": 0.1, "steps": [31, 81], "warmup": "3ep"}).params["step_scale"]
    0.8
    >>> parse({"family": "cawb", "lr": 0.1, "step": [31]})
    Traceback (most recent call last):
        ...
    sweeper.errors.ScheduleError: cawb: step is not a parameter; known are lr, mode, steps, step_scale, epoch_scale, \
warmup, decay, floor, power, warmup_kind, granularity, warmup_start, horizon, groups, trunk (did you mean steps?)
    """
    if isinstance(spec, Schedule):
        return spec
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
    given = {key: value for key, value in spec.items() if key not in ("family", "groups", "trunk")}
    trunk = None if spec.get("trunk") is None else _trunk(name, spec["trunk"], given)
    groups = groups_of(name, given, spec.get("groups"))
    params = checked(name, given, branches=trunk is not None)
    overrides = {}
    for group, over in groups.items():
        whole = checked(f"{name}: groups.{group}", {**given, **over}, name, branches=trunk is not None)
        for key in ("mode", "last_epoch", "warmup_kind"):
            if key in over:
                raise ScheduleError(f"{name}: groups.{group}: {key} is one for all groups; move it out of groups")
        differs = {key: value for key, value in whole.items() if key not in params or params[key] != value}
        if differs:
            overrides[group] = differs
    return Schedule(name, params, dict(sorted(overrides.items())), trunk)


def _trunk(name: str, written: object, given: dict[str, Any]) -> Schedule:
    """The trunk of a branch. Where it names no ``lr`` it has the branch's; a CAWB branch that names none has its."""
    spec = {"family": written} if isinstance(written, str) else written
    below, depth = spec, 0
    while isinstance(below, Mapping) and below.get("trunk") is not None:
        below, depth = below["trunk"], depth + 1
    if depth >= branch.DEEPEST:
        raise ScheduleError(f"{name}: trunk: is a branch of a branch {depth} times; expected at most {branch.DEEPEST}")
    if not isinstance(spec, Mapping):
        raise ScheduleError(
            f"{name}: trunk: {str(spec)[:80]!r} is not a schedule; expected a family's name, or family: and its "
            "parameters"
        )
    if isinstance(spec.get("family"), str) and spec["family"] in CONTROLS:
        raise ScheduleError(f"{name}: trunk: {spec['family']} is a control run; expected a schedule of its own")
    if spec.get("last_epoch"):
        raise ScheduleError(f"{name}: trunk: last_epoch: a trunk begins with the run; take it out")
    try:
        trunk = parse(with_lr(spec, given["lr"]) if "lr" in given else spec)
    except ScheduleError as error:
        raise ScheduleError(f"{name}: trunk: {error}") from None
    if name == "cawb":
        given.setdefault("lr", trunk.base)
    return trunk


def _control(name: str, spec: Mapping[str, Any]) -> Schedule:
    """A control run of the schedule ``of``, whose ``restart`` (from 1) it does without."""
    of, unknown = spec.get("of"), sorted(map(str, spec.keys() - {"family", "of", "restart"}))
    if unknown:
        raise ScheduleError(f"{name}: {unknown[0][:80]} is not a parameter; known are of, restart")
    if not isinstance(of, Mapping) or of.get("family") in CONTROLS:
        raise ScheduleError(f"{name}: of: {str(of)[:80]!r} is not allowed; expected the schedule that it controls")
    restart = whole(1, 1_000)(f"{name}: restart", spec.get("restart", 1))
    return Schedule(name, {"of": parse(of).spec, "restart": restart}, {})


#: Beginnings count as alike when they differ by less than this share of the peak LR and by less than this momentum.
#: yolo_linear and yolo_cosine, whose runs of one seed correlate with 0.88, differ by 6 % of the peak at the end of a
#: warm-up of 3 of 40 epochs. A bias group warmed up as the others are differs from the trainer's by several peaks.
ALIKE_LR, ALIKE_MOMENTUM = 0.1, 0.01


def begin_alike(schedule: Schedule, other: Schedule, time: TimeBase) -> bool:
    """Whether the first steps of two schedules have nearly the same LR, in every group, and momentum.

    The first steps are the longer of both warm-ups, at least one epoch. Runs of one seed that begin alike stay
    correlated to the end; runs that begin otherwise have no more in common than runs of two seeds.
    """
    trace, reference = schedule.trace(time), other.trace(time)
    steps = max(time.steps_per_epoch, *(int(np.ceil(each.warm(time))) for each in (schedule, other)))
    if trace.momentum is None or reference.momentum is None:
        if trace.momentum is not reference.momentum:
            return False
    elif np.abs(trace.momentum[:steps] - reference.momentum[:steps]).max() > ALIKE_MOMENTUM:
        return False
    peak = max(trace.lr[:steps].max(), reference.lr[:steps].max())
    groups = (MAIN, *{*trace.groups, *reference.groups})
    differences = [np.abs(trace.group(name)[:steps] - reference.group(name)[:steps]).max() for name in groups]
    return bool(max(differences) <= ALIKE_LR * peak)
