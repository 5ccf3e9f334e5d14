"""Sends journals to MLflow in a background thread of each process, which never gives up and never delays training.

Sending again is harmless, because a point is sent with the time at which it was journaled, and because the run is asked
what it has before the first record of a journal is sent: the first value of a (metric, step) stays.
"""

import logging
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from sweeper import names
from sweeper.errors import TrackingError
from sweeper.tracking.connection import Gone, Refused
from sweeper.tracking.journal import Journal, Record, pending
from sweeper.tracking.server import Held, Point, Server

_log = logging.getLogger("sweeper")

_ADOPT_EVERY = 5.0  # seconds between looks for journals whose owner has died
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between rounds while the server is away
_GATHER = 0.2  # seconds; records that are written within them are sent together
_FRESH = 3.0  # seconds; after them the run is asked again whether a newer attempt writes to it
_LAST_REQUEST = 5.0  # seconds that ``stop`` waits for the request that is under way
_ROUND = 20.0  # seconds of failures after which a round is broken off
_AGAIN = 0.5  # seconds between rounds while somebody waits for them


class Uploader:
    """Sends the journals of ``folder`` that belong to this process or to a dead one."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.problem: str | None = None  # why the last round did not send everything
        self.unopened: dict[Path, str] = {}  # journals that cannot be opened, and why; the others are sent
        self._server, self._folder = server, folder
        self._journals: list[Journal] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._news = False  # there is something to send
        self._now = False  # the next round shall not wait until the server may be back
        self._stopping = False

    def add(self, journal: Journal) -> None:
        """Send a journal of this process, also the records that will be appended."""
        journal.writing = True
        with self._changed:
            self._journals.append(journal)
        self.wake()

    def wake(self, *, now: bool = False) -> None:
        """Say that there is something to send; ``now``: even if the server was away a moment ago."""
        with self._changed:
            self._news, self._now = True, self._now or now
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sweeper-tracking", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, timeout: float, journal: Journal | None = None) -> bool:
        """Wait until ``journal``, or every journal without another owner, has arrived; False if it has not in time."""
        deadline = time.monotonic() + timeout
        self._adopt()
        with self._changed:
            while not self._arrived(journal) and not self._stopping and (left := deadline - time.monotonic()) > 0:
                self.wake(now=True)
                self._changed.wait_for(lambda: self._stopping or self._arrived(journal), min(left, _AGAIN))
            return self._arrived(journal)

    def left(self) -> int:
        """How many journals of this process or of dead ones have not arrived whole."""
        with self._changed:
            return sum(not journal.done for journal in self._journals) + len(self.unopened)

    def stop(self) -> None:
        """End the thread after the request that is under way, and give the journals up for others to send."""
        with self._changed:
            self._stopping = True
            for journal in self._journals:
                journal.writing = False
            self._changed.notify_all()
        if self._thread:
            self._thread.join(_LAST_REQUEST)  # if the server hangs, they end with the process
        else:
            self._give_up()

    def _give_up(self) -> None:
        for journal in self._journals:
            journal.close()
        self._journals = []

    def _arrived(self, journal: Journal | None) -> bool:
        if journal:
            return journal.done
        return all(journal.done and journal.writing for journal in self._journals)  # one that is over leaves the list

    def _work(self) -> None:
        wait = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopping or self._now or (self._news and self.problem is None), wait
                )
                if not self._now:
                    self._changed.wait_for(lambda: self._stopping or self._now, _GATHER)
                if self._stopping:
                    self._give_up()
                    return
                self._news = self._now = False
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
        """Send all that is unsent; gives the last failure, or None."""
        problem = None
        patience = time.monotonic() + _ROUND
        self._adopt()
        with self._changed:
            journals = sorted(self._journals, key=lambda journal: journal.path.name)
        for journal in journals:
            # Asked before sending, so that no record is appended between the two; what stop() ends, others send.
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
                journal.acknowledge(0, None)  # the run was deleted: everything is sent to a new one
                journal.held = None
                self._server.forget()
            except Exception as error:  # the next round may succeed, and training goes on meanwhile
                problem = str(error) if isinstance(error, TrackingError) else f"{type(error).__name__}: {error}"
                journal.held = None  # the failed request may have arrived, so the run is asked what it has
                if time.monotonic() > patience:
                    break  # the server hangs, and each further journal would wait for it
        return problem

    def _adopt(self) -> None:
        """Take over the journals of dead processes; log once of each that cannot be opened that it waits."""
        with self._changed:
            before, self.unopened = self.unopened, {}
            for path in set(pending(self._folder)) - {journal.path for journal in self._journals}:
                try:
                    if (journal := Journal.take(path, self._server.uri)) is not None:
                        self._journals.append(journal)
                except OSError as error:
                    self.unopened[path] = (
                        f"journal {path}: {error.strerror}; it waits, the others are sent; expected a file that this "
                        "user may read and write"
                    )
                    if path not in before:
                        _log.warning("%s", self.unopened[path])

    def _send(self, journal: Journal) -> None:
        """Send the unsent records of a journal in their order."""
        records = journal.unsent()
        if not records:
            return
        run_id, held = self._bound(journal)
        batch = _Batch()
        arrived = journal.acknowledged
        for record, end in records:
            kind = record["kind"] if record else "damaged"
            late = journal.attempt < held.attempt  # a newer attempt decides on tags, files and the end
            if kind in ("artifact", "finish"):
                self._deliver(run_id, batch)
                batch = _Batch()
                journal.acknowledge(arrived, run_id)
            if record is None:
                batch.tags[names.DAMAGED] = f"{journal.path.name}, before byte {end}"
            elif kind in ("metrics", "series"):
                batch.add_points(record, held)
            elif kind == "params":
                new = {key: value for key, value in record["values"].items() if key not in held.params}
                batch.params |= new
                held.params |= new.keys()
            elif kind == "artifact":
                if not (late and self._server.has_file(run_id, record["name"])):
                    self._send_file(run_id, record["name"], journal.files / record["file"], batch)
            elif late:
                pass
            elif kind == "tags":
                batch.tags |= record["values"]
            elif kind == "open":
                batch.tags |= {**record["tags"], names.ATTEMPT: str(journal.attempt)}
                held.attempt = journal.attempt
                if held.status != "RUNNING":
                    self._server.set_status(run_id, "RUNNING")
                    held.status = "RUNNING"
            elif kind == "finish":
                self._deliver(run_id, _Batch(tags=record["tags"]))
                self._server.set_status(run_id, record["status"], record["time"])
                held.status = record["status"]
            arrived = end
        self._deliver(run_id, batch)
        journal.acknowledge(arrived, run_id)

    def _bound(self, journal: Journal) -> tuple[str, Held]:
        """The id of a journal's run, which is made if it is not there, and what the run has."""
        held, run = journal.held, journal.run_id
        # While this process was frozen, another may have gone on with the trial in a newer attempt.
        if run and held and (time.monotonic() < journal.asked + _FRESH or self._server.attempt(run) == held.attempt):
            journal.asked = time.monotonic()
            return run, held
        opened = journal.first()
        start = opened.get("time") or round(time.time() * 1000)
        parent = self._server.run(self._server.experiment, {names.KIND: "sweep"}, start)
        identity = {names.KIND: "trial", names.TRIAL: str(journal.number)}
        run_id = journal.run_id or self._server.run(opened.get("name") or f"trial {journal.number}", identity, start)
        journal.held, journal.asked = self._server.held(run_id), time.monotonic()
        if journal.held.parent != parent:
            self._server.send(run_id, [], {}, {names.PARENT: parent})
        journal.acknowledge(journal.acknowledged, run_id)
        return run_id, journal.held

    def _deliver(self, run_id: str, batch: "_Batch") -> None:
        """Send a batch. What the server will never take is left out, and a tag of the run names it."""
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
                raise Refused(f"artifact {name}: its file is gone from the journal's folder")
            self._server.send_file(run_id, name, path)
        except Refused as error:
            batch.tags[names.REFUSED] = str(error)


@dataclass
class _Batch:
    """What is sent together."""

    points: list[Point] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add_points(self, record: Record, held: Held) -> None:
        """The points of an epoch's metrics or of a metric's series that the run does not have yet."""
        if record["kind"] == "metrics":
            points = [(metric, record["step"], value) for metric, value in record["values"].items()]
        else:
            points = [(record["metric"], step, value) for step, value in record["points"]]
        for metric, step, value in points:
            if (metric, step) not in held.points:
                held.points.add((metric, step))
                self.points.append((metric, value, record["time"], step))
