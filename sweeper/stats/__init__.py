"""Is there a winner at all: paired comparisons of runs, and the rule that crowns one configuration or none.

Trials in, plain values out. A score is the sweep's objective, in [0, 1] (any "larger is better" number works), all
differences are candidate minus baseline on the same seed, all tests are two-sided.

The rule. A candidate wins against the best baseline when, on at least 4 fresh paired seeds,

1. the paired t test says so after Holm over all confirmed candidates (``p_holm <= alpha``), and
2. the mean difference is at least ``equivalence`` (0.002 mAP): a real difference too small to matter crowns nobody.

The design is fixed before the first of these runs: which candidates and baselines, on which seeds, ``alpha`` and
``equivalence``. The rule is applied once, when every run has ended, well or badly; before that nobody is crowned, so a
look costs nothing. (With seeds added after a look, equal configurations would win in 8 % of sweeps.) A candidate that
fails on a seed never wins: runs that diverge are bad ones, and leaving them out would flatter it. A seed on which the
baseline fails makes no pair.

The t test is exact for normal differences, and differences of equal configurations are symmetric whatever the noise
is, which makes it conservative under heavy tails. Simulated false winners (5 candidates; 4, 6, 10 pairs; normal,
heavy-tailed, skewed, two-valued, rarely collapsing noise): at most 3 %, bound 5 %. Two-sided on purpose: the interval
shown is tested. Differences without any spread have no t; there the p of the exact sign-flip test, 2^(1-n), stands in.
(As a test of its own it could crown nobody below 8 pairs with Holm over 5 candidates.) Nothing is pooled over
candidates: that would gain power at 4 pairs, but one unstable schedule would borrow the small spread of the others and
win too often. No bootstrap. The false-winner rate and the promised power are acceptance tests (``tests/test_stats.py``,
and with everything from the search's choice to the answer ``tests/test_null_sweeps.py``).

What the rule does not protect from: a schedule that is usually better and sometimes collapses can win on seeds without
a collapse; only more seeds show that.
"""

from .answer import (
    Answer,
    Baseline,
    Candidate,
    Excluded,
    Failures,
    Progress,
    Ranked,
    Standing,
    failures,
)
from .choose import MIN_PAIRS, choose, learned
from .noise import CLAIM, ELSEWHERE, KNOWN, UNKNOWN, Branches, Departure, Spread, branches, spread
from .pairs import Paired, detectable_effect, difference, explains, holm, luck_of_the_best, paired, pairs_needed

__all__ = [
    "CLAIM", "ELSEWHERE", "KNOWN", "MIN_PAIRS", "UNKNOWN", "Answer", "Baseline", "Branches", "Candidate", "Departure",
    "Excluded", "Failures", "Paired", "Progress", "Ranked", "Spread", "Standing", "branches", "choose",
    "detectable_effect", "difference", "explains", "failures", "holm", "learned", "luck_of_the_best", "paired",
    "pairs_needed", "spread",
]  # fmt: skip
