"""The LR trace: a float32 value per optimizer step, rounded once at birth; what is hashed, trained with and logged."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sweeper.errors import ScheduleError
from sweeper.schedules.time import TimeBase

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
    schedule leaves the momentum alone. ``marks``: the steps at which the family says that its curve breaks; they are
    no part of the trace's identity. Arrays are copied and cannot be written. Raises ScheduleError for a wrong length,
    a value that is not finite, or an LR below 0.

    >>> Trace([0.1, 0.05, 0.1, 0.05], steps_per_epoch=2, epochs=2, marks=(2,)).jumps()
    [Jump(step=2, epoch=1, ratio=2.0, kind='restart')]
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
        object.__setattr__(self, "lr", lr)
        object.__setattr__(
            self, "groups", {n: values for n, values in groups.items() if not np.array_equal(values, lr)}
        )
        if self.momentum is not None:
            object.__setattr__(self, "momentum", _column("momentum", self.momentum, steps))

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.lr)

    def group(self, name: str) -> Float32Array:
        """The LR of parameter group ``name``, float32[steps]: its own, or the main group's."""
        return self.groups.get(name, self.lr)

    def chunk(self, epoch: int) -> bytes:
        """Everything that the steps of ``epoch`` get, in canonical bytes: what a prefix key hashes.

        lr, then the groups that differ from it in this epoch by name, then the momentum if there is one; each as its
        name, a zero byte, the number of steps (8 bytes) and float32 values, all little-endian.

        >>> Trace([0.5], epochs=1).chunk(0)
        b'lr\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00?'
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

        A jump is where the *curve* breaks, not a steep stretch of it, not the stair of a curve that is held over each
        epoch, not the end of a warm-up. Values alone cannot always tell, so a family marks its breaks; ratio and kind
        are read from the values. A mark across which the LR does not change is no jump.
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
    def integral(self) -> float:
        """The LR summed over the steps, divided by the steps per epoch: LR times epochs."""
        return float(self.lr.sum(dtype=np.float64)) / self.steps_per_epoch

    @property
    def top(self) -> int:
        """The step with the highest LR before the first jump: the first one after the warm-up."""
        return int(self.lr[: min((jump.step for jump in self.jumps()), default=None)].argmax())

    @property
    def warmup_fraction(self) -> float:
        """The share of the steps before the LR is at the peak of its first cycle, the one before the first jump.

        >>> Trace([0.0, 0.1, 0.05, 0.2], epochs=4, marks=(3,)).warmup_fraction
        0.25
        """
        return self.top / self.steps

    def facts(self) -> dict[str, float]:
        """Numbers for a table: epochs, steps, peak, final, integral, warmup_fraction, restarts, drops."""
        kinds = [jump.kind for jump in self.jumps()]
        return {
            "epochs": self.epochs,
            "steps": self.steps,
            "peak": self.peak,
            "final": self.final,
            "integral": self.integral,
            "warmup_fraction": self.warmup_fraction,
            "restarts": kinds.count("restart"),
            "drops": kinds.count("drop"),
        }

    def common_prefix(self, other: "Trace") -> int:
        """How many first steps get exactly the same in both (every group and the momentum); 0 for other epochs' length.

        >>> Trace([0.1, 0.1, 0.01], epochs=3).common_prefix(Trace([0.1, 0.1, 0.1, 0.1], epochs=4))
        2
        """
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

    >>> long, short = Trace([0.1, 0.1, 0.1], epochs=3), Trace([0.1, 0.1], epochs=2)
    >>> prefix_keys("recipe", long)[:3] == prefix_keys("recipe", short)
    True
    """
    keys = [hashlib.sha256(root.encode())]
    for epoch in range(trace.epochs):
        keys.append(hashlib.sha256(keys[-1].digest() + trace.chunk(epoch)))
    return [key.hexdigest() for key in keys]
