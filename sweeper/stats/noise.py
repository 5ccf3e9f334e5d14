"""How much paired differences scatter: from the sweep's own pairs, else the range over data sets that were measured."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
from scipy import special

from sweeper.schedules import Trace
from sweeper.study import Trial

from .pairs import Paired, paired, pairs_needed

CLAIM = 0.004  # the source article's own difference: what a design should be able to see
FITTED = 3  # branches with pairs from which the dependence on the departure is fitted
COVER = 0.95  # of the interval around a standard deviation


@dataclass(frozen=True)
class Known:
    """What is known of the noise elsewhere: standard deviations ``low`` to ``high`` of the difference of two runs."""

    data: str
    what: str
    low: float
    high: float
    source: str


#: mAP50-95 in [0, 1]. Of single runs with standard deviation sigma that share nothing the difference has sigma * 2^0.5.
KNOWN = (
    Known(
        "COCO", "independent runs, 0.2 to 0.3 points apart", 0.0028, 0.0042,
        "https://github.com/open-mmlab/mmdetection/issues/3624 and 3496",
    ),
    Known(
        "a user's own data, YOLOv5s", "two runs of 10 epochs, 0.401 and 0.383", 0.018, 0.018,
        "https://github.com/ultralytics/yolov5/issues/6222",
    ),
    Known(
        "BCCD, YOLO11n, 40 epochs", "single runs of 6 seeds, sigma 0.0044 to 0.0215", 0.0062, 0.0304,
        "measured with sweeper",
    ),
    Known("BCCD, YOLO11n, 40 epochs", "pairs on fresh seeds", 0.0046, 0.0194, "measured with sweeper"),
    Known("BCCD, YOLO11n, 40 epochs", "branches of one trunk", 0.0021, 0.0139, "measured with sweeper"),
    Known("BCCD, YOLOv5n, 40 epochs, COCO's AP", "pairs on 4 fresh seeds", 0.0498, 0.0498, "measured with sweeper"),
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """The standard deviation ``s_d`` of paired differences and ``sigma`` of single runs (None: the sweep has no pairs).

    ``low`` to ``high``: the 95 % interval of ``s_d`` for normal noise, or the range over ``KNOWN`` where it is None.
    ``correlation``: of the two sides of a pair (None: not known); ``n``: seeds that were paired; ``source``: in words.
    """

    s_d: float | None
    low: float
    high: float
    sigma: float | None
    correlation: float | None
    n: int
    source: str

    @classmethod
    def of(cls, pairs: Sequence[Paired], what: str) -> "Spread":
        """Pooled over comparisons (one at least). ``what``: which they are.

        The comparisons of a sweep share seeds and a baseline, so the interval takes no more degrees of freedom than one
        of them has.
        """
        freedom = [p.n - 1 for p in pairs]
        n = max(p.n for p in pairs)
        s_d, sigma = (
            math.sqrt(float(np.average([getattr(p, key) ** 2 for p in pairs], weights=freedom)))
            for key in ("s_d", "sigma")
        )
        low, high = (
            s_d * math.sqrt((n - 1) / (2 * float(special.gammaincinv((n - 1) / 2, q))))
            for q in ((1 + COVER) / 2, (1 - COVER) / 2)
        )
        correlations = [p.correlation for p in pairs if p.correlation is not None]
        count = f"{len(pairs)} comparison{'s' if len(pairs) > 1 else ''} of {what}"
        source = f"from this sweep's own pairs: {count} on {n} shared seeds"
        return cls(s_d, low, high, sigma, float(np.mean(correlations)) if correlations else None, n, source)

    @property
    def needed(self) -> int | None:
        """Pairs that see ``CLAIM`` in one comparison with 80 % power; None without pairs of the sweep's own."""
        return None if self.s_d is None else pairs_needed(CLAIM, self.s_d, most=10**9)

    @property
    def needed_range(self) -> tuple[int, int]:
        """The same at the ends of the range."""
        return pairs_needed(CLAIM, self.low, most=10**9), pairs_needed(CLAIM, self.high, most=10**9)

    @property
    def needs(self) -> str:
        """How many pairs ``CLAIM`` needs, and how that is known, to follow it in a sentence."""
        low, high = self.needed_range
        if self.s_d is None:
            return f"{low} pairs on a quiet data set and {high} on a noisy one; which this is, is {self.source}"
        return (
            f"about {self.needed} pairs ({COVER:.0%} interval {low} to {high}; the differences' standard deviation is "
            f"{self.s_d:.4f}, {self.low:.4f} to {self.high:.4f}, {self.source})"
        )


