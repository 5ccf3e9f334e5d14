"""One link on which MLflow shows the learning rate beside the objective, without a click, and a server to show it.

MLflow 3 keeps a shared view in an experiment tag, undocumented and in an encoding that depends on its version. For a
version with an unknown encoding the link goes to MLflow's plain metric page, whose whole state is in its address.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import names
from sweeper.errors import TrackingError
from sweeper.tracking import Tracker
from sweeper.tracking.connection import FILES, Refused

COLUMNS = 4  # parameters beside the score in MLflow's table of runs
STAR = "★ "  # begins the winner's name

Schedule = frozenset[tuple[str, str]]  #: the params of a run but for its seed

_KEY = "LR beside mAP"  # names the view's tag together with the experiment; never shown
_TAG = "mlflow.sharedViewState."
_FIRST = [3, 15]  # the first version of MLflow that reads a tag so
_BELOW = [4, 0]  # the first version that has not been tried
_SECTION = "sweeper-view"  # of the page, with the charts
_WIDE = "sweeper-wide"  # the section below, with the charts that need its whole width
MOST = 5  # params in a chart of parallel axes, so that their names can be read beside each other
_HOST = "127.0.0.1"
_HARDENED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes and 640 MB, for GenAI jobs
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
    "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
# What a reader of the view expects beside what is chosen in _state.
_STATE: dict[str, Any] = {
    "searchFilter": "",
    "modelVersionFilter": "All Runs",
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "groupBy": None,
    "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    **dict.fromkeys(("datasetsFilter", "columnOrder", "runsPinned", "runsHidden"), ()),
    **{key: {} for key in ("columnWidths", "runsExpanded", "runsVisibilityMap", "groupsExpanded")},
    **dict.fromkeys(("viewMaximized", "runListHidden"), False),
    **dict.fromkeys(("isAccordionReordered", "useGroupedValuesInCharts"), True),
    **dict.fromkeys(("hideEmptyCharts", "autoRefreshEnabled"), True),
}


@dataclass(frozen=True)
class Axes:
    """What is drawn: an ``objective`` by its name, whose value at an epoch is ``metric``, and params of the runs.

    ``facts``: params that every trial has. ``searched``: those that proposals of ``family`` have; other families' runs
    lack some of them, and MLflow leaves out of a chart whatever lacks one of its axes.
    """

    objective: str
    metric: str
    facts: Sequence[str] = ()
    family: str = ""
    searched: Sequence[str] = ()

    @property
    def score(self) -> str:
        """The metric with the score of a run that has ended."""
        return f"{names.FINAL}{self.objective}"

    def value(self, run: dict[str, Any]) -> float:
        """The run's score; before its end its last value of the objective, and below 0 before the first epoch."""
        metrics = run["metrics"]
        return float(metrics.get(self.score, metrics.get(self.metric, -1.0)))


@dataclass(frozen=True)
class View:
    """Where to look. ``path`` goes behind the server's address; ``note`` says in a sentence what is missing."""

    path: str
    runs: tuple[str, ...]  # ids of the runs whose lines are shown
    note: str | None = None

    def link(self, base_url: str) -> str:
        """The address to open in a browser."""
        return base_url.rstrip("/") + self.path


def publish(tracker: Tracker, axes: Axes, best: Sequence[str] = (), winner: str | None = None) -> View:
    """Prepare the view of the sweep's experiment; doing it again updates it.

    ``axes``: what is drawn; params that a run lacks or that never vary are left out, because MLflow would drop the
    run. ``best``: ids of the runs whose lines are shown, best trials and baselines; filled up to 10 (if more are
    given, to 20) with the next best by the objective. ``winner``: id of the run that is marked and stands first; the
    others follow by their scores. TrackingError if the server is away.
    """
    runs = tracker.runs()
    shown = _shown(runs, best, axes, winner)
    _mark(tracker, runs, shown, winner)
    version = tracker.server.version()
    experiment = tracker.server.experiment_id()
    if not _FIRST <= [int(number) for number in re.findall(r"\d+", version)[:2]] < _BELOW:
        return _plain(experiment, shown, axes, f"MLflow {version} cannot take a prepared view")
    state = zlib.compress(json.dumps(_state(runs, axes, len(shown))).encode(), 9)
    since = runs[0]["start_ms"] if runs else 0  # so that the same view, published again, is the same tag
    value = {"name": f"LR beside {axes.objective}", "createdAt": since, "updatedAt": since}
    value["state"] = "deflate;" + base64.b64encode(state).decode()
    key = hashlib.sha256(f"{tracker.experiment}\n{_KEY}".encode()).hexdigest()[:32]
    try:
        with tracker.server.writing() as client:
            client.set_experiment_tag(experiment, _TAG + key, json.dumps(value))
    except Refused:
        return _plain(experiment, shown, axes, "this MLflow refused the prepared view")
    query = f"viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    return View(f"/#/experiments/{experiment}/runs?{query}", tuple(shown))


