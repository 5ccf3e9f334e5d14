"""COCO's average precision and recall of detections, computed by pycocotools as it is.

Ultralytics' own mAP is another number on another scale; ``docs/two-maps.md`` says where and why the two differ.
"""

import contextlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sweeper import names
from sweeper.config import Sweep
from sweeper.data import Dataset
from sweeper.errors import ConfigError, DataError
from sweeper.training import Detections

AP = f"{names.COCO}AP"  # its name as a metric in MLflow
AREAS = ("all", "small", "medium", "large")  # by the ground truth's area: below 32 x 32 pixels, below 96 x 96, above
MOST = (1, 10, 100)  # detections per image and class that count, best scores first


def evaluate(ground_truth: Dataset | Path, detections: Iterable[Detections]) -> dict[str, Any]:
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
        run.params.maxDets = list(MOST)
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"], run.eval["recall"]  # [IoU, recall, class, area, most], [IoU, class, ...]
    ious = [round(float(iou), 2) for iou in run.params.iouThrs]
    at_50, at_75 = ious.index(0.5), ious.index(0.75)
    result: dict[str, Any] = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[at_50, :, :, 0, -1]),
        "AP75": _mean(precision[at_75, :, :, 0, -1]),
        **{f"AP{area}": _mean(precision[:, :, :, number, -1]) for number, area in enumerate(AREAS) if number},
        **{f"AR{most}": _mean(recall[:, :, 0, number]) for number, most in enumerate(MOST)},
        **{f"AR{area}": _mean(recall[:, :, number, -1]) for number, area in enumerate(AREAS) if number},
    }
    classes = [category["name"] for category in truth.loadCats(order)]
    result["classes"] = {name: _mean(precision[:, :, number, 0, -1]) for number, name in enumerate(classes)}
    return result


def metrics(dataset: Dataset, detections: Iterable[Detections]) -> dict[str, float]:
    """COCO's metrics of the validation set as ``coco/AP``, ``coco/AR100``, ``coco/class/NAME`` and so on.

    What COCO has no value for (no such object in the ground truth) is left out. Raises DataError as ``evaluate`` does.
    """
    values = evaluate(dataset, detections)
    classes: Mapping[str, float | None] = values.pop("classes")
    named = {f"{names.COCO}{key}": value for key, value in values.items()}
    for number, (name, value) in enumerate(classes.items()):
        key = f"{names.COCO}class/{re.sub(r'[^A-Za-z0-9_. -]', '_', name).strip(' .') or '_'}"
        named[f"{key} {number}" if key in named else key] = value
    return {key: value for key, value in named.items() if value is not None}


def check_objective(dataset: Dataset, sweep: Sweep) -> None:
    """ConfigError if the validation set has nothing on which the objective could be measured (APsmall, say)."""
    if sweep.by_coco and evaluate(dataset, [])[sweep.objective] is None:
        raise ConfigError(
            f"objective: {sweep.objective!r} has no value on {dataset.source}: no such object in the validation set"
        )


def _mean(values: np.ndarray) -> float | None:
    """The mean without the values of -1, with which COCO marks what it has no value for; None if all are."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else None


def _truth(file: Path) -> COCO:
    """What COCO's reader makes of a file, in which what some files leave out is filled in."""
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
    return _index({**truth.dataset, "annotations": []})  # loadRes looks at the first result to learn the kind


def _rows(file: Path, truth: COCO, order: Sequence[int], detections: Iterable[Detections]) -> Iterable[dict[str, Any]]:
    """COCO's result entries, boxes as x y width height."""
    ids = {entry["file_name"]: number for number, entry in truth.imgs.items()}
    for image in detections:
        parts = Path(image.path).parts  # a file_name may have folders of its own: the longest ending that is known
        number = next((ids[name] for i in range(len(parts)) if (name := "/".join(parts[i:])) in ids), None)
        if number is None:
            raise DataError(
                f"{image.path}: detections of an image that {file} does not list; evaluate the set they are of"
            )
        boxes = np.asarray(image.boxes, np.float64).reshape(-1, 4).tolist()
        scores, classes = np.asarray(image.scores, np.float64).tolist(), image.classes.tolist()
        for (x1, y1, x2, y2), score, kind in zip(boxes, scores, classes, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            yield {"image_id": number, "category_id": order[int(kind)], "bbox": box, "score": score}
