"""Ultralytics' trainer and validator, of which only single methods are used, never their loops; and a trainer's state.

``sweeper.training.ultralytics`` has the training loop.
"""

import copy
import hashlib
import io
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from sweeper import data as datasets
from sweeper.errors import SnapshotCorrupt
from sweeper.training import Detections, cache_mb, loader_workers, memory, models  # noqa: F401  isolates Ultralytics
from sweeper.training.epochs import ExactDataset, epoch_loader
from sweeper.training.scheduler import Recorder

# isort: split
from ultralytics.data.build import build_dataloader
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.metrics import DetMetrics
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.torch_utils import init_seeds

if TYPE_CHECKING:
    from sweeper.config import Recipe
    from sweeper.schedules import Trace

#: The recipe's keys that have the same name and meaning in Ultralytics.
SAME_NAMES = (
    *("model", "imgsz", "batch", "nbs", "optimizer", "momentum", "weight_decay", "seed", "deterministic", "freeze"),
    *("box", "cls", "dfl", "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective"),
    *("flipud", "fliplr", "bgr", "mosaic", "mixup", "cutmix", "copy_paste", "multi_scale", "rect", "single_cls"),
)


def dataset_description(path: Path) -> dict[str, Any]:
    """The description of a data set that Ultralytics' trainer needs, from the data.yaml of ``sweeper.data``."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    root, names = path.parent, dict(content["names"])
    splits = {split: str(root / content[split]) for split in ("train", "val")}
    return {**splits, "path": root, "names": names, "nc": len(names), "channels": 3}


class Validator(DetectionValidator):  # type: ignore[misc]
    """Ultralytics' validator, which also stores the detections, in pixels of the image and full precision."""

    beat: Callable[[int], None] = staticmethod(lambda batch: None)  # called for every batch with its number

    def init_metrics(self, model: torch.nn.Module) -> None:
        self.metrics = DetMetrics()  # Metrics of an earlier evaluation would keep its values if nothing is detected.
        super().init_metrics(model)
        self.loss: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        self.detections: list[Detections] = []

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        """Ultralytics' method without its time limit, at which it drops detections on a busy machine."""
        limits = {"max_det": self.args.max_det, "end2end": self.end2end, "max_time_img": math.inf}
        images = non_max_suppression(preds, self.args.conf, self.args.iou, multi_label=True, **limits)
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in images]

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        self.beat(self.batch_i)
        super().update_metrics(preds, batch)
        for i, pred in enumerate(preds):
            image = self._prepare_batch(i, batch)
            scaled = {name: value.cpu().numpy() for name, value in self.scale_preds(pred, image).items()}
            boxes, scores = scaled["bboxes"].astype(np.float32), scaled["conf"].astype(np.float32)
            self.detections.append(Detections(image["im_file"], boxes, scores, scaled["cls"].astype(np.int64)))


