"""The named families: what each is called with, its curve, and where it breaks. A dict of them is the registry.

``lr`` is the base (required), durations are ``3ep``, ``4000it``, ``256000img`` or ``0.02dur``, a plain number is in
epochs. k counts optimizer steps since the end of the warm-up, T is a duration in steps. All but yolo_* and onecycle
take ``warmup`` (a line from ``warmup_start`` * lr to lr before the curve begins; multistep: over it) and, but for
yolo_*, ``granularity``: step, or epoch to hold the value of each epoch's first step.

============== ====================================================================================================
cawb           see :mod:`sweeper.schedules.cawb`; ``warmup_kind: trainer``: with the warm-up of bias LR and momentum
               that yolo_* have
cosine         eta_min + (lr - eta_min)(1 + cos(pi k/T_max))/2; mirrors back up past T_max (torch CosineAnnealingLR)
warm_restarts  the same again and again, cycle i of T_0 T_mult^i steps from lr step_scale^i (torch
               CosineAnnealingWarmRestarts; Loshchilov & Hutter, SGDR, 2017)
multistep      lr gamma^n, n boundaries at or before the step, not shifted by the warm-up (torch MultiStepLR, Paddle)
yolo_*         what Ultralytics 8.4.190 does by default, see :func:`sweeper.schedules.curves.yolo_curve`
onecycle       lr/div_factor up to lr at pct_start, down to lr/div_factor/final_div_factor (torch OneCycleLR)
wsd            lr held, then ``decay`` over the last decay_length to floor * lr (the trapezoid; Haegele et al., 2024)
polynomial     lr (1 - min(k, T)/T)^power, T = total_iters (torch PolynomialLR)
exponential    lr gamma^t, t in epochs (torch ExponentialLR, stepped once an epoch)
constant       lr
============== ====================================================================================================

>>> from sweeper.schedules import TimeBase, parse
>>> def shown(**spec):
...     return parse({"lr": 1, **spec}).values(TimeBase(3, 2)).round(3).tolist()
>>> shown(family="wsd", warmup="2it", decay_length=1)
[0.0, 0.5, 1.0, 1.0, 1.0, 0.5]
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sweeper.errors import ScheduleError
from sweeper.schedules import cawb, checks
from sweeper.schedules.checks import Key, number
from sweeper.schedules.curves import (
    Curve,
    cycle_starts,
    piecewise,
    quantise,
    repeat,
    scale,
    segment,
    sequence,
    warmup_iterations,
    warmup_overlay,
    warmup_prefix,
    yolo_curve,
    yolo_momentum,
)
from sweeper.schedules.decay import NEEDS_FLOOR, SHAPES, shape
from sweeper.schedules.time import Duration, FloatArray, TimeBase

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What a family consists of; ``time`` is the run's time base and ``params`` are checked parameters.

    ``keys(given)``: its parameters, which may depend on one given (CAWB's mode). ``steps(params, time, group)``: the LR
    by the optimizer step. ``marks``: steps at which the curve breaks. ``groups``: the groups that the family itself
    treats differently. ``momentum``: the momentum's curve, if the family drives it. ``warm``: steps of the warm-up.
    """

    keys: Callable[[Params], Mapping[str, Key]]
    steps: Callable[[Params, TimeBase, str], Curve]
    marks: Callable[[Params, TimeBase], list[int]] = lambda params, time: []
    groups: Callable[[Params], tuple[str, ...]] = lambda params: ()
    momentum: Callable[[Params, TimeBase], Curve | None] = lambda params, time: None
    warm: Callable[[Params, TimeBase], float] = lambda params, time: Duration.parse(params["warmup"]).steps(time)

    def curve(self, params: Params, time: TimeBase, group: str) -> Curve:
        """The LR; ``granularity: epoch`` holds the value of each epoch's first step."""
        curve = self.steps(params, time, group)
        return quantise(curve, time.steps_per_epoch) if params.get("granularity") == "epoch" else curve


