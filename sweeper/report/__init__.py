"""The report of a sweep: gathers what its page shows, and writes the answer and the page to MLflow. Trains nothing."""

import math
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import yaml

from sweeper import charts, evidence, fleet, names
from sweeper.charts import Line
from sweeper.config import Sweep
from sweeper.errors import DataError, DeviceError, TrackingError, TrainingError
from sweeper.report.page import Configuration, Learned, Page, render
from sweeper.search import rules
from sweeper.service import Service
from sweeper.stats import Answer
from sweeper.study import Trial
from sweeper.tracking.view import Axes
from sweeper.training import evaluation

#: The facts of LR traces that MLflow's view shows, because every family has them, so that all trials can be compared.
FACTS = ("restarts", "drops", "peak", "final_ratio", "integral", "warmup_fraction")
SHOWN = 8  # MLflow's view shows so many runs beside the best baseline's.
BEST = 3  # The page shows what the models of so many schedules have learned, beside the best baseline's.
_VERSIONS = ("lr-sweeper", "torch", "ultralytics", "optuna", "mlflow", "numpy")
_CONTROLS = {"counterfactual": "without the restart", "matched_peak": "one anneal from its peak"}


def axes(sweep: Sweep) -> Axes:
    """The axes of the view in MLflow: the objective, the facts that all schedules have, and the searched parameters."""
    searched = [name for name, parameter in sweep.search.params.items() if parameter.searched]
    return Axes(
        objective=sweep.objective,
        metric=sweep.metric,
        facts=("family", *(f"{names.FACT}{name}" for name in FACTS)),
        family=sweep.search.family,
        searched=(*(["steps"] if sweep.search.restarts else []), *searched),
    )


def best_runs(answer: Answer) -> list[str]:
    """The MLflow ids of the runs that the view shows: those of the best schedules, then that of the best baseline."""
    entries = [*answer.ranking[:SHOWN], *([answer.baseline] if answer.baseline else [])]
    return list(dict.fromkeys(entry.run_id for entry in entries if entry.run_id))


def make(service: Service, link: str | None = None, *, draw: bool = False) -> bytes:
    """The sweep's report as one HTML file.

    ``link``: the URL of a run in MLflow, with {run_id} in it (None: the page has no such links). ``draw``: validate the
    models of which MLflow has no pictures yet and draw these, unless a trial is running. DatabaseError if the sweep was
    never launched.
    """
    sweep, rows = service.sweep, service.study.trials()
    answer, status = service.pick(), service.status()
    importance, trials = service.study.importance()
    learned, notes = _learned(service, answer, draw=draw and not status.counts["running"])
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _VERSIONS)
    typical = status.seconds_per_epoch or 0.0
    trained_s = sum((len(row.curve) - row.reused) * (row.facts.epoch_seconds or typical) for row in rows)
    return render(
        Page(
            sweep=sweep.name,
            made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            epochs=sweep.epochs,
            objective=sweep.objective,
            last=rules.LAST,
            answer=answer,
            counts=status.counts,
            budget=status.budget,
            mismatches=[str(mismatch) for mismatch in status.mismatches],
            configurations=_configurations(service, rows, link),
            cost={
                "trained": status.epochs.trained,
                "reused": status.epochs.reused,
                "hours": trained_s / 3600,
                "hours_saved": status.hours_saved,
                "seconds_per_epoch": status.seconds_per_epoch,
            },
            sweep_file=sweep_file(sweep),
            identity={
                "Recipes": ", ".join(sorted({row.facts.recipe for row in rows if row.facts.recipe})) or "none yet",
                "Data": service.data_digest,
                "Here": f"Python {platform.python_version()}, {versions}",
            },
            verdicts=_verdicts(service, rows, answer),
            importance=importance,
            importance_of=trials,
            learned=learned,
            learned_notes=notes,
        )
    )


def tell(service: Service, answer: Answer, page: bytes | None = None) -> None:
    """Write the answer and the page to the sweep's run in MLflow, and each schedule's differences to its own run.

    ``page``: None leaves the page there as it is. TrackingError if the server cannot be reached.
    """
    artifacts = {names.REPORT: page} if page is not None else {}
    service.tracker.sweep(tags={names.ANSWER: answer.sentence}, artifacts=artifacts)
    for run_id, difference in differences(answer).items():
        service.tracker.server.send(run_id, [], {}, {names.DIFFERENCE: difference})


def differences(answer: Answer) -> dict[str, str]:
    """MLflow id of each schedule's first run -> in words, its differences to baselines on fresh seeds and in the
    race."""
    candidates, texts = {candidate.name: candidate for candidate in answer.candidates}, {}
    for entry in answer.ranking:
        candidate, raced = candidates.get(entry.name), entry.raced
        parts = [candidate.differences] if candidate else []
        if raced:
            seeds = f"{raced.n} search seed{'s' * (raced.n != 1)}"
            parts.append(f"in the race {raced.difference} over {raced.over} on {seeds}")
        if entry.run_id and parts:
            texts[entry.run_id] = "; ".join(parts)
    return texts


def sweep_file(sweep: Sweep) -> str:
    """The sweep as YAML with every default written out; ``Sweep.load`` reads it back as the same sweep."""
    keys = sweep.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump({"name": keys.pop("name"), **keys.pop("recipe"), **keys}, sort_keys=False, width=110)


