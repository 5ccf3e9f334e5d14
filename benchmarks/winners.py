"""How often `sweeper pick` names a winner among equal schedules, and how often it finds one that is there.

    python benchmarks/winners.py                 # 4,000 sweeps of each kind, a quarter of an hour of one core
    python benchmarks/winners.py --sweeps 200

Scores are drawn, everything else is the product's (tests/null_sweeps.py): the best of the search are confirmed on fresh
seeds with the design that is fixed when the confirmation begins, and the answer is that of its end. Looks before it
never name a winner, whatever the scores are, so they are not counted here.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from null_sweeps import NOISES, Kind, winners

from sweeper import stats

LOUD = Kind(baselines=1, sd=0.02)
NULL = {
    "best 5 of 12, 6 seeds, 1 baseline": LOUD,
    "best 1 of 12": replace(LOUD, best=1),
    "best 5 of 50": replace(LOUD, tried=50),
    "3 baselines": replace(LOUD, baselines=3),
    "4 seeds": replace(LOUD, seeds=4),
    "12 seeds": replace(LOUD, seeds=12),
    "half of the variance is the seed's": replace(LOUD, shared=0.5),
    "nine tenths are": replace(LOUD, shared=0.9),
    "a quiet data set (0.003)": replace(LOUD, sd=0.003),
    "ties: three decimals": replace(LOUD, sd=0.003, digits=3),
    "the lowest tenth of all runs fails": replace(LOUD, failing=0.1),
    "the lowest tenth of the candidates' runs fails": replace(LOUD, failing=0.1, baselines_fail=False),
    **{f"noise: {noise}": replace(LOUD, noise=noise) for noise in NOISES if noise != "normal"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=4000)
    sweeps = parser.parse_args().sweeps
    print("| equal schedules | false winners |\n|---|---|")
    for name, kind in NULL.items():
        named = winners(kind, sweeps=sweeps, seed=0, looks=False)
        print(f"| {name} | {share(sum(winner is not None for winner in named), sweeps)} |", flush=True)
    print("\n| a schedule that is better by what the design can see | crowned |\n|---|---|")
    for seeds in (4, 6, 12):
        for best in (1, 5):
            s_d = LOUD.sd * 2**0.5
            effect = stats.detectable_effect(s_d, seeds, alpha=0.05 / best, equivalence=0.002)
            # in a search of `best` trials all are confirmed, the better one among them
            kind = replace(LOUD, tried=best, best=best, seeds=seeds, effects={"trial 1": effect})
            named = winners(kind, sweeps=sweeps, seed=1, looks=False)
            print(f"| {effect:+.4f}: {best} confirmed on {seeds} seeds | {share(named.count('trial 1'), sweeps)} |")


def share(count: int, of: int) -> str:
    """A share in per cent with two standard errors."""
    p = count / of
    return f"{p:.1%} ± {2 * (p * (1 - p) / of) ** 0.5:.1%}"


if __name__ == "__main__":
    main()