LR = Key(number(0, 1e6, above=True))
FRACTION = number(0, 1)
GRANULARITY = Key(checks.choice("step", "epoch"), "step")
WARMUP = {"warmup": Key(checks.duration, "0ep"), "warmup_start": Key(FRACTION, 0.0)}
COMMON = {"lr": LR, **WARMUP, "granularity": GRANULARITY}
FACTOR = number(0, 1e3, above=True)
ETA_MIN = Key(number(0, 1e6), 0.0)
YOLO_KEYS: Mapping[str, Key] = {
    "lrf": Key(number(0, 1), 0.01),
    "warmup": Key(checks.duration, "3ep"),
    "warmup_bias_lr": Key(number(0, 1e6), 0.1),
    "warmup_momentum": Key(number(0, 1, below=True), 0.8),
    "momentum": Key(number(0, 1, below=True), 0.937),
}


def _plain(**keys: Key) -> Callable[[Params], Mapping[str, Key]]:
    return lambda given: {**COMMON, **keys}


def _shaped(given: Params, decay: str, floor: float) -> dict[str, Key]:
    """decay, and the floor and power that it uses; an expression has its own."""
    chosen = str(given.get("decay", decay)).strip()
    if chosen not in SHAPES:
        idle = Key(checks.idle, checks.IDLE)
        return {"decay": Key(checks.decay, decay), "floor": idle, "power": idle}
    positive = number(0, 1, above=True) if chosen in NEEDS_FLOOR else FRACTION
    power = Key(number(0, 100, above=True), 1.0)
    return {"decay": Key(checks.decay, decay), "floor": Key(positive, floor), "power": power}


def _cawb_keys(given: Params) -> Mapping[str, Key]:
    mode = checks.choice("clean", "article", "reference")("mode", given.get("mode", "clean"))
    keys = {
        "lr": LR,
        "mode": Key(checks.choice("clean", "article", "reference"), "clean"),
        "steps": Key(checks.listed(checks.point), []),
        "step_scale": Key(checks.listed(FACTOR, or_one=True) if mode == "clean" else FACTOR, 0.8),
        "epoch_scale": Key(number(-1e6, 1e6) if mode == "reference" else number(0, 1e6, above=True), 1.0),
        "warmup": WARMUP["warmup"],
        **_shaped(given, "cosine", 0.05),
    }
    if mode == "reference":
        keys["last_epoch"] = Key(checks.whole(0, 10**9), 0)
    if mode != "clean" and "warmup_kind" in given:
        raise ScheduleError(f"cawb: warmup_kind: mode {mode} has a warm-up of its own; take it out, or mode: clean")
    if mode == "clean":
        kind = checks.choice("lr", "trainer")
        keys |= {"warmup_kind": Key(kind, "lr"), "granularity": GRANULARITY}
        if kind("cawb: warmup_kind", given.get("warmup_kind", "lr")) == "trainer":
            keys |= {name: YOLO_KEYS[name] for name in ("warmup", "warmup_bias_lr", "warmup_momentum", "momentum")}
        else:
            keys["warmup_start"] = WARMUP["warmup_start"]
        if given.get("horizon") is not None:
            if given.get("epoch_scale") is not None:
                raise ScheduleError("cawb: horizon: given beside epoch_scale; expected one of the two, take one out")
            del keys["epoch_scale"]
            keys["horizon"] = Key(checks.listed(checks.horizon, or_one=True))
        else:
            keys["horizon"] = Key(checks.optional(checks.horizon), None)
    return keys


def _cawb(params: Params, time: TimeBase, group: str) -> Curve:
    return cawb.clean(params, time, group) if params["mode"] == "clean" else cawb.loop(params, time)


def _cawb_marks(params: Params, time: TimeBase) -> list[int]:
    return cawb.clean_marks(params, time) if params["mode"] == "clean" else cawb.loop_marks(params, time)


def _warm(params: Params, time: TimeBase) -> float:
    """The warm-up in steps, shorter than the run."""
    warm = Duration.parse(params["warmup"]).steps(time)
    if warm >= time.steps:
        raise ScheduleError(f"warmup: {params['warmup']} leaves nothing of a run of {time.epochs} epochs; shorten it")
    return warm


def _prefixed(params: Params, time: TimeBase, curve: Curve) -> Curve:
    return warmup_prefix(curve, _warm(params, time), params["warmup_start"], params["lr"])


