"""Checks a recipe's model and device, fingerprints them, and exports trained models as ``model.pt``.

The store and MLflow hold plain ``state_dict`` files, so nothing that comes from a server is unpickled. The file that
``YOLO("model.pt")`` loads is a pickle of the whole network, so it is written on the machine that exports it.
"""

import difflib
import functools
import hashlib
import io
import json
import logging
import os
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torchvision

from sweeper.errors import ConfigError, DeviceError, shorten
from sweeper.reading import parse_yaml, read_text, why
from sweeper.training import TORCHVISION


def _isolate() -> None:
    """Import Ultralytics isolated from the user's settings. Modules that use it import this module first.

    It reads and writes no settings of the user, installs nothing, sends no usage data, starts no integration (its
    MLflow callback would log every trial a second time), and prints warnings only.
    """
    os.environ |= {"YOLO_AUTOINSTALL": "False", "YOLO_OFFLINE": "True", "YOLO_VERBOSE": "False"}
    # Cluster launchers set WORLD_SIZE; Ultralytics would take this process for a rank of a distributed training.
    before = {name: os.environ.pop(name, None) for name in ("YOLO_CONFIG_DIR", "WORLD_SIZE")}
    print_options = np.get_printoptions()
    with tempfile.TemporaryDirectory(prefix="sweeper-ultralytics-") as folder:
        os.environ["YOLO_CONFIG_DIR"] = folder
        from ultralytics.utils import LOGGER, SETTINGS
    del os.environ["YOLO_CONFIG_DIR"]
    os.environ |= {name: value for name, value in before.items() if value is not None}
    np.set_printoptions(**print_options)  # because Ultralytics changes them for the whole process
    LOGGER.setLevel(logging.WARNING)
    integrations = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")
    dict.update(SETTINGS, {"sync": False, **dict.fromkeys(integrations, False)})  # in memory only


_isolate()

# isort: split
import ultralytics  # noqa: E402
from ultralytics.nn.modules.head import Detect  # noqa: E402
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel, load_checkpoint, yaml_model_load  # noqa: E402
from ultralytics.utils import DEFAULT_CFG_DICT, ROOT  # noqa: E402
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset  # noqa: E402

if TYPE_CHECKING:
    from sweeper.config import Recipe

RTDETR = "RTDETRDecoder"
HEADS = ("Detect", "v10Detect", RTDETR)


def architecture(model: str) -> dict[str, Any]:
    """The architecture that ``model`` names: Ultralytics' ``yolo11n.yaml``, a YAML file, or weights (``.pt``).

    Weights that Ultralytics publishes are downloaded, as by ``yolo``. Raises ConfigError if there is no such model or
    it is no detector.
    """
    path = Path(model)
    if path.suffix == ".pt":
        if not path.is_file():
            _fetch(path)
        try:
            cfg: dict[str, Any] = load_checkpoint(path)[0].yaml
        except Exception as error:  # a pickle raises anything
            raise ConfigError(f"model: {model} cannot be read as Ultralytics' weights: {_one_line(error)}") from None
    elif path.suffix in (".yaml", ".yml") and "://" not in model:
        try:
            if path.exists():  # A file of the user is read within bounds before Ultralytics reads it.
                parse_yaml(read_text(path))
            cfg = yaml_model_load(model)
        except (OSError, ValueError) as error:
            if not isinstance(error, FileNotFoundError):
                problem = why(error) if isinstance(error, OSError | UnicodeDecodeError) else str(error)
                raise ConfigError(f"model: {model} cannot be read as a model: {problem}") from None
            raise _unknown(model) from None
    else:
        raise ConfigError(f"model: {model} is not a model; expected a name such as yolo11n.yaml or a .pt file")
    try:
        head = cfg["head"][-1][2]
    except (LookupError, TypeError):
        raise ConfigError(f"model: {model} has no head; expected an architecture as Ultralytics writes it") from None
    if head not in HEADS:
        raise ConfigError(f"model: {model} ends in {head}; expected a detector that ends in {' or '.join(HEADS)}")
    return cfg


def _fetch(path: Path) -> None:
    """Download weights that Ultralytics publishes to ``path``; other processes never see an incomplete file."""
    problem = "Ultralytics publishes none of this name"
    if path.name in GITHUB_ASSETS_NAMES:
        try:
            attempt_download_asset(path.absolute(), retry=1, progress=False)
            return
        except Exception as error:  # for example no network, a full disk, an incomplete file
            problem = f"could not be fetched: {_one_line(error).strip('❌ .')}"
    raise ConfigError(
        f"model: {path} is not there ({problem}); put the weights at {path.absolute()}, or start untrained with "
        f"{path.stem}.yaml"
    )


def is_rtdetr(model: str) -> bool:
    """Whether ``model``, which ``check`` has accepted, is an RT-DETR."""
    return bool(architecture(model)["head"][-1][2] == RTDETR)


def check(recipe: "Recipe") -> dict[str, Any]:
    """Check that a recipe's model can be built and fits the rest of the recipe; return its architecture.

    Raises ConfigError for a model that does not exist or cannot be built, for an image size that does not fit its
    strides, and for layers to freeze that it does not have.
    """
    cfg = architecture(recipe.model)
    layers, stride, _ = _built(recipe.model, json.dumps(cfg, default=str))
    if recipe.imgsz % stride:
        near = max(round(recipe.imgsz / stride), 1) * stride
        raise ConfigError(
            f"imgsz: {recipe.imgsz} is not a multiple of {stride}, the largest stride of {recipe.model}; "
            f"expected for example {near}"
        )
    if cfg["head"][-1][2] == RTDETR:
        refuse(recipe, ("box", "cls", "dfl", "rect"))
    frozen = set(recipe.freeze if isinstance(recipe.freeze, list) else range(recipe.freeze or 0))
    if frozen and (max(frozen) >= layers or len(frozen) == layers):
        raise ConfigError(
            f"freeze: {shorten(recipe.freeze)} leaves nothing to train or names layers that {recipe.model} does not "
            f"have; it has {layers}, from 0 to {layers - 1}: expected at most {layers - 1}, or a list of some of them"
        )
    return cfg


