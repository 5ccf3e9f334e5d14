"""``Answer``: what ``sweeper pick`` returns, as plain values. ``sentences`` puts it into words."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sweeper.study import Trial

from .noise import Spread
from .pairs import Paired, difference


@dataclass(frozen=True)
class Entry:
    """A configuration: one schedule, trained on one seed or several.

    ``trial``, ``facts`` and ``run_id`` (in MLflow) belong to its first trial; ``params`` is its schedule. ``score`` is
    the mean over its ``n`` usable runs (None: it has none).
    """

    trial: int
    name: str
    label: str
    params: Mapping[str, Any]
    facts: Mapping[str, Any]
    run_id: str | None
    score: float | None
    n: int


@dataclass(frozen=True)
class Standing:
    """The result of a proposal in a race over ``n`` search seeds.

    ``mean``: its mean difference to the baseline named ``over`` on the same seeds, with the ends ``low`` and ``high``
    of the 95 % interval (None on one seed); ``worth``: the same mean, shrunk (``search.shrunken_means``), by which
    proposals are ranked. The mean of a leader is too high, because the leader was selected by it.
    """

    trial: int
    name: str
    over: str
    n: int
    mean: float
    low: float | None
    high: float | None
    worth: float

    @property
    def difference(self) -> str:
        """The mean in words. The interval follows from three seeds on, because that of two seeds says nothing."""
        return difference(self.mean, self.low, self.high) if self.n > 2 else difference(self.mean)


@dataclass(frozen=True)
class Ranked(Entry):
    """A row of the ranking. ``stage``: which runs its score comes from, "confirm" where it was confirmed, else
    "search". ``raced``: its result in the race (None: there was no race)."""

    stage: str
    raced: Standing | None = None


@dataclass(frozen=True)
class Baseline(Entry):
    """A baseline. ``sigma``: the standard deviation of its scores over seeds (None: one run); ``run_ids``: its runs in
    MLflow."""

    sigma: float | None
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Candidate(Entry):
    """A configuration that was confirmed.

    ``pairs``: its comparison with the best baseline on the confirmation's seeds, with the plain interval; ``over``: the
    same with every baseline, by name. ``p_holm``: the p value after Holm over all candidates (None: not judged, and
    ``reason`` says why). At the strictest level that Holm uses, alpha / candidates, ``mde`` is the effect that these
    pairs would have detected with 80 % power, and ``low_family`` to ``high_family`` the interval. ``reason``: why it
    wins or does not. ``title``: its trial and label, for sentences. ``search``: the score of its search run, which is
    too high, because it was selected by it.
    """

    title: str
    search: float | None
    pairs: Paired | None
    run_ids: tuple[str, ...]
    over: Mapping[str, Paired]
    mde: float | None = None
    low_family: float | None = None
    high_family: float | None = None
    p_holm: float | None = None
    wins: bool = False
    reason: str = ""

    @property
    def differences(self) -> str:
        """Its differences to all baselines on the confirmation's seeds, then the reason why it wins or does not."""
        # The best baseline stands last, directly before the reason, because the reason is about it.
        over = sorted(self.over.items(), key=lambda item: item[1] == self.pairs)
        texts = [f"{pairs.difference} over {name} on {pairs.n} paired seeds" for name, pairs in over]
        return f"{', '.join(texts)}: {self.reason}" if texts else self.reason

    @property
    def ruled_out(self) -> str:
        """The gain over the best baseline that its interval rules out, in words; "" without pairs."""
        if self.pairs is None:
            return ""
        return f"more than {self.pairs.high:+z.4f}" if self.pairs.high > 0 else "any gain"


@dataclass(frozen=True)
class Excluded:
    """A run that is not compared, and why."""

    trial: int
    name: str
    label: str
    stage: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Progress:
    """The progress of a confirmation: every run has ended, completed or failed, on ``seeds`` of its ``of_seeds`` seeds,
    and ``runs`` of its ``of_runs`` runs have."""

    seeds: int
    of_seeds: int
    runs: int
    of_runs: int

    @property
    def complete(self) -> bool:
        return self.runs == self.of_runs


@dataclass(frozen=True)
class Reason:
    """One reason for which trials failed: the message of the first of them, and the numbers of all of them."""

    text: str
    trials: tuple[int, ...]

    @property
    def numbers(self) -> str:
        """The numbers of the trials in words; three or more in a row become a range.

        >>> Reason("", (3,)).numbers, Reason("", (0, 1, 4, 5, 6)).numbers
        ('trial 3', 'trials 0, 1, 4 to 6')
        """
        breaks = [index for index, (a, b) in enumerate(pairwise(self.trials), 1) if b != a + 1]
        spans = [self.trials[a:b] for a, b in pairwise([0, *breaks, len(self.trials)])]
        words = [f"{s[0]} to {s[-1]}" if len(s) > 2 else ", ".join(map(str, s)) for s in spans]
        return f"trial{'s' * (len(self.trials) > 1)} {', '.join(words)}"

    def sentence(self, subject: str) -> str:
        """The reason as a sentence with this subject, for instance "another reason"."""
        return f"{subject} ({len(self.trials)} of them, {self.numbers}) is: {self.text.rstrip('.')}"