ELSEWHERE = Spread(
    s_d=None,
    low=min(known.low for known in KNOWN),
    high=max(known.high for known in KNOWN),
    sigma=None,
    correlation=None,
    n=0,
    source="not known before pairs on two seeds are finished",
)


def spread(trials: Iterable[Trial], *, baselines: Iterable[str]) -> Spread:
    """The noise as these runs show it: configurations with baselines, else baselines with each other, on shared seeds.

    Two seeds make pairs, those of the confirmation before those of the search. ``ELSEWHERE`` if there are none.
    """
    every, against = list(trials), list(baselines)
    for stages, where in ((("confirm",), "the confirmation"), (("baseline", "search"), "the search")):
        here = [trial for trial in every if trial.stage in stages]
        scores = scores_by_seed(here, [*against, *(trial.name for trial in here)])
        known = [name for name in against if name in scores]
        rivals = [name for name in scores if name not in known]
        for couples, what in (
            (product(rivals, known), "schedules with baselines"),
            (combinations(known, 2), "baselines with each other"),
        ):
            pairs = [p for a, b in couples if (p := paired_by_seed(scores[a], scores[b])) is not None]
            if pairs:
                return Spread.of(pairs, f"{what} in {where}")
    return ELSEWHERE


@dataclass(frozen=True)
class Departure:
    """How a branch departs from its trunk: ``distance`` is the share of the trunk's summed learning rate that is
    another one; it begins in ``epoch`` (from 0), with the share ``left`` of the run to come."""

    distance: float
    epoch: int
    left: float

    @classmethod
    def of(cls, trace: Trace, trunk: Trace) -> "Departure | None":
        """That of a trace; None where its learning rate is the trunk's."""
        differs = np.flatnonzero(trace.lr != trunk.lr)
        if not len(differs):
            return None
        distance = float(np.abs(trace.lr.astype(np.float64) - trunk.lr).sum() / trunk.lr.sum(dtype=np.float64))
        return cls(distance, int(differs[0]) // trace.steps_per_epoch, 1 - int(differs[0]) / trace.steps)


@dataclass(frozen=True)
class Branches:
    """The noise of runs and of branches as a sweep's own pairs show it; for those who look, nothing is decided by it.

    ``run``: the standard deviation of a run over seeds, pooled over ``schedules``. ``s_d``: that of the difference of a
    branch to the ``trunk``, pooled over ``branches`` with ``pairs`` in all (None: none has two seeds yet). ``fitted``:
    the branches that depart least and most, each with the ``s_d`` that is fitted for it; () with too few.
    """

    trunk: str
    run: float | None
    schedules: int
    s_d: float | None = None
    branches: int = 0
    pairs: int = 0
    fitted: tuple[tuple[Departure, float], ...] = ()

    @property
    def sentence(self) -> str:
        """What is known, in a line."""
        if self.s_d is None:
            return UNKNOWN
        text = (
            f"noise: the standard deviation of a run over seeds is {self.run:.4f} ({self.schedules} schedules, every "
            f"stage), that of a branch's difference to {self.trunk} {self.s_d:.4f} ({self.branches} branches, "
            f"{self.pairs} pairs)"
        )
        if not self.fitted:
            return text
        (mild, least), (strong, most) = self.fitted
        return (
            f"{text}: about {least:.4f} for the mildest branch ({mild.distance:.0%} of the learning rate differs, from "
            f"epoch {mild.epoch} on), about {most:.4f} for the strongest ({strong.distance:.0%}, from epoch "
            f"{strong.epoch} on)"
        )


_OF_RUNS, _OF_BRANCHES = KNOWN[2], KNOWN[4]
UNKNOWN = (
    "noise: not known before pairs on two seeds are finished; in an earlier measurement "
    f"({_OF_BRANCHES.data}): standard deviation of a run over seeds {_OF_RUNS.low / math.sqrt(2):.4f} to "
    f"{_OF_RUNS.high / math.sqrt(2):.4f}, of a branch's difference to its trunk {_OF_BRANCHES.low:.4f} to "
    f"{_OF_BRANCHES.high:.4f}"
)


def branches(trials: Iterable[Trial], trunk: str, departure: Callable[[Trial], Departure | None]) -> Branches:
    """The noise of these runs; ``departure`` of a trial's schedule from the ``trunk``, None for one that has none.

    Fitted is log s_d = a + b log(distance) + c log(left), each branch by the degrees of freedom of its own s_d. Few
    pairs leave b and c close to 0 (a normal prior with standard deviation 1).
    """
    runs = [trial for trial in trials if trial.stage != "control"]
    scores = scores_by_seed(runs, {trial.name for trial in runs})
    several = [list(by_seed.values()) for by_seed in scores.values() if len(by_seed) > 1]
    weights = [len(values) - 1 for values in several]
    run = math.sqrt(np.average([np.var(values, ddof=1) for values in several], weights=weights)) if several else None
    known = Branches(trunk, run, len(several))
    departing: list[tuple[Departure, Paired]] = []
    for trial in {trial.name: trial for trial in reversed(runs) if trial.stage == "search"}.values():
        pairs = paired_by_seed(scores.get(trial.name, {}), scores.get(trunk, {}))
        if pairs is not None and pairs.s_d > 0 and (at := departure(trial)) is not None:
            departing.append((at, pairs))
    if not departing:
        return known
    departing.sort(key=lambda branch: branch[0].distance)
    f, s_d = (np.array([getattr(p, key) for _, p in departing], dtype=np.float64) for key in ("n", "s_d"))
    f -= 1
    pooled = math.sqrt(np.average(s_d**2, weights=f))
    known = replace(known, s_d=pooled, branches=len(f), pairs=int(f.sum()) + len(f))
    if len(f) < FITTED:
        return known
    x = np.log([[at.distance, at.left] for at, _ in departing])
    x = np.column_stack([np.ones(len(f)), x - x.mean(axis=0)])
    # of the logarithm of a variance with f degrees of freedom: its bias, and the root of 1 / its own variance
    y, weight = 2 * np.log(s_d) - special.digamma(f / 2) + np.log(f / 2), special.polygamma(1, f / 2) ** -0.5
    prior = np.diag([0.0, 0.5, 0.5])  # of the exponents of a variance, which are twice those of s_d
    solved, *_ = np.linalg.lstsq(
        np.vstack([x * weight[:, None], prior]), np.concatenate([y * weight, np.zeros(3)]), rcond=None
    )
    fitted = np.exp(x @ solved / 2)
    return replace(known, fitted=tuple((departing[i][0], float(fitted[i])) for i in (0, -1)))


def paired_by_seed(ours: Mapping[int, float], theirs: Mapping[int, float], alpha: float = 0.05) -> Paired | None:
    """The comparison of two schedules by their scores on the seeds that both have; None with fewer than two."""
    seeds = sorted(ours.keys() & theirs.keys())
    return paired([ours[s] for s in seeds], [theirs[s] for s in seeds], alpha=alpha) if len(seeds) >= 2 else None


def scores_by_seed(trials: Iterable[Trial], names: Iterable[str]) -> dict[str, dict[int, float]]:
    """name -> seed -> score of the usable trials of these names; a repeated (name, seed) keeps its first run."""
    scores: dict[str, dict[int, float]] = {name: {} for name in names}
    for trial in trials:
        if trial.name in scores and trial.usable and trial.score is not None:
            scores[trial.name].setdefault(trial.seed, trial.score)
    return {name: by_seed for name, by_seed in scores.items() if by_seed}
