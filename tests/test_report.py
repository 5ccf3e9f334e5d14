"""The page and the link, on a sweep whose study, tracker and schedules are real and whose mAP curves are invented."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import invented
import pytest

from sweeper import evidence, names, report, schedules, stats
from sweeper.charts import Line
from sweeper.cli import show
from sweeper.config import Sweep
from sweeper.errors import DatabaseError
from sweeper.report.page import Configuration, Page, render
from sweeper.schedules import TimeBase
from sweeper.service import Place, Service
from sweeper.tracking import view


@pytest.fixture(scope="module")
def file(shown_file: Path, shown: Service) -> Path:
    """The page as the command writes it."""
    done = sweeper("report", shown_file, "--store", shown.place.store, "-o", "report.html", cwd=shown_file.parent)
    assert done.stdout.startswith("wrote report.html (0.")
    return shown_file.parent / "report.html"


def sweeper(*arguments: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweeper", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


class Reader(HTMLParser):
    """Ids, links, tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if attributes.get("id") else []
        self.links += [value for key in ("href", "src", "xlink:href") if (value := attributes.get(key))]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def many(count: int, epochs: int = 100) -> Page:
    """A page of ``count`` trials of ``epochs`` epochs."""
    time_base = TimeBase(epochs, 100)
    shown = []
    for number in range(count):
        steps = [10 + number % 40, 60 + number % 30]
        spec = schedules.parse({"family": "cawb", "lr": 0.1, "steps": steps, "step_scale": 0.7, "horizon": "end"}).spec
        trace = schedules.parse(spec).trace(time_base)
        values = invented.curve(trace, number)
        effects = [effect.to_dict() for effect in evidence.effects(values, trace.jumps())]
        shown.append(Configuration(number, f"cawb steps={steps}", trace, [dict(enumerate(values))], effects))
    facts = {"restarts": 2, "drops": 0, "peak": 0.1, "integral": 3.0}
    ranking = tuple(
        stats.Ranked(entry.trial, f"trial {entry.trial}", entry.label, {}, facts, None, 0.4, 1, "search")
        for entry in shown
    )
    answer = stats.Answer(
        winner=None, sentence="no winner yet: <b>one run</b> each", candidates=(), ranking=ranking, baseline=None,
        baselines=(), excluded=(), tried=count, pairs=0, noise=stats.spread([], baselines=[]), detectable=None,
        alpha=0.05, equivalence=0.002, learned=True, failures=stats.failures([]),
    )  # fmt: skip
    cost = {"trained": 10, "reused": 5, "hours": 1.0, "hours_saved": 0.5, "seconds_per_epoch": 9.0}
    restart = evidence.verdict(
        "restart", movement=evidence.Movement(0.9, 0.01, 1.0), gain=evidence.Gain(0.02, 0.01, 0.03, 6)
    )
    controls = [Line("without the restart", shown[0].trace, shown[0].curves[0])] if shown else []
    return Page(
        sweep="many",
        made="2026-01-01",
        epochs=epochs,
        answer=answer,
        counts={"complete": count, "waiting": 0, "running": 0},
        budget=count,
        configurations=shown,
        cost=cost,
        sweep_file="name: many\n",
        identity={"Recipes": "0" * 64},
        verdicts=[(0, {"kind": "restart", "epoch": 10, **restart.to_dict()}, controls)] if shown else [],
        importance={"steps_1": 0.9, "restart_2": 0.1},
        importance_of=count,
    )


