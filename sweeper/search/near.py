"""How alike two schedules are: equal traces are duplicates, which cost nothing; near ones cost, and say little new."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper import schedules
from sweeper.schedules import TimeBase

NEAR = 0.02  # of the LR summed over the run
#: How far apart beginnings may be that count as alike: yolo_linear and yolo_cosine, whose runs of one seed correlate
#: with 0.88, are 6 % of the peak apart at the end of a warm-up of 3 of 40 epochs; a bias group that is warmed up as the
#: others are is several peaks away from the trainer's.
ALIKE_LR, ALIKE_MOMENTUM = 0.1, 0.01


@dataclass(frozen=True)
class Nearest:
    """The schedule most like another one: whose it is, how far away, and how many first epochs both share.

    ``distance``: |LR - LR'| summed over the run, as a share of the larger of both sums; 0 equal, 1 nothing in common.
    """

    trial: int
    distance: float
    shared_epochs: int

    @property
    def near(self) -> bool:
        """Whether it says little new: less than 2 % of the LR is another one."""
        return self.distance < NEAR

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sketch(spec: Mapping[str, Any], time: TimeBase, points: int = 8) -> NDArray[np.float64]:
    """The LR at ``points`` even moments of each epoch, float64[epochs, points]: enough to compare, cheap to keep."""
    trace = schedules.parse(spec).trace(time)
    lr = trace.lr.astype(np.float64).reshape(trace.epochs, trace.steps_per_epoch)
    at = np.linspace(0, trace.steps_per_epoch - 1, min(points, trace.steps_per_epoch)).round().astype(int)
    return np.asarray(lr[:, at])


def nearest(one: NDArray[np.float64], others: Mapping[int, NDArray[np.float64]]) -> Nearest | None:
    """The nearest of ``others`` (sketches of equal shape, by trial), the first of equals; None if there are none."""
    found: Sequence[Nearest] = [
        Nearest(
            trial,
            float(np.abs(one - other).sum() / max(one.sum(), other.sum())),
            int(np.logical_and.accumulate((one == other).all(axis=1)).sum()),
        )
        for trial, other in sorted(others.items())
        if other.shape == one.shape
    ]
    return min(found, key=lambda item: item.distance, default=None)


def begin_alike(one: Mapping[str, Any], other: Mapping[str, Any], time: TimeBase) -> bool:
    """Whether two specs give the first steps nearly the same LR (of every group) and momentum.

    Looked at: the longer of both warm-ups, at least one epoch. Runs of one seed that begin alike are alike to the end;
    runs that begin otherwise have no more in common than runs of two seeds.
    """
    both = [schedules.parse(spec) for spec in (one, other)]
    mine, theirs = (schedule.trace(time) for schedule in both)
    steps = max(time.steps_per_epoch, *(int(np.ceil(schedule.warm(time))) for schedule in both))
    if mine.momentum is None or theirs.momentum is None:
        if mine.momentum is not theirs.momentum:
            return False
    elif np.abs(mine.momentum[:steps] - theirs.momentum[:steps]).max() > ALIKE_MOMENTUM:
        return False
    peak = max(mine.lr[:steps].max(), theirs.lr[:steps].max())
    apart = [
        np.abs(mine.group(name)[:steps] - theirs.group(name)[:steps]).max()
        for name in ("", *{*mine.groups, *theirs.groups})
    ]
    return bool(max(apart) <= ALIKE_LR * peak)
