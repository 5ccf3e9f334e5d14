"""What decides which trainings go on: a run's score, when it stops early, and the race of proposals over seeds.

Plain numbers in, plain numbers out; nothing here trains, reads or writes. A metric dips after every restart by design,
so a run is judged at the ends of its cycles, where it is annealed, by the best that it had reached. The usual pruners,
which look at the last value, stop most good restart schedules. In the race a score is the difference to the reference
(the trunk) on the same seed, so that the luck of a seed, which both share, is gone from it.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median

import numpy as np

LAST = 3  # epochs whose mean is one value: a single lucky epoch does not count


def best_so_far(curve: Sequence[float]) -> float:
    """The highest mean of up to 3 epochs in a row that end anywhere in ``curve`` (one value an epoch, not empty)."""
    return max(float(np.mean(curve[max(end - LAST, 0) : end])) for end in range(1, len(curve) + 1))


def score(curve: Sequence[float]) -> float:
    """The score of a finished run: the mean over its last three epochs (of fewer all), so that luck does not win."""
    tail = [float(value) for value in curve[-LAST:]]
    return sum(tail) / len(tail)


def cycle_end(
    curve: Sequence[float],
    ends: Collection[int],
    others: Sequence[Sequence[float]],
    *,
    from_epoch: int,
    share: float,
    least: int,
) -> str | None:
    """The reason to stop after ``len(curve)`` epochs, or None.

    Only if a cycle ends there (``ends``: epochs at which the LR jumps) and ``from_epoch`` epochs are done: then the
    best so far is compared with what each of ``others`` had reached by the same epoch, and being below the lowest
    ``share`` of at least ``least`` of them is a reason. An other that did not get so far is left out.

    >>> others = [[0.1, 0.2, 0.3, 0.1]] * 5
    >>> cycle_end([0.1, 0.1, 0.1, 0.1], {4}, others, from_epoch=2, share=0.25, least=5)
    'best so far 0.1000 after 4 epochs, 25 % of 5 others had less than 0.2000'
    """
    epochs = len(curve)
    if epochs not in ends or epochs < from_epoch:
        return None
    reached = [best_so_far(other[:epochs]) for other in others if len(other) >= epochs]
    if len(reached) < least:
        return None
    best, limit = best_so_far(curve), float(np.quantile(reached, share))
    if best >= limit:
        return None
    count = f"{share:.0%}".replace("%", " %")
    return f"best so far {best:.4f} after {epochs} epochs, {count} of {len(reached)} others had less than {limit:.4f}"


def dead(curve: Sequence[float], after: int | None) -> str | None:
    """The reason to give up a run whose metric never left 0 in ``after`` epochs, or None (also for ``after`` None)."""
    if after is None or len(curve) < after or any(curve):
        return None
    return f"dead: mAP was 0 in all of {len(curve)} epochs"


#: Search seeds begin here and confirmation seeds end below, so that the two can never meet.
FIRST_HASHED = 1_000_000
FEWEST = 4  #: degrees of freedom below which the noise between seeds is not estimated
MOST_SHRINKAGE = 16.0  #: seeds that the prior counts for at most: beyond, all schedules would look alike


def search_seeds(seed: int, count: int) -> list[int]:
    """The seeds that a sweep of ``seed`` searches on: its own first, then hashed ones, all different."""
    seeds, index = [seed], 0
    while len(seeds) < count:
        index += 1
        digest = hashlib.sha256(f"search {seed} {index}".encode()).digest()
        drawn = FIRST_HASHED + int.from_bytes(digest[:4], "big") % FIRST_HASHED
        if drawn not in seeds:
            seeds.append(drawn)
    return seeds


def rungs(seeds: int, begin: int = 1) -> list[int]:
    """The numbers of seeds after which a race decides, the last one included.

    >>> rungs(8), rungs(6), rungs(1), rungs(16, begin=4)
    ([1, 2, 4, 8], [1, 2, 4, 6], [1], [4, 8, 16])
    """
    steps = [min(begin, seeds)]
    while steps[-1] < seeds:
        steps.append(min(2 * steps[-1], seeds))
    return steps


@dataclass(frozen=True)
class Entrant:
    """A proposal in the race. ``scores``: seed -> difference to the reference; None where there will never be one.

    A seed that is absent has not been finished yet, by the proposal or by the reference. ``out``: it finished and is
    not to be trained again (stopped early by a pruner), but those that are compared with it may count it as beaten.
    """

    trial: int
    scores: Mapping[int, float | None] = field(default_factory=dict)
    out: bool = False

    @property
    def differences(self) -> list[float]:
        """The scores that there are, in the order in which the seeds were raced."""
        return [score for score in self.scores.values() if score is not None]


def promotions(entrants: Sequence[Entrant], seeds: Sequence[int], race: float, begin: int = 1) -> list[tuple[int, int]]:
    """The (trial, seed) of every replicate that the race wants so far, those that exist already included.

    Each entrant that is finished on the first seed is trained on the first ``begin`` of them, whatever it scored. As in
    ASHA, nobody waits for a full round: of the k entrants that have finished n seeds the best k / race (rounded down)
    go on to 2n seeds, whatever k is. Unlike ASHA the entrants are counted in a fixed order (by number, and then in the
    order in which they were promoted), and one that is not finished holds up the decisions about those behind it. So
    the replicates follow from the scores alone, and workers that die or are slow change nothing. Equal means keep that
    order. An entrant with a seed that failed is not counted and does not go on.
    """
    started = [entrant for entrant in entrants if not entrant.out and entrant.scores.get(seeds[0]) is not None]
    replicates = [(entrant.trial, seed) for entrant in started for seed in seeds[1 : min(begin, len(seeds))]]
    line = list(entrants)
    for count, further in pairwise(rungs(len(seeds), begin)):
        finished: list[tuple[float, int, Entrant]] = []
        promoted: list[Entrant] = []
        for place, entrant in enumerate(line):
            if entrant.out:
                finished.append((math.inf, place, entrant))
                continue
            if not all(seed in entrant.scores for seed in seeds[:count]):
                break
            scores = [entrant.scores[seed] for seed in seeds[:count]]
            if None in scores:
                continue
            finished.append((-fmean(score for score in scores if score is not None), place, entrant))
            finished.sort(key=lambda item: item[:2])
            for rank in finished[: int(len(finished) / race)]:
                if rank[2] not in promoted and not rank[2].out:
                    promoted.append(rank[2])
        replicates += [(entrant.trial, seed) for entrant in promoted for seed in seeds[count:further]]
        line = promoted
    return replicates


def shrunk(differences: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """What each trial's mean difference is worth: few seeds draw it towards what an average proposal is worth.

    ``differences``: trial -> its differences to the reference, in the order of the seeds, at least one each. This is
    the usual empirical Bayes estimate (n * mean + k * centre) / (n + k), where k is the variance between seeds over the
    variance between schedules. The latter is taken from the first seed, on which nobody was selected, and from the
    better half there, because a few ruined schedules would make all the others look alike. Until the variance between
    seeds has 4 degrees of freedom, k is 1.

    >>> {trial: round(value, 3) for trial, value in shrunk({1: [0.02], 2: [0.0], 3: [0.012, 0.014, 0.013]}).items()}
    {1: 0.016, 2: 0.006, 3: 0.013}
    """
    if not differences:
        return {}
    firsts = [values[0] for values in differences.values()]
    centre = median(firsts)
    freedom = sum(len(values) - 1 for values in differences.values())
    prior = 1.0
    if freedom >= FEWEST:
        within = sum((value - fmean(values)) ** 2 for values in differences.values() for value in values) / freedom
        between = fmean((value - centre) ** 2 for value in firsts if value >= centre) - within
        prior = min(within / between, MOST_SHRINKAGE) if between > 0 else MOST_SHRINKAGE
    return {trial: (sum(values) + prior * centre) / (len(values) + prior) for trial, values in differences.items()}
