"""Trainers: exact, forkable, and the same small protocol for every family of detectors. Imports no torch.

A trainer's state after epoch ``n`` is a pure function of its recipe and of the learning rates so far. So ``load`` of
any epoch's state followed by ``train_epoch`` gives, bit for bit, what the uninterrupted run gives: on one machine, in
the same process or another, in any order of epochs.
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

TORCHVISION = ("fasterrcnn_", "retinanet_", "fcos_")  # how the names of torchvision's models begin
WITH_MOMENTUM = ("SGD", "MuSGD", "RMSProp")  # the others have betas, which no schedule changes
SECOND_BETA = 0.999
HEADS = 3.0  # Ultralytics' MuSGD makes two groups of each kind; the first holds the heads and takes 3 times the LR
MOST_LOADERS = 8


@dataclass(frozen=True, eq=False)
class Applied:
    """What the optimizer's parameter groups held when its ``step`` ran, for every step of an epoch in order.

    ``groups``: the groups' names, in the optimizer's order; a name may occur twice. ``lr``: float64 (steps, groups).
    ``momentum``: float64 (steps, groups, 1), or (steps, groups, 2) with the two betas of Adam and its kin. ``skipped``:
    bool (steps,), where the gradient scaler of mixed precision skipped the update because a gradient was infinite; the
    groups then held what the update would have used.

    The training process records it. The worker compares it with the trace that it built itself from the proposal, so
    it notices a trainer that misreads a trace, and anything else in that process that sets a learning rate.
    """

    groups: tuple[str, ...]
    lr: NDArray[np.float64]
    momentum: NDArray[np.float64]
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
            driven = {"momentum": steady if trace.momentum is None else trace.momentum[part].astype(np.float64)}
        else:
            driven = {"beta 1": np.full(expected, recipe.momentum), "beta 2": np.full(expected, SECOND_BETA)}
        if self.momentum.shape[-1] != len(driven):
            raise LRMismatch(
                f"epoch {epoch}: the optimizer's groups have {self.momentum.shape[-1]} values for momentum, "
                f"{recipe.optimizer} has {len(driven)} ({', '.join(driven)}); the trainer built another optimizer"
            )
        pairs = {"LR": (self.lr, lr)}
        pairs |= {name: (self.momentum[:, :, i], driven[name][:, None]) for i, name in enumerate(driven)}
        for what, (applied, proposed) in pairs.items():
            wrong = applied != proposed  # NaN differs from everything
            if wrong.any():
                step, group = np.unravel_index(int(wrong.argmax()), wrong.shape)
                expected_value = np.broadcast_to(proposed, wrong.shape)[step, group]
                raise LRMismatch(
                    f"epoch {epoch}, step {part.start + step}: group {self.groups[group]} used {what} "
                    f"{float(applied[step, group])!r}, the schedule says {float(expected_value)!r}; the trainer "
                    "reads the trace wrongly, or something else in its process sets it"
                )


def multiples(optimizer: str, groups: Sequence[str]) -> list[float]:
    """By how much each of the optimizer's groups, in its order, multiplies the schedule's LR.

    >>> multiples("SGD", ["bias", "weight"]), multiples("MuSGD", ["weight", "weight", "bn", "bn"])
    ([1.0, 1.0], [3.0, 1.0, 3.0, 1.0])
    """
    return [HEADS if optimizer == "MuSGD" and name not in groups[:i] else 1.0 for i, name in enumerate(groups)]


@dataclass(frozen=True)
class EpochLog:
    """What an epoch of training was.

    ``lr``: float32 (steps_per_epoch,), the main group's learning rate as read from the optimizer when it stepped.
    ``losses``: means over the epoch's batches, ``train/box_loss`` and so on; ``train/skipped_steps`` where mixed
    precision skipped some. ``applied``: what every group of the optimizer held.
    """

    lr: np.ndarray
    losses: dict[str, float]
    applied: Applied


@dataclass(frozen=True)
class Detections:
    """What was detected in one image, after non-maximum suppression, best first.

    ``path``: the image, in the data set's private layout. ``boxes``: float32 (n, 4), x1 y1 x2 y2 in pixels of the
    image, clipped to it. ``scores``: float32 (n,). ``classes``: int64 (n,), indices of the data set's names.
    """

    path: str
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the averaged weights (EMA) on the validation images.

    ``metrics``: ``mAP50-95``, ``mAP50``, ``precision``, ``recall`` on the trainer's own scale (never to be mixed with
    COCO's) and the validation losses, ``val/box_loss`` and so on. ``detections``: one entry per image.
    """

    metrics: dict[str, float]
    detections: list[Detections]


def silent(iteration: int) -> None:
    """Tell nobody."""


