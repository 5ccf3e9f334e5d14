"""Sends journals to MLflow in a background thread of each process, which repeats failed requests without limit.

Records may be sent twice: a point is always sent with the time that its record has, and before the first record of a
journal the uploader reads what the run has, so that the first value of each metric and step stays.
"""

import logging
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sweeper import names
from sweeper.errors import TrackingError
from sweeper.tracking.connection import Gone, Refused
from sweeper.tracking.journal import Journal, Record, pending
from sweeper.tracking.server import Point, RunContents, Server

logger = logging.getLogger("sweeper")

# In seconds. A round is one pass over all journals.
_ADOPT_EVERY = 5.0  # Between two searches for journals whose owner has died.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # Between two rounds while the server does not answer.
_GATHER = 0.2  # Records that are written within this time are sent together.
_FRESH = 3.0  # After this time the uploader checks again whether a newer attempt writes to the run.
_LAST_REQUEST = 5.0  # How long ``stop`` waits for the request in progress.
_ROUND = 20.0  # How long a round may last once a request has failed.
_WAITED_ROUND = 0.5  # Between two rounds while a caller waits for them.


class Uploader:
    """Sends the journals of ``folder`` that belong to this process or to a dead one."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.problem: str | None = None  # Why the last round did not send everything.
        self.unreadable: dict[Path, str] = {}  # The reasons why journals cannot be opened; the others are sent.
        self._server, self._folder = server, folder
        self._journals: list[Journal] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._has_records = False  # Whether records may be unsent.
        self._urgent = False  # Whether the next round should begin at once, even after a failed one.
        self._stopping = False

    def add(self, journal: Journal) -> None:
        """Send a journal of this process, including the records that it appends later."""
        journal.writing = True
        with self._changed:
            self._journals.append(journal)
        self.wake()

    def wake(self, *, urgent: bool = False) -> None:
        """Announce new records; with ``urgent`` the next round begins at once, even after a failed one."""
        with self._changed:
            self._has_records, self._urgent = True, self._urgent or urgent
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sweeper-tracking", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, timeout: float, journal: Journal | None = None) -> bool:
        """Wait until ``journal`` is sent (None: all of this process or dead ones); return False after ``timeout``."""
        deadline = time.monotonic() + timeout
        self._adopt()
        with self._changed:
            while not self._sent(journal) and not self._stopping and (left := deadline - time.monotonic()) > 0:
                self.wake(urgent=True)
                self._changed.wait_for(lambda: self._stopping or self._sent(journal), min(left, _WAITED_ROUND))
            return self._sent(journal)

    def unsent(self) -> int:
        """Return how many journals of this process or of dead ones are not sent completely."""
        with self._changed:
            return sum(not journal.done for journal in self._journals) + len(self.unreadable)

    def stop(self) -> None:
        """End the thread after the request in progress, and close the journals, so that other processes send them."""
        with self._changed:
            self._stopping = True
            for journal in self._journals:
                journal.writing = False
            self._changed.notify_all()
        if self._thread:
            self._thread.join(_LAST_REQUEST)  # If the server hangs, the end of the process closes the journals.
        else:
            self._close_journals()

    def _close_journals(self) -> None:
        for journal in self._journals:
            journal.close()
        self._journals = []

    def _sent(self, journal: Journal | None) -> bool:
        if journal:
            return journal.done
        # A journal that is no longer written must also be retired, which removes it from the list.
        return all(journal.done and journal.writing for journal in self._journals)

    def _work(self) -> None:
        wait = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self._urgent or (self._has_records and self.problem is None), wait
                )
                if not self._urgent:
                    self._changed.wait_for(lambda: self._stopping or self._urgent, _GATHER)
                if self._stopping:
                    self._close_journals()
                    return
                self._has_records = self._urgent = False
            try:
                problem = self._round()
            except OSError as error:
                problem = f"journals {self._folder}: {error}"
            if problem is None:
                wait = _ADOPT_EVERY
            else:
                wait = _FIRST_WAIT if self.problem is None else min(2 * wait, _LONGEST_WAIT) * random.uniform(0.8, 1.0)
            with self._changed:
                self.problem = problem
                self._changed.notify_all()

    def _round(self) -> str | None:
        """Send all unsent records; return the message of the last failure, or None."""
        problem = None
        patience = time.monotonic() + _ROUND
        self._adopt()
        with self._changed:
            journals = sorted(self._journals, key=lambda journal: journal.path.name)
        for journal in journals:
            # Read before sending: if it were read afterwards, the trial could append its last record in between, and
            # the journal would be retired with an unsent record. While stopping, it is left to other processes.
            writing = journal.writing or self._stopping
            try:
                journal.retry()
                self._send(journal)
                if journal.done and not writing:
                    journal.retire()
                    with self._changed:
                        self._journals.remove(journal)
            except Gone as error:
                problem = str(error)
                journal.acknowledge(0, None)  # A person deleted the run, so all records are sent to a new one.
                journal.contents = None
                self._server.forget_experiment()
            except Exception as error:  # Training continues, and the next round sends the journal again.
                problem = str(error) if isinstance(error, TrackingError) else f"{type(error).__name__}: {error}"
                # The server may have executed the failed request, so the next round first reads what the run has.
                journal.contents = None
                if time.monotonic() > patience:
                    break  # The server hangs, and every further journal would wait for a timeout.
        return problem

    def _adopt(self) -> None:
        """Take over the journals of dead processes; log a warning, once, for each that cannot be opened."""
        with self._changed:
            before, self.unreadable = self.unreadable, {}
            for path in set(pending(self._folder)) - {journal.path for journal in self._journals}:
                try:
                    if (journal := Journal.take(path, self._server.uri)) is not None:
                        self._journals.append(journal)
                except OSError as error:
                    self.unreadable[path] = (
                        f"journal {path}: {error.strerror}; it waits, the others are sent; expected a file that this "
                        "user may read and write"
                    )
                    if path not in before:
                        logger.warning("%s", self.unreadable[path])

    def _send(self, journal: Journal) -> None:
        """Send the unsent records of a journal in their order."""
        records = journal.unsent()
        if not records:
            return
        run_id, contents = self._run_of(journal)
        batch = _Batch()
        sent = journal.acknowledged
        for record, end in records:
            kind = record["kind"] if record else "damaged"
            # If a newer attempt has written to the run, its tags, artifacts and status stay.
            superseded = journal.attempt < contents.attempt
            if kind in ("artifact", "finish"):
                self._deliver(run_id, batch)
                batch = _Batch()
                journal.acknowledge(sent, run_id)
            if record is None:
                batch.tags[names.DAMAGED] = f"{journal.path.name}, before byte {end}"
            elif kind in ("metrics", "series"):
                batch.add_points(record, contents)
            elif kind == "params":
                new = {key: value for key, value in record["values"].items() if key not in contents.params}
                batch.params |= new
                contents.params |= new.keys()
            elif kind == "artifact":
                if not (superseded and self._server.has_file(run_id, record["name"])):
                    self._send_file(run_id, record["name"], journal.files / record["file"], batch)
            elif superseded:
                pass
            elif kind == "tags":
                batch.tags |= record["values"]
            elif kind == "open":
                begun = datetime.fromtimestamp(record["time"] / 1000, UTC).isoformat(" ", "seconds")
                batch.tags |= {**record["tags"], f"{names.ATTEMPT}.{journal.attempt}": begun}
                contents.attempt = journal.attempt
                if contents.status != "RUNNING":
                    self._server.set_status(run_id, "RUNNING")
                    contents.status = "RUNNING"
            elif kind == "finish":
                self._deliver(run_id, _Batch(tags=record["tags"]))
                self._server.set_status(run_id, record["status"], record["time"])
                contents.status = record["status"]
            sent = end
        self._deliver(run_id, batch)
        journal.acknowledge(sent, run_id)

    def _run_of(self, journal: Journal) -> tuple[str, RunContents]:
        """Return the id of a journal's run, which is created if it is missing, and what the run has on the server."""
        contents, run = journal.contents, journal.run_id
        if run and contents:
            # The operating system may have suspended this process, while another one continued the trial in a newer
            # attempt and wrote to the run. The known contents are valid only if they are fresh or the attempt is equal.
            fresh = time.monotonic() < journal.checked + _FRESH
            if fresh or self._server.attempt(run) == contents.attempt:
                journal.checked = time.monotonic()
                return run, contents
        opened = journal.first()
        start = opened.get("time") or round(time.time() * 1000)
        parent = self._server.run(self._server.experiment, {names.KIND: "sweep"}, start)
        identity = {names.KIND: "trial", names.TRIAL: str(journal.number)}
        run_id = journal.run_id or self._server.run(opened.get("name") or f"trial {journal.number}", identity, start)
        journal.contents, journal.checked = self._server.contents(run_id), time.monotonic()
        if journal.contents.parent != parent:
            self._server.send(run_id, [], {}, {names.PARENT: parent})
        journal.acknowledge(journal.acknowledged, run_id)
        return run_id, journal.contents

    def _deliver(self, run_id: str, batch: "_Batch") -> None:
        """Send a batch; leave out the records that the server will always refuse, and name them in a tag of the run."""
        try:
            self._server.send(run_id, batch.points, batch.params, batch.tags)
        except Refused:
            singles = [_Batch([point]) for point in batch.points]
            singles += [_Batch(params={key: value}) for key, value in batch.params.items()]
            singles += [_Batch(tags={key: value}) for key, value in batch.tags.items()]
            for single in singles:
                try:
                    self._server.send(run_id, single.points, single.params, single.tags)
                except Refused as error:
                    self._server.send(run_id, [], {}, {names.REFUSED: str(error)})

    def _send_file(self, run_id: str, name: str, path: Path, batch: "_Batch") -> None:
        try:
            if not path.is_file():
                raise Refused(f"artifact {name}: its file is missing in the journal's folder")
            self._server.send_file(run_id, name, path)
        except Refused as error:
            batch.tags[names.REFUSED] = str(error)


@dataclass
class _Batch:
    """Points, params and tags that are sent in one request."""

    points: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add_points(self, record: Record, contents: RunContents) -> None:
        """Add the points that the run does not have from a record: an epoch's "metrics" or a "series" of one metric."""
        if record["kind"] == "metrics":
            points = [(metric, record["step"], value) for metric, value in record["values"].items()]
        else:
            points = [(record["metric"], step, value) for step, value in record["points"]]
        for metric, step, value in points:
            if (metric, step) not in contents.points:
                contents.points.add((metric, step))
                self.points.append((metric, value, record["time"], step))
