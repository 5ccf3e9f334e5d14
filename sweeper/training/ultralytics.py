"""Trains Ultralytics' detectors with their model, loss, augmentations, optimizers, EMA and validator, in an own loop.

The loop has the steps of Ultralytics' ``BaseTrainer._do_train`` in the same order, so that with the same data and
learning rates every bit is the same. It differs in four points: learning rate and momentum are read from a trace at
every optimizer step, data are a function of (seed, epoch, index), accumulation windows end with the epoch, and where
Ultralytics silently halves the batch or reloads after a NaN, an error is raised.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sweeper import names
from sweeper.errors import ConfigError, DataError, NotFinite, OutOfMemory, TrainingError
from sweeper.training import EpochLog, Evaluation, models, no_beat, parts
from sweeper.training.epochs import ExactDataset, Image, reseed
from sweeper.training.parts import Parts, Validator

# isort: split
from ultralytics.models import rtdetr
from ultralytics.utils.torch_utils import autocast

if TYPE_CHECKING:
    from sweeper.config import Recipe
    from sweeper.schedules import Trace

CHECK_EVERY = 20  # batches between two checks that the losses are finite, because a check waits for the GPU


class UltralyticsTrainer:
    """The trainer of YOLO models; see ``sweeper.training.Trainer``. Subclasses for other families have other parts."""

    parts_class: type[Parts] = Parts
    loss_is_mean = False  # The loss is the mean over the images of a batch; YOLO's is the sum.

    def __init__(self, recipe: "Recipe", *, device: str, threads: int, folder: Path) -> None:
        self.check(recipe)
        torch_device = models.check_device(device)
        self._recipe, self._threads = recipe, threads
        with _typed_errors(f"building {recipe.model}", recipe):
            self._parts = self.parts_class(recipe, torch_device, folder)
            torch.set_num_threads(threads)  # after Ultralytics has selected the device, which resets it
            self._parts.set_up()
        self._batch_count = len(self._parts.train_loader)
        self._next_epoch: int | None = None  # the epoch that the loader prepares; None after an incomplete epoch
        self.steps_per_epoch = math.ceil(self._batch_count / recipe.accumulate)
        self.groups = tuple(dict.fromkeys(group["param_group"] for group in self._parts.optimizer.param_groups))

    @staticmethod
    def check(recipe: "Recipe") -> None:
        """Raise ConfigError for a model that does not exist or does not fit the rest of the recipe."""
        models.check(recipe)

    def train_epoch(
        self, epoch: int, trace: "Trace", beat: Callable[[int], None] = no_beat, *, steps: int | None = None
    ) -> EpochLog:
        parts, recipe = self._parts, self._recipe
        self._check(epoch, trace)
        parts.args.epochs = trace.epochs  # End-to-end heads (YOLO26) weigh their two losses by epoch / epochs.
        parts.set_deterministic()
        parts._model_train()
        parts.optimizer.zero_grad()
        parts.recorder.clear()
        planned = parts.plan(epoch, trace)
        batches = self._batch_count if steps is None else min(steps * recipe.accumulate, self._batch_count)
        sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=parts.device))
        unchecked: list[torch.Tensor] = []
        with _typed_errors(f"epoch {epoch}, batch size {recipe.batch}, {recipe.imgsz} pixels"):
            for i, batch in enumerate(self._load_epoch(epoch)):
                beat(i)
                reseed(recipe.seed, epoch, i, -1)  # for multi-scale, with a key that no sample has
                with autocast(parts.amp, device=parts.device.type):
                    batch = parts.preprocess_batch(batch)
                    loss, items = parts.model(batch)
                    loss = loss.sum()
                parts.scaler.scale(loss).backward()
                for name, value in items.items():
                    sums[name] += value
                unchecked.append(loss.detach())
                last = i + 1 == batches
                if last or len(unchecked) == CHECK_EVERY:
                    for j, value in enumerate(torch.stack(unchecked).tolist(), i + 1 - len(unchecked)):
                        if not math.isfinite(value):
                            hint = "try a lower peak or a longer warm-up"
                            raise NotFinite(f"epoch {epoch}, batch {j}: the loss is {value}; {hint}")
                    unchecked = []
                if last or (i + 1) % recipe.accumulate == 0:
                    parts.step(*next(planned))
                if last and steps is not None:
                    break
        if hasattr(parts.model.criterion, "update"):
            parts.model.criterion.update()
        self._check_finite(epoch)
        losses = {f"{names.TRAIN}{name}": float(value) / batches for name, value in sums.items()}
        applied = parts.recorder.applied()
        if skipped := int(applied.skipped.sum()):
            losses[f"{names.TRAIN}skipped_steps"] = float(skipped)
        return EpochLog(applied.lr[:, parts.main_group].astype(np.float32), losses, applied)

    def evaluate(self, beat: Callable[[int], None] = no_beat) -> Evaluation:
        validator = self._parts.validator
        validator.beat = beat
        with _typed_errors("evaluation"):
            try:
                validator(self._parts)
            except BaseException:
                validator.dataloader.reset()  # The next evaluation must not continue in the middle of this one.
                raise
        box, batches = validator.metrics.box, len(validator.dataloader)
        metrics = {"mAP50-95": box.map, "mAP50": box.map50, "precision": box.mp, "recall": box.mr}
        metrics |= {f"{names.VAL}{name}": float(value) / batches for name, value in validator.loss.items()}
        return Evaluation({name: float(value) for name, value in metrics.items()}, validator.detections)

    def state(self) -> bytes:
        return parts.to_bytes(parts.state_dict(self._parts))

    def state_digest(self) -> str:
        return parts.digest(parts.state_dict(self._parts))

    def copied(self) -> Callable[[], tuple[bytes, str]]:
        state = parts.cpu_copy(parts.state_dict(self._parts))
        return lambda: (parts.to_bytes(state), parts.digest(state))

    def load(self, state: bytes) -> None:
        parts.load_state_dict(parts.from_bytes(state), self._parts)
        self._parts.optimizer.zero_grad()

    def weights(self) -> bytes:
        return parts.to_bytes({name: value.cpu() for name, value in self._inference_model().state_dict().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: value.cpu().numpy().copy() for name, value in self._parts.ema.ema.state_dict().items()}

    def set_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}
        self._parts.ema.ema.load_state_dict(tensors)

    def recompute_bn(self, epoch: int, batches: int) -> None:
        ema, loader = self._parts.ema.ema, self._parts.train_loader
        norms = [module for module in ema.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        momenta = [module.momentum for module in norms]
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # BatchNorm then computes the mean over all batches with equal weights.
        ema.train()
        order, size = loader.sampler.order(epoch), loader.batch_size
        with torch.no_grad():
            for i in range(min(batches, self._batch_count)):
                indices = order[i * size : (i + 1) * size]
                batch = loader.dataset.collate_fn([loader.dataset[epoch, int(index)] for index in indices])
                reseed(self._recipe.seed, epoch, i, -1)
                ema(self._parts.preprocess_batch(batch)["img"])
        ema.eval()
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum

    def val_loss(self, images: int = 64) -> float:
        parts = self._parts
        ema, dataset, size = parts.ema.ema, parts.test_loader.dataset, parts.test_loader.batch_size
        images = min(images, len(dataset))
        total = 0.0
        with torch.no_grad():
            for start in range(0, images, size):  # the loader's batches, because the images of one have one shape
                batch = dataset.collate_fn([dataset[i] for i in range(start, min(start + size, images))])
                batch = {k: v.to(parts.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
                batch["img"] = batch["img"].float() / 255
                loss = float(ema.loss(batch, ema(batch["img"]))[0].sum())
                total += loss * len(batch["img"]) if self.loss_is_mean else loss
        return total / images

    def _inference_model(self) -> Any:
        """The network whose weights are exported."""
        return self._parts.ema.ema

    def _check(self, epoch: int, trace: "Trace") -> None:
        """Raise ConfigError if ``trace`` does not fit this training, TrainingError if torch's threads have changed."""
        if trace.steps_per_epoch != self.steps_per_epoch:
            raise ConfigError(
                f"trace: {trace.steps_per_epoch} steps per epoch, but {self._batch_count} batches with "
                f"accumulate={self._recipe.accumulate} are {self.steps_per_epoch}; compute it for this batch size"
            )
        if not 0 <= epoch < trace.epochs:
            raise ConfigError(f"epoch: {epoch} is not in the trace; expected 0 to {trace.epochs - 1}")
        if unknown := sorted(set(trace.groups) - set(self.groups)):
            raise ConfigError(
                f"schedule: groups: {unknown[0]} is no parameter group of {self._recipe.model} with "
                f"{self._recipe.optimizer}; expected {', '.join(self.groups)}"
            )
        if torch.get_num_threads() != self._threads:
            raise TrainingError(
                f"threads: torch uses {torch.get_num_threads()}, this training was opened with {self._threads} and its "
                "bits depend on it; something in this process called torch.set_num_threads"
            )

    def _check_finite(self, epoch: int) -> None:
        """Raise NotFinite if a weight of the model or the EMA is NaN or infinite."""
        for name, model in (("weights", self._parts.model), ("EMA", self._parts.ema.ema)):
            if broken := parts.first_not_finite(model):
                raise NotFinite(f"epoch {epoch}: the {name} of {broken} are not finite; try a lower learning rate")

    def _load_epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        """The batches of ``epoch``. The loader is reset if it has prepared another one."""
        loader = self._parts.train_loader
        if self._next_epoch != epoch:
            loader.reset()
            loader.sampler.epoch = epoch
        self._next_epoch = None
        for batch in loader:
            if set(batch["epoch"]) != {epoch}:
                raise TrainingError(f"epoch {epoch}: the loader gave images of epochs {sorted(set(batch['epoch']))}")
            yield batch
        self._next_epoch = epoch + 1


