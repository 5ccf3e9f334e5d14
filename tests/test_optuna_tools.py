"""To Optuna's own tools the study is a plain study: its command line and its dashboard work on it as it is."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import browser
import pytest

from sweeper.service import Service

OPTUNA = str(Path(sys.executable).with_name("optuna"))


def test_the_optuna_command_line_reads_the_study(shown: Service) -> None:
    command = [OPTUNA, "trials", "--study-name", "shown", "--storage", shown.place.database, "-f", "json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows = shown.study.trials()
    assert [trial["number"] for trial in listed] == [row.number for row in rows]
    assert [trial["state"] for trial in listed] == [row.state for row in rows]
    assert [trial.get("value") for trial in listed] == [row.score for row in rows]
    assert [trial["params"] for trial in listed] == [row.params for row in rows]
    command = [OPTUNA, "best-trial", "--study-name", "shown", "--storage", shown.place.database, "-f", "json"]
    best = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert best["number"] == max((row for row in rows if row.score is not None), key=lambda row: row.score or 0).number
    assert rows[best["number"]].stage == "confirm", "one lucky seed: the docs say what to use instead"
    winner = shown.pick().winner
    assert winner is not None
    assert winner.trial != best["number"]
    assert rows[winner.trial].stage == "search"
    docs = (Path(__file__).resolve().parents[1] / "docs" / "seeing.md").read_text()
    assert not [line for line in docs.splitlines() if line.startswith("optuna best-trial")]


def test_optuna_dashboard_shows_the_study(shown: Service) -> None:
    dashboard = shutil.which("optuna-dashboard", path=str(Path(sys.executable).parent))
    if dashboard is None:
        pytest.skip("needs optuna-dashboard: pip install optuna-dashboard")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    serving = subprocess.Popen([dashboard, shown.place.database, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        studies = json.loads(_get(f"{address}/api/studies"))["study_summaries"]
        assert [study["study_name"] for study in studies] == ["shown"]
        with browser.chromium() as page:
            page.get(f"{address}/dashboard/studies/{studies[0]['study_id']}/trials")
            deadline = time.monotonic() + 60
            while "Trial 7" not in (text := page.find_element("tag name", "body").text):
                assert time.monotonic() < deadline, (text, browser.screenshot(page, "failed"))
                time.sleep(0.3)
            browser.screenshot(page, "optuna-dashboard")
    finally:
        serving.kill()
        serving.wait()


def _get(url: str) -> bytes:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            assert time.monotonic() < deadline, url
            time.sleep(0.3)