def _length(params: Params, key: str, time: TimeBase) -> float:
    """A duration in steps, at least 1; null: what the warm-up leaves of the run."""
    if params[key] is None:
        return time.steps - _warm(params, time)
    steps = Duration.parse(params[key]).steps(time)
    if steps < 1:
        raise ScheduleError(f"{key}: {params[key]} is {steps:g} steps; expected at least one step")
    return steps


def _constant(params: Params, time: TimeBase, group: str) -> Curve:
    return _prefixed(params, time, lambda k: np.full_like(k, params["lr"]))


def _cosine(params: Params, time: TimeBase, group: str) -> Curve:
    """eta_min + (lr - eta_min)(1 + cos(pi k/T_max))/2: past T_max it mirrors back up, it does not restart."""
    low, period = params["eta_min"], _length(params, "T_max", time)
    return _prefixed(params, time, lambda k: low + (params["lr"] - low) * (1 + np.cos(math.pi * k / period)) / 2)


def _warm_restarts(params: Params, time: TimeBase, group: str) -> Curve:
    """Cycle i lasts T_0 T_mult^i and falls from lr step_scale^i to eta_min along a cosine."""
    low = params["eta_min"] / params["lr"]
    curve = repeat(shape("cosine"), _length(params, "T_0", time), params["T_mult"], params["step_scale"], low)
    return _prefixed(params, time, scale(curve, params["lr"]))


def _warm_restarts_marks(params: Params, time: TimeBase) -> list[int]:
    warm = _warm(params, time)
    starts = cycle_starts(_length(params, "T_0", time), params["T_mult"], time.steps - warm)[1:]
    return _on_grid(starts + warm, params, time)


def _multistep(params: Params, time: TimeBase, group: str) -> Curve:
    """lr gamma^n (warmup_start (1-a) + a), n boundaries at or before the step, a = min(k/W, 1); boundaries absolute."""
    edges = [Duration.parse(b).steps(time) for b in params["boundaries"]]
    levels = [params["lr"] * params["gamma"] ** i for i in range(len(edges) + 1)]
    return warmup_overlay(piecewise(edges, levels), _warm(params, time), params["warmup_start"])


def _multistep_marks(params: Params, time: TimeBase) -> list[int]:
    if params["gamma"] == 1:
        return []
    return _on_grid(np.asarray([Duration.parse(b).steps(time) for b in params["boundaries"]]), params, time)


def _on_grid(steps: FloatArray, params: Params, time: TimeBase) -> list[int]:
    hold = time.steps_per_epoch if params["granularity"] == "epoch" else 1
    return sorted({int(step) for step in np.ceil(steps / hold) * hold})


def _onecycle(params: Params, time: TimeBase, group: str) -> Curve:
    """torch OneCycleLR over the run: from lr/div_factor up to lr, down to lr/div_factor/final_div_factor."""
    top, bottom = params["lr"], params["lr"] / params["div_factor"]
    return _onecycle_between(params, time, bottom, top, bottom / params["final_div_factor"])


def _onecycle_momentum(params: Params, time: TimeBase) -> Curve | None:
    high, low = params["max_momentum"], params["base_momentum"]
    if (high is None) != (low is None):
        raise ScheduleError("onecycle: base_momentum and max_momentum go together; give both or none")
    return None if high is None else _onecycle_between(params, time, high, low, high)


def _onecycle_between(params: Params, time: TimeBase, start: float, top: float, end: float) -> Curve:
    total = time.steps
    peak, values = params["pct_start"] * total - 1, [start, top, end]
    edges = [0.0, peak, total - 1.0]
    if params["three_phase"]:
        edges, values = [0.0, peak, 2 * params["pct_start"] * total - 2, total - 1.0], [start, top, start, end]
    if any(b <= a for a, b in pairwise(edges)):
        raise ScheduleError(
            f"onecycle: pct_start: {params['pct_start']} leaves a phase of a run of {total} steps without a step; "
            "expected one nearer the middle, or a longer run"
        )
    ease = shape("cosine" if params["anneal"] == "cos" else "linear")
    parts: list[Curve] = []
    for a, b, low, high in zip(edges, edges[1:], values, values[1:], strict=False):
        down = segment(ease, b - a)
        parts.append(lambda k, down=down, a=low, b=high: b + (a - b) * down(k))  # type: ignore[misc]
    return sequence(parts, edges[:-1])


