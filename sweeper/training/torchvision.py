"""torchvision's detectors (Faster R-CNN, RetinaNet, FCOS) on any of its backbones, in the same loop as YOLO's.

A model's name has the form of torchvision's constructors, family, backbone and ``fpn``: ``fasterrcnn_resnet18_fpn``,
``retinanet_mobilenet_v3_large_fpn``, ``fcos_regnet_y_400mf_fpn``. All models start untrained.

Data, augmentation, optimizer, EMA, snapshots and mAP are those of :class:`UltralyticsTrainer`, so that the metrics of
all families are on one scale. The loss is torchvision's, the mean over the images of an optimizer step (YOLO's is their
sum), so learning rates mean the same as in torchvision's reference training.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_convert
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from sweeper.errors import ConfigError
from sweeper.training import models
from sweeper.training.epochs import reseed
from sweeper.training.parts import Parts, Validator
from sweeper.training.ultralytics import UltralyticsTrainer

if TYPE_CHECKING:
    from sweeper.config import Recipe

CHANNELS = 256  # of the feature pyramid
CANDIDATES = {"score_thresh": 0.001, "detections_per_img": 300}  # as in YOLO's validation, for comparable metrics

Batch = dict[str, torch.Tensor]


def split(model: str) -> tuple[str, str]:
    """Family and backbone in a model's name. Raises ConfigError for an unknown one.

    >>> split("retinanet_resnet18_fpn")
    ('retinanet', 'resnet18')
    """
    family, _, rest = model.partition("_")
    backbone = rest.removesuffix("_fpn")
    backbones = torchvision.models.list_models(torchvision.models)
    if family not in ("fasterrcnn", "retinanet", "fcos") or backbone == rest or backbone not in backbones:
        raise ConfigError(
            f"model: {model} is not one of torchvision's; expected fasterrcnn, retinanet or fcos, a backbone and fpn, "
            "for example fasterrcnn_resnet18_fpn"
        )
    return family, backbone


def check(recipe: "Recipe") -> None:
    """Raise ConfigError for a model that does not exist and for keys that have no meaning for it."""
    with torch.device("meta"):  # This device allocates no memory.
        build(recipe.model, classes=1)
    models.refuse(recipe, ("box", "cls", "dfl", "freeze"))


def model_bytes(recipe: "Recipe") -> int:
    """Bytes of the weights and buffers of a recipe's model with one class."""
    with torch.device("meta"):
        return sum(value.nbytes for value in build(recipe.model, classes=1).state_dict().values())


def fingerprint(recipe: "Recipe", device: str, threads: int) -> dict[str, str | int]:
    """See ``sweeper.training.fingerprint``. The name and torchvision's version determine the architecture."""
    check(recipe)
    # The fingerprint of any YOLO has the versions and the machine.
    properties = models.fingerprint(recipe.model_copy(update={"model": "yolo11n.yaml"}), device, threads)
    return properties | {"architecture": recipe.model}


