"""To take away: a trial (its schedule as YAML, torch code and a script for plain Ultralytics), and all as tables."""

import contextlib
import inspect
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import yaml

from sweeper.config import Recipe
from sweeper.errors import ConfigError, DataError
from sweeper.schedules import Trace
from sweeper.service import Service
from sweeper.study import Trial
from sweeper.training import TORCHVISION

if TYPE_CHECKING:
    from pandas import DataFrame as DataFrame

#: Keys of a recipe that ``yolo train`` does not have, or that it is given otherwise.
_OWN = {"data", "model", "mosaic_epochs", "threads", "loader_workers", "cache_mb"}

_TORCH = '''\
"""The learning rate of {title} in any torch training loop; one scheduler.step() after every optimizer.step()."""

import torch
import yaml

from sweeper.schedules import TimeBase, parse
from sweeper.training.scheduler import TraceLR

trace = parse(yaml.safe_load(open("schedule.yaml"))).trace(TimeBase(epochs={epochs}, steps_per_epoch={steps}))
model = torch.nn.Linear(1, 1)  # yours
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
    """File name -> content; ``alias`` under which its weights are to be registered, and the run that has them.

    ``recipe`` and ``arguments`` (of ``yolo train``) are what :func:`sweeper.training.models.model_file` needs.
    """

    trial: int
    files: dict[str, str]
    alias: str
    run_id: str | None
    recipe: Recipe
    arguments: dict[str, Any]


def export(service: Service, trial: int | None = None) -> Exported:
    """The winner, or the trial named. ConfigError without either, or for a trial that has no schedule yet."""
    answer = service.pick()
    winner = answer.winner
    rows = service.study.trials()
    if trial is None:
        if winner is None:
            hint = f"; the first of the ranking is --trial {answer.ranking[0].trial}" if answer.ranking else ""
            raise ConfigError(f"export {service.sweep.name}: no winner; expected one, or a trial by --trial N{hint}")
        trial = winner.trial
    row = _found(rows, trial)
    assert row.schedule is not None  # see _found
    spec, trace = row.schedule.spec, service.trace(row.schedule)
    recipe = _recipe(service, row)
    title = f"{service.sweep.name}, trial {trial}"
    words = {"title": title, "epochs": trace.epochs, "steps": trace.steps_per_epoch}
    files = {
        "schedule.yaml": _schedule(title, spec, trace),
        "lr.csv": _table(trace),
        "torch_example.py": _TORCH.format(**words, momentum=recipe.momentum),
    }
    if not recipe.model.startswith(TORCHVISION):
        names = {"model": recipe.model, "data": recipe.data, "arguments": _lines(arguments(recipe, trace))}
        version = metadata.version("ultralytics")
        from sweeper.training.scheduler import ColumnsCallback  # with torch, which takes seconds to import

        callback = inspect.getsource(ColumnsCallback)
        files["ultralytics_train.py"] = _ULTRALYTICS.format(**words, **names, version=version, callback=callback)
    alias = "winner" if winner is not None and winner.trial == trial else f"trial-{trial}"
    return Exported(trial, files, alias, service.run_id(row), recipe, arguments(recipe, trace))


def trials(service: Service) -> "DataFrame":
    """The trials as a table, a row each, indexed by number; the columns are those of ``sweeper.trials``."""
    import pandas

    rows = [
        {
            "trial": row.number,
            "stage": row.stage,
            "state": row.shown_state,
            "seed": row.seed,
            "label": service.sweep.label(row.spec) if row.spec else "",
            "score": row.score,
            "epochs": len(row.curve),
            "curve": row.values,
            **(row.spec or {}),
        }
        for row in service.study.trials()
    ]
    return pandas.DataFrame(rows).set_index("trial") if rows else pandas.DataFrame()


def table(service: Service, suffix: str, *, curves: bool = False) -> bytes:
    """The trials, or their ``curves`` with a row for each epoch, as a ``.csv`` or ``.parquet`` file's bytes.

    Curves have the columns trial, epoch (from 0) and the objective. In the trials' table lists (``steps``, say) are
    JSON, so that every column has one type. ConfigError for another suffix.
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
            frame[name] = [_plain(value) for value in frame[name]]
    out = io.BytesIO()
    if suffix == ".csv":
        frame.to_csv(out, index=False)
    else:
        frame.to_parquet(out, index=False)
    return out.getvalue()


def _plain(value: Any) -> str | None:
    """A value of a column of several types as text; None for what a trial does not have."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _recipe(service: Service, row: Trial) -> Recipe:
    """The trial's recipe, its data as they were laid out here for training; elsewhere as the sweep names them."""
    seed, data = row.seed, service.sweep.recipe.data
    with contextlib.suppress(DataError):
        if service.dataset.folder.is_relative_to(service.place.folder.resolve()):
            data = str(service.dataset.yaml)
    return service.sweep.recipe.model_copy(update={"seed": seed, "data": data})


def arguments(recipe: Recipe, trace: Trace) -> dict[str, Any]:
    """What ``yolo train`` has to be given to train this recipe, the callback seeing to the learning rate."""
    said = {key: value for key, value in recipe.model_dump().items() if key not in _OWN and value is not None}
    closed = 0 if recipe.mosaic_epochs is None else max(trace.epochs - recipe.mosaic_epochs, 0)
    said["amp"] = bool(recipe.amp)  # true is Ultralytics' auto: it has none on a CPU
    return said | {"epochs": trace.epochs, "lr0": trace.peak, "warmup_epochs": 0.0, "close_mosaic": closed}


def _found(rows: Sequence[Trial], trial: int) -> Trial:
    for row in rows:
        if row.number == trial and row.spec:
            return row
    there = [row.number for row in rows if row.spec]
    known = f"of 0 to {max(there)}" if there else "once one has begun"
    raise ConfigError(f"export --trial {trial}: there is no such trial with a schedule; expected one {known}")


def _schedule(title: str, spec: dict[str, Any], trace: Trace) -> str:
    head = f"# {title}; sweeper trace schedule.yaml --epochs {trace.epochs} --steps-per-epoch {trace.steps_per_epoch}\n"
    return head + f"# digest {trace.digest}\n" + yaml.safe_dump(spec, sort_keys=False)


def _table(trace: Trace) -> str:
    columns = trace.to_columns()
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)  # every float32 exactly, as a double
    return "\n".join([",".join(columns), *(",".join(map(repr, row)) for row in rows)]) + "\n"


def _lines(arguments: dict[str, Any]) -> str:
    return "dict(\n" + "".join(f"    {key}={value!r},\n" for key, value in arguments.items()) + ")"
