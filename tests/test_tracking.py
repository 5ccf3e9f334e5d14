"""Tracking's promise: whatever dies or goes away, every (metric, step) arrives once, with the time it was made at."""

import contextlib
import json
import os
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.tracking._tracking_service import utils
from trials import history

from sweeper import names
from sweeper.errors import TrackingError
from sweeper.tracking import Tracker, TrialLog
from sweeper.tracking.connection import FILES
from sweeper.tracking.journal import Journal, pending
from sweeper.tracking.upload import _FRESH

T0 = 1_795_000_000_000  # ms since 1970
ROOT = Path(__file__).resolve().parents[1]

Points = dict[tuple[int, str, int], list[tuple[float, int]]]  # (trial, metric, step): every (value, time) there is


class MLflow:
    """A real ``mlflow server`` on its own SQLite store; ``kill`` it and get it ``ready`` at will, the port stays."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self._options = folder, options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = folder / "server.db"
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "files"), *self._options]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def ready(self) -> str:
        """The address, once the server answers."""
        from sweeper.tracking import view

        if self._process is None:
            self._start()
        deadline = time.monotonic() + 300
        while not view.answers(self.url):
            dead = self._process is None or self._process.poll() is not None
            assert not dead and time.monotonic() < deadline, (self.folder / "server.log").read_text()[-2000:]  # noqa: PT018
            time.sleep(0.2)
        return self.url

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An embedded store; each test uses an experiment of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflow]:
    server = MLflow(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def tracker(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tracker]:
    with Tracker(store, request.node.name, tmp_path) as tracker:
        yield tracker


def arrived(database: Path | str, experiment: str) -> Points:
    """What the store holds, read with SQL and without MLflow's own reading."""
    query = """
        select cast(t.value as integer), m.key, m.step, m.value, m.timestamp from metrics m
        join runs r on r.run_uuid = m.run_uuid join experiments e on e.experiment_id = r.experiment_id
        join tags t on t.run_uuid = r.run_uuid and t.key = 'sweeper.trial'
        where e.name = ? and r.lifecycle_stage = 'active'"""
    points: Points = {}
    with contextlib.closing(sqlite3.connect(str(database).removeprefix("sqlite:///"))) as connection:
        for trial, key, step, value, timestamp in connection.execute(query, [experiment]):
            points.setdefault((trial, key, step), []).append((value, timestamp))
    return points


def journaled(folder: Path) -> Points:
    """What stands in all journals below ``folder``, attempts in order: the first of a point is the one that counts."""
    points: Points = {}
    for path in sorted(folder.rglob("*.jsonl"), key=lambda path: path.name):
        for line in path.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line)
            if record["kind"] == "metrics":
                for key, value in record["values"].items():
                    point = points.setdefault((int(path.name[:5]), key, record["step"]), [])
                    point[:] = point or [(value, record["time"])]
    return points


def epochs(log: TrialLog, first: int, last: int, start: int = T0) -> None:
    for epoch in range(first, last):
        log.epoch(epoch, {"curve/lr": 0.1 / (epoch + 1), "curve/mAP50-95": epoch / 100}, start + 1000 * epoch)