def _configurations(service: Service, rows: Sequence[Trial], link: str | None) -> list[Configuration]:
    """The configurations that have begun. The first run of each is its baseline or search run, if it has one."""
    groups: dict[str, list[Trial]] = {}
    for row in sorted(rows, key=lambda row: (row.stage == "confirm", row.number)):
        if row.curve and row.spec and row.stage != "control":
            groups.setdefault(row.name, []).append(row)
    configurations = []
    for first, *others in groups.values():
        assert first.schedule is not None
        run_id, trace, curve = service.run_id(first), service.trace(first.schedule), first.values
        within, trunk = service.sweep.escape.within, None
        effects: list[dict[str, Any]] = []
        if first.schedule.trunk is not None:
            effects = evidence.jumps_of(first, rows, within)
            if run := evidence.trunk_runs(rows, first.schedule.spec).get(first.seed):
                trunk = Line(run.name, service.trace(first.schedule.trunk), run.curve)
        elif len(curve) == max(first.curve) + 1 and all(map(math.isfinite, curve)):
            effects = [effect.to_dict() for effect in evidence.effects(curve, trace.jumps(), within=within)]
        configurations.append(
            Configuration(
                trial=first.number,
                label=service.searched.label(first.schedule.spec),
                trace=trace,
                curves=[row.curve for row in (first, *others)],
                effects=effects,
                state=first.shown_state,
                score=first.score if first.state == "COMPLETE" else None,
                link=link.format(run_id=run_id) if link and run_id else None,
                trunk=trunk,
            )
        )
    return configurations


def _verdicts(
    service: Service, rows: Sequence[Trial], answer: Answer
) -> list[tuple[int, Mapping[str, Any], list[Line]]]:
    """For each verdict on a jump: the trial's number, the verdict as a dict, and the first control run of each kind."""
    controls: dict[tuple[int, int | None], dict[str, Line]] = {}
    for row in rows:
        control = row.facts.control
        if row.curve and row.schedule and control is not None and control.kind in _CONTROLS:
            line = Line(_CONTROLS[control.kind], service.trace(row.schedule), row.curve)
            controls.setdefault((control.trial, control.epoch), {}).setdefault(control.kind, line)
    return [
        (entry.trial, verdict, list(controls.get((entry.trial, verdict["epoch"]), {}).values()))
        for entry in (*answer.ranking, *([answer.baseline] if answer.baseline else []))
        for verdict in entry.facts.get("verdicts") or []
    ]


def _learned(service: Service, answer: Answer, *, draw: bool) -> tuple[list[Learned], list[str]]:
    """The pictures of what the models of the best baseline and the best schedules have learned, from their runs in
    MLflow, and a sentence for each model without pictures.

    ``draw``: draw missing pictures, by validating the models on the sweep's device.
    """
    entries = [*([answer.baseline] if answer.baseline else []), *answer.ranking[:BEST]]
    runs = {entry.trial: entry.run_id for entry in entries if entry.run_id}
    notes = [
        f"trial {entry.trial}: no pictures, because it has no run in MLflow" for entry in entries if not entry.run_id
    ]
    files: dict[int, dict[str, bytes]] = {}
    try:
        files |= {trial: _fetched(service, run_id) for trial, run_id in runs.items()}
        missing = {trial: run_id for trial, run_id in runs.items() if not files[trial]}
        if missing and draw:
            notes += _draw(service, missing, files)
        elif missing:
            notes.append(f"sweeper report {service.sweep.name} draws the missing pictures when no trial is running")
    except (DataError, TrackingError, TrainingError) as error:
        notes.append(f"no new pictures: {error}")
    labels = {entry.trial: entry.label for entry in entries}
    return [Learned(trial, labels[trial], content) for trial, content in files.items() if content], notes


def _fetched(service: Service, run_id: str) -> dict[str, bytes]:
    """The pictures of what was learned that the run has in MLflow, by file name; {} before they are drawn."""
    if service.tracker.server.fetch(run_id, names.LEARNED + evaluation.NUMBERS) is None:
        return {}
    files = {name: service.tracker.server.fetch(run_id, names.LEARNED + name) for name in evaluation.FILES}
    return {name: content for name, content in files.items() if content is not None}


def _draw(service: Service, runs: Mapping[int, str], files: dict[int, dict[str, bytes]]) -> list[str]:
    """Draw the pictures of these trials (number -> run id), and add them to ``files`` and to their runs in MLflow.

    Returns a sentence for each trial of which none can be drawn.
    """
    recipe = service.sweep.recipe
    if not evaluation.drawable(recipe.model):
        return [f"no pictures: they are drawn by Ultralytics, which has no {recipe.model}"]
    weights = {trial: service.tracker.server.fetch(run_id, names.WEIGHTS) for trial, run_id in runs.items()}
    models = {
        trial: evaluation.TrainedModel(recipe, content, service.classes)
        for trial, content in weights.items()
        if content
    }
    try:
        device = fleet.worker_devices(str(service.sweep.device))[0]
    except DeviceError:  # This machine lacks the device on which the sweep was trained.
        device = fleet.CPU
    if models:
        drawn = evaluation.draw(list(models.values()), service.dataset.yaml, device, charts.font())
        for trial, content in zip(models, drawn, strict=True):
            files[trial] = content
            artifacts = {names.LEARNED + name: content[name] for name in evaluation.FILES if name in content}
            service.tracker.add(trial, {}, artifacts)
    return [
        f"trial {trial}: no pictures, because its run in MLflow has no weights" for trial in runs if trial not in models
    ]