def test_a_page_of_fifty_trials_is_small_and_needs_nothing_from_outside() -> None:
    page = render(many(50)).decode()
    assert len(page.encode()) < 3_000_000
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags if tag in ("link", "img", "iframe", "object")] == []
    assert [attrs for tag, attrs in reader.tags if tag == "script"] == [{}]  # inline: it has no address
    assert not re.search(r"fetch|XMLHttpRequest|import|https?:(?!//www.w3.org/2000/svg)", page.partition("<script>")[2])
    assert all(link.startswith("#") for link in reader.links)
    assert "url(http" not in page
    assert "@import" not in page
    assert len(reader.ids) == len(set(reader.ids))
    assert {link[1:] for link in reader.links} <= set(reader.ids)
    charts = [attrs for tag, attrs in reader.tags if tag == "svg"]
    assert len(charts) == 50 + 2 * 2  # every trial; overview and controls for wide and narrow screens
    assert [attrs["style"] for tag, attrs in reader.tags if tag == "i"] == ["width: 90%", "width: 10%"]  # importance
    assert all(chart.get("role") == "img" and len(chart.get("aria-label") or "") > 10 for chart in charts)
    assert "<b>one run</b>" not in page
    assert "unclear: path barrier 0.9" in reader.text
    spec = schedules.parse({"family": "cawb", "lr": 0.1, "steps": [10, 60], "step_scale": 0.7, "horizon": "end"}).spec
    trace = schedules.parse(spec).trace(TimeBase(100, 100))
    effects = evidence.effects(invented.curve(trace, 0), trace.jumps())
    assert len(effects) == 2
    for effect in effects:  # as `sweeper pick` says it
        assert evidence.effect_in_words(effect.to_dict()) in reader.text


def test_a_drop_examines_no_restart() -> None:
    drop = {"epoch": 10, "kind": "drop", **evidence.verdict("drop").to_dict()}
    reader = Reader(render(replace(many(1), verdicts=[(0, drop, [])])).decode())
    assert "Not examined. A dip and a gain" in reader.text
    assert "not a restart" not in reader.text


def test_pick_says_of_how_many_schedules_it_shows_the_jumps(capsys: pytest.CaptureFixture[str]) -> None:
    page = many(7)
    ranking = tuple(
        replace(entry, facts={**entry.facts, "jumps": shown.effects})
        for entry, shown in zip(page.answer.ranking, page.configurations, strict=True)
    )
    show.answer(replace(page.answer, ranking=ranking), "mAP50-95")
    printed = capsys.readouterr().out
    assert "jumps: shown for the first 5 of 7 ranked schedules that jump" in printed
    assert "`sweeper pick --json` have all" in printed
    assert "trial 4, restart" in printed
    assert "trial 5, restart" not in printed
    show.answer(replace(page.answer, ranking=ranking[:5]), "mAP50-95")
    assert "jumps: shown" not in capsys.readouterr().out


def test_pick_and_the_page_say_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    page = many(1)
    answer = replace(page.answer, next_step="sweeper confirm trains the best again")
    show.answer(answer, "mAP50-95")
    assert capsys.readouterr().out.splitlines()[1] == "Next: sweeper confirm trains the best again"
    assert "Next: sweeper confirm trains the best again." in render(replace(page, answer=answer)).decode()
    assert "Next:" not in render(page).decode()


def test_the_page_of_a_sweep_without_a_trial_says_so() -> None:
    reader = Reader(render(many(0)).decode())
    assert "No trial has begun." in reader.text
    assert "Nothing is finished that could be ranked." in reader.text


def test_the_page_says_what_pick_says(file: Path, shown: Service) -> None:
    page = Reader(file.read_text())
    answer = shown.pick().to_dict()
    assert answer["winner"]["name"] == "trial 5"
    assert "Winner: trial 5" in page.text
    rows = shown.study.trials()
    failed = {row.number: row.spec for row in rows}[4]
    for row in [*answer["ranking"], *answer["baselines"]]:
        assert f"{row['score']:.4f}" in page.text
    pairs = answer["winner"]["pairs"]
    assert f"{pairs['mean']:+.4f} [{pairs['low']:+.4f}, {pairs['high']:+.4f}]" in page.text
    assert f"trial 4 ({shown.sweep.label(failed)}, search, seed 0): " in page.text
    assert "not finite" in page.text
    reused = sum((row.facts.epochs_reused or 0) for row in rows)
    trained = sum(len(row.curve) for row in rows) - reused
    assert (trained, reused) == (22 * 16 + 6 + 9 - 4, 4)  # one failed after 6, one is at 9; an epoch takes a minute
    assert "1 trial is not finished" in page.text
    for candidate in answer["candidates"]:
        assert candidate["over"].keys() == {"yolo_linear", "yolo_cosine"}
        assert f"{candidate['title']} : {candidate['differences']}" in page.text
    assert "was not examined (sweeper confirm --escape --trial 5)" in page.text
    hours = (trained + 0.5 * (16 - 4)) / 60  # an epoch of the trial that shared takes a minute and a half
    assert f"trained {trained} {hours:.4g} saved by sharing {reused} {reused / 40:.4g}" in page.text
    assert shown.status().hours_saved == pytest.approx(reused / 40), "status says what the page says"
    assert shown.dataset.digest in page.text


