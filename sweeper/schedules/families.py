"""The families of schedules: the parameters of each, its LR curve, and the steps at which the LR breaks.

``lr`` is the base LR (required). Durations are ``3ep``, ``4000it``, ``256000img`` or ``0.02dur``; a plain number is in
epochs. In the formulas k counts optimizer steps since the end of the warm-up, and T is a duration in steps.

All families but yolo_* and onecycle take ``warmup``, a line from ``warmup_start`` * lr to lr before the curve starts
(in multistep a factor on it). All but yolo_* take ``granularity``: with ``epoch`` the LR of each epoch's first step
holds for the whole epoch.

============== ====================================================================================================
cawb           see :mod:`sweeper.schedules.cawb`; ``warmup_kind: trainer`` gives it the warm-up of yolo_*
cosine         eta_min + (lr - eta_min)(1 + cos(pi k/T_max))/2, rises again after T_max (torch CosineAnnealingLR)
warm_restarts  cycle i is a cosine of T_0 T_mult^i steps from lr step_scale^i to eta_min (torch
               CosineAnnealingWarmRestarts; Loshchilov & Hutter, SGDR, 2017)
multistep      lr gamma^n, n boundaries at or before the step, not shifted by the warm-up (torch MultiStepLR, Paddle)
yolo_*         Ultralytics' default (8.4.190): lr f(epoch), f falls from 1 to lrf over the run, linear or cosine; the
               warm-up starts at 0 (group bias: warmup_bias_lr), also moves the momentum, and is interpolated towards
               the LR of the current step
onecycle       lr/div_factor up to lr at pct_start, down to lr/div_factor/final_div_factor (torch OneCycleLR)
wsd            constant lr, then ``decay`` over the last decay_length to floor * lr (Haegele et al., 2024)
polynomial     lr (1 - min(k, T)/T)^power, T = total_iters (torch PolynomialLR)
exponential    lr gamma^t, t in epochs (torch ExponentialLR, stepped once an epoch)
constant       lr
============== ====================================================================================================
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sweeper.errors import ScheduleError, shorten
from sweeper.schedules import cawb, values
from sweeper.schedules.decay import NEEDS_FLOOR, SHAPES, Curve, hold, segment, sequence, shape, warmup_lerp
from sweeper.schedules.values import Duration, FloatArray, Key, Params, TimeBase, number


@dataclass(frozen=True)
class Family:
    """One family of schedules, as functions of checked parameters ``params`` and the run's time base ``time``.

    ``keys(given)`` are its parameters, which may depend on the given ones, as on CAWB's mode. ``steps(params, time,
    group)`` is the LR of ``group`` as a function of the step, ``marks`` the steps at which it breaks, ``groups`` the
    parameter groups whose LR differs from the main group's, ``momentum`` the momentum as a function of the step or None
    where the family leaves it alone, and ``warm`` the length of the warm-up in steps.
    """

    keys: Callable[[Params], Mapping[str, Key]]
    steps: Callable[[Params, TimeBase, str], Curve]
    marks: Callable[[Params, TimeBase], list[int]] = lambda params, time: []
    groups: Callable[[Params], tuple[str, ...]] = lambda params: ()
    momentum: Callable[[Params, TimeBase], Curve | None] = lambda params, time: None
    warm: Callable[[Params, TimeBase], float] = lambda params, time: Duration.parse(params["warmup"]).steps(time)

    def curve(self, params: Params, time: TimeBase, group: str) -> Curve:
        """The LR of ``group`` as a function of the step, ``granularity`` included."""
        curve = self.steps(params, time, group)
        return hold(curve, time.steps_per_epoch) if params.get("granularity") == "epoch" else curve


LR = Key(number(0, 1e6, above=True))
FRACTION = number(0, 1)
FACTOR = number(0, 1e3, above=True)
POWER = Key(number(0, 100, above=True), 1.0)
ETA_MIN = Key(number(0, 1e6), 0.0)
GRANULARITY = Key(values.choice("step", "epoch"), "step")
LENGTH_OF_RUN = Key(values.optional(values.positive_duration), None)
WARMUP = {"warmup": Key(values.duration, "0ep"), "warmup_start": Key(FRACTION, 0.0)}
COMMON = {"lr": LR, **WARMUP, "granularity": GRANULARITY}
#: The trainer's warm-up: the LR of the bias group falls, and the momentum rises, while the LR of the others rises.
TRAINER: Mapping[str, Key] = {
    "warmup": Key(values.duration, "3ep"),
    "warmup_bias_lr": Key(number(0, 1e6), 0.1),
    "warmup_momentum": Key(number(0, 1, below=True), 0.8),
    "momentum": Key(number(0, 1, below=True), 0.937),
}


def _keys(**keys: Key) -> Callable[[Params], Mapping[str, Key]]:
    return lambda given: {**COMMON, **keys}


def _decay(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise ScheduleError(f"{what}: {shorten(value)} is not known; expected {', '.join(SHAPES)} or an expression")
    text = value.strip()
    shape(text, floor=1.0)
    return text


def _shaped(given: Params, decay: str, floor: float) -> dict[str, Key]:
    """The parameters decay, floor and power. Floor and power have no effect beside a decay that is an expression."""
    chosen = str(given.get("decay", decay)).strip()
    fraction = number(0, 1, above=True) if chosen in NEEDS_FLOOR else FRACTION
    if chosen in SHAPES:
        return {"decay": Key(_decay, decay), "floor": Key(fraction, floor), "power": POWER}
    ignored = Key(values.without_effect, values.NO_EFFECT)
    return {"decay": Key(_decay, decay), "floor": ignored, "power": ignored}


def _cawb_keys(given: Params) -> Mapping[str, Key]:
    modes = values.choice("clean", "article", "reference")
    mode = modes("mode", given.get("mode", "clean"))
    keys = {
        "lr": LR,
        "mode": Key(modes, "clean"),
        "steps": Key(values.list_of(values.position), []),
        "step_scale": Key(values.list_of(FACTOR, or_single=True) if mode == "clean" else FACTOR, 0.8),
        "epoch_scale": Key(number(-1e6, 1e6) if mode == "reference" else number(0, 1e6, above=True), 1.0),
        "warmup": WARMUP["warmup"],
        **_shaped(given, "cosine", 0.05),
    }
    if mode == "reference":
        keys["last_epoch"] = Key(values.whole(0, 10**9), 0)
    if mode != "clean":
        if "warmup_kind" in given:
            raise ScheduleError(
                f"cawb: warmup_kind: mode {mode} has a warm-up of its own; remove warmup_kind, or use mode: clean"
            )
        return keys
    kind = values.choice("lr", "trainer")
    keys |= {"warmup_kind": Key(kind, "lr"), "granularity": GRANULARITY}
    trainers = kind("cawb: warmup_kind", given.get("warmup_kind", "lr")) == "trainer"
    keys |= TRAINER if trainers else {"warmup_start": WARMUP["warmup_start"]}
    if given.get("horizon") is None:
        return {**keys, "horizon": Key(values.optional(values.horizon), None)}
    if given.get("epoch_scale") is not None:
        raise ScheduleError("cawb: horizon: given beside epoch_scale; expected only one of the two")
    del keys["epoch_scale"]
    return {**keys, "horizon": Key(values.list_of(values.horizon, or_single=True))}


def _warm(params: Params, time: TimeBase) -> float:
    """The length of the warm-up in steps. Raises ScheduleError unless it is shorter than the run."""
    warm = Duration.parse(params["warmup"]).steps(time)
    if warm >= time.steps:
        raise ScheduleError(
            f"warmup: {params['warmup']} leaves nothing of a run of {time.epochs} epochs; expected a shorter one"
        )
    return warm


def _after_warmup(params: Params, time: TimeBase, curve: Curve) -> Curve:
    """The warm-up, a line from warmup_start * lr to lr, and then ``curve`` from its step 0."""
    warm, lr = _warm(params, time), params["lr"]
    return warmup_lerp(sequence([curve], [warm]), warm, params["warmup_start"] * lr, lr)


def _length(params: Params, key: str, time: TimeBase) -> float:
    """The duration ``params[key]`` in steps, at least 1. For null it is the run after the warm-up."""
    if params[key] is None:
        return time.steps - _warm(params, time)
    steps = Duration.parse(params[key]).steps(time)
    if steps < 1:
        raise ScheduleError(f"{key}: {params[key]} is {steps:g} steps; expected at least one step")
    return steps


def _on_grid(steps: FloatArray, params: Params, time: TimeBase) -> list[int]:
    """``steps`` as whole steps; with ``granularity: epoch`` as the first steps of epochs. Rounded up."""
    every = time.steps_per_epoch if params["granularity"] == "epoch" else 1
    return sorted({int(step) for step in np.ceil(steps / every) * every})


def _constant(params: Params, time: TimeBase, group: str) -> Curve:
    return _after_warmup(params, time, lambda k: np.full_like(k, params["lr"]))


def _cosine(params: Params, time: TimeBase, group: str) -> Curve:
    low, period = params["eta_min"], _length(params, "T_max", time)
    return _after_warmup(params, time, lambda k: low + (params["lr"] - low) * (1 + np.cos(math.pi * k / period)) / 2)


def _polynomial(params: Params, time: TimeBase, group: str) -> Curve:
    curve = segment(shape("polynomial", 0.0, params["power"]), _length(params, "total_iters", time))
    return _after_warmup(params, time, lambda k: params["lr"] * curve(k))


def _exponential(params: Params, time: TimeBase, group: str) -> Curve:
    return _after_warmup(params, time, lambda k: params["lr"] * params["gamma"] ** (k / time.steps_per_epoch))


def _cycle_starts(first: float, growth: float, end: float) -> FloatArray:
    """The first steps, below ``end``, of cycles of ``first``, ``first * growth``, ``first * growth^2`` ... steps."""
    if growth == 1.0:
        return np.arange(0.0, end, first)
    starts = [0.0]
    while starts[-1] + first < end:
        starts.append(starts[-1] + first)
        first *= growth
    return np.asarray(starts)


def _warm_restarts(params: Params, time: TimeBase, group: str) -> Curve:
    first, growth, lr = _length(params, "T_0", time), params["T_mult"], float(params["lr"])
    cosine, low = shape("cosine"), float(params["eta_min"]) / lr

    def cycles(k: FloatArray) -> FloatArray:
        length: FloatArray | float
        if growth == 1.0:  # The branch below rounds otherwise, and prefix keys of stored states depend on every bit.
            index = np.floor(k / first)
            begun, length = index * first, first
        else:
            starts = _cycle_starts(first, growth, float(k.max(initial=0.0)) + 1.0)
            index = np.searchsorted(starts, k, side="right") - 1
            begun = starts[index]
            length = np.append(np.diff(starts), first * growth ** (len(starts) - 1))[index]
        height = np.power(params["step_scale"], index.astype(np.float64)) - low
        return lr * (low + height * cosine(k - begun, length))

    return _after_warmup(params, time, cycles)


def _warm_restarts_marks(params: Params, time: TimeBase) -> list[int]:
    warm = _warm(params, time)
    starts = _cycle_starts(_length(params, "T_0", time), params["T_mult"], time.steps - warm)[1:]
    return _on_grid(starts + warm, params, time)


def _boundaries(params: Params, time: TimeBase) -> FloatArray:
    return np.sort([Duration.parse(boundary).steps(time) for boundary in params["boundaries"]])


def _multistep(params: Params, time: TimeBase, group: str) -> Curve:
    """lr gamma^n (warmup_start (1-a) + a), n boundaries at or before step k, a = min(k/W, 1): the warm-up is a factor,
    as in PaddlePaddle and timm."""
    edges, warm, start = _boundaries(params, time), _warm(params, time), float(params["warmup_start"])
    levels: FloatArray = np.asarray([params["lr"] * params["gamma"] ** i for i in range(len(edges) + 1)])

    def stairs(k: FloatArray) -> FloatArray:
        a = np.minimum(k / warm, 1.0) if warm else 1.0
        return levels[np.searchsorted(edges, k, side="right")] * (start * (1 - a) + a)

    return stairs


def _multistep_marks(params: Params, time: TimeBase) -> list[int]:
    return [] if params["gamma"] == 1 else _on_grid(_boundaries(params, time), params, time)


def _onecycle(params: Params, time: TimeBase, group: str) -> Curve:
    low = params["lr"] / params["div_factor"]
    return _onecycle_between(params, time, low, params["lr"], low / params["final_div_factor"])


def _onecycle_momentum(params: Params, time: TimeBase) -> Curve | None:
    high, low = params["max_momentum"], params["base_momentum"]
    if (high is None) != (low is None):
        raise ScheduleError("onecycle: only one of base_momentum and max_momentum is given; expected both or none")
    return None if high is None else _onecycle_between(params, time, high, low, high)


def _onecycle_between(params: Params, time: TimeBase, start: float, top: float, end: float) -> Curve:
    """From ``start`` to ``top`` and down to ``end``, with ``three_phase`` down to ``start`` and then to ``end``."""
    total, peak = time.steps, params["pct_start"] * time.steps
    edges, levels = [0.0, peak - 1, total - 1.0], [start, top, end]
    if params["three_phase"]:
        edges, levels = [0.0, peak - 1, 2 * peak - 2, total - 1.0], [start, top, start, end]
    if any(b <= a for a, b in pairwise(edges)):
        raise ScheduleError(
            f"onecycle: pct_start: {params['pct_start']} leaves a phase of a run of {total} steps without a step; "
            "expected a value nearer to 0.5, or a longer run"
        )
    ease = shape("cosine" if params["anneal"] == "cos" else "linear")

    def phase(length: float, before: float, after: float) -> Curve:
        down = segment(ease, length)
        return lambda k: after + (before - after) * down(k)

    pieces = zip(pairwise(edges), pairwise(levels), strict=True)
    return sequence([phase(b - a, before, after) for (a, b), (before, after) in pieces], edges[:-1])


def _wsd(params: Params, time: TimeBase, group: str) -> Curve:
    warm, length, lr = _warm(params, time), _length(params, "decay_length", time), params["lr"]
    if warm + length > time.steps:
        raise ScheduleError(
            f"wsd: decay_length: {params['decay_length']} and the warm-up of {params['warmup']} are longer than "
            f"the run of {time.epochs} epochs; expected a shorter one"
        )
    decay = shape(params["decay"], params.get("floor", 0.0), params.get("power", 1.0))
    curve = sequence(
        [np.ones_like, segment(decay, length, unit=time.steps_per_epoch)], [0.0, time.steps - length - warm]
    )
    return _after_warmup(params, time, lambda k: lr * curve(k))


def _yolo(decay: str) -> Family:
    """Ultralytics' own schedule. Source: ultralytics/engine/trainer.py, _setup_scheduler and _do_train."""

    def steps(params: Params, time: TimeBase, group: str) -> Curve:
        unit, start = time.steps_per_epoch, params["warmup_bias_lr"] if group == "bias" else 0.0
        stairs = hold(segment(shape(decay, params["lrf"]), time.steps, unit=unit), unit)
        return warmup_lerp(lambda k: params["lr"] * stairs(k), cawb.trainers_warmup(params, time), start)

    return Family(
        lambda given: {"lr": LR, "lrf": Key(FRACTION, 0.01), **TRAINER},
        steps,
        groups=lambda params: ("bias",),
        momentum=_trainers_momentum,
        warm=cawb.trainers_warmup,
    )


