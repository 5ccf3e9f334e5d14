"""Exports a trial (schedule as YAML, LR trace as CSV, example code for torch and for Ultralytics, model), and the
trials and their curves as tables."""

import contextlib
import inspect
import io
import json
import pprint
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import yaml

from sweeper import names
from sweeper.config import Recipe
from sweeper.errors import ConfigError, DataError
from sweeper.schedules import Trace
from sweeper.service import Service
from sweeper.study import Trial
from sweeper.training import TORCHVISION

if TYPE_CHECKING:
    from pandas import DataFrame as DataFrame

#: Keys of a recipe that ``yolo train`` does not have, or that the exported script passes in another form.
_NOT_OF_YOLO = {"data", "model", "mosaic_epochs", "threads", "loader_workers", "cache_mb"}

_SCHEDULE = """\
# {title}; sweeper trace schedule.yaml --epochs {epochs} --steps-per-epoch {steps}
# digest {digest}
"""

_TORCH = '''\
"""The learning rate of {title} in any torch training loop; one scheduler.step() after every optimizer.step()."""

import torch
import yaml

from sweeper.schedules import TimeBase, parse
from sweeper.training.scheduler import TraceLR

trace = parse(yaml.safe_load(open("schedule.yaml"))).trace(TimeBase(epochs={epochs}, steps_per_epoch={steps}))
model = torch.nn.Linear(1, 1)  # Replace it with your model.
optimizer = torch.optim.SGD(model.parameters(), lr=trace.peak, momentum={momentum})
scheduler = TraceLR(optimizer, trace)
for step in range(trace.steps):
    optimizer.zero_grad()
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    scheduler.step()
'''

_ULTRALYTICS = '''\
"""{title} with plain Ultralytics {version}: `python ultralytics_train.py [DATA.yaml]`. Needs lr.csv, not sweeper.

The callback gives every optimizer step the learning rate (and momentum) of lr.csv; Ultralytics' own warm-up is off.
"""

import csv
import sys
from pathlib import Path
from typing import Any

from ultralytics import YOLO

ROWS = list(csv.DictReader(Path(__file__).with_name("lr.csv").open()))
STEPS_PER_EPOCH = {steps}


{callback}

def follow(model):
    """Let every training of ``model`` follow lr.csv."""
    ColumnsCallback({{name: [float(row[name]) for row in ROWS] for name in ROWS[0]}}, STEPS_PER_EPOCH).add_to(model)


ARGUMENTS = {arguments}

if __name__ == "__main__":
    model = YOLO({model!r})
    follow(model)
    model.train(data=sys.argv[1] if len(sys.argv) > 1 else {data!r}, **ARGUMENTS)
'''


@dataclass(frozen=True)
class Exported:
    """The exported trial: file name -> content, the MLflow run that has its weights (None: no run has), and the
    ``alias`` under which the model can be registered."""

    trial: int
    files: dict[str, bytes]
    alias: str
    run_id: str | None


def export(service: Service, trial: int | None = None) -> Exported:
    """Export the trial with this number; None: the winner. ConfigError without a winner, or for a trial without a
    schedule."""
    answer = service.pick()
    winner, rows = answer.winner, {row.number: row for row in service.study.trials() if row.spec}
    if trial is None:
        if winner is None:
            hint = f"; the first of the ranking is --trial {answer.ranking[0].trial}" if answer.ranking else ""
            raise ConfigError(f"export {service.sweep.name}: no winner; expected one, or a trial by --trial N{hint}")
        trial = winner.trial
    row = rows.get(trial)
    if row is None or row.schedule is None:
        expected = f"of 0 to {max(rows)}" if rows else "once one has begun"
        raise ConfigError(f"export --trial {trial}: there is no such trial with a schedule; expected one {expected}")
    trace, recipe = service.trace(row.schedule), _recipe(service, row)
    arguments, title = _arguments(recipe, trace), f"{service.sweep.name}, trial {trial}"
    values = {"title": title, "epochs": trace.epochs, "steps": trace.steps_per_epoch, "digest": trace.digest}
    texts = {
        "schedule.yaml": _SCHEDULE.format(**values) + yaml.safe_dump(row.schedule.spec, sort_keys=False),
        "lr.csv": _csv(trace),
        "torch_example.py": _TORCH.format(**values, momentum=recipe.momentum),
    }
    if not recipe.model.startswith(TORCHVISION):
        from sweeper.training.scheduler import ColumnsCallback  # Imported here, because torch takes seconds to import.

        texts["ultralytics_train.py"] = _ULTRALYTICS.format(
            **values,
            version=metadata.version("ultralytics"),
            callback=inspect.getsource(ColumnsCallback),
            arguments=pprint.pformat(arguments, sort_dicts=False),
            model=recipe.model,
            data=recipe.data,
        )
    files, run_id = {name: text.encode() for name, text in texts.items()}, service.run_id(row)
    weights = service.tracker.server.fetch(run_id, names.WEIGHTS) if run_id else None
    if weights is not None:
        from sweeper.training.models import model_file

        files |= {"weights.pt": weights, "model.pt": model_file(recipe, service.classes, weights, arguments)}
    alias = "winner" if winner is not None and winner.trial == trial else f"trial-{trial}"
    return Exported(trial, files, alias, run_id if weights is not None else None)


