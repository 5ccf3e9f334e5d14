"""How often the product errs, counted over simulated sweeps; `benchmarks/winners.py` counts larger numbers."""

import pytest
from null_sweeps import Kind, false_gains, winners

from sweeper import evidence, stats

NULL = {
    "one baseline": Kind(baselines=1),
    "loud": Kind(baselines=1, sd=0.02),
    "seeds pair well": Kind(baselines=1, sd=0.02, shared=0.9),
    "three baselines": Kind(baselines=3, sd=0.02, shared=0.5),
    "ties": Kind(baselines=1, digits=3),
    "four seeds": Kind(baselines=1, sd=0.02, seeds=4),
    "one candidate": Kind(baselines=1, sd=0.02, best=1),
    "low scores fail": Kind(baselines=1, sd=0.02, failing=0.1),
    "low scores of candidates fail": Kind(baselines=1, sd=0.02, failing=0.1, baselines_fail=False),
    "two basins": Kind(baselines=1, sd=0.02, noise="two basins"),
}


@pytest.mark.parametrize("name", NULL)
def test_equal_schedules_are_crowned_in_at_most_one_sweep_of_twenty(name: str) -> None:
    """The best five of a search of twelve are confirmed on six seeds, as by default."""
    named = winners(NULL[name], sweeps=300, seed=0, looks=False)
    assert sum(winner is not None for winner in named) / len(named) <= 0.05


def test_nobody_is_crowned_more_often_by_a_look_after_every_seed() -> None:
    kind = Kind(baselines=1, sd=0.02, seeds=8)
    looked, waited = (winners(kind, sweeps=200, seed=3, looks=looks) for looks in (True, False))
    assert looked == waited
    assert 0 < sum(winner is not None for winner in looked) <= 10


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_a_better_schedule_is_crowned_as_often_as_the_design_promises(shared: float) -> None:
    s_d = 0.02 * (2 * (1 - shared)) ** 0.5
    effect = stats.detectable_effect(s_d, 6, equivalence=0.002)
    kind = Kind(tried=1, best=1, baselines=1, sd=0.02, shared=shared, effects={"trial 1": effect})
    named = winners(kind, sweeps=400, seed=1, looks=False)
    assert 0.74 <= named.count("trial 1") / len(named) <= 0.86


def test_the_restart_that_is_examined_gains_by_luck_in_one_sweep_of_forty() -> None:
    """Five candidates on six seeds: the one-sided error of a 95 % interval, within the error of 1,500 sweeps."""
    rate = false_gains(Kind(baselines=1, sd=0.02), evidence.subject, sweeps=1500, seed=0)
    assert rate <= 0.025 + 2 * (0.025 * 0.975 / 1500) ** 0.5
    assert rate >= 0.01, "the interval is not wider than it has to be"
