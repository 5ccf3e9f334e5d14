"""Which trials failed, how often and why."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from .rows import Row


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


def failures(rows: Sequence[Row]) -> Failures:
    """The failed trials of a sweep, by reason. Reasons that differ in their numbers only (an epoch, a batch, the name
    of a worker) count as one.

    >>> found = failures([Row(0, "a", "search", 0, confounder="epoch 1: nan", failed=True),
    ...                   Row(1, "b", "search", 0, confounder="epoch 2: nan", failed=True)])
    >>> found.sentence
    'every trial failed: 2 of 2 ended with an error and without a score; the reason (trials 0, 1) is: epoch 1: nan'
    """
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if row.failed:
            kinds.setdefault(re.sub(r"\S*\d\S*", "#", row.confounder or ""), []).append(row)
    reasons = [
        Reason(own[0].confounder or "not known", tuple(sorted(row.trial for row in own))) for own in kinds.values()
    ]
    return Failures(
        of=len(rows),
        reasons=tuple(sorted(reasons, key=lambda reason: (-len(reason.trials), reason.trials))),
        every=bool(rows) and all(row.failed for row in rows),
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
