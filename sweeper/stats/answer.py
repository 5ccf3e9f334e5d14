"""What the pick says: plain values, and one sentence."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .failures import Failures
from .noise import CLAIM, Spread
from .pairs import Paired, luck_of_the_best


@dataclass(frozen=True)
class Candidate:
    """A configuration that was confirmed: its mean score, its pairs with the best baseline, and why it wins or not.

    ``p_holm`` is adjusted over all confirmed candidates (None: not judged yet, ``reason`` says why); ``mde`` is what
    these pairs would have seen with 80 % power at Holm's first, strictest level; ``low_family``, ``high_family`` is the
    interval at that level (they hold for all candidates together), ``pairs`` has the plain one. ``label`` says what it
    is, ``title`` is how sentences call it, and its runs share the ``name``. ``search`` is the score of the search run,
    for the record only: it was selected for being high.
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
    p_holm: float | None = None
    wins: bool = False
    reason: str = ""


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
        for one in (data["winner"], data["baseline"], *(data[key] for key in ("candidates", "ranking", "baselines"))):
            for entry in one if isinstance(one, list | tuple) else [one]:
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
            f"{len(answer.candidates)}, {answer.tried} configurations tried)"
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
    return (
        f"no winner: this design ({len(answer.candidates)} candidates on {answer.pairs} paired seeds) would have seen "
        f"{answer.detectable:+z.4f} over {name} with 80 % power{gap}"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
