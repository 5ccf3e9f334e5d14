"""Measures whether the loss has a barrier between the weights before and after a restart.

A quench is a short anneal of a state to the lowest learning rate. A training process computes quenches and losses. All
points are measured on the same images: weights are the EMA's; quenches and BatchNorm statistics use the training data
of the epoch after the run's last one, in which mosaic is as at the run's end; the loss is taken on the same validation
images without augmentation.
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
from sweeper.schedules import Trace, quench, snapshot_epochs
from sweeper.store import Store
from sweeper.training.process import Epoch, TrainingProcess

Moved = Literal["yes", "no", "unclear"]
Weights = Mapping[str, NDArray[np.generic]]
Loss = Callable[[dict[str, NDArray[np.generic]]], float]
"""The loss of a network with these weights on a fixed subset without augmentation. The function first recomputes the
BatchNorm statistics for these weights, because barriers are 1.6 to 5 times too high without that."""

# BatchNorm's statistics are left out of distances, because they are no weights, and larger than most weights.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


# -- Between two sets of weights


@dataclass(frozen=True)
class Barrier:
    """The losses on the straight line between two sets of weights: those of its ends, ``first`` and ``last``, the
    highest loss ``top``, and ``height``, by which ``top`` exceeds the worse end (0: no barrier)."""

    height: float
    top: float
    first: float
    last: float


@dataclass(frozen=True)
class PathBarrier:
    """The barrier between two sets of weights: ``height = min(direct.height, along)``.

    ``direct`` is the straight line. ``along`` is the barrier on the path from snapshot to snapshot: its highest loss
    minus the worse of the two outer ends. The straight line through one curved valley crosses the valley's wall, so
    that ``direct`` alone reports a barrier in most such cases; a path that stays in the valley shows that there is
    none. (Each piece of the path is not measured from its own ends, because a snapshot on top of a barrier would then
    hide it: a network with BatchNorm that a large learning rate threw out of its basin does not come down in a short
    quench.)
    """

    height: float
    direct: Barrier
    along: float


def interpolate(first: Weights, last: Weights, share: float) -> dict[str, NDArray[np.generic]]:
    """``first + share * (last - first)`` for every floating array, computed in double, in the array's own dtype.

    Other arrays (BatchNorm's counters) are those of ``first``. ConfigError if names or shapes differ, because then the
    weights come from two models, or EMA weights are mixed with raw ones.
    """
    _same(first, last)
    mixed = dict(first)
    for name, array in first.items():
        if np.issubdtype(array.dtype, np.floating):
            a, b = array.astype(np.float64), last[name].astype(np.float64)
            mixed[name] = (a + share * (b - a)).astype(array.dtype)
    return mixed


def barrier(loss: Loss, first: Weights, last: Weights, *, points: int = 11) -> Barrier:
    """The barrier on the straight line from ``first`` to ``last``, from ``points`` equally spaced losses with the
    ends."""
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
    """The barrier between ``before`` and ``after`` along ``snapshots`` of the training between them, in their order.

    All of them must be quenched in the same way, because raw weights at a high learning rate lie high on a valley's
    walls. ``points``: the losses on each piece of the path, with its ends. ``direct``: the straight line, if it is
    known already. The cost is ``(k + 2) * (points - 1)`` losses for k > 0 snapshots, ``(k + 1) * (points - 1) - 1``
    with ``direct``.
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
    """The relative L2 distance ``|last - first| / |first|`` and the cosine of the angle, over all floating arrays.

    They are no evidence of an escape, because weights travel far inside one basin. The caller leaves BatchNorm's
    running statistics out, because they are no weights and can be larger than all weights. ConfigError for weights that
    are 0.
    """
    _same(first, last)
    names = [name for name, array in first.items() if np.issubdtype(array.dtype, np.floating)]
    a, b = (np.concatenate([np.asarray(w[name], dtype=np.float64).ravel() for name in names]) for w in (first, last))
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if norm_a == 0 or norm_b == 0:
        raise ConfigError("weight distance: all weights are 0 on one side; expected trained weights")
    return float(np.linalg.norm(b - a)) / norm_a, float(a @ b) / (norm_a * norm_b)


def _line(loss: Loss, first: Weights, last: Weights, points: int, first_loss: float, last_loss: float) -> Barrier:
    inner = [loss(interpolate(first, last, float(share))) for share in np.linspace(0.0, 1.0, points)[1:-1]]
    losses = [first_loss, *inner, last_loss]
    if not all(map(math.isfinite, losses)):
        raise ConfigError(f"loss between two snapshots is {losses}; expected finite numbers")
    return Barrier(max(losses) - max(first_loss, last_loss), max(losses), first_loss, last_loss)


def _same(first: Weights, last: Weights) -> None:
    shapes = [{name: array.shape for name, array in weights.items()} for weights in (first, last)]
    if shapes[0] != shapes[1]:
        unequal = sorted(set(shapes[0].items()) ^ set(shapes[1].items()), key=str)[:3]
        raise ConfigError(f"weights differ in {unequal}; expected two snapshots of one model, both EMA or both raw")


# -- Around a restart


@dataclass(frozen=True)
class Movement:
    """The barriers that decide whether weights left their basin, in units of the loss.

    ``path``: between the weights before and after the restart, see :class:`PathBarrier`. ``self_barrier``: between two
    quenches of one snapshot that differ in their data order only; it is the noise. ``seeds``: between runs on two
    seeds, which are in unrelated basins; it is the scale.
    """

    path: float
    self_barrier: float
    seeds: float

    @property
    def beta(self) -> float | None:
        """The path barrier as a share of the barrier between seeds; None where no barrier separates the seeds."""
        return self.path / self.seeds if self.seeds > 0 else None

    def moved(self, thresholds: Escape) -> tuple[Moved, str]:
        """Whether the weights left their basin, and the measurements from which that follows, in words."""
        beta = self.beta
        reason = f"path barrier {self.path:.3g}, self-barrier {self.self_barrier:.3g}"
        reason += f", beta {beta:.3g}" if beta is not None else ", no barrier between seeds"
        if self.path <= self.self_barrier or (beta is not None and beta < thresholds.same_beta):
            return "no", reason
        if beta is not None and beta >= thresholds.moved_beta and self.path >= thresholds.over_self * self.self_barrier:
            return "yes", reason
        return "unclear", reason


@dataclass(frozen=True)
class Landscape:
    """The measurements around one restart; barriers are in units of the loss per image.

    ``start`` and ``end``: after so many epochs the states before the restart and at the end of its cycle were taken.
    ``path``: the barrier that counts, the lower of ``direct`` (the straight line) and ``along`` (the path through the
    states after ``snapshots`` epochs; None where the straight line already showed that there is no barrier).
    ``self_barrier``: between two quenches of the state before the restart, with different data orders. ``seeds``:
    between the state after ``end`` epochs and that of the run on another seed. ``distance``, ``cosine``: see
    :func:`distance`. ``losses``, ``quenches``: how many were computed, a quench of ``quench_steps`` steps, in
    ``seconds`` in all.
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
        """The barriers on which the verdict rests."""
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
    """Measure the landscape between the states after ``start`` epochs (before the restart) and ``end`` (end of its
    cycle).

    ``state(epochs)``: returns the run's snapshot after so many epochs, None for the untrained model; ``other()``: the
    snapshot of a run on another seed after ``end`` epochs. ``beat`` is called before each loss and quench, and may
    raise to stop. Where the straight line already shows no barrier the path is not measured, because it can only be
    lower.
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
    before, before_reordered, after = quenched(first), quenched(first, order=1), quenched(state(end))
    direct = barrier(loss, before, after, points=settings.points)
    noise = barrier(loss, before, before_reordered, points=settings.points)
    seeds = barrier(loss, after, quenched(other()), points=settings.points)
    epochs: list[int] = []
    path, along = direct.height, None
    if Movement(direct.height, noise.height, seeds.height).moved(settings)[0] != "no":
        epochs = snapshot_epochs(trace, start, end, settings.snapshots)
        between = [quenched(state(epoch)) for epoch in epochs]
        measured = path_barrier(loss, before, between, after, points=settings.piece_points, direct=direct)
        path, along = measured.height, measured.along
    weights = [{name: w[name] for name in w if not name.endswith(_STATISTICS)} for w in (before, after)]
    relative_distance, cosine = distance(*weights)
    return Landscape(
        start=start,
        end=end,
        path=path,
        direct=direct.height,
        along=along,
        self_barrier=noise.height,
        seeds=seeds.height,
        snapshots=epochs,
        distance=relative_distance,
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
    """A function that returns the run's snapshot after so many epochs; None after 0 epochs, the untrained model.

    The snapshot comes from the store. Where it was evicted, training is repeated from the deepest snapshot at hand: one
    in the store, or the one returned last, so that a caller saves training by asking in ascending order. ``keys`` are
    the run's prefix keys. ``beat`` is called for each event of that training, and may raise to stop.
    """
    last: tuple[int, bytes | None] = (0, None)

    def snapshot(epochs: int) -> bytes | None:
        nonlocal last
        nearest = last if last[0] <= epochs else (0, None)
        depth = store.deepest(keys[: epochs + 1])
        if depth > nearest[0]:
            try:
                nearest = (depth, store.get(keys[depth]).state)
            except SnapshotCorrupt:  # ``get`` has removed it from the index, so the next try takes another one.
                return snapshot(epochs)
        if nearest[0] < epochs:
            nearest = (epochs, trained(epochs, *nearest))
        last = nearest
        return nearest[1]

    def trained(epochs: int, start: int, state: bytes | None) -> bytes | None:
        try:
            with contextlib.closing(child.train(recipe, trace, start=start, state=state)) as events:
                for event in events:
                    beat()
                    if isinstance(event, Epoch) and event.epoch + 1 == epochs:
                        return event.state
        except SnapshotCorrupt as error:  # The trainer cannot load the state from the store, so it is dropped.
            if not start:
                raise
            store.drop(keys[start], str(error))
        return snapshot(epochs)

    return snapshot
