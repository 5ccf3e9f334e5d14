"""Which schedules are trained on which seeds: baselines and proposals in the race of the search, and the best of them
and the baselines again in the confirmation, on fresh seeds.

A confirmation's design is fixed when it begins. Every confirmation trial stores it; the first trial's counts.
"""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from sweeper import stats
from sweeper.config import Confirm
from sweeper.errors import ConfigError
from sweeper.search import Entrant, shrunken_means
from sweeper.study import Trial, Wanted


def fresh_seeds(seed: int, count: int) -> list[int]:
    """The first ``count`` confirmation seeds of a sweep with this ``seed``: always the same, all different, never
    ``seed``.

    They are hashed, so that two sweeps with neighbouring seeds share hardly any of them.

    >>> fresh_seeds(0, 3) == fresh_seeds(0, 5)[:3], 0 in fresh_seeds(0, 5), fresh_seeds(0, 3) == fresh_seeds(1, 3)
    (True, False, False)
    """
    hashes = (hashlib.sha256(f"confirm {seed} {index}".encode()).digest() for index in itertools.count())
    drawn = {seed: None}  # The dict is an ordered set.
    while len(drawn) <= count:
        drawn[int.from_bytes(next(hashes)[:4], "big") % 1_000_000] = None
    return [*drawn][1:]


# -- The race


@dataclass(frozen=True)
class Trunk:
    """The best baseline on the search seeds, with which proposals are compared, and of which they may be branches.

    ``seeds``: how many seeds all baselines have finished; ``means``: name -> mean score on these seeds; ``ahead``: the
    paired difference of the trunk to each other baseline on them (None with fewer than two seeds).
    """

    name: str
    seeds: int
    means: Mapping[str, float]
    ahead: Mapping[str, stats.Paired | None]

    @property
    def sentence(self) -> str:
        """The trunk's name, and by how much it is ahead of each other baseline."""
        if not self.ahead:
            return f"trunk: {self.name}, the only baseline"
        others = [
            f"{paired.difference} ahead of {name}"
            if paired is not None
            else f"{self.means[self.name] - self.means[name]:+z.4f} ahead of {name} (one seed: no interval)"
            for name, paired in self.ahead.items()
        ]
        seeds = f"{self.seeds} search seeds" if self.seeds > 1 else "one search seed"
        return f"trunk: {self.name}, the best baseline on {seeds}: {', '.join(others)}"


def best_baseline(trials: Sequence[Trial], names: Sequence[str], seeds: Sequence[int]) -> Trunk | None:
    """The baseline with the best mean over the seeds on which all baselines have a score; None while a run of a
    baseline has not ended.

    A baseline of which every run failed is left out. ConfigError if no seed is left to compare on.
    """
    runs = {(trial.name, trial.seed): trial for trial in trials if trial.stage == "baseline" and not trial.open}
    if not all((name, seed) in runs for name in names for seed in seeds):
        return None
    scores: dict[str, dict[int, float]] = {}
    for name in names:
        for seed in seeds:
            if (score := _score(runs[name, seed])) is not None:
                scores.setdefault(name, {})[seed] = score
    common = [seed for seed in seeds if scores and all(seed in by_seed for by_seed in scores.values())]
    if not common:
        raise ConfigError(
            f"baselines: {', '.join(names)} have no search seed that all of them finished, so that the best one is "
            "not known; look at: sweeper status"
        )
    common_scores = {name: [by_seed[seed] for seed in common] for name, by_seed in scores.items()}
    means = {name: fmean(values) for name, values in common_scores.items()}
    best = max(means, key=lambda name: means[name])
    ahead = {
        name: stats.paired(common_scores[best], values) if len(common) > 1 else None
        for name, values in common_scores.items()
        if name != best
    }
    return Trunk(best, len(common), means, ahead)


def proposals(trials: Sequence[Trial]) -> list[Trial]:
    """The search trials that propose a new schedule, by number: neither replicates, nor proposals with the LR trace of
    a baseline or an earlier proposal, which take no part in the race. A trial without a trace yet counts as new."""
    seen = {trial.facts.trace for trial in trials if trial.stage == "baseline"}
    new = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        trace = trial.facts.trace
        if trial.stage == "search" and trial.original is None and (trace is None or trace not in seen):
            new.append(trial)
            seen.add(trace)
    return new


def entrants(trials: Sequence[Trial], reference: str) -> list[Entrant]:
    """The race so far: every proposal with its differences to the baseline named ``reference`` on the same seeds."""
    trunk: dict[int, float | None] = {}
    runs: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.stage == "baseline" and trial.name == reference and not trial.open:
            trunk.setdefault(trial.seed, _score(trial))
        elif trial.stage == "search":
            runs.setdefault(trial.number if trial.original is None else trial.original, []).append(trial)
    race = []
    for proposal in proposals(trials):
        differences: dict[int, float | None] = {}
        for run in runs[proposal.number]:
            if not run.open and run.seed in trunk:
                trunk_score, score = trunk[run.seed], _score(run)
                differences[run.seed] = None if trunk_score is None or score is None else score - trunk_score
        pruned = proposal.state == "PRUNED"
        race.append(Entrant(proposal.number, {} if pruned else differences, pruned=pruned))
    return race


def _score(trial: Trial) -> float | None:
    return trial.score if trial.usable else None


