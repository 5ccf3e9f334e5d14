"""Is there a hill between before and after a restart? Quenches and losses come from a training process.

Everything is measured alike: weights are the EMA's, quenches and BatchNorm statistics use the data of the epoch after
the run's last one (so no two points differ in their images, and mosaic is as at the run's end), the loss is on the same
un-augmented validation images.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sweeper.config import Escape, Recipe
from sweeper.errors import ConfigError, SnapshotCorrupt
from sweeper.schedules import Trace, epochs_along, quench
from sweeper.store import Store
from sweeper.training.process import Epoch, TrainingProcess

State = Literal["yes", "no", "unclear"]
Weights = Mapping[str, NDArray[np.generic]]
Loss = Callable[[dict[str, NDArray[np.generic]]], float]
"""Loss of a network with these weights on a fixed, un-augmented subset. Recomputing its BatchNorm statistics for these
weights first is this function's work: without that barriers come out 1.6 to 5 times too high."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's; no weights, and large


# -- between two sets of weights


@dataclass(frozen=True)
class Barrier:
    """The straight line between two ends: ``height`` of its highest point, ``top``, above the worse end (0: none);
    ``first``, ``last`` the losses of the ends."""

    height: float
    top: float
    first: float
    last: float


@dataclass(frozen=True)
class PathBarrier:
    """``height = min(direct, along)``: the straight line, or the line from snapshot to snapshot, whichever is lower.

    A straight line through one *curved* valley crosses its wall, so ``direct`` alone cries "barrier" in most such
    cases; a path that stays in the valley shows that there is none. ``along`` is the highest loss on that path above
    the worse of its *outer* ends. (Above the worse end of each piece, a hill that has a snapshot on its top would count
    as none: a network with BatchNorm thrown out of its basin by a large LR does not come down in a short quench.)
    """

    height: float
    direct: Barrier
    along: float


def interpolate(first: Weights, last: Weights, share: float) -> dict[str, NDArray[np.generic]]:
    """``first + share * (last - first)`` for every floating array, computed in double, in the array's own type.

    Anything else (BatchNorm's counters) is taken from ``first``. ConfigError if names or shapes differ: that is what
    mixing EMA with raw weights, or two models, looks like.
    """
    _same(first, last)
    mixed = dict(first)
    for name, array in first.items():
        if np.issubdtype(array.dtype, np.floating):
            a, b = array.astype(np.float64), last[name].astype(np.float64)
            mixed[name] = (a + share * (b - a)).astype(array.dtype)
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
    direct = direct or barrier(loss, before, after, points=points)
    if not snapshots:
        return PathBarrier(direct.height, direct, direct.height)
    path = pairwise([before, *snapshots, after])
    losses = [direct.first, *(loss(dict(weights)) for weights in snapshots), direct.last]
    tops = [_line(loss, a, b, points, *ends).top for (a, b), ends in zip(path, pairwise(losses), strict=True)]
    along = max(tops) - max(direct.first, direct.last)
    return PathBarrier(min(direct.height, along), direct, along)


def distance(first: Weights, last: Weights) -> tuple[float, float]:
    """Relative L2 distance ``|last - first| / |first|`` and cosine of the angle, over all floating arrays together.

    A diagnostic, no evidence: weights travel far inside one basin. Leave BatchNorm's running statistics out: they are
    no weights and can be larger than all of them.
    """
    _same(first, last)
    names = [name for name, array in first.items() if np.issubdtype(array.dtype, np.floating)]
    a, b = (np.concatenate([np.asarray(w[name], dtype=np.float64).ravel() for name in names]) for w in (first, last))
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if norm_a == 0 or norm_b == 0:
        raise ConfigError("weight distance: all weights are 0 on one side; expected trained weights")
    return float(np.linalg.norm(b - a)) / norm_a, float(a @ b) / (norm_a * norm_b)


def _line(loss: Loss, first: Weights, last: Weights, points: int, at_first: float, at_last: float) -> Barrier:
    inner = [loss(interpolate(first, last, float(share))) for share in np.linspace(0.0, 1.0, points)[1:-1]]
    losses = [at_first, *inner, at_last]
    if not all(map(math.isfinite, losses)):
        raise ConfigError(f"loss between two snapshots is {losses}; expected finite numbers")
    return Barrier(max(losses) - max(at_first, at_last), max(losses), at_first, at_last)


def _same(first: Weights, last: Weights) -> None:
    shapes = [{name: array.shape for name, array in weights.items()} for weights in (first, last)]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()), key=str)[:3]
        raise ConfigError(f"weights differ in {odd}; expected two snapshots of one model, both EMA or both raw")


# -- around a restart


@dataclass(frozen=True)
class Movement:
    """Barriers in units of the loss. ``path``: along quenched snapshots. ``self_barrier``: between two quenches of one
    snapshot with other data orders, the noise. ``seeds``: between independent seeds, what "unrelated" means."""

    path: float
    self_barrier: float
    seeds: float

    @property
    def beta(self) -> float | None:
        """Path barrier as a share of the barrier between seeds; None where seeds are not separated at all."""
        return self.path / self.seeds if self.seeds > 0 else None

    def state(self, thresholds: Escape) -> tuple[State, str]:
        """Has it moved, and why one says so."""
        beta = self.beta
        facts = f"path barrier {self.path:.3g}, self-barrier {self.self_barrier:.3g}"
        facts += f", beta {beta:.3g}" if beta is not None else ", no barrier between seeds"
        if self.path <= self.self_barrier or (beta is not None and beta < thresholds.same_beta):
            return "no", facts
        if beta is not None and beta >= thresholds.moved_beta and self.path >= thresholds.over_self * self.self_barrier:
            return "yes", facts
        return "unclear", facts


