"""One MLflow run per trial over all its attempts: written to a journal on this machine, sent in the background.

    with Tracker("sqlite:///mlflow.db", "digits", Path("journals")) as tracker:
        log = tracker.trial(0, name="cosine", tags={names.FAMILY: "cosine"}, params={"lr0": 0.02})
        log.epoch(0, {names.LR: 0.02, f"{names.CURVE}mAP50-95": 0.11})
        log.finish("FINISHED")

Nothing here blocks training: while the server is away the journal grows. It is sent, each point once and with the
time at which it was made, by this process or, after its death, by the next process that uses the folder.
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
    """A sweep's experiment. The constructor connects to nothing; a process has one Tracker for a study.

    ``uri``: ``sqlite:///FILE`` or ``http(s)://HOST:PORT`` (user and password in MLFLOW_TRACKING_USERNAME and
    _PASSWORD). ``experiment``: the sweep's name. ``folder``: where all processes of this machine keep their journals.
    """

    def __init__(self, uri: str, experiment: str, folder: Path) -> None:
        names.check("experiment", experiment)
        self.server = Server(uri, experiment)
        self.experiment = experiment
        slug = re.sub(r"[^\w.-]", "_", experiment)
        self.folder = Path(folder) / f"{slug}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"
        self._uploader = Uploader(self.server, self.folder)

    def of(self, study: str) -> "Tracker":
        """The same experiment with the journals of one ``study`` alone: another study has other trials of a number."""
        tracker = copy.copy(self)
        tracker.folder = self.folder / study
        tracker._uploader = Uploader(self.server, tracker.folder)
        return tracker

    def check(self, timeout: float = 5.0) -> None:
        """TrackingError in one line unless the server answers within ``timeout`` seconds and lets the user in."""
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
        """The id of the sweep's parent run, which is made if it is not there; adds to it what is given.

        A param keeps its first value, a tag its last, an artifact its last bytes. ``status`` ends the run.
        TrackingError if the server is away.
        """
        run_id = self.server.run(self.experiment, {names.KIND: "sweep"}, _now())
        held = self.server.held(run_id).params
        new = {key: value for key, value in _texts("param", params or {}).items() if key not in held}
        self.server.send(run_id, [], new, _texts("tag", tags or {}))
        self._send_files(run_id, artifacts or {})
        if status:
            self.server.set_status(run_id, status, _now())
        return run_id

    def add(self, number: int, tags: Mapping[str, object], artifacts: Mapping[str, bytes]) -> None:
        """Add to the run of trial ``number``, which has ended. TrackingError if the server is away."""
        run = self.server.find({names.KIND: "trial", names.TRIAL: str(number)})
        if run is None:
            raise TrackingError(f"trial {number}: has no run in {self.server} yet; its worker's journal is on the way")
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
        """The log of trial ``number``: one run over all attempts and processes. It does not wait for the server."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            journal = Journal.create(self.folder, number, attempt, self.server.uri)
        except OSError as error:
            raise TrackingError(
                f"journal of trial {number} in {self.folder}: {error}; expected a folder to write to"
            ) from None
        words = {names.SWEEP: self.experiment, names.KIND: "trial", names.TRIAL: number, **(tags or {})}
        words[names.COLOR] = names.color(number % 6, baseline=words.get(names.STAGE) == "baseline")
        opened = {"kind": "open", "time": _now(), "name": name or f"trial {number}", "tags": _texts("tag", words)}
        journal.append(opened)
        log = TrialLog(journal, self._uploader)
        if params:
            log.params(params)
        return log

    def drain(self, timeout: float) -> int:
        """Send the journals of this process and of dead ones; gives how many have not arrived in ``timeout`` s."""
        if not pending(self.folder):
            return 0
        self._uploader.wait(timeout)
        return self._uploader.left()

    def waiting(self) -> int:
        """How many journals of this machine have not arrived whole, also living workers' and other studies'."""
        studies = [path for path in self.folder.glob("*/") if path.name != SENT]
        return sum(len(pending(folder)) for folder in (self.folder, *studies))

    @property
    def problem(self) -> str | None:
        """Why journals wait, in one line; None while everything is sent."""
        return self._uploader.problem or next(iter(self._uploader.unopened.values()), None)

    def runs(self) -> list[dict[str, Any]]:
        """The trials' runs by trial number, as ``{"run_id", "name", "status", "start_ms", "end_ms", "tags", "params",
        "metrics"}``; "metrics" has each metric's value at its last step. TrackingError if the server is away."""
        runs = [run for run in self.server.runs() if run["tags"].get(names.KIND) == "trial"]
        oldest = {run["tags"][names.TRIAL]: run for run in reversed(runs)}
        return sorted(oldest.values(), key=lambda run: int(run["tags"][names.TRIAL]))

    def run_ids(self) -> dict[int, str]:
        """The id of each trial's run, by trial number. TrackingError if the server is away."""
        return {int(run["tags"][names.TRIAL]): str(run["run_id"]) for run in self.runs()}

    def holder(self) -> str | None:
        """The id of the study whose runs the experiment holds; None before the first launch."""
        run = self.server.find({names.KIND: "sweep"})
        return None if run is None else run["tags"].get(names.STUDY)

    def close(self, timeout: float = 10.0) -> None:
        """Send what can be sent within ``timeout`` seconds and stop; the rest stays in the journals."""
        if pending(self.folder):
            self._uploader.wait(timeout)
        self._uploader.stop()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TrialLog:
    """Writes to a trial's run. When a call returns, the journal has it, whatever the server does."""

    def __init__(self, journal: Journal, uploader: Uploader) -> None:
        self._journal, self._uploader = journal, uploader
        self._lock = threading.RLock()
        self._closed = threading.Event()
        uploader.add(journal)

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow; None before the server has been reached."""
        return self._journal.run_id

    def epoch(self, epoch: int, metrics: Mapping[str, float], time_ms: int | None = None) -> None:
        """The metrics of an epoch (from 0) at a time in ms since 1970. In MLflow a metric's first value there stays."""
        values = {names.check("metric", key): float(value) for key, value in metrics.items()}
        self._append({"kind": "metrics", "step": int(epoch), "time": time_ms or _now(), "values": values}, wait=False)

    def series(self, metric: str, values: Mapping[int, float]) -> None:
        """A metric's values by step, all at the present time. The first value of a step stays."""
        points = [(int(step), float(value)) for step, value in values.items()]
        self._append({"kind": "series", "metric": names.check("metric", metric), "time": _now(), "points": points})

    def system_metrics(self) -> None:
        """Log MLflow's system metrics of this machine from now on, until the log is closed."""
        threading.Thread(target=self._monitor, name="sweeper-system-metrics", daemon=True).start()

    def _monitor(self) -> None:
        set_environment()
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it says of a CPU that it is no GPU
        # Only asked for values: its own thread would ask the server, which may be away, and write past the journal.
        monitor: Any = SystemMetricsMonitor(run_id="", tracking_uri=self._journal.server)  # type: ignore[no-untyped-call]
        while not self._closed.wait(monitor.sampling_interval):
            monitor.collect_metrics()
            values = monitor.aggregate_metrics()
            for part in monitor.monitors:
                part.clear_metrics()
            with contextlib.suppress(TrackingError):  # the log was closed in this moment
                self.epoch(int(time.time()), {f"{names.SYSTEM}{name}": value for name, value in values.items()})

    def params(self, params: Mapping[str, object]) -> None:
        """Params keep their first value. MLflow cuts one over 6000 characters."""
        self._append({"kind": "params", "values": _texts("param", params)})

    def tags(self, tags: Mapping[str, object]) -> None:
        """Tags keep their last value. MLflow cuts one over 8000 characters."""
        self._append({"kind": "tags", "values": _texts("tag", tags)})

    def artifact(self, name: str, content: bytes) -> None:
        """A file in the run: its ``name`` with folders (``trace/lr.png``), and its bytes."""
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
        """The end of the trial: FINISHED, FAILED, KILLED or PRUNED, with a reason. Nothing more can be written."""
        tags = {names.STATE: status} | ({names.REASON: reason} if reason else {})
        shown = "KILLED" if status == "PRUNED" else status  # MLflow has no such status
        with self._lock:
            self._append({"kind": "finish", "status": shown, "time": end_time_ms or _now(), "tags": tags})
            self.close()

    def close(self) -> None:
        """End this attempt but not the trial. What was written is still sent."""
        with self._lock:
            self._journal.writing = False
            self._closed.set()
        self._uploader.wake()

    def flush(self, timeout: float) -> bool:
        """Wait until the server has everything; False if it does not within ``timeout`` seconds."""
        return self._uploader.wait(timeout, self._journal)

    def _append(self, record: dict[str, Any], *, wait: bool = True) -> None:
        with self._lock:
            if not self._journal.writing:
                number = self._journal.number
                raise TrackingError(f"trial {number}: its log is closed; open another attempt to write more")
            self._journal.append(record, wait=wait)
        self._uploader.wake()


def _texts(kind: str, values: Mapping[str, object]) -> dict[str, str]:
    """Params or tags as MLflow keeps them; TrackingError for a name that it does not take."""
    return {names.check(kind, name): str(value) for name, value in values.items()}


def _now() -> int:
    return round(time.time() * 1000)
