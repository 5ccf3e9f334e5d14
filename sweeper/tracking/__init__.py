"""One MLflow run for each trial, over all its attempts: written to a journal on this machine, sent in the background.

    with Tracker("sqlite:///mlflow.db", "digits", Path("journals")) as tracker:
        log = tracker.trial(0, name="cosine", tags={names.FAMILY: "cosine"}, params={"lr0": 0.02})
        log.epoch(0, {names.LR: 0.02, f"{names.CURVE}mAP50-95": 0.11})
        log.finish("FINISHED")

Training never waits for the MLflow server: during an outage the journal grows. Afterwards this process sends it, or, if
this process is dead, the next one that uses the folder. MLflow gets each point once, with the time of its measurement.
"""

import contextlib
import copy
import hashlib
import logging
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper import names
from sweeper.errors import TrackingError
from sweeper.tracking.connection import check_uri, set_environment
from sweeper.tracking.journal import SENT, Journal, pending
from sweeper.tracking.server import Server
from sweeper.tracking.upload import Uploader

__all__ = ["Tracker", "TrialLog", "check_uri"]


class Tracker:
    """The MLflow experiment of a sweep. The constructor does not connect; a process has one Tracker for each study.

    ``uri`` is ``sqlite:///FILE`` or ``http(s)://HOST:PORT`` (with user and password in MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD). ``experiment`` is the sweep's name. ``folder`` has the journals of all processes of this
    machine.
    """

    def __init__(self, uri: str, experiment: str, folder: Path) -> None:
        names.check("experiment", experiment)
        self.server = Server(uri, experiment)
        self.experiment = experiment
        slug = re.sub(r"[^\w.-]", "_", experiment)
        self.folder = Path(folder) / f"{slug}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"
        self._uploader = Uploader(self.server, self.folder)

    def of(self, study: str) -> "Tracker":
        """Return a tracker of the same experiment with the journals of ``study`` only.

        A deleted study and a new one of the same name have different trials with the same numbers.
        """
        tracker = copy.copy(self)
        tracker.folder = self.folder / study
        tracker._uploader = Uploader(self.server, tracker.folder)
        return tracker

    def check(self, timeout: float = 5.0) -> None:
        """Raise TrackingError unless the server answers within ``timeout`` seconds and grants access."""
        self.server.check(timeout)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrackingError(f"journals {self.folder}: {error.strerror}; expected a folder to write to") from None

    def sweep(
        self,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        artifacts: Mapping[str, bytes] | None = None,
        *,
        status: str | None = None,
    ) -> str:
        """Add params, tags and artifacts to the sweep's parent run, which is created if it is missing; return its id.

        A param keeps its first value; tags and artifacts are replaced. A ``status`` ends the run. Raises TrackingError
        if the server does not answer.
        """
        run_id = self.server.run(self.experiment, {names.KIND: "sweep"}, _now())
        existing = self.server.contents(run_id).params
        new = {key: value for key, value in _texts("param", params or {}).items() if key not in existing}
        self.server.send(run_id, [], new, _texts("tag", tags or {}))
        self._send_files(run_id, artifacts or {})
        if status:
            self.server.set_status(run_id, status, _now())
        return run_id

    def add(self, number: int, tags: Mapping[str, object], artifacts: Mapping[str, bytes]) -> None:
        """Add tags and artifacts to the run of the finished trial ``number``; raises TrackingError if it cannot."""
        run = self.server.find({names.KIND: "trial", names.TRIAL: str(number)})
        if run is None:
            raise TrackingError(f"trial {number}: has no run in {self.server} yet; its journal is not sent yet")
        self.server.send(run["run_id"], [], {}, _texts("tag", tags))
        self._send_files(run["run_id"], artifacts)

    def _send_files(self, run_id: str, artifacts: Mapping[str, bytes]) -> None:
        for name, data in artifacts.items():
            names.check("artifact", name)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / Path(name).name
                path.write_bytes(data)
                self.server.send_file(run_id, name, path)

    def trial(
        self,
        number: int,
        attempt: int = 0,
        name: str | None = None,
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> "TrialLog":
        """Open the log of an attempt at trial ``number``, whose attempts all write to one run; does not connect."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            journal = Journal.create(self.folder, number, attempt, self.server.uri)
        except OSError as error:
            raise TrackingError(
                f"journal of trial {number} in {self.folder}: {error}; expected a folder to write to"
            ) from None
        all_tags = {names.SWEEP: self.experiment, names.KIND: "trial", names.TRIAL: number, **(tags or {})}
        all_tags[names.COLOR] = names.color(number % 6, baseline=all_tags.get(names.STAGE) == "baseline")
        title, texts = name or f"trial {number}", _texts("tag", all_tags)
        journal.append({"kind": "open", "time": _now(), "name": title, "tags": texts})
        log = TrialLog(journal, self._uploader)
        if params:
            log.params(params)
        return log

    def drain(self, timeout: float) -> int:
        """Send the journals of this process and of dead ones for ``timeout`` s; return how many are not sent then."""
        if not pending(self.folder):
            return 0
        self._uploader.wait(timeout)
        return self._uploader.unsent()

    def waiting(self) -> int:
        """Return how many journals of this machine are not sent completely, of all processes and studies."""
        studies = [path for path in self.folder.glob("*/") if path.name != SENT]
        return sum(len(pending(folder)) for folder in (self.folder, *studies))

    @property
    def problem(self) -> str | None:
        """Why journals are not sent, in one line; None if there is no problem."""
        return self._uploader.problem or next(iter(self._uploader.unreadable.values()), None)

    def runs(self) -> list[dict[str, Any]]:
        """Return the trials' runs, sorted by trial number; raises TrackingError if the server does not answer.

        Each is ``{"run_id", "name", "status", "start_ms", "end_ms", "tags", "params", "metrics"}``; "metrics" has each
        metric's value at its last step.
        """
        runs = [run for run in self.server.runs() if run["tags"].get(names.KIND) == "trial"]
        oldest = {run["tags"][names.TRIAL]: run for run in reversed(runs)}
        return sorted(oldest.values(), key=lambda run: int(run["tags"][names.TRIAL]))

    def run_ids(self) -> dict[int, str]:
        """Return the id of each trial's run, by trial number; raises TrackingError if the server does not answer."""
        return {int(run["tags"][names.TRIAL]): str(run["run_id"]) for run in self.runs()}

    def holder(self) -> str | None:
        """Return the id of the study whose runs are in the experiment; None before the first launch."""
        run = self.server.find({names.KIND: "sweep"})
        return None if run is None else run["tags"].get(names.STUDY)

    def close(self, timeout: float = 10.0) -> None:
        """Send journals for at most ``timeout`` seconds and stop; what is not sent stays in the journals."""
        if pending(self.folder):
            self._uploader.wait(timeout)
        self._uploader.stop()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TrialLog:
    """Writes to a trial's run. When a method returns, the journal has the record, whether the server answers or not."""

    def __init__(self, journal: Journal, uploader: Uploader) -> None:
        self._journal, self._uploader = journal, uploader
        self._lock = threading.RLock()
        self._closed = threading.Event()
        uploader.add(journal)

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow; None until the server has answered once."""
        return self._journal.run_id

    def epoch(self, epoch: int, metrics: Mapping[str, float], time_ms: int | None = None) -> None:
        """Log the metrics of an epoch (from 0), measured at ``time_ms`` since 1970; a metric keeps its first value."""
        values = {names.check("metric", key): float(value) for key, value in metrics.items()}
        self._append({"kind": "metrics", "step": int(epoch), "time": time_ms or _now(), "values": values}, wait=False)

    def series(self, metric: str, values: Mapping[int, float]) -> None:
        """Log a metric's values by step, with the present time; each step keeps its first value."""
        points = [(int(step), float(value)) for step, value in values.items()]
        self._append({"kind": "series", "metric": names.check("metric", metric), "time": _now(), "points": points})

    def system_metrics(self) -> None:
        """Log MLflow's system metrics of this machine until the log is closed."""
        threading.Thread(target=self._monitor, name="sweeper-system-metrics", daemon=True).start()

    def _monitor(self) -> None:
        set_environment()
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # It logs that a machine has no GPU.
        # The monitor only measures. Its own thread is not started, because that would wait for the server and would
        # write to it without the journal.
        monitor: Any = SystemMetricsMonitor(run_id="", tracking_uri=self._journal.server)  # type: ignore[no-untyped-call]
        while not self._closed.wait(monitor.sampling_interval):
            monitor.collect_metrics()
            values = monitor.aggregate_metrics()
            for part in monitor.monitors:
                part.clear_metrics()
            with contextlib.suppress(TrackingError):  # Another thread closed the log after the loop's condition.
                self.epoch(int(time.time()), {f"{names.SYSTEM}{name}": value for name, value in values.items()})

    def params(self, params: Mapping[str, object]) -> None:
        """Log params, which keep their first value; MLflow truncates values over 6000 characters."""
        self._append({"kind": "params", "values": _texts("param", params)})

    def tags(self, tags: Mapping[str, object]) -> None:
        """Log tags, which keep their last value; MLflow truncates values over 8000 characters."""
        self._append({"kind": "tags", "values": _texts("tag", tags)})

    def artifact(self, name: str, content: bytes) -> None:
        """Log a file under the path ``name`` in the run, for instance ``trace/lr.png``."""
        reference = f"{uuid.uuid4().hex}/{Path(names.check('artifact', name)).name}"
        with self._lock:
            path = self._journal.files / reference
            try:
                path.parent.mkdir(parents=True)
                with path.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise TrackingError(f"artifact {name}: {path}: {error.strerror}; free some space") from None
            self._append({"kind": "artifact", "name": name, "file": reference})

    def finish(self, status: str, end_time_ms: int | None = None, reason: str | None = None) -> None:
        """End the trial's run with a status (FINISHED, FAILED, KILLED or PRUNED) and a reason, and close the log."""
        tags = {names.STATE: status} | ({names.REASON: reason} if reason else {})
        mlflow_status = "KILLED" if status == "PRUNED" else status  # MLflow has no status PRUNED.
        with self._lock:
            self._append({"kind": "finish", "status": mlflow_status, "time": end_time_ms or _now(), "tags": tags})
            self.close()

    def close(self) -> None:
        """End this attempt but not the trial's run; records in the journal are still sent."""
        with self._lock:
            self._journal.writing = False
            self._closed.set()
        self._uploader.wake()

    def flush(self, timeout: float) -> bool:
        """Wait until the server has all records; return False if it does not within ``timeout`` seconds."""
        return self._uploader.wait(timeout, self._journal)

    def _append(self, record: dict[str, Any], *, wait: bool = True) -> None:
        with self._lock:
            if not self._journal.writing:
                number = self._journal.number
                raise TrackingError(f"trial {number}: its log is closed; open another attempt to write more")
            self._journal.append(record, wait=wait)
        self._uploader.wake()


def _texts(kind: str, values: Mapping[str, object]) -> dict[str, str]:
    """Return params or tags as the strings that MLflow stores; raises TrackingError for a name that it refuses."""
    return {names.check(kind, name): str(value) for name, value in values.items()}


def _now() -> int:
    return round(time.time() * 1000)
