"""Compares what a sampler may learn from a schedule that was trained on several seeds, on simulated scores.

    python benchmarks/telling.py                          # 100 repeats, as a table
    python benchmarks/telling.py --trunk-sd 0.015         # a trunk with more noise of its own
    python benchmarks/telling.py --branch-sd 0.012 --seeds 16 --sampler gp --repeats 20

The race's rule, its ranking and the sampler are the real ones; only the score of a training is simulated. It is the
true gain of the schedule + noise of the seed + noise of the branch on that seed. The trunk's end has noise of its own,
which is part of all differences on a seed. A schedule has a restart at one of 31 epochs with one of 13 step_scales. Its
true gain is a function of both with one maximum, between -effect and +effect, at another position in each repeat. The
noise of a branch grows with the share of the run that differs, to the power of 0.75. All methods get the same gains and
the same noise, and train the same number of branches.
"""

import argparse
import itertools
import math
import multiprocessing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial

from sweeper.search import Entrant, promotions, rungs, seed_effects, shrunken_means
from sweeper.study import samplers

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)

EPOCHS = 40
SPACE: dict[str, BaseDistribution] = {
    "place": IntDistribution(5, 35),
    "step_scale": FloatDistribution(0.3, 1.5, step=0.1),
}
Point = tuple[int, float]
Scores = Mapping[int, float]  # seed -> score, or difference to the trunk


@dataclass
class World:
    """Scores of trainings; a function of ``start`` alone, whoever asks for them in whatever order."""

    start: int
    effect: float
    run_sd: float
    branch_sd: float
    trunk_sd: float

    @cached_property
    def top(self) -> Point:
        """The best schedule."""
        random = np.random.default_rng(self.start)
        return int(random.integers(8, 31)), float(random.uniform(0.4, 1.4))

    def worth(self, point: Point) -> float:
        """What the schedule gains on average."""
        place, scale = (point[0] - self.top[0]) / 6, (point[1] - self.top[1]) / 0.25
        return self.effect * (2 * math.exp(-(place**2 + scale**2) / 2) - 1)

    def shared(self, seed: int) -> float:
        """What a branch has from its trunk."""
        return 0.48 + self.run_sd * self._draw(seed, 0, 0)

    def trunk(self, seed: int) -> float:
        """The score of the trunk."""
        return self.shared(seed) + self.trunk_sd * self._draw(seed, 1, 0)

    def branch(self, point: Point, seed: int) -> float:
        """The score of the schedule."""
        departure = point[1] * (1 - point[0] / EPOCHS) / 0.45
        noise = self.branch_sd * departure**0.75 * self._draw(seed, point[0], round(10 * point[1]))
        return float(self.shared(seed) + self.worth(point) + noise)

    def _draw(self, *what: int) -> float:
        return float(np.random.default_rng([self.start, *what]).standard_normal())


@dataclass
class Proposal:
    """A schedule with the scores that it has so far, as they are and as differences to the trunk."""

    point: Point
    raw: dict[int, float] = field(default_factory=dict)
    differences: dict[int, float] = field(default_factory=dict)


def seen(point: Point, value: float) -> FrozenTrial:
    """A finished trial as a sampler sees it."""
    params = {"place": point[0], "step_scale": point[1]}
    return create_trial(params=params, distributions=SPACE, value=value)


def differences(proposals: list[Proposal]) -> dict[int, dict[int, float]]:
    """Index of a schedule -> seed -> difference to the trunk."""
    return {number: each.differences for number, each in enumerate(proposals)}


def means(proposals: list[Proposal]) -> list[FrozenTrial]:
    """One trial for each schedule, with its mean difference less its seeds' effects, as sweeper does it."""
    effects = seed_effects(differences(proposals))
    level = [[value - effects[seed] for seed, value in each.differences.items()] for each in proposals]
    return [seen(each.point, fmean(values)) for each, values in zip(proposals, level, strict=True)]


def plain_means(proposals: list[Proposal]) -> list[FrozenTrial]:
    """One trial for each schedule, with its mean difference over all its seeds, whichever they are."""
    return [seen(each.point, fmean(each.differences.values())) for each in proposals]


def replicates(proposals: list[Proposal]) -> list[FrozenTrial]:
    """One trial for each training, with its own difference."""
    return [seen(each.point, difference) for each in proposals for difference in each.differences.values()]


def shrunk_means(proposals: list[Proposal]) -> list[FrozenTrial]:
    """One trial for each schedule, with its mean drawn towards the average by as much as its seeds are few."""
    worth = shrunken_means(differences(proposals))
    return [seen(each.point, worth[number]) for number, each in enumerate(proposals)]


