"""When a trial is not worth its remaining epochs. Plain numbers in, a reason or None out.

A metric dips after every restart by design, so a run is judged where it is annealed, at the ends of its cycles, and by
the best that it had reached: the usual pruners, which look at the last value, stop most good restart schedules.
"""

from collections.abc import Collection, Sequence

import numpy as np

LAST = 3  # epochs whose mean is one value: a single lucky epoch does not count


def best_so_far(curve: Sequence[float]) -> float:
    """The highest mean of up to 3 epochs in a row that end anywhere in ``curve`` (one value an epoch, not empty)."""
    return max(float(np.mean(curve[max(end - LAST, 0) : end])) for end in range(1, len(curve) + 1))


def score(curve: Sequence[float]) -> float:
    """The score of a finished run: the mean over its last three epochs (of fewer all), so that luck does not win."""
    tail = [float(value) for value in curve[-LAST:]]
    return sum(tail) / len(tail)


def cycle_end(
    curve: Sequence[float],
    ends: Collection[int],
    others: Sequence[Sequence[float]],
    *,
    from_epoch: int,
    share: float,
    least: int,
) -> str | None:
    """The reason to stop after ``len(curve)`` epochs, or None.

    Only if a cycle ends there (``ends``: epochs at which the LR jumps) and ``from_epoch`` epochs are done: then the
    best so far is compared with what each of ``others`` had reached by the same epoch, and being below the lowest
    ``share`` of at least ``least`` of them is a reason. An other that did not get so far is left out.

    >>> others = [[0.1, 0.2, 0.3, 0.1]] * 5
    >>> cycle_end([0.1, 0.1, 0.1, 0.1], {4}, others, from_epoch=2, share=0.25, least=5)
    'best so far 0.1000 after 4 epochs, 25 % of 5 others had less than 0.2000'
    """
    epochs = len(curve)
    if epochs not in ends or epochs < from_epoch:
        return None
    reached = [best_so_far(other[:epochs]) for other in others if len(other) >= epochs]
    if len(reached) < least:
        return None
    best, limit = best_so_far(curve), float(np.quantile(reached, share))
    if best >= limit:
        return None
    count = f"{share:.0%}".replace("%", " %")
    return f"best so far {best:.4f} after {epochs} epochs, {count} of {len(reached)} others had less than {limit:.4f}"


def dead(curve: Sequence[float], after: int | None) -> str | None:
    """The reason to give up a run whose metric never left 0 in ``after`` epochs, or None (also for ``after`` None)."""
    if after is None or len(curve) < after or any(curve):
        return None
    return f"dead: mAP was 0 in all of {len(curve)} epochs"
