"""The combinators: a curve maps optimizer steps (float64, not negative) to values; schedules are built by joining."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sweeper.schedules.decay import Shape, shape
from sweeper.schedules.time import Duration, FloatArray, TimeBase

Curve = Callable[[FloatArray], FloatArray]


def segment(shape: Shape, length: float, period: float | None = None, unit: float = 1.0) -> Curve:
    """``shape`` walked over ``period`` steps and cut after ``length``; held where either ends.

    A period that is not the length is CAWB's stretch. ``unit``: steps per epoch, where the shape counts epochs.

    >>> from sweeper.schedules.decay import shape
    >>> segment(shape("linear"), 4, period=8)(np.array([0.0, 4.0, 5.0])).tolist()
    [1.0, 0.5, 0.5]
    """
    walk = length if period is None else period
    return lambda k: shape(np.clip(k, 0.0, min(length, walk)) / unit, walk / unit)


def sequence(curves: Sequence[Curve], starts: Sequence[float]) -> Curve:
    """``curves[i]`` from step ``starts[i]`` on, each counting from its own start; the last goes on for ever.

    ``starts`` ascend; the first is where the sequence begins (earlier steps see it at 0).

    >>> ramp = lambda k: k
    >>> sequence([ramp, ramp], [0, 3])(np.arange(5.0)).tolist()
    [0.0, 1.0, 2.0, 0.0, 1.0]
    """

    def joined(k: FloatArray) -> FloatArray:
        out = np.empty_like(k)
        piece = np.searchsorted(np.asarray(starts[1:], np.float64), k, side="right")
        if np.all(np.diff(piece) >= 0):  # time runs forward: slices, without a mask for each piece
            edges = np.searchsorted(piece, np.arange(len(curves) + 1))
            where: list[Any] = [slice(a, b) for a, b in pairwise(edges)]
        else:
            where = [np.flatnonzero(piece == i) for i in range(len(curves))]
        for part, curve, start in zip(where, curves, starts, strict=True):
            out[part] = curve(np.maximum(k[part] - start, 0.0))
        return out

    return joined


def scale(curve: Curve, factor: float) -> Curve:
    """``factor`` times ``curve``.

    >>> scale(lambda k: k, 0.5)(np.array([0.0, 4.0])).tolist()
    [0.0, 2.0]
    """
    return lambda k: factor * curve(k)


def repeat(shape: Shape, period: float, growth: float = 1.0, factor: float = 1.0, low: float = 0.0) -> Curve:
    """``shape`` (1 to 0) over ``period`` steps, again and again: every cycle ``growth`` (>= 1) times as long and its
    peak ``factor`` times as high above 0; the bottom stays at ``low``. At 1 = the first peak.

    >>> from sweeper.schedules.decay import shape
    >>> repeat(shape("linear"), 2, growth=2, factor=0.5)(np.arange(7.0)).tolist()
    [1.0, 0.5, 0.5, 0.375, 0.25, 0.125, 0.25]
    """

    def cycles(k: FloatArray) -> FloatArray:
        starts = cycle_starts(period, growth, float(k.max(initial=0.0)) + 1.0)
        if growth == 1.0:
            number = np.floor(k / period)
            return low + (factor**number - low) * shape(k - number * period, period)
        index = np.searchsorted(starts, k, side="right") - 1
        lengths, peaks = np.diff(np.append(starts, np.inf)), np.power(factor, np.arange(len(starts), dtype=np.float64))
        lengths[-1] = period * growth ** (len(starts) - 1)
        return low + (peaks[index] - low) * shape(k - starts[index], lengths[index])

    return cycles


def cycle_starts(period: float, growth: float, end: float) -> FloatArray:
    """Steps below ``end`` at which the cycles of :func:`repeat` begin: 0, period, period(1+growth) ...

    >>> cycle_starts(5, 2, 40).tolist(), cycle_starts(5, 1, 15).tolist()
    ([0.0, 5.0, 15.0, 35.0], [0.0, 5.0, 10.0])
    """
    if growth == 1.0:
        return np.arange(0.0, end, period)
    starts = [0.0]
    while starts[-1] + period < end:
        starts.append(starts[-1] + period)
        period *= growth
    return np.asarray(starts)


def warmup_prefix(curve: Curve, length: float, start: float, peak: float) -> Curve:
    """A line from ``start * peak`` to ``peak`` over ``length`` steps, and then ``curve`` from its own step 0.

    torch: SequentialLR([LinearLR(start, total_iters=length), curve], [length]).

    >>> warmup_prefix(lambda k: 1 - k / 10, 2, 0.0, 1.0)(np.arange(4.0)).tolist()
    [0.0, 0.5, 1.0, 0.9]
    """
    return warmup_lerp(sequence([curve], [length]), length, start * peak, peak)


def warmup_overlay(curve: Curve, length: float, start: float) -> Curve:
    """``curve`` times start(1-a) + a with a = k/length: time runs on below the warm-up (timm, PaddlePaddle).

    >>> warmup_overlay(lambda k: 1 - k / 10, 2, 0.5)(np.arange(4.0)).round(3).tolist()
    [0.5, 0.675, 0.8, 0.7]
    """
    if length <= 0:
        return curve

    def overlaid(k: FloatArray) -> FloatArray:
        a = np.minimum(k / length, 1.0)
        return curve(k) * (start * (1 - a) + a)

    return overlaid


def warmup_lerp(curve: Curve, length: float, start: float, target: float | None = None) -> Curve:
    """From ``start`` (a value) to ``target`` over ``length`` steps; without ``target``, to where ``curve`` is at that
    moment, a moving target (Ultralytics).

    >>> warmup_lerp(lambda k: 1 - k / 10, 2, 0.0)(np.arange(4.0)).tolist()
    [0.0, 0.45, 0.8, 0.7]
    """
    if length <= 0:
        return curve

    def lerped(k: FloatArray) -> FloatArray:
        out = np.array(curve(k))
        rising = k < length
        out[rising] = start + ((out[rising] if target is None else target) - start) * (k[rising] / length)
        return out

    return lerped


def piecewise(boundaries: Sequence[float], values: Sequence[float]) -> Curve:
    """``values[i]``, with i the number of ``boundaries`` (any order, duplicates count) at or before the step.

    >>> piecewise([2, 3], [1.0, 0.1, 0.01])(np.arange(4.0)).tolist()
    [1.0, 1.0, 0.1, 0.01]
    """
    edges, levels = np.sort(np.asarray(boundaries, np.float64)), np.asarray(values, np.float64)
    return lambda k: levels[np.searchsorted(edges, k, side="right")]


def quantise(curve: Curve, every: float, lag: int = 0) -> Curve:
    """``curve`` held over each ``every`` steps at its value on their first step, ``lag`` such holds late.

    >>> quantise(lambda k: k, 2)(np.arange(5.0)).tolist(), quantise(lambda k: k, 2, lag=1)(np.arange(5.0)).tolist()
    ([0.0, 0.0, 2.0, 2.0, 4.0], [0.0, 0.0, 0.0, 0.0, 2.0])
    """

    def held(k: FloatArray) -> FloatArray:
        return curve(np.maximum((np.floor(k / every) - lag) * every, 0.0))

    return held


# What Ultralytics 8.4.190 does by default. Source: ultralytics/engine/trainer.py, _setup_scheduler,
# _get_warmup_iterations and the warm-up of _do_train.


def warmup_iterations(params: Mapping[str, Any], time: TimeBase) -> int:
    """round(min(warmup, epochs - 1) * steps per epoch): the last epoch is never warm-up. Python's round, half to even.

    >>> warmup_iterations({"warmup": "3ep"}, TimeBase(2, 7))
    7
    """
    return round(min(Duration.parse(params["warmup"]).epochs(time), time.epochs - 1) * time.steps_per_epoch)


def yolo_curve(decay: str) -> Callable[[Mapping[str, Any], TimeBase, str], Curve]:
    """lr f(epoch), f from 1 to lrf over the run; in the first W steps a lerp from 0 (group bias: warmup_bias_lr) to it.

    >>> params = {"lr": 0.01, "lrf": 0.01, "warmup": "1ep", "warmup_bias_lr": 0.1}
    >>> yolo_curve("linear")(params, TimeBase(3, 2), "main")(np.arange(6.0)).round(5).tolist()
    [0.0, 0.005, 0.0067, 0.0067, 0.0034, 0.0034]
    """

    def curve(params: Mapping[str, Any], time: TimeBase, group: str) -> Curve:
        nb, start = time.steps_per_epoch, params["warmup_bias_lr"] if group == "bias" else 0.0
        held = quantise(segment(shape(decay, params["lrf"]), time.steps, unit=nb), nb)
        return warmup_lerp(scale(held, params["lr"]), warmup_iterations(params, time), start)

    return curve


def yolo_momentum(params: Mapping[str, Any], time: TimeBase) -> Curve:
    """From warmup_momentum to momentum over the warm-up, then momentum.

    >>> params = {"warmup": "1ep", "warmup_momentum": 0.8, "momentum": 0.9}
    >>> yolo_momentum(params, TimeBase(3, 2))(np.arange(4.0)).round(3).tolist()
    [0.8, 0.85, 0.9, 0.9]
    """
    held: Curve = lambda k: np.full_like(k, params["momentum"])  # noqa: E731
    return warmup_lerp(held, warmup_iterations(params, time), params["warmup_momentum"])
