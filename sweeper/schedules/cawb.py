"""CAWB, cosine annealing with warm (re)booting, in three modes: clean, article and reference.

``clean`` is what a reader of the article expects, ``article`` what the article's figure shows, and ``reference`` what
the published code does (github.com/Huangdebo/CAWB, cawb.py at 542f86d).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sweeper.errors import ScheduleError
from sweeper.schedules.decay import Curve, Shape, segment, sequence, shape, warmup_lerp
from sweeper.schedules.values import Duration, FloatArray, Params, TimeBase


def curve(params: Params, time: TimeBase, group: str) -> Curve:
    """The LR of ``group`` as a function of the step. Raises ScheduleError for parameters that do not fit the run."""
    return _clean(params, time, group) if params["mode"] == "clean" else _loop(params, time)


def marks(params: Params, time: TimeBase) -> list[int]:
    """The steps at which the LR breaks. A cycle that starts at the LR at which the last one ended has no break."""
    return breaks(params, time, cycles(params, time)) if params["mode"] == "clean" else _loop_breaks(params, time)


def has_trainers_warmup(params: Params) -> bool:
    """Whether the warm-up is the trainer's, which also changes the bias group's LR and the momentum."""
    return params.get("warmup_kind") == "trainer"


def trainers_warmup(params: Params, time: TimeBase) -> int:
    """The length of Ultralytics' warm-up in steps; it ends before the last epoch.
    Source: ultralytics/engine/trainer.py, _get_warmup_iterations."""
    return round(min(Duration.parse(params["warmup"]).epochs(time), time.epochs - 1) * time.steps_per_epoch)


def warm(params: Params, time: TimeBase) -> float:
    """The length of the warm-up in steps."""
    if has_trainers_warmup(params):
        return trainers_warmup(params, time)
    return Duration.parse(params["warmup"]).steps(time)


class Cycle(NamedTuple):
    """One cycle of the clean mode: its ``start`` and the ``period`` of its decay in steps, and its ``peak`` LR."""

    start: float
    period: float
    peak: float


def cycles(params: Params, time: TimeBase) -> list[Cycle]:
    """The cycles of the clean mode. The first one starts at the end of the warm-up.

    Raises ScheduleError for a warm-up as long as the run, for a restart before the end of the warm-up or after the end
    of the run, and for lists whose length does not fit the number of cycles.
    """
    begin = warm(params, time)
    if begin >= time.steps:
        raise ScheduleError(
            f"cawb: warmup: {params['warmup']} leaves nothing of a run of {time.epochs} epochs; expected a shorter one"
        )
    starts = [begin, *_restarts(params, time, begin)]
    peaks, periods = _peaks(params, len(starts)), _periods(params, time, [*starts, float(time.steps)])
    return [Cycle(*cycle) for cycle in zip(starts, periods, peaks, strict=True)]


def _restarts(params: Params, time: TimeBase, warm: float) -> list[float]:
    """``params["steps"]`` in optimizer steps, ascending, without duplicates. Raises ScheduleError."""
    positions = {Duration.parse(written): written for written in params["steps"]}
    for position, written in positions.items():
        step = position.steps(time)
        if not 0 < step < time.steps:
            raise ScheduleError(
                f"cawb: steps: {written} is outside the run; expected epochs above 0 and below {time.epochs}"
            )
        if step <= warm:
            raise ScheduleError(
                f"cawb: steps: {written} is not after the warm-up of {params['warmup']}; expected a later step or a "
                "shorter warm-up"
            )
    return sorted({position.steps(time) for position in positions})


def _peaks(params: Params, count: int) -> list[float]:
    """The peak LR of each of ``count`` cycles. Raises ScheduleError."""
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
    """The length in steps of each cycle's decay; ``edges`` are the cycles' starts and the run's end in steps."""
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
    """The LR in clean mode. In the warm-up of w steps it is base (start + (1-start) t/w).

    After that it is base s^i shape(u), u = clip((t - x_i) / period_i, 0, 1), where i is the number of restarts up to t
    and x_i the start of cycle i. The period is the horizon, or epoch_scale times the cycle's length; in the last cycle
    it is the cycle's length. With the trainer's warm-up the group bias starts at ``warmup_bias_lr``.
    """
    all_cycles = cycles(params, time)
    first = all_cycles[0]
    if has_trainers_warmup(params):
        low = params["warmup_bias_lr"] if group == "bias" else 0.0
    else:
        low = params["warmup_start"] * first.peak
    return warmup_lerp(cycles_curve(params, time, all_cycles), first.start, low, first.peak)


