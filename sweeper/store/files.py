"""Snapshots as files in a folder or at any fsspec URL.

A file is written under a temporary name, flushed and checked before it is renamed, so that a file under its final name
is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sweeper.errors import StoreError, without_password

FORMAT = 1
_MAGIC = b"sweeper snapshot\n"

_READ_ONLY = ("http", "https", "data", "git", "github", "gist", "zip", "tar")
_TEMPORARY = re.compile(r"([^/]+\+\d+\+)?[0-9a-f]{32}")  # The names of files in "tmp" that are not renamed yet.
_ABANDONED_S = 1800  # The writer of a temporary file that has not changed for so many seconds is dead.


@dataclass(frozen=True)
class Snapshot:
    """The bytes of a training state after ``epoch`` epochs, and a row of metrics for each of these epochs.

    ``state_digest`` is a hash of its tensors, so it is equal for equal trainings even where ``state`` differs.
    """

    epoch: int
    state: bytes
    rows: list[dict[str, Any]]
    state_digest: str


@dataclass(frozen=True)
class Mismatch:
    """Two trainings of one key whose states differ: the recipe does not determine the training on this hardware.

    ``seen`` is the time of the detection, in seconds since the Unix epoch. ``known`` says whether a worker has reported
    this key and digest before.
    """

    key: str
    epoch: int
    first_digest: str
    digest: str
    first_profile: Mapping[str, Any]
    profile: Mapping[str, Any]
    seen: float
    known: bool

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Mismatch:
        """Read the mismatch from a row of the index."""
        values = {field.name: row[field.name] for field in fields(cls) if field.name != "known"}
        profiles = {name: json.loads(row[name]) for name in ("first_profile", "profile")}
        return cls(**values | profiles, known=True)

    def __str__(self) -> str:
        first, second = (
            f"{profile.get('host', 'a host')} ({profile.get('device', 'unknown device')})"
            for profile in (self.first_profile, self.profile)
        )
        return (
            f"two trainings of {self.key[:12]} differ after epoch {self.epoch}: {self.first_digest[:12]} on {first}, "
            f"{self.digest[:12]} on {second}; the recipe does not determine the training on this hardware; the first "
            "state is kept (docs/determinism.md)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the message as ``sentence``, for JSON."""
        return {**vars(self), "sentence": str(self)}


@dataclass(frozen=True)
class Usage:
    """The number and bytes of the snapshots, the reads and read bytes since the store was created, and free bytes.

    ``free`` is None where the file system does not report it.
    """

    count: int
    bytes: int
    reads: int
    read_bytes: int
    free: int | None


def pack(key: str, snapshot: Snapshot, profile: Mapping[str, Any]) -> bytes:
    """Return a file's content: a magic line, the length of the header in 8 bytes, the header in JSON, the state."""
    header = {name: value for name, value in vars(snapshot).items() if name != "state"}
    text = json.dumps({"format": FORMAT, "key": key, **header, "profile": dict(profile)}).encode()
    return b"".join((_MAGIC, len(text).to_bytes(8, "big"), text, snapshot.state))


def unpack(content: bytes) -> Snapshot:
    """Return the snapshot in ``content``, whose SHA-256 the caller has checked."""
    start = len(_MAGIC) + 8
    end = start + int.from_bytes(content[len(_MAGIC) : start], "big")
    header = json.loads(content[start:end])
    return Snapshot(header["epoch"], content[end:], header["rows"], header["state_digest"])


def check_url(url: str) -> None:
    """Raise StoreError unless ``url`` is a folder's path or a URL of a file system of fsspec; does not open it."""
    if "://" in url:
        schemes, _, path = url.partition("://")
        unknown = [scheme for scheme in schemes.split("::") if scheme not in fsspec.available_protocols()]
        wrong = unknown or not path.strip("/") or schemes.rpartition("::")[2] in _READ_ONLY
    else:
        scheme, _, rest = url.partition("/")  # Mistyped URLs such as s3:/bucket, gs:bucket and s3//bucket are refused.
        wrong = not url.strip() or ":" in scheme or (scheme in fsspec.available_protocols() and rest.startswith("/"))
    if wrong:
        raise StoreError(
            f"store {without_password(url)!r}: not a store of training states; expected a folder, or a URL like "
            "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER; correct --store or SWEEPER_STORE"
        )