def wanted_replicates(trials: Sequence[Trial], promotions: Iterable[tuple[int, int]]) -> list[Wanted]:
    """The replicates for ``search.promotions``, each a proposal's number and the seed on which it is repeated."""
    names = {trial.number: trial.facts.name for trial in trials}
    return [Wanted("search", seed, name=names[number], replicate_of=number) for number, seed in promotions]


def standings(trials: Sequence[Trial], reference: str) -> list[stats.Standing]:
    """The results of the race, best first by ``worth``, of the proposals that failed on no seed."""
    names = {trial.number: trial.name for trial in trials}
    raced = {
        entrant.trial: {seed: score for seed, score in entrant.scores.items() if score is not None}
        for entrant in entrants(trials, reference)
        if entrant.scores and None not in entrant.scores.values()
    }
    worth, results = shrunken_means(raced), []
    for number, scores in raced.items():
        values = list(scores.values())
        paired = stats.paired(values, [0.0] * len(values)) if len(values) > 1 else None
        low, high = (paired.low, paired.high) if paired else (None, None)
        results.append(
            stats.Standing(number, names[number], reference, len(values), fmean(values), low, high, worth[number])
        )
    return sorted(results, key=lambda standing: (-standing.worth, standing.trial))


# -- The confirmation


@dataclass(frozen=True)
class Design:
    """The runs that a confirmation compares, and the rule by which it is judged.

    ``candidates``: the numbers of the confirmed trials; ``best``: how many the sweep file asked for, which may be more;
    ``baselines``: their names; ``seeds``: all candidates and baselines run on each of them; ``alpha`` and
    ``equivalence``: see ``sweeper.stats``.
    """

    candidates: Sequence[int]
    baselines: Sequence[str]
    best: int
    seeds: Sequence[int]
    alpha: float
    equivalence: float

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> "Design | None":
        """The design that the confirmation began with; None if it has not begun."""
        designs = (trial.facts.design for trial in trials if trial.stage == "confirm" and trial.facts.design)
        return next((cls(**design) for design in designs), None)

    @classmethod
    def begin(
        cls,
        trials: Sequence[Trial],
        baselines: Sequence[str],
        confirm: Confirm,
        seed: int,
        leaders: Sequence[int] | None = None,
    ) -> "Design":
        """A new design for a search that has ended, of a sweep with this ``seed``; ``leaders``: see :func:`chosen`.

        ConfigError while a trial of the search is open, or if the search has no usable trial.
        """
        candidates = chosen(trials, confirm.best, leaders)
        if not candidates:
            raise ConfigError("confirm: no trial of the search is finished and comparable; look at: sweeper status")
        seeds = fresh_seeds(seed, confirm.seeds)
        return cls(candidates, list(baselines), confirm.best, seeds, confirm.alpha, confirm.equivalence)

    def changes(self, confirm: Confirm) -> list[str]:
        """A sentence for each setting of ``confirm`` that differs from this design; [] if none does."""
        fixed = {"best": self.best, "seeds": len(self.seeds), "alpha": self.alpha, "equivalence": self.equivalence}
        return [
            f"confirm.{key} is {getattr(confirm, key):g}, but the confirmation began with {value:g}"
            for key, value in fixed.items()
            if getattr(confirm, key) != value
        ]

    def runs(self, trials: Sequence[Trial]) -> list[tuple[str, int]]:
        """The configuration's name and the seed of every run of the confirmation, seed by seed."""
        names = {trial.number: trial.name for trial in trials}
        compared = [*self.baselines, *(names[number] for number in self.candidates)]
        return [(name, seed) for seed in self.seeds for name in compared]


def chosen(trials: Sequence[Trial], best: int, leaders: Sequence[int] | None = None) -> list[int]:
    """The numbers of the ``best`` usable trials of a finished search, best first.

    ``leaders``: the trials' numbers in the order of the race (None: they are ordered by score). Schedules with equal LR
    traces count once, and those with the trace of a baseline are left out. ConfigError while a trial of the search is
    open.
    """
    still_open = sum(trial.stage in ("baseline", "search") and trial.open for trial in trials)
    if still_open:
        raise ConfigError(
            f"confirm: {still_open} trials are not finished, so the best {best} are not known yet; "
            "finish them with: sweeper run"
        )
    seen = {trial.facts.trace for trial in trials if trial.stage == "baseline"}
    usable = {trial.number: trial for trial in trials if trial.stage == "search" and trial.usable}
    if leaders is None:
        leaders = sorted(usable, key=lambda number: (-(usable[number].score or 0.0), number))
    candidates: list[int] = []
    for trial in (usable[number] for number in leaders if number in usable):
        if trial.facts.trace not in seen and len(candidates) < best:
            seen.add(trial.facts.trace)
            candidates.append(trial.number)
    return candidates


def wanted_confirmation(
    trials: Sequence[Trial], baselines: Mapping[str, Mapping[str, Any]], design: Design
) -> list[Wanted]:
    """All runs of the confirmation, those that exist included, in an order in which whole seeds finish early as pairs.

    ``baselines``: name -> spec.
    """
    specs = {name: dict(spec) for name, spec in baselines.items()}
    specs |= {trial.name: dict(trial.spec or {}) for trial in trials if trial.number in design.candidates}
    runs, stored = design.runs(trials), asdict(design)
    return [Wanted("confirm", seed, schedule=specs[name], name=name, design=stored) for name, seed in runs]