@dataclass(frozen=True)
class Landscape:
    """What was measured around one restart; barriers in units of the loss per image.

    ``path``: the barrier that counts, the lower of ``direct`` (the straight line) and ``along`` (the quenched snapshots
    after ``snapshots`` epochs; None where the straight line already said that there is nothing to cross).
    ``self_barrier``: between two quenches of the state before, with other data orders. ``seeds``: to the run on
    another seed at the same epoch. ``distance``, ``cosine``: of the weights, a diagnostic.
    """

    start: int
    end: int
    path: float
    direct: float
    along: float | None
    self_barrier: float
    seeds: float
    snapshots: Sequence[int]
    distance: float
    cosine: float
    losses: int
    quenches: int
    quench_steps: int
    seconds: float

    @property
    def movement(self) -> Movement:
        """As the verdict wants it."""
        return Movement(self.path, self.self_barrier, self.seeds)


def measure(
    child: TrainingProcess,
    recipe: Recipe,
    trace: Trace,
    state: Callable[[int], bytes | None],
    other: Callable[[], bytes | None],
    *,
    start: int,
    end: int,
    settings: Escape,
    beat: Callable[[], None] = lambda: None,
) -> Landscape:
    """The landscape between epochs ``start`` (the state before the restart) and ``end`` (that of its cycle's end).

    ``state(epoch)``: the run's snapshot after so many epochs, None for the untrained one, before a restart in the first
    epoch; ``other()``: that of an independent seed after ``end``. ``beat`` is called between losses and may raise to
    stop. Where the straight line already shows that nothing was crossed the way is not walked: the path barrier can
    only be lower.
    """
    began = time.monotonic()
    steps = min(math.ceil(settings.quench * trace.steps), trace.steps_per_epoch)
    tail = quench(trace, epochs=2)
    spent = {"losses": 0, "quenches": 0}

    def quenched(state: bytes | None, order: int = 0) -> Weights:
        beat()
        spent["quenches"] += 1
        return child.quench(recipe, tail, epoch=trace.epochs + order, steps=steps, state=state)

    def loss(weights: dict[str, np.ndarray[Any, Any]]) -> float:
        beat()
        spent["losses"] += 1
        cost = {"batches": settings.bn_batches, "images": settings.val_images}
        return child.loss(recipe, weights, epoch=trace.epochs, **cost)

    first = state(start)
    before, again, after = quenched(first), quenched(first, order=1), quenched(state(end))
    direct = barrier(loss, before, after, points=settings.points)
    noise = barrier(loss, before, again, points=settings.points)
    seeds = barrier(loss, after, quenched(other()), points=settings.points)
    way: list[int] = []
    path, along = direct.height, None
    if Movement(direct.height, noise.height, seeds.height).state(settings)[0] != "no":
        way = epochs_along(trace, start, end, settings.snapshots)
        between = [quenched(state(epoch)) for epoch in way]
        walked = path_barrier(loss, before, between, after, points=settings.piece_points, direct=direct)
        path, along = walked.height, walked.along
    kept = [{name: w[name] for name in w if not name.endswith(_STATISTICS)} for w in (before, after)]
    apart, cosine = distance(*kept)
    return Landscape(
        start=start,
        end=end,
        path=path,
        direct=direct.height,
        along=along,
        self_barrier=noise.height,
        seeds=seeds.height,
        snapshots=way,
        distance=apart,
        cosine=cosine,
        **spent,
        quench_steps=steps,
        seconds=time.monotonic() - began,
    )


def states(
    store: Store,
    child: TrainingProcess,
    recipe: Recipe,
    trace: Trace,
    keys: Sequence[str],
    beat: Callable[[], None] = lambda: None,
) -> Callable[[int], bytes | None]:
    """Gives a run's snapshot after so many epochs: from the store, or trained again where it was evicted.

    After 0 epochs it is None, the untrained one. Trained again from the deepest one there is, which may be the one
    given last: ask for them in ascending order. ``beat`` is called while it is trained and may raise to stop.
    """
    last: tuple[int, bytes | None] = (0, None)

    def at(epoch: int) -> bytes | None:
        nonlocal last
        known = last if last[0] <= epoch else (0, None)
        depth = store.deepest(keys[: epoch + 1])
        if depth > known[0]:
            try:
                known = (depth, store.get(keys[depth]).state)
            except SnapshotCorrupt:  # it is out of the index now
                return at(epoch)
        if known[0] < epoch:
            known = (epoch, again(epoch, *known))
        last = known
        return known[1]

    def again(epoch: int, start: int, state: bytes | None) -> bytes | None:
        try:
            with contextlib.closing(child.train(recipe, trace, start=start, state=state)) as events:
                for event in events:
                    beat()
                    if isinstance(event, Epoch) and event.epoch + 1 == epoch:
                        return event.state
        except SnapshotCorrupt as error:  # the trainer does not take what the store has
            if not start:
                raise
            store.drop(keys[start], str(error))
        return at(epoch)

    return at