def cycles_curve(params: Params, time: TimeBase, run: Sequence[Cycle]) -> Curve:
    """The LR of the cycles ``run`` as a function of the step of the run; the last cycle lasts to the end of the run."""
    decay, unit = _shape(params), time.steps_per_epoch

    def falling(cycle: Cycle, end: float) -> Curve:
        down = segment(decay, end - cycle.start, cycle.period, unit)
        return lambda k: cycle.peak * down(k)

    ends = [cycle.start for cycle in run[1:]] + [float(time.steps)]
    return sequence(list(map(falling, run, ends)), [cycle.start for cycle in run])


def breaks(params: Params, time: TimeBase, run: Sequence[Cycle]) -> list[int]:
    """The first steps of those cycles of ``run`` that do not start at the LR at which the cycle before them ends."""
    decay, unit, steps = _shape(params), time.steps_per_epoch, []
    every = unit if params["granularity"] == "epoch" else 1
    for old, new in pairwise(run):
        left = old.peak * decay(np.array([min(new.start - old.start, old.period) / unit]), old.period / unit)
        right = new.peak * decay(np.zeros(1), new.period / unit)
        if not np.isclose(left, right, rtol=1e-9, atol=0.0):
            steps.append(int(np.ceil(new.start / every)) * every)
    return steps


def formula(params: Params, time: TimeBase, k: FloatArray) -> FloatArray:
    """F(k), the LR that the k-th call of the reference's step() sets, k from 0.

    B = [w, the steps strictly between w and E, sorted, duplicates kept, E], in epochs, where w is the warm-up's length
    and E the run's. F(k) = s^i base f(k - B[i], G), where i is the number of entries of B[1:] strictly below k and G is
    the length of segment i. epoch_scale is added to G (published code) or multiplies it (article), but not in the last
    segment. For k > E it is s^len(B[1:]) base f(k, the last length). It is NaN where f is complex or undefined. Raises
    ScheduleError where the reference divides by zero.
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
        bad = int(zero.argmax())
        if inside[bad] < len(gaps) - 1:
            why = f"epoch_scale {stretch:g} makes the segment from epoch {edges[inside[bad]]:g} 0 epochs long"
        else:
            why = f"the warm-up is as long as the run, {edges[-1]:g} epochs"
        raise ScheduleError(f"cawb: CAWB's published code divides by zero after epoch {k[bad]:g}: {why}")
    return np.asarray(written, np.float64)


def _bounds(params: Params, time: TimeBase) -> list[float]:
    """The end of the warm-up, the steps inside the run and the end of the run, in epochs."""
    begin, end = Duration.parse(params["warmup"]).epochs(time), float(time.epochs)
    inside = sorted(Duration.parse(step).epochs(time) for step in params["steps"])
    return [begin, *(step for step in inside if begin < step < end), end]


def _loop(params: Params, time: TimeBase) -> Curve:
    """The LR of the reference's training loop, which calls its warm-up before every batch and step() after every epoch.

    It is base t/W for t < W, where t counts iterations since the loop began, so that a resumed run warms up again. For
    the rest of the epoch in which the warm-up ends it is base (ceil(W)-1)/W. Otherwise it is base in the loop's first
    epoch and F(epoch - 1) in later ones. The returned curve counts steps from the loop's first epoch, ``last_epoch``.
    In article mode a step outside the run is an error.

    >>> from sweeper.schedules import parse
    >>> run = {"family": "cawb", "lr": 1, "mode": "reference", "decay": "linear", "floor": 0, "epoch_scale": 0}
    >>> parse({**run, "steps": [2], "step_scale": 0.5}).values(TimeBase(6, 1)).tolist()  # acts from epoch 4 on
    [1.0, 1.0, 0.5, 0.0, 0.375, 0.25]
    """
    base, unit, first = params["lr"], time.steps_per_epoch, params.get("last_epoch", 0)
    if first >= time.epochs:
        raise ScheduleError(f"cawb: last_epoch: {first} leaves nothing of a run of {time.epochs} epochs")
    duration = Duration.parse(params["warmup"])
    if params["mode"] == "article":
        _restarts(params, time, duration.steps(time))  # Raises ScheduleError.
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


def _loop_breaks(params: Params, time: TimeBase) -> list[int]:
    """The steps at which the LR breaks. An entry x of ``steps`` acts from the first step of epoch floor(x) + 2 on,
    because step() is called after the epoch and writes F(epoch - 1)."""
    first, bounds, unit, steps = params.get("last_epoch", 0), _bounds(params, time), time.steps_per_epoch, set()
    for x in bounds[1:-1]:
        step = (int(np.floor(x)) + 2 - first) * unit
        before, after = formula(params, time, np.array([x, np.nextafter(x, np.inf)]))
        if step > bounds[0] * unit and not np.isclose(before, after, rtol=1e-9, atol=0.0):
            steps.add(step)
    return sorted(steps)


def _shape(params: Params) -> Shape:
    return shape(params["decay"], params.get("floor", 0.0), params.get("power", 1.0))
