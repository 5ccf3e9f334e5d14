"""One run as a plain row."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import ConfigError


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


def scores_by_seed(rows: Iterable[Row], names: Iterable[str]) -> dict[str, dict[int, float]]:
    """name -> seed -> score of the usable rows of these names; a repeated (name, seed) keeps its first run."""
    scores: dict[str, dict[int, float]] = {name: {} for name in names}
    for row in rows:
        if row.name in scores and row.usable and row.score is not None:
            scores[row.name].setdefault(row.seed, row.score)
    return {name: by_seed for name, by_seed in scores.items() if by_seed}
