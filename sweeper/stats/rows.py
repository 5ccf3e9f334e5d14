"""One run as a plain row, and the noise that the baselines' rows show."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any

import numpy as np

from ..errors import ConfigError
from .pairs import paired

ASSUMED_SIGMA = 0.003  # between seeds of one configuration, small detection sets; used until baselines give their own


@dataclass(frozen=True)
class Row:
    """One run. Rows with one ``name`` are the same configuration on other seeds or at another stage.

    ``stage`` is baseline, search, confirm or control; ``score`` the objective (None: not finished); ``confounder`` the
    reason why this run must not be compared (None: none), ``failed`` whether it ended with an error; ``highest`` the
    best score of any of its epochs (None: not known); ``facts`` whatever belongs beside it in a table (peak, final LR,
    integral). ``label`` says in a few words what the configuration is.
    """

    trial: int
    name: str
    stage: str
    seed: int
    score: float | None = None
    confounder: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    failed: bool = False
    highest: float | None = None
    label: str = ""

    @property
    def title(self) -> str:
        """How a sentence calls the configuration: by its trial and its label, or by its name without one."""
        return f"trial {self.trial} ({self.label})" if self.label else self.name

    @classmethod
    def of(cls, row: "Row | Mapping[str, Any]") -> "Row":
        """A row from a mapping; keys that are no field are ignored, ``name`` defaults to ``trial N``."""
        if isinstance(row, Row):
            return row
        try:
            known = {f.name: row[f.name] for f in fields(cls) if f.name in row}
            return cls(**{"name": f"trial {row['trial']}", **known})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"row {dict(row)}: {error}; expected trial, name, stage, seed, score") from None

    @property
    def usable(self) -> bool:
        """Comparable: finished, with a finite score, and nothing against it."""
        return self.confounder is None and self.score is not None and math.isfinite(self.score)

    @property
    def unfinished(self) -> bool:
        """Neither a score nor a reason why there is none."""
        return self.score is None and self.confounder is None


@dataclass(frozen=True)
class Spread:
    """What is known about the noise: ``s_d`` of paired differences, ``sigma`` of single runs, and from where."""

    s_d: float
    sigma: float
    correlation: float | None
    n: int
    source: str


def spread(
    rows: Iterable[Row | Mapping[str, Any]], *, baselines: Iterable[str], assumed_sigma: float = ASSUMED_SIGMA
) -> Spread:
    """The noise as the baselines show it: from pairs of baselines if two share 3 seeds, else from one, else assumed.

    One baseline alone says nothing about what pairing gains, so then ``s_d = sigma * sqrt(2)``, no credit taken.
    """
    scores = scores_by_seed((Row.of(row) for row in rows), baselines)
    pairs = []
    for one, other in combinations(scores.values(), 2):
        if len(seeds := sorted(one.keys() & other.keys())) >= 3:
            pairs.append(paired([one[s] for s in seeds], [other[s] for s in seeds]))
    if pairs:
        best = max(pairs, key=lambda p: p.n)
        s_d = math.sqrt(sum(p.s_d**2 for p in pairs) / len(pairs))
        return Spread(
            s_d, best.sigma, best.correlation, best.n, f"estimated from {best.n} paired runs of the baselines"
        )
    name, single = max(scores.items(), key=lambda item: len(item[1]), default=("", {}))
    if len(single) >= 3:
        sigma = float(np.std(list(single.values()), ddof=1))
        source = f"estimated from {len(single)} runs of {name}, no credit for pairing"
        return Spread(sigma * math.sqrt(2), sigma, None, len(single), source)
    return Spread(assumed_sigma * math.sqrt(2), assumed_sigma, None, 0, f"assumed sigma {assumed_sigma}")


def scores_by_seed(rows: Iterable[Row], names: Iterable[str]) -> dict[str, dict[int, float]]:
    """name -> seed -> score of the usable rows of these names; a repeated (name, seed) keeps its first run."""
    scores: dict[str, dict[int, float]] = {name: {} for name in names}
    for row in rows:
        if row.name in scores and row.usable and row.score is not None:
            scores[row.name].setdefault(row.seed, row.score)
    return {name: by_seed for name, by_seed in scores.items() if by_seed}
