"""Confirmation: the best of the search and the baselines again, on fresh seeds that all of them share.

Its design is fixed when it begins: each of its slots carries it, and the first slot's is the one that holds.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sweeper.config import Confirm
from sweeper.errors import ConfigError
from sweeper.study import Trial, Wanted


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


@dataclass(frozen=True)
class Design:
    """What a confirmation compares and by which rule it is judged.

    ``candidates``: numbers of the trials that are confirmed, ``best`` how many were asked for; ``baselines``: names;
    ``seeds``: those that all of them run on; ``alpha`` and ``equivalence``: see ``sweeper.stats``.
    """

    candidates: tuple[int, ...]
    baselines: tuple[str, ...]
    best: int
    seeds: tuple[int, ...]
    alpha: float
    equivalence: float

    @classmethod
    def of(cls, rows: Sequence[Trial]) -> "Design | None":
        """The design that the confirmation began with; None if it has not begun."""
        for row in rows:
            if row.stage == "confirm" and (written := row.facts.design):
                lists = {key: tuple(written[key]) for key in ("candidates", "baselines", "seeds")}
                return cls(**{**written, **lists})
        return None

    @classmethod
    def begin(
        cls,
        rows: Sequence[Trial],
        baselines: Sequence[str],
        confirm: Confirm,
        seed: int,
        leaders: Sequence[int] | None = None,
    ) -> "Design":
        """The design for the search of a sweep of ``seed`` as it has ended; ``leaders``: see :func:`chosen`.

        Raises ConfigError while the search goes on, or if it left nothing to confirm.
        """
        candidates = chosen(rows, confirm.best, leaders)
        if not candidates:
            raise ConfigError("confirm: no trial of the search is finished and comparable; look at: sweeper status")
        return cls(
            candidates=tuple(candidates),
            baselines=tuple(baselines),
            best=confirm.best,
            seeds=tuple(fresh_seeds(seed, confirm.seeds)),
            alpha=confirm.alpha,
            equivalence=confirm.equivalence,
        )

    def changes(self, confirm: Confirm) -> list[str]:
        """What ``confirm`` asks for now and the confirmation did not begin with, a sentence each; [] for nothing."""
        begun = {"best": self.best, "seeds": len(self.seeds), "alpha": self.alpha, "equivalence": self.equivalence}
        return [
            f"confirm.{key} is {getattr(confirm, key):g}, but the confirmation began with {value:g}"
            for key, value in begun.items()
            if getattr(confirm, key) != value
        ]

    def runs(self, rows: Sequence[Trial]) -> list[tuple[str, int]]:
        """(configuration's name, seed) of every run of the confirmation, seed by seed."""
        by_number = {row.number: row for row in rows}
        names = [*self.baselines, *(by_number[number].name for number in self.candidates)]
        return [(name, seed) for seed in self.seeds for name in names]


def chosen(rows: Sequence[Trial], best: int, leaders: Sequence[int] | None = None) -> list[int]:
    """The ``best`` trials of a finished search: the first of ``leaders`` (numbers), without by their scores.

    Equal schedules count once, and one that is a baseline's is none. Raises ConfigError while the search goes on.
    """
    open_ones = [row.number for row in rows if row.stage in ("baseline", "search") and row.open]
    if open_ones:
        raise ConfigError(
            f"confirm: {len(open_ones)} trials are not finished, so the best {best} are not known yet; "
            "finish them with: sweeper run"
        )
    seen = {row.facts.trace for row in rows if row.stage == "baseline"}
    found: list[int] = []
    candidates = [row for row in rows if row.stage == "search" and row.usable]
    if leaders is None:
        candidates.sort(key=lambda row: (-(row.score or 0.0), row.number))
    else:
        candidates = [row for number in leaders for row in candidates if row.number == number]
    for row in candidates:
        if row.facts.trace not in seen and len(found) < best:
            seen.add(row.facts.trace)
            found.append(row.number)
    return found


def confirm_slots(rows: Sequence[Trial], baselines: Mapping[str, Mapping[str, Any]], design: Design) -> list[Wanted]:
    """The slots of the whole confirmation, seed by seed: what is finished early makes pairs.

    ``baselines``: name -> spec. Those that exist already are among them; ``Study.add`` makes what is missing.
    """
    specs = {name: dict(spec) for name, spec in baselines.items()}
    specs |= {row.name: dict(row.spec or {}) for row in rows if row.number in design.candidates}
    written = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(design).items()}
    return [
        Wanted("confirm", seed, schedule=specs[name], name=name, design=written) for name, seed in design.runs(rows)
    ]
