"""What the pick says: plain values, and one sentence."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .failures import Failures
from .noise import CLAIM, Spread
from .pairs import Paired, difference, luck_of_the_best


@dataclass(frozen=True)
class Candidate:
    """A configuration that was confirmed: its mean score, its pairs with the best baseline, and why it wins or not.

    ``p_holm`` is adjusted over all confirmed candidates (None: not judged yet, ``reason`` says why); ``mde`` is what
    these pairs would have seen with 80 % power at Holm's first, strictest level; ``low_family``, ``high_family`` is the
    interval at that level (they hold for all candidates together), ``pairs`` has the plain one. ``label`` says what it
    is, ``title`` is how sentences call it, and its runs share the ``name``. ``search`` is the score of the search run,
    for the record only: it was selected for being high. ``over``: its pairs with every baseline, by name.
    """

    trial: int
    name: str
    label: str
    title: str
    score: float | None
    search: float | None
    pairs: Paired | None
    mde: float | None
    low_family: float | None
    high_family: float | None
    params: Mapping[str, Any]
    facts: Mapping[str, Any]
    run_id: str | None
    run_ids: tuple[str, ...]
    over: Mapping[str, Paired]
    p_holm: float | None = None
    wins: bool = False
    reason: str = ""

    @property
    def differences(self) -> str:
        """Its differences to all baselines on the confirmation's seeds, and what follows."""
        each = [
            f"{difference(pairs.mean, pairs.low, pairs.high)} over {name} on {pairs.n} paired seeds"
            for name, pairs in self.over.items()
        ]
        return f"{', '.join(each)}: {self.reason}" if each else self.reason

    @property
    def ruled_out(self) -> str:
        """The gain that its interval rules out, in words; "" without pairs."""
        if self.pairs is None:
            return ""
        return f"more than {self.pairs.high:+z.4f}" if self.pairs.high > 0 else "any gain"


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
class Answer:
    """What ``pick`` says; ``winner`` is None unless the rule crowned one, ``sentence`` says it in one line.

    ``candidates``: the confirmed configurations, best first. ``ranking``: every usable configuration, confirmed ones
    first, as dicts with trial, name, label, params, score (mean of the confirmation runs, else the search run), run_id,
    stage, n. ``baseline``: the best one, over the seeds of the pairs if there are any; ``baselines``: all of them.
    ``excluded``: runs that are not compared, with reasons. ``detectable``: the effect this design would have seen
    with 80 % power (None: no pairs). ``needed``: pairs for +0.004 in one comparison with 80 % power, at the ``s_d``
    of ``noise`` (None: not known), and ``needed_range`` at the ends of its range. ``tried``: configurations that were
    pruned or have a score. ``learned``: whether any of the runs that are compared has a score above 0. ``failures``:
    the failed trials by reason, without control runs. ``confirmation``: how far it is (None: none was asked for).
    ``notes``: sentences on what was asked for and plays no part.
    """

    winner: Candidate | None
    sentence: str
    candidates: tuple[Candidate, ...]
    ranking: tuple[dict[str, Any], ...]
    baseline: dict[str, Any] | None
    baselines: tuple[dict[str, Any], ...]
    excluded: tuple[dict[str, Any], ...]
    tried: int
    pairs: int
    noise: Spread
    detectable: float | None
    needed: int | None
    needed_range: tuple[int, int]
    alpha: float
    equivalence: float
    learned: bool
    failures: Failures
    confirmation: Progress | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self, score: str = "score") -> dict[str, Any]:
        """Plain dicts, lists, numbers and None, as JSON wants them; ``score`` is the key of the scores in them."""
        data = asdict(self)
        confirmed = ((data["winner"], self.winner), *zip(data["candidates"], self.candidates, strict=True))
        for entry, candidate in confirmed:
            if candidate is not None:
                entry["differences"] = candidate.differences
        for entry in (data["winner"], data["baseline"], *data["candidates"], *data["ranking"], *data["baselines"]):
            if entry is not None:
                entry[score] = entry.pop("score")
        data["failures"] = self.failures.to_dict()
        plain: dict[str, Any] = _plain(data)
        return plain


