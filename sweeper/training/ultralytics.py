"""Ultralytics' detectors: their model, loss, augmentations, optimizers, EMA and validator in a loop of our own.

The loop is Ultralytics' ``BaseTrainer._do_train`` with its parts in the same order, so that with the same data and
learning rates every bit is the same. What differs: learning rate and momentum are read from a trace at every optimizer
step, data are a function of (seed, epoch, index), accumulation windows end with the epoch, and what Ultralytics does
behind one's back (halving the batch, reloading after a NaN) is an error with a reason.
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
from sweeper.training import EpochLog, Evaluation, models, parts, silent
from sweeper.training.epochs import ExactDataset, Image, reseed
from sweeper.training.parts import Parts, Validator

# isort: split
from ultralytics.models import rtdetr
from ultralytics.utils.torch_utils import autocast

if TYPE_CHECKING:
    from sweeper.config import Recipe
    from sweeper.schedules import Trace

LOOK_EVERY = 20  # batches between looks at the losses: a look waits for the GPU


class UltralyticsTrainer:
    """YOLO's; see ``sweeper.training.Trainer``. Another family brings parts of its own and says what they refuse."""

    parts_of: type[Parts] = Parts
    loss_is_mean = False  # over the images of a batch, of which YOLO's is the sum

    def __init__(self, recipe: "Recipe", *, device: str, threads: int, folder: Path) -> None:
        self.check(recipe)
        where = models.check_device(device)
        self._recipe, self._threads = recipe, threads
        with _typed_errors(f"building {recipe.model}", recipe):
            self._parts = self.parts_of(recipe, where, folder)
            torch.set_num_threads(threads)  # choosing a device has reset it
            self._parts.set_up()
        self._batches = len(self._parts.train_loader)
        self._next_epoch: int | None = None  # what the loader is preparing; None after an epoch that broke off
        self.steps_per_epoch = math.ceil(self._batches / recipe.accumulate)
        self.groups = tuple(dict.fromkeys(group["param_group"] for group in self._parts.optimizer.param_groups))

    @staticmethod
    def check(recipe: "Recipe") -> None:
        """Raise ConfigError for a model that is not there or does not go with the rest of the recipe."""
        models.check(recipe)

    def train_epoch(
        self, epoch: int, trace: "Trace", beat: Callable[[int], None] = silent, *, steps: int | None = None
    ) -> EpochLog:
        parts, recipe = self._parts, self._recipe
        self._check(epoch, trace)
        parts.args.epochs = trace.epochs  # end-to-end heads (YOLO26) weigh their two losses by epoch / epochs
        parts.deterministic()
        parts._model_train()
        parts.optimizer.zero_grad()
        parts.record.clear()
        planned = parts.plan(epoch, trace)
        batches = self._batches if steps is None else min(steps * recipe.accumulate, self._batches)
        sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=parts.device))
        unseen: list[torch.Tensor] = []
        with _typed_errors(f"epoch {epoch}, batch size {recipe.batch}, {recipe.imgsz} pixels"):
            for i, batch in enumerate(self._epoch(epoch)):
                beat(i)
                reseed(recipe.seed, epoch, i, -1)  # multi-scale draws next; no sample has a key that ends in -1
                with autocast(parts.amp, device=parts.device.type):
                    batch = parts.preprocess_batch(batch)
                    loss, items = parts.model(batch)
                    loss = loss.sum()
                parts.scaler.scale(loss).backward()
                for name, value in items.items():
                    sums[name] += value
                unseen.append(loss.detach())
                last = i + 1 == batches
                if last or len(unseen) == LOOK_EVERY:
                    for j, value in enumerate(torch.stack(unseen).tolist(), i + 1 - len(unseen)):
                        if not math.isfinite(value):
                            hint = "try a lower peak or a longer warm-up"
                            raise NotFinite(f"epoch {epoch}, batch {j}: the loss is {value}; {hint}")
                    unseen = []
                if last or (i + 1) % recipe.accumulate == 0:
                    parts.step(*next(planned))
                if last and steps is not None:
                    break
        if hasattr(parts.model.criterion, "update"):
            parts.model.criterion.update()
        self._check_finite(epoch)
        losses = {f"{names.TRAIN}{name}": float(value) / batches for name, value in sums.items()}
        applied = parts.record.applied()
        if skipped := int(applied.skipped.sum()):
            losses[f"{names.TRAIN}skipped_steps"] = float(skipped)
        return EpochLog(applied.lr[:, parts.main].astype(np.float32), losses, applied)

    def evaluate(self, beat: Callable[[int], None] = silent) -> Evaluation:
        validator = self._parts.validator
        validator.beat = beat
        with _typed_errors("evaluation"):
            try:
                validator(self._parts)
            except BaseException:
                validator.dataloader.reset()  # else the next evaluation would go on in the middle of this one
                raise
        box, batches = validator.metrics.box, len(validator.dataloader)
        metrics = {"mAP50-95": box.map, "mAP50": box.map50, "precision": box.mp, "recall": box.mr}
        metrics |= {f"{names.VAL}{name}": float(value) / batches for name, value in validator.loss.items()}
        return Evaluation({name: float(value) for name, value in metrics.items()}, validator.detections)

    def state(self) -> bytes:
        return parts.to_bytes(parts.take(self._parts))

    def state_digest(self) -> str:
        return parts.digest(parts.take(self._parts))

    def copied(self) -> Callable[[], tuple[bytes, str]]:
        state = parts.copied(parts.take(self._parts))
        return lambda: (parts.to_bytes(state), parts.digest(state))

    def load(self, state: bytes) -> None:
        parts.put(parts.from_bytes(state), self._parts)
        self._parts.optimizer.zero_grad()

    def weights(self) -> bytes:
        return parts.to_bytes({name: value.cpu() for name, value in self._exported().state_dict().items()})

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
            module.momentum = None  # the mean over all batches, each with the same weight
        ema.train()
        order, size = loader.sampler.order(epoch), loader.batch_size
        with torch.no_grad():
            for i in range(min(batches, self._batches)):
                chosen = order[i * size : (i + 1) * size]
                batch = loader.dataset.collate_fn([loader.dataset[epoch, int(index)] for index in chosen])
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
            for start in range(0, images, size):  # whole batches of the loader, whose images have one shape
                batch = dataset.collate_fn([dataset[i] for i in range(start, min(start + size, images))])
                batch = {k: v.to(parts.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
                batch["img"] = batch["img"].float() / 255
                loss = float(ema.loss(batch, ema(batch["img"]))[0].sum())
                total += loss * len(batch["img"]) if self.loss_is_mean else loss
        return total / images

    def _exported(self) -> Any:
        """The network whose weights a user takes away."""
        return self._parts.ema.ema

    def _check(self, epoch: int, trace: "Trace") -> None:
        if trace.steps_per_epoch != self.steps_per_epoch:
            raise ConfigError(
                f"trace: {trace.steps_per_epoch} steps per epoch, but {self._batches} batches with "
                f"accumulate={self._recipe.accumulate} are {self.steps_per_epoch}; plan it for this data set and batch"
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
        for name, model in (("weights", self._parts.model), ("EMA", self._parts.ema.ema)):
            if broken := parts.first_not_finite(model):
                raise NotFinite(f"epoch {epoch}: the {name} of {broken} are not finite; try a lower learning rate")

    def _epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        loader = self._parts.train_loader
        if self._next_epoch != epoch:  # the loader's processes have prepared another one
            loader.reset()
            loader.sampler.epoch = epoch
        self._next_epoch = None
        for batch in loader:
            if set(batch["epoch"]) != {epoch}:
                raise TrainingError(f"epoch {epoch}: the loader gave images of epochs {sorted(set(batch['epoch']))}")
            yield batch
        self._next_epoch = epoch + 1


class StretchedDataset(ExactDataset):
    """RT-DETR's images, which are stretched to a square in training and in validation."""

    def load_image(self, i: int, rect_mode: bool = False, resize_short: bool = False) -> Image:
        return super().load_image(i, False, resize_short)


class RTDETRValidator(Validator):
    """RT-DETR itself gives the best of its queries, so there are no overlaps to suppress."""

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        detections: list[dict[str, torch.Tensor]] = rtdetr.RTDETRValidator.postprocess(self, preds)
        return detections


class RTDETRParts(Parts):
    """The parts of the loop around an RT-DETR."""

    validator_of = RTDETRValidator
    dataset_of = StretchedDataset
    rectangular = False
    get_model = rtdetr.train.RTDETRTrainer.get_model


class RTDETRTrainer(UltralyticsTrainer):
    """RT-DETR's; see ``sweeper.training.Trainer``."""

    parts_of = RTDETRParts
    loss_is_mean = True


@contextmanager
def _typed_errors(doing: str, built: "Recipe | None" = None) -> Iterator[None]:
    """Name what Ultralytics would hide (it halves the batch when memory ends) or leave untyped.

    ``built``: what Ultralytics refuses to build is a matter of this recipe.
    """
    try:
        yield
    except (RuntimeError, MemoryError, ValueError) as error:
        message = str(error).lower()
        endings = ("out of memory", "can't allocate memory", "alloc_failed")
        if isinstance(error, MemoryError) or any(words in message for words in endings):
            raise OutOfMemory(f"{doing}: {_first_line(error)}; use a smaller batch, imgsz or model") from error
        if built is None:
            raise
        raise ConfigError(f"recipe: Ultralytics cannot build {built.model}: {_first_line(error)}") from error
    except FileNotFoundError as error:
        raise DataError(f"{doing}: {_first_line(error)}; put it back where it was") from error


def _first_line(error: Exception) -> str:
    """The message; of an error in a loader process, which brings its traceback along, the last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "Traceback" in str(error) else 0]