def _trainers_momentum(params: Params, time: TimeBase) -> Curve:
    """The momentum: a line from ``warmup_momentum`` to ``momentum`` over the warm-up, then ``momentum``."""
    warm = cawb.trainers_warmup(params, time)
    return warmup_lerp(lambda k: np.full_like(k, params["momentum"]), warm, params["warmup_momentum"])


_MOMENTUM = Key(values.optional(number(0, 1, below=True)), None)
_ONECYCLE = {
    "lr": LR,
    "pct_start": Key(number(0, 1, above=True, below=True), 0.3),
    "anneal": Key(values.choice("cos", "linear"), "cos"),
    "div_factor": Key(number(0, 1e9, above=True), 25.0),
    "final_div_factor": Key(number(0, 1e9, above=True), 1e4),
    "three_phase": Key(values.flag, False),
    "base_momentum": _MOMENTUM,
    "max_momentum": _MOMENTUM,
    "granularity": GRANULARITY,
}

FAMILIES: dict[str, Family] = {
    "cawb": Family(
        _cawb_keys,
        cawb.curve,
        cawb.marks,
        groups=lambda params: ("bias",) if cawb.has_trainers_warmup(params) else (),
        momentum=lambda params, time: _trainers_momentum(params, time) if cawb.has_trainers_warmup(params) else None,
        warm=cawb.warm,
    ),
    "cosine": Family(_keys(T_max=LENGTH_OF_RUN, eta_min=ETA_MIN), _cosine),
    "warm_restarts": Family(
        _keys(
            T_0=Key(values.positive_duration),
            T_mult=Key(number(1, 1e3), 1.0),
            step_scale=Key(FACTOR, 1.0),
            eta_min=ETA_MIN,
        ),
        _warm_restarts,
        _warm_restarts_marks,
    ),
    "multistep": Family(
        _keys(boundaries=Key(values.list_of(values.position)), gamma=Key(FACTOR, 0.1)), _multistep, _multistep_marks
    ),
    "yolo_linear": _yolo("linear"),
    "yolo_cosine": _yolo("cosine"),
    "onecycle": Family(
        lambda given: _ONECYCLE,
        _onecycle,
        momentum=_onecycle_momentum,
        warm=lambda params, time: params["pct_start"] * time.steps,
    ),
    "wsd": Family(
        lambda given: {
            **COMMON,
            "decay_length": Key(values.positive_duration, "0.2dur"),
            **_shaped(given, "linear", 0.0),
        },
        _wsd,
    ),
    "polynomial": Family(_keys(total_iters=LENGTH_OF_RUN, power=POWER), _polynomial),
    "exponential": Family(_keys(gamma=Key(FACTOR)), _exponential),
    "constant": Family(_keys(), _constant),
}
