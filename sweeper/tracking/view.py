"""The prepared view: one link on which MLflow shows learning rate beside the objective, without a click.

MLflow 3 keeps a shared view in an experiment tag, undocumented and in an encoding that depends on its version. Where
that is not understood, the link goes to MLflow's plain metric page, whose whole state is in its address.
"""

import base64
import hashlib
import json
import time
import urllib.parse
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeper import names
from sweeper.tracking.connection import Refused
from sweeper.tracking.tracker import Tracker

LR, LR_RELATIVE = "curve/lr", "curve/lr_rel"
COLUMNS = 4  # parameters beside the objective in MLflow's table of runs

_KEY = "LR beside mAP"  # names the view's tag together with the experiment; never shown
_TAG = "mlflow.sharedViewState."
_FIRST, _WRAPPED = (3, 0), (3, 15)  # versions: the first that reads a tag so, and from which it is wrapped in JSON
_BELOW = (4, 0)  # nobody has looked at later ones


@dataclass(frozen=True)
class Axes:
    """What is drawn: an ``objective`` by its name, whose value at an epoch is ``metric``; params of the runs.

    ``facts``: params that every trial has. ``searched``: those that proposals of ``family`` have; other families' runs
    lack some of them, and MLflow leaves out of a chart whatever lacks one of its axes.
    """

    objective: str
    metric: str
    facts: Sequence[str] = ()
    family: str = ""
    searched: Sequence[str] = ()

    @property
    def best(self) -> str:
        """The metric with the best value that a run has reached."""
        return f"best/{self.objective}"


@dataclass(frozen=True)
class View:
    """Where to look. ``path`` goes behind the server's address; ``note`` says in a sentence what is missing."""

    path: str
    runs: tuple[str, ...]  # ids of the runs whose lines are shown
    note: str | None = None

    def link(self, base_url: str) -> str:
        """The address to open in a browser.

        >>> View("/#/experiments/1/runs", ()).link("http://localhost:5000/")
        'http://localhost:5000/#/experiments/1/runs'
        """
        return base_url.rstrip("/") + self.path


def publish(tracker: Tracker, axes: Axes, best: Sequence[str] = ()) -> View:
    """Prepare the view of the sweep's experiment; doing it again updates it.

    ``axes``: what is drawn; params that a run lacks or that never vary are left out, because MLflow would drop the
    run. ``best``: ids of the runs whose lines are shown, best trials and baselines; filled up to 10 (if more are
    given, to 20) with the next best by the objective. TrackingError if the server is away.
    """
    runs = tracker.runs()
    shown = _shown(runs, best, axes)
    places = {run_id: f"{i:03d}" for i, run_id in enumerate(shown, 1)}
    for run in runs:  # the view is sorted by this tag, and MLflow draws the first runs; those without it come last
        place, was = places.get(run["run_id"]), run["tags"].get(names.VIEW)
        if place and place != was:
            tracker.server.send(run["run_id"], [], {}, {names.VIEW: place})
        elif was and not place:
            tracker.server.delete_tag(run["run_id"], names.VIEW)
    version = tracker.server.version()
    experiment = tracker.server.experiment_id()
    if not _FIRST <= _numbers(version) < _BELOW:
        return _plain(
            experiment, shown, axes, f"MLflow {version} cannot take a prepared view: this is its plain metric page"
        )
    state = _state(runs, axes, len(shown))
    key = hashlib.sha256(f"{tracker.experiment}\n{_KEY}".encode()).hexdigest()[:32]
    old = tracker.server.experiment_tags().get(_TAG + key)
    value = _encoded(state, f"LR beside {axes.objective}", version, old)
    try:
        if len(value) > names.EXPERIMENT_TAG_CHARACTERS:
            raise Refused("too long")
        tracker.server.set_experiment_tag(_TAG + key, value)
    except Refused:
        return _plain(experiment, shown, axes, "this MLflow refused the prepared view: this is its plain metric page")
    query = f"viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    return View(f"/#/experiments/{experiment}/runs?{query}", tuple(shown))


def _shown(runs: list[dict[str, Any]], best: Sequence[str], axes: Axes) -> list[str]:
    """The given runs that exist, then the next best, up to the number that MLflow can be told to show."""
    there = {run["run_id"] for run in runs}
    given = list(dict.fromkeys(run_id for run_id in best if run_id in there))
    rest = sorted(runs, key=lambda run: -run["metrics"].get(axes.best, run["metrics"].get(axes.metric, -1.0)))
    more = [run["run_id"] for run in rest if run["run_id"] not in given]
    return [*given, *more][: 10 if len(given) <= 10 else 20]


