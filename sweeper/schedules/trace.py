"""The LR trace: a float32 value per optimizer step, rounded once at birth; what is hashed, trained with and logged.

Below it are the traces that are made from a trace: the control runs of a restart, and a quench. They begin with the
very same learning rates, so that their beginning is found among the stored states and is not trained again.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sweeper.errors import ScheduleError
from sweeper.schedules.values import FloatArray, TimeBase

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Jump:
    """A break of the LR: ``step`` is the first step after it, ``ratio`` = LR there / LR one step before."""

    step: int
    epoch: int
    ratio: float
    kind: Literal["restart", "drop"]


@dataclass(frozen=True, eq=False)
class Trace:
    """What every optimizer step of a run gets.

    ``lr``: float32[epochs * steps_per_epoch], the main parameter group. ``groups``: the same for groups that differ
    from it (others are dropped, so equal traces are equal objects). ``momentum``: float32[steps], or None where the
    schedule leaves it alone. ``marks``: the steps at which the family says that its curve breaks, no part of the
    trace's identity. Arrays are copied and cannot be written. Raises ScheduleError for a wrong length, a value that is
    not finite, or an LR below 0.
    """

    lr: Float32Array
    groups: Mapping[str, Float32Array] = field(default_factory=dict)
    momentum: Float32Array | None = None
    steps_per_epoch: int = 1
    epochs: int = 1
    marks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        steps = TimeBase(self.epochs, self.steps_per_epoch).steps
        lr = _column("lr", self.lr, steps)
        groups = {name: _column(f"lr of group {name}", self.groups[name], steps) for name in sorted(self.groups)}
        different = {name: values for name, values in groups.items() if not np.array_equal(values, lr)}
        object.__setattr__(self, "lr", lr)
        object.__setattr__(self, "groups", different)
        if self.momentum is not None:
            object.__setattr__(self, "momentum", _column("momentum", self.momentum, steps))

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.lr)

    def group(self, name: str) -> Float32Array:
        """The LR of parameter group ``name``, float32[steps]; the main group's unless it has another."""
        return self.groups.get(name, self.lr)

    def chunk(self, epoch: int) -> bytes:
        """Everything that the steps of ``epoch`` get, in canonical bytes: what a prefix key hashes.

        lr, then the groups that differ from it in this epoch by name, then the momentum if there is one; each as its
        name, a zero byte, the number of steps (8 bytes) and float32 values, all little-endian.
        """
        if not 0 <= epoch < self.epochs:
            raise ScheduleError(f"epoch: {epoch} is not in this trace; expected 0 to {self.epochs - 1}")
        part = slice(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch)
        main = self.lr[part]
        columns = [("lr", main)]
        columns += [(f"lr/{n}", v[part]) for n, v in self.groups.items() if not np.array_equal(v[part], main)]
        if self.momentum is not None:
            columns.append(("momentum", self.momentum[part]))
        return b"".join(
            name.encode() + b"\0" + len(values).to_bytes(8, "little") + values.astype("<f4", copy=False).tobytes()
            for name, values in columns
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the steps per epoch and every epoch's chunk: the schedule's identity."""
        hashed = hashlib.sha256(self.steps_per_epoch.to_bytes(8, "little"))
        for epoch in range(self.epochs):
            hashed.update(self.chunk(epoch))
        return hashed.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trace) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def jumps(self) -> list[Jump]:
        """The breaks of the main LR: a **restart** goes up, a **drop** goes down.

        Values alone cannot tell a break of the curve from a steep stretch, the stair of a curve that is held over each
        epoch, or the end of a warm-up. So a family marks its breaks; ratio and kind are read from the values. A mark
        across which the LR does not change is no jump.
        """
        jumps = []
        for step in self.marks:
            before, after = float(self.lr[step - 1]), float(self.lr[step])
            if before != after:
                ratio = after / before if before else float("inf")
                jumps.append(Jump(step, step // self.steps_per_epoch, ratio, "restart" if after > before else "drop"))
        return jumps

    @property
    def peak(self) -> float:
        """The highest LR of the main group."""
        return float(self.lr.max())

    @property
    def final(self) -> float:
        """The LR of the last step."""
        return float(self.lr[-1])

    @property
    def top(self) -> int:
        """The step with the highest LR before the first jump: the first one after the warm-up."""
        return int(self.lr[: min((jump.step for jump in self.jumps()), default=None)].argmax())

    @property
    def warmup_fraction(self) -> float:
        """The share of the steps before the LR is at the peak of its first cycle, the one before the first jump."""
        return self.top / self.steps

    def facts(self) -> dict[str, float]:
        """Numbers for a table; ``integral`` is the sum over the epochs of their mean LR."""
        kinds = [jump.kind for jump in self.jumps()]
        return {
            "epochs": self.epochs,
            "steps": self.steps,
            "peak": self.peak,
            "final": self.final,
            "integral": float(self.lr.sum(dtype=np.float64)) / self.steps_per_epoch,
            "warmup_fraction": self.warmup_fraction,
            "restarts": kinds.count("restart"),
            "drops": kinds.count("drop"),
        }

    def common_prefix(self, other: "Trace") -> int:
        """How many first steps get exactly the same in both, in every group and the momentum."""
        if self.steps_per_epoch != other.steps_per_epoch or (self.momentum is None) != (other.momentum is None):
            return 0
        steps = min(self.steps, other.steps)
        pairs = [(self.group(n), other.group(n)) for n in ("", *{*self.groups, *other.groups})]
        if self.momentum is not None and other.momentum is not None:
            pairs.append((self.momentum, other.momentum))
        for mine, theirs in pairs:
            differs = mine[:steps] != theirs[:steps]
            steps = int(differs.argmax()) if differs.any() else steps
        return steps

    def to_columns(self) -> dict[str, NDArray[np.generic]]:
        """The trace as columns of equal length: step, epoch, lr, lr/GROUP ..., momentum (if any)."""
        step = np.arange(self.steps, dtype=np.int64)
        columns: dict[str, NDArray[np.generic]] = {"step": step, "epoch": step // self.steps_per_epoch, "lr": self.lr}
        columns |= {f"lr/{name}": values for name, values in self.groups.items()}
        return columns if self.momentum is None else {**columns, "momentum": self.momentum}


def _column(name: str, values: object, steps: int) -> Float32Array:
    with np.errstate(over="ignore", under="ignore"):
        column = np.array(values, np.float32) + np.float32(0)  # a copy; -0 becomes 0, which is the same LR
    if column.shape != (steps,):
        raise ScheduleError(f"{name}: {column.shape} values are not one per step; expected {steps}")
    bad = ~np.isfinite(column) | (column < 0)
    if bad.any():
        step = int(bad.argmax())
        raise ScheduleError(f"{name}: {column[step]} at step {step} is not a finite number of at least 0")
    column.flags.writeable = False
    return column


def prefix_keys(root: str, trace: Trace) -> list[str]:
    """The names (hex) of the run's states after 0, 1 ... epochs: a chain of SHA-256 over recipe and LR trace.

    keys[0] = sha256(root), root being the recipe's digest; keys[e+1] = sha256(keys[e] as bytes + trace.chunk(e)).
    Two runs share keys[e] exactly if their recipe and everything that their first e epochs apply are the same.
    """
    keys = [hashlib.sha256(root.encode())]
    for epoch in range(trace.epochs):
        keys.append(hashlib.sha256(keys[-1].digest() + trace.chunk(epoch)))
    return [key.hexdigest() for key in keys]


#: Beginnings count as alike when they differ by less than this share of the peak LR and by less than this momentum.
#: yolo_linear and yolo_cosine, whose runs of one seed correlate with 0.88, differ by 6 % of the peak at the end of a
#: warm-up of 3 of 40 epochs. A bias group warmed up as the others are differs from the trainer's by several peaks.
ALIKE_LR, ALIKE_MOMENTUM = 0.1, 0.01


def begin_alike(trace: Trace, other: Trace, steps: int) -> bool:
    """Whether the first ``steps`` of two traces have nearly the same LR, in every group, and momentum.

    Runs of one seed that begin alike, up to the end of both warm-ups, stay correlated to the end; runs that begin
    otherwise have no more in common than runs of two seeds.
    """
    if trace.momentum is None or other.momentum is None:
        if trace.momentum is not other.momentum:
            return False
    elif np.abs(trace.momentum[:steps] - other.momentum[:steps]).max() > ALIKE_MOMENTUM:
        return False
    peak = max(trace.lr[:steps].max(), other.lr[:steps].max())
    groups = ("", *{*trace.groups, *other.groups})
    differences = [np.abs(trace.group(name)[:steps] - other.group(name)[:steps]).max() for name in groups]
    return bool(max(differences) <= ALIKE_LR * peak)


def counterfactual(trace: Trace, step: int) -> Trace:
    """The run without its jump at ``step`` (the first step after the jump): the no-restart branch.

    The same before ``step``, then half a cosine from the LR of the step before it to the run's final LR, in every
    parameter group; later jumps are gone too. The momentum stays as it was.
    """

    def without(lr: Float32Array) -> FloatArray:
        rest = _cosine(float(lr[step - 1]), float(lr[-1]), len(lr) - step + 1)[1:]
        return np.concatenate([lr[:step].astype(np.float64), rest])

    return _mapped(trace, without, tuple(mark for mark in trace.marks if mark < step))


def matched_peak(trace: Trace, step: int) -> Trace:
    """One anneal without restart whose peak is the LR of the restart at ``step``, over as many epochs.

    The run's warm-up, stretched to end at that peak (it begins where it began, so a bias group may still fall), then
    half a cosine to the run's final LR. What it reaches is what the restart's larger LR explains by itself.
    """
    warm, later = trace.top, [jump.step for jump in trace.jumps() if jump.step > step]
    top_of_cycle = step + int(trace.lr[step : min(later, default=None)].argmax())

    def anneal(lr: Float32Array) -> FloatArray:
        start, top, peak = float(lr[0]), float(lr[warm]), float(lr[top_of_cycle])
        share = (lr[:warm].astype(np.float64) - start) / (top - start) if top != start else np.ones(warm)
        return np.concatenate([start + share * (peak - start), _cosine(peak, float(lr[-1]), len(lr) - warm)])

    return _mapped(trace, anneal, ())


#: Families of control runs: name -> (trace of the run, step of its restart) -> trace of the control.
CONTROLS: dict[str, Callable[[Trace, int], Trace]] = {"counterfactual": counterfactual, "matched_peak": matched_peak}


def _cosine(first: float, last: float, steps: int) -> FloatArray:
    """``steps`` values from ``first`` to ``last``, both included."""
    share = np.linspace(0.0, 1.0, steps) if steps > 1 else np.zeros(steps)
    return last + (first - last) * (1 + np.cos(np.pi * share)) / 2


def _mapped(trace: Trace, change: Callable[[Float32Array], FloatArray], marks: tuple[int, ...]) -> Trace:
    groups = {name: change(lr).astype(np.float32) for name, lr in trace.groups.items()}
    return replace(trace, lr=change(trace.lr).astype(np.float32), groups=groups, marks=marks)


def quench(trace: Trace, epochs: int) -> Trace:
    """The run and then ``epochs`` more epochs at its lowest LR after the warm-up, the same in every group.

    A short training with these steps leads from any state of the run to the bottom of the valley below it. The momentum
    stays at its last value.
    """
    added, low = epochs * trace.steps_per_epoch, float(trace.lr[trace.top :].min())

    def then(column: Float32Array, value: float) -> Float32Array:
        return np.concatenate([column, np.full(added, value, dtype=np.float32)])

    return replace(
        trace,
        lr=then(trace.lr, low),
        groups={name: then(lr, low) for name, lr in trace.groups.items()},
        momentum=None if trace.momentum is None else then(trace.momentum, float(trace.momentum[-1])),
        epochs=trace.epochs + epochs,
    )


def epochs_along(trace: Trace, start: int, end: int, k: int) -> list[int]:
    """Up to ``k`` epochs strictly between ``start`` and ``end`` at which to take the snapshots of the path.

    Equal shares of the LR summed over the steps, not of the time: weights move fastest where the LR is high, and the
    longest piece decides how much of a curved valley's wall a straight line through it still touches. Each number
    counts finished epochs; fewer than k if there are not as many epochs.
    """
    per_epoch = trace.lr.astype(np.float64).reshape(trace.epochs, -1).sum(axis=1)[start:end]
    way = np.cumsum(per_epoch) / max(float(per_epoch.sum()), 1e-300)
    inner = list(range(start + 1, end))
    if len(inner) <= k:
        return inner
    chosen: list[int] = []
    for i in range(k):  # the closest epoch that leaves room for those still to come
        first = chosen[-1] - start if chosen else 0
        candidates = way[first : len(inner) - (k - i) + 1]
        chosen.append(inner[first + int(np.abs(candidates - (i + 1) / (k + 1)).argmin())])
    return chosen
