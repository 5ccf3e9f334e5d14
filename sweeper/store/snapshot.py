"""What is stored: the snapshot, its file format, and what is told about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMAT = 1
_MAGIC = b"sweeper snapshot\n"


@dataclass(frozen=True)
class Snapshot:
    """A training state at the end of ``epoch`` epochs, and the rows of these epochs, so that curves are complete.

    ``state`` is opaque. ``state_digest`` names its tensors: equal for equal trainings, whatever the bytes around them.
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

    def __str__(self) -> str:
        def machine(profile: Mapping[str, Any]) -> str:
            return f"{profile.get('host', 'a host')} ({profile.get('device', 'unknown device')})"

        return (
            f"two trainings of {self.key[:12]} differ after epoch {self.epoch}: {self.first_digest[:12]} on "
            f"{machine(self.first_profile)}, {self.digest[:12]} on {machine(self.profile)}; the recipe does not "
            "determine the training on this hardware; the first state is kept (README, Determinism)"
        )


@dataclass(frozen=True)
class Usage:
    """Of the whole store: snapshots and bytes now, reads and bytes read since it was made, free bytes where known."""

    count: int
    bytes: int
    reads: int
    read_bytes: int
    free: int | None


def pack(key: str, snapshot: Snapshot, profile: Mapping[str, Any]) -> bytes:
    """The file's content: a magic line, the header's length in 8 bytes, the header in JSON, the state."""
    header = {
        "format": FORMAT,
        "key": key,
        "epoch": snapshot.epoch,
        "rows": snapshot.rows,
        "state_digest": snapshot.state_digest,
        "profile": dict(profile),
    }
    text = json.dumps(header).encode()
    return b"".join((_MAGIC, len(text).to_bytes(8, "big"), text, snapshot.state))


def unpack(content: bytes) -> Snapshot:
    """The snapshot in a file whose digest was checked."""
    start = len(_MAGIC) + 8
    end = start + int.from_bytes(content[len(_MAGIC) : start], "big")
    header = json.loads(content[start:end])
    return Snapshot(header["epoch"], content[end:], header["rows"], header["state_digest"])