def pyramid(backbone: str, strides: tuple[int, ...], extra: torch.nn.Module) -> BackboneWithFPN:
    """A feature pyramid on the last layer of ``backbone`` with each of ``strides``, found by running it on zeros."""
    net = torchvision.models.get_model(backbone, weights=None)
    if hasattr(net, "trunk_output"):  # RegNet's stages are one level deeper.
        body = torch.nn.Sequential(OrderedDict([("stem", net.stem), *net.trunk_output.named_children()]))
    else:
        body = getattr(net, "features", None) or getattr(net, "layers", None) or net
    levels: dict[int, tuple[str, int]] = {}  # stride -> name and channels of the last layer with it
    x, size = torch.zeros(1, 3, 128, 128), 128
    net.eval()
    with torch.no_grad():
        for name, layer in body.named_children():
            try:
                x = layer(x)
            except Exception:  # From here on the layers are no chain, as in a classifier's head or a transformer.
                break
            if x.ndim != 4 or x.shape[2] != x.shape[3] or x.shape[2] < 2 or size % x.shape[2]:
                break
            levels[size // x.shape[2]] = (name, x.shape[1])
    net.train()
    if missing := [stride for stride in strides if stride not in levels]:
        raise ConfigError(
            f"model: {backbone} has no layer of stride {missing[0]} for a feature pyramid; "
            "use a ResNet, RegNet, MobileNet, EfficientNet, ConvNeXt, DenseNet, ShuffleNet or VGG"
        )
    layers = {levels[stride][0]: str(index) for index, stride in enumerate(strides)}
    return BackboneWithFPN(body, layers, [levels[stride][1] for stride in strides], CHANNELS, extra)


def build(model: str, classes: int) -> Any:
    """The untrained network of this name, as torchvision's own constructor builds it. Nothing is downloaded."""
    family, backbone = split(model)
    if family == "fasterrcnn":
        boxes = {f"box_{name}": value for name, value in CANDIDATES.items()}
        net = FasterRCNN(pyramid(backbone, (4, 8, 16, 32), LastLevelMaxPool()), classes + 1, **boxes)
    else:
        body = pyramid(backbone, (8, 16, 32), LastLevelP6P7(CHANNELS, CHANNELS))
        net = {"retinanet": RetinaNet, "fcos": FCOS}[family](body, classes, **CANDIDATES)
    net.transform = Normalised(1, 1, net.transform.image_mean, net.transform.image_std)
    return net


def standalone(model: str, classes: int, size: int) -> Any:
    """The same network for images of any size, which it scales to ``size`` pixels as in training."""
    net = build(model, classes)
    net.transform = GeneralizedRCNNTransform(size, size, net.transform.image_mean, net.transform.image_std)
    return net


class Normalised(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's preprocessing of images without resizing, because the loader resizes them."""

    def resize(self, image: torch.Tensor, target: Any = None) -> tuple[torch.Tensor, Any]:
        """The unchanged image and target."""
        return image, target


class Detector(torch.nn.Module):
    """A network of torchvision with the interface of Ultralytics' models, for the loop and the validator."""

    def __init__(self, model: str, names: dict[int, str], accumulate: int) -> None:
        super().__init__()
        self.net = build(model, len(names))
        self.names = names
        self.stride = torch.tensor([32.0])
        self._first = 1 if model.startswith("fasterrcnn") else 0  # Class 0 of Faster R-CNN is the background.
        self._accumulate = accumulate

    def init_criterion(self) -> None:
        """Nothing: the losses are the network's and have no state."""

    def set_head_attr(self, max_det: int) -> None:
        """Set the maximum number of detections per image."""
        getattr(self.net, "roi_heads", self.net).detections_per_img = max_det

    def forward(self, x: Any, augment: bool = False) -> Any:
        """For a batch its loss; for images alone their detections, or in training mode their features."""
        if isinstance(x, dict):
            loss, items = self.loss(x)
            return loss / self._accumulate, items
        return self.net.backbone(x) if self.training else self._detections(self.net(list(x)))

    def loss(self, batch: Batch, preds: Any = None) -> tuple[torch.Tensor, Batch]:
        """The mean loss per image, and its terms by name.

        torchvision computes losses in training mode only, so in evaluation mode all modules but BatchNorm switch to it.
        """
        evaluating = not self.training
        if evaluating:
            self.net.train()
            for module in self.net.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
            reseed(0)  # because Faster R-CNN samples its regions at random
        try:
            losses = self.net(list(batch["img"]), list(self._targets(batch)))
        finally:
            self.train(not evaluating)
        total = torch.stack(list(losses.values())).sum()
        return total, {f"{name.removeprefix('loss_')}_loss": value.detach() for name, value in losses.items()}

    def _targets(self, batch: Batch) -> Iterator[Batch]:
        """torchvision's boxes (pixels, x1 y1 x2 y2) and labels of each image of a batch."""
        height, width = batch["img"].shape[2:]
        boxes = box_convert(batch["bboxes"].float(), "cxcywh", "xyxy")
        boxes = boxes * boxes.new_tensor([width, height, width, height])
        labels = batch["cls"].long().reshape(-1) + self._first
        valid = (boxes[:, 2:] > boxes[:, :2]).all(1)  # A box may round to no area, which is an error in torchvision.
        for index in range(len(batch["img"])):
            chosen = (batch["batch_idx"] == index) & valid
            yield {"boxes": boxes[chosen], "labels": labels[chosen]}

    def _detections(self, images: list[Batch]) -> list[Batch]:
        """torchvision's detections under the keys of Ultralytics' validator."""
        return [
            {
                "bboxes": image["boxes"].float(),
                "conf": image["scores"].float(),
                "cls": (image["labels"] - self._first).float(),
                "extra": image["boxes"].new_zeros((len(image["boxes"]), 0)),
            }
            for image in images
        ]


class TorchvisionValidator(Validator):
    """Ultralytics' validator for detections of torchvision."""

    def postprocess(self, preds: list[Batch]) -> list[Batch]:
        """The unchanged detections, because the network has suppressed overlaps itself."""
        return preds


class TorchvisionParts(Parts):
    """Ultralytics' trainer with a network of torchvision."""

    validator_class = TorchvisionValidator

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Detector:
        """The untrained network. Ultralytics calls this after it has set the random states."""
        return Detector(self._recipe.model, self.data["names"], self._recipe.accumulate)


class TorchvisionTrainer(UltralyticsTrainer):
    """The trainer of torchvision's models; see ``sweeper.training.Trainer``."""

    parts_class = TorchvisionParts
    check = staticmethod(check)
    loss_is_mean = True

    def _inference_model(self) -> Any:
        """torchvision's own network."""
        return self._parts.ema.ema.net