def refuse(recipe: "Recipe", keys: Sequence[str]) -> None:
    """Raise ConfigError if a recipe sets one of ``keys`` or MuSGD, which have no meaning for its model."""
    for name in keys:
        if getattr(recipe, name) != type(recipe).model_fields[name].default:
            raise ConfigError(f"{name}: has no meaning for {recipe.model}; leave it out")
    if recipe.optimizer == "MuSGD":
        raise ConfigError(f"optimizer: MuSGD is for YOLO's heads, {recipe.model} has none; use SGD or AdamW")


def model_bytes(recipe: "Recipe") -> int:
    """Bytes of the weights and buffers of a recipe's model, with the number of classes in its architecture."""
    return _built(recipe.model, json.dumps(architecture(recipe.model), default=str))[2]


@functools.cache
def _built(model: str, cfg: str) -> tuple[int, int, int]:
    """Number of layers, largest stride and bytes of a model. It is built without changing torch's random state."""
    try:
        with torch.random.fork_rng(devices=[]):
            net = DetectionModel(json.loads(cfg), verbose=False)
    except Exception as error:  # A wrong architecture raises any class.
        raise ConfigError(f"model: {model} cannot be built: {_one_line(error)}") from None
    return len(net.model), int(net.stride.max()), sum(value.nbytes for value in net.state_dict().values())


def _unknown(model: str) -> ConfigError:
    """The error for a model that does not exist, with similar names."""
    names = sorted(file.name for file in (ROOT / "cfg" / "models").rglob("*.yaml"))
    near = difflib.get_close_matches(Path(model).name, names, n=3, cutoff=0.5)
    hint = f"similar names: {', '.join(near)}" if near else "for example yolo11n.yaml"
    return ConfigError(f"model: {model} is neither a file nor one of Ultralytics' models; {hint}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_device(device: str) -> torch.device:
    """``device`` as torch's. Raises DeviceError for one that torch does not see or that is not supported."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise DeviceError(f"device: {device} is not supported; expected cpu, cuda or cuda:0")
    if device == "cpu":
        return torch.device(device)
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise DeviceError(f"device: {device} is not there; torch {torch.__version__} sees {torch.cuda.device_count()}")
    return torch.device("cuda", index)


def fingerprint(recipe: "Recipe", device: str, threads: int) -> dict[str, str | int]:
    """See ``sweeper.training.fingerprint``."""
    cfg = check(recipe)
    torch_device = check_device(device)
    on_cpu = torch_device.type == "cpu"
    is_weights = Path(recipe.model).suffix == ".pt"
    network = {key: value for key, value in cfg.items() if key != "yaml_file"}
    return {
        "ultralytics": ultralytics.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "device": _cpu_name() if on_cpu else torch.cuda.get_device_name(torch_device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": "" if on_cpu else f"{torch.version.cuda} cudnn {torch.backends.cudnn.version()}",  # type: ignore[no-untyped-call]
        "precision": "amp" if recipe.amp and not on_cpu else "float32",
        "threads": threads,
        "architecture": hashlib.sha256(json.dumps(network, sort_keys=True, default=str).encode()).hexdigest(),
        "weights": hashlib.sha256(Path(recipe.model).read_bytes()).hexdigest() if is_weights else "",
        "end2end": int(bool(cfg.get("end2end")) or cfg["head"][-1][2] == "v10Detect"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def model_file(recipe: "Recipe", names: Sequence[str], weights: bytes, arguments: Mapping[str, Any]) -> bytes:
    """The bytes of ``model.pt`` for a model of ``recipe`` with these ``weights`` (a file with its ``state_dict``).

    ``names``: the classes in their order. ``arguments``: those of ``yolo train`` for the same training. The weights
    stay in float32 (Ultralytics converts those of ``best.pt`` to float16), so that a validation gives the logged mAP.
    For a model of torchvision the result is a file for ``torch.load(..., weights_only=False)``: a network that takes
    images of any size and scales them as in training. Raises ConfigError for weights of another model.
    """
    state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    if recipe.model.startswith(TORCHVISION):
        from sweeper.training.torchvision import standalone

        content: Any = _with_weights(standalone(recipe.model, len(names), recipe.imgsz), state, recipe.model)
    else:
        Detect.legacy = False  # a class attribute, which loading an old model may have changed
        model_class = RTDETRDetectionModel if is_rtdetr(recipe.model) else DetectionModel
        model = model_class(architecture(recipe.model), ch=3, nc=len(names), verbose=False)
        accepted = {key: value for key, value in arguments.items() if key in DEFAULT_CFG_DICT}
        model.args = {**DEFAULT_CFG_DICT, **accepted, "task": "detect", "model": recipe.model}
        model.names, model.nc, model.task = dict(enumerate(names)), len(names), "detect"
        content = {
            "epoch": -1,  # Ultralytics' mark of a training that has ended
            "model": _with_weights(model, state, recipe.model),
            "train_args": model.args,
            "version": ultralytics.__version__,
            "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _with_weights(model: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str) -> torch.nn.Module:
    """``model`` with the weights of ``state``, frozen and in evaluation mode. Raises ConfigError if they do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"weights: they are not those of {name} with this data set's classes ({first})") from None
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model.eval()