def _state(runs: list[dict[str, Any]], axes: Axes, shown: int) -> dict[str, Any]:
    section, objective = "sweeper-view", axes.objective
    charts = [
        _line("sweeper-lr", section, "Learning rate", [LR]),
        _line("sweeper-map", section, objective, [axes.metric]),
        _line(
            "sweeper-lr-over-map", section, f"Learning rate (of its peak) over {objective}", [LR_RELATIVE, axes.metric]
        ),
    ]
    finished = [run for run in runs if axes.best in run["metrics"]]
    proposed = [run for run in finished if run["tags"].get(names.FAMILY) == axes.family]
    for uuid, title, params, drawn in (
        ("sweeper-searched", f"What was searched ({axes.family}) and best {objective}", axes.searched, proposed),
        ("sweeper-parameters", f"All schedules and best {objective}", axes.facts, finished),
    ):
        if useful := _varying(params, drawn):
            charts.append(
                _card("PARALLEL", uuid, section, title)
                | {"selectedParams": useful, "selectedMetrics": [axes.best], "showAllRuns": True}
            )
    columns = [f"params.`{param}`" for param in (*axes.searched, *axes.facts)][:COLUMNS]
    # MLflow adds a chart for every other metric in a section of its prefix: they wait folded.
    prefixes = sorted({key.rpartition("/")[0] for run in runs for key in run["metrics"]} - {""})
    sections = [
        {
            "uuid": section,
            "name": f"Learning rate beside {objective}",
            "display": True,
            "columns": 2,
            "cardHeight": 340,
        },
        *({"uuid": f"sweeper-{prefix}", "name": prefix, "display": False} for prefix in prefixes),
    ]
    return {
        "searchFilter": "",
        "orderByKey": f"tags.`{names.VIEW}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"metrics.`{axes.best}`", *(columns or ["attributes.`Source`"])],
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS" if shown <= 10 else "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [
            {"isReordered": True, "deleted": False, "isGenerated": False, **part} for part in sections
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _varying(params: Sequence[str], runs: Sequence[dict[str, Any]]) -> list[str]:
    """Those of ``params`` that all of ``runs`` have, with more than one value among them."""
    values = {param: [run["params"].get(param) for run in runs] for param in params}
    return [param for param, found in values.items() if None not in found and len(set(found)) > 1]


def _card(kind: str, uuid: str, section: str, title: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": uuid,
        "metricSectionId": section,
        "displayName": title,
        "isGenerated": False,
        "deleted": False,
        "runsCountToCompare": 20,
    }


def _line(uuid: str, section: str, title: str, metrics: list[str]) -> dict[str, Any]:
    return _card("LINE", uuid, section, title) | {
        "metricKey": metrics[0],
        "selectedMetricKeys": metrics,
        "xAxisKey": "step",
        "useGlobalXaxisKey": False,
        "selectedXAxisMetricKey": "",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
    }


def _encoded(state: dict[str, Any], name: str, version: str, old: str | None) -> str:
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    if _numbers(version) < _WRAPPED:
        return packed
    now = round(time.time() * 1000)
    created = now
    if old and old.startswith("{"):
        was = json.loads(old)
        if was.get("state") == packed:
            return old
        created = was.get("createdAt", now)
    return json.dumps({"name": name, "createdAt": created, "updatedAt": now, "state": packed})


def _plain(experiment: str, shown: list[str], axes: Axes, note: str) -> View:
    """MLflow's metric page (there since 1.x): its whole state is in its address."""
    query = {
        "runs": json.dumps(shown),
        "metric": json.dumps(LR),
        "experiments": json.dumps([experiment]),
        "plot_metric_keys": json.dumps([LR_RELATIVE, axes.metric]),
        "plot_layout": json.dumps({"autosize": True, "xaxis": {}, "yaxis": {}}),
        "x_axis": "step",
        "y_axis_scale": "linear",
        "line_smoothness": "1",
        "show_point": "false",
        "deselected_curves": "[]",
        "last_linear_y_axis_range": "[]",
    }
    return View(f"/#/metric?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}", tuple(shown), note)


def _numbers(version: str) -> tuple[int, ...]:
    """
    >>> _numbers("3.17.2"), _numbers("2.9.0rc1"), _numbers("dev")
    ((3, 17), (2, 9), (0,))
    """
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)
