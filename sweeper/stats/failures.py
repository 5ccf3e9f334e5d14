"""Which trials failed, how often and why; and whether anything was learned at all."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from sweeper.study import Trial

LEAST = 0.00005  # a lower score is shown as 0.0000


@dataclass(frozen=True)
class Reason:
    """One reason for which trials failed: its ``text`` as the first of the ``trials`` gave it, and their numbers."""

    text: str
    trials: tuple[int, ...]


@dataclass(frozen=True)
class Failures:
    """The failed trials among ``of`` trials. ``reasons``: the commonest first. ``every``: all of them failed, so there
    is no score and none will come."""

    of: int
    reasons: tuple[Reason, ...]
    every: bool

    @property
    def failed(self) -> int:
        """How many trials failed."""
        return sum(len(reason.trials) for reason in self.reasons)

    @property
    def sentence(self) -> str:
        """How many trials failed, and the commonest reason with its trials, in one line; "" if none failed."""
        if not self.reasons:
            return ""
        first, *others = self.reasons
        if self.every:
            count = f"every trial failed: {self.failed} of {self.of} ended with an error and without a score"
        else:
            count = f"{self.failed} of {self.of} trials failed"
        why = f"the commonest reason ({len(first.trials)} of them, {_numbers(first.trials)})"
        if not others:
            why = f"the reason ({_numbers(first.trials)})"
        return f"{count}; {why} is: {first.text.rstrip('.')}"

    @property
    def further(self) -> list[str]:
        """A line for each reason but the commonest."""
        return [
            f"another reason ({len(reason.trials)} of them, {_numbers(reason.trials)}) is: {reason.text.rstrip('.')}"
            for reason in self.reasons[1:]
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the number of failed trials and the lines above."""
        return asdict(self) | {"failed": self.failed, "sentence": self.sentence, "further": self.further}


def failures(trials: Sequence[Trial]) -> Failures:
    """The failed trials of a sweep, by reason. Reasons that differ in their numbers only (an epoch, a batch, the name
    of a worker) count as one.
    """
    kinds: dict[str, list[Trial]] = {}
    for row in trials:
        if row.failed:
            kinds.setdefault(re.sub(r"\S*\d\S*", "#", row.confounder or ""), []).append(row)
    reasons = [
        Reason(own[0].confounder or "not known", tuple(sorted(row.number for row in own))) for own in kinds.values()
    ]
    return Failures(
        of=len(trials),
        reasons=tuple(sorted(reasons, key=lambda reason: (-len(reason.trials), reason.trials))),
        every=bool(trials) and all(row.failed for row in trials),
    )


def _numbers(trials: Sequence[int]) -> str:
    """
    >>> _numbers([3]), _numbers([0, 1, 4, 5, 6])
    ('trial 3', 'trials 0, 1, 4 to 6')
    """
    starts = [trials[0], *(after for before, after in pairwise(trials) if after != before + 1)]
    ends = [*(before for before, after in pairwise(trials) if after != before + 1), trials[-1]]
    pieces = [
        str(start) if start == end else f"{start}{',' if end == start + 1 else ' to'} {end}"
        for start, end in zip(starts, ends, strict=True)
    ]
    return f"trial{'s' if len(trials) > 1 else ''} {', '.join(pieces)}"


def learned(score: float | None) -> bool:
    """Whether a score is more than 0 to the four digits that are shown.

    >>> learned(0.3), learned(0.00001), learned(0.0), learned(None)
    (True, False, False, False)
    """
    return score is not None and score >= LEAST


def nothing_learned(rows: Sequence[Trial], score: str) -> str:
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
