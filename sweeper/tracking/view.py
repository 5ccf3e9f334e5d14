"""A link to an MLflow page with the learning rate beside the objective, and a local MLflow server to open it.

MLflow 3 stores a shared view of its runs page in an experiment tag, which is undocumented and whose encoding depends on
the version. For a version with an unknown encoding the link leads to MLflow's metric page, whose state is in the URL.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import names
from sweeper.errors import TrackingError
from sweeper.tracking import Tracker
from sweeper.tracking.connection import FILES, Refused

COLUMNS = 4  # The number of params beside the score in MLflow's table of runs.
STAR = "★ "  # The beginning of the winner's run name.
MOST = 5  # The most params in a chart of parallel axes; the names of more would overlap.

ScheduleParams = frozenset[tuple[str, str]]  #: The params of a run without its seed.

_KEY = "LR beside mAP"  # Hashed with the experiment's name to the view's key, so it must not change; never shown.
_TAG = "mlflow.sharedViewState."
_FIRST = [3, 15]  # The first version of MLflow that reads the tag in this encoding.
_BELOW = [4, 0]  # The first version with which the encoding has not been tried.
_SECTION = "sweeper-view"  # The page's section with the charts in two columns.
_WIDE = "sweeper-wide"  # The section below it with charts of the full width.
_HOST = "127.0.0.1"
_HARDENED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # It would start eight processes with 640 MB for GenAI jobs.
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
    "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
# The keys that MLflow's page requires in a view, beside those that _state adds.
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
    """The axes of the charts: the ``objective`` (its name), whose ``metric`` has its value by epoch, and params.

    ``facts`` are params that every trial has. ``searched`` are params of the proposals, which are schedules of
    ``family``: they have a chart of their own, because MLflow leaves out a run that lacks one of the axes.
    """

    objective: str
    metric: str
    facts: Sequence[str] = ()
    family: str = ""
    searched: Sequence[str] = ()

    @property
    def score(self) -> str:
        """The name of the metric with a finished run's score."""
        return f"{names.FINAL}{self.objective}"

    def value(self, run: dict[str, Any]) -> float:
        """Return the run's score, before its end the latest value of the objective, before its first epoch -1."""
        metrics = run["metrics"]
        return float(metrics.get(self.score, metrics.get(self.metric, -1.0)))


@dataclass(frozen=True)
class View:
    """The page to open: ``path`` follows the server's address. ``note`` says why it is not the prepared view."""

    path: str
    runs: tuple[str, ...]  # The ids of the runs whose lines are shown.
    note: str | None = None

    def link(self, base_url: str) -> str:
        """Return the URL to open in a browser."""
        return base_url.rstrip("/") + self.path


def publish(tracker: Tracker, axes: Axes, best: Sequence[str] = (), winner: str | None = None) -> View:
    """Store the view of the sweep's experiment in MLflow, or update it, and return it.

    Params of ``axes`` that never vary or that a run lacks are left out, because MLflow would leave out the run.
    ``best`` are ids of runs whose lines are shown (best trials and baselines); the next best runs by the objective are
    added up to 10 lines, or up to 20 if more than 10 are given. ``winner`` is the id of the run that is marked and
    comes first; the others follow by their scores. Raises TrackingError if the server does not answer.
    """
    runs = tracker.runs()
    shown = _shown(runs, best, axes, winner)
    _mark(tracker, runs, shown, winner)
    version = tracker.server.version()
    experiment = tracker.server.experiment_id()
    if not _FIRST <= [int(number) for number in re.findall(r"\d+", version)[:2]] < _BELOW:
        return _metric_page(experiment, shown, axes, f"MLflow {version} cannot take a prepared view")
    state = zlib.compress(json.dumps(_state(runs, axes, len(shown))).encode(), 9)
    since = runs[0]["start_ms"] if runs else 0  # Not the present time, so that an unchanged view has the same tag.
    value = {"name": f"LR beside {axes.objective}", "createdAt": since, "updatedAt": since}
    value["state"] = "deflate;" + base64.b64encode(state).decode()
    key = hashlib.sha256(f"{tracker.experiment}\n{_KEY}".encode()).hexdigest()[:32]
    try:
        with tracker.server.writing() as client:
            client.set_experiment_tag(experiment, _TAG + key, json.dumps(value))
    except Refused:
        return _metric_page(experiment, shown, axes, "this MLflow refused the prepared view")
    query = f"viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    return View(f"/#/experiments/{experiment}/runs?{query}", tuple(shown))


def _shown(runs: list[dict[str, Any]], best: Sequence[str], axes: Axes, winner: str | None) -> list[str]:
    """Return the ids of ``best`` and of the next best runs, the winner first, then by score.

    There are 10 or 20 of them, because MLflow's page can show the first 10 or 20 runs.
    """
    by_id = {run["run_id"]: run for run in runs}
    given = list(dict.fromkeys(run_id for run_id in best if run_id in by_id))
    # Confirmation runs come last, because they repeat the schedules of other runs on other seeds.
    rest = sorted(runs, key=lambda run: (run["tags"].get(names.STAGE) == "confirm", -axes.value(run)))
    more = [run["run_id"] for run in rest if run["run_id"] not in given]
    shown = [*given, *more][: 10 if len(given) <= 10 else 20]
    return sorted(shown, key=lambda run_id: (run_id != winner, -axes.value(by_id[run_id])))


