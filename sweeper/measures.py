"""What an epoch comes to: the flat row that travels with its state, COCO's metrics in it, and the objective.

A row holds ``epoch``, ``time`` (ms since the Unix epoch), ``by`` (the trial that trained it), ``seconds``, and numbers
under names with a slash, which are the metrics in MLflow: ``curve/``, ``train/``, ``val/`` and ``coco/``.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sweeper import prune
from sweeper.config import Sweep
from sweeper.data import Dataset
from sweeper.errors import ConfigError
from sweeper.evaluate import Detections, evaluate
from sweeper.training.process import Epoch

AP = "coco/AP"


def row(event: Epoch, by: str, dataset: Dataset) -> dict[str, Any]:
    """An epoch as a flat row, with COCO's metrics where its detections were asked for."""
    metrics = dict(event.metrics)
    curve = {f"curve/{key}": metrics.pop(key) for key in ("mAP50-95", "mAP50")}
    values = {key if "/" in key else f"val/{key}": value for key, value in metrics.items()}
    return {
        "epoch": event.epoch,
        "time": round(time.time() * 1000),
        "by": by,
        "seconds": event.seconds,
        "curve/lr": event.lr,
        **curve,
        **event.losses,
        **values,
        **(coco(dataset, event.detections) if event.detections is not None else {}),
    }


def coco(dataset: Dataset, detections: Iterable[Detections]) -> dict[str, float]:
    """COCO's metrics of the validation set as ``coco/AP``, ``coco/AR100``, ``coco/class/NAME`` and so on.

    What COCO has no value for (no such object in the ground truth) is left out. Raises DataError as ``evaluate`` does.
    """
    found = evaluate(dataset, detections)
    classes: Mapping[str, float | None] = found.pop("classes")
    named = {f"coco/{key}": value for key, value in found.items()}
    for number, (name, value) in enumerate(classes.items()):
        key = f"coco/class/{re.sub(r'[^A-Za-z0-9_. -]', '_', name).strip(' .') or '_'}"
        named[f"{key} {number}" if key in named else key] = value
    return {key: value for key, value in named.items() if value is not None}


def objective(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean of metric ``key`` over the last three epochs of a run (fewer where it has fewer): luck does not win."""
    tail = [float(row[key]) for row in rows[-prune.LAST :]]
    return sum(tail) / len(tail)


def check_objective(dataset: Dataset, sweep: Sweep) -> None:
    """ConfigError if the validation set has nothing on which the objective could be measured (APsmall, say)."""
    if sweep.by_coco and evaluate(dataset, [])[sweep.objective] is None:
        raise ConfigError(
            f"objective: {sweep.objective!r} has no value on {dataset.source}: no such object in the validation set"
        )
