"""One link shows learning rate beside mAP without a click, in a real browser on a real MLflow."""

import base64
import http.server
import json
import math
import threading
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest

from sweeper import names
from sweeper.errors import TrackingError
from sweeper.tracking import Tracker, view

T0 = 1_795_000_000_000  # ms since 1970
TRIALS, EPOCHS = 13, 12
LINES = """return [...document.querySelectorAll('.js-plotly-plot')].filter(
    plot => plot.data.every(d => d.type !== 'bar')).map(plot => ({
    lines: new Set(plot.data.filter(d => d.y.length > 1).map(d => d.name)).size,
    top: plot.getBoundingClientRect().top,
}))"""
BARS = """return [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)
    .filter(d => d.type === 'bar').flatMap(d => [...d.x])"""
AXES = "return [...document.querySelectorAll('.parcoords text.label')].map(label => label.textContent)"


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    """Two baselines and eleven CAWB trials, the first of which lacks a parameter of the others."""
    folder = tmp_path_factory.mktemp("view")
    with Tracker(f"sqlite:///{folder}/mlflow.db", "digits", folder / "journals") as tracker:
        tracker.sweep(
            {"epochs": EPOCHS}, artifacts={"hello.html": b"<h1>hello</h1><script>document.body.append('ran')</script>"}
        )
        for number in range(TRIALS):
            family = ("yolo_linear", "yolo_cosine")[number] if number < 2 else "cawb"
            restarts = 0 if number < 2 else number % 3
            params = {"peak": 0.02, "restarts": restarts, "step_scale": 0.3 + 0.1 * (number % 5)}
            if number > 1:
                params["epoch_scale"] = number
            tags = {names.FAMILY: family, names.STAGE: "baseline" if number < 2 else "search"}
            log = tracker.trial(number, name=f"{family} {number}", tags=tags, params=params)
            log.series(names.TRACE, {step: 0.02 * step / 240 for step in range(240)})
            for epoch in range(EPOCHS):
                relative = 0.5 + 0.5 * math.cos(math.pi * (epoch / EPOCHS * (1 + restarts) % 1))
                quality = (0.4 + 0.01 * number) * (1 - math.exp(-epoch / 3))
                row = {"curve/lr": 0.02 * relative, "curve/lr_rel": relative, "curve/mAP50-95": quality}
                log.epoch(epoch, row | {"curve/mAP50": quality, "train/box": 1.0, "val/box": 1.0}, T0 + 4000 * epoch)
            log.epoch(EPOCHS - 1, {"final/mAP50-95": 0.4 + 0.01 * number}, T0 + 4000 * EPOCHS)
            log.finish("FINISHED")
        assert tracker.drain(60) == 0
        yield tracker


