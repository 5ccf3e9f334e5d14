"""What a study tells about itself: plain rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrialRow:
    """One trial as it stands.

    ``state`` is Optuna's word: WAITING, RUNNING, COMPLETE, PRUNED or FAIL. ``stage`` is the slot's, "foreign" for
    trials that somebody else asked for. ``values`` are by epoch (from 0), ``seconds`` from the first start to the end
    over all attempts (None before the end). ``attempt`` counts claims, ``worker`` is the last one, ``reasons`` say how
    attempts ended that did not reach the end.
    """

    number: int
    state: str
    stage: str
    seed: int | None
    params: Mapping[str, Any]
    schedule: Mapping[str, Any] | None
    value: float | None
    values: Mapping[int, float]
    attrs: Mapping[str, Any]
    seconds: float | None
    attempt: int
    worker: str | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class WorkerRow:
    """A worker as it last said of itself; ``age_s`` is the time since, by the database's clock."""

    worker: str
    host: str
    pid: int
    device: str
    number: int | None
    epoch: int | None
    age_s: float
