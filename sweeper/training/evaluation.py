"""Evaluates what a trained model detects: COCO's metrics, and Ultralytics' validation with its plots.

COCO's metrics are computed by pycocotools, unchanged. Ultralytics' own mAP is another number on another scale;
``docs/two-maps.md`` explains where and why the two differ. Ultralytics' validation runs in a process of its own
(``python -m sweeper.training.evaluation FOLDER``), because its memory is then freed when it ends; this module imports
no torch.
"""

import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sweeper import names
from sweeper.config import Recipe, Sweep
from sweeper.data import Dataset
from sweeper.errors import ConfigError, DataError, TrainingError
from sweeper.training import TORCHVISION, Detections

AP = f"{names.COCO}AP"  # the name of COCO's AP as a metric in MLflow
AREAS = ("all", "small", "medium", "large")  # of objects: small is below 32 x 32 pixels, large is 96 x 96 and above
MAX_DETECTIONS = (1, 10, 100)  # limits per image and class, best scores first; COCO has an AR for each limit

IMAGES = 4  # validation images in the plots of true and of predicted boxes, two in a row
WIDTH = 480  # pixels of each of these images; small images are enlarged, because their labels would cover them
BATCH = 16
TRUE, PREDICTED = "true.jpg", "predicted.jpg"  # the same images, with the labels' boxes and with the model's
CURVE, CONFUSION = "precision_recall.png", "confusion_matrix.png"
NUMBERS = "classes.json"
FILES = (TRUE, PREDICTED, CURVE, CONFUSION, NUMBERS)  # NUMBERS is last: a run that has it has the others, too
_ULTRALYTICS_PLOTS = {
    "val_batch0_labels.jpg": TRUE,
    "val_batch0_pred.jpg": PREDICTED,
    "BoxPR_curve.png": CURVE,
    "confusion_matrix_normalized.png": CONFUSION,
}
_CURVE_POINTS = 101  # of the precision-recall curve in NUMBERS


def coco_summary(ground_truth: Dataset | Path, detections: Iterable[Detections]) -> dict[str, Any]:
    """COCO's metrics of ``detections`` on the validation set of ``ground_truth`` (or on a COCO json).

    The result, each value a float in [0, 1] or None where COCO has none (-1: no such object in the ground truth)::

        {"AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge",
         "AR1", "AR10", "AR100", "ARsmall", "ARmedium", "ARlarge", "classes": {name: AP}}

    AP is the mean over IoU 0.50:0.95, recalls and the classes that occur. Every image of the ground truth counts, also
    where nothing was detected; crowds are ignored as COCO ignores them; nothing is rounded or clipped. A class index
    ``i`` is the ``i``-th category in the order of ids. Raises DataError for an image that the ground truth lacks.
    """
    file = ground_truth if isinstance(ground_truth, Path) else ground_truth.ground_truth("val")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = _truth(file)
        order: Sequence[int] = sorted(truth.getCatIds())
        results = _results(truth, list(_rows(file, truth, order, detections)))
        run = COCOeval(truth, results, "bbox")
        run.params.maxDets = list(MAX_DETECTIONS)
        run.evaluate()
        run.accumulate()
    # precision: (IoU, recall, class, area, limit); recall: (IoU, class, area, limit)
    precision, recall = run.eval["precision"], run.eval["recall"]
    ious = [round(float(iou), 2) for iou in run.params.iouThrs]
    at_50, at_75 = ious.index(0.5), ious.index(0.75)
    result: dict[str, Any] = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[at_50, :, :, 0, -1]),
        "AP75": _mean(precision[at_75, :, :, 0, -1]),
        **{f"AP{area}": _mean(precision[:, :, :, number, -1]) for number, area in enumerate(AREAS) if number},
        **{f"AR{limit}": _mean(recall[:, :, 0, number]) for number, limit in enumerate(MAX_DETECTIONS)},
        **{f"AR{area}": _mean(recall[:, :, number, -1]) for number, area in enumerate(AREAS) if number},
    }
    classes = [category["name"] for category in truth.loadCats(order)]
    result["classes"] = {name: _mean(precision[:, :, number, 0, -1]) for number, name in enumerate(classes)}
    return result


