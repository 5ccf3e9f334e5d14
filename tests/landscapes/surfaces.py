"""Analytic landscapes and gradient descent on them. Points have shape (runs, dimensions), losses (runs,)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeper import evidence
from sweeper.config import Escape
from sweeper.schedules import Trace, snapshot_epochs

Points = NDArray[np.float64]
FLOOR = 0.002  # LR of a quench and of the end of every anneal
QUENCH = 300  # steps of a quench


@dataclass(frozen=True)
class Surface:
    """``loss`` and ``gradient`` of points; ``noise`` is the standard deviation of each gradient's coordinate;
    ``start`` where runs begin; ``basin`` the true basin of quenched points (all 0 where there is only one)."""

    loss: Callable[[Points], NDArray[np.float64]]
    gradient: Callable[[Points], Points]
    noise: float
    start: Points
    basin: Callable[[Points], NDArray[np.int64]]


def tilted_double_well(k: float = 3.0, temperature: float = 0.4, tilt: float = 0.2, noise: float = 1.6) -> Surface:
    """``-T log(exp(-q1/T) + exp(-q2/T))``, q = k/2 (x -+ 1)^2: wells at -1 (worse by the tilt, the start) and +1.

    Five more quadratic dimensions of the same curvature. True escape: the sign of x after a quench.
    """

    def wells(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([k / 2 * (x + 1) ** 2 + tilt, k / 2 * (x - 1) ** 2]) / -temperature

    def loss(points: Points) -> NDArray[np.float64]:
        return -temperature * np.logaddexp(*wells(points[:, 0])) + k / 2 * (points[:, 1:] ** 2).sum(axis=1)

    def gradient(points: Points) -> Points:
        left, right = wells(points[:, 0])
        share = 1 / (1 + np.exp(np.clip(left - right, -700, 700)))  # of the right well
        slope = k * points
        slope[:, 0] += k * (1 - 2 * share)
        return slope

    return Surface(loss, gradient, noise, np.array([-1.0] + [0.0] * 5), lambda p: (p[:, 0] > 0).astype(np.int64))


def quadratic(noise: float = 1.6) -> Surface:
    """One bowl with curvatures from 0.3 to 3: nothing to escape from."""
    curvature = np.geomspace(0.3, 3.0, 6)
    return Surface(
        lambda p: 0.5 * (curvature * p**2).sum(axis=1), lambda p: curvature * p, noise, np.full(6, 1.5), _one
    )


def straight_river(slope: float = 0.05, noise: float = 1.6) -> Surface:
    """A straight valley that falls slowly along x, five steep directions across: progress, never a barrier."""
    curvature = np.array([0.0] + [3.0] * 5)
    down = np.array([slope] + [0.0] * 5)
    return Surface(
        lambda p: 0.5 * (curvature * p**2).sum(axis=1) - p @ down,
        lambda p: curvature * p - down,
        noise,
        np.zeros(6),
        _one,
    )


def curved_river(radius: float = 3.0, slope: float = 1.0, noise: float = 1.6) -> Surface:
    """A valley winding like a spiral staircase, falling slowly: one basin, yet a wall between any two distant points.

    The floor is at ``radius * (cos, sin)(z / radius)`` for the height z, three more steep directions across.
    Loss = 3/2 * distance^2 from the floor - slope * z.
    """

    def across(p: Points) -> tuple[Points, Points]:
        turn = p[:, :1] / radius
        floor = radius * np.concatenate([np.cos(turn), np.sin(turn)], axis=1)
        along = np.concatenate([-np.sin(turn), np.cos(turn)], axis=1)  # d floor / d z
        return p[:, 1:3] - floor, along

    def loss(p: Points) -> NDArray[np.float64]:
        off, _ = across(p)
        return 1.5 * (off**2).sum(axis=1) + 1.5 * (p[:, 3:] ** 2).sum(axis=1) - slope * p[:, 0]

    def gradient(p: Points) -> Points:
        off, along = across(p)
        return np.concatenate([-slope - 3 * (off * along).sum(axis=1, keepdims=True), 3 * off, 3 * p[:, 3:]], axis=1)

    return Surface(loss, gradient, noise, np.array([0.0, radius, 0.0, 0.0, 0.0, 0.0]), _one)


def _one(points: Points) -> NDArray[np.int64]:
    return np.zeros(len(points), dtype=np.int64)


def gradient_noise(surface: Surface, steps: int, runs: int, seed: int) -> NDArray[np.float64]:
    """The "data order": noise of every step of every run, shape (steps, runs, dimensions). Same seed, same order."""
    return surface.noise * np.random.default_rng(seed).standard_normal((steps, runs, len(surface.start)))


def descend(surface: Surface, points: Points, lr: NDArray[np.float32], order: NDArray[np.float64]) -> Points:
    """Noisy gradient descent: all points (steps + 1, runs, dimensions) on the way, the start included."""
    way = np.empty((len(lr) + 1, *points.shape))
    way[0] = points
    for step, rate in enumerate(lr.astype(np.float64)):
        way[step + 1] = way[step] - rate * (surface.gradient(way[step]) + order[step])
    return way


def start(surface: Surface, runs: int) -> Points:
    return np.tile(surface.start, (runs, 1))


def quenched(surface: Surface, points: Points, seed: int) -> Points:
    """A short anneal at the floor LR, whatever the data order of ``seed`` is."""
    lr = np.full(QUENCH, FLOOR * 10, dtype=np.float32) * np.linspace(1, 0.1, QUENCH, dtype=np.float32)
    return descend(surface, points, lr, gradient_noise(surface, QUENCH, len(points), seed))[-1]


def anneal(peak: float, steps: int, final: float = FLOOR) -> NDArray[np.float64]:
    return final + (peak - final) * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def restarted(base: float, scale: float, cycles: tuple[int, int]) -> Trace:
    """Two anneals, the second from ``scale`` times the base; one step an epoch."""
    lr = np.concatenate([anneal(base, cycles[0]), anneal(base * scale, cycles[1])])
    return Trace(lr, epochs=len(lr), marks=(cycles[0],))


@dataclass(frozen=True)
class Battery:
    """What a restart at ``step`` did in every run, by the detector and in truth, arrays of shape (runs,)."""

    moved: NDArray[np.str_]
    escaped: NDArray[np.bool_]
    path: NDArray[np.float64]
    direct: NDArray[np.float64]
    self_barrier: NDArray[np.float64]
    seeds: float


def battery(surface: Surface, trace: Trace, runs: int, *, seed: int = 0, thresholds: Escape | None = None) -> Battery:
    """Run the path barrier on every run of one restart, with self-barriers and the barrier between seeds as scales.

    The barrier between independent seeds is the mean over pairs of final points in *different* basins; where all seeds
    end in one basin, the largest seen between any two.
    """
    t = thresholds or Escape()
    step = trace.jumps()[0].step
    order = gradient_noise(surface, trace.steps, runs, seed)
    way = descend(surface, start(surface, runs), trace.lr, order)
    epochs = [step, *snapshot_epochs(trace, step, trace.epochs, t.snapshots), trace.epochs]
    bottoms = [quenched(surface, way[epoch], seed + 1 + i) for i, epoch in enumerate(epochs)]
    again = quenched(surface, way[step], seed + 1000)
    loss = point_loss(surface)
    paths, selves = [], []
    for run in range(runs):
        points = [{"w": bottom[run]} for bottom in bottoms]
        paths.append(evidence.path_barrier(loss, points[0], points[1:-1], points[-1], points=t.points))
        selves.append(evidence.barrier(loss, points[0], {"w": again[run]}, points=t.points).height)
    final = bottoms[-1]
    basins = surface.basin(final)
    others = np.roll(np.arange(runs), 1)
    between = np.array([evidence.barrier(loss, {"w": final[i]}, {"w": final[j]}).height for i, j in enumerate(others)])
    apart = basins != basins[others]
    seeds = float(between[apart].mean()) if apart.any() else float(between.max())
    moved = [evidence.Movement(path.height, own, seeds).moved(t)[0] for path, own in zip(paths, selves, strict=True)]
    return Battery(
        moved=np.array(moved),
        escaped=basins != surface.basin(bottoms[0]),
        path=np.array([p.height for p in paths]),
        direct=np.array([p.direct.height for p in paths]),
        self_barrier=np.array(selves),
        seeds=seeds,
    )


def point_loss(surface: Surface) -> Callable[[Mapping[str, NDArray[np.generic]]], float]:
    return lambda weights: float(surface.loss(np.asarray(weights["w"], dtype=np.float64)[None])[0])