def raw_means(proposals: list[Proposal]) -> list[FrozenTrial]:
    """One trial for each schedule, with its mean score: the luck of the seeds is in it."""
    return [seen(each.point, fmean(each.raw.values())) for each in proposals]


WAYS: dict[str, Callable[[list[Proposal]], list[FrozenTrial]]] = {
    "the mean difference, less the seeds' effects": means,
    "the plain mean difference": plain_means,
    "each replicate as a trial of its own": replicates,
    "the shrunk mean difference": shrunk_means,
    "the mean score, not the difference": raw_means,
    "nothing (random proposals)": lambda proposals: [],
}


def propose(trials: list[FrozenTrial], proposals: list[Proposal], given: argparse.Namespace, start: int) -> Point:
    """The sampler's next schedule, asked again while it is known, as the product does."""
    known = {each.point for each in proposals}
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    for attempt in range(samplers.TRIES):
        study.sampler = samplers.make(given.sampler if trials else "random", start, len(proposals), attempt)
        asked = study.ask(SPACE)
        point = int(asked.params["place"]), round(float(asked.params["step_scale"]), 1)
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
        if point not in known:
            break
    return point


def search(world: World, tell: Callable[[list[Proposal]], list[FrozenTrial]], given: argparse.Namespace) -> list[float]:
    """One race; returns four numbers.

    They are the true gain of the leader, the mean true gain of the proposals of the second half, the number of
    proposals, and the true gain of the proposal with the highest mean difference, however few its seeds are.
    """
    seeds, begin = list(range(1, given.seeds + 1)), max(given.seeds // 4, 1)
    proposals: list[Proposal] = []
    for _ in range(given.branches):
        entrants = [Entrant(number, each.differences) for number, each in enumerate(proposals)]
        wanted = (
            (number, seed)
            for number, seed in promotions(entrants, seeds, 2, begin)
            if seed not in proposals[number].differences
        )
        number, seed = next(wanted, (len(proposals), seeds[0]))
        if number == len(proposals):
            proposals.append(Proposal(propose(tell(proposals), proposals, given, world.start)))
        proposal = proposals[number]
        proposal.raw[seed] = world.branch(proposal.point, seed)
        proposal.differences[seed] = proposal.raw[seed] - world.trunk(seed)
    ranks = shrunken_means(differences(proposals))
    leader = proposals[max(ranks, key=lambda number: ranks[number])]
    plain_leader = max(proposals, key=lambda proposal: fmean(proposal.differences.values()))
    later = proposals[len(proposals) // 2 :]
    gains = [world.worth(leader.point), fmean(world.worth(each.point) for each in later)]
    return [*gains, float(len(proposals)), world.worth(plain_leader.point)]


def once(start: int, given: argparse.Namespace) -> list[list[float]]:
    """All ways of telling in one world."""
    world = World(start, given.effect, given.run_sd, given.branch_sd, given.trunk_sd)
    return [search(world, tell, given) for tell in WAYS.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=int, default=0, help="the first repeat's number; other repeats, other luck")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--effect", type=float, default=0.004, help="what the best schedule gains")
    parser.add_argument("--run-sd", type=float, default=0.0215, help="of a run over seeds")
    parser.add_argument("--branch-sd", type=float, default=0.006, help="of a branch's difference to its trunk")
    parser.add_argument("--trunk-sd", type=float, default=0.005, help="of the trunk's own end, in all its differences")
    parser.add_argument("--seeds", type=int, default=8, help="search seeds")
    parser.add_argument("--branches", type=int, default=240, help="trained ones, replicates included")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--jobs", type=int, default=1, help="repeats side by side")
    given = parser.parse_args()
    starts = range(given.start, given.start + given.repeats)
    with multiprocessing.Pool(given.jobs) as pool:
        results = np.array(pool.starmap(once, zip(starts, itertools.repeat(given)), chunksize=1))
    steps = ", ".join(map(str, rungs(given.seeds, max(given.seeds // 4, 1))))
    print(f"A race on {steps} seeds, {given.branches} trained branches; in thousandths, ± a 95 % interval.\n")
    print("| the sampler learns from | gain of the leader | deficit | leader by plain mean | later ones | n |")
    print("|---|---|---|---|---|---|")
    for index, name in enumerate(WAYS):
        leader, later, count, plain_leader = results[:, index].T
        columns = [leader, results[:, 0, 0] - leader, plain_leader, later]
        cells = [f"{1000 * each.mean():.2f} ± {1960 * each.std(ddof=1) / len(each) ** 0.5:.2f}" for each in columns]
        if index == 0:
            cells[1] = ""
        print("| " + " | ".join([name, *cells, f"{count.mean():.1f}"]) + " |")


if __name__ == "__main__":
    main()