def trials(service: Service) -> "DataFrame":
    """The trials as a table with a row for each, indexed by number; ``notebook.trials`` lists the columns."""
    import pandas

    rows = [
        {
            "trial": row.number,
            "stage": row.stage,
            "state": row.shown_state,
            "seed": row.seed,
            "label": service.searched.label(row.spec) if row.spec else "",
            "score": row.score,
            "epochs": len(row.curve),
            "curve": row.values,
            **(row.spec or {}),
        }
        for row in service.study.trials()
    ]
    return pandas.DataFrame(rows).set_index("trial") if rows else pandas.DataFrame()


def table(service: Service, suffix: str, *, curves: bool = False) -> bytes:
    """The table of trials, or with ``curves`` that of their epochs, as a ``.csv`` or ``.parquet`` file's bytes.

    The table of epochs has the columns trial, epoch (from 0) and the objective. In the table of trials a list, such as
    ``steps``, is written as JSON, so that every column has one type. ConfigError for another suffix.
    """
    import pandas

    if suffix not in (".csv", ".parquet"):
        raise ConfigError(f"export --table: {suffix or 'no suffix'} is no kind of table; expected .csv or .parquet")
    if curves:
        points = [
            (row.number, epoch, row.curve[epoch]) for row in service.study.trials() for epoch in sorted(row.curve)
        ]
        frame = pandas.DataFrame(points, columns=["trial", "epoch", service.sweep.objective])
    else:
        frame = trials(service).drop(columns="curve", errors="ignore").reset_index()
        for name in frame.select_dtypes("object").columns:
            frame[name] = frame[name].map(
                lambda value: value if isinstance(value, str) else json.dumps(value), "ignore"
            )
    out = io.BytesIO()
    write = frame.to_csv if suffix == ".csv" else frame.to_parquet
    write(out, index=False)
    return out.getvalue()


def _recipe(service: Service, row: Trial) -> Recipe:
    """The trial's recipe. Its ``data`` is the data set that this store laid out for training, if there is one;
    otherwise it is as the sweep file says."""
    data = service.sweep.recipe.data
    with contextlib.suppress(DataError):
        if service.dataset.folder.is_relative_to(service.place.folder.resolve()):
            data = str(service.dataset.yaml)
    return service.sweep.recipe.model_copy(update={"seed": row.seed, "data": data})


def _arguments(recipe: Recipe, trace: Trace) -> dict[str, Any]:
    """The arguments of ``yolo train`` for this recipe; a callback sets the learning rate."""
    closed = 0 if recipe.mosaic_epochs is None else max(trace.epochs - recipe.mosaic_epochs, 0)
    return {
        **recipe.model_dump(exclude=_NOT_OF_YOLO, exclude_none=True),
        "amp": bool(recipe.amp),  # For Ultralytics true means "where the device can", so it is off on a CPU.
        "epochs": trace.epochs,
        "lr0": trace.peak,
        "warmup_epochs": 0.0,
        "close_mosaic": closed,
    }


def _csv(trace: Trace) -> str:
    """The trace as CSV with a row for each step. Values are written as doubles, which hold each float32 exactly."""
    import pandas

    columns = {name: column.tolist() for name, column in trace.to_columns().items()}
    return str(pandas.DataFrame(columns).to_csv(index=False))
