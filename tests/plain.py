"""Ultralytics' trainer as it is, for comparisons bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweeper.config import Recipe
from sweeper.training.parts import SAME_NAMES, Parts, dataset_description

# isort: split
from ultralytics.models.yolo.detect import DetectionTrainer

EPOCHS = 3


class PlainTrainer(DetectionTrainer):
    """Ultralytics as it is, made to remember what its optimizer used; with loader processes, as is their default."""

    def __init__(self, recipe: Recipe, path: Path, folder: Path, **overrides: Any) -> None:
        self.used: list[list[tuple[str, np.float32, float | None]]] = []
        self.path, self.rounds = path, recipe.optimizer != "SGD"
        same = {name: getattr(recipe, name) for name in SAME_NAMES}
        super().__init__(
            overrides={
                **same,
                "data": str(path),
                "epochs": EPOCHS,
                "lr0": 0.01,
                "warmup_epochs": 1.0,
                "device": "cpu",
                "close_mosaic": 0,
                "amp": False,
                "plots": False,
                "save": False,
                "save_dir": str(folder),
                **overrides,
            }
        )
        self.args.workers = 2
        torch.set_num_threads(1)

    def get_dataset(self) -> dict[str, Any]:
        return dataset_description(self.path)  # theirs looks for a font on the internet

    def optimizer_step(self) -> None:
        used = []
        for group in self.optimizer.param_groups:
            times = round(group["initial_lr"] / 0.01)  # 3 in some groups of MuSGD
            schedule = np.float32(group["lr"] / times)
            if self.rounds:  # SGD itself rounds to float32, the others compute in double first
                group["lr"] = times * float(schedule)
                group |= {"momentum": float(np.float32(group["momentum"]))} if "momentum" in group else {}
            used.append((group["param_group"], schedule, group.get("momentum")))
        self.used.append(used)
        super().optimizer_step()

    def final_eval(self) -> None:
        """Theirs reads the checkpoint that is not saved here."""


class Marked:
    """Ultralytics' own loader of its own data set, whose batches say their epoch."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.epoch = loader, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            yield batch | {"epoch": [self.epoch]}
        self.epoch += 1


def with_stock_data(self: Parts, path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
    self.args.workers = 2
    loader = DetectionTrainer.get_dataloader(self, path, batch_size, rank, mode)
    return Marked(loader) if mode == "train" else loader
