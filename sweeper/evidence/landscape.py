"""Is there a hill between before and after a restart? Quenches and losses come from a training process.

Everything is measured alike: weights are the EMA's, quenches and BatchNorm statistics use the data of the epoch after
the run's last one (so no two points differ in their images, and mosaic is as at the run's end), the loss is on the same
un-augmented validation images.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sweeper.config import Escape, Recipe
from sweeper.errors import SnapshotCorrupt
from sweeper.evidence.barrier import Weights, barrier, distance, path_barrier
from sweeper.evidence.verdict import Movement
from sweeper.schedules import Trace, epochs_along, quench
from sweeper.store import Store
from sweeper.training.process import Epoch, TrainingProcess

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's; no weights, and large


@dataclass(frozen=True)
class Landscape:
    """What was measured around one restart; barriers in units of the loss per image.

    ``path``: the barrier that counts, the lower of ``direct`` (the straight line) and ``along`` (the quenched snapshots
    after ``snapshots`` epochs; None where the straight line already said that there is nothing to cross).
    ``self_barrier``: between two quenches of the state before, with other data orders. ``seeds``: to the run on
    ``other_seed`` at the same epoch. ``distance``, ``cosine``: of the weights, a diagnostic.
    """

    start: int
    end: int
    path: float
    direct: float
    along: float | None
    self_barrier: float
    seeds: float
    snapshots: tuple[int, ...]
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; all numbers are finite."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Landscape":
        """What ``to_dict`` gave."""
        return cls(**{**data, "snapshots": tuple(data["snapshots"])})


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
    epoch; ``other()``: that of an independent seed after ``end``.
    ``beat`` is called between losses and may raise to stop. Where the straight line already shows that nothing was
    crossed the way is not walked: the path barrier can only be lower.
    """
    began = time.monotonic()
    steps = min(math.ceil(settings.quench * trace.steps), trace.steps_per_epoch)
    tail = quench(trace, trace.epochs, epochs=2)
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
    own = barrier(loss, before, again, points=settings.points)
    seeds = barrier(loss, after, quenched(other()), points=settings.points)
    way: list[int] = []
    path, along = direct.height, None
    if Movement(direct.height, own.height, seeds.height).state(settings)[0] != "no":
        way = epochs_along(trace, start, end, settings.snapshots)
        between = [quenched(state(epoch)) for epoch in way]
        walked = path_barrier(loss, before, between, after, points=settings.piece_points, direct=direct)
        path, along = walked.height, walked.along
    apart, cosine = distance(_weights(before), _weights(after))
    return Landscape(
        start=start,
        end=end,
        path=path,
        direct=direct.height,
        along=along,
        self_barrier=own.height,
        seeds=seeds.height,
        snapshots=tuple(way),
        distance=apart,
        cosine=cosine,
        **spent,
        quench_steps=steps,
        seconds=time.monotonic() - began,
    )


def _weights(arrays: Weights) -> Weights:
    return {name: array for name, array in arrays.items() if not name.endswith(_STATISTICS)}


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
        found = last if last[0] <= epoch else (0, None)
        depth = store.deepest(keys[: epoch + 1])
        if depth > found[0]:
            try:
                found = (depth, store.get(keys[depth]).state)
            except SnapshotCorrupt:  # it is out of the index now
                return at(epoch)
        if found[0] < epoch:
            found = (epoch, again(epoch, *found))
        last = found
        return found[1]

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
