"""What trained models have learned, in pictures and by class: Ultralytics' own validation of their ``model.pt``.

It runs in a process of its own (``python -m sweeper.training.pictures FOLDER``) with a few images at a time, so that
its memory is bounded and goes with it. The parent imports no torch.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import TrainingError
from sweeper.training import TORCHVISION

if TYPE_CHECKING:
    from sweeper.config import Recipe

IMAGES = 4  # validation images that are shown, two in a row
WIDE = 480  # pixels: about as wide as each is drawn, so that words do not cover small images
BATCH = 16
TRUE, PREDICTED = "true.jpg", "predicted.jpg"  # the same images, with the labels' boxes and with the model's
CURVE, CONFUSION = "precision_recall.png", "confusion_matrix.png"
NUMBERS = "classes.json"
#: What Ultralytics calls these pictures.
_FILES = {
    "val_batch0_labels.jpg": TRUE,
    "val_batch0_pred.jpg": PREDICTED,
    "BoxPR_curve.png": CURVE,
    "confusion_matrix_normalized.png": CONFUSION,
}
#: All that is drawn of a model, the numbers last: where they are, the rest is, too.
NAMES = (TRUE, PREDICTED, CURVE, CONFUSION, NUMBERS)
_POINTS = 101  # of a precision-recall curve


@dataclass(frozen=True)
class Model:
    """A model to look at: its ``recipe``, the file of its ``weights`` (a state_dict) and the classes' ``names``."""

    recipe: "Recipe"
    weights: bytes
    names: Sequence[str]


def drawable(model: str) -> bool:
    """Whether the model of this name is one of those that Ultralytics validates."""
    return not model.startswith(TORCHVISION)


def draw(models: Sequence[Model], data: Path, device: str, font: str) -> Iterator[dict[str, bytes]]:
    """For each model the files ``TRUE``, ``PREDICTED``, ``CURVE``, ``CONFUSION`` and ``NUMBERS``, by their names.

    ``data``: the data.yaml of a laid-out data set, all of whose validation images are looked at. ``NUMBERS`` is a JSON
    object: ``classes`` (name -> AP50-95), ``AP50-95`` and ``AP50`` over the classes that occur, and the mean of their
    precision-recall curves at IoU 0.5 as ``recall`` and ``precision``. ``font``: a font's file; Ultralytics would
    download one. Raises TrainingError if the process fails.
    """
    with tempfile.TemporaryDirectory(prefix="sweeper-pictures-") as name:
        folder = Path(name)
        for number, model in enumerate(models):
            (folder / f"{number}.weights").write_bytes(model.weights)
        described = [{"names": list(model.names), "recipe": model.recipe.model_dump()} for model in models]
        (folder / "asked.json").write_text(
            json.dumps({"data": str(data), "device": device, "font": font, "models": described})
        )
        command = [sys.executable, "-m", __name__, name]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, written = child.communicate()
        finally:  # Ctrl-C
            child.kill()
            child.wait()
        if child.returncode:
            lines = written.strip().splitlines() or [f"its process ended with {child.returncode}"]
            raise TrainingError(f"pictures: a model could not be validated: {lines[-1]}")
        for number in range(len(models)):
            yield {path.name: path.read_bytes() for path in (folder / f"{number}.files").iterdir()}


def _validate(folder: Path) -> None:
    """The process: validate every model that ``asked.json`` names, and leave its files in ``NUMBER.files``."""
    request = json.loads((folder / "asked.json").read_text())

    from sweeper.config import Recipe
    from sweeper.training.models import model_file  # before Ultralytics

    # isort: split
    import numpy as np
    import torch
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import val
    from ultralytics.utils import plotting

    def larger(labels: dict[str, Any], images: torch.Tensor | None = None, **options: Any) -> None:
        few = (labels["img"] if images is None else images)[:IMAGES].float()
        factor = max(round(WIDE / few.shape[-1]), 1)
        few = torch.nn.functional.interpolate(few, scale_factor=factor, mode="bilinear")
        if images is None:
            labels, images = {**labels, "img": few}, None  # boxes in parts of the image
        else:
            labels, images = {**labels, "bboxes": labels["bboxes"] * factor}, few  # boxes in pixels
        plotting.plot_images(labels, images, **options | {"paths": None, "max_subplots": IMAGES}, threaded=False)

    val.plot_images = larger
    plotting.check_font = lambda font="": request["font"]
    for number, model in enumerate(request["models"]):
        recipe, file, out = Recipe(**model["recipe"]), folder / f"{number}.pt", folder / f"{number}.files"
        file.write_bytes(model_file(recipe, model["names"], (folder / f"{number}.weights").read_bytes(), {}))
        options = {"project": str(folder), "name": f"{number}.val", "device": request["device"]}
        result = YOLO(file).val(
            data=request["data"], imgsz=recipe.imgsz, batch=BATCH, workers=0, plots=True, verbose=False, **options
        )
        recall, precision = np.linspace(0, 1, _POINTS), np.zeros(_POINTS)
        if len(result.box.ap_class_index):  # else nothing was detected, and Ultralytics has no curve
            at = np.linspace(0, len(result.curves_results[0][0]) - 1, _POINTS).astype(int)
            recall, precision = (np.asarray(values)[..., at] for values in result.curves_results[0][:2])
            precision = precision.mean(axis=0)
        numbers = {
            "classes": {model["names"][i]: float(result.box.maps[i]) for i in result.box.ap_class_index},
            "AP50-95": float(result.box.map),
            "AP50": float(result.box.map50),
            "recall": recall.round(4).tolist(),
            "precision": precision.round(4).tolist(),
        }
        out.mkdir()
        (out / NUMBERS).write_text(json.dumps(numbers))
        for drawn, name in _FILES.items():
            if (file := folder / f"{number}.val" / drawn).exists():
                file.rename(out / name)


if __name__ == "__main__":
    _validate(Path(sys.argv[1]))
