"""Branches: a schedule that equals another one, its trunk, bit by bit up to a step, and follows its family from there.

- A CAWB branch leaves its trunk at the first of ``steps``. The peak of its i-th cycle (i from 1) is
  ``lr`` step_scale^i, as if the trunk had been the first cycle. Without steps the branch equals the trunk.
- A branch of any other family leaves its trunk at ``from``, a whole number of epochs, and lasts to the end of the run.
  Lengths (``T_max``, ``decay_length``, ...) count from the branch's start, ``boundaries`` from the run's start. The
  unit ``dur`` is a fraction of the whole run.
- ``lr`` is the family's base LR in the branch. Its default is the trunk's LR at the branch's start, so that the LR does
  not jump there; in CAWB it is the trunk's base LR. A trunk without an ``lr`` has the branch's.
- If a group's LR differs from the main group's at the branch's start, the branch keeps the ratio, unless ``groups``
  sets the group's ``lr``.
- The branch has its trunk's warm-up and momentum. A branch that would start inside the warm-up is refused.

In the functions below ``warm`` is the length of the trunk's warm-up in steps, and ``begin`` is the branch's first step.
"""

from typing import Any

from sweeper.errors import ScheduleError
from sweeper.schedules import cawb
from sweeper.schedules.decay import Curve, hold
from sweeper.schedules.families import FAMILIES
from sweeper.schedules.values import NO_EFFECT, Duration, Key, Params, TimeBase, positive_duration

DEEPEST = 4  # A trunk may be a branch itself; a schedule has at most so many trunks below each other.
LENGTHS = ("T_max", "T_0", "total_iters", "decay_length")  # Parameters that are durations.
POSITIONS = ("boundaries",)  # Parameters that are lists of positions in the run.
#: The parameters that a branch takes from its trunk, each with the value at which it has no effect.
FROM_TRUNK = {
    "warmup": "0ep",
    "warmup_kind": "lr",
    "warmup_start": 0.0,
    "warmup_bias_lr": 0.0,
    "warmup_momentum": 0.0,
    "momentum": 0.0,
    "base_momentum": None,
    "max_momentum": None,
}


def keys(family: str, given: Params) -> dict[str, Key]:
    """The parameters of a branch of ``family``. Raises ScheduleError for one that only the trunk can have."""
    allowed = dict(FAMILIES[family].keys(given))
    for name in FROM_TRUNK:
        if allowed.pop(name, None) is not None and name in given:
            raise ScheduleError(
                f"{family}: {name}: given beside trunk; a branch has its trunk's warm-up and momentum; remove {name}, "
                "or write it below trunk"
            )
    if family != "cawb":
        return {**allowed, "lr": Key(allowed["lr"].check, NO_EFFECT), "from": Key(positive_duration)}
    if given.get("mode", "clean") != "clean":
        raise ScheduleError(
            f"cawb: mode: {given['mode']} has a warm-up of its own and cannot begin at a trunk; expected clean"
        )
    if "from" in given:
        raise ScheduleError("cawb: from: a CAWB branch begins at the first of its steps; remove from")
    return allowed


def begins(family: str, params: Params, time: TimeBase, warm: float) -> int | None:
    """The first step of the branch; None if the branch never leaves the trunk.

    Raises ScheduleError for a position inside the warm-up or outside the run, and for ``from`` inside an epoch.
    """
    name, positions = ("steps", params["steps"]) if family == "cawb" else ("from", [params["from"]])
    steps = {position: Duration.parse(position).steps(time) for position in positions}
    for position, step in steps.items():
        if 0 < step < warm or (family == "cawb" and 0 < step == warm):
            raise ScheduleError(
                f"{family}: {name}: {position} is inside the trunk's warm-up, which ends after "
                f"{warm / time.steps_per_epoch:g} epochs; a branch begins after it"
            )
    if family == "cawb":
        cycles = _cycles(params, time, warm)
        every = time.steps_per_epoch if params["granularity"] == "epoch" else 1
        first = -int(-cycles[0].start // every) * every if cycles else time.steps
        return first if first < time.steps else None
    begin = steps[params["from"]]
    if not 0 < begin < time.steps:
        raise ScheduleError(
            f"{family}: from: {params['from']} is outside the run; expected epochs above 0 and below {time.epochs}"
        )
    if begin % time.steps_per_epoch:
        raise ScheduleError(
            f"{family}: from: {params['from']} is not a whole number of epochs; expected for example 20ep"
        )
    return int(begin)


def curve(family: str, params: Params, time: TimeBase, group: str, warm: float, begin: int) -> Curve:
    """The branch's LR as a function of the step of the run, from ``begin`` on. ``params`` has the group's ``lr``."""
    if family == "cawb":
        whole = cawb.cycles_curve(params, time, _cycles(params, time, warm))
        return hold(whole, time.steps_per_epoch) if params["granularity"] == "epoch" else whole
    rest = _rest(time, begin)
    try:
        inner = FAMILIES[family].curve(_shifted(family, params, time, begin), rest, group)
    except ScheduleError as error:
        raise ScheduleError(f"{error} (the branch from {params['from']} has {rest.epochs} epochs)") from None
    return lambda k: inner(k - begin)


def marks(family: str, params: Params, time: TimeBase, warm: float, begin: int) -> list[int]:
    """The steps of the run after ``begin`` at which the branch's LR breaks."""
    if family == "cawb":
        return [mark for mark in cawb.breaks(params, time, _cycles(params, time, warm)) if mark > begin]
    inner = FAMILIES[family].marks(_shifted(family, params, time, begin), _rest(time, begin))
    return [begin + mark for mark in inner if mark > 0]


def _cycles(params: Params, time: TimeBase, warm: float) -> list[cawb.Cycle]:
    """CAWB's cycles without the first, which the trunk replaces; [] without steps."""
    distinct = len({Duration.parse(step).steps(time) for step in params["steps"]})
    if not distinct:
        return []
    horizon = params.get("horizon")
    if isinstance(horizon, list):
        if len(horizon) != distinct:
            raise ScheduleError(
                f"cawb: horizon: {len(horizon)} lengths do not fit {distinct} distinct steps; expected one each, or "
                "one for all"
            )
        horizon = ["end", *horizon]
    plain = {**params, "horizon": horizon, "warmup": f"{warm:.17g}it", "warmup_start": 0.0}
    return cawb.cycles(plain, time)[1:]


def _rest(time: TimeBase, begin: int) -> TimeBase:
    """The time base of the run from step ``begin`` on."""
    return TimeBase(time.epochs - begin // time.steps_per_epoch, time.steps_per_epoch, time.images)


def _shifted(family: str, params: Params, time: TimeBase, begin: int) -> dict[str, Any]:
    """The parameters with which a run that starts at step ``begin`` has the branch's LR."""
    keys = FAMILIES[family].keys(params)
    shifted = {**params, **{name: value for name, value in FROM_TRUNK.items() if name in keys}}
    for name in LENGTHS:
        if shifted.get(name) is not None and (written := Duration.parse(shifted[name])).unit == "dur":
            shifted[name] = f"{written.epochs(time):.17g}ep"  # 17 digits are enough for every float.
    for name in POSITIONS:
        if name in shifted:
            steps = {position: Duration.parse(position).steps(time) for position in shifted[name]}
            if early := [position for position, step in steps.items() if step < begin]:
                raise ScheduleError(
                    f"{family}: {name}: {early[0]} is before the branch, which begins after "
                    f"{begin // time.steps_per_epoch} epochs; remove it"
                )
            shifted[name] = [f"{steps[position] - begin:.17g}it" for position in shifted[name]]
    return shifted