class Trainer(Protocol):
    """One model in training. ``groups`` are its parameter groups by name, ``steps_per_epoch`` its optimizer updates."""

    steps_per_epoch: int
    groups: tuple[str, ...]

    def train_epoch(
        self, epoch: int, trace: "Trace", beat: Callable[[int], None] = silent, *, steps: int | None = None
    ) -> EpochLog:
        """Train epoch ``epoch`` (from 0) with the learning rates of ``trace``; ``beat`` is called with every batch.

        ``steps``: only the first so many optimizer steps of it, for a quench; there is no training on from there.
        Raises NotFinite, OutOfMemory, or what ``beat`` raises; the state is then undefined until ``load``. Whether the
        optimizer used the trace is for the caller to see: ``log.applied.check``.
        """

    def evaluate(self, beat: Callable[[int], None] = silent) -> Evaluation:
        """Evaluate the EMA; training goes on as if this had not been called. ``beat``: called with every batch."""

    def state(self) -> bytes:
        """Everything needed to continue, in full precision; loads with ``torch.load(weights_only=True)``."""

    def state_digest(self) -> str:
        """SHA-256 (hex) over every tensor and counter of the model, the EMA and the optimizer."""

    def copied(self) -> Callable[[], tuple[bytes, str]]:
        """A copy of the state as it is now. Called, from any thread, it gives ``state`` and ``state_digest`` of it."""

    def load(self, state: bytes) -> None:
        """Become what ``state`` was taken of. Raises SnapshotCorrupt where it is of something else."""

    def weights(self) -> bytes:
        """The EMA's state_dict, for inference; loads with ``torch.load(weights_only=True)``."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The EMA's weights and buffers by name, copies."""

    def set_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the EMA's weights and buffers, for landscape measures; ``load`` a state before training on."""

    def recompute_bn(self, epoch: int, batches: int) -> None:
        """Recompute the EMA's BatchNorm statistics as means over the first augmented training batches of ``epoch``."""

    def val_loss(self, images: int = 64) -> float:
        """The EMA's loss per image on the first ``images`` validation images, without augmentation."""


def open(recipe: "Recipe", *, device: str, threads: int, folder: Path) -> Trainer:
    """Build the trainer that ``recipe`` asks for, untrained, on ``device`` ("cpu", "cuda:0").

    The model's name says which: ``yolo11n.yaml`` and its like, ``rtdetr-l.yaml``, or torchvision's
    ``retinanet_resnet18_fpn``. ``threads`` are torch's CPU threads (they are part of what determines the result on a
    CPU); ``folder`` takes all files. Raises ConfigError for a model that is not there, DeviceError for a device that is
    not, DataError.
    """
    # torch and Ultralytics take seconds to import
    if recipe.model.startswith(TORCHVISION):
        from sweeper.training.torchvision import TorchvisionTrainer

        return TorchvisionTrainer(recipe, device=device, threads=threads, folder=folder)
    from sweeper.training.models import is_rtdetr
    from sweeper.training.ultralytics import RTDETRTrainer, UltralyticsTrainer

    kind = RTDETRTrainer if is_rtdetr(recipe.model) else UltralyticsTrainer
    return kind(recipe, device=device, threads=threads, folder=folder)


def fingerprint(recipe: "Recipe", device: str, threads: int) -> dict[str, str | int]:
    """What determines a training beside the recipe's values and the data: versions, hardware, initial weights.

    ``end2end`` is 1 for models whose loss depends on the number of epochs of the run (YOLO26, YOLOv10): the epochs then
    belong to the recipe's digest as well.
    """
    facts: dict[str, str | int] = _family(recipe).fingerprint(recipe, device, threads)
    return facts


def state_bytes(recipe: "Recipe") -> int:
    """About how many bytes a stored state takes: the model, its EMA, and what the optimizer keeps of each weight.

    Raises ConfigError for a model that cannot be built.
    """
    kept = 1 if recipe.optimizer in ("SGD", "MuSGD") else 2  # momentum; Adam and its like keep two means
    return int(_family(recipe).model_bytes(recipe)) * (2 + kept)


def _family(recipe: "Recipe") -> Any:
    if recipe.model.startswith(TORCHVISION):
        from sweeper.training import torchvision

        return torchvision
    from sweeper.training import models

    return models


def loader_workers(cores: int, per_device: int = 1) -> int:
    """Loader processes for each of ``per_device`` trainings on a GPU that has ``cores``: one core stays for each.

    At most 8, as in Ultralytics. On a CPU there are none: the training itself takes the cores.

    >>> loader_workers(16), loader_workers(16, 4), loader_workers(4, 4)
    (8, 3, 0)
    """
    return min(max(cores // per_device - 1, 0), MOST_LOADERS)


def cache_mb(memory: int, workers: int = 1) -> int:
    """Megabytes of decoded images for each of ``workers`` on a machine with ``memory`` bytes: a quarter of its share.

    >>> cache_mb(16 * 2**30), cache_mb(128 * 2**30, 8)
    (4096, 4096)
    """
    return memory // workers // 4 // 2**20


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            return min(machine, int(file.read_text()))
    return machine


def torch_sees() -> tuple[str, list[str]]:
    """The installed torch's version (with "+cpu" or "+cu130"), and the names of the GPUs that it can use."""
    import torch

    return torch.__version__, [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
