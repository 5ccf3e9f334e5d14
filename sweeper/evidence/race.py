"""The race in a study's own terms: which baseline is the trunk, which replicates are due, and who leads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sweeper import stats
from sweeper.errors import ConfigError
from sweeper.search import Entrant, promotions, shrunk
from sweeper.study import Trial, Wanted


@dataclass(frozen=True)
class Trunk:
    """The baseline that proposals are branches of, or are compared with: the best on the search seeds.

    ``seeds``: how many seeds all baselines have finished; ``means``: name -> mean score there; ``ahead``: for each
    other baseline how far the trunk is ahead on the same seeds, None with fewer than two of them.
    """

    name: str
    seeds: int
    means: Mapping[str, float]
    ahead: Mapping[str, stats.Paired | None]

    @property
    def sentence(self) -> str:
        """What was chosen, and by how much it is ahead."""
        if not self.ahead:
            return f"trunk: {self.name}, the only baseline"
        others = [
            f"{paired.mean:+z.4f} [{paired.low:+z.4f}, {paired.high:+z.4f}] ahead of {name}"
            if paired is not None
            else f"{self.means[self.name] - self.means[name]:+z.4f} ahead of {name} (one seed: no interval)"
            for name, paired in self.ahead.items()
        ]
        seeds = f"{self.seeds} search seeds" if self.seeds > 1 else "one search seed"
        return f"trunk: {self.name}, the best baseline on {seeds}: {', '.join(others)}"


def best_baseline(rows: Sequence[Trial], names: Sequence[str], seeds: Sequence[int]) -> Trunk | None:
    """The baseline with the best mean over the seeds that all of them have finished; None while one is not finished.

    A baseline of which every run failed is left out. Raises ConfigError if nothing is left to choose from.
    """
    runs = {(row.name, row.seed): row for row in rows if row.stage == "baseline"}
    wanted = [runs.get((name, seed)) for name in names for seed in seeds]
    if any(row is None or row.open for row in wanted):
        return None
    scores = {name: score for name in names if (score := _scores(runs, name, seeds))}
    common = [seed for seed in seeds if scores and all(seed in score for score in scores.values())]
    if not common:
        raise ConfigError(
            f"baselines: {', '.join(names)} have no search seed that all of them finished, so that the best one is "
            "not known; look at: sweeper status"
        )
    means = {name: fmean(score[seed] for seed in common) for name, score in scores.items()}
    best = max(means, key=lambda name: means[name])
    ahead = {
        name: stats.paired([scores[best][seed] for seed in common], [score[seed] for seed in common])
        if len(common) > 1
        else None
        for name, score in scores.items()
        if name != best
    }
    return Trunk(best, len(common), means, ahead)


def _scores(runs: Mapping[tuple[str, int], Trial], name: str, seeds: Iterable[int]) -> dict[int, float]:
    found = {}
    for seed in seeds:
        if (score := _score(runs[name, seed])) is not None:
            found[seed] = score
    return found


@dataclass(frozen=True)
class Standing:
    """How a proposal stands: the ``differences`` to the trunk by seed, and what they are ``worth`` (see ``shrunk``)."""

    trial: int
    name: str
    differences: Mapping[int, float]
    worth: float

    @property
    def n(self) -> int:
        """On how many seeds it was raced."""
        return len(self.differences)

    @property
    def mean(self) -> float:
        """The mean difference to the trunk."""
        return fmean(self.differences.values())

    @property
    def low(self) -> float | None:
        """The lower end of the mean's 95 % interval; None on one seed. It was selected for being high."""
        return self._interval()[0]

    @property
    def high(self) -> float | None:
        """The upper end."""
        return self._interval()[1]

    def _interval(self) -> tuple[float | None, float | None]:
        if self.n < 2:
            return None, None
        paired = stats.paired(list(self.differences.values()), [0.0] * self.n)
        return paired.low, paired.high

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "trial": self.trial,
            "name": self.name,
            "n": self.n,
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "worth": self.worth,
        }


def proposals(rows: Sequence[Trial]) -> list[Trial]:
    """The search trials that are no replicates and, as far as is known, no schedule a second time; by number.

    A proposal that is a baseline's schedule or an earlier proposal's tells nothing new and is not raced.
    """
    seen = {row.facts.trace for row in rows if row.stage == "baseline" and row.facts.trace}
    found = []
    for row in sorted(rows, key=lambda row: row.number):
        if row.stage != "search" or row.original is not None:
            continue
        trace = row.facts.trace
        if trace is None or trace not in seen:
            found.append(row)
            seen |= {trace} if trace is not None else set()
    return found


def entrants(rows: Sequence[Trial], reference: str) -> list[Entrant]:
    """The race so far: every proposal with its differences to the baseline ``reference`` on the same seeds."""
    trunk: dict[int, float | None] = {}
    for row in rows:
        if row.stage == "baseline" and row.name == reference and not row.open:
            trunk.setdefault(row.seed, _score(row))
    runs: dict[int, list[Trial]] = {}
    for row in rows:
        if row.stage == "search":
            runs.setdefault(row.number if row.original is None else row.original, []).append(row)
    found = []
    for proposal in proposals(rows):
        scores: dict[int, float | None] = {}
        for row in runs[proposal.number]:
            if not row.open and row.seed in trunk:
                against, score = trunk[row.seed], _score(row)
                scores[row.seed] = None if against is None or score is None else score - against
        out = proposal.state == "PRUNED"
        found.append(Entrant(proposal.number, {} if out else scores, out=out))
    return found


def _score(row: Trial) -> float | None:
    return row.score if row.usable else None


def replicates(
    rows: Sequence[Trial], reference: str, seeds: Sequence[int], race: float, begin: int = 1
) -> list[Wanted]:
    """All replicates that the race wants so far; ``Study.add`` makes those that are missing."""
    return slots_of(rows, promotions(entrants(rows, reference), seeds, race, begin))


def slots_of(rows: Sequence[Trial], wanted: Iterable[tuple[int, int]]) -> list[Wanted]:
    """These replicates, each the number of a proposal and the seed to repeat it on."""
    names = {row.number: row.facts.name for row in rows}
    return [Wanted("search", seed, name=names[trial], replicate_of=trial) for trial, seed in wanted]


def standings(rows: Sequence[Trial], reference: str) -> list[Standing]:
    """The proposals that were raced without failing on a seed, best first: by what their mean is worth on n seeds."""
    names = {row.number: row.name for row in rows}
    raced = {
        entrant.trial: {seed: score for seed, score in entrant.scores.items() if score is not None}
        for entrant in entrants(rows, reference)
        if entrant.scores and None not in entrant.scores.values()
    }
    worth = shrunk({trial: list(scores.values()) for trial, scores in raced.items()})
    found = [Standing(trial, names[trial], scores, worth[trial]) for trial, scores in raced.items()]
    return sorted(found, key=lambda standing: (-standing.worth, standing.trial))
