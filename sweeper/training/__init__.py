"""The protocol that the trainers of all families of detectors share. This module imports no torch.

A trainer's state after epoch ``n`` is a pure function of its recipe and of the learning rates so far. So ``load`` of
any epoch's state followed by ``train_epoch`` gives, bit for bit, the result of an uninterrupted run: on the same
machine, in the same process or another, in any order of epochs.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sweeper.errors import LRMismatch

if TYPE_CHECKING:
    from sweeper.config import Recipe
    from sweeper.schedules import Trace

TORCHVISION = ("fasterrcnn_", "retinanet_", "fcos_")  # prefixes of the names of torchvision's models
WITH_MOMENTUM = ("SGD", "MuSGD", "RMSProp")  # The other optimizers have betas, which no schedule changes.
SECOND_BETA = 0.999
HEAD_MULTIPLE = 3.0  # Ultralytics' MuSGD has two groups of each name; the first holds the heads and gets 3 times the LR
MAX_LOADERS = 8


@dataclass(frozen=True, eq=False)
class Applied:
    """The settings of the optimizer's parameter groups when its ``step`` ran, for every step of an epoch in order.

    ``groups``: the groups' names, in the optimizer's order; a name may occur twice. ``lr``: float64 (steps, groups).
    ``momentum``: float64 (steps, groups, 1), or (steps, groups, 2) with the two betas of Adam and its variants.
    ``skipped``: bool (steps,), True where the gradient scaler of mixed precision skipped the update because a gradient
    was infinite; the settings are those that the update would have used.

    The training process records them. The worker compares them with the trace that it built itself from the proposal,
    so it detects a trainer that misreads a trace, and any other code in that process that sets a learning rate.
    """

    groups: tuple[str, ...]
    lr: NDArray[np.float64]
    momentum: NDArray[np.float64]
    skipped: NDArray[np.bool_]

    def check(self, epoch: int, trace: "Trace", recipe: "Recipe", steps: int | None = None) -> None:
        """Raise LRMismatch at the first step of ``epoch`` whose settings differ from ``trace``.

        ``steps``: how many of the epoch's steps were requested; None: all. The comparison is exact. A trace holds
        float32 and an optimizer float64: each LR must be the trace's value, converted to float64, times the group's
        multiple (1; 3 in the first group of each name of MuSGD). The momentum must be the trace's, converted alike,
        or the recipe's where the trace has none; the betas must be the recipe's momentum and 0.999.
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
        traces = zip(factors, (trace.group(name)[part] for name in self.groups), strict=True)
        lr = np.stack([factor * column.astype(np.float64) for factor, column in traces], axis=1)
        if recipe.optimizer in WITH_MOMENTUM:
            constant = np.full(expected, recipe.momentum)
            momenta = {"momentum": constant if trace.momentum is None else trace.momentum[part].astype(np.float64)}
        else:
            momenta = {"beta 1": np.full(expected, recipe.momentum), "beta 2": np.full(expected, SECOND_BETA)}
        if self.momentum.shape[-1] != len(momenta):
            raise LRMismatch(
                f"epoch {epoch}: the optimizer's groups have {self.momentum.shape[-1]} values for momentum, "
                f"{recipe.optimizer} has {len(momenta)} ({', '.join(momenta)}); the trainer built another optimizer"
            )
        pairs = {"LR": (self.lr, lr)}
        pairs |= {name: (self.momentum[:, :, i], momenta[name][:, None]) for i, name in enumerate(momenta)}
        for setting, (applied, proposed) in pairs.items():
            wrong = applied != proposed  # also where a value is NaN
            if wrong.any():
                step, group = np.unravel_index(int(wrong.argmax()), wrong.shape)
                expected_value = np.broadcast_to(proposed, wrong.shape)[step, group]
                raise LRMismatch(
                    f"epoch {epoch}, step {part.start + step}: group {self.groups[group]} used {setting} "
                    f"{float(applied[step, group])!r}, the schedule says {float(expected_value)!r}; the trainer "
                    "reads the trace wrongly, or something else in its process sets it"
                )


def multiples(optimizer: str, groups: Sequence[str]) -> list[float]:
    """The factor of the schedule's LR in each of the optimizer's groups, in the order of ``groups``, their names.

    >>> multiples("SGD", ["bias", "weight"]), multiples("MuSGD", ["weight", "weight", "bn", "bn"])
    ([1.0, 1.0], [3.0, 1.0, 3.0, 1.0])
    """
    return [HEAD_MULTIPLE if optimizer == "MuSGD" and name not in groups[:i] else 1.0 for i, name in enumerate(groups)]


@dataclass(frozen=True)
class EpochLog:
    """The record of one epoch of training.

    ``lr``: float32 (steps_per_epoch,), the main group's learning rate as read from the optimizer when it stepped.
    ``losses``: means over the epoch's batches, ``train/box_loss`` and so on, and the number ``train/skipped_steps`` if
    mixed precision skipped any. ``applied``: the settings of all groups of the optimizer.
    """

    lr: np.ndarray
    losses: dict[str, float]
    applied: Applied


