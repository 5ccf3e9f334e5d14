"""How alike two schedules are: equal traces are duplicates, which cost nothing; near ones cost, and say little new."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper import schedules
from sweeper.schedules import TimeBase

NEAR = 0.02  # of the LR summed over the run


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