def _mark(tracker: Tracker, runs: list[dict[str, Any]], shown: Sequence[str], winner: str | None) -> None:
    """Tag the shown runs with their rank, by which the view sorts, and with a colour by schedule; mark the winner.

    MLflow draws the first runs of the sorted list, in which runs without a rank come last.
    """
    ranks = {run_id: rank for rank, run_id in enumerate(shown, 1)}
    baselines = {_schedule(run) for run in runs if run["tags"].get(names.STAGE) == "baseline"}
    colors: dict[bool, dict[ScheduleParams, str]] = {True: {}, False: {}}  # Keys: whether it is a baseline.
    for run in sorted(runs, key=lambda run: ranks.get(run["run_id"], len(runs) + 1)):
        run_id, tags = run["run_id"], run["tags"]
        marks: dict[str, str] = {names.NAME: run["name"].removeprefix(STAR)}
        if run_id == winner:
            marks = {names.NAME: STAR + marks[names.NAME], names.WINNER: "yes"}
        if run_id in ranks:
            schedule = _schedule(run)
            baseline = schedule in baselines
            color = colors[baseline].setdefault(schedule, names.color(len(colors[baseline]), baseline=baseline))
            marks |= {names.VIEW: f"{ranks[run_id]:03d}", names.COLOR: color}
        for key in {names.VIEW, names.WINNER} & tags.keys() - marks.keys():
            with tracker.server.writing() as client:
                client.delete_tag(run_id, key)
        if changed := {key: value for key, value in marks.items() if tags.get(key) != value}:
            tracker.server.send(run_id, [], {}, changed)


def _schedule(run: dict[str, Any]) -> ScheduleParams:
    """Return the params that runs of one schedule on different seeds have in common."""
    return frozenset((key, value) for key, value in run["params"].items() if key != names.SEED)


def _state(runs: list[dict[str, Any]], axes: Axes, shown: int) -> dict[str, Any]:
    """Return the state of MLflow's page that draws ``axes`` of the first ``shown`` runs."""
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
            selected = {"selectedParams": useful[:MOST], "selectedMetrics": [axes.score]}
            charts.append(_card("PARALLEL", uuid, title, showAllRuns=True, metricSectionId=_WIDE, **selected))
    columns = [f"params.`{param}`" for param in (*axes.searched, *axes.facts)][:COLUMNS]
    # MLflow adds a chart for every other metric, in a section for its prefix; these sections are collapsed.
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
    """Return those of ``params`` that all of ``runs`` have and that have more than one value."""
    values_by_param = {param: [run["params"].get(param) for run in runs] for param in params}
    return [param for param, values in values_by_param.items() if None not in values and len(set(values)) > 1]


def _card(kind: str, uuid: str, title: str, **more: Any) -> dict[str, Any]:
    card = {"type": kind, "uuid": uuid, "metricSectionId": _SECTION, "displayName": title, "runsCountToCompare": 20}
    return card | {"isGenerated": False, "deleted": False} | more


def _line(uuid: str, title: str, metrics: list[str]) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "useGlobalXaxisKey": False, "selectedXAxisMetricKey": "", "xAxisScaleType": "linear"}
    axes |= {"yAxisKey": "metric", "yAxisExpressions": [], "scaleType": "linear", "range": {}, "ignoreOutliers": False}
    smooth = {"lineSmoothness": 0, "useGlobalLineSmoothing": False}
    return _card("LINE", uuid, title, metricKey=metrics[0], selectedMetricKeys=metrics, **axes, **smooth)


def _metric_page(experiment: str, shown: list[str], axes: Axes, note: str) -> View:
    """Return the view on MLflow's metric page, which every version has."""
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
    """A running MLflow server."""

    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End the server and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 15)
        try:
            self.process.wait(10)
        except BaseException as error:  # Also after a second Ctrl-C, because the server would outlive this process.
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


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP at the end of the block.

    A process that is interrupted while ``Popen`` starts another one does not know its pid, so it could not stop it.
    Outside the main thread nothing is changed, because Python handles signals in the main thread only.
    """
    received: list[int] = []
    main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if main_thread else ()
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda signum, frame: received.append(signum))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for signum in received:
            signal.raise_signal(signum)


def serve(uri: str, port: int = 5000, *, log: Path, timeout: float = 180.0) -> Served:
    """Start ``mlflow server`` on the store ``uri`` (``sqlite:///FILE``) and wait until it answers, for some 10 s.

    The server has no login, so it accepts connections of this machine only. ``port`` 0 takes a free port. Raises
    TrackingError if the port is taken, and, with the end of the ``log``, if the server does not answer within
    ``timeout`` seconds.
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
    server = None
    deadline = time.monotonic() + timeout
    try:
        with log.open("ab") as output, signals_deferred():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **_HARDENED},
                start_new_session=True,  # Ctrl-C then interrupts only this process, which calls stop().
            )
            server = Served(f"http://{_HOST}:{port}", process)
        while not answers(server.url):
            if process.poll() is not None or time.monotonic() > deadline:
                end = " | ".join(log.read_text(errors="replace").splitlines()[-3:]) or "it printed nothing"
                raise TrackingError(f"mlflow server on {file} did not come up in {timeout:g} s: {end:.300}; see {log}")
            time.sleep(0.4)
    except BaseException:  # Also after Ctrl-C, because the server would outlive this process.
        if server is not None:
            server.stop()
        raise
    return server
