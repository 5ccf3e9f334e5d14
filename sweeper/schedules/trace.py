"""The LR trace of a run: a float32 learning rate per optimizer step, which is hashed, trained with and logged.

Functions below make other traces from a trace: the control runs of a restart, and a quench. They keep the first
learning rates bit by bit, so that the states of these epochs are found in the store and are not trained again.
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
    """A break of the LR. ``step`` is the first step after it; ``ratio`` is the LR there divided by the LR before."""

    step: int
    epoch: int
    ratio: float
    kind: Literal["restart", "drop"]


@dataclass(frozen=True, eq=False)
class Trace:
    """The learning rates and the momentum of every optimizer step of a run.

    ``lr``: float32[epochs * steps_per_epoch], the LR of the main parameter group. ``groups``: the same for other groups
    by name; a group that equals the main group is left out, so that equal traces are equal objects. ``momentum``:
    float32[steps], or None if the schedule does not change it. ``marks``: the steps at which the family's LR breaks;
    ``digest`` does not include them. Arrays are copied and read-only. Raises ScheduleError for a wrong length, a value
    that is not finite, or an LR below 0.
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
        """The number of optimizer steps."""
        return len(self.lr)

    def group(self, name: str) -> Float32Array:
        """The LR of parameter group ``name``, float32[steps]; the main group's unless it has its own."""
        return self.groups.get(name, self.lr)

    def chunk(self, epoch: int) -> bytes:
        """The learning rates and momentum of ``epoch`` (from 0) in canonical bytes, which a prefix key hashes.

        These are the columns lr, the groups that differ from it in this epoch by name, and the momentum if there is
        one. Each is its name, a zero byte, the number of steps (8 bytes) and float32 values, all little-endian.
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
        """SHA-256 (hex) of the steps per epoch and every epoch's chunk, which identifies the schedule."""
        hashed = hashlib.sha256(self.steps_per_epoch.to_bytes(8, "little"))
        for epoch in range(self.epochs):
            hashed.update(self.chunk(epoch))
        return hashed.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trace) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def jumps(self) -> list[Jump]:
        """The jumps of the main group's LR: a **restart** is a jump up, a **drop** a jump down.

        They are the ``marks`` at which the LR changes. Marks are needed because values alone do not distinguish a jump
        from a steep decay, from the stairs of a curve that is held over each epoch, or from the end of a warm-up.
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
    def peak_step(self) -> int:
        """The step with the highest LR before the first jump, which is the first step after the warm-up."""
        return int(self.lr[: min((jump.step for jump in self.jumps()), default=None)].argmax())

    @property
    def warmup_fraction(self) -> float:
        """The share of the run's steps that come before ``peak_step``."""
        return self.peak_step / self.steps

    def facts(self) -> dict[str, float]:
        """Figures for tables, params and trial attributes; ``integral`` is the sum over the epochs of their mean LR."""
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
        """The number of first steps in which both traces are equal bit by bit, in every group and the momentum."""
        if self.steps_per_epoch != other.steps_per_epoch or (self.momentum is None) != (other.momentum is None):
            return 0
        steps = min(self.steps, other.steps)
        pairs = [(self.group(n), other.group(n)) for n in ("", *{*self.groups, *other.groups})]
        if self.momentum is not None and other.momentum is not None:
            pairs.append((self.momentum, other.momentum))
        for own_column, other_column in pairs:
            differs = own_column[:steps] != other_column[:steps]
            steps = int(differs.argmax()) if differs.any() else steps
        return steps

    def to_columns(self) -> dict[str, NDArray[np.generic]]:
        """The trace as columns of equal length: step, epoch, lr, lr/GROUP for each group, momentum (if any)."""
        step = np.arange(self.steps, dtype=np.int64)
        columns: dict[str, NDArray[np.generic]] = {"step": step, "epoch": step // self.steps_per_epoch, "lr": self.lr}
        columns |= {f"lr/{name}": values for name, values in self.groups.items()}
        return columns if self.momentum is None else {**columns, "momentum": self.momentum}


def _column(name: str, values: object, steps: int) -> Float32Array:
    """A read-only copy of ``values`` as float32[steps]. Raises ScheduleError."""
    with np.errstate(over="ignore", under="ignore"):
        column = np.array(values, np.float32) + np.float32(0)  # The sum turns -0 into 0, because bytes are compared.
    if column.shape != (steps,):
        raise ScheduleError(
            f"{name}: an array of shape {column.shape} does not fit; expected {steps} values, one per step"
        )
    bad = ~np.isfinite(column) | (column < 0)
    if bad.any():
        step = int(bad.argmax())
        raise ScheduleError(
            f"{name}: {column[step]} at step {step} is not allowed; expected a finite number of at least 0"
        )
    column.flags.writeable = False
    return column


def prefix_keys(root: str, trace: Trace) -> list[str]:
    """The keys (hex) of the run's states after 0, 1 ... epochs: a chain of SHA-256 over recipe and LR trace.

    keys[0] = sha256(root), where root is the recipe's digest, and keys[e+1] = sha256(bytes of keys[e] +
    trace.chunk(e)). Two runs share keys[e] if and only if they have the same recipe and the same first e epochs of
    their traces.
    """
    keys = [hashlib.sha256(root.encode())]
    for epoch in range(trace.epochs):
        keys.append(hashlib.sha256(keys[-1].digest() + trace.chunk(epoch)))
    return [key.hexdigest() for key in keys]


#: Two traces begin alike if they differ by at most this share of the peak LR and at most this much in the momentum.
#: yolo_linear and yolo_cosine differ by 6 % of the peak at the end of a warm-up of 3 of 40 epochs, and two runs of one
#: seed correlate with 0.88. Without the trainer's warm-up of the bias group the difference is several peaks.
ALIKE_LR, ALIKE_MOMENTUM = 0.1, 0.01


def begin_alike(trace: Trace, other: Trace, steps: int) -> bool:
    """Whether the first ``steps`` of two traces have nearly the same LR in every group, and nearly the same momentum.

    Two runs of one seed that begin alike, up to the end of both warm-ups, stay correlated to the end. Two runs of one
    seed that begin otherwise are no more correlated than runs of two seeds.
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
    """The control run without the jump at ``step``, which is the first step after the jump.

    It equals ``trace`` before ``step``. From there the LR of every parameter group falls as half a cosine, from its
    value before the jump to its final value in ``trace``, without later jumps. The momentum is that of ``trace``.
    """

    def anneal(lr: Float32Array) -> FloatArray:
        rest = _cosine(float(lr[step - 1]), float(lr[-1]), len(lr) - step + 1)[1:]
        return np.concatenate([lr[:step].astype(np.float64), rest])

    return _mapped(trace, anneal, tuple(mark for mark in trace.marks if mark < step))


def matched_peak(trace: Trace, step: int) -> Trace:
    """The control run of as many epochs with a single decay, from the peak LR of the cycle that begins at ``step``.

    Its warm-up is that of ``trace``, scaled to end at this peak; it starts at the LR at which that of ``trace`` starts.
    Then the LR falls as half a cosine to the final LR of ``trace``. The score of this run is what the larger LR of the
    restart explains without the restart.
    """
    warm, later = trace.peak_step, [jump.step for jump in trace.jumps() if jump.step > step]
    cycle_peak = step + int(trace.lr[step : min(later, default=None)].argmax())

    def anneal(lr: Float32Array) -> FloatArray:
        start, top, peak = float(lr[0]), float(lr[warm]), float(lr[cycle_peak])
        share = (lr[:warm].astype(np.float64) - start) / (top - start) if top != start else np.ones(warm)
        return np.concatenate([start + share * (peak - start), _cosine(peak, float(lr[-1]), len(lr) - warm)])

    return _mapped(trace, anneal, ())


#: The families of control runs: name -> function of the run's trace and its restart's step, to the control's trace.
CONTROLS: dict[str, Callable[[Trace, int], Trace]] = {"counterfactual": counterfactual, "matched_peak": matched_peak}


def _cosine(first: float, last: float, steps: int) -> FloatArray:
    """Half a cosine of ``steps`` values from ``first`` to ``last``, both included."""
    share = np.linspace(0.0, 1.0, steps) if steps > 1 else np.zeros(steps)
    return last + (first - last) * (1 + np.cos(np.pi * share)) / 2


def _mapped(trace: Trace, change: Callable[[Float32Array], FloatArray], marks: tuple[int, ...]) -> Trace:
    """``trace`` with the LR of each group changed by ``change``, and with these ``marks``."""
    groups = {name: change(lr).astype(np.float32) for name, lr in trace.groups.items()}
    return replace(trace, lr=change(trace.lr).astype(np.float32), groups=groups, marks=marks)


def quench(trace: Trace, epochs: int) -> Trace:
    """``trace`` and then ``epochs`` more epochs at its lowest LR after the warm-up, the same in every group.

    A short training with these additional steps leads from any state of the run to a nearby minimum of the loss. The
    momentum stays at its last value.
    """
    added, low = epochs * trace.steps_per_epoch, float(trace.lr[trace.peak_step :].min())

    def then(column: Float32Array, value: float) -> Float32Array:
        return np.concatenate([column, np.full(added, value, dtype=np.float32)])

    return replace(
        trace,
        lr=then(trace.lr, low),
        groups={name: then(lr, low) for name, lr in trace.groups.items()},
        momentum=None if trace.momentum is None else then(trace.momentum, float(trace.momentum[-1])),
        epochs=trace.epochs + epochs,
    )


def snapshot_epochs(trace: Trace, start: int, end: int, k: int) -> list[int]:
    """Up to ``k`` epochs strictly between ``start`` and ``end``, for snapshots along the path of the weights.

    Epochs are counted as finished ones. Between neighbouring snapshots the sum of the LR over the steps is the same, as
    nearly as possible, because weights move faster at a higher LR. Equal distances matter because the loss is measured
    on straight lines between snapshots, and a long line leaves a curved valley. Fewer than ``k`` epochs are returned if
    there are no more between ``start`` and ``end``.
    """
    per_epoch = trace.lr.astype(np.float64).reshape(trace.epochs, -1).sum(axis=1)[start:end]
    travelled = np.cumsum(per_epoch) / max(float(per_epoch.sum()), 1e-300)
    inner = list(range(start + 1, end))
    if len(inner) <= k:
        return inner
    chosen: list[int] = []
    for i in range(k):  # Each is the nearest epoch that leaves enough later epochs for the remaining snapshots.
        first = chosen[-1] - start if chosen else 0
        candidates = travelled[first : len(inner) - (k - i) + 1]
        chosen.append(inner[first + int(np.abs(candidates - (i + 1) / (k + 1)).argmin())])
    return chosen
