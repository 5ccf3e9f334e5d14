"""A trial to take away: its schedule as YAML, as torch code, and for YOLO as a script for plain Ultralytics."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import yaml

from sweeper.config import Recipe
from sweeper.errors import ConfigError, DataError
from sweeper.schedules import Trace
from sweeper.service import Service
from sweeper.study import Trial
from sweeper.training import TORCHVISION

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

from ultralytics import YOLO

ROWS = list(csv.DictReader(Path(__file__).with_name("lr.csv").open()))
STEPS_PER_EPOCH = {steps}


def follow(model):
    """Let every training of ``model`` follow lr.csv."""
    batch = 0

    def new_epoch(trainer):
        nonlocal batch
        batch = 0

    def set_lr(trainer):
        nonlocal batch
        row = ROWS[trainer.epoch * STEPS_PER_EPOCH + min(batch // trainer.accumulate, STEPS_PER_EPOCH - 1)]
        batch += 1
        for group in trainer.optimizer.param_groups:
            multiple = round(group["initial_lr"] / trainer.args.lr0, 6)  # 3 in some groups of MuSGD
            group["lr"] = multiple * float(row.get(f"lr/{{group.get('param_group')}}") or row["lr"])
            if "momentum" in group and row.get("momentum"):
                group["momentum"] = float(row["momentum"])

    model.add_callback("on_train_epoch_start", new_epoch)
    model.add_callback("on_train_batch_start", set_lr)


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
            hint = f"; the first of the ranking is --trial {answer.ranking[0]['trial']}" if answer.ranking else ""
            raise ConfigError(f"export {service.sweep.name}: no winner; expected one, or a trial by --trial N{hint}")
        trial = winner.trial
    row = _found(rows, trial)
    spec = dict(row.spec or {})
    trace = service.trace(spec)
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
        files["ultralytics_train.py"] = _ULTRALYTICS.format(**words, **names, version=version)
    alias = "winner" if winner is not None and winner.trial == trial else f"trial-{trial}"
    return Exported(trial, files, alias, service.run_id(row), recipe, arguments(recipe, trace))


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