@dataclass(frozen=True)
class Failures:
    """The failed trials of a sweep with ``of`` trials, by reason, the commonest first. ``every``: all trials failed, so
    that there is no score and none will come."""

    of: int
    reasons: tuple[Reason, ...]
    every: bool

    @property
    def failed(self) -> int:
        """How many trials failed."""
        return sum(len(reason.trials) for reason in self.reasons)

    @property
    def sentence(self) -> str:
        """One line: how many trials failed, and the commonest reason with its trials. "" if no trial failed."""
        if not self.reasons:
            return ""
        count = f"{self.failed} of {self.of} trials failed"
        if self.every:
            count = f"every trial failed: {self.failed} of {self.of} ended with an error and without a score"
        first, *others = self.reasons
        if others:
            return f"{count}; {first.sentence('the commonest reason')}"
        return f"{count}; the reason ({first.numbers}) is: {first.text.rstrip('.')}"

    @property
    def further(self) -> list[str]:
        """The reasons after the commonest one, a line for each."""
        return [reason.sentence("another reason") for reason in self.reasons[1:]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, the number of failed trials and their lines."""
        return asdict(self) | {"failed": self.failed, "sentence": self.sentence, "further": self.further}


def failures(trials: Sequence[Trial]) -> Failures:
    """The failed trials of a sweep, by reason. Messages that differ only in words with a digit (an epoch, a batch, the
    id of a worker) count as one reason."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.failed:
            groups.setdefault(re.sub(r"\S*\d\S*", "#", trial.confounder or ""), []).append(trial)
    reasons = [
        Reason(group[0].confounder or "not known", tuple(sorted(trial.number for trial in group)))
        for group in groups.values()
    ]
    reasons.sort(key=lambda reason: (-len(reason.trials), reason.trials))
    return Failures(len(trials), tuple(reasons), every=bool(trials) and all(trial.failed for trial in trials))


@dataclass(frozen=True)
class Answer:
    """The answer of a sweep: the ``winner``, or None, with everything that it rests on.

    ``sentence`` states the answer in one line, and ``next_step`` what to do after "no winner" ("": nothing).
    ``candidates``: the confirmed configurations, best first. ``ranking``: every usable proposal, confirmed ones first.
    ``baseline``: the best baseline, by its mean on the confirmation's seeds if there are any; ``baselines``: all of
    them. ``excluded``: the runs that are not compared. ``tried``: how many proposals were pruned or have a score.
    ``pairs``: the fewest paired seeds of a candidate. ``noise``: how much differences scatter over seeds.
    ``detectable``: the effect that this design would have detected with 80 % power (None: no pairs). ``alpha`` and
    ``equivalence``: those of the rule. ``learned``: whether a compared run has a score above 0. ``failures``: the
    failed trials, without control runs. ``confirmation``: its progress (None: it has not begun). ``notes``: further
    sentences, on the race, on the end of the search, and on settings that came after the design.
    """

    winner: Candidate | None
    sentence: str
    candidates: tuple[Candidate, ...]
    ranking: tuple[Ranked, ...]
    baseline: Baseline | None
    baselines: tuple[Baseline, ...]
    excluded: tuple[Excluded, ...]
    tried: int
    pairs: int
    noise: Spread
    detectable: float | None
    alpha: float
    equivalence: float
    learned: bool
    failures: Failures
    confirmation: Progress | None = None
    notes: tuple[str, ...] = ()
    next_step: str = ""

    def to_dict(self, score: str = "score") -> dict[str, Any]:
        """For JSON: dicts, lists, numbers and None. ``score`` is the key under which scores stand.

        Besides the fields, ``needed`` is the number of pairs that detect a gain of +0.004 in one comparison with 80 %
        power at the ``s_d`` of ``noise`` (None: not known), and ``needed_range`` the same at ``low`` and ``high``.
        """
        data = asdict(self) | {
            "needed": self.noise.needed,
            "needed_range": self.noise.needed_range,
            "failures": self.failures.to_dict(),
        }
        for entry, candidate in zip(data["candidates"], self.candidates, strict=True):
            entry["differences"] = candidate.differences
            if candidate is self.winner:
                data["winner"] = dict(entry)
        for entry in (data["winner"], data["baseline"], *data["candidates"], *data["ranking"], *data["baselines"]):
            if entry is not None:
                entry[score] = entry.pop("score")
        # NaN and infinity become None, because JSON has neither.
        plain: dict[str, Any] = json.loads(json.dumps(data, default=np.generic.item), parse_constant=lambda _: None)
        return plain
