"""The face of tracking: a ``Tracker`` for a sweep, a ``TrialLog`` for a trial that this process trains."""

import copy
import hashlib
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from sweeper.errors import TrackingError
from sweeper.tracking import names
from sweeper.tracking.journal import SENT, Journal, pending, written
from sweeper.tracking.server import Server
from sweeper.tracking.upload import Uploader


class Tracker:
    """A sweep's experiment. The constructor touches no server; one Tracker a process and study.

    ``uri``: ``sqlite:///FILE`` or ``http(s)://HOST:PORT`` (user and password in MLFLOW_TRACKING_USERNAME and
    _PASSWORD). ``experiment``: the sweep's name. ``folder``: where this machine's processes keep their journals, one
    for all of them. ``artifacts``: where an embedded store keeps files; beside the database by default.
    """

    def __init__(self, uri: str, experiment: str, folder: Path, artifacts: Path | None = None) -> None:
        names.check("experiment", experiment)
        self.server = Server(uri, experiment, artifacts)
        self.experiment = experiment
        slug = re.sub(r"[^\w.-]", "_", experiment)
        self.folder = Path(folder) / f"{slug}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"
        self._uploader = Uploader(self.server, self.folder)

    def of(self, study: str) -> "Tracker":
        """The same experiment with the journals of one ``study`` alone, by its own random name.

        Another study of the sweep's name, in another database, has other trials under the same numbers.
        """
        found = copy.copy(self)
        found.folder = self.folder / study
        found._uploader = Uploader(self.server, found.folder)
        return found

    def check(self, timeout: float = 5.0) -> None:
        """TrackingError in one line unless the server answers within ``timeout`` seconds and lets us in."""
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
        """The id of the sweep's parent run, which is made once whoever asks; adds to it what is given.

        Asks the server at once, unlike a trial's log: TrackingError if it is away. A param keeps its first value, a
        tag its last, an artifact its last bytes. ``status`` ends the run (FINISHED, FAILED, KILLED) or, as RUNNING,
        takes it up again.
        """
        server = self.server
        run_id = server.run(self.experiment, {names.KIND: "sweep"}, _now())
        held = server.held(run_id)
        kept, long = names.cut(params or {}, names.PARAM_CHARACTERS)
        words, long_tags = names.cut(tags or {}, names.TAG_CHARACTERS)
        for name in [*kept, *words]:
            names.check("param or tag", name)
        if long or long_tags:
            words[names.CUT] = ", ".join(long + long_tags)
        server.send(run_id, [], {key: value for key, value in kept.items() if key not in held.params}, words)
        for name, data in (artifacts or {}).items():
            self._send_file(run_id, name, data)
        if status:
            server.set_status(run_id, status, None if status == "RUNNING" else _now())
        return run_id

    def add(self, number: int, tags: Mapping[str, object], artifacts: Mapping[str, bytes]) -> None:
        """Say more of trial ``number``, whose run has ended. Asks the server at once: TrackingError if it is away."""
        run_id = self.server.find({names.KIND: "trial", names.TRIAL: str(number)})
        if run_id is None:
            raise TrackingError(f"trial {number}: has no run in {self.server} yet; its worker's journal is on the way")
        words, _ = _checked("tag", tags, names.TAG_CHARACTERS)
        self.server.send(run_id, [], {}, words)
        for name, data in artifacts.items():
            self._send_file(run_id, name, data)

    def _send_file(self, run_id: str, name: str, data: bytes) -> None:
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
        """The log of trial ``number``: one run over all attempts and processes. Asks the server nothing now."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            known = written(self.folder, number)
            journal = Journal.create(self.folder, number, attempt, self.server.uri)
        except OSError as error:
            raise TrackingError(
                f"journal of trial {number} in {self.folder}: {error}; expected a folder to write to"
            ) from None
        words = {names.SWEEP: self.experiment, names.KIND: "trial", names.TRIAL: number, **(tags or {})}
        if names.FAMILY in words:
            words[names.COLOR] = names.color(str(words[names.FAMILY]), number)
        cut, long = _checked("tag", words, names.TAG_CHARACTERS)
        if long:
            cut[names.CUT] = ", ".join(long)
        journal.append({"kind": "open", "time": _now(), "name": name or f"trial {number}", "tags": cut})
        log = TrialLog(journal, self._uploader, known)
        if params:
            log.params(params)
        return log

    def drain(self, timeout: float) -> int:
        """Send our journals and those whose owner is dead; how many have not arrived within ``timeout`` seconds."""
        if not pending(self.folder):
            return 0
        self._uploader.wait(timeout)
        return self._uploader.left()

    def waiting(self) -> int:
        """Journals on this machine that have not arrived whole, without a study those of all studies of the sweep's
        name; those of living workers are among them."""
        below = [path for path in self.folder.glob("*/") if path.name != SENT]
        return sum(len(pending(folder)) for folder in (self.folder, *below))

    @property
    def problem(self) -> str | None:
        """Why journals are waiting, in one line; None while everything goes through."""
        unopened = list(self._uploader.unopened.values())
        more = f" (and {len(unopened) - 1} more)" if unopened[1:] else ""
        return self._uploader.problem or (f"{unopened[0]}{more}" if unopened else None)

    def runs(self) -> list[dict[str, Any]]:
        """The trials' runs by trial number, as ``{"run_id", "name", "status", "start_ms", "end_ms", "tags", "params",
        "metrics"}``; "metrics" has the latest values by step. TrackingError if the server is away."""
        runs = [run for run in self.server.runs() if run["tags"].get(names.KIND) == "trial"]
        first = {run["tags"][names.TRIAL]: run for run in reversed(runs)}  # the oldest of each, should there be two
        return sorted(first.values(), key=lambda run: int(run["tags"][names.TRIAL]))

    def run_ids(self) -> dict[int, str]:
        """trial -> its run's id. TrackingError if the server is away."""
        return {int(run["tags"][names.TRIAL]): str(run["run_id"]) for run in self.runs()}

    def holder(self) -> str | None:
        """The study that the experiment belongs to; None if nobody has launched one. TrackingError as above."""
        return self.server.tag({names.KIND: "sweep"}, names.STUDY)

    def history(self, run_id: str, key: str) -> list[tuple[int, float, int]]:
        """(step, value, time in ms since 1970) of a metric, by step."""
        return self.server.history(run_id, key)

    def close(self, timeout: float = 10.0) -> None:
        """Send what can be sent within ``timeout`` seconds and stop; the rest stays in the journals."""
        if pending(self.folder):
            self._uploader.wait(timeout)
        self._uploader.stop()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class TrialLog:
    """What a trial has to say. Every call is in the journal when it returns, whatever the server does."""

    def __init__(self, journal: Journal, uploader: Uploader, known: set[tuple[str, int]]) -> None:
        self._journal, self._uploader, self._known = journal, uploader, known
        self._lock = threading.Lock()
        self._files = 0
        self._cut: set[str] = set()
        self._upload = uploader.add(journal)

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow; None until the server told it."""
        return self._journal.run_id

    @property
    def problem(self) -> str | None:
        """Why the disk does not take the journal; None if it does."""
        return self._journal.problem

    def epoch(self, epoch: int, metrics: Mapping[str, float], time_ms: int | None = None) -> None:
        """The metrics of an epoch (from 0), all at one time in ms since 1970. The first value of each stays."""
        with self._lock:
            new = {
                names.check("metric", key): float(value)
                for key, value in metrics.items()
                if (key, epoch) not in self._known
            }
            if new:
                self._known.update((key, epoch) for key in new)
                self._append({"kind": "metrics", "step": int(epoch), "time": _ms(time_ms), "values": new}, wait=False)

    def params(self, params: Mapping[str, object]) -> None:
        """Params keep their first value. The end of those over 6000 characters is cut, which a tag says."""
        self._words("param", "params", params, names.PARAM_CHARACTERS)

    def tags(self, tags: Mapping[str, object]) -> None:
        """Tags keep their last value. The end of those over 8000 characters is cut, which a tag says."""
        self._words("tag", "tags", tags, names.TAG_CHARACTERS)

    def artifact(self, name: str, data: bytes | Path) -> None:
        """A file in the run: ``name`` with folders (``trace/lr.parquet``), and its bytes or a path to copy it from."""
        names.check("artifact", name)
        content = data.read_bytes() if isinstance(data, Path) else data
        with self._lock:
            self._files += 1
            reference = f"{_now()}-{self._files}/{Path(name).name}"
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

    def weights(self, name: str, data: bytes) -> None:
        """Weights as a plain file ``weights/NAME``: a ``state_dict`` that loads with ``weights_only=True``."""
        self.artifact(f"weights/{name}", data)

    def finish(self, status: str, end_time_ms: int | None = None, reason: str | None = None) -> None:
        """The end of the trial: FINISHED, FAILED, KILLED or PRUNED, with a reason to show. Nothing can follow."""
        if status not in ("FINISHED", "FAILED", "KILLED", "PRUNED"):
            raise TrackingError(f"status {status!r}: expected FINISHED, FAILED, KILLED or PRUNED")
        words = {names.STATE: status} | ({names.REASON: reason} if reason else {})
        tags, _ = names.cut(words, names.TAG_CHARACTERS)
        shown = "KILLED" if status == "PRUNED" else status  # MLflow has no word for it
        with self._lock:
            self._append({"kind": "finish", "status": shown, "time": _ms(end_time_ms), "tags": tags})
        self.close()

    def close(self) -> None:
        """End this attempt without ending the trial (another will go on); what is journaled is still sent."""
        self._upload.writing = False
        self._uploader.wake()

    def flush(self, timeout: float) -> bool:
        """Wait until the server has everything; False if it has not within ``timeout`` seconds."""
        return self._uploader.wait(timeout, self._upload)

    def _words(self, what: str, kind: str, values: Mapping[str, object], limit: int) -> None:
        words, long = _checked(what, values, limit)
        with self._lock:
            self._append({"kind": kind, "values": words})
            if not self._cut.issuperset(long):
                self._cut.update(long)
                self._append({"kind": "tags", "values": {names.CUT: ", ".join(sorted(self._cut))[:limit]}})

    def _append(self, record: dict[str, Any], *, wait: bool = True) -> None:
        if not self._upload.writing:
            raise TrackingError(f"trial {self._journal.number}: its log is closed; open another attempt to write more")
        self._journal.append(record, wait=wait)
        self._uploader.wake()


def _checked(what: str, values: Mapping[str, object], limit: int) -> tuple[dict[str, str], list[str]]:
    for name in values:
        names.check(what, name)
    return names.cut(values, limit)


def _now() -> int:
    return round(time.time() * 1000)


def _ms(time_ms: int | None) -> int:
    """A time in ms since 1970, now by default; seconds or nonsense are refused."""
    if time_ms is None:
        return _now()
    if not (math.isfinite(time_ms) and time_ms > 10**11):
        raise TrackingError(f"time {time_ms}: expected milliseconds since 1970")
    return int(time_ms)