class Files:
    """The files in the folder or bucket ``url``. The attribute ``id`` is the store's random id in ``store.json``.

    Without ``make`` nothing is created, and the attribute is the argument ``id``, or the id at ``url``, or "" if there
    is no store. Every error of the file system is raised as a StoreError with a message of one line.
    """

    def __init__(self, url: str, id: str | None = None, *, make: bool = True) -> None:
        check_url(url)
        self.url = url
        with self._doing("open", url):
            self._fs, root = fsspec.core.url_to_fs(url)
            self._root = str(root).rstrip("/")
            self._local = isinstance(self._fs, LocalFileSystem)
            if make:
                self._fs.makedirs(f"{self._root}/tmp", exist_ok=True)
            opened = make or (id is None and self._fs.exists(f"{self._root}/store.json"))
            self.id = self._identity() if opened else id or ""

    def _identity(self) -> str:
        """Return the id in ``store.json``, which is created if it is missing; all processes get the same id."""
        path = f"{self._root}/store.json"
        new = json.dumps({"store": uuid.uuid4().hex, "format": FORMAT}).encode()
        if not self._fs.exists(path):
            with suppress(FileExistsError):
                if self._local:
                    temporary = self._write_temporary(new, hashlib.sha256(new).hexdigest())
                    try:
                        os.link(temporary, path)  # Atomic: it fails for all processes but the first.
                    finally:
                        os.unlink(temporary)
                else:
                    self._fs.pipe_file(path, new, mode="create")
        store = json.loads(self._fs.cat_file(path))
        if store["format"] > FORMAT:
            raise StoreError(
                f"{self.url}: made by a newer sweeper (format {store['format']}, this one knows {FORMAT}); "
                "install the newer one, or choose another store"
            )
        return str(store["store"])

    def write(self, file: str, content: bytes, sha256: str) -> None:
        """Write ``content``, whose digest is ``sha256``, to ``file``, completely or not at all."""
        path = f"{self._root}/{file}"
        with self._doing("write", file):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            temporary = self._write_temporary(content, sha256)
            if self._local:
                os.replace(temporary, path)
                folder = os.open(Path(path).parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
            else:
                self._fs.mv(temporary, path)

    def _write_temporary(self, content: bytes, sha256: str) -> str:
        """Write ``content`` to a temporary file, check that it is complete, and return the file's path."""
        temporary = f"{self._root}/tmp/{uuid.uuid4().hex}"
        try:
            if self._local:
                with open(temporary, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                with open(temporary, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                        raise OSError("the file's content differs from what was written")
            else:
                self._fs.pipe_file(temporary, content)
                if self._fs.size(temporary) != len(content):
                    raise OSError("the file's size differs from what was written")
        except BaseException:
            with suppress(Exception):
                self._fs.rm_file(temporary)
            raise
        return temporary

    def read(self, file: str) -> bytes | None:
        """Return the content of ``file``; None if it does not exist."""
        with self._doing("read", file):
            try:
                content: bytes = self._fs.cat_file(f"{self._root}/{file}")
            except FileNotFoundError:
                return None
            return content

    def remove(self, file: str) -> None:
        """Remove ``file``; errors are ignored, because a file without a row in the index is never read."""
        with suppress(StoreError), self._doing("remove", file):
            self._fs.rm_file(f"{self._root}/{file}")

    def remove_abandoned(self) -> None:
        """Remove temporary files that have not changed for ``_ABANDONED_S`` seconds, because their writers are dead."""
        with self._doing("list", self.url):
            self._fs.invalidate_cache()
            paths: dict[str, Any] = self._fs.find(f"{self._root}/tmp", detail=True)
        for path, info in paths.items():
            name = path.rpartition("/")[2]
            changed = info.get("mtime") or info.get("created") or info.get("LastModified") or time.time()
            age = time.time() - (changed if isinstance(changed, (int, float)) else changed.timestamp())
            if _TEMPORARY.fullmatch(name) and age > _ABANDONED_S:
                self.remove(f"tmp/{name}")

    def free(self) -> int | None:
        """Return the free bytes of the disk; None where the file system does not report them."""
        return shutil.disk_usage(self._root).free if self._local and os.path.exists(self._root) else None

    def check(self) -> int | None:
        """Write, read and remove a small file; return the free bytes as :meth:`free` does."""
        probe, content = f"probe-{uuid.uuid4().hex}", os.urandom(1024)
        self.write(probe, content, hashlib.sha256(content).hexdigest())
        same = self.read(probe) == content
        self.remove(probe)
        if not same:
            raise StoreError(f"{self.url}: a file's content differs from what was written; choose another store")
        return self.free()

    @contextmanager
    def _doing(self, verb: str, what: str) -> Iterator[None]:
        """Raise any error of the block as a StoreError that says what could not be done."""
        try:
            yield
        except StoreError:
            raise
        except ImportError as error:
            raise StoreError(f"{self.url}: its driver is missing: {error}") from error
        except Exception as error:  # Each file system of fsspec raises exceptions of its own classes.
            why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise StoreError(f"{self.url}: cannot {verb} {what}: {why}; check the path and its free space") from error
