"""Reads an optimizer's parameter groups in the moment in which it steps."""

from typing import Any

import numpy as np
import torch

from sweeper.training.applied import Applied


class Recorder:
    """Remembers what the groups of ``optimizer`` hold at each of its steps; no wait for a GPU.

    The hook runs after the update: by then every hook that others have put before it has run, and torch's optimizers
    do not change their settings.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
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
        skipped = [bool(found) for found in self._infinite]
        return Applied(self._names, held[:, :, 0], held[:, :, 1:], np.array(skipped, bool))

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._rows.append(self._held())
        # a fused optimizer is called in any case, and looks at this in its own kernel
        self._infinite.append(getattr(optimizer, "found_inf", False))

    def _held(self) -> list[tuple[Any, ...]]:
        return [(group["lr"], *_momentum(group)) for group in self._optimizer.param_groups]


def _momentum(group: dict[str, Any]) -> tuple[Any, ...]:
    return (group["momentum"],) if "momentum" in group else tuple(group["betas"])
