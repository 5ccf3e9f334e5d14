"""What workers outlive: real faults of real trainings, found by the worker, recorded, retried within limits."""

import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
from trials import history

from sweeper import database
from sweeper.study import Study, Trial
from sweeper.tracking import Tracker

LR = 0.02


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "sweeper_store"


def open_study(place: Path) -> Study:
    return Study.open(database.open(place / "sweeper.db"), "tiny")


def tracking(place: Path) -> Tracker:
    return Tracker(f"sqlite:///{place / 'mlflow.db'}", "tiny", place / "journals")


def runs(place: Path) -> dict[int, dict[str, Any]]:
    return {int(run["tags"]["sweeper.trial"]): run for run in tracking(place).runs()}


def points(place: Path, run: dict[str, Any]) -> list[int]:
    return [step for step, _, _ in history(tracking(place).server, run["run_id"], "curve/mAP50-95")]


def start(sweep: Path, folder: Path, *arguments: object) -> "subprocess.Popen[bytes]":
    with (folder / "worker.log").open("ab") as log:
        return subprocess.Popen(
            tiny.command("worker", sweep, "--launch", *arguments), cwd=folder, stdout=log, stderr=log
        )


def rows(study: Study) -> dict[int, Trial]:
    return {row.number: row for row in study.trials()}


def trainings(worker: int) -> list[int]:
    """The training processes of ``worker``: one, or none while it is being replaced."""

    def is_training(pid: int) -> bool:
        try:
            return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it ended since it was listed
            return False

    return [pid for pid in tiny.children(worker) if is_training(pid)]


def training(worker: int, study: Study, number: int) -> int:
    """The training process of ``worker`` once it has trained an epoch of trial ``number`` and is in the next."""

    def child() -> list[int]:
        return trainings(worker) if len(rows(study)[number].values) >= 1 and at(study) == number else []

    return int(tiny.wait(child)[0])


def at(study: Study) -> int | None:
    return study.workers()[0].number


@pytest.mark.slow  # a minute of timing between processes: `make drill` runs it
def test_faults_of_trainings_are_told_apart_and_never_stop_the_worker(tmp_path: Path, place: Path) -> None:
    """NaN fails its trial; a segmentation fault, a hang and a want of memory get another attempt; the limit holds."""
    baselines = [
        {"family": "constant", "lr": 1e6},
        *({"family": "constant", "lr": LR * (1 + number / 10)} for number in range(4)),
    ]
    sweep = tiny.write(tmp_path, trials=0, baselines=baselines, attempts=2, stall_s=30, epochs=10)
    worker = start(sweep, tmp_path)
    try:
        tiny.wait(lambda: (place / "sweeper.db").exists() and Study.all(database.open(place / "sweeper.db"), ["tiny"]))
        study = open_study(place)
        os.kill(training(worker.pid, study, 1), signal.SIGSEGV)
        os.kill(training(worker.pid, study, 2), signal.SIGSTOP)
        child = training(worker.pid, study, 3)
        resource.prlimit(child, resource.RLIMIT_AS, (1, 1))  # not a byte more
        os.kill(training(worker.pid, study, 4), signal.SIGSEGV)
        tiny.wait(lambda: len(rows(study)[4].reasons) == 1)
        # The worker then continues with trials 1 to 3. The second attempt at trial 4 must end before an epoch, because
        # the limit counts attempts in a row that finish none. Heartbeats come too late for that, so the log is read.
        tiny.wait(lambda: (tmp_path / "worker.log").read_text().count("trial 4: constant") == 2)
        (child,) = trainings(worker.pid)
        os.kill(child, signal.SIGSEGV)
        assert worker.wait(300) == 0, (tmp_path / "worker.log").read_text()
    finally:
        worker.kill()
    found, told = rows(study), runs(place)
    assert [found[number].state for number in range(5)] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    assert found[0].reasons[0].startswith("not finite: ")
    assert found[1].reasons[0].startswith("crashed: the training process ended with signal SIGSEGV")
    assert "Current thread" in found[1].reasons[0]  # the last lines of its log: where it was
    assert found[2].reasons[0].startswith("hung: no batch was finished in 30 s")
    assert found[3].reasons[0].startswith(("out of memory: ", "crashed: "))
    assert len(found[4].reasons) == 2
    assert [told[number]["status"] for number in range(5)] == [
        *("FAILED", "FINISHED", "FINISHED", "FINISHED", "FAILED"),
    ]
    for number in (0, 4):
        assert told[number]["tags"]["sweeper.reason"] == found[number].reasons[-1]
    for number in (1, 2, 3):
        assert told[number]["tags"]["sweeper.reason.1"] == found[number].reasons[0]
        assert points(place, told[number]) == list(range(10))


@pytest.mark.slow
def test_sigterm_gives_the_trial_back_and_a_frozen_worker_wakes_to_write_nothing(tmp_path: Path, place: Path) -> None:
    sweep = tiny.write(tmp_path, trials=0, epochs=8, lease_s=3)
    first = start(sweep, tmp_path)
    others = []
    try:
        tiny.wait(lambda: (place / "sweeper.db").exists() and Study.all(database.open(place / "sweeper.db"), ["tiny"]))
        study = open_study(place)
        training(first.pid, study, 0)
        first.terminate()
        assert first.wait(60) == 130  # not done
        row = rows(study)[0]
        assert (row.state, row.worker, row.reasons) == ("RUNNING", None, ())
        trained = len(row.curve)
        assert 1 <= trained < 8
        frozen = start(sweep, tmp_path)
        others.append(frozen)
        tiny.wait(lambda: len(rows(study)[0].values) > trained)
        family = [frozen.pid, *tiny.children(frozen.pid, below=True)]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        second = start(sweep, tmp_path)
        others.append(second)
        assert second.wait(300) == 0
        before = written(study, place)
        for pid in family:
            os.kill(pid, signal.SIGCONT)
        assert frozen.wait(120) == 0
        assert written(study, place) == before
    finally:
        for process in (first, *others):
            process.kill()
    row = rows(study)[0]
    assert row.state == "COMPLETE"
    with tracking(place) as tracker:
        assert tracker.drain(60) == 0
    assert len(row.reasons) == 1
    assert "stopped renewing its lease" in row.reasons[0]
    assert points(place, runs(place)[0]) == list(range(8))
    assert "no longer holds attempt" in (tmp_path / "worker.log").read_text()


def written(study: Study, place: Path) -> Any:
    """What of the trial is written where. (The embedded MLflow may be held by who is frozen: later.)"""
    snapshots = {str(path): path.stat().st_mtime_ns for path in (place / "snapshots").glob("??/*")}
    journals = {path.name: path.read_bytes() for path in (place / "journals").rglob("*.jsonl")}
    return rows(study), snapshots, journals
