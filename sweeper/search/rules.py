"""The score of a run, the rules that stop a run early, and the race of proposals over seeds, as pure functions.

A metric dips after every restart by design. So a run is compared with others at the ends of its cycles only, where the
LR is low, and by its best value so far. Usual pruners compare the last value and stop most good restart schedules. In
the race a score is the difference to the reference (the trunk) on the same seed, because the effect of the seed, which
both runs share, cancels in it.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median

import numpy as np

LAST = 3  # Scores are means over so many epochs, so that a single lucky epoch does not decide.


def best_so_far(curve: Sequence[float]) -> float:
    """The highest mean over three epochs in a row, at the start over fewer; ``curve`` has a value for each epoch."""
    return max(float(np.mean(curve[max(end - LAST, 0) : end])) for end in range(1, len(curve) + 1))


def score(curve: Sequence[float]) -> float:
    """The score of a finished run: the mean over its last three epochs, or over all if there are fewer."""
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
    """The reason to stop a run after ``len(curve)`` epochs, or None.

    A run is stopped only at the end of a cycle (``ends`` are the epochs at which the LR jumps), after ``from_epoch``
    epochs or more. Its best value so far is compared with that of each of ``others`` by the same epoch. It is stopped
    if its value is below the ``share`` quantile of theirs. Others that did not get so far do not count, and with fewer
    than ``least`` of them no run is stopped.

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


def never_learned(curve: Sequence[float], after: int | None) -> str | None:
    """The reason to stop a run whose metric was 0 in all epochs so far, ``after`` or more of them; else None."""
    if after is None or len(curve) < after or any(curve):
        return None
    return f"dead: mAP was 0 in all of {len(curve)} epochs"


#: Hashed search seeds are at least this, confirmation seeds are less, so that no seed is used for both.
FIRST_HASHED = 1_000_000
FEWEST = 4  #: The noise between seeds is estimated from so many degrees of freedom or more.
MOST_SHRINKAGE = 16.0  #: The prior counts as at most so many seeds, because with more all schedules would look alike.


def search_seeds(seed: int, count: int) -> list[int]:
    """``count`` different search seeds for a sweep with this ``seed``: the seed itself, then hashed ones."""
    seeds, index = [seed], 0
    while len(seeds) < count:
        index += 1
        digest = hashlib.sha256(f"search {seed} {index}".encode()).digest()
        hashed = FIRST_HASHED + int.from_bytes(digest[:4], "big") % FIRST_HASHED
        if hashed not in seeds:
            seeds.append(hashed)
    return seeds


def rungs(seeds: int, begin: int = 1) -> list[int]:
    """The numbers of seeds after which a race decides who goes on: ``begin``, its doubles, and ``seeds``.

    >>> rungs(8), rungs(6), rungs(1), rungs(16, begin=4)
    ([1, 2, 4, 8], [1, 2, 4, 6], [1], [4, 8, 16])
    """
    steps = [min(begin, seeds)]
    while steps[-1] < seeds:
        steps.append(min(2 * steps[-1], seeds))
    return steps


@dataclass(frozen=True)
class Entrant:
    """A proposal in the race, ``trial`` being its trial's number.

    ``scores``: seed -> difference to the reference, or None if one of the two failed there. A seed is absent as long as
    one of the two has not finished it. ``pruned``: the pruner stopped the proposal. It is not trained on further seeds,
    but counts as beaten by those that are compared with it.
    """

    trial: int
    scores: Mapping[int, float | None] = field(default_factory=dict)
    pruned: bool = False


