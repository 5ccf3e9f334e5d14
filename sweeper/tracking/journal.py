"""A journal: the file to which one process writes everything about one attempt at a trial, before it is sent to MLflow.

Each line is a JSON record. The file ``.ack`` beside it stores the server and the number of bytes that this server has
confirmed; a different server gets all records. The process that holds the file's lock owns the journal: the writer
while it lives, and after its death the first process that takes the lock to send the rest. If the writer died within
a line, that process cuts the incomplete line off.

When ``append`` returns, the operating system has the record, so the death of the process loses nothing. Metrics of an
epoch are not awaited on the disk, so a power failure may lose those of the last milliseconds; the epoch's row is also
stored with its snapshot, from which the next attempt writes the record again.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweeper.tracking.server import RunContents

Record = dict[str, Any]

_NAME = re.compile(r"(\d+)\.(\d+)\.(\d+)\.jsonl")
SENT = "sent"  # The folder of the journals that are sent completely.


class Journal:
    """A journal that this process owns; trial and attempt are part of its file name. ``server`` is the URI to send to.

    The uploader uses the attributes ``contents`` and ``checked``.
    """

    def __init__(self, path: Path, descriptor: int, server: str) -> None:
        self.path, self.server = path, server
        name = _NAME.fullmatch(path.name)
        assert name is not None, path
        self.number, self.attempt = int(name[1]), int(name[2])
        self.writing = False  # Whether this process may still append records.
        self.contents: RunContents | None = None  # What the run has on the server; None if that is not known.
        self.checked = 0.0  # When the server was last asked for the run's newest attempt, in monotonic seconds.
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._unsynced = threading.Event()
        self._syncing: threading.Thread | None = None
        self._closing = False
        self._unwritten = b""  # Records that a full disk has not taken yet.
        self._size = _without_torn_line(descriptor)
        self.acknowledged, self.run_id = self._read_ack()

    @classmethod
    def create(cls, folder: Path, number: int, attempt: int, server: str = "") -> "Journal":
        """Return the journal of this attempt, a dead process's or a new one; raises OSError if it cannot be created."""
        for suffix in range(1000):
            path = folder / f"{number:05d}.{attempt:03d}.{suffix}.jsonl"
            try:
                journal = None if (folder / SENT / path.name).exists() else cls.take(path, server, create=True)
            except OSError:
                if not path.exists():
                    raise
                continue  # It exists but cannot be opened, which the uploader reports.
            if journal:
                return journal
        raise OSError(f"{folder}: all thousand names for a journal of trial {number}, attempt {attempt}, are in use")

    @classmethod
    def take(cls, path: Path, server: str = "", *, create: bool = False) -> "Journal | None":
        """Take the lock of ``path``; return None if a living process has it or the file is gone.

        Raises OSError if the file cannot be opened or read.
        """
        try:
            # Not O_APPEND, because a record of which a full disk took only a part is overwritten later.
            descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino != path.stat().st_ino:
                raise BlockingIOError  # Between the two calls above, its owner sent it and moved it away.
            return cls(path, descriptor, server)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)  # An open descriptor would keep the lock from other processes.
            raise

    @property
    def files(self) -> Path:
        """The folder of the artifacts to which records refer."""
        return self.path.with_suffix(".files")

    @property
    def size(self) -> int:
        """The bytes of all records, including those that a full disk has not taken yet."""
        return self._size + len(self._unwritten)

    @property
    def done(self) -> bool:
        """Whether the server has all records."""
        return self.acknowledged == self.size

    def append(self, record: Record, *, wait: bool = True) -> None:
        """Write a record, with ``wait`` until it is on the disk; a record that a full disk refuses is written later."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._unwritten += line
            self._write()
            if wait:
                self._sync()
        if not wait:
            if self._syncing is None:
                self._syncing = threading.Thread(target=self._keep_syncing, name="sweeper-journal", daemon=True)
                self._syncing.start()
            self._unsynced.set()

    def retry(self) -> None:
        """Write the records that a full disk refused before."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if not self._unwritten:
            return
        with contextlib.suppress(OSError):
            if os.pwrite(self._descriptor, self._unwritten, self._size) == len(self._unwritten):
                self._size += len(self._unwritten)
                self._unwritten = b""

    def _sync(self) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)

    def _keep_syncing(self) -> None:
        while not self._closing:
            self._unsynced.wait()
            self._unsynced.clear()
            self._sync()

    def unsent(self) -> list[tuple[Record | None, int]]:
        """Return the records after the acknowledged ones (None: a damaged line), each with the offset of its end."""
        start = self.acknowledged
        return list(_parse(os.pread(self._descriptor, self._size - start, start), start))

    def first(self) -> Record:
        """Return the first record, of kind "open"; {} if its line is damaged."""
        for record, _ in _parse(os.pread(self._descriptor, self._size, 0), 0):
            return record or {}
        return {}

    def acknowledge(self, offset: int, run_id: str | None) -> None:
        """Store that run ``run_id`` on the journal's server has all records before ``offset``."""
        self.acknowledged, self.run_id = offset, run_id
        temporary = self.path.with_suffix(".ack.new")
        with contextlib.suppress(OSError):  # Without the file, records are sent twice, which changes nothing in MLflow.
            temporary.write_text(json.dumps({"offset": offset, "run_id": run_id, "server": self.server}))
            temporary.replace(self.path.with_suffix(".ack"))

    def close(self) -> None:
        """Release the lock, so that other processes can send the journal."""
        self._closing = True
        self._unsynced.set()
        if self._syncing:
            self._syncing.join()
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1  # A later write then fails, instead of reaching a file that reuses the number.

    def retire(self) -> None:
        """Move a journal that is sent completely to the folder ``sent``, and delete the files of its artifacts."""
        sent = self.path.parent / SENT
        sent.mkdir(exist_ok=True)
        self.path.replace(sent / self.path.name)
        self.path.with_suffix(".ack").unlink(missing_ok=True)
        shutil.rmtree(self.files, ignore_errors=True)
        self.close()

    def _read_ack(self) -> tuple[int, str | None]:
        try:
            ack = json.loads(self.path.with_suffix(".ack").read_text())
            valid = ack["server"] == self.server and 0 <= ack["offset"] <= self._size
            return (ack["offset"], ack["run_id"]) if valid else (0, None)
        except (OSError, ValueError, KeyError, TypeError):
            return 0, None


def pending(folder: Path) -> list[Path]:
    """Return the journals of a folder that are not sent completely, sorted by trial and attempt."""
    return sorted(path for path in folder.glob("*.jsonl") if _NAME.fullmatch(path.name))


def _parse(data: bytes, offset: int) -> Iterator[tuple[Record | None, int]]:
    """Yield the record of each complete line (None: damaged) and the offset of its end; the last line is incomplete."""
    for line in data.split(b"\n")[:-1]:
        offset += len(line) + 1
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        yield (record if isinstance(record, dict) and "kind" in record else None), offset


def _without_torn_line(descriptor: int) -> int:
    """Cut off an incomplete last line, which a dying writer leaves; return the remaining size in bytes."""
    size = os.fstat(descriptor).st_size
    complete = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    if complete < size:
        os.ftruncate(descriptor, complete)
    return complete