def _shown(runs: list[dict[str, Any]], best: Sequence[str], axes: Axes, winner: str | None) -> list[str]:
    """The given runs and the next best, up to the number that MLflow can be told to show, the highest score first."""
    by_id = {run["run_id"]: run for run in runs}
    given = list(dict.fromkeys(run_id for run_id in best if run_id in by_id))
    # A confirmation run repeats a schedule on another seed, so others are shown before it.
    rest = sorted(runs, key=lambda run: (run["tags"].get(names.STAGE) == "confirm", -axes.value(run)))
    more = [run["run_id"] for run in rest if run["run_id"] not in given]
    shown = [*given, *more][: 10 if len(given) <= 10 else 20]
    return sorted(shown, key=lambda run_id: (run_id != winner, -axes.value(by_id[run_id])))


def _mark(tracker: Tracker, runs: list[dict[str, Any]], shown: Sequence[str], winner: str | None) -> None:
    """Give the shown runs their places, by which the view sorts, and colours by schedule; and mark the winner.

    MLflow draws the first runs of the list, and those without a place come last.
    """
    places = {run_id: place for place, run_id in enumerate(shown, 1)}
    baselines = {_schedule(run) for run in runs if run["tags"].get(names.STAGE) == "baseline"}
    colors: dict[bool, dict[Schedule, str]] = {True: {}, False: {}}  # of baselines, of the other schedules
    for run in sorted(runs, key=lambda run: places.get(run["run_id"], len(runs) + 1)):
        run_id, tags = run["run_id"], run["tags"]
        marks: dict[str, str] = {names.NAME: run["name"].removeprefix(STAR)}
        if run_id == winner:
            marks = {names.NAME: STAR + marks[names.NAME], names.WINNER: "yes"}
        if run_id in places:
            schedule = _schedule(run)
            baseline = schedule in baselines
            color = colors[baseline].setdefault(schedule, names.color(len(colors[baseline]), baseline=baseline))
            marks |= {names.VIEW: f"{places[run_id]:03d}", names.COLOR: color}
        for key in {names.VIEW, names.WINNER} & tags.keys() - marks.keys():
            with tracker.server.writing() as client:
                client.delete_tag(run_id, key)
        if changed := {key: value for key, value in marks.items() if tags.get(key) != value}:
            tracker.server.send(run_id, [], {}, changed)


def _schedule(run: dict[str, Any]) -> Schedule:
    """What runs of one schedule on different seeds have in common."""
    return frozenset((key, value) for key, value in run["params"].items() if key != names.SEED)


def _state(runs: list[dict[str, Any]], axes: Axes, shown: int) -> dict[str, Any]:
    objective = axes.objective
    charts = [
        _line("sweeper-lr", "Learning rate", [names.TRACE]),
        _line("sweeper-map", objective, [axes.metric]),
        _card("BAR", "sweeper-score", f"{objective}, best first", metricKey=axes.score),
        _line("sweeper-lr-over-map", f"Learning rate (of its peak) over {objective}", [names.LR_RELATIVE, axes.metric]),
    ]
    finished = [run for run in runs if axes.score in run["metrics"]]
    proposed = [run for run in finished if run["tags"].get(names.FAMILY) == axes.family]
    for uuid, title, params, drawn in (
        ("sweeper-searched", f"What was searched ({axes.family}) and {objective}", axes.searched, proposed),
        ("sweeper-parameters", f"All schedules and {objective}", axes.facts, finished),
    ):
        if useful := _varying(params, drawn):
            both = {"selectedParams": useful[:MOST], "selectedMetrics": [axes.score]}
            charts.append(_card("PARALLEL", uuid, title, showAllRuns=True, metricSectionId=_WIDE, **both))
    columns = [f"params.`{param}`" for param in (*axes.searched, *axes.facts)][:COLUMNS]
    # MLflow adds a chart for every other metric in a section of its prefix; these sections are folded.
    prefixes = sorted({key.rpartition("/")[0] for run in runs for key in run["metrics"]} - {""})
    title = f"Learning rate beside {objective}"
    sections = [
        {"uuid": _SECTION, "name": title, "display": True, "columns": 2, "cardHeight": 340},
        {"uuid": _WIDE, "name": f"Parameters and {objective}", "display": True, "columns": 1, "cardHeight": 340},
        *({"uuid": f"sweeper-{prefix}", "name": prefix, "display": False} for prefix in prefixes),
    ]
    defaults = {"isReordered": True, "deleted": False, "isGenerated": False}
    return {
        **_STATE,
        "orderByKey": f"tags.`{names.VIEW}`",
        "orderByAsc": True,
        "selectedColumns": [f"metrics.`{axes.score}`", *(columns or ["attributes.`Source`"])],
        "runsHiddenMode": "FIRST_10_RUNS" if shown <= 10 else "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [{**defaults, **section} for section in sections],
    }


