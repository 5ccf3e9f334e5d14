"""Is there a hill between two sets of weights? Linear interpolation, and the same along snapshots of the path."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweeper.errors import ConfigError

Weights = Mapping[str, NDArray[np.generic]]
Loss = Callable[[dict[str, NDArray[np.generic]]], float]
"""Loss of a network with these weights on a fixed, un-augmented subset. Recomputing its BatchNorm statistics for these
weights first is this function's work: without that barriers come out 1.6 to 5 times too high."""


@dataclass(frozen=True)
class Barrier:
    """The straight line between two ends: ``height`` of its highest point above the worse end (0: none), at share
    ``at`` of the way; ``first``, ``last`` the losses of the ends."""

    height: float
    at: float
    first: float
    last: float

    @property
    def top(self) -> float:
        """The highest loss on the line."""
        return self.height + max(self.first, self.last)


@dataclass(frozen=True)
class PathBarrier:
    """``height = min(direct, along)``: the straight line, or the line from snapshot to snapshot, whichever is lower.

    A straight line through one *curved* valley crosses its wall, so ``direct`` alone cries "barrier" in most such
    cases; a path that stays in the valley shows that there is none. ``along`` is the highest loss on that path above
    the worse of its *outer* ends. (Above the worse end of each piece, a hill that has a snapshot on its top would count
    as none: a network with BatchNorm thrown out of its basin by a large LR does not come down in a short quench.)
    ``pieces`` holds one line per piece, ``evaluations`` counts the losses computed.
    """

    height: float
    direct: Barrier
    along: float
    pieces: tuple[Barrier, ...]
    evaluations: int


def interpolate(first: Weights, last: Weights, share: float) -> dict[str, NDArray[np.generic]]:
    """``first + share * (last - first)`` for every floating array, computed in double, in the array's own type.

    Anything else (BatchNorm's counters) is taken from ``first``. ConfigError if names or shapes differ: that is what
    mixing EMA with raw weights, or two models, looks like.
    """
    _same(first, last)
    mixed: dict[str, NDArray[np.generic]] = {}
    for name, array in first.items():
        if np.issubdtype(array.dtype, np.floating):
            a, b = array.astype(np.float64), last[name].astype(np.float64)
            mixed[name] = (a + share * (b - a)).astype(array.dtype)
        else:
            mixed[name] = array
    return mixed


def barrier(loss: Loss, first: Weights, last: Weights, *, points: int = 11) -> Barrier:
    """The barrier on the straight line between two ends, from ``points`` equally spaced losses, both ends included."""
    return _line(loss, first, last, points, loss(dict(first)), loss(dict(last)))


def path_barrier(
    loss: Loss,
    before: Weights,
    snapshots: Sequence[Weights],
    after: Weights,
    *,
    points: int = 11,
    direct: Barrier | None = None,
) -> PathBarrier:
    """The barrier between ``before`` and ``after`` along quenched ``snapshots`` taken on the way, in their order.

    All of them must be quenched alike (a short anneal at the floor LR): raw weights at a high LR sit high on the walls.
    ``points`` are those of each piece; ``direct`` is the straight line, where it is known already. Costs
    ``(k + 2) * (points - 1)`` losses for k > 0 snapshots, ``(k + 1) * (points - 1) - 1`` with ``direct``.
    """
    known = direct is not None
    if direct is None:
        direct = barrier(loss, before, after, points=points)
    if not snapshots:
        return PathBarrier(direct.height, direct, direct.height, (direct,), 0 if known else points)
    path = [before, *snapshots, after]
    losses = [direct.first, *(loss(dict(weights)) for weights in snapshots), direct.last]
    pieces = tuple(_line(loss, path[i], path[i + 1], points, losses[i], losses[i + 1]) for i in range(len(path) - 1))
    along = max(piece.top for piece in pieces) - max(losses[0], losses[-1])
    evaluations = len(snapshots) + len(pieces) * (points - 2) + (0 if known else points)
    return PathBarrier(min(direct.height, along), direct, along, pieces, evaluations)


def distance(first: Weights, last: Weights) -> tuple[float, float]:
    """Relative L2 distance ``|last - first| / |first|`` and cosine of the angle, over all floating arrays together.

    A diagnostic, no evidence: weights travel far inside one basin. Leave BatchNorm's running statistics out: they are
    no weights and can be larger than all of them.
    """
    _same(first, last)
    names = [name for name, array in first.items() if np.issubdtype(array.dtype, np.floating)]
    a = np.concatenate([np.asarray(first[name], dtype=np.float64).ravel() for name in names])
    b = np.concatenate([np.asarray(last[name], dtype=np.float64).ravel() for name in names])
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if norm_a == 0 or norm_b == 0:
        raise ConfigError("weight distance: all weights are 0 on one side; expected trained weights")
    return float(np.linalg.norm(b - a)) / norm_a, float(a @ b) / (norm_a * norm_b)


def disagreement(first: ArrayLike, last: ArrayLike) -> float:
    """Share of decisions (class labels, matched or missed objects), shape (n,), that differ between two networks.

    A network and its own permutation have a barrier between them and a disagreement of 0: nothing has moved there.
    """
    a, b = np.asarray(first), np.asarray(last)
    if a.shape != b.shape or a.size == 0:
        raise ConfigError(f"decisions of shapes {a.shape} and {b.shape}; expected the same, not empty")
    return float(np.mean(a != b))


def _line(loss: Loss, first: Weights, last: Weights, points: int, at_first: float, at_last: float) -> Barrier:
    if points < 3:
        raise ConfigError(f"{points} interpolation points; expected at least 3: both ends and one between")
    shares = np.linspace(0.0, 1.0, points)
    inner = [loss(interpolate(first, last, float(share))) for share in shares[1:-1]]
    losses = np.array([at_first, *inner, at_last])
    if not np.isfinite(losses).all():
        raise ConfigError(f"loss between two snapshots is {losses.tolist()}; expected finite numbers")
    top = int(losses.argmax())
    return Barrier(float(losses[top] - max(at_first, at_last)), float(shares[top]), float(at_first), float(at_last))


def _same(first: Weights, last: Weights) -> None:
    shapes = [{name: array.shape for name, array in weights.items()} for weights in (first, last)]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()), key=str)[:3]
        raise ConfigError(f"weights differ in {odd}; expected two snapshots of one model, both EMA or both raw")
