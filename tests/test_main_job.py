"""The main job as a person runs it: the real commands in real processes, on a small data set made from real digits."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from tiny import EPOCHS, sweeper
from trials import history

from sweeper import names
from sweeper.tracking import Tracker, view


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep file beside 24 + 8 images of the digits."""
    return tiny.write(tmp_path_factory.mktemp("tiny"))


def finals(folder: Path, name: str = "tiny") -> dict[str, dict[str, Any]]:
    """trial -> what its MLflow run says, every point checked to be there exactly once."""
    store = folder / "sweeper_store"
    tracker = Tracker(f"sqlite:///{store / 'mlflow.db'}", name, store / "journals")
    found = {}
    for run in tracker.runs():
        assert run["status"] == "FINISHED", run
        for key in ("curve/lr", "curve/mAP50-95"):
            steps = [step for step, _, _ in history(tracker.server, run["run_id"], key)]
            assert steps == list(range(EPOCHS)), (run["name"], key)
        found[run["tags"]["sweeper.trial"]] = run
    return found


@pytest.fixture(scope="module")
def undisturbed(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``sweeper run`` went through."""
    folder = tmp_path_factory.mktemp("undisturbed")
    sweeper("run", sweep, cwd=folder)
    return folder


def test_one_run_gives_every_trial_its_run_with_trace_curves_and_tags(sweep: Path, undisturbed: Path) -> None:
    runs = finals(undisturbed)
    assert sorted(runs) == ["0", "1", "2", "3"]
    for run in runs.values():
        assert {"sweeper.recipe", "sweeper.state_digest", "sweeper.trial"} <= run["tags"].keys()
        assert {"family", "lr", "trace/peak", "trace/final", "trace/restarts"} <= run["params"].keys()
    assert Counter(run["tags"]["sweeper.stage"] for run in runs.values()) == {"baseline": 1, "search": 3}
    artifacts = {path.name for path in (undisturbed / "sweeper_store" / "mlartifacts").rglob("*") if path.is_file()}
    assert {"lr.parquet", "lr.png", "ema.pt"} <= artifacts


def test_status_and_pick_speak_json(sweep: Path, undisturbed: Path) -> None:
    status = json.loads(sweeper("status", sweep, "--json", cwd=undisturbed).stdout)
    assert status["counts"]["complete"] == status["budget"] == 4
    picked = json.loads(sweeper("pick", sweep, "--json", cwd=undisturbed).stdout)
    assert picked["winner"] is None  # one run each is no evidence
    assert {"trial", "params", "mAP50-95", "run_id"} <= picked["ranking"][0].keys()
    assert picked["baseline"]["name"] == "yolo_linear"
    runs = finals(undisturbed)
    by_id = {run["run_id"]: run for run in runs.values()}
    for entry in picked["ranking"]:
        run = by_id[entry["run_id"]]
        assert yaml.safe_load(run["params"]["steps"]) == entry["params"]["steps"]
        assert run["name"] == f"{entry['trial']:03d} {entry['label']}"


def test_no_epoch_is_trained_twice_and_shared_beginnings_once(sweep: Path, undisturbed: Path) -> None:
    """Trials that begin alike train the beginning once; equal schedules cost nothing the second time."""
    status = json.loads(sweeper("status", sweep, "--json", cwd=undisturbed).stdout)
    epochs = status["epochs"]
    assert epochs["trained"] + epochs["reused"] == 4 * EPOCHS
    assert epochs["reused"] >= EPOCHS  # three CAWB trials share at least warm-up and first epochs
    assert status["store"]["count"] == epochs["trained"]


def test_running_again_trains_nothing(sweep: Path, undisturbed: Path) -> None:
    before = sweeper("status", sweep, "--json", cwd=undisturbed).stdout
    sweeper("run", sweep, cwd=undisturbed)
    after = sweeper("status", sweep, "--json", cwd=undisturbed).stdout
    assert json.loads(before)["trials"] == json.loads(after)["trials"]
    assert json.loads(before)["store"]["count"] == json.loads(after)["store"]["count"]


def test_an_edited_sweep_is_refused_and_says_what_changed(sweep: Path, undisturbed: Path) -> None:
    done = sweeper("run", sweep, "batch=4", cwd=undisturbed, check=False)
    assert done.returncode == 1
    assert "batch: 8 -> 4" in done.stderr
    assert done.stderr.count("\n") == 1


def test_killed_and_interrupted_it_ends_where_the_undisturbed_one_did(
    sweep: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """kill -9 of a worker, then Ctrl-C of the whole, then the same command again: nobody can tell."""
    command = [sys.executable, "-m", "sweeper", "run", str(sweep), "lease_s=3"]
    run = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        index = tmp_path / "sweeper_store" / "snapshots"
        wait(lambda: len(list(index.glob("??/*"))) >= 1, run)
        killed = tiny.children(run.pid)
        assert killed
        os.kill(killed[0], signal.SIGKILL)
        stored = len(list(index.glob("??/*")))
        wait(lambda: len(list(index.glob("??/*"))) > stored, run)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == 130
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    sweeper("run", sweep, "lease_s=3", cwd=tmp_path)
    disturbed, calm = finals(tmp_path), finals(undisturbed)
    assert {key: run["tags"]["sweeper.state_digest"] for key, run in disturbed.items()} == {
        key: run["tags"]["sweeper.state_digest"] for key, run in calm.items()
    }
    assert {key: run["metrics"]["final/mAP50-95"] for key, run in disturbed.items()} == {
        key: run["metrics"]["final/mAP50-95"] for key, run in calm.items()
    }


def wait(condition: Any, run: subprocess.Popen[bytes], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_store_that_is_moved_goes_on_where_it_is(sweep: Path, tmp_path: Path) -> None:
    """Interrupted, moved and run again: nothing is trained twice, every file is found, nothing names the old place."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    command = [sys.executable, "-m", "sweeper", "run", str(sweep), "trials=1", "workers=1"]
    run = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        wait(lambda: len(list((here / "sweeper_store" / "snapshots").glob("??/*"))) > EPOCHS, run)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == 130
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    stored = len(list((here / "sweeper_store" / "snapshots").glob("??/*")))
    assert stored < 2 * EPOCHS
    moved = 1000 * time.time()
    (here / "sweeper_store").rename(there / "sweeper_store")
    before = json.loads(sweeper("status", sweep, "--json", cwd=there).stdout)
    assert (before["counts"]["complete"], before["store"]["count"]) == (1, stored)
    often = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"}
    sweeper("run", sweep, "trials=1", "workers=1", "system_metrics=true", cwd=there, **often)
    runs = finals(there)
    assert sorted(runs) == ["0", "1"]
    assert runs["1"]["metrics"][f"{names.SYSTEM}system_memory_usage_megabytes"] > 0
    store = there / "sweeper_store"
    tracker = Tracker(f"sqlite:///{store / 'mlflow.db'}", "tiny", store / "journals")
    times = {when for run in runs.values() for _, _, when in history(tracker.server, run["run_id"], "curve/lr")}
    assert len([when for when in times if when < moved]) == stored
    assert len(times) == json.loads(sweeper("status", sweep, "--json", cwd=there).stdout)["store"]["count"]
    sweeper("pick", sweep, cwd=there)
    sweeper("report", sweep, cwd=there)
    sweeper("export", sweep, "--trial", "0", "-o", there / "model", cwd=there)  # trained before the move
    assert {"weights.pt", "schedule.yaml"} <= {path.name for path in (there / "model").iterdir()}
    served = view.serve(tracker.server.uri, port=0, log=tmp_path / "ui.log")
    try:
        for number in ("0", "1"):
            query = urllib.parse.urlencode({"run_id": runs[number]["run_id"], "path": names.TRACE_PLOT})
            with urllib.request.urlopen(f"{served.url}/get-artifact?{query}", timeout=60) as answer:
                assert answer.read() == tracker.server.fetch(runs[number]["run_id"], names.TRACE_PLOT)
    finally:
        served.stop()
    assert not list(here.iterdir())
    assert str(here).encode() not in (store / "sweeper.db").read_bytes()
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as database:
        places = [uri for (uri,) in database.execute("SELECT artifact_uri FROM runs")]
    assert all(uri.startswith("mlflow-artifacts:/tiny/") for uri in places), places


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trails=3"], "did you mean 'trials'"),
        (["data=nowhere/data.yaml"], "nowhere/data.yaml"),
        (["model=yolo99n.yaml"], "yolo99n.yaml"),
        (["search.decay=cosin"], "cosin"),
        (["search.step_scale=0"], "step_scale"),
        (["device=7"], "device 7"),
        (["--database-url", "postgresql://nobody@127.0.0.1:1/none"], "127.0.0.1"),
        (["--tracking-uri", "http://127.0.0.1:1"], "127.0.0.1"),
        (["--store", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(
    sweep: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    done = sweeper("run", sweep, *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert says in done.stderr
    assert done.stderr.startswith("sweeper: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.rglob("*-??????*")) or not (tmp_path / "sweeper_store" / "snapshots" / "00").exists()
