"""The prepared view: one link on which MLflow shows learning rate beside mAP, without a click.

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

from sweeper.tracking import names
from sweeper.tracking.connection import Refused
from sweeper.tracking.tracker import Tracker

LR, LR_RELATIVE, MAP, BEST = "curve/lr", "curve/lr_rel", "curve/mAP50-95", "best/mAP50-95"

_TAG = "mlflow.sharedViewState."
_FIRST, _WRAPPED = (3, 0), (3, 15)  # versions: the first that reads a tag so, and from which it is wrapped in JSON
_BELOW = (4, 0)  # nobody has looked at later ones


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


def publish(tracker: Tracker, params: Sequence[str], best: Sequence[str] = (), name: str = "LR beside mAP") -> View:
    """Prepare the view of the sweep's experiment; doing it again updates it.

    ``params``: schedule parameters for the chart against mAP; those that a run lacks or that never vary are left
    out, because MLflow would drop the run. ``best``: ids of the runs whose lines are shown, best trials and
    baselines; filled up to 10 (if more are given, to 20) with the next best by ``best/mAP50-95``. TrackingError if
    the server is away.
    """
    runs = tracker.runs()
    shown = _shown(runs, best)
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
        return _plain(experiment, shown, f"MLflow {version} cannot take a prepared view: this is its plain metric page")
    state = _state(runs, params, len(shown))
    key = hashlib.sha256(f"{tracker.experiment}\n{name}".encode()).hexdigest()[:32]
    old = tracker.server.experiment_tags().get(_TAG + key)
    value = _encoded(state, name, version, old)
    try:
        if len(value) > names.EXPERIMENT_TAG_CHARACTERS:
            raise Refused("too long")
        tracker.server.set_experiment_tag(_TAG + key, value)
    except Refused:
        return _plain(experiment, shown, "this MLflow refused the prepared view: this is its plain metric page")
    query = f"viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    return View(f"/#/experiments/{experiment}/runs?{query}", tuple(shown))


def _shown(runs: list[dict[str, Any]], best: Sequence[str]) -> list[str]:
    """The given runs that exist, then the next best, up to the number that MLflow can be told to show."""
    there = {run["run_id"] for run in runs}
    given = list(dict.fromkeys(run_id for run_id in best if run_id in there))
    rest = sorted(runs, key=lambda run: -run["metrics"].get(BEST, run["metrics"].get(MAP, -1.0)))
    more = [run["run_id"] for run in rest if run["run_id"] not in given]
    return [*given, *more][: 10 if len(given) <= 10 else 20]


def _state(runs: list[dict[str, Any]], params: Sequence[str], shown: int) -> dict[str, Any]:
    section = "sweeper-view"
    charts = [
        _line("sweeper-lr", section, "Learning rate", [LR]),
        _line("sweeper-map", section, "mAP50-95", [MAP]),
        _line("sweeper-lr-over-map", section, "Learning rate (of its peak) over mAP50-95", [LR_RELATIVE, MAP]),
    ]
    finished = [run for run in runs if BEST in run["metrics"]]
    useful = [
        param
        for param in params
        if all(param in run["params"] for run in finished) and len({run["params"][param] for run in finished}) > 1
    ]
    if useful:
        charts.append(
            _card("PARALLEL", "sweeper-parameters", section, "Schedule parameters and best mAP50-95")
            | {"selectedParams": useful, "selectedMetrics": [BEST], "showAllRuns": True}
        )
    # MLflow adds a chart for every other metric in a section of its prefix: they wait folded.
    prefixes = sorted({key.rpartition("/")[0] for run in runs for key in run["metrics"]} - {""})
    sections = [
        {"uuid": section, "name": "Learning rate beside mAP", "display": True, "columns": 2, "cardHeight": 340},
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
        "selectedColumns": [f"metrics.`{BEST}`", f"params.`{params[0]}`" if params else "attributes.`Source`"],
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


def _plain(experiment: str, shown: list[str], note: str) -> View:
    """MLflow's metric page (there since 1.x): its whole state is in its address."""
    query = {
        "runs": json.dumps(shown),
        "metric": json.dumps(LR),
        "experiments": json.dumps([experiment]),
        "plot_metric_keys": json.dumps([LR_RELATIVE, MAP]),
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