def coco_metrics(dataset: Dataset | Path, detections: Iterable[Detections]) -> dict[str, float]:
    """The values of ``coco_summary`` by their names in MLflow: ``coco/AP``, ``coco/AR100``, ``coco/class/NAME`` ...

    Metrics without a value are left out. Raises DataError as ``coco_summary`` does.
    """
    values = coco_summary(dataset, detections)
    classes: Mapping[str, float | None] = values.pop("classes")
    named = {f"{names.COCO}{key}": value for key, value in values.items()}
    for number, (name, value) in enumerate(classes.items()):
        key = f"{names.COCO}class/{re.sub(r'[^A-Za-z0-9_. -]', '_', name).strip(' .') or '_'}"
        named[f"{key} {number}" if key in named else key] = value
    return {key: value for key, value in named.items() if value is not None}


def check_objective(dataset: Dataset, sweep: Sweep) -> None:
    """Raise ConfigError if COCO has no value of the sweep's objective on the validation set (APsmall, for instance)."""
    if sweep.by_coco and coco_summary(dataset, [])[sweep.objective] is None:
        raise ConfigError(
            f"objective: {sweep.objective!r} has no value on {dataset.source}: no such object in the validation set"
        )


def _mean(values: np.ndarray) -> float | None:
    """The mean of all values but -1, by which COCO marks a missing value; None if all are missing."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else None


def _truth(file: Path) -> COCO:
    """A COCO json as pycocotools' index. ``iscrowd`` and ``area`` are filled in where the file leaves them out."""
    try:
        content = json.loads(file.read_bytes())
        for annotation in content["annotations"]:
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read as COCO annotations ({type(error).__name__}: {error})") from None
    return _index(content)


