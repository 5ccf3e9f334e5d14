"""What the models of the baseline and of the best trials have learned: pictures that MLflow keeps with their runs.

They are drawn once, from the weights that the run has, and lie in the run beside them: see ``training.pictures``.
"""

import json
from collections.abc import Mapping

from sweeper import charts, fleet, names
from sweeper.errors import DataError, DeviceError, TrackingError, TrainingError
from sweeper.report.page import Learned
from sweeper.service import Service
from sweeper.stats import Answer
from sweeper.training import pictures

BEST = 3  # schedules beside the baseline


def gather(service: Service, answer: Answer, *, draw: bool) -> tuple[list[Learned], list[str]]:
    """What there is to show of the best baseline and the best schedules, and a line for each that nothing is shown of.

    ``draw``: draw what is missing, by validating the models on the sweep's device (otherwise only what MLflow has).
    """
    entries = [*([answer.baseline] if answer.baseline else []), *answer.ranking[:BEST]]
    labels = {entry.trial: entry.label for entry in entries}
    runs = {entry.trial: entry.run_id for entry in entries if entry.run_id}
    notes = [f"trial {trial}: no pictures, because it has no run in MLflow" for trial in labels if trial not in runs]
    kept: dict[int, dict[str, bytes]] = {}
    try:
        kept |= {trial: _kept(service, run_id) for trial, run_id in runs.items()}
        if missing := {trial: runs[trial] for trial, files in kept.items() if not files}:
            waits = [f"sweeper report {service.sweep.name} draws what is missing here, when no trial is running"]
            notes += _draw(service, missing, kept) if draw else waits
    except (DataError, TrackingError, TrainingError) as error:
        notes.append(f"no new pictures: {error}")
    shown = [
        Learned(
            trial, labels[trial], json.loads(files[pictures.NUMBERS]), files[pictures.TRUE], files[pictures.PREDICTED],
            files.get(pictures.CONFUSION),
        )
        for trial, files in kept.items() if files
    ]  # fmt: skip
    return shown, notes


def _kept(service: Service, run_id: str) -> dict[str, bytes]:
    """The files that the run has in MLflow; {} before they are drawn."""
    fetch = service.tracker.server.fetch
    if fetch(run_id, names.LEARNED + pictures.NUMBERS) is None:
        return {}
    found = {name: fetch(run_id, names.LEARNED + name) for name in pictures.NAMES}
    return {name: content for name, content in found.items() if content is not None}


def _draw(service: Service, runs: Mapping[int, str], kept: dict[int, dict[str, bytes]]) -> list[str]:
    """Draw these trials' pictures, put them into ``kept`` and into MLflow; a line for each that cannot be drawn."""
    recipe = service.sweep.recipe
    if not pictures.drawable(recipe.model):
        return [f"no pictures: they are drawn by Ultralytics, which has no {recipe.model}"]
    weights = {trial: service.tracker.server.fetch(run_id, names.WEIGHTS) for trial, run_id in runs.items()}
    there = {trial: content for trial, content in weights.items() if content is not None}
    models = [pictures.Model(recipe, content, service.classes) for content in there.values()]
    try:
        device = fleet.slots(str(service.sweep.device))[0]
    except DeviceError:  # the sweep was trained on another machine
        device = fleet.CPU
    drawn = pictures.draw(models, service.dataset.yaml, device, charts.font()) if models else []
    for trial, files in zip(there, drawn, strict=True):
        kept[trial] = files
        service.tracker.add(trial, {}, {names.LEARNED + name: files[name] for name in pictures.NAMES if name in files})
    return [
        f"trial {trial}: no pictures, because its run in MLflow has no weights" for trial in runs if trial not in there
    ]
