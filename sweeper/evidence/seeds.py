"""What is trained on which seeds: baselines and proposals in a race, and the best again on fresh seeds to confirm them.

A confirmation's design is fixed when it begins: each of its slots carries it, and the first slot's is the one that
holds.
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
from sweeper.search import Entrant, shrunk
from sweeper.study import Trial, Wanted


def fresh_seeds(seed: int, count: int) -> list[int]:
    """The first ``count`` seeds to confirm a sweep of ``seed`` on: always the same, all different, never ``seed``.

    Hashed, so that the confirmation of a repetition with the next seed does not share most of them.

    >>> fresh_seeds(0, 3) == fresh_seeds(0, 5)[:3], 0 in fresh_seeds(0, 5), fresh_seeds(0, 3) == fresh_seeds(1, 3)
    (True, False, False)
    """
    hashes = (hashlib.sha256(f"confirm {seed} {index}".encode()).digest() for index in itertools.count())
    drawn = {seed: None}  # an ordered set
    while len(drawn) <= count:
        drawn[int.from_bytes(next(hashes)[:4], "big") % 1_000_000] = None
    return [*drawn][1:]


# -- the race


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
            f"{paired.difference} ahead of {name}"
            if paired is not None
            else f"{self.means[self.name] - self.means[name]:+z.4f} ahead of {name} (one seed: no interval)"
            for name, paired in self.ahead.items()
        ]
        seeds = f"{self.seeds} search seeds" if self.seeds > 1 else "one search seed"
        return f"trunk: {self.name}, the best baseline on {seeds}: {', '.join(others)}"


def best_baseline(trials: Sequence[Trial], names: Sequence[str], seeds: Sequence[int]) -> Trunk | None:
    """The baseline with the best mean over the seeds that all of them have finished; None while one is not finished.

    A baseline of which every run failed is left out. Raises ConfigError if nothing is left to choose from.
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
    """The search trials that are no replicates and, as far as is known, no schedule a second time; by number.

    A proposal that is a baseline's schedule or an earlier proposal's tells nothing new and is not raced.
    """
    seen = {trial.facts.trace for trial in trials if trial.stage == "baseline"}
    new = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        trace = trial.facts.trace
        if trial.stage == "search" and trial.original is None and (trace is None or trace not in seen):
            new.append(trial)
            seen.add(trace)
    return new


def entrants(trials: Sequence[Trial], reference: str) -> list[Entrant]:
    """The race so far: every proposal with its differences to the baseline ``reference`` on the same seeds."""
    trunk: dict[int, float | None] = {}
    runs: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.stage == "baseline" and trial.name == reference and not trial.open:
            trunk.setdefault(trial.seed, _score(trial))
        elif trial.stage == "search":
            runs.setdefault(trial.number if trial.original is None else trial.original, []).append(trial)
    line = []
    for proposal in proposals(trials):
        scores: dict[int, float | None] = {}
        for run in runs[proposal.number]:
            if not run.open and run.seed in trunk:
                against, score = trunk[run.seed], _score(run)
                scores[run.seed] = None if against is None or score is None else score - against
        out = proposal.state == "PRUNED"
        line.append(Entrant(proposal.number, {} if out else scores, out=out))
    return line


def _score(trial: Trial) -> float | None:
    return trial.score if trial.usable else None


def slots_of(trials: Sequence[Trial], wanted: Iterable[tuple[int, int]]) -> list[Wanted]:
    """The replicates that ``search.promotions`` asks for, each the number of a proposal and the seed to repeat it on;
    ``Study.add`` makes those that are missing."""
    names = {trial.number: trial.facts.name for trial in trials}
    return [Wanted("search", seed, name=names[number], replicate_of=number) for number, seed in wanted]


def standings(trials: Sequence[Trial], reference: str) -> list[stats.Standing]:
    """The proposals that were raced without failing on a seed, best first: by what their mean is worth on n seeds."""
    names = {trial.number: trial.name for trial in trials}
    raced = {
        entrant.trial: entrant.differences
        for entrant in entrants(trials, reference)
        if entrant.scores and None not in entrant.scores.values()
    }
    worth, standing = shrunk(raced), []
    for number, values in raced.items():
        paired = stats.paired(values, [0.0] * len(values)) if len(values) > 1 else None
        low, high = (paired.low, paired.high) if paired else (None, None)
        standing.append(
            stats.Standing(number, names[number], reference, len(values), fmean(values), low, high, worth[number])
        )
    return sorted(standing, key=lambda standing: (-standing.worth, standing.trial))


# -- the confirmation


@dataclass(frozen=True)
class Design:
    """What a confirmation compares and by which rule it is judged.

    ``candidates``: numbers of the trials that are confirmed, ``best`` how many were asked for; ``baselines``: names;
    ``seeds``: those that all of them run on; ``alpha`` and ``equivalence``: see ``sweeper.stats``.
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
        """The design for the search of a sweep of ``seed`` as it has ended; ``leaders``: see :func:`chosen`.

        Raises ConfigError while the search goes on, or if it left nothing to confirm.
        """
        candidates = chosen(trials, confirm.best, leaders)
        if not candidates:
            raise ConfigError("confirm: no trial of the search is finished and comparable; look at: sweeper status")
        seeds = fresh_seeds(seed, confirm.seeds)
        return cls(candidates, list(baselines), confirm.best, seeds, confirm.alpha, confirm.equivalence)

    def changes(self, confirm: Confirm) -> list[str]:
        """What ``confirm`` asks for now and the confirmation did not begin with, a sentence each; [] for nothing."""
        begun = {"best": self.best, "seeds": len(self.seeds), "alpha": self.alpha, "equivalence": self.equivalence}
        return [
            f"confirm.{key} is {getattr(confirm, key):g}, but the confirmation began with {value:g}"
            for key, value in begun.items()
            if getattr(confirm, key) != value
        ]

    def runs(self, trials: Sequence[Trial]) -> list[tuple[str, int]]:
        """(configuration's name, seed) of every run of the confirmation, seed by seed."""
        names = {trial.number: trial.name for trial in trials}
        everyone = [*self.baselines, *(names[number] for number in self.candidates)]
        return [(name, seed) for seed in self.seeds for name in everyone]


def chosen(trials: Sequence[Trial], best: int, leaders: Sequence[int] | None = None) -> list[int]:
    """The ``best`` trials of a finished search: the first of ``leaders`` (numbers), without by their scores.

    Equal schedules count once, and one that is a baseline's is none. Raises ConfigError while the search goes on.
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


def confirm_slots(trials: Sequence[Trial], baselines: Mapping[str, Mapping[str, Any]], design: Design) -> list[Wanted]:
    """The slots of the whole confirmation, seed by seed: what is finished early makes pairs.

    ``baselines``: name -> spec. Those that exist already are among them; ``Study.add`` makes what is missing.
    """
    specs = {name: dict(spec) for name, spec in baselines.items()}
    specs |= {trial.name: dict(trial.spec or {}) for trial in trials if trial.number in design.candidates}
    runs, written = design.runs(trials), asdict(design)
    return [Wanted("confirm", seed, schedule=specs[name], name=name, design=written) for name, seed in runs]
