"""Paired comparisons of runs, and the rule that names one configuration the winner, or none.

Input is trials, output is plain values. A score is the sweep's objective; the rule works for any number of which larger
is better. Every difference is candidate minus baseline on the same seed, and every test is two-sided.

The rule: a candidate wins against the best baseline when, on at least 4 fresh paired seeds,

1. the paired t test is significant after Holm over all confirmed candidates (``p_holm <= alpha``), and
2. the mean difference is at least ``equivalence`` (0.002 mAP), because a smaller one does not matter, even if it is
   real.

The design (candidates, baselines, seeds, ``alpha``, ``equivalence``) is fixed before the first of these runs. The rule
is applied once, when every run has ended, completed or failed; before that nobody wins, so that a look costs nothing.
(If seeds were added after a look, equal configurations would win in 8 % of sweeps.) A candidate that fails on a seed
never wins, because leaving its diverged runs out would flatter it. A seed on which the baseline fails makes no pair.

Why the t test: it is exact for normal differences. Differences of equal configurations are symmetric for any noise, so
that the test is conservative under heavy tails. In simulations (5 candidates; 4, 6, 10 pairs; normal, heavy-tailed,
skewed, two-valued, rarely collapsing noise) at most 3 % of sweeps have a false winner; the bound is 5 %. It is
two-sided so that it agrees with the interval that is shown. Differences without any spread have no t statistic; the p
of the exact sign-flip test, 2^(1-n), takes its place. (Used everywhere, the sign-flip test could name no winner below 8
pairs with Holm over 5 candidates.) The spread is not pooled over candidates: that would gain power at 4 pairs, but an
unstable schedule would borrow the small spread of the others and win too often. ``tests/test_stats.py`` tests the rate
of false winners and the promised power, and ``tests/test_null_sweeps.py`` the whole way from the search to the answer.

A limit of the rule: a schedule that is usually better and sometimes collapses can win on seeds without a collapse; only
more seeds show that.
"""

from .answer import Answer, Excluded, Failures, Progress, Ranked, Standing, failures
from .choose import choose, learned
from .noise import CLAIM, ELSEWHERE, KNOWN, UNKNOWN, Departure, Spread, branches, spread
from .pairs import MIN_PAIRS, Paired, detectable_effect, difference, explains, holm, paired, pairs_needed

__all__ = [
    "CLAIM", "ELSEWHERE", "KNOWN", "MIN_PAIRS", "UNKNOWN", "Answer", "Departure", "Excluded", "Failures", "Paired",
    "Progress", "Ranked", "Spread", "Standing", "branches", "choose", "detectable_effect", "difference", "explains",
    "failures", "holm", "learned", "paired", "pairs_needed", "spread",
]  # fmt: skip
