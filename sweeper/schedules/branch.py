"""Branches: a schedule that equals another one, its trunk, bit by bit up to a step, and follows its family from there.

- A CAWB branch leaves its trunk at the first of ``steps``; the peak of the i-th cycle from there (i from 1) is
  ``lr`` step_scale^i, as if the trunk had been the first cycle. Without steps it is the trunk.
- Any other family leaves it at ``from``, a whole number of epochs, and is laid over the rest of the run. Lengths
  (``T_max``, ``decay_length``, ...) count from there, ``boundaries`` are epochs of the run, ``dur`` is a share of it.
- ``lr`` is the family's base LR in the branch. Left out, it is the trunk's LR at that step, so that nothing jumps
  (CAWB: the trunk's base LR). A trunk that names no ``lr`` has the branch's.
- A group whose LR differs from the main group's where the branch begins keeps the ratio, unless ``groups`` says more.
- Warm-up and momentum are the trunk's. A branch that would begin inside the warm-up is refused.

In the functions below ``warm`` is the steps of the trunk's warm-up, and ``begin`` the step at which the branch begins.
"""

from typing import Any

from sweeper.errors import ScheduleError
from sweeper.schedules import cawb
from sweeper.schedules.decay import Curve, held
from sweeper.schedules.families import FAMILIES
from sweeper.schedules.values import IDLE, Duration, Key, Params, TimeBase, length

DEEPEST = 4  # a trunk may be a branch itself
LENGTHS = ("T_max", "T_0", "total_iters", "decay_length")
POINTS = ("boundaries",)
#: What a branch has from its trunk, with the value that means nothing.
TRUNKS = {
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
    """The parameters of a branch of ``family``. ScheduleError for one that only its trunk can have."""
    allowed = dict(FAMILIES[family].keys(given))
    for name in TRUNKS:
        if allowed.pop(name, None) is not None and name in given:
            raise ScheduleError(
                f"{family}: {name}: given beside trunk; a branch has its trunk's warm-up and momentum, take it out or "
                "write it below trunk"
            )
    if family != "cawb":
        return {**allowed, "lr": Key(allowed["lr"].check, IDLE), "from": Key(length)}
    if given.get("mode", "clean") != "clean":
        raise ScheduleError(
            f"cawb: mode: {given['mode']} has a warm-up of its own and cannot begin at a trunk; expected clean"
        )
    if "from" in given:
        raise ScheduleError("cawb: from: a CAWB branch begins at the first of its steps; take it out")
    return allowed


def begins(family: str, params: Params, time: TimeBase, warm: float) -> int | None:
    """The first step of the branch; None if it never leaves the trunk.

    ScheduleError for a place inside the warm-up, outside the run, or inside an epoch.
    """
    name, places = ("steps", params["steps"]) if family == "cawb" else ("from", [params["from"]])
    steps = {place: Duration.parse(place).steps(time) for place in places}
    for place, step in steps.items():
        if 0 < step < warm or (family == "cawb" and 0 < step == warm):
            raise ScheduleError(
                f"{family}: {name}: {place} is inside the trunk's warm-up, which ends after "
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
    """The branch's LR by the step of the run, from ``begin`` on; ``params`` have the group's ``lr``."""
    if family == "cawb":
        joined = cawb.joined(params, time, _cycles(params, time, warm))
        return held(joined, time.steps_per_epoch) if params["granularity"] == "epoch" else joined
    rest = _rest(time, begin)
    try:
        inner = FAMILIES[family].curve(_laid(family, params, time, begin), rest, group)
    except ScheduleError as error:
        raise ScheduleError(f"{error} (the branch from {params['from']} has {rest.epochs} epochs)") from None
    return lambda k: inner(k - begin)


def marks(family: str, params: Params, time: TimeBase, warm: float, begin: int) -> list[int]:
    """Steps of the run at which the branch breaks after its beginning."""
    if family == "cawb":
        return [mark for mark in cawb.breaks(params, time, _cycles(params, time, warm)) if mark > begin]
    inner = FAMILIES[family].marks(_laid(family, params, time, begin), _rest(time, begin))
    return [begin + mark for mark in inner if mark > 0]


def _cycles(params: Params, time: TimeBase, warm: float) -> list[cawb.Cycle]:
    """CAWB's cycles but for the first, whose place the trunk has; [] without steps."""
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
    return TimeBase(time.epochs - begin // time.steps_per_epoch, time.steps_per_epoch, time.images)


def _laid(family: str, params: Params, time: TimeBase, begin: int) -> dict[str, Any]:
    """The parameters as they are in a run that begins where the branch does."""
    laid = {**params, **{name: idle for name, idle in TRUNKS.items() if name in FAMILIES[family].keys(params)}}
    for name in LENGTHS:
        if laid.get(name) is not None and (written := Duration.parse(laid[name])).unit == "dur":
            laid[name] = f"{written.epochs(time):.17g}ep"
    for name in POINTS:
        if name in laid:
            steps = {point: Duration.parse(point).steps(time) for point in laid[name]}
            if early := [point for point, step in steps.items() if step < begin]:
                raise ScheduleError(
                    f"{family}: {name}: {early[0]} is before the branch, which begins after "
                    f"{begin // time.steps_per_epoch} epochs; take it out"
                )
            laid[name] = [f"{steps[point] - begin:.17g}it" for point in laid[name]]
    return laid
