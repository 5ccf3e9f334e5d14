"""CAWB, cosine annealing with warm (re)booting, in its three readings: clean, article and reference.

Source: the article on CAWB and its published code (github.com/Huangdebo/CAWB, cawb.py at 542f86d).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sweeper.errors import ScheduleError
from sweeper.schedules.decay import Curve, Shape, segment, sequence, shape, warmup_lerp
from sweeper.schedules.values import Duration, FloatArray, Params, TimeBase


def curve(params: Params, time: TimeBase, group: str) -> Curve:
    """The LR of ``group`` by the step. Raises ScheduleError for parameters that do not fit the run."""
    return _clean(params, time, group) if params["mode"] == "clean" else _loop(params, time)


def marks(params: Params, time: TimeBase) -> list[int]:
    """The steps at which the curve really breaks: a cycle that goes on where the last one ended has no break."""
    return breaks(params, time, cycles(params, time)) if params["mode"] == "clean" else _loop_marks(params, time)


def as_trainer(params: Params) -> bool:
    """Whether the warm-up is the trainer's, which moves the bias group's LR and the momentum, too (clean mode)."""
    return params.get("warmup_kind") == "trainer"


def trainers_warmup(params: Params, time: TimeBase) -> int:
    """The steps of Ultralytics' warm-up, of which the last epoch is never a part.
    Source: ultralytics/engine/trainer.py, _get_warmup_iterations."""
    return round(min(Duration.parse(params["warmup"]).epochs(time), time.epochs - 1) * time.steps_per_epoch)


def warm(params: Params, time: TimeBase) -> float:
    """The steps of the warm-up."""
    return trainers_warmup(params, time) if as_trainer(params) else Duration.parse(params["warmup"]).steps(time)


class Cycle(NamedTuple):
    """One cycle of the clean mode: ``start`` and ``period`` (of its decay) in steps, and its ``peak``."""

    start: float
    period: float
    peak: float


def cycles(params: Params, time: TimeBase) -> list[Cycle]:
    """The cycles of the clean mode, the first one starting where the warm-up ends.

    Raises ScheduleError for a warm-up as long as the run, a step that is not between both, and lists that do not fit.
    """
    begin = warm(params, time)
    if begin >= time.steps:
        raise ScheduleError(
            f"cawb: warmup: {params['warmup']} leaves nothing of a run of {time.epochs} epochs; make it shorter"
        )
    starts = [begin, *_steps_inside(params, time, begin)]
    peaks, periods = _peaks(params, len(starts)), _periods(params, time, [*starts, float(time.steps)])
    return [Cycle(*cycle) for cycle in zip(starts, periods, peaks, strict=True)]


def _steps_inside(params: Params, time: TimeBase, warm: float) -> list[float]:
    inside = {Duration.parse(written): written for written in params["steps"]}
    for length, written in inside.items():
        step = length.steps(time)
        if not 0 < step < time.steps:
            raise ScheduleError(
                f"cawb: steps: {written} is outside the run; expected epochs above 0 and below {time.epochs}"
            )
        if step <= warm:
            raise ScheduleError(
                f"cawb: steps: {written} is not after the warm-up of {params['warmup']}; move it or shorten the warm-up"
            )
    return sorted({length.steps(time) for length in inside})


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
        return [params["epoch_scale"] * length for length in lengths[:-1]] + lengths[-1:]
    each = horizon if isinstance(horizon, list) else [horizon] * len(lengths)
    if len(each) != len(lengths):
        raise ScheduleError(
            f"cawb: horizon: {len(each)} lengths do not fit {len(lengths)} cycles; expected one each, or one for all"
        )
    return [
        time.steps - start if length == "end" else Duration.parse(length).steps(time)
        for length, start in zip(each, edges[:-1], strict=True)
    ]


def _clean(params: Params, time: TimeBase, group: str) -> Curve:
    """t < w: base (start + (1-start) t/w). Then, with i steps at or before t and the i-th cycle begun at x_i:
    base s^i shape(u), u = clip((t - x_i) / period_i, 0, 1). The period is epoch_scale times the cycle's length (the
    last cycle's: 1 times), or the horizon. In the trainer's warm-up the group bias begins at ``warmup_bias_lr``.
    """
    parts = cycles(params, time)
    first = parts[0]
    if as_trainer(params):
        low = params["warmup_bias_lr"] if group == "bias" else 0.0
    else:
        low = params["warmup_start"] * first.peak
    return warmup_lerp(joined(params, time, parts), first.start, low, first.peak)


def joined(params: Params, time: TimeBase, parts: Sequence[Cycle]) -> Curve:
    """The curve of the cycles ``parts``, which last to the end of the run, by the step of the run."""
    decay, unit = _shape(params), time.steps_per_epoch

    def falling(cycle: Cycle, end: float) -> Curve:
        down = segment(decay, end - cycle.start, cycle.period, unit)
        return lambda k: cycle.peak * down(k)

    ends = [cycle.start for cycle in parts[1:]] + [float(time.steps)]
    return sequence(list(map(falling, parts, ends)), [cycle.start for cycle in parts])


def breaks(params: Params, time: TimeBase, parts: Sequence[Cycle]) -> list[int]:
    """For each of the cycles ``parts`` that does not go on where the last one ended, its first step."""
    decay, unit, steps = _shape(params), time.steps_per_epoch, []
    every = unit if params["granularity"] == "epoch" else 1
    for old, new in pairwise(parts):
        left = old.peak * decay(np.array([min(new.start - old.start, old.period) / unit]), old.period / unit)
        right = new.peak * decay(np.zeros(1), new.period / unit)
        if not np.isclose(left, right, rtol=1e-9, atol=0.0):
            steps.append(int(np.ceil(new.start / every)) * every)
    return steps


def formula(params: Params, time: TimeBase, k: FloatArray) -> FloatArray:
    """F(k), what the k-th call of the reference's step() writes, k from 0.

    With B = [w, the steps strictly between w and E, sorted, duplicates kept, E] in epochs:
    F(k) = s^i base f(k - B[i], G), with i the number of entries of B[1:] strictly below k, and G the length of segment
    i, to which epoch_scale is added (the published code) or multiplied (the article) unless the segment is the last.
    Past the end it is s^len(B[1:]) base f(k, the last length). Raises ScheduleError where the reference divides by
    zero; NaN where f is complex or undefined.
    """
    edges = np.asarray(_bounds(params, time))
    gaps, stretch = np.diff(edges), params["epoch_scale"]
    gaps[:-1] = gaps[:-1] * stretch if params["mode"] == "article" else gaps[:-1] + stretch
    i = np.searchsorted(edges[1:], k, side="left")
    inside = np.minimum(i, len(gaps) - 1)
    with np.errstate(all="ignore"):
        values = _shape(params)(np.where(i < len(gaps), k - edges[inside], k), gaps[inside])
        written = params["step_scale"] ** i.astype(np.float64) * params["lr"] * values
    zero = (gaps[inside] == 0) & ~np.isfinite(values)
    if zero.any():
        at = int(zero.argmax())
        if inside[at] < len(gaps) - 1:
            why = f"epoch_scale {stretch:g} makes the segment from epoch {edges[inside[at]]:g} 0 epochs long"
        else:
            why = f"the warm-up is as long as the run, {edges[-1]:g} epochs"
        raise ScheduleError(f"cawb: the reference divides by zero at k = {k[at]:g}: {why}")
    return np.asarray(written, np.float64)


def _bounds(params: Params, time: TimeBase) -> list[float]:
    begin, end = Duration.parse(params["warmup"]).epochs(time), float(time.epochs)
    inside = sorted(Duration.parse(step).epochs(time) for step in params["steps"])
    return [begin, *(step for step in inside if begin < step < end), end]


def _loop(params: Params, time: TimeBase) -> Curve:
    """The LR in effect in the reference's loop: a warm-up call before every batch, step() after every epoch.

    base t/W for t < W (iterations since the loop began, so a resume warms up again); base (ceil(W)-1)/W for the rest
    of the epoch in which the warm-up ended; base in the loop's first epoch; else F(epoch - 1). Steps count from the
    first epoch of the loop, ``last_epoch``. In article mode a step outside the run is an error.

    >>> from sweeper.schedules import parse
    >>> run = {"family": "cawb", "lr": 1, "mode": "reference", "decay": "linear", "floor": 0, "epoch_scale": 0}
    >>> parse({**run, "steps": [2], "step_scale": 0.5}).values(TimeBase(6, 1)).tolist()  # 2 first acts in epoch 4
    [1.0, 1.0, 0.5, 0.0, 0.375, 0.25]
    """
    base, unit, first = params["lr"], time.steps_per_epoch, params.get("last_epoch", 0)
    if first >= time.epochs:
        raise ScheduleError(f"cawb: last_epoch: {first} leaves nothing of a run of {time.epochs} epochs")
    duration = Duration.parse(params["warmup"])
    if params["mode"] == "article":
        _steps_inside(params, time, duration.steps(time))
    warm = duration.epochs(time) * unit

    def in_effect(k: FloatArray) -> FloatArray:
        row = np.floor(k / unit).astype(np.int64)
        written = formula(params, time, first + np.arange(float(row.max(initial=0) + 1)))
        out = np.asarray([base, *written])[row]
        if warm > 0:
            last = np.ceil(warm) - 1
            out[(k >= warm) & (row == last // unit)] = base * last / warm
            rising = k < warm
            out[rising] = base * (k[rising] / warm)
        return out

    return in_effect


def _loop_marks(params: Params, time: TimeBase) -> list[int]:
    """The first step of epoch floor(x) + 2 for every step x whose restart changes the LR, outside the warm-up."""
    first, bounds, unit, steps = params.get("last_epoch", 0), _bounds(params, time), time.steps_per_epoch, set()
    for x in bounds[1:-1]:
        step = (int(np.floor(x)) + 2 - first) * unit
        before, after = formula(params, time, np.array([x, np.nextafter(x, np.inf)]))
        if step > bounds[0] * unit and not np.isclose(before, after, rtol=1e-9, atol=0.0):
            steps.add(step)
    return sorted(steps)


def _shape(params: Params) -> Shape:
    return shape(params["decay"], params.get("floor", 0.0), params.get("power", 1.0))
