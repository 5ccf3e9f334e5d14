"""Ultralytics' RT-DETR in the same loop as its YOLO: other images, another network, and no overlaps to suppress."""

from typing import Any

import torch

from sweeper.training.epochs import ExactDataset, Image
from sweeper.training.parts import Parts, Validator
from sweeper.training.ultralytics import UltralyticsTrainer

# isort: split
from ultralytics.models import rtdetr


class StretchedDataset(ExactDataset):
    """Images that are stretched to a square, in training and in validation."""

    def load_image(self, i: int, rect_mode: bool = False, resize_short: bool = False) -> Image:
        """The image, decoded and stretched."""
        return super().load_image(i, False, resize_short)


class RTDETRValidator(Validator):
    """The network itself gives the best of its queries, so there is nothing to suppress."""

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        """As Ultralytics'."""
        detections: list[dict[str, torch.Tensor]] = rtdetr.RTDETRValidator.postprocess(self, preds)
        return detections


class RTDETRParts(Parts):
    """The parts of the loop around an RT-DETR."""

    validator_of = RTDETRValidator
    dataset_of = StretchedDataset
    rectangular = False
    get_model = rtdetr.train.RTDETRTrainer.get_model


class RTDETRTrainer(UltralyticsTrainer):
    """See ``sweeper.training.Trainer``."""

    parts_of = RTDETRParts

    def _summed(self, loss: torch.Tensor, images: int) -> float:
        """RT-DETR's loss is a mean."""
        return float(loss) * images
