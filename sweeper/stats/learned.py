"""Whether anything was learned at all: without that there is nothing to compare."""

from collections.abc import Sequence

from .rows import Row

LEAST = 0.00005  # a lower score is shown as 0.0000


def learned(score: float | None) -> bool:
    """Whether a score is more than 0 to the four digits that are shown.

    >>> learned(0.3), learned(0.00001), learned(0.0), learned(None)
    (True, False, False, False)
    """
    return score is not None and score >= LEAST


def nothing_learned(rows: Sequence[Row], score: str) -> str:
    """The sentence for runs whose scores are all 0; ``score`` is the name of what was measured."""
    runs = f"all {len(rows)} finished runs" if len(rows) > 1 else "the only finished run"
    highest = max((row.highest for row in rows if row.highest is not None), default=None)
    if learned(highest):
        return (
            f"nothing was kept: the {score} of {runs} is 0.0000 at the end, so there is nothing to compare; it reached "
            f"{highest:.4f} on the way and was lost again: try a lower learning rate (lr0)"
        )
    return (
        f"nothing was learned: the {score} of {runs} is 0.0000, so there is nothing to compare; try more epochs or "
        "another learning rate (lr0), and look at the labels"
    )
