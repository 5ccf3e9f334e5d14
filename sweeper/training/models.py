"""Which models there are, checked before anything is built; what of them and of the machine determines a training."""

import difflib
import hashlib
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torchvision

from sweeper.errors import ConfigError, DeviceError
from sweeper.training import isolated  # noqa: F401  before Ultralytics

# isort: split
import ultralytics
from ultralytics.nn.tasks import load_checkpoint, yaml_model_load
from ultralytics.utils import ROOT

if TYPE_CHECKING:
    from sweeper.config import Recipe

HEADS = ("Detect", "v10Detect")


def architecture(model: str) -> dict[str, Any]:
    """The architecture that ``model`` names: Ultralytics' ``yolo11n.yaml``, a YAML file, or weights (``.pt``).

    Nothing is downloaded. Raises ConfigError where there is no such model or it is not one of YOLO's detectors.
    """
    path = Path(model)
    if path.suffix == ".pt":
        if not path.is_file():
            raise ConfigError(
                f"model: {model} is not there; put the weights at {path.absolute()} (nothing is downloaded), "
                f"or start untrained with {path.stem}.yaml"
            )
        found: dict[str, Any] = load_checkpoint(path)[0].yaml
    elif path.suffix in (".yaml", ".yml") and "://" not in model:
        try:
            found = yaml_model_load(model)
        except FileNotFoundError:
            known = sorted(file.name for file in (ROOT / "cfg" / "models").rglob("yolo*.yaml"))
            near = difflib.get_close_matches(path.name, known, n=3, cutoff=0.5)
            hint = f"near it: {', '.join(near)}" if near else "for example yolo11n.yaml"
            raise ConfigError(f"model: {model} is neither a file nor one of Ultralytics' models; {hint}") from None
    else:
        raise ConfigError(f"model: {model} is not a model; expected a name such as yolo11n.yaml or a .pt file")
    head = found["head"][-1][2]
    if head not in HEADS:
        raise ConfigError(f"model: {model} ends in {head}; expected a detector that ends in {' or '.join(HEADS)}")
    return found


def check_device(device: str) -> torch.device:
    """``device`` as torch knows it. Raises DeviceError where it is not there."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise DeviceError(f"device: {device!r} is not a device; expected cpu, cuda or cuda:0") from None
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise DeviceError(f"device: {device} is not supported; expected cpu, cuda or cuda:0")
    if not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device: {device} is not there; torch {torch.__version__} sees {torch.cuda.device_count()}")
    return torch.device("cuda", found.index or 0)


def fingerprint(recipe: "Recipe", device: str, threads: int) -> dict[str, str | int]:
    """See ``sweeper.training.fingerprint``."""
    cfg = architecture(recipe.model)
    where = check_device(device)
    on_cpu = where.type == "cpu"
    is_weights = Path(recipe.model).suffix == ".pt"
    said = {key: value for key, value in cfg.items() if key != "yaml_file"}
    return {
        "ultralytics": ultralytics.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "device": _cpu() if on_cpu else torch.cuda.get_device_name(where),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": "" if on_cpu else f"{torch.version.cuda} cudnn {torch.backends.cudnn.version()}",  # type: ignore[no-untyped-call]
        "precision": "amp" if recipe.amp and not on_cpu else "float32",
        "threads": threads,
        "architecture": hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest(),
        "weights": hashlib.sha256(Path(recipe.model).read_bytes()).hexdigest() if is_weights else "",
        "end2end": int(bool(cfg.get("end2end")) or cfg["head"][-1][2] == "v10Detect"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
