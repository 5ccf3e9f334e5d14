"""Confirmation: the best of the search and the baselines again, on fresh seeds that all of them share."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.errors import ConfigError
from sweeper.study import TrialRow

Slot = dict[str, Any]
OPEN = ("WAITING", "RUNNING")


def fresh_seeds(seed: int, count: int) -> list[int]:
    """The first ``count`` seeds to confirm a sweep of ``seed`` on: always the same, all different, never ``seed``.

    Hashed, so that the confirmation of a repetition with the next seed does not share most of them.

    >>> fresh_seeds(0, 3) == fresh_seeds(0, 5)[:3], 0 in fresh_seeds(0, 5), fresh_seeds(0, 3) == fresh_seeds(1, 3)
    (True, False, False)
    """
    found: list[int] = []
    index = 0
    while len(found) < count:
        drawn = int.from_bytes(hashlib.sha256(f"confirm {seed} {index}".encode()).digest()[:4], "big") % 1_000_000
        index += 1
        if drawn != seed and drawn not in found:
            found.append(drawn)
    return found


def name_of(row: TrialRow) -> str:
    """What a trial's configuration is called: its baseline's name, or ``trial N``."""
    return str(row.attrs.get("name") or f"trial {row.number}")


def chosen(rows: Sequence[TrialRow], best: int) -> list[int]:
    """The trials to confirm: those that the confirmation began with, else the ``best`` of the search.

    Equal schedules count once, and one that is a baseline's is none. Once one slot is there its list is kept: who
    looks at the first seeds and chooses again has chosen by their luck. Raises ConfigError while the search goes on.
    """
    for row in rows:
        if row.stage == "confirm":
            return [int(number) for number in row.attrs["chosen"]]
    open_ones = [row.number for row in rows if row.stage in ("baseline", "search") and row.state in OPEN]
    if open_ones:
        raise ConfigError(
            f"confirm: {len(open_ones)} trials are not finished, so the best {best} are not known yet; "
            "finish them with: sweeper run"
        )
    seen = {row.attrs.get("trace") for row in rows if row.stage == "baseline"}
    found: list[int] = []
    candidates = [r for r in rows if r.stage == "search" and r.state == "COMPLETE" and not r.attrs.get("confounder")]
    for row in sorted(candidates, key=lambda row: (-(row.value or 0.0), row.number)):
        if row.attrs.get("trace") not in seen and len(found) < best:
            seen.add(row.attrs.get("trace"))
            found.append(row.number)
    return found


def confirm_slots(
    rows: Sequence[TrialRow], baselines: Mapping[str, Mapping[str, Any]], *, best: int, seeds: int, seed: int
) -> list[Slot]:
    """The slots of the whole confirmation of a sweep of ``seed``, seed by seed: what is finished early makes pairs.

    ``baselines``: name -> spec. Those that exist already are among them; ``Study.add`` makes what is missing. Raises
    ConfigError while the search goes on, or if it left nothing to confirm.
    """
    picked = chosen(rows, best)
    if not picked:
        raise ConfigError("confirm: no trial of the search is finished and comparable; look at: sweeper status")
    by_number = {row.number: row for row in rows}
    runs = [(name, dict(spec)) for name, spec in baselines.items()]
    runs += [(name_of(by_number[number]), dict(by_number[number].schedule or {})) for number in picked]
    return [
        {"stage": "confirm", "schedule": spec, "seed": fresh, "name": name, "chosen": picked}
        for fresh in fresh_seeds(seed, seeds)
        for name, spec in runs
    ]
