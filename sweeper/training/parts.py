"""Ultralytics' trainer and validator, of which single parts are used, never their loops; and their state as values."""

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
from sweeper.training import Detections, cache_mb, loader_workers, memory, models  # noqa: F401  before Ultralytics
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

SAME_NAMES = (
    *("model", "imgsz", "batch", "nbs", "optimizer", "momentum", "weight_decay", "seed", "deterministic", "freeze"),
    *("box", "cls", "dfl", "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective"),
    *("flipud", "fliplr", "bgr", "mosaic", "mixup", "cutmix", "copy_paste", "multi_scale", "rect", "single_cls"),
)


def described(path: Path) -> dict[str, Any]:
    """What Ultralytics wants to know of a data set laid out by ``sweeper.data``."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    root, names = path.parent, dict(content["names"])
    splits = {split: str(root / content[split]) for split in ("train", "val")}
    return {**splits, "path": root, "names": names, "nc": len(names), "channels": 3}


class Validator(DetectionValidator):  # type: ignore[misc]
    """Ultralytics' validator, which also keeps the detections, in image pixels and full precision."""

    beat: Callable[[int], None] = staticmethod(lambda batch: None)  # called with every batch

    def init_metrics(self, model: torch.nn.Module) -> None:
        self.metrics = DetMetrics()  # the last evaluation's would show their last values where nothing is detected
        super().init_metrics(model)
        self.loss: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        self.detections: list[Detections] = []

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        """As Ultralytics', without its time limit, at which it drops what a busy machine has not suppressed yet."""
        limits = {"max_det": self.args.max_det, "end2end": self.end2end, "max_time_img": math.inf}
        images = non_max_suppression(preds, self.args.conf, self.args.iou, multi_label=True, **limits)
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in images]

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        self.beat(self.batch_i)
        super().update_metrics(preds, batch)
        for i, pred in enumerate(preds):
            about = self._prepare_batch(i, batch)
            scaled = {name: value.cpu().numpy() for name, value in self.scale_preds(pred, about).items()}
            boxes, scores = scaled["bboxes"].astype(np.float32), scaled["conf"].astype(np.float32)
            self.detections.append(Detections(about["im_file"], boxes, scores, scaled["cls"].astype(np.int64)))