def _varying(params: Sequence[str], runs: Sequence[dict[str, Any]]) -> list[str]:
    """Those of ``params`` that all of ``runs`` have, with more than one value among them."""
    values = {param: [run["params"].get(param) for run in runs] for param in params}
    return [param for param, seen in values.items() if None not in seen and len(set(seen)) > 1]


def _card(kind: str, uuid: str, title: str, **more: Any) -> dict[str, Any]:
    card = {"type": kind, "uuid": uuid, "metricSectionId": _SECTION, "displayName": title, "runsCountToCompare": 20}
    return card | {"isGenerated": False, "deleted": False} | more


def _line(uuid: str, title: str, metrics: list[str]) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "useGlobalXaxisKey": False, "selectedXAxisMetricKey": "", "xAxisScaleType": "linear"}
    axes |= {"yAxisKey": "metric", "yAxisExpressions": [], "scaleType": "linear", "range": {}, "ignoreOutliers": False}
    smooth = {"lineSmoothness": 0, "useGlobalLineSmoothing": False}
    return _card("LINE", uuid, title, metricKey=metrics[0], selectedMetricKeys=metrics, **axes, **smooth)


def _plain(experiment: str, shown: list[str], axes: Axes, note: str) -> View:
    """The link to MLflow's metric page, which every version has."""
    query = {
        "runs": json.dumps(shown),
        "metric": json.dumps(names.LR),
        "experiments": json.dumps([experiment]),
        "plot_metric_keys": json.dumps([names.LR_RELATIVE, axes.metric]),
        "plot_layout": json.dumps({"autosize": True, "xaxis": {}, "yaxis": {}}),
        "x_axis": "step",
        "y_axis_scale": "linear",
        "line_smoothness": "1",
        "show_point": "false",
        **dict.fromkeys(("deselected_curves", "last_linear_y_axis_range"), "[]"),
    }
    path = f"/#/metric?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"
    return View(path, tuple(shown), f"{note}: this is its plain metric page")


@dataclass(frozen=True)
class Served:
    """A running server; ``stop`` ends it."""

    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End the server and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 15)
        try:
            self.process.wait(10)
        except BaseException as error:  # also a second Ctrl-C: without a kill the server would outlive this process
            os.killpg(self.process.pid, 9)
            self.process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether an MLflow server answers at ``url``."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout) as answer:
            return bool(answer.status == 200 and answer.read(16).strip() == b"OK")
    except (OSError, ValueError):
        return False


def serve(uri: str, port: int = 5000, *, log: Path, timeout: float = 180.0) -> Served:
    """Start ``mlflow server`` on the store ``uri`` (``sqlite:///FILE``) and wait until it answers, some 10 s.

    It has no login, so only this machine reaches it. ``port`` 0 takes a free one. TrackingError if the port is taken,
    or with the end of the ``log`` if the server does not come up in ``timeout`` seconds.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise TrackingError(
                f"port {port} on {_HOST} is taken by another program; choose another with --port"
            ) from None
        port = probe.getsockname()[1]
    file = Path(uri.removeprefix("sqlite:///")).resolve()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{file}", "--host", _HOST]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", str(file.with_name(FILES))]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **_HARDENED},
            start_new_session=True,  # Ctrl-C is for the caller, who calls stop()
        )
    server = Served(f"http://{_HOST}:{port}", process)
    deadline = time.monotonic() + timeout
    try:
        while not answers(server.url):
            if process.poll() is not None or time.monotonic() > deadline:
                end = " | ".join(log.read_text(errors="replace").splitlines()[-3:]) or "it printed nothing"
                raise TrackingError(
                    f"mlflow server on {file} did not come up within {timeout:g} s: {end:.300}; see {log}"
                )
            time.sleep(0.4)
    except BaseException:  # also Ctrl-C: the server would outlive this process
        server.stop()
        raise
    return server
