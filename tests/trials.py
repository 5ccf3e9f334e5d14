"""Trials that are written down instead of trained, for tests of what is made of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.study import Facts, Trial
from sweeper.tracking.server import Server


def trial(number: int, stage: str, seed: int = 0, score: float | None = None, **more: Any) -> Trial:
    """A trial; with a score it is complete, unless ``more`` names another state. Its attributes are named, too."""
    own = {name: more.pop(name) for name in ("state", "spec", "curve", "params", "attempt", "reasons") if name in more}
    own.setdefault("state", "WAITING" if score is None else "COMPLETE")
    return Trial(number, stage, seed, score=score, facts=Facts.of(more), **own)


def run(
    trial: int,
    name: str,
    stage: str,
    seed: int,
    score: float | None = None,
    *,
    failed: bool = False,
    confounder: str | None = None,
    highest: float | None = None,
    params: Mapping[str, Any] | None = None,
    run_id: str | None = None,
) -> Trial:
    """One run of the configuration ``name``, which failed with the line ``confounder`` or has nothing against it."""
    state = "FAIL" if failed else "WAITING" if score is None else "COMPLETE"
    facts = Facts(name=name, run_id=run_id, confounder=None if failed else confounder)
    reasons: Sequence[str] = (confounder,) if failed and confounder else ()
    curve = {} if highest is None else {0: highest}
    return Trial(trial, stage, seed, state, params, score, curve, facts, reasons=reasons)


def history(server: Server, run_id: str, metric: str) -> list[tuple[int, float, int]]:
    """(step, value, time in ms since 1970) of a metric of a run in MLflow, by step."""
    points = server.client().get_metric_history(run_id, metric)
    return sorted((int(point.step), float(point.value), int(point.timestamp)) for point in points)
