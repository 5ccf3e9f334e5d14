"""Snapshots as files at a folder or any fsspec URL: written aside, flushed, checked, and only then put in place."""

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
_ASIDE = re.compile(r"([^/]+\+\d+\+)?[0-9a-f]{32}")  # names in "tmp" of files that are not in place yet
_ABANDONED_S = 1800  # a file that was not changed for so long is not being written any more


@dataclass(frozen=True)
class Snapshot:
    """The bytes of a training state after ``epoch`` epochs, and a row for each of them.

    ``state_digest`` names its tensors: equal for equal trainings, whatever the bytes around them.
    """

    epoch: int
    state: bytes
    rows: list[dict[str, Any]]
    state_digest: str


@dataclass(frozen=True)
class Mismatch:
    """Two trainings of one key that differ: the recipe does not determine the training on this hardware.

    ``seen`` is when, in seconds since the Unix epoch. ``known`` says that this digest had been reported before.
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
        """The mismatch in a row of the index."""
        values = {field.name: row[field.name] for field in fields(cls) if field.name != "known"}
        profiles = {name: json.loads(row[name]) for name in ("first_profile", "profile")}
        return cls(**values | profiles, known=True)

    def __str__(self) -> str:
        machines = (self.first_profile, self.profile)
        first, second = (f"{at.get('host', 'a host')} ({at.get('device', 'unknown device')})" for at in machines)
        return (
            f"two trainings of {self.key[:12]} differ after epoch {self.epoch}: {self.first_digest[:12]} on {first}, "
            f"{self.digest[:12]} on {second}; the recipe does not determine the training on this hardware; the first "
            "state is kept (docs/determinism.md)"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "sentence": str(self)}


@dataclass(frozen=True)
class Usage:
    """Snapshots and bytes in the store, reads and bytes read since it was made, free bytes where known."""

    count: int
    bytes: int
    reads: int
    read_bytes: int
    free: int | None


def pack(key: str, snapshot: Snapshot, profile: Mapping[str, Any]) -> bytes:
    """The file's content: a magic line, the header's length in 8 bytes, the header in JSON, the state."""
    header = {name: value for name, value in vars(snapshot).items() if name != "state"}
    text = json.dumps({"format": FORMAT, "key": key, **header, "profile": dict(profile)}).encode()
    return b"".join((_MAGIC, len(text).to_bytes(8, "big"), text, snapshot.state))


def unpack(content: bytes) -> Snapshot:
    """The snapshot in a file whose digest was checked."""
    start = len(_MAGIC) + 8
    end = start + int.from_bytes(content[len(_MAGIC) : start], "big")
    header = json.loads(content[start:end])
    return Snapshot(header["epoch"], content[end:], header["rows"], header["state_digest"])


def check_url(url: str) -> None:
    """StoreError unless ``url`` can be a folder or a URL of a file system that fsspec knows; touches nothing."""
    if "://" in url:
        schemes, _, path = url.partition("://")
        unknown = [scheme for scheme in schemes.split("::") if scheme not in fsspec.available_protocols()]
        wrong = unknown or not path.strip("/") or schemes.rpartition("::")[2] in _READ_ONLY
    else:
        scheme, _, rest = url.partition("/")  # s3:/bucket, gs:bucket and s3//bucket are mistyped URLs
        wrong = not url.strip() or ":" in scheme or (scheme in fsspec.available_protocols() and rest.startswith("/"))
    if wrong:
        raise StoreError(
            f"store {without_password(url)!r}: not a place for training states; expected a folder, or a URL like "
            "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER; correct --store or SWEEPER_STORE"
        )


class Place:
    """The folder or bucket that holds the files. ``id`` is the random name in its ``store.json``.

    Without ``make`` nothing is written: ``id`` is then the one given, else that of the store at ``url``, else "".
    Whatever error the file system raises becomes a StoreError in one line.
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
        path = f"{self._root}/store.json"
        new = json.dumps({"store": uuid.uuid4().hex, "format": FORMAT}).encode()
        if not self._fs.exists(path):
            with suppress(FileExistsError):
                if self._local:
                    aside = self._write_aside(new, hashlib.sha256(new).hexdigest())
                    try:
                        os.link(aside, path)  # atomic: the first process makes the file, the others keep it
                    finally:
                        os.unlink(aside)
                else:
                    self._fs.pipe_file(path, new, mode="create")
        store = json.loads(self._fs.cat_file(path))
        if store["format"] > FORMAT:
            raise StoreError(
                f"{self.url}: made by a newer sweeper (format {store['format']}, this one knows {FORMAT}); "
                "install the newer one, or choose another place"
            )
        return str(store["store"])

    def write(self, file: str, content: bytes, sha256: str) -> None:
        """Put ``content`` (whose digest is ``sha256``) at ``file``, whole or not at all."""
        path = f"{self._root}/{file}"
        with self._doing("write", file):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            aside = self._write_aside(content, sha256)
            if self._local:
                os.replace(aside, path)
                folder = os.open(Path(path).parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
            else:
                self._fs.mv(aside, path)

    def _write_aside(self, content: bytes, sha256: str) -> str:
        """Write a file that nobody looks for, check that it is there in full, and give its path."""
        aside = f"{self._root}/tmp/{uuid.uuid4().hex}"
        try:
            if self._local:
                with open(aside, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                with open(aside, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                        raise OSError("the file reads back differently from what was written")
            else:
                self._fs.pipe_file(aside, content)
                if self._fs.size(aside) != len(content):
                    raise OSError("the file came out shorter than what was written")
        except BaseException:
            with suppress(Exception):
                self._fs.rm_file(aside)
            raise
        return aside

    def read(self, file: str) -> bytes | None:
        """The content of ``file``; None if it is not there."""
        with self._doing("read", file):
            try:
                content: bytes = self._fs.cat_file(f"{self._root}/{file}")
            except FileNotFoundError:
                return None
            return content

    def remove(self, file: str) -> None:
        """Remove ``file`` if possible."""
        with suppress(StoreError), self._doing("remove", file):
            self._fs.rm_file(f"{self._root}/{file}")

    def remove_abandoned(self) -> None:
        """Remove what was written aside and has not been put in place for long, because its writer is dead."""
        with self._doing("list", self.url):
            self._fs.invalidate_cache()
            paths: dict[str, Any] = self._fs.find(f"{self._root}/tmp", detail=True)
        for path, info in paths.items():
            name = path.rpartition("/")[2]
            changed = info.get("mtime") or info.get("created") or info.get("LastModified") or time.time()
            age = time.time() - (changed if isinstance(changed, (int, float)) else changed.timestamp())
            if _ASIDE.fullmatch(name) and age > _ABANDONED_S:
                self.remove(f"tmp/{name}")

    def free(self) -> int | None:
        """Free bytes where the file system can tell."""
        return shutil.disk_usage(self._root).free if self._local and os.path.exists(self._root) else None

    def check(self) -> int | None:
        """Write, read and remove a small file; returns the free bytes where known."""
        probe, content = f"probe-{uuid.uuid4().hex}", os.urandom(1024)
        self.write(probe, content, hashlib.sha256(content).hexdigest())
        same = self.read(probe) == content
        self.remove(probe)
        if not same:
            raise StoreError(f"{self.url}: reads back something else than was written; choose another place")
        return self.free()

    @contextmanager
    def _doing(self, verb: str, what: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except ImportError as error:
            raise StoreError(f"{self.url}: its driver is missing: {error}") from error
        except Exception as error:  # each file system has its own
            why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise StoreError(f"{self.url}: cannot {verb} {what}: {why}; check the place and its free space") from error