def _wsd(params: Params, time: TimeBase, group: str) -> Curve:
    """Warm-up, the LR held, and a decay over the last ``decay_length`` to floor lr (the trapezoid)."""
    warm, length = _warm(params, time), _length(params, "decay_length", time)
    if warm + length > time.steps:
        raise ScheduleError(
            f"wsd: decay_length: {params['decay_length']} and the warm-up of {params['warmup']} are longer than "
            f"the run of {time.epochs} epochs; shorten one"
        )
    decay = shape(params["decay"], params.get("floor", 0.0), params.get("power", 1.0))
    held = time.steps - length - warm
    parts = [scale(c, params["lr"]) for c in (np.ones_like, segment(decay, length, None, time.steps_per_epoch))]
    return _prefixed(params, time, sequence(parts, [0.0, held]))


def _polynomial(params: Params, time: TimeBase, group: str) -> Curve:
    """lr (1 - min(k, T)/T)^power, T = total_iters."""
    curve = segment(shape("polynomial", 0.0, params["power"]), _length(params, "total_iters", time))
    return _prefixed(params, time, scale(curve, params["lr"]))


def _exponential(params: Params, time: TimeBase, group: str) -> Curve:
    """lr gamma^t, t in epochs since the warm-up."""
    return _prefixed(params, time, lambda k: params["lr"] * params["gamma"] ** (k / time.steps_per_epoch))


_BIAS = ("bias",)
_RUN = Key(checks.optional(checks.length), None)
_MOMENTUM = Key(checks.optional(number(0, 1, below=True)), None)
_ONECYCLE = {
    "lr": LR,
    "pct_start": Key(number(0, 1, above=True, below=True), 0.3),
    "anneal": Key(checks.choice("cos", "linear"), "cos"),
    "div_factor": Key(number(0, 1e9, above=True), 25.0),
    "final_div_factor": Key(number(0, 1e9, above=True), 1e4),
    "three_phase": Key(checks.flag, False),
    "base_momentum": _MOMENTUM,
    "max_momentum": _MOMENTUM,
    "granularity": GRANULARITY,
}
_WARM_RESTARTS = {
    "T_0": Key(checks.length),
    "T_mult": Key(number(1, 1e3), 1.0),
    "step_scale": Key(FACTOR, 1.0),
    "eta_min": ETA_MIN,
}
_MULTISTEP = {"boundaries": Key(checks.listed(checks.point)), "gamma": Key(FACTOR, 0.1)}


def _yolo(decay: str) -> Family:
    return Family(
        lambda given: {"lr": LR, **YOLO_KEYS},
        yolo_curve(decay),
        groups=lambda params: _BIAS,
        momentum=yolo_momentum,
        warm=warmup_iterations,
    )


FAMILIES: dict[str, Family] = {
    "cawb": Family(
        _cawb_keys,
        _cawb,
        _cawb_marks,
        groups=lambda params: _BIAS if cawb.as_trainer(params) else (),
        momentum=lambda params, time: yolo_momentum(params, time) if cawb.as_trainer(params) else None,
        warm=cawb.warm,
    ),
    "cosine": Family(_plain(T_max=_RUN, eta_min=ETA_MIN), _cosine),
    "warm_restarts": Family(_plain(**_WARM_RESTARTS), _warm_restarts, _warm_restarts_marks),
    "multistep": Family(_plain(**_MULTISTEP), _multistep, _multistep_marks),
    "yolo_linear": _yolo("linear"),
    "yolo_cosine": _yolo("cosine"),
    "onecycle": Family(
        lambda given: _ONECYCLE,
        _onecycle,
        momentum=_onecycle_momentum,
        warm=lambda params, time: params["pct_start"] * time.steps,
    ),
    "wsd": Family(
        lambda given: {**COMMON, "decay_length": Key(checks.length, "0.2dur"), **_shaped(given, "linear", 0.0)}, _wsd
    ),
    "polynomial": Family(_plain(total_iters=_RUN, power=Key(number(0, 100, above=True), 1.0)), _polynomial),
    "exponential": Family(_plain(gamma=Key(FACTOR)), _exponential),
    "constant": Family(_plain(), _constant),
}
