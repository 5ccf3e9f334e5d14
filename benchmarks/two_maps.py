"""Where Ultralytics' mAP and COCO's part: one model, one validation set, the difference taken apart step by step.

    python benchmarks/two_maps.py DIR/data.yaml [--epochs 30] [--imgsz 160] [--weights best.pt]

Trains YOLO11n from scratch (or takes ``--weights``), validates it with Ultralytics, hands the same predictions to
pycocotools, and changes one thing at a time on the way from one number to the other. Results: docs/two-maps.md.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics.engine.trainer
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.metrics import ap_per_class

from sweeper import data
from sweeper.training import Detections
from sweeper.training.evaluation import coco_summary


class Validator(DetectionValidator):  # type: ignore[misc]
    """Ultralytics' validator that keeps the predictions, clips them to the image, or cuts them at so many, if told."""

    clip, most = False, 300
    found: list[Detections]

    def update_metrics(self, preds: list[dict[str, Any]], batch: dict[str, Any]) -> None:
        """Change the predictions as told, keep them, and go on as ever."""
        for si, pred in enumerate(preds):
            (gain_y, gain_x), (pad_x, pad_y) = batch["ratio_pad"][si]
            height, width = batch["ori_shape"][si]
            boxes = pred["bboxes"]
            if self.clip:
                boxes[:, 0::2] = boxes[:, 0::2].clamp(pad_x, pad_x + width * gain_x)
                boxes[:, 1::2] = boxes[:, 1::2].clamp(pad_y, pad_y + height * gain_y)
            kept = pred["cls"].new_zeros(0, dtype=torch.long)
            for one in pred["cls"].unique():  # as COCO counts: the best of each class
                kept = torch.cat([kept, torch.nonzero(pred["cls"] == one).flatten()[: self.most]])
            kept = kept.sort().values
            preds[si] = pred = {key: value[kept] for key, value in pred.items()}
            pixels = pred["bboxes"].double().cpu().numpy() - [pad_x, pad_y, pad_x, pad_y]
            pixels /= [gain_x, gain_y, gain_x, gain_y]
            own = (pred[key].cpu().numpy() for key in ("conf", "cls"))
            self.found.append(Detections(batch["im_file"][si], pixels, *own))
        super().update_metrics(preds, batch)


def validate(
    weights: Path, dataset: data.Dataset, imgsz: int, clip: bool, most: int
) -> tuple[list[Detections], list[float]]:
    """The predictions, and Ultralytics' mAP50-95 and mAP50 of them."""
    found: list[Detections] = []
    validator = type("Kept", (Validator,), {"clip": clip, "most": most, "found": found})
    with tempfile.TemporaryDirectory() as folder:
        same = {"data": dataset.yaml, "imgsz": imgsz, "batch": 32, "device": "cpu", "workers": 0}
        metrics = YOLO(weights).val(validator=validator, plots=False, verbose=False, project=folder, **same)
    return found, [metrics.box.map, metrics.box.map50]


def coco_matches(dataset: data.Dataset, found: list[Detections]) -> list[float]:
    """mAP50-95 and mAP50 by Ultralytics' formula on pycocotools' own matches: only the formula is left to differ."""
    truth = COCO(str(dataset.ground_truth()))
    ids = {image["file_name"]: number for number, image in truth.imgs.items()}
    order = sorted(truth.getCatIds())
    rows = []
    for one in found:
        for (x1, y1, x2, y2), score, kind in zip(one.boxes.tolist(), one.scores, one.classes, strict=True):
            row = {"image_id": ids[Path(one.path).name], "category_id": order[int(kind)], "score": float(score)}
            rows.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    run = COCOeval(truth, truth.loadRes(rows), "bbox")
    run.evaluate()
    cells = [cell for cell in run.evalImgs if cell and cell["aRng"] == run.params.areaRng[0]]
    matched = np.concatenate([cell["dtMatches"] > 0 for cell in cells], 1).T
    scores = np.concatenate([cell["dtScores"] for cell in cells])
    classes = np.concatenate([[order.index(cell["category_id"])] * len(cell["dtIds"]) for cell in cells])
    targets = np.array([order.index(a["category_id"]) for a in truth.dataset["annotations"]])
    ap = ap_per_class(matched, scores, classes, targets)[5]
    return [float(ap.mean()), float(ap[:, 0].mean())]


def train(dataset: data.Dataset, epochs: int, imgsz: int, folder: Path) -> Path:
    """YOLO11n from scratch on one thread, as plain Ultralytics trains it."""
    select = ultralytics.engine.trainer.select_device

    def one_thread(*args: Any, **named: Any) -> Any:
        device = select(*args, **named)
        torch.set_num_threads(1)
        return device

    ultralytics.engine.trainer.select_device = one_thread
    model = YOLO("yolo11n.yaml")
    recipe = {"optimizer": "SGD", "lr0": 0.02, "batch": 16, "nbs": 16, "mosaic": 0.0, "augmentations": [], "seed": 0}
    same = {"data": dataset.yaml, "imgsz": imgsz, "device": "cpu", "workers": 0, "cache": "ram"}
    model.train(epochs=epochs, project=str(folder), name="two-maps", plots=False, verbose=False, **recipe, **same)
    return folder / "two-maps" / "weights" / "last.pt"


def main() -> None:
    """Print the table of docs/two-maps.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--weights", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = data.open(asked.data, folder=folder)
        weights = asked.weights or train(dataset, asked.epochs, asked.imgsz, folder)
        as_is, plain = validate(weights, dataset, asked.imgsz, clip=False, most=300)
        _, clipped = validate(weights, dataset, asked.imgsz, clip=True, most=300)
        found, most = validate(weights, dataset, asked.imgsz, clip=True, most=100)
        coco, unclipped = coco_summary(dataset, found), coco_summary(dataset, as_is)
        steps = [
            ("Ultralytics, as it reports", plain),
            ("+ predictions clipped to the image", clipped),
            ("+ at most 100 predictions per image and class", most),
            ("+ matches by pycocotools, in pixels of the image", coco_matches(dataset, found)),
            ("+ COCO's formula = `evaluation.py`", [coco["AP"], coco["AP50"]]),
        ]
    print("\n| | mAP50-95 | step | mAP50 | step |\n|---|---|---|---|---|")
    before = plain
    for step, now in steps:
        print(f"| {step} | {now[0]:.4f} | {now[0] - before[0]:+.4f} | {now[1]:.4f} | {now[1] - before[1]:+.4f} |")
        before = now
    print(f"\nCOCO's formula, predictions not clipped: {unclipped['AP']:.4f} / {unclipped['AP50']:.4f}")


if __name__ == "__main__":
    main()
