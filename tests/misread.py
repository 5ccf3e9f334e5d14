"""Trainers that are real but for one thing: they do not apply the trace that they are given."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sweeper import training
from sweeper.config import Recipe
from sweeper.schedules import Trace
from sweeper.training.torchvision import TorchvisionParts, TorchvisionTrainer
from sweeper.training.ultralytics import UltralyticsTrainer

#: What is wrong in the training of a schedule, by its peak.
WRONG = {0.021: "late", 0.022: "group", 0.023: "momentum", 0.024: "twice"}


class Misreading:
    """Goes before the parts of a real trainer."""

    def plan(self, epoch: int, trace: Trace) -> Iterator[tuple[list[float], float]]:
        """The plan of another trace: one step late, without the groups' own LRs, or with the momentum one step late."""
        self.wrong = WRONG.get(round(trace.peak, 3))
        lr, groups, momentum = trace.lr, dict(trace.groups), trace.momentum
        if self.wrong == "late":
            lr, groups = np.roll(lr, 1), {name: np.roll(column, 1) for name, column in groups.items()}
        elif self.wrong == "group":
            groups = {}
        elif self.wrong == "momentum" and momentum is not None:
            momentum = np.roll(momentum, 1)
        other = Trace(lr, groups, momentum, trace.steps_per_epoch, trace.epochs)
        yield from super().plan(epoch, other)  # type: ignore[misc]

    def step(self, lrs: list[float], momentum: float) -> None:
        """As planned, but with other betas, or twice."""
        for group in self.optimizer.param_groups:  # type: ignore[attr-defined]
            if self.wrong == "momentum" and "betas" in group:
                group["betas"] = (0.9, 0.999)
        super().step(lrs, momentum)  # type: ignore[misc]
        if self.wrong == "twice":
            super().step(lrs, momentum)  # type: ignore[misc]


class YoloParts(Misreading, UltralyticsTrainer.parts_class):  # type: ignore[misc]
    """YOLO's."""


class BoxParts(Misreading, TorchvisionParts):
    """torchvision's."""


class Yolo(UltralyticsTrainer):
    """YOLO's trainer with them."""

    parts_class = YoloParts


class Box(TorchvisionTrainer):
    """torchvision's trainer with them."""

    parts_class = BoxParts


def open_trainer(recipe: Recipe, **more: Any) -> training.Trainer:
    """Opens the one that the recipe's model needs; for a training process."""
    folder: Path = more["folder"]
    kind = Box if recipe.model.startswith(training.TORCHVISION) else Yolo
    return kind(recipe, device=more["device"], threads=more["threads"], folder=folder)
