"""A journal: the file with everything that one process writes about one trial, before anything is sent.

Each line is a JSON record. The file ``.ack`` beside it says how many bytes which server has confirmed; another server
is sent everything. The process that holds the file's lock owns the journal: the writer while it lives, and after its
death the first process that comes to send the rest, which cuts off a torn last line.

When ``append`` returns, the operating system has the record, so the death of the process loses nothing. If the machine
dies, an epoch of the last milliseconds may be lost, because training does not wait for the disk; the epoch's snapshot
has it, too, and the next attempt journals it again.
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

from sweeper.tracking.server import Held

Record = dict[str, Any]

_NAME = re.compile(r"(\d+)\.(\d+)\.(\d+)\.jsonl")
SENT = "sent"  # the folder of journals that have arrived whole


class Journal:
    """A journal that this process owns. Its name has the trial's ``number`` and ``attempt``; it goes to ``server``."""

    def __init__(self, path: Path, descriptor: int, server: str) -> None:
        self.path, self.server = path, server
        name = _NAME.fullmatch(path.name)
        assert name is not None, path
        self.number, self.attempt = int(name[1]), int(name[2])
        self.writing = False  # whether this process may still append records
        self.held: Held | None = None  # what the run has; None before the server was asked
        self.asked = 0.0  # when the server was asked, in monotonic seconds
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._unsynced = threading.Event()
        self._syncing: threading.Thread | None = None
        self._closing = False
        self._waiting = b""  # records that the disk has not taken yet
        self._size = _repaired(descriptor)
        self.acknowledged, self.run_id = self._read_ack()

    @classmethod
    def create(cls, folder: Path, number: int, attempt: int, server: str = "") -> "Journal":
        """The journal of this attempt: one that a dead process left, or a new one; OSError if none can be made."""
        for suffix in range(1000):
            path = folder / f"{number:05d}.{attempt:03d}.{suffix}.jsonl"
            try:
                journal = None if (folder / SENT / path.name).exists() else cls.take(path, server, create=True)
            except OSError:
                if not path.exists():
                    raise
                continue  # the uploader reports what is wrong with it
            if journal:
                return journal
        raise OSError(f"{folder}: a thousand journals of trial {number}, attempt {attempt}; expected one")

    @classmethod
    def take(cls, path: Path, server: str = "", *, create: bool = False) -> "Journal | None":
        """Own ``path``; None if a live process does or it is gone. OSError if it cannot be opened or read."""
        try:
            # No O_APPEND: a record that was half written to a full disk is written over.
            descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino != path.stat().st_ino:
                raise BlockingIOError  # its owner moved it away between the two calls above
            return cls(path, descriptor, server)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return None
        except BaseException:  # another process must be able to open and to lock it
            os.close(descriptor)
            raise

    @property
    def files(self) -> Path:
        """The folder of the artifacts that records refer to."""
        return self.path.with_suffix(".files")

    @property
    def size(self) -> int:
        """Bytes of all records, those included that the disk has not taken yet."""
        return self._size + len(self._waiting)

    @property
    def done(self) -> bool:
        """Whether everything has arrived."""
        return self.acknowledged == self.size

    def append(self, record: Record, *, wait: bool = True) -> None:
        """Write a record, and ``wait`` until it is on disk. A full disk raises nothing: the next call writes it."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._waiting += line
            self._write()
            if wait:
                self._sync()
        if not wait:
            if self._syncing is None:
                self._syncing = threading.Thread(target=self._keep_syncing, name="sweeper-journal", daemon=True)
                self._syncing.start()
            self._unsynced.set()

    def retry(self) -> None:
        """Write what the disk has not taken before."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        with contextlib.suppress(OSError):
            if os.pwrite(self._descriptor, self._waiting, self._size) == len(self._waiting):
                self._size += len(self._waiting)
                self._waiting = b""

    def _sync(self) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)

    def _keep_syncing(self) -> None:
        while not self._closing:
            self._unsynced.wait()
            self._unsynced.clear()
            self._sync()

    def unsent(self) -> list[tuple[Record | None, int]]:
        """Records after the acknowledged ones with the offset behind each; None for a line that cannot be read."""
        start = self.acknowledged
        return list(_parse(os.pread(self._descriptor, self._size - start, start), start))

    def first(self) -> Record:
        """The first record, of kind "open"; empty if it cannot be read."""
        for record, _ in _parse(os.pread(self._descriptor, self._size, 0), 0):
            return record or {}
        return {}

    def acknowledge(self, offset: int, run_id: str | None) -> None:
        """Everything before ``offset`` has arrived in run ``run_id`` of the journal's server."""
        self.acknowledged, self.run_id = offset, run_id
        aside = self.path.with_suffix(".ack.new")
        with contextlib.suppress(OSError):  # without it everything is sent again, which changes nothing on the server
            aside.write_text(json.dumps({"offset": offset, "run_id": run_id, "server": self.server}))
            aside.replace(self.path.with_suffix(".ack"))

    def close(self) -> None:
        """Give the journal up for other processes to send."""
        self._closing = True
        self._unsynced.set()
        if self._syncing:
            self._syncing.join()
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1  # a late append fails; it must not reach another file of that number

    def retire(self) -> None:
        """Move a journal that has arrived whole to the folder ``sent``, and delete the artifacts' files."""
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
    """The journals of a folder that have not arrived whole, oldest attempt first."""
    return sorted(path for path in folder.glob("*.jsonl") if _NAME.fullmatch(path.name))


def _parse(data: bytes, offset: int) -> Iterator[tuple[Record | None, int]]:
    """Each whole line's record and the offset behind it. What follows the last newline is unfinished or torn."""
    for line in data.split(b"\n")[:-1]:
        offset += len(line) + 1
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        yield (record if isinstance(record, dict) and "kind" in record else None), offset


def _repaired(descriptor: int) -> int:
    """Cut off a torn last line; gives the remaining size in bytes."""
    size = os.fstat(descriptor).st_size
    whole = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    if whole < size:
        os.ftruncate(descriptor, whole)
    return whole
