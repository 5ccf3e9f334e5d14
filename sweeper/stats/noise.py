"""How much paired differences scatter: estimated from the sweep's own pairs, or, without any, the range over the data
sets for which it is known."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
from scipy import special

from sweeper.schedules import Trace
from sweeper.study import Trial

from .pairs import Paired, paired, pairs_needed

CLAIM = 0.004  # The gain in mAP that the CAWB article reports; a design should be able to detect it.
FITTED = 3  # With fewer branches the noise is not fitted as a function of how far they depart from the trunk.
COVER = 0.95  # The coverage of the interval around a standard deviation.


@dataclass(frozen=True)
class Known:
    """The noise on another data set: the standard deviation of the difference of two runs was ``low`` to ``high``."""

    data: str
    what: str
    low: float
    high: float
    source: str


#: In mAP50-95 in [0, 1]. Where only single runs are known, with standard deviation sigma, the difference of two
#: independent runs has sigma * 2^0.5.
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
    """The noise of a sweep: the standard deviation ``s_d`` of paired differences and ``sigma`` of single runs over
    seeds (both None where the sweep has no pairs).

    ``low`` to ``high``: the 95 % interval of ``s_d`` for normal noise, or the range over ``KNOWN`` where ``s_d`` is
    None. ``correlation``: Pearson's r between the two sides of a pair (None: not known). ``n``: how many seeds were
    paired. ``source``: in words, what it was estimated from.
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
        """The noise pooled over comparisons, at least one. ``what``: a noun phrase that says which comparisons.

        The interval uses only as many degrees of freedom as one comparison has, because the comparisons of a sweep
        share seeds and a baseline.
        """
        degrees = [p.n - 1 for p in pairs]
        n = max(p.n for p in pairs)
        s_d, sigma = (
            math.sqrt(float(np.average([getattr(p, key) ** 2 for p in pairs], weights=degrees)))
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
        """The number of pairs that detect ``CLAIM`` in one comparison with 80 % power; None where ``s_d`` is."""
        return None if self.s_d is None else pairs_needed(CLAIM, self.s_d, most=10**9)

    @property
    def needed_range(self) -> tuple[int, int]:
        """The number of pairs that detect ``CLAIM`` in one comparison with 80 % power at ``low`` and at ``high``."""
        return pairs_needed(CLAIM, self.low, most=10**9), pairs_needed(CLAIM, self.high, most=10**9)

    @property
    def needs(self) -> str:
        """How many pairs ``CLAIM`` needs and from what that is known, as the object of a sentence."""
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
    """The noise of these runs on shared seeds; ``ELSEWHERE`` where no two configurations share two seeds.

    It is estimated from the first of these that has pairs: in the confirmation proposals with baselines, or baselines
    with each other; then the same in the search.
    """
    runs, names = list(trials), list(baselines)
    for stages, where in ((("confirm",), "the confirmation"), (("baseline", "search"), "the search")):
        of_stage = [trial for trial in runs if trial.stage in stages]
        scores = scores_by_seed(of_stage, [*names, *(trial.name for trial in of_stage)])
        finished = [name for name in names if name in scores]
        proposals = [name for name in scores if name not in finished]
        for comparisons, what in (
            (product(proposals, finished), "schedules with baselines"),
            (combinations(finished, 2), "baselines with each other"),
        ):
            pairs = [p for a, b in comparisons if (p := paired_by_seed(scores[a], scores[b])) is not None]
            if pairs:
                return Spread.of(pairs, f"{what} in {where}")
    return ELSEWHERE


@dataclass(frozen=True)
class Departure:
    """How far a branch departs from its trunk.

    ``distance``: the summed absolute difference of the learning rates over all steps, divided by the trunk's sum.
    ``epoch``: the first epoch (from 0) with a difference. ``left``: the share of the run's steps that is left then.
    """

    distance: float
    epoch: int
    left: float

    @classmethod
    def of(cls, trace: Trace, trunk: Trace) -> "Departure | None":
        """The departure of ``trace`` from ``trunk``; None where the learning rates are equal."""
        differs = np.flatnonzero(trace.lr != trunk.lr)
        if not len(differs):
            return None
        distance = float(np.abs(trace.lr.astype(np.float64) - trunk.lr).sum() / trunk.lr.sum(dtype=np.float64))
        return cls(distance, int(differs[0]) // trace.steps_per_epoch, 1 - int(differs[0]) / trace.steps)


@dataclass(frozen=True)
class Branches:
    """The noise of runs and of branches, estimated from a sweep's own pairs. It is shown, and decides nothing.

    ``run``: the standard deviation of a run over seeds, pooled over so many ``schedules``. ``s_d``: the standard
    deviation of the difference of a branch to the ``trunk``, pooled over so many ``branches`` with so many ``pairs`` in
    all (None: no branch has two seeds yet). ``fitted``: the branches that depart least and most, each with the ``s_d``
    that is fitted for it; () below ``FITTED`` branches.
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
        """The noise in one line."""
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
    """The noise of these runs. ``departure`` returns that of a trial's schedule from the ``trunk``, None for no
    departure.

    The model is log s_d = a + b log(distance) + c log(left), fitted by least squares, each branch weighted by the
    degrees of freedom of its own s_d. A normal prior with standard deviation 1 holds b and c close to 0 while pairs are
    few.
    """
    runs = [trial for trial in trials if trial.stage != "control"]
    scores = scores_by_seed(runs, {trial.name for trial in runs})
    repeated = [list(by_seed.values()) for by_seed in scores.values() if len(by_seed) > 1]
    weights = [len(values) - 1 for values in repeated]
    run = math.sqrt(np.average([np.var(values, ddof=1) for values in repeated], weights=weights)) if repeated else None
    noise = Branches(trunk, run, len(repeated))
    compared: list[tuple[Departure, Paired]] = []
    for trial in {trial.name: trial for trial in reversed(runs) if trial.stage == "search"}.values():
        pairs = paired_by_seed(scores.get(trial.name, {}), scores.get(trunk, {}))
        if pairs is not None and pairs.s_d > 0 and (departs := departure(trial)) is not None:
            compared.append((departs, pairs))
    if not compared:
        return noise
    compared.sort(key=lambda branch: branch[0].distance)
    s_d = np.array([pairs.s_d for _, pairs in compared])
    degrees = np.array([pairs.n - 1.0 for _, pairs in compared])
    pooled = math.sqrt(np.average(s_d**2, weights=degrees))
    noise = replace(noise, s_d=pooled, branches=len(compared), pairs=sum(pairs.n for _, pairs in compared))
    if len(compared) < FITTED:
        return noise
    x = np.log([[departs.distance, departs.left] for departs, _ in compared])
    x = np.column_stack([np.ones(len(compared)), x - x.mean(axis=0)])
    # The logarithm of a variance that was estimated with d degrees of freedom is biased by digamma(d / 2) - log(d / 2),
    # and its own variance is polygamma(1, d / 2).
    y = 2 * np.log(s_d) - special.digamma(degrees / 2) + np.log(degrees / 2)
    weight = special.polygamma(1, degrees / 2) ** -0.5
    # The prior has standard deviation 1 for exponents of s_d, so 2 for those of the variance, which are fitted.
    prior = np.diag([0.0, 0.5, 0.5])
    solved, *_ = np.linalg.lstsq(
        np.vstack([x * weight[:, None], prior]), np.concatenate([y * weight, np.zeros(3)]), rcond=None
    )
    fitted = np.exp(x @ solved / 2)
    return replace(noise, fitted=tuple((compared[i][0], float(fitted[i])) for i in (0, -1)))


def paired_by_seed(candidate: Mapping[int, float], baseline: Mapping[int, float], alpha: float = 0.05) -> Paired | None:
    """The comparison of two schedules by their scores on the seeds that both have; None with fewer than two."""
    seeds = sorted(candidate.keys() & baseline.keys())
    return paired([candidate[s] for s in seeds], [baseline[s] for s in seeds], alpha=alpha) if len(seeds) > 1 else None


def scores_by_seed(trials: Iterable[Trial], names: Iterable[str]) -> dict[str, dict[int, float]]:
    """name -> seed -> score of the usable trials with these names; of several with one name and seed the first
    counts."""
    scores: dict[str, dict[int, float]] = {name: {} for name in names}
    for trial in trials:
        if trial.name in scores and trial.usable and trial.score is not None:
            scores[trial.name].setdefault(trial.seed, trial.score)
    return {name: by_seed for name, by_seed in scores.items() if by_seed}
