"""A trained model as one file that its own library loads, built here from a plain ``state_dict``.

What a worker stores and what MLflow keeps are tensors only. A file that ``YOLO("model.pt")`` loads is a pickle of the
whole network, so it is made on the machine that exports it, and nothing that came from a server is unpickled.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from sweeper.errors import ConfigError
from sweeper.training import TORCHVISION, isolated  # noqa: F401  before Ultralytics
from sweeper.training.models import architecture

# isort: split
import ultralytics
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT

if TYPE_CHECKING:
    from sweeper.config import Recipe


def model_file(recipe: "Recipe", names: Sequence[str], weights: bytes, arguments: Mapping[str, Any]) -> bytes:
    """The bytes of ``model.pt`` for a model of ``recipe`` with these ``weights`` (a file with its ``state_dict``).

    ``names`` are the classes in their order, ``arguments`` what ``yolo train`` would be given for the same training.
    The weights stay in float32 (Ultralytics halves those of ``best.pt``), so that a validation gives the logged mAP.
    A model of torchvision becomes a file for ``torch.load(..., weights_only=False)``: a network that takes images of
    any size and scales them as in training. Raises ConfigError where the weights are those of another model.
    """
    state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    if recipe.model.startswith(TORCHVISION):
        from sweeper.training.torchvision import build

        net = build(recipe.model, len(names))
        plain = net.transform
        net.transform = GeneralizedRCNNTransform(recipe.imgsz, recipe.imgsz, plain.image_mean, plain.image_std)
        content: Any = _filled(net, state, recipe.model)
    else:
        Detect.legacy = False  # a class attribute that loading an old model may have changed
        model = DetectionModel(architecture(recipe.model), ch=3, nc=len(names), verbose=False)
        known = {key: value for key, value in arguments.items() if key in DEFAULT_CFG_DICT}
        model.args = {**DEFAULT_CFG_DICT, **known, "task": "detect", "model": recipe.model}
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
