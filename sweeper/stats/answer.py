"""What the pick says: plain values, and one sentence."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sweeper.study import Trial

from .noise import CLAIM, Spread
from .pairs import Paired, difference, explains, luck_of_the_best


@dataclass(frozen=True)
class Entry:
    """A configuration: its first ``trial`` with its name, label, schedule (``params``), facts and run in MLflow; the
    mean ``score`` of ``n`` runs."""

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
    """How a proposal stands in a race on ``n`` search seeds: its ``mean`` difference to the trunk ``over``, with the
    95 % interval (None on one seed), and what that is ``worth`` (``search.shrunk``). It was selected for being high."""

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
        """The mean, from three seeds on with its interval: that of two seeds says nothing, however narrow it is."""
        return difference(self.mean, self.low, self.high) if self.n > 2 else difference(self.mean)


@dataclass(frozen=True)
class Ranked(Entry):
    """An entry of the ranking: by its runs in ``stage`` confirm, else search. ``raced``: None without a race."""

    stage: str
    raced: Standing | None = None


@dataclass(frozen=True)
class Baseline(Entry):
    """A baseline with its ``run_ids``; ``sigma``: standard deviation of its scores over seeds (None: one run)."""

    sigma: float | None
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Candidate(Entry):
    """A configuration that was confirmed: its ``pairs`` with the best baseline, and why it wins or not.

    ``p_holm`` is adjusted over all confirmed candidates (None: not judged yet, ``reason`` says why). At Holm's first,
    strictest level, ``mde`` is what these pairs would have seen with 80 % power, and ``low_family``, ``high_family``
    the interval; ``pairs`` has the plain one. ``title`` is how sentences call it. ``search``: the score of the search
    run, selected for being high. ``over``: its pairs with every baseline, by name.
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
        """Its differences to all baselines on the confirmation's seeds, and what follows."""
        over = sorted(self.over.items(), key=lambda item: item[1] == self.pairs)  # what follows is on the last
        each = [f"{pairs.difference} over {name} on {pairs.n} paired seeds" for name, pairs in over]
        return f"{', '.join(each)}: {self.reason}" if each else self.reason

    @property
    def ruled_out(self) -> str:
        """The gain that its interval rules out, in words; "" without pairs."""
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
    """How far a confirmation is: ``seeds`` on which all its runs have ended, well or badly, and the ``runs`` that have.

    ``of_seeds``, ``of_runs``: how many there are of each.
    """

    seeds: int
    of_seeds: int
    runs: int
    of_runs: int

    @property
    def complete(self) -> bool:
        return self.runs == self.of_runs