class StretchedDataset(ExactDataset):
    """Images for RT-DETR, which are stretched to a square in training and in validation."""

    def load_image(self, i: int, rect_mode: bool = False, resize_short: bool = False) -> Image:
        return super().load_image(i, False, resize_short)


class RTDETRValidator(Validator):
    """The validator for RT-DETR, which needs no NMS, because the model itself selects the best queries."""

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        detections: list[dict[str, torch.Tensor]] = rtdetr.RTDETRValidator.postprocess(self, preds)
        return detections


class RTDETRParts(Parts):
    """Ultralytics' trainer with an RT-DETR."""

    validator_class = RTDETRValidator
    dataset_class = StretchedDataset
    rectangular = False
    get_model = rtdetr.train.RTDETRTrainer.get_model


class RTDETRTrainer(UltralyticsTrainer):
    """The trainer of RT-DETR models; see ``sweeper.training.Trainer``."""

    parts_class = RTDETRParts
    loss_is_mean = True


@contextmanager
def _typed_errors(doing: str, built: "Recipe | None" = None) -> Iterator[None]:
    """Convert errors of torch and Ultralytics to this package's classes; messages begin with ``doing``.

    ``built``: the recipe of the model that is built, so that a refusal by Ultralytics becomes a ConfigError.
    """
    try:
        yield
    except (RuntimeError, MemoryError, ValueError) as error:
        message = str(error).lower()
        phrases = ("out of memory", "can't allocate memory", "alloc_failed")
        if isinstance(error, MemoryError) or any(phrase in message for phrase in phrases):
            raise OutOfMemory(f"{doing}: {_first_line(error)}; use a smaller batch, imgsz or model") from error
        if built is None:
            raise
        raise ConfigError(f"recipe: Ultralytics cannot build {built.model}: {_first_line(error)}") from error
    except FileNotFoundError as error:
        raise DataError(f"{doing}: {_first_line(error)}; put it back where it was") from error


def _first_line(error: Exception) -> str:
    """The first line of a message, or the last one if it contains the traceback of a loader process."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "Traceback" in str(error) else 0]