def test_the_sweep_file_on_the_page_is_the_sweep(shown: Service, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(report.sweep_file(shown.sweep))
    assert Sweep.load(tmp_path / "again.yaml") == shown.sweep


def tag_of(shown: Service, tags: dict[str, str], key: str) -> str:
    """Tag ``key`` of the run in MLflow that has these tags."""
    run = shown.tracker.server.find(tags)
    assert run is not None
    return str(run["tags"][key])


def test_the_page_is_kept_in_mlflow(file: Path, shown: Service) -> None:
    parent = shown.tracker.sweep()
    assert shown.tracker.server.has_file(parent, "report.html")
    stored = list((shown.place.folder / "mlartifacts").rglob("report.html"))
    assert [path.read_bytes() for path in stored] == [file.read_bytes()]
    answer = shown.pick()
    assert tag_of(shown, {names.KIND: "sweep"}, names.ANSWER) == answer.sentence
    for candidate in answer.candidates:
        trial = {names.KIND: "trial", names.TRIAL: str(candidate.trial)}
        assert tag_of(shown, trial, names.DIFFERENCE) == candidate.differences
    report.tell(shown, replace(answer, sentence="no winner"))  # a new answer leaves the page as it is
    assert tag_of(shown, {names.KIND: "sweep"}, names.ANSWER) == "no winner"
    assert shown.tracker.server.has_file(parent, "report.html")
    report.tell(shown, answer)


def test_a_sweep_that_was_never_launched_has_no_page(shown_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="launch it first"):
        report.make(Service(Sweep.load(shown_file), Place(str(tmp_path))))


CONTRAST = """
const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b }
const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor
    if (c && c !== 'rgba(0, 0, 0, 0)') return c } return 'rgb(255, 255, 255)' }
return [...document.querySelectorAll("body *")]
    .filter(e => !["style", "script"].includes(e.tagName.toLowerCase()))
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .map(e => { const s = getComputedStyle(e), f = light(e.closest('svg') ? s.fill : s.color), b = light(behind(e))
        return [(Math.max(f, b) + 0.05) / (Math.min(f, b) + 0.05), e.textContent.slice(0, 40)] })
    .filter(([ratio]) => ratio < 4.5)
"""


def test_in_a_browser_the_page_renders_and_fetches_nothing(file: Path) -> None:
    with browser.chromium() as page:
        page.get(file.as_uri())
        sizes = page.execute_script(
            "return [...document.querySelectorAll('svg')].filter(e => e.clientWidth).map(e => [e.clientWidth, "
            "e.clientHeight, e.querySelectorAll('path').length])"
        )
        assert len(sizes) == 8 + 2  # every schedule; intervals and overview; too few trials for importance
        assert all(width > 250 and height > 100 and paths > 5 for width, height, paths in sizes), sizes
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert page.execute_script(CONTRAST) == []
        asked = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
        assert all(url.startswith(("file:", "data:")) for url in urls), urls
        assert page.get_log("browser") == []
        browser.screenshot(page, "report")
        page.find_element("link text", "trial 5").click()
        assert page.execute_script("return document.querySelector('figure:target h3').innerText").startswith("trial 5")
        paper = page.execute_cdp_cmd("Page.printToPDF", {})
        assert len(paper["data"]) > 20_000


VISIBLE = "return [...document.querySelectorAll('%s')].filter(e => e.clientWidth).length"
POINT = """
const svg = document.querySelector("#trial-5 svg"), box = document.getElementById("cursor"), chart = arguments[0];
const frame = svg.getBoundingClientRect(), x = chart.left + (chart.right - chart.left) * arguments[1] / chart.epochs;
svg.dispatchEvent(new PointerEvent("pointermove", {clientX: frame.left + x * frame.width, clientY: frame.top + 20}));
return [box.hidden, box.innerText];
"""


def test_the_values_at_the_cursor_are_the_run_s(file: Path, shown: Service) -> None:
    row = next(row for row in shown.study.trials() if row.number == 5)
    rates = shown.trace(row.schedule or {})
    with browser.chromium() as page:
        page.get(file.as_uri())
        chart = json.loads(page.find_element("css selector", "#trial-5 svg").get_attribute("data-cursor"))
        for epoch in (3, 9, 16):
            hidden, text = page.execute_script(POINT, chart, epoch)
            assert not hidden
            assert f"after {epoch}" in text
            assert f"{row.values[epoch - 1]:.4f}" in text
        _, text = page.execute_script(POINT, chart, 4)
        assert f"{float(rates.lr[4 * rates.steps_per_epoch]):.3g}" in text
        assert page.execute_script(POINT, chart, -1)[0]  # beside the axes there is no value


def test_on_a_dark_screen_and_on_a_telephone_the_page_can_be_read(file: Path) -> None:
    with browser.chromium() as page:
        page.get(file.as_uri())
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
        assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
        assert page.execute_script(CONTRAST) == []
        browser.screenshot(page, "report-dark")
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        assert (page.execute_script(VISIBLE % ".wide svg"), page.execute_script(VISIBLE % ".narrow svg")) == (2, 0)
        telephone = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", telephone)
        assert page.execute_script("return document.documentElement.scrollWidth") == 390  # only tables scroll
        ends = "[...document.querySelectorAll('#ranking th')].map(e => [e.innerText, e.getBoundingClientRect().right])"
        assert dict(page.execute_script(f"return {ends}"))["over baseline"] < 390  # what decides is seen at once
        assert (page.execute_script(VISIBLE % ".wide svg"), page.execute_script(VISIBLE % ".narrow svg")) == (0, 2)
        sizes = page.execute_script(
            "return [...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)"
            ".filter(height => height > 0)"
        )
        assert min(sizes) > 8  # pixels
        browser.screenshot(page, "report-telephone")


@pytest.fixture
def link(shown_file: Path, shown: Service) -> Any:
    """``sweeper ui`` as a person starts it: the process, and the one line that it prints."""
    command = [sys.executable, "-m", "sweeper", "ui", str(shown_file), "--store", shown.place.store, "--port", "0"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout
    try:
        yield started, started.stdout.readline().strip()
    finally:
        started.terminate()  # kill would leave its server
        started.communicate(timeout=60)


LINES = """return [...document.querySelectorAll('.js-plotly-plot')].filter(
    plot => plot.data.every(d => d.type !== 'bar')).map(plot =>
    new Set(plot.data.filter(d => d.y.length > 1).map(d => d.name)).size)"""


def test_ui_prints_one_link_that_shows_both_charts(link: Any, shown_file: Path, shown: Service) -> None:
    process, url = link
    address = urllib.parse.urlsplit(url)
    with browser.chromium() as page:
        page.get(url)
        deadline = time.monotonic() + 90
        while len(drawn := page.execute_script(LINES)) < 3 or not all(drawn):
            assert time.monotonic() < deadline, (drawn, browser.screenshot(page, "failed"))
            time.sleep(0.3)
        assert drawn == [10, 10, 10]
        text = page.find_element("tag name", "body").text
        assert "001 yolo_cosine" in text
        assert "005 cawb" in text
    # who asks for it again gets the link of the server that is there already
    again = sweeper("ui", shown_file, "--store", shown.place.store, "--port", address.port, cwd=shown_file.parent)
    assert again.stdout.strip() == url
    assert "starting" not in again.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert not view.answers(f"http://{address.netloc}")


def test_ui_without_a_launched_sweep_is_one_line(shown_file: Path, tmp_path: Path) -> None:
    done = sweeper("ui", shown_file, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert re.match(r"sweeper: .*launch it first\n$", done.stderr), done.stderr
    assert os.listdir(tmp_path) == []
