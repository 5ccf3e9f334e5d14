"""Paired differences: intervals, tests, and the effect that a number of pairs can detect."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from ..errors import ConfigError

MIN_PAIRS = 4  # With fewer pairs there is no winner, because so few differences say too little about their spread.


@dataclass(frozen=True)
class Paired:
    """A candidate compared with a baseline on ``n`` common seeds; ``mean`` is the mean of candidate minus baseline.

    ``s_d`` is the standard deviation of the differences; ``low`` to ``high`` the paired t interval and ``p_t`` the
    two-sided p of the paired t test; ``sigma`` the standard deviation over seeds within a configuration (root mean
    square of both sides); ``correlation`` Pearson's r between the sides (None where one does not vary). Pairing gained
    precision where ``s_d`` is below ``sigma * sqrt(2)``.
    """

    n: int
    mean: float
    s_d: float
    low: float
    high: float
    p_t: float
    sigma: float
    correlation: float | None

    @property
    def difference(self) -> str:
        """The mean with its interval, in words."""
        return difference(self.mean, self.low, self.high)


def paired(candidate: ArrayLike, baseline: ArrayLike, *, alpha: float = 0.05) -> Paired:
    """Compare two vectors of scores, one entry per seed in the same order, shape (n,) with n >= 2.

    The interval covers ``1 - alpha``. Differences without any spread have no t statistic; the p of the exact sign-flip
    test, 2^(1-n), takes its place. ConfigError for different lengths, fewer than 2 pairs or a value that is not finite.

    >>> result = paired([0.31, 0.33, 0.32, 0.34], [0.30, 0.31, 0.31, 0.32])
    >>> result.n, round(result.mean, 3), round(result.low, 4), round(result.high, 4)
    (4, 0.015, 0.0058, 0.0242)
    """
    a, b = np.asarray(candidate, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ConfigError(f"pairs: shapes {a.shape} and {b.shape}; expected two vectors of one length, at least 2")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ConfigError("pairs: a score is not finite; expected numbers, leave failed runs out")
    differences = a - b
    n, mean, s_d = len(a), float(differences.mean()), float(differences.std(ddof=1))
    scale = float(np.abs(np.concatenate([a, b])).max())
    if s_d > 1e-12 * scale:
        p_t = float(2 * special.stdtr(n - 1, -abs(mean) / s_d * math.sqrt(n)))
    else:
        s_d, p_t = 0.0, 2.0 ** (1 - n) if mean else 1.0
    half = float(special.stdtrit(n - 1, 1 - alpha / 2)) * s_d / math.sqrt(n)
    spread_a, spread_b = float(a.std(ddof=1)), float(b.std(ddof=1))
    r = float(np.corrcoef(a, b)[0, 1]) if min(spread_a, spread_b) > 1e-12 * scale else None
    sigma = math.sqrt((spread_a**2 + spread_b**2) / 2)
    return Paired(n, mean, s_d, mean - half, mean + half, p_t, sigma, r)


def difference(mean: float, low: float | None = None, high: float | None = None) -> str:
    """A mean difference with its interval, if there is one, in the form in which all outputs write it.

    >>> difference(0.0065, 0.0038, 0.0092), difference(-0.001)
    ('+0.0065 [+0.0038, +0.0092]', '-0.0010')
    """
    bounded = low is not None and high is not None and math.isfinite(low)
    return f"{mean:+z.4f} [{low:+z.4f}, {high:+z.4f}]" if bounded else f"{mean:+z.4f}"


def explains(mean: float, low: float | None, high: float | None, practical: float) -> bool | None:
    """Whether a control run explains the gain of a run; None: unclear.

    ``mean``, ``low`` and ``high`` are the difference run minus control and its interval (None: no interval). The
    control explains the gain where the run is worse than it by ``practical`` or more and the interval is below 0; it
    does not where the interval excludes a loss of that size.

    >>> explains(-0.01, -0.02, -0.001, 0.002), explains(0.0, -0.001, 0.001, 0.002), explains(0.01, None, None, 0.002)
    (True, False, None)
    """
    if low is None or high is None:
        return None
    if mean <= -practical and high < 0:
        return True
    return False if low > -practical else None


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order of ``p``; compare each with the alpha of the whole family.

    >>> [round(q, 3) for q in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min((len(p) - rank) * p[i], 1.0))
        adjusted[i] = running
    return adjusted


@lru_cache(maxsize=4096)
def _detectable(n: int, alpha: float, power: float) -> float:
    """The effect, in units of s_d, that the two-sided paired t test finds with this power, by the noncentral t."""
    df, critical = n - 1, float(special.stdtrit(n - 1, 1 - alpha / 2))
    start = (critical + float(special.stdtrit(df, power))) / math.sqrt(n)  # The usual formula is close to the root.
    miss = lambda d: float(special.nctdtr(df, d * math.sqrt(n), critical)) - (1 - power)  # noqa: E731
    try:
        return float(optimize.brentq(miss, 0.5 * start, 2 * start))
    except ValueError:  # With 2 or 3 pairs and a tiny alpha the noncentral t overflows; no useful effect is detectable.
        return start


def detectable_effect(
    s_d: float, n: int, *, alpha: float = 0.05, power: float = 0.8, equivalence: float = 0.0
) -> float:
    """Minimum detectable effect: the true mean difference that ``n`` pairs would find with this power.

    To find it means that it is significant in the two-sided paired t test and estimated at ``equivalence`` or more. inf
    below 2 pairs. It is computed with the noncentral t distribution, because the usual formula is 8 % too optimistic
    for 4 pairs at alpha 0.01, the strictest level of Holm over 5 candidates.

    >>> round(detectable_effect(0.003, 7), 4)
    0.0038
    """
    if n < 2:
        return math.inf
    margin = float(special.stdtrit(n - 1, power)) / math.sqrt(n)
    return max(_detectable(n, alpha, power) * s_d, equivalence + margin * s_d if equivalence else 0.0)


def pairs_needed(
    effect: float,
    s_d: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    equivalence: float = 0.0,
    most: int = 100_000,
) -> int:
    """The fewest pairs that find a true difference of ``effect`` with this power; ConfigError beyond ``most``.

    To find it has the meaning of :func:`detectable_effect`.

    >>> [pairs_needed(0.004, s_d) for s_d in (0.002, 0.003, 0.004, 0.005)]
    [5, 7, 10, 15]
    """

    def enough(n: int) -> bool:
        return detectable_effect(s_d, n, alpha=alpha, power=power, equivalence=equivalence) <= effect

    if not effect > 0 or not enough(most):
        raise ConfigError(f"pairs for an effect of {effect} with s_d {s_d}: more than {most}; expected a larger effect")
    low, high = 1, most  # Bisection finds n, because the detectable effect falls with n.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def luck_of_the_best(sigma: float, tried: int) -> float:
    """How far the best of ``tried`` equal configurations lies above their mean by luck alone (normal noise, Blom).

    >>> round(luck_of_the_best(0.003, 50), 4)
    0.0067
    """
    return sigma * float(special.ndtri((tried - 0.375) / (tried + 0.25))) if tried > 1 else 0.0