@pytest.fixture(scope="session")
def served(sweep: Tracker) -> Iterator[view.Served]:
    server = view.serve(sweep.server.uri, port=0, log=sweep.folder / "ui.log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def page() -> Iterator:  # type: ignore[type-arg]
    with browser.chromium() as page:
        page.execute_cdp_cmd(  # MLflow's assistant panel opens by itself at the first visit; not in the pictures
            "Page.addScriptToEvaluateOnNewDocument",
            {"source": "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"},
        )
        yield page


def axes(*facts: str) -> view.Axes:
    return view.Axes("mAP50-95", "curve/mAP50-95", facts)


def baselines(tracker: Tracker) -> list[str]:
    return [run["run_id"] for run in tracker.runs()[:2]]


def plots(page, url: str, number: int) -> list[dict[str, int]]:  # type: ignore[no-untyped-def]
    """The line charts at ``url`` once ``number`` of them are drawn with their data."""
    page.get("about:blank")  # else only the part behind # changes, and the old page stays for a moment
    page.get(url)
    deadline = time.monotonic() + 60
    while True:
        drawn = page.execute_script(LINES)
        if len(drawn) >= number and all(plot["lines"] for plot in drawn):
            return drawn  # type: ignore[no-any-return]
        if time.monotonic() > deadline:
            raise AssertionError(f"{drawn}; see {browser.screenshot(page, 'failed')}")
        time.sleep(0.3)


def requested(page) -> set[str]:  # type: ignore[no-untyped-def]
    """Hosts that the page asked for anything."""
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {urllib.parse.urlsplit(url).netloc for url in urls if url.startswith("http")}


def test_the_link_shows_both_charts_without_a_click(page, sweep: Tracker, served: view.Served) -> None:  # type: ignore[no-untyped-def]
    prepared = view.publish(sweep, axes("peak", "restarts", "step_scale", "epoch_scale"), baselines(sweep))
    assert prepared.note is None
    rate, quality, both = plots(page, prepared.link(served.url), 3)
    assert rate["lines"] == quality["lines"] == 10
    assert both["lines"] == 10  # a name per run: its learning rate and its mAP
    assert rate["top"] == quality["top"] < 700
    assert page.execute_script(AXES) == ["restarts", "step_scale", "final/mAP50-95"]  # what all have and what varies
    scores = page.execute_script(BARS)[::-1]  # Plotly draws the first bar at the bottom
    assert scores == pytest.approx([0.52, 0.51, 0.50, 0.49, 0.48, 0.47, 0.46, 0.45, 0.41, 0.40])
    text = page.find_element("tag name", "body").text
    for name in ["yolo_linear 0", "yolo_cosine 1", "cawb 12", "cawb 5"]:
        assert name in text
    assert requested(page) == {urllib.parse.urlsplit(served.url).netloc}
    browser.screenshot(page, "view")


def test_publishing_again_updates_the_same_view(page, sweep: Tracker, served: view.Served) -> None:  # type: ignore[no-untyped-def]
    def stored() -> dict[str, str]:
        tags = sweep.server.client().get_experiment(sweep.server.experiment_id()).tags
        return {key: value for key, value in tags.items() if key.startswith("mlflow.sharedViewState.")}

    view.publish(sweep, axes("restarts"), baselines(sweep))
    ((key, first),) = stored().items()
    view.publish(sweep, axes("restarts"), baselines(sweep))
    assert stored() == {key: first}
    many = [run["run_id"] for run in sweep.runs()[:11]]
    prepared = view.publish(sweep, axes("restarts", "step_scale"), many)
    ((again, second),) = stored().items()
    assert again == key
    assert second != first
    assert json.loads(second)["createdAt"] == json.loads(first)["createdAt"]
    assert [plot["lines"] for plot in plots(page, prepared.link(served.url), 3)] == [TRIALS] * 3
    view.publish(sweep, axes("restarts"), baselines(sweep))
    places = [run["tags"].get(names.VIEW) for run in sweep.runs()]
    assert places[:2] == ["010", "009"]  # the baselines, which have the lowest scores
    assert sorted(place for place in places if place) == [f"{i:03d}" for i in range(1, 11)]


def test_the_winner_stands_first_and_is_marked_until_another_wins(sweep: Tracker) -> None:
    runs = [run["run_id"] for run in sweep.runs()]
    for number in (5, 7):
        prepared = view.publish(sweep, axes("restarts"), [runs[0], runs[number]], runs[number])
        assert prepared.runs[0] == runs[number]
        now = sweep.runs()
        assert [run["run_id"] for run in now if names.WINNER in run["tags"]] == [runs[number]]
        assert [run["name"] for run in now if run["name"].startswith("★")] == [f"★ cawb {number}"]
    view.publish(sweep, axes("restarts"), baselines(sweep))
    assert not [run for run in sweep.runs() if names.WINNER in run["tags"] or run["name"].startswith("★")]


def test_the_best_few_schedules_differ_in_colour_and_the_baselines_are_grey(sweep: Tracker) -> None:
    prepared = view.publish(sweep, axes("restarts"), baselines(sweep))
    runs = {run["run_id"]: run for run in sweep.runs()}
    colors = [runs[run_id]["tags"][names.COLOR] for run_id in prepared.runs]
    assert len(set(colors[:6])) == 6
    assert len({*colors[6:8]}) == 1
    greys = [color for color in colors if len({color[1:3], color[3:5], color[5:7]}) == 1]
    assert greys == colors[8:]
    assert len(set(greys)) == 2


def test_a_server_that_cannot_take_the_view_gets_a_plain_page(
    page, sweep: Tracker, served: view.Served, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    class OldMLflow(http.server.BaseHTTPRequestHandler):
        """The real server, but for what it says of its version."""

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            request = urllib.request.Request(
                served.url + self.path,
                data=self.rfile.read(length) if length else None,
                headers={"Content-Type": "application/json"},
                method=self.command,
            )
            if self.path == "/version":
                body = b"2.22.1"
            else:
                with urllib.request.urlopen(request) as answer:
                    body = answer.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OldMLflow) as old:
        threading.Thread(target=old.serve_forever, daemon=True).start()
        tracker = Tracker(f"http://127.0.0.1:{old.server_port}", "digits", tmp_path)
        prepared = view.publish(tracker, axes("restarts"), baselines(sweep))
        old.shutdown()
    assert prepared.note == "MLflow 2.22.1 cannot take a prepared view: this is its plain metric page"
    (plot,) = plots(page, prepared.link(served.url), 1)
    assert plot["lines"] == 10
    browser.screenshot(page, "plain")


def test_an_html_artifact_runs_in_the_page(page, sweep: Tracker, served: view.Served) -> None:  # type: ignore[no-untyped-def]
    page.get(f"{served.url}/#/experiments/{sweep.server.experiment_id()}/runs/{sweep.sweep()}/artifacts/hello.html")
    deadline = time.monotonic() + 30
    while not (frames := page.find_elements("css selector", "iframe")):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    page.switch_to.frame(frames[0])
    assert "ran" in page.find_element("tag name", "body").text
    page.switch_to.default_content()


def decoded(tracker: Tracker) -> dict[str, Any]:
    """The state of the prepared view, as MLflow reads it."""
    tags = tracker.server.client().get_experiment(tracker.server.experiment_id()).tags
    (value,) = [value for key, value in tags.items() if key.startswith("mlflow.sharedViewState.")]
    state = json.loads(value)["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(state)))  # type: ignore[no-any-return]


def test_the_view_is_of_the_objective_and_of_what_was_searched(tmp_path: Path, sweep: Tracker) -> None:
    """The best by AP are the worst by mAP; a baseline lacks what was searched."""
    with Tracker(sweep.server.uri, "by-ap", tmp_path) as tracker:
        for number in range(14):
            family = "cawb" if number else "yolo_linear"
            own = {"steps": f"[{number}]", "step_scale": "0.7"} if number else {}
            log = tracker.trial(number, tags={names.FAMILY: family}, params={"trace/restarts": number % 3, **own})
            ap = 1 - 0.05 * number
            log.epoch(0, {"curve/lr": 0.1, "curve/lr_rel": 1.0, "curve/mAP50-95": 0.1 * number, "coco/AP": ap})
            log.epoch(0, {"final/AP": ap})
            log.finish("FINISHED")
        assert tracker.drain(60) == 0
        shown = view.Axes("AP", "coco/AP", ["trace/restarts"], "cawb", ["steps", "step_scale"])
        prepared = view.publish(tracker, shown)
        by_number = {run["run_id"]: int(run["tags"][names.TRIAL]) for run in tracker.runs()}
        assert [by_number[run_id] for run_id in prepared.runs] == list(range(10))
        state = decoded(tracker)
        charts = {chart["displayName"]: chart for chart in state["compareRunCharts"]}
        assert charts["AP"]["selectedMetricKeys"] == ["coco/AP"]
        assert charts["Learning rate (of its peak) over AP"]["selectedMetricKeys"] == ["curve/lr_rel", "coco/AP"]
        searched = charts["What was searched (cawb) and AP"]
        assert searched["selectedParams"] == ["steps"]  # the other one never varies
        assert searched["selectedMetrics"] == ["final/AP"]
        assert charts["All schedules and AP"]["selectedParams"] == ["trace/restarts"]
        columns = {section["uuid"]: section.get("columns") for section in state["compareRunSections"]}
        assert columns[searched["metricSectionId"]] == 1  # axes beside each other need the page's width
        columns = ["metrics.`final/AP`", "params.`steps`", "params.`step_scale`", "params.`trace/restarts`"]
        assert state["selectedColumns"] == columns
        assert "mAP" not in json.dumps(state)


def test_a_view_without_parameters_or_trials(tmp_path: Path, sweep: Tracker) -> None:
    empty = Tracker(sweep.server.uri, "empty", tmp_path)
    prepared = view.publish(empty, axes())
    assert prepared.runs == ()
    assert prepared.note is None


def test_a_server_is_not_started_where_another_program_is(served: view.Served, tmp_path: Path) -> None:
    port = urllib.parse.urlsplit(served.url).port
    assert port
    with pytest.raises(TrackingError, match="taken by another program"):
        view.serve("sqlite:///x.db", port, log=tmp_path / "log")


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database" * 100)
    with pytest.raises(TrackingError, match="not a database") as caught:
        view.serve(f"sqlite:///{tmp_path}/mlflow.db", port=0, log=tmp_path / "ui.log")
    assert "\n" not in str(caught.value)
