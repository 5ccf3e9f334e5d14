"""Why a trial cannot be compared, and which trials of a sweep failed."""

from collections.abc import Sequence

from sweeper import evidence, stats
from sweeper.study import TrialRow


def confounder(row: TrialRow) -> str | None:
    """Why a trial cannot be compared, in a line; None if it can."""
    found: str | None = row.attrs.get("confounder")
    if row.state == "FAIL":  # the last attempt's reason says more than the word; lines of a log may follow it
        return row.reasons[-1].splitlines()[0] if row.reasons else found or "failed"
    return found or ("pruned" if row.state == "PRUNED" else None)


def failures(rows: Sequence[TrialRow]) -> stats.Failures:
    """The failed ones of these trials by reason, as ``stats.failures`` puts it."""
    return stats.failures(
        [
            stats.Row(
                row.number,
                evidence.name_of(row),
                row.stage,
                row.seed or 0,
                confounder=confounder(row),
                failed=row.state == "FAIL",
            )
            for row in rows
        ]
    )