def promotions(entrants: Sequence[Entrant], seeds: Sequence[int], race: float, begin: int = 1) -> list[tuple[int, int]]:
    """The (trial, seed) of every replicate that the race asks for so far, including those that exist already.

    Each entrant that has finished the first seed is trained on the first ``begin`` seeds, whatever its score. As in
    ASHA, decisions do not wait for a full round: of the k entrants that have finished n seeds the best k / race
    (rounded down) go on to 2n seeds. Unlike in ASHA, entrants are counted in a fixed order, by number and then in the
    order of their promotion, and an entrant that has not finished delays the decisions about those after it. So the
    replicates are a function of the scores alone, and dead or slow workers do not change them. Entrants with equal
    means keep that order. An entrant with a failed seed is not counted and does not go on.
    """
    started = [entrant for entrant in entrants if not entrant.pruned and entrant.scores.get(seeds[0]) is not None]
    replicates = [(entrant.trial, seed) for entrant in started for seed in seeds[1 : min(begin, len(seeds))]]
    queue = list(entrants)
    for count, next_count in pairwise(rungs(len(seeds), begin)):
        finished: list[tuple[float, int, Entrant]] = []  # (-mean, position in the queue, entrant), sorted.
        promoted: list[Entrant] = []
        for position, entrant in enumerate(queue):
            if entrant.pruned:
                finished.append((math.inf, position, entrant))
                continue
            if not all(seed in entrant.scores for seed in seeds[:count]):
                break
            scores = [entrant.scores[seed] for seed in seeds[:count]]
            if None in scores:
                continue
            finished.append((-fmean(score for score in scores if score is not None), position, entrant))
            finished.sort(key=lambda item: item[:2])
            for _, _, leader in finished[: int(len(finished) / race)]:
                if leader not in promoted and not leader.pruned:
                    promoted.append(leader)
        replicates += [(entrant.trial, seed) for entrant in promoted for seed in seeds[count:next_count]]
        queue = promoted
    return replicates


def seed_effects(differences: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    """The part of the differences that all trials have in common on a seed, per seed; the parts sum to 0.

    ``differences``: trial -> seed -> difference to the reference. The reference's luck on a seed is part of every
    difference on that seed. So the mean of a trial that ran on the first seed only contains all of that seed's luck,
    and the mean of a trial that ran on 8 seeds contains an eighth of it; means over different seeds can only be
    compared after the seeds' effects have been subtracted. They are fitted by least squares in the model difference =
    trial + seed. A trial that ran on all seeds keeps its mean.

    >>> {seed: round(effect, 3) for seed, effect in seed_effects({1: {7: 0.03, 8: 0.01}, 2: {7: 0.02}}).items()}
    {7: 0.01, 8: -0.01}
    """
    column = {seed: index for index, seed in enumerate(sorted({seed for of in differences.values() for seed in of}))}
    matrix, right = np.zeros((len(column), len(column))), np.zeros(len(column))
    for scores in differences.values():  # These are the normal equations without the trials' effects.
        columns, values = [column[seed] for seed in scores], np.array(list(scores.values()))
        matrix[columns, columns] += 1
        matrix[np.ix_(columns, columns)] -= 1 / len(columns)
        right[columns] += values - values.mean()
    effects = np.linalg.pinv(matrix, hermitian=True) @ right
    return {seed: float(effects[index] - effects.mean()) for seed, index in column.items()}


def shrunken_means(differences: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    """Each trial's mean difference to the reference, shrunk towards the median of all trials if it has few seeds.

    ``differences``: trial -> seed -> difference to the reference, in the order of the seeds, at least one each. After
    the :func:`seed_effects` have been subtracted, this is the usual empirical Bayes estimate (n * mean + k * centre) /
    (n + k), where k is the variance between seeds divided by the variance between schedules. The latter is taken from
    the first seed, because no proposal was selected by it, and from the better half of the trials, because a few ruined
    schedules would make all others look alike. k is 1 as long as the variance between seeds has fewer than 4 degrees of
    freedom.

    >>> scores = {1: {7: 0.021}, 2: {7: 0.001}, 3: {7: 0.013, 8: 0.015, 9: 0.011}}
    >>> {trial: round(value, 3) for trial, value in shrunken_means(scores).items()}
    {1: 0.017, 2: 0.007, 3: 0.013}
    """
    if not differences:
        return {}
    effects = seed_effects(differences)
    level = {trial: [value - effects[seed] for seed, value in of.items()] for trial, of in differences.items()}
    firsts = [values[0] for values in level.values()]
    centre = median(firsts)
    freedom = sum(len(values) - 1 for values in level.values()) - (len(effects) - 1)
    prior = 1.0
    if freedom >= FEWEST:
        within = sum((value - fmean(values)) ** 2 for values in level.values() for value in values) / freedom
        between = fmean((value - centre) ** 2 for value in firsts if value >= centre) - within
        prior = min(within / between, MOST_SHRINKAGE) if between > 0 else MOST_SHRINKAGE
    return {trial: (sum(values) + prior * centre) / (len(values) + prior) for trial, values in level.items()}
