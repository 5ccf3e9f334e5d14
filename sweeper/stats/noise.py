"""How much paired differences scatter: from the sweep's own pairs, else the range over data sets that were measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from scipy import special

from sweeper.study import Trial

from .pairs import Paired, paired, pairs_needed

CLAIM = 0.004  # the source article's own difference: what a design should be able to see
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
        rs = [p.correlation for p in pairs if p.correlation is not None]
        count = f"{len(pairs)} comparison{'s' if len(pairs) > 1 else ''} of {what}"
        source = f"from this sweep's own pairs: {count} on {n} shared seeds"
        return cls(s_d, low, high, sigma, float(np.mean(rs)) if rs else None, n, source)

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
            return f"{low} to {high} pairs, depending on the noise of the data set, which is {self.source}"
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
    own, against = list(trials), list(baselines)
    for stages, where in ((("confirm",), "the confirmation"), (("baseline", "search"), "the search")):
        here = [row for row in own if row.stage in stages]
        scores = scores_by_seed(here, [*against, *(row.name for row in here)])
        known = [name for name in against if name in scores]
        rivals = [name for name in scores if name not in known]
        for couples, what in (
            (product(rivals, known), "schedules with baselines"),
            (combinations(known, 2), "baselines with each other"),
        ):
            pairs = [p for one, other in couples if (p := _pairs(scores[one], scores[other])) is not None]
            if pairs:
                return Spread.of(pairs, f"{what} in {where}")
    return ELSEWHERE


def _pairs(one: Mapping[int, float], other: Mapping[int, float]) -> Paired | None:
    seeds = sorted(one.keys() & other.keys())
    return paired([one[s] for s in seeds], [other[s] for s in seeds]) if len(seeds) >= 2 else None


def scores_by_seed(trials: Iterable[Trial], names: Iterable[str]) -> dict[str, dict[int, float]]:
    """name -> seed -> score of the usable trials of these names; a repeated (name, seed) keeps its first run."""
    scores: dict[str, dict[int, float]] = {name: {} for name in names}
    for trial in trials:
        if trial.name in scores and trial.usable and trial.score is not None:
            scores[trial.name].setdefault(trial.seed, trial.score)
    return {name: by_seed for name, by_seed in scores.items() if by_seed}