def sentence(answer: Answer, objective: str) -> str:
    """The answer in one line, from its other values; ``objective`` is what the score is called."""
    noise, name = answer.noise, answer.baseline["name"] if answer.baseline else "a baseline"
    need = f"{CLAIM:+.3f} would need {noise.needs}"
    if answer.failures.every:
        return answer.failures.sentence
    if answer.winner and (p := answer.winner.pairs):
        return (
            f"winner: {answer.winner.title}, {p.mean:+z.4f} {objective} over {name} ({1 - answer.alpha:.0%} interval "
            f"{p.low:+z.4f} to {p.high:+z.4f}, {p.n} paired seeds, p {answer.winner.p_holm:.2g} after Holm over "
            f"{len(answer.candidates)}, {answer.tried} configurations tried); {explained(answer.winner, name)}"
        )
    if not answer.ranking:
        return f"no winner yet: nothing to compare; {need}"
    if (progress := answer.confirmation) and not progress.complete:
        return (
            f"no winner yet: {progress.seeds} of {progress.of_seeds} paired seeds are finished ({progress.runs} of "
            f"{progress.of_runs} runs), and the answer comes with the last; {need}"
        )
    if answer.pairs == 0:
        low, high = (luck_of_the_best(s_d / math.sqrt(2), answer.tried) for s_d in (noise.low, noise.high))
        luck = (
            f", and the best of {answer.tried} equal configurations leads by {low:+z.4f} to {high:+z.4f} by luck alone"
        )
        luck = luck if answer.tried > 1 else ""
        return f"no winner yet: one run each{luck}; {need}"
    best = answer.candidates[0]
    if all(c.p_holm is None for c in answer.candidates):
        return f"no winner yet: {best.title}: {best.reason}; {need}"
    gap = f"; the best was {best.title} at {best.pairs.mean:+z.4f}: {best.reason}" if best.pairs else ""
    if others := [f"{c.ruled_out} for {c.name}" for c in answer.candidates[1:] if c.p_holm is not None]:
        gap += f"; ruled out is also {', '.join(others)}"
    return (
        f"no winner: this design ({len(answer.candidates)} candidates on {answer.pairs} paired seeds) would have seen "
        f"{answer.detectable:+z.4f} over {name} with 80 % power{gap}"
    )


def explained(winner: Candidate, baseline: str) -> str:
    """Whether another baseline than ``baseline``, or a larger learning rate without the restart, explains a gain."""
    others = {name: pairs for name, pairs in winner.over.items() if name != baseline}
    parts = [
        f"{name} {'does not explain' if pairs.low > 0 else 'may be as good, and then explains'} it "
        f"({difference(pairs.mean, pairs.low, pairs.high)} over {name})"
        for name, pairs in others.items()
    ] or ["no other baseline was compared"]
    if winner.facts.get("restarts"):
        parts.append(_by_a_larger_rate(winner))
    return "; ".join(parts)


def _by_a_larger_rate(winner: Candidate) -> str:
    examined = [verdict for verdict in winner.facts.get("verdicts") or () if verdict.get("over_peak")]
    question = "whether a larger learning rate alone explains it"
    if not examined:
        return f"{question} was not examined (sweeper confirm --escape --trial {winner.trial})"
    parts = []
    words = {True: "a larger learning rate alone explains it", None: f"{question} is unclear"}
    words[False] = "a larger learning rate alone does not explain it"
    for verdict in examined:
        mean, low, high = (verdict["over_peak"][key] for key in ("mean", "low", "high"))
        parts.append(
            f"{words[explains(mean, low, high, verdict['thresholds']['practical'])]} "
            f"({difference(mean, low, high)} over the matched peak of the restart at epoch {verdict['epoch']})"
        )
    return "; ".join(parts)


def explains(mean: float, low: float | None, high: float | None, practical: float) -> bool | None:
    """Whether a control explains a gain, by the difference of run and control with its interval (None: no interval).

    It does where the run is worse by ``practical`` and its interval below 0, not where the interval excludes a loss of
    that size. None: unclear.

    >>> explains(-0.01, -0.02, -0.001, 0.002), explains(0.0, -0.001, 0.001, 0.002), explains(0.01, None, None, 0.002)
    (True, False, None)
    """
    if low is None or high is None:
        return None
    if mean <= -practical and high < 0:
        return True
    return False if low > -practical else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
