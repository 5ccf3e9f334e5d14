"""What a sweep has come to, gathered from its parts for those who look; nothing is trained or changed."""

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
from sweeper.training import pictures

#: Numbers that every family's trace has: what can be compared over all trials, baselines included.
FACTS = ("restarts", "drops", "peak", "final_ratio", "integral", "warmup_fraction")
SHOWN = 8  # runs beside the baseline, in charts that show a few
BEST = 3  # schedules beside the baseline, of whose models it is shown what they have learned
_VERSIONS = ("lr-sweeper", "torch", "ultralytics", "optuna", "mlflow", "numpy")
_CONTROLS = {"counterfactual": "without the restart", "matched_peak": "one anneal from its peak"}


def axes(sweep: Sweep) -> Axes:
    """What the view in MLflow draws: the objective, the facts that all schedules have, and what is searched."""
    searched = [name for name, parameter in sweep.search.params.items() if parameter.searched]
    return Axes(
        objective=sweep.objective,
        metric=sweep.metric,
        facts=("family", *(f"{names.FACT}{name}" for name in FACTS)),
        family=sweep.search.family,
        searched=(*(["steps"] if sweep.search.restarts else []), *searched),
    )


def best_runs(answer: Answer) -> list[str]:
    """MLflow ids of the runs to look at first: of the best schedules and of the best baseline."""
    entries = [*answer.ranking[:SHOWN], *([answer.baseline] if answer.baseline else [])]
    return list(dict.fromkeys(entry.run_id for entry in entries if entry.run_id))


def make(service: Service, link: str | None = None, *, draw: bool = False) -> bytes:
    """The sweep's report as one HTML file. ``link``: where a run is shown, with {run_id} in it; None: no links.

    ``draw``: draw the pictures of what was learned that MLflow does not have yet, where no trial is running.

    Raises DatabaseError if the sweep was never launched.
    """
    sweep, rows = service.sweep, service.study.trials()
    answer, status = service.pick(), service.status()
    importance, trials = service.study.importance()
    learned, notes = _learned(service, answer, draw=draw and not status.counts["running"])
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _VERSIONS)
    typical = status.seconds_per_epoch or 0.0  # for trials that have not finished
    hours = [(row, (row.facts.epoch_seconds or typical) / 3600) for row in rows]  # of an epoch
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
                "hours": sum((len(row.curve) - row.reused) * each for row, each in hours),
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
    """The answer and the page onto the sweep's run in MLflow, and what each schedule differs by onto its own run.

    Raises TrackingError if the server is away.
    """
    kept = {names.REPORT: page} if page is not None else {}
    service.tracker.sweep(tags={names.ANSWER: answer.sentence}, artifacts=kept)
    for run_id, difference in differences(answer).items():
        service.tracker.server.send(run_id, [], {}, {names.DIFFERENCE: difference})


def differences(answer: Answer) -> dict[str, str]:
    """MLflow id of a schedule's first run -> its differences to baselines, on fresh seeds and in the race."""
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
    """Everything that has begun, one entry per schedule: the search's or first run, then other seeds of it."""
    groups: dict[str, list[Trial]] = {}
    for row in sorted(rows, key=lambda row: (row.stage == "confirm", row.number)):
        if row.curve and row.spec and row.stage != "control":
            groups.setdefault(row.name, []).append(row)
    configurations = []
    for first, *others in groups.values():
        assert first.schedule is not None  # it has begun
        run_id, trace, curve = service.run_id(first), service.trace(first.schedule), first.values
        within, trunk = service.sweep.escape.within, None
        effects: list[dict[str, Any]] = []
        if first.schedule.trunk is not None:
            effects = evidence.jumps_of(first, rows, within)
            if stem := evidence.trunk_runs(rows, first.schedule.spec).get(first.seed):
                trunk = Line(stem.name, service.trace(first.schedule.trunk), stem.curve)
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
    """What was examined, with the first run of each kind of control."""
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
    """What there is to show of the models of the best baseline and of the best schedules, and a line for each that
    nothing is shown of. Pictures lie in the trial's run in MLflow.

    ``draw``: draw what is missing, by validating the models on the sweep's device.
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
            notes.append(f"sweeper report {service.sweep.name} draws what is missing here, when no trial is running")
    except (DataError, TrackingError, TrainingError) as error:
        notes.append(f"no new pictures: {error}")
    labels = {entry.trial: entry.label for entry in entries}
    return [Learned(trial, labels[trial], content) for trial, content in files.items() if content], notes


def _fetched(service: Service, run_id: str) -> dict[str, bytes]:
    """The pictures that the run has in MLflow; {} before they are drawn."""
    if service.tracker.server.fetch(run_id, names.LEARNED + pictures.NUMBERS) is None:
        return {}
    files = {name: service.tracker.server.fetch(run_id, names.LEARNED + name) for name in pictures.NAMES}
    return {name: content for name, content in files.items() if content is not None}


def _draw(service: Service, runs: Mapping[int, str], files: dict[int, dict[str, bytes]]) -> list[str]:
    """Draw these trials' pictures, put them into ``files`` and into MLflow; a line for each that cannot be drawn."""
    recipe = service.sweep.recipe
    if not pictures.drawable(recipe.model):
        return [f"no pictures: they are drawn by Ultralytics, which has no {recipe.model}"]
    weights = {trial: service.tracker.server.fetch(run_id, names.WEIGHTS) for trial, run_id in runs.items()}
    models = {trial: pictures.Model(recipe, content, service.classes) for trial, content in weights.items() if content}
    try:
        device = fleet.slots(str(service.sweep.device))[0]
    except DeviceError:  # the sweep was trained on another machine
        device = fleet.CPU
    if models:
        drawn = pictures.draw(list(models.values()), service.dataset.yaml, device, charts.font())
        for trial, content in zip(models, drawn, strict=True):
            files[trial] = content
            kept = {names.LEARNED + name: content[name] for name in pictures.NAMES if name in content}
            service.tracker.add(trial, {}, kept)
    why = "because its run in MLflow has no weights"
    return [f"trial {trial}: no pictures, {why}" for trial in runs if trial not in models]
