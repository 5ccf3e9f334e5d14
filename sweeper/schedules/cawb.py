"""CAWB, cosine annealing with warm (re)booting, in its three readings: clean, article and reference.

Source: the article on CAWB and its published code (github.com/Huangdebo/CAWB, cawb.py at 542f86d).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from sweeper.errors import ScheduleError
from sweeper.schedules.curves import Curve, scale, segment, sequence, warmup_iterations, warmup_lerp
from sweeper.schedules.decay import Shape, shape
from sweeper.schedules.time import Duration, FloatArray, TimeBase

Params = Mapping[str, Any]


class Cycle(NamedTuple):
    """One cycle of the clean mode: ``start`` and ``period`` (of its decay) in steps, and its ``peak``."""

    start: float
    period: float
    peak: float


def cycles(params: Params, time: TimeBase) -> list[Cycle]:
    """The cycles of the clean mode, the first one starting where the warm-up ends.

    Raises ScheduleError for a warm-up as long as the run, a step that is not between both, and lists that do not fit.

    >>> params = {"lr": 1.0, "warmup": "1ep", "steps": [4], "step_scale": 0.5, "epoch_scale": 2.0}
    >>> cycles(params, TimeBase(6, 10))
    [Cycle(start=10.0, period=60.0, peak=1.0), Cycle(start=40.0, period=20.0, peak=0.5)]
    """
    warmed = warm(params, time)
    if warmed >= time.steps:
        raise ScheduleError(
            f"cawb: warmup: {params['warmup']} leaves nothing of a run of {time.epochs} epochs; make it shorter"
        )
    starts = [warmed, *_steps_inside(params, time, warmed)]
    peaks, periods = _peaks(params, len(starts)), _periods(params, time, [*starts, float(time.steps)])
    return [Cycle(*cycle) for cycle in zip(starts, periods, peaks, strict=True)]


def as_trainer(params: Params) -> bool:
    """Whether the warm-up is the trainer's, of bias LR and momentum, too: ``warmup_kind: trainer`` (clean mode)."""
    return params.get("warmup_kind") == "trainer"


def warm(params: Params, time: TimeBase) -> float:
    """The steps of the warm-up; the trainer's is whole and ends before the last epoch, as in yolo_*."""
    if as_trainer(params):
        return float(warmup_iterations(params, time))
    return Duration.parse(params["warmup"]).steps(time)


def _steps_inside(params: Params, time: TimeBase, warm: float) -> list[float]:
    inside = set()
    for written in params["steps"]:
        step = Duration.parse(written, "steps").steps(time)
        if not 0 < step < time.steps:
            raise ScheduleError(
                f"cawb: steps: {written} is outside the run; expected epochs above 0 and below {time.epochs}"
            )
        if step <= warm:
            raise ScheduleError(
                f"cawb: steps: {written} is not after the warm-up of {params['warmup']}; move it or shorten the warm-up"
            )
        inside.add(step)
    return sorted(inside)


def _peaks(params: Params, count: int) -> list[float]:
    factors = params["step_scale"]
    if not isinstance(factors, list):
        return [params["lr"] * factors**i for i in range(count)]
    if len(factors) not in (count - 1, count):
        raise ScheduleError(
            f"cawb: step_scale: {len(factors)} factors do not fit {count - 1} distinct steps; expected one per step, "
            "or one more in front for the first cycle"
        )
    first = [] if len(factors) == count else [1.0]
    return [float(peak) for peak in params["lr"] * np.cumprod([*first, *factors])]


def _periods(params: Params, time: TimeBase, edges: list[float]) -> list[float]:
    lengths = [b - a for a, b in pairwise(edges)]
    horizon = params.get("horizon")
    if horizon is None:
        return [params["epoch_scale"] * gap for gap in lengths[:-1]] + lengths[-1:]
    if isinstance(horizon, list) and len(horizon) != len(lengths):
        raise ScheduleError(
            f"cawb: horizon: {len(horizon)} lengths do not fit {len(lengths)} cycles; expected one each, or one for all"
        )
    each = horizon if isinstance(horizon, list) else [horizon] * len(lengths)
    return [
        time.steps - start if h == "end" else Duration.parse(h, "horizon").steps(time)
        for h, start in zip(each, edges[:-1], strict=True)
    ]