def _index(content: Mapping[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _results(truth: COCO, rows: list[dict[str, Any]]) -> COCO:
    if rows:
        return truth.loadRes(rows)
    return _index({**truth.dataset, "annotations": []})  # loadRes fails on an empty list


def _rows(file: Path, truth: COCO, order: Sequence[int], detections: Iterable[Detections]) -> Iterable[dict[str, Any]]:
    """COCO's result entries, boxes as x y width height."""
    ids = {entry["file_name"]: number for number, entry in truth.imgs.items()}
    for image in detections:
        parts = Path(image.path).parts  # A file_name may contain folders, so the longest known end of the path counts.
        number = next((ids[name] for i in range(len(parts)) if (name := "/".join(parts[i:])) in ids), None)
        if number is None:
            raise DataError(
                f"{image.path}: detections of an image that {file} does not list; evaluate the set they are of"
            )
        boxes = np.asarray(image.boxes, np.float64).reshape(-1, 4).tolist()
        scores, classes = np.asarray(image.scores, np.float64).tolist(), image.classes.tolist()
        for (x1, y1, x2, y2), score, index in zip(boxes, scores, classes, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            yield {"image_id": number, "category_id": order[int(index)], "bbox": box, "score": score}


# -- Ultralytics' validation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedModel:
    """A model to validate: its recipe, its weights (the bytes of a state_dict file) and its classes in their order."""

    recipe: Recipe
    weights: bytes
    classes: Sequence[str]


def drawable(model: str) -> bool:
    """Whether Ultralytics can validate the model of this name."""
    return not model.startswith(TORCHVISION)


def draw(models: Sequence[TrainedModel], data: Path, device: str, font: str) -> Iterator[dict[str, bytes]]:
    """Validate each model and yield its ``FILES``, content by name; plots that Ultralytics did not draw are missing.

    ``data``: the data.yaml of a laid-out data set, all of whose validation images are used. ``NUMBERS`` is a JSON
    object: ``classes`` (name -> AP50-95), ``AP50-95`` and ``AP50`` over the classes that occur, and the mean of their
    precision-recall curves at IoU 0.5 as ``recall`` and ``precision``. ``font``: the path of a font file, because
    Ultralytics would download one. Raises TrainingError if the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="sweeper-pictures-") as name:
        folder = Path(name)
        for number, model in enumerate(models):
            (folder / f"{number}.weights").write_bytes(model.weights)
        described = [{"classes": list(model.classes), "recipe": model.recipe.model_dump()} for model in models]
        request = {"data": str(data), "device": device, "font": font, "models": described}
        (folder / "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-m", __name__, name]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, written = child.communicate()
        finally:  # Ctrl-C ends the child, too.
            child.kill()
            child.wait()
        if child.returncode:
            lines = written.strip().splitlines() or [f"its process ended with {child.returncode}"]
            raise TrainingError(f"pictures: a model could not be validated: {lines[-1]}")
        for number in range(len(models)):
            yield {path.name: path.read_bytes() for path in (folder / f"{number}.files").iterdir()}


def _validate(folder: Path) -> None:
    """The child's work: validate every model of ``request.json``, and write its files to ``NUMBER.files``."""
    request = json.loads((folder / "request.json").read_text())

    from sweeper.training.models import model_file  # imported before Ultralytics, which it isolates

    # isort: split
    import torch
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import val
    from ultralytics.utils import plotting

    def plot_enlarged(labels: dict[str, Any], images: torch.Tensor | None = None, **options: Any) -> None:
        few = (labels["img"] if images is None else images)[:IMAGES].float()
        factor = max(round(WIDTH / few.shape[-1]), 1)
        few = torch.nn.functional.interpolate(few, scale_factor=factor, mode="bilinear")
        if images is None:
            labels, images = {**labels, "img": few}, None  # Boxes of labels are relative to the image.
        else:
            labels, images = {**labels, "bboxes": labels["bboxes"] * factor}, few  # Boxes of predictions are in pixels.
        plotting.plot_images(labels, images, **options | {"paths": None, "max_subplots": IMAGES}, threaded=False)

    val.plot_images = plot_enlarged
    plotting.check_font = lambda font="": request["font"]
    for number, model in enumerate(request["models"]):
        recipe, file, out = Recipe(**model["recipe"]), folder / f"{number}.pt", folder / f"{number}.files"
        file.write_bytes(model_file(recipe, model["classes"], (folder / f"{number}.weights").read_bytes(), {}))
        options = {"project": str(folder), "name": f"{number}.val", "device": request["device"]}
        result = YOLO(file).val(
            data=request["data"], imgsz=recipe.imgsz, batch=BATCH, workers=0, plots=True, verbose=False, **options
        )
        recall, precision = np.linspace(0, 1, _CURVE_POINTS), np.zeros(_CURVE_POINTS)
        if len(result.box.ap_class_index):  # Ultralytics has no curve where nothing was detected.
            chosen = np.linspace(0, len(result.curves_results[0][0]) - 1, _CURVE_POINTS).astype(int)
            recall, precision = (np.asarray(values)[..., chosen] for values in result.curves_results[0][:2])
            precision = precision.mean(axis=0)
        numbers = {
            "classes": {model["classes"][i]: float(result.box.maps[i]) for i in result.box.ap_class_index},
            "AP50-95": float(result.box.map),
            "AP50": float(result.box.map50),
            "recall": recall.round(4).tolist(),
            "precision": precision.round(4).tolist(),
        }
        out.mkdir()
        (out / NUMBERS).write_text(json.dumps(numbers))
        for plot, name in _ULTRALYTICS_PLOTS.items():
            if (file := folder / f"{number}.val" / plot).exists():
                file.rename(out / name)


if __name__ == "__main__":
    _validate(Path(sys.argv[1]))
