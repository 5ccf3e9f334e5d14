"""Which models there are, checked before anything is built; what of them and of the machine determines a training.

A trained model becomes one file that its own library loads here, from a plain ``state_dict``: what a worker stores and
what MLflow keeps are tensors only. A file that ``YOLO("model.pt")`` loads is a pickle of the whole network, so it is
made on the machine that exports it, and nothing that came from a server is unpickled.
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
    """Import Ultralytics so that it touches nothing of the user's; each module that needs it imports this one before.

    It never sees the user's settings, installs nothing, reports nothing, starts no integration (its MLflow callback
    would log every trial a second time), and prints warnings only.
    """
    os.environ |= {"YOLO_AUTOINSTALL": "False", "YOLO_OFFLINE": "True", "YOLO_VERBOSE": "False"}
    # WORLD_SIZE is set by cluster launchers; Ultralytics would take this process for a rank of a distributed training
    before = {name: os.environ.pop(name, None) for name in ("YOLO_CONFIG_DIR", "WORLD_SIZE")}
    print_options = np.get_printoptions()
    with tempfile.TemporaryDirectory(prefix="sweeper-ultralytics-") as folder:
        os.environ["YOLO_CONFIG_DIR"] = folder
        from ultralytics.utils import LOGGER, SETTINGS
    del os.environ["YOLO_CONFIG_DIR"]
    os.environ |= {name: value for name, value in before.items() if value is not None}
    np.set_printoptions(**print_options)  # Ultralytics sets other ones, for everybody
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

    Weights that Ultralytics publishes are fetched, as ``yolo`` does. Raises ConfigError where there is no such model or
    it is no detector.
    """
    path = Path(model)
    if path.suffix == ".pt":
        if not path.is_file():
            _fetch(path)
        try:
            cfg: dict[str, Any] = load_checkpoint(path)[0].yaml
        except Exception as error:  # a pickle raises anything
            raise ConfigError(f"model: {model} cannot be read as Ultralytics' weights: {_line(error)}") from None
    elif path.suffix in (".yaml", ".yml") and "://" not in model:
        try:
            if path.exists():  # a file of the user's; Ultralytics reads it next
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
    """Put weights that Ultralytics publishes under this name at ``path``; another process never sees half a file."""
    problem = "Ultralytics publishes none of this name"
    if path.name in GITHUB_ASSETS_NAMES:
        try:
            attempt_download_asset(path.absolute(), retry=1, progress=False)
            return
        except Exception as error:  # no network, a full disk, a file cut short
            problem = f"could not be fetched: {_line(error).strip('❌ .')}"
    raise ConfigError(
        f"model: {path} is not there ({problem}); put the weights at {path.absolute()}, or start untrained with "
        f"{path.stem}.yaml"
    )


def is_rtdetr(model: str) -> bool:
    """Whether ``model`` is an RT-DETR; of models that ``check`` has let pass."""
    return bool(architecture(model)["head"][-1][2] == RTDETR)


def check(recipe: "Recipe") -> dict[str, Any]:
    """The architecture of a recipe's model, which can be built and goes with the rest of the recipe.

    Raises ConfigError for a model that is not there or cannot be built, for images that do not fit its strides, and for
    layers to freeze that it does not have.
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
    """Raise ConfigError where a model that is no YOLO is given one of these ``keys``, or YOLO's optimizer."""
    for name in keys:
        if getattr(recipe, name) != type(recipe).model_fields[name].default:
            raise ConfigError(f"{name}: has no meaning for {recipe.model}; leave it out")
    if recipe.optimizer == "MuSGD":
        raise ConfigError(f"optimizer: MuSGD treats YOLO's heads apart, {recipe.model} has none; use SGD or AdamW")


def model_bytes(recipe: "Recipe") -> int:
    """Bytes of the weights and buffers of a recipe's model, with as many classes as its file says."""
    return _built(recipe.model, json.dumps(architecture(recipe.model), default=str))[2]


@functools.cache
def _built(model: str, cfg: str) -> tuple[int, int, int]:
    """How many layers a model has, its largest stride and its bytes. It is built without using up a random number."""
    try:
        with torch.random.fork_rng(devices=[]):
            net = DetectionModel(json.loads(cfg), verbose=False)
    except Exception as error:  # whatever an architecture can have wrong
        raise ConfigError(f"model: {model} cannot be built: {_line(error)}") from None
    return len(net.model), int(net.stride.max()), sum(value.nbytes for value in net.state_dict().values())


def _unknown(model: str) -> ConfigError:
    names = sorted(file.name for file in (ROOT / "cfg" / "models").rglob("*.yaml"))
    near = difflib.get_close_matches(Path(model).name, names, n=3, cutoff=0.5)
    hint = f"near it: {', '.join(near)}" if near else "for example yolo11n.yaml"
    return ConfigError(f"model: {model} is neither a file nor one of Ultralytics' models; {hint}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_device(device: str) -> torch.device:
    """``device`` as torch knows it. Raises DeviceError where it is not there."""
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
    where = check_device(device)
    on_cpu = where.type == "cpu"
    is_weights = Path(recipe.model).suffix == ".pt"
    network = {key: value for key, value in cfg.items() if key != "yaml_file"}
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
        "architecture": hashlib.sha256(json.dumps(network, sort_keys=True, default=str).encode()).hexdigest(),
        "weights": hashlib.sha256(Path(recipe.model).read_bytes()).hexdigest() if is_weights else "",
        "end2end": int(bool(cfg.get("end2end")) or cfg["head"][-1][2] == "v10Detect"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def model_file(recipe: "Recipe", names: Sequence[str], weights: bytes, arguments: Mapping[str, Any]) -> bytes:
    """The bytes of ``model.pt`` for a model of ``recipe`` with these ``weights`` (a file with its ``state_dict``).

    ``names`` are the classes in their order, ``arguments`` what ``yolo train`` would be given for the same training.
    The weights stay in float32 (Ultralytics halves those of ``best.pt``), so that a validation gives the logged mAP.
    A model of torchvision becomes a file for ``torch.load(..., weights_only=False)``: a network that takes images of
    any size and scales them as in training. Raises ConfigError where the weights are those of another model.
    """
    state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    if recipe.model.startswith(TORCHVISION):
        from sweeper.training.torchvision import standalone

        content: Any = _filled(standalone(recipe.model, len(names), recipe.imgsz), state, recipe.model)
    else:
        Detect.legacy = False  # a class attribute that loading an old model may have changed
        kind = RTDETRDetectionModel if is_rtdetr(recipe.model) else DetectionModel
        model = kind(architecture(recipe.model), ch=3, nc=len(names), verbose=False)
        accepted = {key: value for key, value in arguments.items() if key in DEFAULT_CFG_DICT}
        model.args = {**DEFAULT_CFG_DICT, **accepted, "task": "detect", "model": recipe.model}
        model.names, model.nc, model.task = dict(enumerate(names)), len(names), "detect"
        content = {
            "epoch": -1,  # as Ultralytics marks a training that has ended
            "model": _filled(model, state, recipe.model),
            "train_args": model.args,
            "version": ultralytics.__version__,
            "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _filled(model: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str) -> torch.nn.Module:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"weights: they are not those of {name} with this data set's classes ({first})") from None
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model.eval()