class Parts(DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' trainer, of which only the set-up and single parts are used, never its loop."""

    validator_of: type[Validator] = Validator
    dataset_of: type[ExactDataset] = ExactDataset
    rectangular = True  # whether images keep their shape where a batch has one shape

    def __init__(self, recipe: "Recipe", device: torch.device, folder: Path) -> None:
        self._recipe, self._folder = recipe, folder
        super().__init__(
            overrides={name: getattr(recipe, name) for name in SAME_NAMES}
            | {
                "task": "detect",
                "data": recipe.data,
                "device": str(device),
                "save_dir": str(folder / "ultralytics"),
                "lr0": 1.0,  # so that a group's LR is its multiple of the schedule's: 3 in some groups of MuSGD. (Their
                # biases Ultralytics warms up from warmup_bias_lr itself, this trainer from 3 times it.)
                "close_mosaic": 0,  # counts from the end; the data set closes mosaic at an absolute epoch
                "augmentations": [],
                "amp": False,  # the check for it downloads weights; set below
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
        self.model.criterion = self.model.init_criterion()  # not as late as the first loss: it may have state
        self.multiples = [group["lr"] for group in self.optimizer.param_groups]
        names = [group["param_group"] for group in self.optimizer.param_groups]
        self.main = next(i for i, name in enumerate(names) if name == "weight" and self.multiples[i] == 1)
        self.record = Recorder(self.optimizer)
        self.loss_items: dict[str, torch.Tensor] = {}
        self.epoch = 0  # read by the validator only

    def deterministic(self) -> None:
        """Ask torch for deterministic kernels, or not, again: the setting is the process's, not the trainer's."""
        torch.use_deterministic_algorithms(self._recipe.deterministic, warn_only=True)
        torch.backends.cudnn.deterministic = self._recipe.deterministic

    def plan(self, epoch: int, trace: "Trace") -> Iterator[tuple[list[float], float]]:
        """For every step of an epoch: the LR of each parameter group, the momentum."""
        names = [group["param_group"] for group in self.optimizer.param_groups]
        lrs = {name: trace.group(name) for name in set(names)}
        first = epoch * trace.steps_per_epoch
        for step in range(first, first + trace.steps_per_epoch):
            momentum = self._recipe.momentum if trace.momentum is None else float(trace.momentum[step])
            yield [x * float(lrs[name][step]) for x, name in zip(self.multiples, names, strict=True)], momentum

    def step(self, lrs: list[float], momentum: float) -> None:
        """One optimizer update at the learning rates ``lrs``; ``record`` keeps what was used."""
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
            if "momentum" in group:  # as Ultralytics: Adam's betas stay
                group["momentum"] = momentum
        before = self.record.steps
        self.optimizer_step()
        # The scaler of mixed precision does not call the optimizer where a gradient is infinite, and begins to count
        # anew. Any other call that is missing is missing in the record, too, and the worker's comparison shows it.
        if self.record.steps == before and self.scaler.state_dict().get("_growth_tracker") == 0:
            self.record.skipped()

    def setup_model(self) -> Any:
        """As Ultralytics', from a fresh start: the initial weights depend on model and seed, not on this process."""
        Detect.legacy = False  # set on the class by the model built before, and read by YOLOv10's head
        init_seeds(self.args.seed, deterministic=self.args.deterministic)
        return super().setup_model()

    def get_dataset(self) -> dict[str, Any]:
        """The data set's description, from a private layout: Ultralytics writes beside what it reads."""
        path = Path(self._recipe.data)
        if not (path.parent / datasets.MARKER).is_file():
            path = datasets.open(self._recipe.data, folder=self._folder / "data", **self._recipe.part).yaml
        return described(path)

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Training: epochs as pure functions of their number. Validation: as Ultralytics'."""
        recipe, training = self._recipe, mode == "train"
        budget = (cache_mb(memory()) if recipe.cache_mb == "auto" else recipe.cache_mb) * 2**20
        if not training:
            budget -= self.train_loader.dataset.images.bytes
        dataset = self.dataset_of(
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
        """The validator that keeps its detections."""
        return self.validator_of(self.test_loader, save_dir=self.save_dir, args=vars(self.args).copy(), _callbacks={})

    def _setup_scheduler(self) -> None:
        self.scheduler = SimpleNamespace(last_epoch=0)  # the trace is the only scheduler


# -- the state of a training -------------------------------------------------------------------------------------------


def take(trainer: Any) -> dict[str, Any]:
    """Everything that Ultralytics' trainer needs to continue. The tensors are the live ones."""
    return {
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "criterion": _criterion(trainer.model),
    }


def put(state: Mapping[str, Any], trainer: Any) -> None:
    """Put a state back, in place. Raises SnapshotCorrupt where it is of another model or optimizer."""
    try:
        trainer.model.load_state_dict(state["model"])
        trainer.ema.ema.load_state_dict(state["ema"])
        trainer.ema.updates = state["updates"]
        trainer.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where mixed precision is off
            trainer.scaler.load_state_dict(state["scaler"])
        for name, value in state["criterion"].items():
            setattr(trainer.model.criterion, name, value)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise SnapshotCorrupt(f"snapshot: is not of this model and optimizer ({first}); train from the start") from None


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a state on the CPU, which stays as it is when the training goes on. Waits for a GPU once."""
    result: dict[str, Any] = _copied(state)
    for device in {value.device for value in state["model"].values() if value.is_cuda}:
        torch.cuda.synchronize(device)
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):  # from a GPU into pinned memory
        return value.detach().to("cpu", non_blocking=True) if value.is_cuda else value.detach().clone()
    if isinstance(value, dict):
        same = copy.copy(value)  # a state_dict also has what is not among its items
        same.update((key, _copied(entry)) for key, entry in value.items())
        return same
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """The state as a file of ``torch.save``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """Read what ``to_bytes`` wrote, on the CPU, without running code from it. Raises SnapshotCorrupt."""
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or pickle raises anything
        raise SnapshotCorrupt(f"snapshot: {len(content)} bytes cannot be read ({type(error).__name__})") from None
    return state


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over every tensor (name, type, shape, bytes) and counter.

    Left out: the optimizer's settings, which every step writes anew from the schedule.
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
    """The name of the first weight or buffer that holds a NaN or infinity."""
    tensors = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    fine = torch.stack([value.isfinite().all() for value in tensors.values()]).cpu().tolist()
    return next((name for name, ok in zip(tensors, fine, strict=True) if not ok), None)


def _criterion(model: torch.nn.Module) -> dict[str, float]:
    """The loss's own state: end-to-end heads (YOLO26, YOLOv10) shift weight between two losses as epochs pass."""
    criterion = getattr(model, "criterion", None)
    return {name: getattr(criterion, name) for name in ("updates", "o2m", "o2o") if hasattr(criterion, name)}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(f"{name}/{key}", value[key])
    else:
        yield name, value