@dataclass(frozen=True)
class Reason:
    """One reason for which trials failed: its ``text`` as the first of the ``trials`` gave it, and their numbers."""

    text: str
    trials: tuple[int, ...]

    @property
    def numbers(self) -> str:
        """
        >>> Reason("", (3,)).numbers, Reason("", (0, 1, 4, 5, 6)).numbers
        ('trial 3', 'trials 0, 1, 4 to 6')
        """
        breaks = [place for place, (a, b) in enumerate(pairwise(self.trials), 1) if b != a + 1]
        spans = [self.trials[a:b] for a, b in pairwise([0, *breaks, len(self.trials)])]
        words = [f"{s[0]} to {s[-1]}" if len(s) > 2 else ", ".join(map(str, s)) for s in spans]
        return f"trial{'s' * (len(self.trials) > 1)} {', '.join(words)}"

    def sentence(self, which: str) -> str:
        """The reason, introduced as ``which`` one it is."""
        return f"{which} ({len(self.trials)} of them, {self.numbers}) is: {self.text.rstrip('.')}"


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
        count = f"{self.failed} of {self.of} trials failed"
        if self.every:
            count = f"every trial failed: {self.failed} of {self.of} ended with an error and without a score"
        first, *others = self.reasons
        if others:
            return f"{count}; {first.sentence('the commonest reason')}"
        return f"{count}; the reason ({first.numbers}) is: {first.text.rstrip('.')}"

    @property
    def further(self) -> list[str]:
        """A line for each reason but the commonest."""
        return [reason.sentence("another reason") for reason in self.reasons[1:]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the number of failed trials and the lines above."""
        return asdict(self) | {"failed": self.failed, "sentence": self.sentence, "further": self.further}


def failures(trials: Sequence[Trial]) -> Failures:
    """The failed trials of a sweep, by reason. Reasons that differ in their numbers only (an epoch, a batch, the name
    of a worker) count as one."""
    kinds: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.failed:
            kinds.setdefault(re.sub(r"\S*\d\S*", "#", trial.confounder or ""), []).append(trial)
    reasons = [
        Reason(kind[0].confounder or "not known", tuple(sorted(t.number for t in kind))) for kind in kinds.values()
    ]
    reasons.sort(key=lambda reason: (-len(reason.trials), reason.trials))
    return Failures(len(trials), tuple(reasons), every=bool(trials) and all(trial.failed for trial in trials))


@dataclass(frozen=True)
class Answer:
    """What ``pick`` says; ``winner`` is None unless the rule crowned one, ``sentence`` says it in one line.

    ``candidates``: the confirmed configurations, best first. ``ranking``: every usable configuration, confirmed ones
    first. ``baseline``: the best one, over the seeds of the pairs if there are any; ``baselines``: all of them.
    ``detectable``: the effect this design would have seen with 80 % power (None: no pairs). ``tried``: configurations
    that were pruned or have a score. ``learned``: whether any of the runs that are compared has a score above 0.
    ``failures``: the failed trials by reason, without control runs. ``confirmation``: how far it is (None: none was
    asked for). ``notes``: sentences on the race, and on what was asked for and plays no part.
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

    def to_dict(self, score: str = "score") -> dict[str, Any]:
        """Plain dicts, lists, numbers and None, as JSON wants them; ``score`` is the key of the scores in them.

        ``needed``: pairs for +0.004 in one comparison with 80 % power, at the ``s_d`` of ``noise`` (None: not known),
        and ``needed_range`` at the ends of its range.
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
        # NaN and infinity have no JSON
        plain: dict[str, Any] = json.loads(json.dumps(data, default=np.generic.item), parse_constant=lambda _: None)
        return plain


def sentence(answer: Answer, objective: str) -> str:
    """The answer in one line, from its other values; ``objective`` is what the score is called."""
    noise, name = answer.noise, answer.baseline.name if answer.baseline else "a baseline"
    need = f"{CLAIM:+.3f} would need {noise.needs}"
    if answer.failures.every:
        return answer.failures.sentence
    if answer.winner and (p := answer.winner.pairs):
        return (
            f"winner: {answer.winner.title}, {p.mean:+z.4f} {objective} over {name} ({1 - answer.alpha:.0%} interval "
            f"{p.low:+z.4f} to {p.high:+z.4f}, {p.n} paired seeds, p {answer.winner.p_holm:.2g} after Holm over "
            f"{len(answer.candidates)}, {answer.tried} schedules tried); {_explained(answer.winner, name)}"
        )
    if not answer.ranking:
        return f"no winner yet: nothing to compare; {need}"
    if (progress := answer.confirmation) and not progress.complete:
        return (
            f"no winner yet: {progress.seeds} of {progress.of_seeds} paired seeds are finished ({progress.runs} of "
            f"{progress.of_runs} runs), and the answer comes with the last; {need}"
        )
    if answer.pairs == 0:
        leaders = [entry for entry in answer.ranking if entry.raced is not None]
        if leaders and answer.confirmation is None:
            return _leads(leaders[0], len(leaders))
        luck = ""
        if answer.tried > 1:
            low, high = (luck_of_the_best(s_d / math.sqrt(2), answer.tried) for s_d in (noise.low, noise.high))
            luck = (
                f", and the best of {answer.tried} equal schedules leads by {low:+z.4f} to {high:+z.4f} by luck alone"
            )
        return f"no winner yet: one run each{luck}; {need}"
    best = answer.candidates[0]
    if all(c.p_holm is None for c in answer.candidates):
        return f"no winner yet: {best.title}: {best.reason}; {need}"
    came = f"the best was {best.title}, {best.pairs.difference} over {name}: {best.reason}; " if best.pairs else ""
    if others := [f"{c.ruled_out} for {c.name}" for c in answer.candidates[1:] if c.p_holm is not None]:
        came += f"ruled out is also {', '.join(others)}; "
    count = len(answer.candidates)
    return (
        f"no winner: {came}this design ({count} candidate{'s' * (count > 1)} on {answer.pairs} paired seeds) would "
        f"have seen {answer.detectable:+z.4f} over {name} with 80 % power"
    )


def _leads(first: Ranked, raced: int) -> str:
    standing = first.raced
    assert standing is not None
    ahead = f"{standing.difference} over {standing.over}"
    if standing.n == 1:
        return (
            f"no winner yet: {first.label} is the best of {raced} proposals, {ahead} on the one search seed, for which "
            "it was chosen; one run each is no evidence, and sweeper confirm judges it on fresh seeds"
        )
    return (
        f"no winner yet: {first.label} leads the race at {ahead} on {standing.n} search seeds, for which it was chosen "
        f"among {raced}; sweeper confirm judges it on fresh ones"
    )


def _explained(winner: Candidate, baseline: str) -> str:
    """Whether another baseline than ``baseline``, or a larger learning rate without the restart, explains the gain."""
    parts = [
        f"{name} {'does not explain' if pairs.low > 0 else 'may be as good, and then explains'} it "
        f"({pairs.difference} over {name})"
        for name, pairs in winner.over.items()
        if name != baseline
    ] or ["no other baseline was compared"]
    question = "whether a larger learning rate alone explains it"
    words = {True: "a larger learning rate alone explains it", None: f"{question} is unclear"}
    words[False] = "a larger learning rate alone does not explain it"
    examined = [verdict for verdict in winner.facts.get("verdicts") or () if verdict.get("over_peak")]
    for verdict in examined:
        peak, practical = verdict["over_peak"], verdict["thresholds"]["practical"]
        mean, low, high = peak["mean"], peak["low"], peak["high"]
        parts.append(
            f"{words[explains(mean, low, high, practical)]} ({difference(mean, low, high)} over the matched peak of "
            f"the restart at epoch {verdict['epoch']})"
        )
    if winner.facts.get("restarts") and not examined:
        parts.append(f"{question} was not examined (sweeper confirm --escape --trial {winner.trial})")
    return "; ".join(parts)