def clean(params: Params, time: TimeBase, group: str = "main") -> Curve:
    """t < w: base (start + (1-start) t/w). Then, with i steps at or before t and the i-th cycle begun at x_i:
    base s^i shape(u), u = clip((t - x_i) / period_i, 0, 1), where the period is epoch_scale times the cycle's length
    (the last cycle: 1 times), or the horizon. Past the end it stays. In the trainer's warm-up the group bias comes
    from ``warmup_bias_lr``, the others from 0.

    >>> from sweeper.schedules import TimeBase, parse
    >>> run = parse({"family": "cawb", "lr": 1, "steps": [2], "step_scale": 0.5, "floor": 0, "decay": "linear"})
    >>> run.values(TimeBase(4, 2)).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.5, 0.375, 0.25, 0.125]
    >>> run = parse({"family": "cawb", "lr": 1, "warmup": 1, "warmup_kind": "trainer", "warmup_bias_lr": 3})
    >>> run.values(TimeBase(4, 2))[:3].tolist(), run.values(TimeBase(4, 2), "bias")[:3].tolist()
    ([0.0, 0.5, 1.0], [3.0, 2.0, 1.0])
    """
    parts = cycles(params, time)
    begin, peak = parts[0].start, parts[0].peak
    if as_trainer(params):
        low = params["warmup_bias_lr"] if group == "bias" else 0.0
    else:
        low = params["warmup_start"] * peak
    return warmup_lerp(sequence([joined(params, time, parts, begin)], [begin]), begin, low, peak)


def joined(params: Params, time: TimeBase, parts: Sequence[Cycle], origin: float = 0.0) -> Curve:
    """The curve of the cycles ``parts``, which last to the end of the run, by the steps since ``origin``."""
    decay = _shape(params)
    ends = [cycle.start for cycle in parts[1:]] + [float(time.steps)]
    curves = [
        scale(segment(decay, end - cycle.start, cycle.period, time.steps_per_epoch), cycle.peak)
        for cycle, end in zip(parts, ends, strict=True)
    ]
    return sequence(curves, [cycle.start - origin for cycle in parts])


def clean_marks(params: Params, time: TimeBase) -> list[int]:
    """The first step at or after every CAWB step at which the curve really breaks.

    >>> from sweeper.schedules import parse
    >>> run = {"family": "cawb", "lr": 1, "steps": ["3it", 2.1], "decay": "linear", "floor": 0.5}
    >>> clean_marks(parse(run).params, TimeBase(4, 4))
    [3, 9]
    >>> clean_marks(parse({**run, "step_scale": 0.5}).params, TimeBase(4, 4))  # each cycle goes on where the last ended
    []
    """
    return breaks(params, time, cycles(params, time))


def breaks(params: Params, time: TimeBase, parts: Sequence[Cycle]) -> list[int]:
    """The same for the cycles ``parts`` alone: where one does not go on as the one before it ended."""
    decay, unit, marks = _shape(params), time.steps_per_epoch, []
    hold = unit if params["granularity"] == "epoch" else 1
    for old, new in pairwise(parts):
        left = old.peak * _at(decay, min(new.start - old.start, old.period) / unit, old.period / unit)
        right = new.peak * _at(decay, 0.0, new.period / unit)
        if not np.isclose(left, right, rtol=1e-9, atol=0.0):
            marks.append(int(np.ceil(new.start / hold)) * hold)
    return marks


def bounds(params: Params, time: TimeBase) -> list[float]:
    """B = [w] + the steps strictly between w and E, sorted, duplicates kept + [E], in epochs.

    >>> bounds({"warmup": "3ep", "steps": [9, 3, 5, 5, 12]}, TimeBase(10, 4))
    [3.0, 5.0, 5.0, 9.0, 10.0]
    """
    warm = Duration.parse(params["warmup"]).epochs(time)
    inside = sorted(Duration.parse(x).epochs(time) for x in params["steps"])
    return [warm, *(x for x in inside if warm < x < time.epochs), float(time.epochs)]


def formula(
    k: FloatArray,
    bounds: Sequence[float],
    decay: Shape,
    *,
    base: float,
    step_scale: float,
    epoch_scale: float = 1.0,
    multiply: bool = False,
    first: int = 0,
) -> FloatArray:
    """F(k), what the k-th call of the reference's step() writes, k from 0; ``bounds`` = [w, steps ..., E] in epochs.

    F(k) = s^i base f(k - B[i], G), with i the number of entries of B[1:] strictly below k, and G the length of segment
    i, to which ``epoch_scale`` is added (the published code) or multiplied (``multiply``: the article) unless the
    segment is the last. Past the end the reference leaves its loop: s^len(B[1:]) base f(k, the last length), with
    length 0 if the very ``first`` call already lies there. Raises ScheduleError where the reference divides by zero;
    NaN where f is complex or undefined.

    >>> from sweeper.schedules.decay import shape
    >>> run = dict(decay=shape("linear"), base=1.0, step_scale=0.5, epoch_scale=0.0)
    >>> formula(np.arange(5.0), [0, 2, 4], **run).tolist()
    [1.0, 0.5, 0.0, 0.25, 0.0]
    """
    edges = np.asarray(bounds, np.float64)
    gaps = np.diff(edges)
    gaps[:-1] = gaps[:-1] * epoch_scale if multiply else gaps[:-1] + epoch_scale
    i = np.searchsorted(edges[1:], k, side="left")
    past = i >= len(gaps)
    inside = np.minimum(i, len(gaps) - 1)
    length = np.where(past, gaps[-1] if first <= edges[-1] else 0.0, gaps[inside])
    with np.errstate(all="ignore"):
        values = decay(np.where(past, k, k - edges[inside]), length)
        written = step_scale ** i.astype(np.float64) * base * values
    zero = (length == 0) & ~np.isfinite(values)
    if zero.any():
        at = int(zero.argmax())
        if past[at] and first > edges[-1]:
            why = f"its first step() already lies past the end of {edges[-1]:g} epochs"
        elif inside[at] < len(gaps) - 1:
            why = f"epoch_scale {epoch_scale:g} makes the segment from epoch {edges[inside[at]]:g} 0 epochs long"
        elif edges[-1] == 0:
            why = "the run has no epochs"
        else:
            why = f"the warm-up is as long as the run, {edges[-1]:g} epochs"
        raise ScheduleError(f"cawb: the reference divides by zero at k = {k[at]:g}: {why}")
    return np.asarray(written, np.float64)