def given_up(tracker: Tracker) -> None:
    """Close it, and wait until its journals can be had by others."""
    tracker.close(0)
    deadline = time.monotonic() + 60
    for path in pending(tracker.folder):
        while (journal := Journal.take(path)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        journal.close()


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # closed meanwhile
        return ""


def run_of(tracker: Tracker, number: int) -> dict:  # type: ignore[type-arg]
    return next(run for run in tracker.runs() if run["tags"][names.TRIAL] == str(number))


def attempts(run: dict) -> set[int]:  # type: ignore[type-arg]
    """The numbers of the attempts that have written to a run."""
    return {int(key.rpartition(".")[2]) for key in run["tags"] if key.startswith(f"{names.ATTEMPT}.")}


# What arrives


def test_importing_the_package_does_not_import_mlflow() -> None:
    program = "import sys, sweeper.tracking, sweeper.tracking.view; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_a_trial_arrives_with_its_own_times(tracker: Tracker, store: str) -> None:
    parent = tracker.sweep({"epochs": 20}, {"note": "a"}, {"sweep.yaml": b"name: x"})
    log = tracker.trial(3, name="cawb 3", tags={names.FAMILY: "cawb", names.STAGE: "search"}, params={"lr0": 0.02})
    epochs(log, 0, 20)
    log.artifact("trace/lr.parquet", b"PAR1")
    log.artifact("schedule.png", b"PNG")
    log.artifact("weights/best.pt", b"weights")
    log.finish("FINISHED", T0 + 20_000)
    assert log.flush(30)
    run = run_of(tracker, 3)
    assert run["run_id"] == log.run_id
    assert (run["status"], run["end_ms"], run["name"]) == ("FINISHED", T0 + 20_000, "cawb 3")
    assert run["params"] == {"lr0": "0.02"}
    assert run["tags"].items() >= {names.PARENT: parent, names.FAMILY: "cawb", names.KIND: "trial"}.items()
    assert run["tags"][names.COLOR].startswith("#")
    assert history(tracker.server, log.run_id, "curve/mAP50-95") == [(i, i / 100, T0 + 1000 * i) for i in range(20)]
    files = (
        Path(store.removeprefix("sqlite:///")).parent / "mlartifacts" / tracker.experiment / log.run_id / "artifacts"
    )
    assert (files / "trace/lr.parquet").read_bytes() == b"PAR1"
    assert (files / "schedule.png").read_bytes() == b"PNG"
    assert (files / "weights/best.pt").read_bytes() == b"weights"
    assert (
        tracker.server.client().get_experiment(tracker.server.experiment_id()).tags[names.EXPERIMENT_KIND]
        == "custom_model_development"
    )


def test_system_metrics_of_all_attempts_arrive(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are measured until the log is closed, also while another epoch is written; the next attempt adds its own."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    counts: list[int] = []
    for attempt in (1, 2):
        log = tracker.trial(0, attempt)
        log.system_metrics()
        epochs(log, 0, 3)
        journal = next(path for path in pending(tracker.folder) if f".{attempt:03d}." in path.name)
        while names.SYSTEM not in journal.read_text():
            time.sleep(0.1)
        log.close()
        assert log.flush(60)
        steps = history(tracker.server, log.run_id or "", f"{names.SYSTEM}system_memory_usage_megabytes")
        assert all(value > 0 and step == time_ms // 1000 for step, value, time_ms in steps)
        counts.append(len(steps))
    assert counts[1] > counts[0] >= 1
    metrics = run_of(tracker, 0)["metrics"]
    assert {f"{names.SYSTEM}{name}" for name in ("cpu_utilization_percentage", "network_receive_megabytes")} < set(
        metrics
    )
    assert history(tracker.server, log.run_id or "", "curve/lr")[-1][0] == 2


def test_pruned_and_failed_are_shown_as_such(tracker: Tracker) -> None:
    tracker.trial(0).finish("PRUNED")
    tracker.trial(1).finish("FAILED", reason="out of memory")
    assert tracker.drain(30) == 0
    pruned, failed = tracker.runs()
    assert (pruned["status"], pruned["tags"][names.STATE]) == ("KILLED", "PRUNED")
    assert (failed["status"], failed["tags"][names.STATE]) == ("FAILED", "FAILED")
    assert failed["tags"][names.REASON] == "out of memory"


def test_more_than_mlflow_takes_at_once(tracker: Tracker) -> None:
    log = tracker.trial(0, tags={"long tag": "t" * 9000}, params={f"p{i}": "x" * 7000 for i in range(120)})
    log.epoch(0, {f"metric {i}": i for i in range(2500)}, T0)
    assert log.flush(60)
    run = run_of(tracker, 0)
    assert len(run["metrics"]) == 2500
    assert {len(value) for value in run["params"].values()} == {6000}
    assert len(run["params"]) == 120
    assert len(run["tags"]["long tag"]) == 8000


def test_not_a_number_is_recorded(tracker: Tracker) -> None:
    log = tracker.trial(0)
    log.epoch(0, {"train/box": float("nan"), "val/box": 1.0}, T0)
    assert log.flush(30)
    assert log.run_id
    assert [value != value for _, value, _ in history(tracker.server, log.run_id, "train/box")] == [True]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda log: log.epoch(0, {"mAP(50)": 1.0}),
        lambda log: log.epoch(0, {"a//b": 1.0}),
        lambda log: log.params({"steps[0]": 3}),
        lambda log: log.artifact("../../etc/passwd", b""),
        lambda log: log.artifact("/etc/passwd", b""),
    ],
)
def test_what_mlflow_would_refuse_is_refused_at_once(wrong, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tracker = Tracker("http://127.0.0.1:9", "x", tmp_path)
    log = tracker.trial(0)
    with pytest.raises(TrackingError) as caught:
        wrong(log)
    assert "\n" not in str(caught.value)
    tracker.close(0)


def test_nothing_follows_the_end(tracker: Tracker) -> None:
    log = tracker.trial(0)
    log.finish("FINISHED")
    with pytest.raises(TrackingError, match="closed"):
        log.epoch(0, {"loss": 1.0})


# One run over all attempts


def test_attempts_share_a_run_and_the_first_record_wins(tracker: Tracker, store: str) -> None:
    first = tracker.trial(7, 1, params={"lr0": 1})
    epochs(first, 0, 5)
    first.finish("FAILED", reason="hang")
    assert first.flush(30)
    second = tracker.trial(7, 2, params={"lr0": 2})
    epochs(second, 3, 8, T0 + 999_000)
    assert second.flush(30)
    assert second.run_id == first.run_id
    assert run_of(tracker, 7)["status"] == "RUNNING"
    second.finish("FINISHED")
    assert second.flush(30)
    run = run_of(tracker, 7)
    assert (run["status"], run["params"], attempts(run)) == ("FINISHED", {"lr0": "1"}, {1, 2})
    points = arrived(store, tracker.experiment)
    assert len(points) == 2 * 8
    assert all(len(values) == 1 for values in points.values())
    assert points[7, "curve/lr", 4][0][1] == T0 + 4000
    assert points[7, "curve/lr", 5][0][1] == T0 + 999_000 + 5000


def test_a_series_arrives_once_with_its_own_steps(tracker: Tracker, store: str) -> None:
    """The learning rate by optimizer step, beside metrics by epoch; another attempt says it again."""
    for attempt in range(2):
        log = tracker.trial(0, attempt)
        log.series(names.TRACE, {step: step / 7 for step in range(0, 900, 3)})
        epochs(log, attempt, attempt + 2)
        log.close()
        assert tracker.drain(30) == 0
    points = arrived(store, tracker.experiment)
    assert {step: values[0][0] for (_, key, step), values in points.items() if key == names.TRACE} == {
        step: step / 7 for step in range(0, 900, 3)
    }
    assert all(len(values) == 1 for values in points.values())
    with pytest.raises(TrackingError, match="metric"):
        tracker.trial(1).series("mAP(50)", {0: 1.0})


def test_first_record_wins_across_machines(store: str, tmp_path: Path) -> None:
    """Two folders share no journal: what the server holds decides."""
    with Tracker(store, "machines", tmp_path / "a") as here, Tracker(store, "machines", tmp_path / "b") as there:
        log = here.trial(0, 1)
        epochs(log, 0, 5)
        assert log.flush(30)
        log.close()
        log = there.trial(0, 2)
        epochs(log, 2, 8, T0 + 999_000)
        assert log.flush(30)
    points = arrived(store, "machines")
    assert len(points) == 16
    assert all(len(values) == 1 for values in points.values())
    assert points[0, "curve/lr", 4][0][1] == T0 + 4000


def test_a_late_attempt_does_not_overrule_a_newer_one(store: str, tmp_path: Path) -> None:
    """A frozen worker wakes after another has finished its trial: its points count, its word on the end does not."""
    with Tracker(store, "late", tmp_path / "a") as late, Tracker(store, "late", tmp_path / "b") as newer:
        log = newer.trial(0, 2, tags={"host": "b"})
        epochs(log, 3, 6)
        log.artifact("log.txt", b"new")
        log.finish("FINISHED", T0 + 9000)
        assert log.flush(30)
        old = late.trial(0, 1, tags={"host": "a"})
        epochs(old, 0, 3)
        old.artifact("log.txt", b"old")
        old.finish("FAILED")
        assert old.flush(30)
        run = run_of(newer, 0)
        assert (run["status"], run["end_ms"], run["tags"]["host"]) == ("FINISHED", T0 + 9000, "b")
        assert len(history(newer.server, run["run_id"], "curve/lr")) == 6
        assert [path.read_bytes() for path in Path(store[10:]).parent.rglob(f"{run['run_id']}/artifacts/log.txt")] == [
            b"new"
        ]


def test_a_worker_that_was_frozen_adds_nothing_to_what_another_has_done(store: str, tmp_path: Path) -> None:
    with Tracker(store, "frozen", tmp_path / "a") as frozen, Tracker(store, "frozen", tmp_path / "b") as newer:
        old = frozen.trial(0, 1)
        epochs(old, 0, 3)
        assert old.flush(30)
        new = newer.trial(0, 2)
        epochs(new, 2, 6, T0 + 999_000)
        assert new.flush(30)
        time.sleep(3.1)  # it thaws: longer than what it knows of the run is believed
        epochs(old, 3, 5, T0 + 5)
        old.finish("FAILED")
        assert old.flush(30)
        assert run_of(newer, 0)["status"] == "RUNNING"
    points = arrived(store, "frozen")
    assert {step: values[0][1] - T0 for (_, key, step), values in points.items() if key == "curve/lr"} == {
        0: 0,
        1: 1000,
        2: 2000,
        3: 1_002_000,
        4: 1_003_000,
        5: 1_004_000,
    }
    assert all(len(values) == 1 for values in points.values())


def test_sweep_is_one_run_however_often_it_is_asked_for(tracker: Tracker, store: str, tmp_path: Path) -> None:
    run_id = tracker.sweep({"epochs": 20}, {"state": "new"})
    with Tracker(store, tracker.experiment, tmp_path / "other") as other:
        assert other.sweep({"epochs": 30}, {"state": "old"}, {"report.html": b"<p>"}, status="FINISHED") == run_id
    parent = next(run for run in tracker.server.runs() if run["run_id"] == run_id)
    assert (parent["params"], parent["tags"]["state"], parent["status"]) == ({"epochs": "20"}, "old", "FINISHED")
    assert tracker.runs() == []


def test_artifacts_of_a_sweep_whose_name_has_a_space(store: str, tmp_path: Path) -> None:
    with Tracker(store, "my first sweep", tmp_path) as tracker:
        log = tracker.trial(0)
        log.artifact("a.txt", b"a")
        assert log.flush(30)
    assert len(list(Path(store[10:]).parent.glob("mlartifacts/my first sweep/*/artifacts/a.txt"))) == 1


def test_files_are_found_in_a_store_that_was_moved(tmp_path: Path) -> None:
    """None is written to the old place."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    with Tracker(f"sqlite:///{here}/mlflow.db", "my sweep", here / "journals") as tracker:
        log = tracker.trial(0)
        log.artifact("a/b.txt", b"ab")
        assert log.flush(60)
        assert tracker.server.fetch(log.run_id or "", "a/b.txt") == b"ab"
        assert len(list((here / FILES / "my sweep").rglob("b.txt"))) == 1
    here.rename(there)
    utils._artifact_repos_cache.clear()  # as in another process
    with Tracker(f"sqlite:///{there}/mlflow.db", "my sweep", there / "journals") as tracker:
        run_id = tracker.run_ids()[0]
        assert tracker.server.fetch(run_id, "a/b.txt") == b"ab"
        log = tracker.trial(0, 1)
        log.artifact("a/c.txt", b"ac")
        assert log.flush(60)
        assert tracker.server.fetch(run_id, "a/c.txt") == b"ac"
        before = os.environ.get("MLFLOW_TRACKING_URI")
        assert tracker.server.register(run_id, "model", "best", {}) == 1
        assert os.environ.get("MLFLOW_TRACKING_URI") == before, "it would send later sweeps of this process elsewhere"
    assert not here.exists()
    assert {path.name for path in there.rglob("?.txt")} == {"b.txt", "c.txt"}


def test_a_run_deleted_on_the_server_is_made_again_whole(tracker: Tracker) -> None:
    log = tracker.trial(0, params={"lr0": 1})
    epochs(log, 0, 3)
    assert log.flush(30)
    old = log.run_id
    assert old
    tracker.server.client().delete_run(old)
    epochs(log, 3, 6)
    assert log.flush(30)
    assert log.run_id != old
    run = run_of(tracker, 0)
    assert (run["run_id"], run["params"]) == (log.run_id, {"lr0": "1"})
    assert len(history(tracker.server, run["run_id"], "curve/lr")) == 6


def test_what_the_server_never_takes_is_named_and_holds_nothing_up(tracker: Tracker) -> None:
    log = tracker.trial(0)
    assert log.flush(30)
    assert log.run_id
    tracker.server.client().log_param(log.run_id, "lr0", "9")  # a param cannot change: ours will be refused
    log.params({"lr0": 1, "momentum": 0.9})
    epochs(log, 0, 3)
    log.artifact("lost.txt", b"x")
    for path in tracker.folder.rglob("lost.txt"):
        path.unlink()
    assert log.flush(30)
    run = run_of(tracker, 0)
    assert run["params"] == {"lr0": "9", "momentum": "0.9"}
    assert len(history(tracker.server, log.run_id, "curve/lr")) == 3
    assert "lost.txt" in run["tags"][names.REFUSED]


def test_a_reason_that_the_server_does_not_take_holds_no_end_up(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    log = tracker.trial(0)
    log.finish("FAILED", T0, reason="x" * 9000)
    assert log.flush(30)
    run = run_of(tracker, 0)
    assert (run["status"], run["tags"][names.STATE]) == ("FAILED", "FAILED")
    assert "exceeds the maximum length" in run["tags"][names.REFUSED]


# The journal


def test_torn_last_line_is_cut_off(tmp_path: Path, store: str) -> None:
    tracker = Tracker("http://127.0.0.1:9", "torn", tmp_path)  # nobody answers
    log = tracker.trial(0, 1)
    epochs(log, 0, 4)
    tracker.close(0)
    (path,) = pending(tracker.folder)
    data = path.read_bytes()
    path.write_bytes(data[:-7])  # the machine died while epoch 3 was written
    with Tracker(store, "torn", tmp_path) as again:
        log = again.trial(0, 2)
        epochs(log, 3, 5, T0 + 999_000)  # epoch 3 is trained again
        assert again.drain(30) == 0
    points = arrived(store, "torn")
    assert {step: time for (_, key, step), [(_, time)] in points.items() if key == "curve/lr"} == {
        0: T0,
        1: T0 + 1000,
        2: T0 + 2000,
        3: T0 + 999_000 + 3000,
        4: T0 + 999_000 + 4000,
    }


def test_a_damaged_line_costs_only_itself(tmp_path: Path, store: str) -> None:
    tracker = Tracker("http://127.0.0.1:9", "damaged", tmp_path)
    epochs(tracker.trial(0, 1), 0, 4)
    tracker.close(0)
    (path,) = pending(tracker.folder)
    lines = path.read_bytes().split(b"\n")
    lines[2] = b"\x00" * len(lines[2])
    path.write_bytes(b"\n".join(lines))
    with Tracker(store, "damaged", tmp_path) as again:
        assert again.drain(30) == 0
        run = run_of(again, 0)
        assert [step for step, _, _ in history(again.server, run["run_id"], "curve/lr")] == [0, 2, 3]
        assert path.name in run["tags"][names.DAMAGED]


@pytest.mark.parametrize("lost", ["ack", "part of the ack", "half of the records"])
def test_a_lost_acknowledgement_makes_no_duplicate(lost: str, tmp_path: Path, store: str) -> None:
    experiment = f"lost {lost}"
    with Tracker(store, experiment, tmp_path) as tracker:
        log = tracker.trial(0, 1, params={"lr0": 1})
        epochs(log, 0, 4)
        assert log.flush(30)
    (path,) = pending(tracker.folder)
    ack = path.with_suffix(".ack")
    if lost == "ack":
        ack.unlink()
    elif lost == "part of the ack":
        ack.write_text(ack.read_text()[:9])
    else:
        half = path.read_bytes().index(b"\n", 300) + 1
        ack.write_text(json.dumps(json.loads(ack.read_text()) | {"offset": half}))
    with Tracker(store, experiment, tmp_path) as tracker:
        assert tracker.drain(30) == 0
        assert len(tracker.runs()) == 1
    points = arrived(store, experiment)
    assert len(points) == 8
    assert all(len(values) == 1 for values in points.values())
    assert pending(tracker.folder) == []


@pytest.mark.parametrize("another", ["server", "study on another server"])
def test_what_one_server_has_is_sent_whole_to_another(another: str, tmp_path: Path) -> None:
    """The folder of journals stays; a trial in the middle goes on, all of whose epochs its worker says again."""
    stores = [f"sqlite:///{tmp_path / name}/mlflow.db" for name in ("old", "new")]
    studies = ["first", "first" if another == "server" else "second"]
    for store, study in zip(stores, studies, strict=True):
        (tmp_path / store.split("/")[-2]).mkdir()
        for attempt, last in enumerate((2, 5)):
            with Tracker(store, "moved", tmp_path / "journals").of(study) as tracker:
                log = tracker.trial(0, attempt, params={"lr0": 1})
                epochs(log, 0, last)
                log.close()
                assert tracker.drain(60) == 0
        points = arrived(store, "moved")
        assert {step for _, key, step in points if key == "curve/lr"} == set(range(5))
        assert all(len(values) == 1 for values in points.values())


def test_what_waits_goes_whole_to_another_server_but_never_into_another_study(tmp_path: Path, store: str) -> None:
    """Half of a journal had arrived where it was sent first; the other study's trial 0 is another trial."""
    old = f"sqlite:///{tmp_path}/old.db"
    with Tracker(old, "waits", tmp_path).of("first") as tracker:
        log = tracker.trial(0, params={"lr0": 1})
        epochs(log, 0, 3)
        assert log.flush(30)
        (path,) = pending(tracker.folder)
    gone = Tracker("http://127.0.0.1:9", "waits", tmp_path).of("first")  # before the rest was sent
    epochs(gone.trial(0), 3, 6)
    given_up(gone)
    assert pending(gone.folder) == [path]
    with Tracker(store, "waits", tmp_path).of("second") as tracker:
        assert tracker.waiting() == tracker.drain(30) == 0
        assert arrived(store, "waits") == {}
    everything = Tracker(store, "waits", tmp_path)
    assert everything.waiting() == 1
    with everything.of("first") as tracker:
        assert tracker.drain(30) == 0
        assert len(history(tracker.server, run_of(tracker, 0)["run_id"], "curve/lr")) == 6
        assert run_of(tracker, 0)["params"] == {"lr0": "1"}
    assert not path.exists()


@pytest.mark.parametrize("wrong", ["directory", "permission"])
def test_a_journal_that_cannot_be_opened_is_named_and_holds_nothing_up(
    wrong: str, tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    dead = Tracker("http://127.0.0.1:9", f"unopened {wrong}", tmp_path)  # nobody answers
    for number in range(3):
        epochs(dead.trial(number), 0, 2)
    given_up(dead)
    bad = dead.folder / "00000.000.1.jsonl"
    if wrong == "directory":
        bad.mkdir()
    else:
        bad.write_text("")
        bad.chmod(0)
        if os.access(bad, os.R_OK):
            pytest.skip("this user may open everything")

    def handles() -> int:
        return len([link for link in os.listdir("/proc/self/fd") if str(dead.folder) in _target(link)])

    with Tracker(store, f"unopened {wrong}", tmp_path) as tracker:
        assert tracker.drain(60) == 1
        assert tracker.problem
        assert tracker.problem.startswith(f"journal {bad}: ")
        assert "\n" not in tracker.problem
        assert pending(tracker.folder) == [bad]
        assert handles() == 0
        log = tracker.trial(0, 0)  # its name is taken: it gets another, and says all that it has to
        epochs(log, 0, 4)
        log.finish("FINISHED")
        assert log.flush(30)
        assert tracker.drain(30) == 1
    points = arrived(store, f"unopened {wrong}")
    assert {(trial, step) for trial, key, step in points if key == "curve/lr"} == {
        *((0, step) for step in range(4)),
        *((trial, step) for trial in (1, 2) for step in range(2)),
    }
    assert sum(str(bad) in record.message for record in caplog.records) == 1
    assert handles() == 0


def test_a_journal_that_cannot_be_read_keeps_no_handle_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "not a journal's name"
    path.write_text("")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AssertionError):
        Journal.take(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_delays_records_and_tears_none(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, 0, 0)
    journal.append({"kind": "metrics", "step": 0, "values": {"a": 1}, "time": T0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.size + 20, hard))  # room for part of a record
        journal.append({"kind": "metrics", "step": 1, "values": {"a": 1}, "time": T0})
        journal.append({"kind": "metrics", "step": 2, "values": {"a": 1}, "time": T0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(journaled(tmp_path)) == {(0, "a", 0)}
    journal.append({"kind": "metrics", "step": 3, "values": {"a": 1}, "time": T0})
    assert set(journaled(tmp_path)) == {(0, "a", step) for step in range(4)}
    journal.close()


# Several processes

WRITER = """
import sys, time
from pathlib import Path
from sweeper.tracking import Tracker
uri, experiment, folder, number, attempt, first, last, pause, start = sys.argv[1:]
tracker = Tracker(uri, experiment, Path(folder))
log = tracker.trial(int(number), int(attempt), params={"lr0": attempt})
print("open", flush=True)
for epoch in range(int(first), int(last)):
    log.epoch(epoch, {"curve/lr": 0.1, "curve/mAP50-95": epoch / 100}, int(start) + 1000 * epoch)
    time.sleep(float(pause))
log.finish("FINISHED")
print("left", tracker.drain(60), flush=True)
tracker.close()
"""


def writer(
    uri: str,
    experiment: str,
    folder: Path,
    number: int,
    attempt: int,
    first: int,
    last: int,
    pause: float,
    start: int = T0,
) -> "subprocess.Popen[str]":
    arguments = [uri, experiment, str(folder), number, attempt, first, last, pause, start]
    command = [sys.executable, "-c", WRITER, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_share_one_new_sqlite_store(tmp_path: Path) -> None:
    """Three at once make the store, the experiment and the parent run, and write: each of these is there once."""
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    processes = [writer(uri, "shared", tmp_path / "j", number, 0, 0, 40, 0.02) for number in range(3)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert "left 0" in output
    tracker = Tracker(uri, "shared", tmp_path / "j")
    assert [run["status"] for run in tracker.runs()] == ["FINISHED"] * 3
    assert len(tracker.server.runs()) == 4
    assert len({run["tags"][names.PARENT] for run in tracker.runs()}) == 1
    assert arrived(uri, "shared") == journaled(tmp_path / "j")
    assert len(arrived(uri, "shared")) == 3 * 2 * 40


def killed_writers(uri: str, database: Path | str, folder: Path, kills: int) -> None:
    """kill -9 at random moments; each next attempt goes back a little, as from a snapshot, with other times."""
    experiment, epoch = f"killed {kills}", 0
    dice = random.Random(kills)
    for attempt in range(kills):
        process = writer(uri, experiment, folder, 0, attempt, max(0, epoch - 3), 10_000, 0.02, T0 + attempt)
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        time.sleep(dice.uniform(0.0, 4.0))
        process.kill()
        process.wait()
        epoch = max((step for _, _, step in journaled(folder)), default=-1) + 1
    process = writer(uri, experiment, folder, 0, kills, max(0, epoch - 3), epoch + 5, 0.0, T0 + kills)
    output, _ = process.communicate(timeout=120)
    assert "left 0" in output
    assert len(arrived(database, experiment)) == 2 * (epoch + 5)
    assert arrived(database, experiment) == journaled(folder)
    tracker = Tracker(uri, experiment, folder)
    assert [(run["status"], max(attempts(run))) for run in tracker.runs()] == [("FINISHED", kills)]
    assert pending(tracker.folder) == []


def test_kill_9_of_writers_loses_and_doubles_nothing(store: str, tmp_path: Path) -> None:
    killed_writers(store, store, tmp_path, 3)


def written(folder: Path, before: dict[str, int], size: int) -> bool:
    """Whether a database in ``folder`` has another size than ``before``, and more than ``size`` bytes."""
    for path in folder.glob("mlflow.db*"):
        with contextlib.suppress(FileNotFoundError):  # A journal of SQLite has gone since it was listed.
            now = path.stat().st_size
            if now > size and now != before.get(path.name):
                return True
    return False


def test_kill_9_while_the_store_is_created_leaves_one_that_can_be_used(tmp_path: Path) -> None:
    """MLflow cannot repair a store whose creation was interrupted."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for size in (300_000, 700_000):  # bytes of a database whose tables are not all there
        first = writer(uri, "created", tmp_path / "j", 0, 0, 0, 10_000, 0.02)
        with os.scandir(tmp_path) as entries:
            before = {entry.name: entry.stat().st_size for entry in entries}
        end = time.monotonic() + 60
        while not written(tmp_path, before, size):
            assert time.monotonic() < end
            time.sleep(0.001)
        first.kill()
        first.wait()
    second = writer(uri, "created", tmp_path / "j", 1, 0, 0, 3, 0.0)
    output, _ = second.communicate(timeout=120)
    assert "left 0" in output
    assert arrived(uri, "created") == journaled(tmp_path / "j")


@pytest.mark.slow
def test_kill_9_of_writers_many_times(store: str, tmp_path: Path, mlflow_server: MLflow) -> None:
    killed_writers(store, store, tmp_path / "a", 25)
    killed_writers(mlflow_server.ready(), mlflow_server.database, tmp_path / "b", 26)


def test_the_journal_of_a_live_process_is_left_alone(store: str, tmp_path: Path) -> None:
    process = writer("http://127.0.0.1:9", "alive", tmp_path, 0, 0, 0, 5, 60)  # its own server never answers
    try:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        with Tracker(store, "alive", tmp_path) as tracker:
            assert tracker.drain(10) == 0
            assert len(pending(tracker.folder)) == 1
            process.kill()
            process.wait()
            assert tracker.drain(30) == 0
            assert pending(tracker.folder) == []
            assert len(tracker.runs()) == 1
    finally:
        process.kill()


# A server


def test_outages_lose_nothing_and_hold_nobody_up(mlflow_server: MLflow, tmp_path: Path) -> None:
    """The server is away at the start, comes, dies (kill -9) in the middle and comes again."""
    mlflow_server.kill()
    tracker = Tracker(mlflow_server.url, "outage", tmp_path)
    with pytest.raises(TrackingError, match="no answer"):
        tracker.check(2)
    log = tracker.trial(0, params={"lr0": 0.1})
    took = []

    def train(first: int, last: int) -> None:
        for epoch in range(first, last):
            begin = time.perf_counter()
            log.epoch(epoch, {"curve/lr": 0.1, "curve/mAP50-95": epoch / 100}, T0 + 1000 * epoch)
            took.append(time.perf_counter() - begin)
            time.sleep(0.02)

    train(0, 50)
    assert not log.flush(0.5)
    assert log.run_id is None
    assert tracker.problem
    assert "\n" not in tracker.problem
    mlflow_server.ready()
    train(50, 100)
    assert log.flush(60)
    assert tracker.problem is None
    mlflow_server.kill()
    train(100, 150)
    log.artifact("trace/lr.parquet", b"PAR1")
    log.finish("FINISHED", T0 + 150_000)
    assert not log.flush(0.5)
    mlflow_server.ready()
    assert log.flush(60)
    run = run_of(tracker, 0)
    assert (run["status"], run["end_ms"], run["params"]) == ("FINISHED", T0 + 150_000, {"lr0": "0.1"})
    points = arrived(mlflow_server.database, "outage")
    assert points == journaled(tmp_path)
    assert len(points) == 300
    assert points[0, "curve/lr", 7] == [(0.1, T0 + 7000)]
    assert [path.read_bytes() for path in mlflow_server.folder.rglob("lr.parquet")] == [b"PAR1"]
    assert sorted(took)[len(took) // 2] < 0.001
    tracker.close()


@pytest.mark.slow
def test_a_server_that_lost_its_memory_gets_everything_again(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = MLflow(tmp_path_factory.mktemp("wiped"))
    try:
        tracker = Tracker(server.ready(), "wiped", tmp_path)
        log = tracker.trial(0, params={"lr0": 1})
        epochs(log, 0, 5)
        assert log.flush(60)
        server.kill()
        for file in server.folder.glob("server.db*"):
            file.unlink()
        epochs(log, 5, 10)
        server.ready()
        assert log.flush(60)
        assert arrived(server.database, "wiped") == journaled(tmp_path)
        assert run_of(tracker, 0)["params"] == {"lr0": "1"}
        tracker.close()
    finally:
        server.kill()


@pytest.mark.slow
def test_a_server_with_a_login(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask_wtf", reason="needs Flask-WTF: pip install mlflow[auth]")
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "key")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a password of length")
    server = MLflow(tmp_path_factory.mktemp("login"), "--app-name", "basic-auth")
    try:
        url = server.ready()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        with pytest.raises(TrackingError, match="'admin' or the password is refused") as caught:
            Tracker(url, "login", tmp_path).check()
        assert "wrong" not in str(caught.value)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a password of length")
        tracker = Tracker(url, "login", tmp_path)
        tracker.check()
        log = tracker.trial(0)
        epochs(log, 0, 3)
        log.artifact("trace.txt", b"x")
        log.finish("FINISHED")
        assert log.flush(60)
        assert arrived(server.database, "login") == journaled(tmp_path)
        tracker.close()
    finally:
        server.kill()


def test_a_race_for_the_parent_ends_with_one(mlflow_server: MLflow, tmp_path: Path) -> None:
    url = mlflow_server.ready()
    start = threading.Barrier(4)
    ids: list[str] = []

    def launch(i: int) -> None:
        tracker = Tracker(url, "race", tmp_path / str(i))
        tracker.server.experiment_id()
        start.wait()
        ids.append(tracker.sweep())

    threads = [threading.Thread(target=launch, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 1
    assert [run["run_id"] for run in Tracker(url, "race", tmp_path).server.runs()] == ids[:1]


@contextlib.contextmanager
def delayed(url: str, path: str, until: Callable[[], object]) -> Iterator[tuple[str, threading.Event]]:
    """An address of the server where requests to ``path`` wait for ``until``, and what is set when one arrives."""
    arrived = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith(path):
                arrived.set()
                until()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = urllib.request.Request(
                url + self.path, body or None, {"Content-Type": "application/json"}, method=self.command
            )
            with urllib.request.urlopen(request) as answer:
                content = answer.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_DELETE = do_GET  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}", arrived
        proxy.shutdown()


def test_two_machines_that_send_attempts_of_a_trial_at_once_make_one_run(mlflow_server: MLflow, tmp_path: Path) -> None:
    """One of them is slow: between its look for a run and its making one, the other has done both."""
    url = mlflow_server.ready()
    with delayed(url, "/runs/create", lambda: time.sleep(1)) as (late, making):
        slow, quick = Tracker(late, "at once", tmp_path / "slow"), Tracker(url, "at once", tmp_path / "quick")
        parent = quick.sweep()
        epochs(slow.trial(0, 0), 0, 3)
        assert making.wait(60)
        epochs(quick.trial(0, 1), 2, 5, T0 + 1)
        assert (quick.drain(60), slow.drain(60)) == (0, 0)
        slow.close()
        quick.close()
    (run,) = (run for run in quick.server.runs() if run["run_id"] != parent)
    points = arrived(mlflow_server.database, "at once")
    assert {step for _, key, step in points if key == "curve/lr"} == set(range(5))
    # Both may send an epoch that both attempts have at the same moment: then it stands there twice, with one value.
    assert all(len({value for value, _ in values}) == 1 for values in points.values())
    assert attempts(run) == {0, 1}


def test_an_older_attempt_whose_request_arrives_late_hides_no_newer_one(mlflow_server: MLflow, tmp_path: Path) -> None:
    """Else the older attempt would count as the newest, and its end would replace the end of the newer one."""
    url = mlflow_server.ready()
    newer_sent = threading.Event()
    with delayed(url, "/runs/log-batch", lambda: newer_sent.wait(60)) as (late, sending):
        quick = Tracker(url, "late request", tmp_path / "quick")
        quick.sweep()
        epochs(quick.trial(0, 0), 0, 1)
        assert quick.drain(60) == 0
        slow = Tracker(late, "late request", tmp_path / "slow")
        old = slow.trial(0, 1)
        assert sending.wait(60)
        new = quick.trial(0, 2)
        new.finish("FINISHED")
        assert new.flush(60)
        newer_sent.set()
        assert old.flush(60)
        time.sleep(_FRESH)  # Then the older attempt asks again who writes to the run.
        old.finish("FAILED", reason="lost")
        assert old.flush(60)
        slow.close()
        quick.close()
    run = run_of(quick, 0)
    assert (run["status"], attempts(run)) == ("FINISHED", {0, 1, 2})
    assert names.REASON not in run["tags"]


def test_who_finds_a_run_while_an_older_one_is_being_made_takes_the_older_one(
    mlflow_server: MLflow, tmp_path: Path
) -> None:
    """Otherwise its trial would stand below a parent that is deleted a moment later."""
    url, tags = mlflow_server.ready(), {names.KIND: "sweep"}
    found: dict[str, str] = {}

    def run(name: str, address: str, start_ms: int) -> threading.Thread:
        server = Tracker(address, "doomed", tmp_path / name).server
        thread = threading.Thread(target=lambda: found.update({name: server.run("doomed", tags, start_ms)}))
        thread.start()
        return thread

    looking = Tracker(url, "doomed", tmp_path / "looking").server
    looking.experiment_id()
    with delayed(url, "/runs/create", lambda: time.sleep(1)) as (late, making):
        threads = [run("older", late, T0)]
        assert making.wait(60)
        threads.append(run("newer", url, T0 + 1))
        while looking.find(tags) is None:
            time.sleep(0.01)
        threads.append(run("late", url, T0 + 2))
        for thread in threads:
            thread.join()
    assert [run["run_id"] for run in looking.runs()] == [found["older"]]
    assert found == dict.fromkeys(("older", "newer", "late"), found["older"])


def test_check_passes_where_all_is_well(mlflow_server: MLflow, store: str, tmp_path: Path) -> None:
    Tracker(mlflow_server.ready(), "fine", tmp_path).check()
    Tracker(store, "fine", tmp_path).check()


def test_check_says_in_one_line_what_is_wrong(tmp_path: Path, store: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and never answers
        silent = f"http://someone:secret@127.0.0.1:{deaf.getsockname()[1]}"
        (tmp_path / "file").write_text("")
        for uri, words in [
            (silent, "no answer within 1 s"),
            ("http://127.0.0.1:9", "no answer"),
            ("mlruns", "expected http"),
            (f"sqlite:///{tmp_path}/file/mlflow.db", "file"),
        ]:
            begin = time.monotonic()
            with pytest.raises(TrackingError, match=words) as caught:
                Tracker(uri, "x", tmp_path).check(1)
            assert time.monotonic() - begin < 8
            assert "\n" not in str(caught.value)
            assert "secret" not in str(caught.value)
    (tmp_path / "not.db").write_text("this is not a database, however long it is" * 100)
    with pytest.raises(TrackingError):
        Tracker(f"sqlite:///{tmp_path}/not.db", "x", tmp_path).check()
    deleted = Tracker(store, "deleted", tmp_path)
    deleted.server.client().delete_experiment(deleted.server.experiment_id())
    with pytest.raises(TrackingError, match="was deleted"):
        Tracker(store, "deleted", tmp_path).check()