class Parts(DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' trainer, of which only the set-up and single methods are used, never its loop."""

    validator_class: type[Validator] = Validator
    dataset_class: type[ExactDataset] = ExactDataset
    rectangular = True  # whether the model takes rectangular batches

    def __init__(self, recipe: "Recipe", device: torch.device, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder
        super().__init__(
            overrides={name: getattr(recipe, name) for name in SAME_NAMES}
            | {
                "task": "detect",
                "data": recipe.data,
                "device": str(device),
                "save_dir": str(folder / "ultralytics"),
                # With lr0 = 1 a group's LR is its multiple of the schedule's LR: 3 in some groups of MuSGD. Ultralytics
                # itself warms up the biases of these groups from warmup_bias_lr, this trainer from 3 times that value.
                "lr0": 1.0,
                "close_mosaic": 0,  # It counts from the end; ExactDataset closes mosaic at an absolute epoch.
                "augmentations": [],
                "amp": False,  # It is set in set_up, because Ultralytics' check for it downloads weights.
                "plots": False,
                "save": False,
                "verbose": False,
            }
        )
        self.callbacks: dict[str, Any] = {}

    def set_up(self) -> None:
        """Build model, data, optimizer, EMA and validator."""
        self._setup_train()
        if self.args.imgsz != self._recipe.imgsz:
            raise ValueError(f"imgsz {self._recipe.imgsz} is no multiple of its stride; {self.args.imgsz} would be")
        self.amp = bool(self._recipe.amp) and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.amp)
        self.model.criterion = self.model.init_criterion()  # now, because its state belongs to the untrained state
        self.multiples = [group["lr"] for group in self.optimizer.param_groups]
        names = [group["param_group"] for group in self.optimizer.param_groups]
        self.main_group = next(i for i, name in enumerate(names) if name == "weight" and self.multiples[i] == 1)
        self.recorder = Recorder(self.optimizer)
        self.loss_items: dict[str, torch.Tensor] = {}
        self.epoch = 0  # The validator reads it.

    def set_deterministic(self) -> None:
        """Set whether torch uses deterministic kernels, before each epoch, because the setting is the process's."""
        torch.use_deterministic_algorithms(self._recipe.deterministic, warn_only=True)
        torch.backends.cudnn.deterministic = self._recipe.deterministic

    def plan(self, epoch: int, trace: "Trace") -> Iterator[tuple[list[float], float]]:
        """The LR of each parameter group and the momentum for every step of an epoch."""
        names = [group["param_group"] for group in self.optimizer.param_groups]
        lrs = {name: trace.group(name) for name in set(names)}
        first = epoch * trace.steps_per_epoch
        for step in range(first, first + trace.steps_per_epoch):
            momentum = self._recipe.momentum if trace.momentum is None else float(trace.momentum[step])
            groups = zip(self.multiples, names, strict=True)
            yield [multiple * float(lrs[name][step]) for multiple, name in groups], momentum

    def step(self, lrs: list[float], momentum: float) -> None:
        """One optimizer update with the learning rates ``lrs``, which ``recorder`` records."""
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
            if "momentum" in group:  # Adam's betas stay constant, as in Ultralytics.
                group["momentum"] = momentum
        before = self.recorder.steps
        self.optimizer_step()
        # The scaler of mixed precision does not call the optimizer if a gradient is infinite, and sets its growth
        # tracker to 0. Without a call for another reason the record lacks a step, so that the worker raises LRMismatch.
        if self.recorder.steps == before and self.scaler.state_dict().get("_growth_tracker") == 0:
            self.recorder.skipped()

    def setup_model(self) -> Any:
        """Ultralytics' method, with initial weights that depend on model and seed only, not on earlier trainings."""
        Detect.legacy = False  # a class attribute, which an earlier model may have set and YOLOv10's head reads
        init_seeds(self.args.seed, deterministic=self.args.deterministic)
        return super().setup_model()

    def get_dataset(self) -> dict[str, Any]:
        """The data set's description, from a private folder, because Ultralytics writes beside the files it reads."""
        path = Path(self._recipe.data)
        if not (path.parent / datasets.MARKER).is_file():
            path = datasets.open(self._recipe.data, folder=self._folder / "data", **self._recipe.part).yaml
        return dataset_description(path)

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """The loader for training, with exact epochs, or Ultralytics' own for validation."""
        recipe, training = self._recipe, mode == "train"
        budget = (cache_mb(memory()) if recipe.cache_mb == "auto" else recipe.cache_mb) * 2**20
        if not training:
            budget -= self.train_loader.dataset.images.bytes
        dataset = self.dataset_class(
            dataset_path,
            imgsz=self.args.imgsz,
            augment=training,
            hyp=self.args,
            rect=self.rectangular and (recipe.rect or not training),
            batch_size=batch_size,
            stride=self.stride,
            pad=0.0 if training else 0.5,
            data=self.data,
            seed=recipe.seed,
            mosaic_epochs=recipe.mosaic_epochs,
            cache_bytes=budget,
        )
        on_gpu, workers = self.device.type == "cuda", recipe.loader_workers
        if workers == "auto":
            workers = loader_workers(len(os.sched_getaffinity(0))) if on_gpu else 0
        if not training:
            return build_dataloader(dataset, batch_size, workers, shuffle=False, device=self.device)
        return epoch_loader(dataset, batch=batch_size, seed=recipe.seed, workers=workers, pin_memory=on_gpu)

    def get_validator(self) -> Validator:
        """The validator that stores its detections."""
        return self.validator_class(
            self.test_loader, save_dir=self.save_dir, args=vars(self.args).copy(), _callbacks={}
        )

    def _setup_scheduler(self) -> None:
        self.scheduler = SimpleNamespace(last_epoch=0)  # No scheduler of Ultralytics runs: LRs come from the trace.


# -- the state of a training -------------------------------------------------------------------------------------------


def state_dict(trainer: Any) -> dict[str, Any]:
    """The state from which Ultralytics' trainer continues. Its tensors are not copied: the training changes them."""
    return {
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "criterion": _criterion(trainer.model),
    }


def load_state_dict(state: Mapping[str, Any], trainer: Any) -> None:
    """Restore a state in place. Raises SnapshotCorrupt if it belongs to another model or optimizer."""
    try:
        trainer.model.load_state_dict(state["model"])
        trainer.ema.ema.load_state_dict(state["ema"])
        trainer.ema.updates = state["updates"]
        trainer.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # It is empty without mixed precision.
            trainer.scaler.load_state_dict(state["scaler"])
        for name, value in state["criterion"].items():
            setattr(trainer.model.criterion, name, value)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise SnapshotCorrupt(f"snapshot: is not of this model and optimizer ({first}); train from the start") from None


def cpu_copy(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a state on the CPU, which does not change when the training goes on. Waits for a GPU once."""
    result: dict[str, Any] = _copy_value(state)
    for device in {value.device for value in state["model"].values() if value.is_cuda}:
        torch.cuda.synchronize(device)
    return result


def _copy_value(value: Any) -> Any:
    if isinstance(value, torch.Tensor):  # A GPU copies into pinned memory without waiting.
        return value.detach().to("cpu", non_blocking=True) if value.is_cuda else value.detach().clone()
    if isinstance(value, dict):
        result = copy.copy(value)  # because a state_dict also has attributes, such as _metadata
        result.update((key, _copy_value(entry)) for key, entry in value.items())
        return result
    return [_copy_value(entry) for entry in value] if isinstance(value, list) else value


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """The bytes of a state as ``torch.save`` writes it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """The state that ``to_bytes`` wrote, on the CPU. No code in it is run. Raises SnapshotCorrupt."""
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged zip or pickle raises any class.
        raise SnapshotCorrupt(f"snapshot: {len(content)} bytes cannot be read ({type(error).__name__})") from None
    return state


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over every tensor (name, type, shape, bytes) and counter.

    The optimizer's settings are left out, because every step sets them from the schedule.
    """
    hashed = hashlib.sha256()
    for name, value in _leaves("", {**state, "optimizer": state["optimizer"]["state"]}):
        if isinstance(value, torch.Tensor):
            hashed.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            hashed.update(flat.view(torch.uint8).numpy().data)
        else:
            hashed.update(f"{name} {value!r}\n".encode())
    return hashed.hexdigest()


def first_not_finite(model: torch.nn.Module) -> str | None:
    """The name of the first weight or buffer that holds a NaN or infinity; None if there is none."""
    tensors = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in tensors.values()]).cpu().tolist()
    return next((name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite), None)


def _criterion(model: torch.nn.Module) -> dict[str, float]:
    """The loss's own state: with end-to-end heads (YOLO26, YOLOv10) the weights of two losses change by epoch."""
    criterion = getattr(model, "criterion", None)
    return {name: getattr(criterion, name) for name in ("updates", "o2m", "o2o") if hasattr(criterion, name)}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their paths, in the order of the keys."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(f"{name}/{key}", value[key])
    else:
        yield name, value