def loop(params: Params, time: TimeBase) -> Curve:
    """The LR in effect in the reference's own loop: a warm-up call before every batch, step() after every epoch.

    base t/W for t < W (iterations since the loop began, so a resume warms up again); base (ceil(W)-1)/W for the rest
    of the epoch in which the warm-up ended; base in the loop's first epoch; else F(epoch - 1). Steps count from the
    first epoch of the loop, ``last_epoch``. In article mode a step outside the run is an error.

    >>> from sweeper.schedules import parse
    >>> run = {"family": "cawb", "lr": 1, "mode": "reference", "decay": "linear", "floor": 0, "epoch_scale": 0}
    >>> parse({**run, "steps": [2], "step_scale": 0.5}).values(TimeBase(6, 1)).tolist()  # 2 first acts in epoch 4
    [1.0, 1.0, 0.5, 0.0, 0.375, 0.25]
    >>> parse({**run, "warmup": 1.5}).values(TimeBase(3, 2)).round(3).tolist()  # an overshoot, x being negative
    [0.0, 0.333, 0.667, 0.667, 1.333, 1.333]
    """
    article, base = params["mode"] == "article", params["lr"]
    first = params.get("last_epoch", 0)
    if first >= time.epochs:
        raise ScheduleError(f"cawb: last_epoch: {first} leaves nothing of a run of {time.epochs} epochs")
    if article:
        _steps_inside(params, time, Duration.parse(params["warmup"]).steps(time))
    edges, decay = bounds(params, time), _shape(params)
    warm = edges[0] * time.steps_per_epoch

    def in_effect(k: FloatArray) -> FloatArray:
        row = np.floor(k / time.steps_per_epoch).astype(np.int64)
        calls = first + np.arange(float(row.max(initial=0) + 1))
        written = formula(
            calls,
            edges,
            decay,
            base=base,
            step_scale=params["step_scale"],
            epoch_scale=params["epoch_scale"],
            multiply=article,
            first=first,
        )
        out = np.concatenate([[base], written])[row]
        if warm > 0:
            last = np.ceil(warm) - 1
            out[(k >= warm) & (row == last // time.steps_per_epoch)] = base * last / warm
            rising = k < warm
            out[rising] = base * (k[rising] / warm)
        return np.asarray(out, np.float64)

    return in_effect


def loop_marks(params: Params, time: TimeBase) -> list[int]:
    """The first step of epoch floor(x) + 2 for every step x whose restart changes the LR, outside the warm-up."""
    edges, decay = bounds(params, time), _shape(params)
    base, s, e, marks = params["lr"], params["step_scale"], params["epoch_scale"], set()
    for x in sorted(set(edges[1:-1])):
        step = (int(np.floor(x)) + 2 - params.get("last_epoch", 0)) * time.steps_per_epoch
        i = edges[1:].index(x)
        j = i + edges[1:].count(x)
        gaps = [b - a for a, b in pairwise(edges)]
        grown = [g * e if params["mode"] == "article" else g + e for g in gaps[:-1]] + gaps[-1:]
        left = base * s**i * _at(decay, x - edges[i], grown[i])
        right = base * s**j * _at(decay, 0.0, grown[j])
        if step > edges[0] * time.steps_per_epoch and not np.isclose(left, right, rtol=1e-9, atol=0.0):
            marks.add(step)
    return sorted(marks)


def _shape(params: Params) -> Shape:
    return shape(params["decay"], params.get("floor", 0.0), params.get("power", 1.0))


def _at(decay: Shape, x: float, y: float) -> float:
    return float(decay(np.asarray([x]), y)[0])
