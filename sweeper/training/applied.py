"""What the optimizer used at every step of an epoch, recorded and compared with the schedule. Imports no torch.

The training process records. The worker compares with the trace that it built itself from the proposal, so it notices
a trainer that reads a trace wrongly and anything else in its process that sets a learning rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweeper.errors import LRMismatch

if TYPE_CHECKING:
    import torch

    from sweeper.config import Recipe
    from sweeper.schedules import Trace

FloatArray = NDArray[np.float64]

WITH_MOMENTUM = ("SGD", "MuSGD", "RMSProp")  # the others have betas, which no schedule changes
SECOND_BETA = 0.999
HEADS = 3.0  # Ultralytics' MuSGD makes two groups of each kind; the first holds the heads and takes 3 times the LR
WHY = "the trainer reads the trace wrongly, or something else in its process sets it"


@dataclass(frozen=True, eq=False)
class Applied:
    """What the optimizer's parameter groups held when its ``step`` ran, for every step of an epoch in order.

    ``groups``: the groups' names, in the optimizer's order; a name may occur twice. ``lr``: float64 (steps, groups).
    ``momentum``: float64 (steps, groups, 1), or (steps, groups, 2) with the two betas of Adam and its kin. ``skipped``:
    bool (steps,), where the gradient scaler of mixed precision skipped the update because a gradient was infinite; the
    groups then held what the update would have used.
    """

    groups: tuple[str, ...]
    lr: FloatArray
    momentum: FloatArray
    skipped: NDArray[np.bool_]

    def check(self, epoch: int, trace: "Trace", recipe: "Recipe", steps: int | None = None) -> None:
        """Raise LRMismatch at the first step of ``epoch`` that did not use what ``trace`` says.

        ``steps``: how many of the epoch's steps were asked for; None: all. The comparison is exact. A trace holds
        float32 and an optimizer float64: each LR must be the trace's value, converted to float64, times the group's
        multiple (1; 3 in the first group of each name of MuSGD). The momentum must be the trace's, converted alike,
        or the recipe's where the trace has none; betas must be the recipe's momentum and 0.999.
        """
        expected = trace.steps_per_epoch if steps is None else min(steps, trace.steps_per_epoch)
        part = slice(epoch * trace.steps_per_epoch, epoch * trace.steps_per_epoch + expected)
        if unknown := sorted(set(trace.groups) - set(self.groups)):
            raise LRMismatch(
                f"epoch {epoch}: the schedule has an LR for group {unknown[0]}, the optimizer has no such group; "
                f"expected one of {', '.join(dict.fromkeys(self.groups))}"
            )
        if len(self.lr) != expected:
            raise LRMismatch(
                f"epoch {epoch}: the optimizer made {len(self.lr)} steps, the schedule has {expected}; "
                "the trainer calls the optimizer at other batches than the recipe says"
            )
        factors = multiples(recipe.optimizer, self.groups)
        columns = [x * trace.group(name)[part].astype(np.float64) for x, name in zip(factors, self.groups, strict=True)]
        lr = np.stack(columns, axis=1)
        if recipe.optimizer in WITH_MOMENTUM:
            steady = np.full(expected, recipe.momentum)
            driven = steady if trace.momentum is None else trace.momentum[part].astype(np.float64)
            names, momentum = ["momentum"], np.broadcast_to(driven[:, None, None], (*lr.shape, 1))
        else:
            names = ["beta 1", "beta 2"]
            momentum = np.broadcast_to(np.array([recipe.momentum, SECOND_BETA]), (*lr.shape, 2))
        if self.momentum.shape[1:] != momentum.shape[1:]:
            raise LRMismatch(
                f"epoch {epoch}: the optimizer's groups have {self.momentum.shape[-1]} values for momentum, "
                f"{recipe.optimizer} has {len(names)} ({', '.join(names)}); the trainer built another optimizer"
            )
        pairs = {"LR": (self.lr, lr)}
        pairs |= {name: (self.momentum[:, :, i], momentum[:, :, i]) for i, name in enumerate(names)}
        for what, (applied, proposed) in pairs.items():
            wrong = applied != proposed  # NaN differs from everything
            if wrong.any():
                step, group = np.unravel_index(int(wrong.argmax()), wrong.shape)
                raise LRMismatch(
                    f"epoch {epoch}, step {part.start + step}: group {self.groups[group]} used {what} "
                    f"{float(applied[step, group])!r}, the schedule says {float(proposed[step, group])!r}; {WHY}"
                )


def multiples(optimizer: str, groups: Sequence[str]) -> list[float]:
    """By how much each of the optimizer's groups, in its order, multiplies the schedule's LR.

    >>> multiples("SGD", ["bias", "weight"]), multiples("MuSGD", ["weight", "weight", "bn", "bn"])
    ([1.0, 1.0], [3.0, 1.0, 3.0, 1.0])
    """
    if optimizer != "MuSGD":
        return [1.0] * len(groups)
    return [HEADS if name not in groups[:index] else 1.0 for index, name in enumerate(groups)]


class Recorder:
    """Remembers what the groups of ``optimizer`` hold at each of its steps, without waiting for a GPU.

    Its hook runs after the update, so every hook that may change a setting before the update has run by then. The
    update itself changes no setting.
    """

    def __init__(self, optimizer: "torch.optim.Optimizer") -> None:
        self._optimizer = optimizer
        self._names: tuple[str, ...] = tuple(group["param_group"] for group in optimizer.param_groups)
        self.clear()
        optimizer.register_step_post_hook(self._stepped)

    def clear(self) -> None:
        """Forget the steps so far: a new epoch begins."""
        self._rows: list[list[tuple[Any, ...]]] = []
        self._infinite: list[torch.Tensor | bool] = []

    @property
    def steps(self) -> int:
        """How many steps were recorded, skipped ones included."""
        return len(self._rows)

    def skipped(self) -> None:
        """The gradient scaler did not call the optimizer; note what the groups hold all the same."""
        self._rows.append(self._held())
        self._infinite.append(True)

    def applied(self) -> Applied:
        """All steps since ``clear``. Waits for the GPU once."""
        columns = len(self._held()[0])
        held = np.array(self._rows, np.float64).reshape(len(self._rows), len(self._names), columns)
        skipped = [bool(value) for value in self._infinite]
        return Applied(self._names, held[:, :, 0], held[:, :, 1:], np.array(skipped, bool))

    def _stepped(self, optimizer: "torch.optim.Optimizer", *_: object) -> None:
        self._rows.append(self._held())
        # a fused optimizer is called in any case, and looks at this in its own kernel
        self._infinite.append(getattr(optimizer, "found_inf", False))

    def _held(self) -> list[tuple[Any, ...]]:
        return [(group["lr"], *_momentum(group)) for group in self._optimizer.param_groups]


def _momentum(group: dict[str, Any]) -> tuple[Any, ...]:
    return (group["momentum"],) if "momentum" in group else tuple(group["betas"])