@dataclass(frozen=True)
class Detections:
    """The detections in one image after non-maximum suppression, best score first.

    ``path``: the image in the data set's private folder. ``boxes``: float32 (n, 4), x1 y1 x2 y2 in pixels of the
    image, clipped to it. ``scores``: float32 (n,). ``classes``: int64 (n,), indices of the data set's names.
    """

    path: str
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the averaged weights (EMA) on the validation images.

    ``metrics``: ``mAP50-95``, ``mAP50``, ``precision``, ``recall`` on the trainer's own scale, which is not comparable
    with COCO's, and the validation losses, ``val/box_loss`` and so on. ``detections``: one element per image.
    """

    metrics: dict[str, float]
    detections: list[Detections]


def no_beat(batch: int) -> None:
    """Report no progress."""


class Trainer(Protocol):
    """One model in training.

    ``groups``: the distinct names of its parameter groups. ``steps_per_epoch``: its optimizer updates per epoch.
    """

    steps_per_epoch: int
    groups: tuple[str, ...]

    def train_epoch(
        self, epoch: int, trace: "Trace", beat: Callable[[int], None] = no_beat, *, steps: int | None = None
    ) -> EpochLog:
        """Train epoch ``epoch`` (from 0) with the learning rates of ``trace``.

        ``beat`` is called for every batch with its number. ``steps``: stop after so many optimizer steps, for a quench;
        training cannot go on from there. Raises NotFinite, OutOfMemory, or what ``beat`` raises; the state is then
        undefined until ``load``. The caller checks by ``log.applied.check`` that the optimizer used the trace.
        """

    def evaluate(self, beat: Callable[[int], None] = no_beat) -> Evaluation:
        """Evaluate the EMA, without any effect on the training. ``beat`` is called for every batch with its number."""

    def state(self) -> bytes:
        """The state that training continues from, in full precision; loads with ``torch.load(weights_only=True)``."""

    def state_digest(self) -> str:
        """SHA-256 (hex) over every tensor and counter of the model, the EMA and the optimizer."""

    def copied(self) -> Callable[[], tuple[bytes, str]]:
        """Copy the current state. The returned function gives ``state`` and ``state_digest`` of it, in any thread."""

    def load(self, state: bytes) -> None:
        """Restore a state. Raises SnapshotCorrupt if it belongs to another model or optimizer."""

    def weights(self) -> bytes:
        """The EMA's state_dict, for inference; loads with ``torch.load(weights_only=True)``."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of the EMA's weights and buffers, by name."""

    def set_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the EMA's weights and buffers, to measure the loss landscape; ``load`` a state before training."""

    def recompute_bn(self, epoch: int, batches: int) -> None:
        """Recompute the EMA's BatchNorm statistics as means over the first augmented training batches of ``epoch``."""

    def val_loss(self, images: int = 64) -> float:
        """The EMA's loss per image on the first ``images`` validation images, without augmentation."""


def open(recipe: "Recipe", *, device: str, threads: int, folder: Path) -> Trainer:
    """Build the untrained trainer of ``recipe`` on ``device`` ("cpu", "cuda:0").

    The model's name (``yolo11n.yaml``, ``rtdetr-l.yaml``, ``retinanet_resnet18_fpn``) decides on its class.
    ``threads``: torch's CPU threads, on which the result on a CPU depends. ``folder``: where all files are written.
    Raises ConfigError for an unknown model, DeviceError for a missing device, DataError.
    """
    # The trainers are imported here, because torch and Ultralytics take seconds to import.
    if recipe.model.startswith(TORCHVISION):
        from sweeper.training.torchvision import TorchvisionTrainer

        return TorchvisionTrainer(recipe, device=device, threads=threads, folder=folder)
    from sweeper.training.models import is_rtdetr
    from sweeper.training.ultralytics import RTDETRTrainer, UltralyticsTrainer

    trainer_class = RTDETRTrainer if is_rtdetr(recipe.model) else UltralyticsTrainer
    return trainer_class(recipe, device=device, threads=threads, folder=folder)


def fingerprint(recipe: "Recipe", device: str, threads: int) -> dict[str, str | int]:
    """All that determines a training beside the recipe's values and the data: versions, hardware, initial weights.

    ``end2end`` is 1 for models whose loss depends on the number of epochs of the run (YOLO26, YOLOv10), because the
    recipe's digest must then depend on this number, too.
    """
    properties: dict[str, str | int] = _family(recipe).fingerprint(recipe, device, threads)
    return properties


def state_bytes(recipe: "Recipe") -> int:
    """About how many bytes a stored state takes: the model, its EMA, and the optimizer's state of each weight.

    Raises ConfigError for a model that cannot be built.
    """
    optimizer_values = 1 if recipe.optimizer in ("SGD", "MuSGD") else 2  # per weight: momentum, or Adam's two means
    return int(_family(recipe).model_bytes(recipe)) * (2 + optimizer_values)


def _family(recipe: "Recipe") -> Any:
    """The module with ``fingerprint`` and ``model_bytes`` for the recipe's model."""
    if recipe.model.startswith(TORCHVISION):
        from sweeper.training import torchvision

        return torchvision
    from sweeper.training import models

    return models


def loader_workers(cores: int, per_device: int = 1) -> int:
    """Loader processes for each of ``per_device`` trainings that share a GPU and ``cores`` CPU cores.

    One core is left for each training itself. There are at most 8, as in Ultralytics. A training on a CPU should have
    none, because it uses the cores itself.

    >>> loader_workers(16), loader_workers(16, 4), loader_workers(4, 4)
    (8, 3, 0)
    """
    return min(max(cores // per_device - 1, 0), MAX_LOADERS)


def cache_mb(memory: int, workers: int = 1) -> int:
    """MiB of decoded images that each of ``workers`` may cache: a quarter of its share of ``memory`` bytes.

    >>> cache_mb(16 * 2**30), cache_mb(128 * 2**30, 8)
    (4096, 4096)
    """
    return memory // workers // 4 // 2**20


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or the container's limit if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # The file is missing, or holds "max".
            return min(machine, int(file.read_text()))
    return machine


def torch_sees() -> tuple[str, list[str]]:
    """The installed torch's version (with "+cpu" or "+cu130"), and the names of the GPUs that it can use."""
    import torch

    return torch.__version__, [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
