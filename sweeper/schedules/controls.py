"""The learning rates of the controls, made from the trace of the run they control: pure functions, trace in, trace out.

Each control is an ordinary run, and its spec an ordinary spec: ``{family: counterfactual, of: SPEC, restart: 1}``.
Because it begins with the very same learning rates, its beginning is found in the snapshot store and nothing before
the fork is trained again.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sweeper.errors import ScheduleError
from sweeper.schedules.trace import Trace

Change = Callable[[NDArray[np.float32]], NDArray[np.float64]]


def counterfactual(trace: Trace, step: int) -> Trace:
    """The run without its jump at ``step`` (the first step after the jump): the no-restart branch.

    The same before ``step``, then half a cosine from the LR of the step before it to the run's own final LR, in every
    parameter group; later jumps are gone too. The momentum stays as it was.

    >>> run = Trace([0.1, 0.05, 0.1, 0.05, 0.02], epochs=5, marks=(2,))
    >>> [round(float(lr), 4) for lr in counterfactual(run, 2).lr]
    [0.1, 0.05, 0.0425, 0.0275, 0.02]
    """
    _inside(trace, step)

    def without(lr: NDArray[np.float32]) -> NDArray[np.float64]:
        rest = _cosine(float(lr[step - 1]), float(lr[-1]), len(lr) - step + 1)[1:]
        return np.concatenate([lr[:step].astype(np.float64), rest])

    return _mapped(trace, without, tuple(mark for mark in trace.marks if mark < step))


def matched_peak(trace: Trace, step: int) -> Trace:
    """One anneal without restart whose peak is the LR of the restart at ``step``, over as many epochs.

    The run's own warm-up, stretched to end at that peak (it begins where it began, so a bias group may still fall),
    then half a cosine to the run's final LR. What it reaches is what the restart's larger LR explains by itself.
    """
    _inside(trace, step)
    jumps = [jump.step for jump in trace.jumps()]
    warm = trace.top
    top_of_cycle = step + int(trace.lr[step : min([jump for jump in jumps if jump > step], default=None)].argmax())

    def anneal(lr: NDArray[np.float32]) -> NDArray[np.float64]:
        start, top, peak = float(lr[0]), float(lr[warm]), float(lr[top_of_cycle])
        share = (lr[:warm].astype(np.float64) - start) / (top - start) if top != start else np.ones(warm)
        return np.concatenate([start + share * (peak - start), _cosine(peak, float(lr[-1]), len(lr) - warm)])

    return _mapped(trace, anneal, ())


def quench(trace: Trace, epoch: int, *, epochs: int = 1, floor: float | None = None) -> Trace:
    """The run up to the end of ``epoch - 1``, then ``epochs`` epochs at the ``floor`` LR (default: the run's lowest
    LR after its warm-up): what lies at the bottom below the weights at the start of ``epoch``.

    The floor is the same in every group; the momentum stays at its last value. ScheduleError for an epoch outside 1 to
    the number of epochs.
    """
    if not 1 <= epoch <= trace.epochs or epochs < 1:
        raise ScheduleError(f"quench after {epoch} epochs for {epochs}: expected 1 to {trace.epochs} epochs, then >= 1")
    cut, added = epoch * trace.steps_per_epoch, epochs * trace.steps_per_epoch
    low = float(trace.lr[trace.top :].min()) if floor is None else floor

    def still(lr: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([lr[:cut], np.full(added, low, dtype=np.float32)])

    momentum = trace.momentum
    if momentum is not None:
        momentum = np.concatenate([momentum[:cut], np.full(added, momentum[cut - 1], dtype=np.float32)])
    return replace(
        trace,
        lr=still(trace.lr),
        groups={name: still(lr) for name, lr in trace.groups.items()},
        momentum=momentum,
        epochs=epoch + epochs,
        marks=tuple(mark for mark in trace.marks if mark < cut),
    )


#: Families of control runs: name -> (trace of the run, step of its restart) -> trace of the control.
CONTROLS: dict[str, Callable[[Trace, int], Trace]] = {"counterfactual": counterfactual, "matched_peak": matched_peak}


def at_restart(family: str, trace: Trace, restart: int) -> Trace:
    """The control ``family`` of the run's restart number ``restart``, counted from 1; drops do not count.

    ScheduleError where the run has fewer restarts.

    >>> run = Trace([0.1, 0.05, 0.1, 0.05], epochs=4, marks=(2,))
    >>> at_restart("counterfactual", run, 1).jumps()
    []
    """
    steps = [jump.step for jump in trace.jumps() if jump.kind == "restart"]
    if restart > len(steps):
        raise ScheduleError(f"{family}: restart: {restart} is not there; the run has {len(steps)} restarts")
    return CONTROLS[family](trace, steps[restart - 1])


def along(trace: Trace, start: int, end: int, k: int) -> list[int]:
    """Up to ``k`` epochs strictly between ``start`` and ``end`` at which to take the snapshots of the path.

    Equal shares of the LR summed over the steps, not of the time: weights move fastest where the LR is high, and the
    longest piece decides how much of a curved valley's wall a straight line through it still touches. Each number
    counts finished epochs; fewer than k if there are not as many epochs.

    >>> along(Trace([0.1] * 8 + [0.01] * 8, epochs=16), 0, 16, 3)
    [2, 4, 7]
    """
    if not 0 <= start < end <= trace.epochs:
        raise ScheduleError(f"snapshots between epochs {start} and {end}: expected 0 <= start < end <= {trace.epochs}")
    per_epoch = trace.lr.astype(np.float64).reshape(trace.epochs, -1).sum(axis=1)[start:end]
    way = np.cumsum(per_epoch) / max(float(per_epoch.sum()), 1e-300)
    inner = np.arange(start + 1, end)
    if len(inner) <= k:
        return [int(epoch) for epoch in inner]
    chosen: list[int] = []
    for i in range(k):  # the closest epoch that leaves room for those still to come
        first = chosen[-1] - start if chosen else 0
        last = len(inner) - (k - i)
        candidates = way[first : last + 1]
        chosen.append(int(inner[first + int(np.abs(candidates - (i + 1) / (k + 1)).argmin())]))
    return chosen


def _cosine(first: float, last: float, steps: int) -> NDArray[np.float64]:
    """``steps`` values from ``first`` to ``last``, both included."""
    share = np.linspace(0.0, 1.0, steps) if steps > 1 else np.zeros(steps)
    return last + (first - last) * (1 + np.cos(np.pi * share)) / 2


def _inside(trace: Trace, step: int) -> None:
    if not 0 < step < trace.steps:
        raise ScheduleError(f"jump at step {step}: expected 1 to {trace.steps - 1}, the steps of this trace")


def _mapped(trace: Trace, change: Change, marks: tuple[int, ...]) -> Trace:
    groups = {name: change(lr).astype(np.float32) for name, lr in trace.groups.items()}
    return replace(trace, lr=change(trace.lr).astype(np.float32), groups=groups, marks=marks)
