"""What a sweep has come to, gathered from its parts for those who look: plain data, nothing is trained or changed."""

import math
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import yaml

from sweeper import evidence, names
from sweeper.charts import Line
from sweeper.config import Sweep
from sweeper.report.learned import gather
from sweeper.report.page import Configuration, Page, Verdict, render
from sweeper.schedules import Trace
from sweeper.search import prune
from sweeper.service import Service
from sweeper.service.status import Status
from sweeper.stats import Answer
from sweeper.study import Trial
from sweeper.tracking.view import Axes

#: Numbers that every family's trace has: what can be compared over all trials, baselines included.
FACTS = ("restarts", "drops", "peak", "final_ratio", "integral", "warmup_fraction")
SHOWN = 8  # runs beside the baseline, in charts that show a few
_VERSIONS = ("lr-sweeper", "torch", "ultralytics", "optuna", "mlflow", "numpy")


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
    rows = service.study.trials()
    answer = service.pick()
    importance, trials = service.study.importance()
    status = service.status()
    pictures, notes = gather(service, answer, draw=draw and not status.counts["running"])
    return render(
        Page(
            sweep=service.sweep.name,
            made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            epochs=service.sweep.epochs,
            objective=service.sweep.objective,
            last=prune.LAST,
            answer=answer.to_dict(),
            configurations=configurations(service, rows, link),
            cost=_cost(rows, status),
            sweep_file=sweep_file(service.sweep),
            identity=_identity(service, rows),
            facts=_facts(answer, status),
            verdicts=_verdicts(service, rows, answer),
            importance=importance,
            importance_of=trials,
            unfinished=sum(status.counts[state] for state in ("waiting", "running")),
            learned=pictures,
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
            parts.append(f"in the race {raced.difference} over {raced.over} on {raced.n} search seeds")
        if entry.run_id and parts:
            texts[entry.run_id] = "; ".join(parts)
    return texts


def configurations(service: Service, rows: Sequence[Trial], link: str | None = None) -> list[Configuration]:
    """Everything that has begun, one entry per schedule: the search's or first run, then other seeds of it."""
    groups: dict[str, list[Trial]] = {}
    for row in rows:
        if row.curve and row.spec and row.stage != "control":
            groups.setdefault(row.name, []).append(row)
    found = []
    for own in groups.values():
        first = min(own, key=lambda row: (row.stage == "confirm", row.number))
        assert first.schedule is not None  # it has begun
        run_id, trace = service.run_id(first), service.trace(first.schedule)
        found.append(
            Configuration(
                trial=first.number,
                label=service.searched.label(first.schedule.spec),
                trace=trace,
                curves=[row.curve for row in (first, *(row for row in own if row is not first))],
                effects=_effects(first, trace, service.sweep.escape.within),
                state=first.state.lower(),
                score=first.score if first.state == "COMPLETE" else None,
                link=link.format(run_id=run_id) if link and run_id else None,
            )
        )
    return found


def sweep_file(sweep: Sweep) -> str:
    """The sweep as YAML with every default written out; ``Sweep.load`` reads it back as the same sweep."""
    said = sweep.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump({"name": said.pop("name"), **said.pop("recipe"), **said}, sort_keys=False, width=110)


def _effects(row: Trial, trace: Trace, within: float) -> list[dict[str, Any]]:
    """What the curve so far says of each jump; nothing where epochs are missing."""
    curve = row.values
    if sorted(row.curve) != list(range(len(curve))) or not all(map(math.isfinite, curve)):
        return []
    return [effect.to_dict() for effect in evidence.effects(curve, trace.jumps(), within=within)]


def _verdicts(service: Service, rows: Sequence[Trial], answer: Answer) -> list[Verdict]:
    """What was examined, with the first run of each kind of control."""
    controls: dict[tuple[int, int], dict[str, Line]] = {}
    for row in rows:
        asked = row.facts.control
        if row.curve and row.schedule and asked is not None and asked.restart is not None:
            kinds = controls.setdefault((asked.trial, asked.epoch), {})
            words = {"counterfactual": "without the restart", "matched_peak": "one anneal from its peak"}
            if asked.kind in words:
                line = Line(words[asked.kind], service.trace(row.schedule), row.curve)
                kinds.setdefault(asked.kind, line)
    entries = [*answer.ranking, *([answer.baseline] if answer.baseline else [])]
    return [
        Verdict(
            entry.trial, verdict["epoch"], verdict, list(controls.get((entry.trial, verdict["epoch"]), {}).values())
        )
        for entry in entries
        for verdict in entry.facts.get("verdicts") or []
    ]


def _cost(rows: Sequence[Trial], status: Status) -> dict[str, Any]:
    """Epochs and hours; an epoch of a trial that did not finish counts as long as the median one."""
    trained = reused = 0.0
    for row in rows:
        seconds = float(row.facts.epoch_seconds or status.seconds_per_epoch or 0.0)
        shared = row.reused
        trained += (len(row.curve) - shared) * seconds
        reused += shared * seconds
    epochs = {"trained": status.epochs.trained, "reused": status.epochs.reused}
    hours = {"hours": trained / 3600, "hours_saved": reused / 3600}
    return {**epochs, **hours, "seconds_per_epoch": status.seconds_per_epoch}


def _facts(answer: Answer, status: Status) -> dict[str, str]:
    noise, seen = answer.noise, answer.detectable
    found = {
        "Trials": f"{status.counts['complete']} of {status.budget} finished",
        "Schedules tried": str(answer.tried),
        "Pairs on fresh seeds": str(answer.pairs) if answer.pairs else "none yet",
    }
    if not answer.learned or answer.failures.every:
        return found | _exactness(status)  # no score, no noise, and nothing that a design could see
    found |= {
        "Luck in one run": f"± {noise.sigma:.4f} ({noise.source})" if noise.sigma is not None else noise.source,
        "Smallest gain that shows": f"{seen:+z.4f}" if seen is not None else "none without pairs",
        "Pairs for a gain of 0.004": noise.needs,
    }
    if answer.baseline:
        found["Best baseline"] = f"{answer.baseline.name}, {answer.baseline.score:.4f}"
    if noise.correlation is not None:
        found["Pairs move together"] = f"{noise.correlation:.2f}"
    return found | _exactness(status)


def _exactness(status: Status) -> dict[str, str]:
    differing = [str(mismatch) for mismatch in status.mismatches]
    more = f" (and {len(differing) - 1} more)" if differing[1:] else ""
    return {"Exactness": f"{differing[0]}{more}" if differing else "no two trainings of one segment have differed"}


def _identity(service: Service, rows: Sequence[Trial]) -> dict[str, str]:
    recipes = sorted({row.facts.recipe for row in rows if row.facts.recipe})
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _VERSIONS)
    return {
        "Recipes": ", ".join(recipes) or "none yet",
        "Data": service.data_digest,
        "Here": f"Python {platform.python_version()}, {versions}",
    }
