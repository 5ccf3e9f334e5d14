"""The statistics crown nobody by chance, find what is there at the promised rate, and compare only the comparable."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from trials import run

from sweeper import stats
from sweeper.errors import ConfigError
from sweeper.schedules import Trace
from sweeper.study import Trial

S_D = 0.003
Noise = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def two_basins(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Runs that fall into one of two basins: differences with few values, where a t test is weakest."""
    return rng.choice([-1.0, 1.0], shape) * S_D / 2**0.5 + rng.normal(0, S_D / 20, shape)


NOISES: dict[str, Noise] = {
    "normal": lambda rng, shape: rng.normal(0, S_D / 2**0.5, shape),
    "heavy tails": lambda rng, shape: rng.standard_t(3, shape) * S_D / 6**0.5,
    "two basins": two_basins,
    "rare collapse": lambda rng, shape: rng.normal(0, S_D / 2**0.5, shape) - 0.02 * (rng.random(shape) < 0.1),
    "skewed": lambda rng, shape: -rng.exponential(S_D / 2**0.5, shape),
}


def sweep_rows(
    rng: np.random.Generator, noise: Noise, *, n: int, effect: float = 0.0, tried: int = 50, k: int = 5
) -> list[Trial]:
    """A whole sweep: search on seed 0, then the best k (better by ``effect``) and two baselines on n fresh seeds."""
    search = 0.3 + noise(rng, (tried,))
    common = rng.normal(0, 0.004, n)  # what a seed does to every configuration alike
    scores = 0.3 + common + noise(rng, (k + 2, n))
    scores[2:] += effect
    rows = [run(i, f"cawb-{i}", "search", 0, float(score)) for i, score in enumerate(search)]
    best = np.argsort(-search)[:k]
    for i, name in enumerate(["cosine", "stock", *(f"cawb-{b}" for b in best)]):
        rows += [run(100 + i * n + j, name, "confirm", 1 + j, float(scores[i, j])) for j in range(n)]
    return rows


def win_rate(noise: str, *, sweeps: int, seed: int = 0, **kwargs: float) -> float:
    rng = np.random.default_rng(seed)
    wins = 0
    for _ in range(sweeps):
        rows = sweep_rows(rng, NOISES[noise], **kwargs)  # type: ignore[arg-type]
        wins += stats.choose(rows, baselines=["cosine", "stock"]).winner is not None
    return wins / sweeps


@pytest.mark.parametrize(
    ("noise", "n"),
    [(noise, n) for noise in ("normal", "two basins") for n in (4, 6, 10)]
    + [(noise, 6) for noise in ("heavy tails", "rare collapse", "skewed")],
)
def test_equal_configurations_crown_a_winner_in_at_most_one_sweep_of_twenty(noise: str, n: int) -> None:
    """The acceptance test: 1,000 whole sweeps of 50 equal configurations, best 5 confirmed (smaller for odd noise)."""
    size = {"sweeps": 1000, "tried": 50} if noise == "normal" else {"sweeps": 400, "tried": 10}
    assert win_rate(noise, n=n, **size) <= 0.05


@pytest.mark.parametrize("n", [4, 6, 10])
def test_a_real_effect_is_found_at_the_promised_power(n: int) -> None:
    """One candidate, one baseline, the effect that ``detectable_effect`` promises to find in 80 % of sweeps."""
    rng, sweeps = np.random.default_rng(n), 1000
    effect = stats.detectable_effect(S_D, n, equivalence=0.002)
    wins = 0
    for _ in range(sweeps):
        baseline, candidate = NOISES["normal"](rng, (2, n)) + 0.3
        rows = [run(j, "cosine", "confirm", j, float(baseline[j])) for j in range(n)]
        rows += [run(n + j, "cawb", "confirm", j, float(candidate[j] + effect)) for j in range(n)]
        wins += stats.choose(rows, baselines=["cosine"]).winner is not None
    assert 0.76 <= wins / sweeps <= 0.85


def test_power_is_promised_at_the_level_that_holm_begins_with() -> None:
    """Of five candidates one is better by the design's own detectable effect: it is crowned in about 80 % of sweeps."""
    rng, n, sweeps = np.random.default_rng(1), 6, 800
    effect = stats.detectable_effect(S_D, n, alpha=0.05 / 5, equivalence=0.002)
    wins = 0
    for _ in range(sweeps):
        scores = 0.3 + NOISES["normal"](rng, (6, n))
        scores[1] += effect
        rows = [
            run(i * n + j, "cosine" if i == 0 else f"cawb-{i}", "confirm", j, float(scores[i, j]))
            for i, j in itertools.product(range(6), range(n))
        ]
        winner = stats.choose(rows, baselines=["cosine"]).winner
        wins += winner is not None and winner.name == "cawb-1"
    assert 0.75 <= wins / sweeps <= 0.86


def test_pairs_needed_for_the_articles_claim() -> None:
    assert [stats.pairs_needed(0.004, s) for s in (0.002, 0.003, 0.004, 0.005)] == [5, 7, 10, 15]


@given(n=st.integers(4, 60), alpha=st.sampled_from([0.05, 0.01]))
def test_detectable_effect_is_the_textbook_formula_made_exact(n: int, alpha: float) -> None:
    t = scipy_stats.t(n - 1)
    formula = (t.ppf(1 - alpha / 2) + t.ppf(0.8)) / n**0.5
    exact = stats.detectable_effect(1.0, n, alpha=alpha)
    assert formula * 0.99 <= exact <= formula * 1.1
    power = scipy_stats.nct.sf(t.ppf(1 - alpha / 2), n - 1, exact * n**0.5)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_an_effect_beyond_any_number_of_pairs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected a larger effect"):
        stats.pairs_needed(1e-9, 1.0)
    with pytest.raises(ConfigError):
        stats.pairs_needed(0.0, 0.003)


@given(st.lists(st.floats(-0.01, 0.01), min_size=3, max_size=12).filter(lambda v: np.std(v) > 1e-5))
def test_the_paired_interval_is_scipys(differences: list[float]) -> None:
    baseline = np.linspace(0.28, 0.31, len(differences))
    ours = stats.paired(baseline + differences, baseline)
    theirs = scipy_stats.ttest_rel(baseline + differences, baseline)
    low, high = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high, ours.p_t) == pytest.approx((low, high, theirs.pvalue), rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_the_raw_p_and_bonferroni_and_keeps_the_order(p: list[float]) -> None:
    q = stats.holm(p)
    for raw, adjusted in zip(p, q, strict=True):
        assert raw <= adjusted <= 1
        assert adjusted <= len(p) * max(r for r in p if r <= raw) or adjusted == 1
    assert min(q) == pytest.approx(min(min(p) * len(p), 1))
    for i, j in itertools.combinations(range(len(p)), 2):
        if p[i] < p[j]:
            assert q[i] <= q[j]


def test_bad_pairs_are_refused() -> None:
    for bad in (([0.3], [0.3]), ([0.3, 0.4], [0.3]), ([0.3, float("nan")], [0.3, 0.3])):
        with pytest.raises(ConfigError):
            stats.paired(*bad)


def test_differences_without_any_spread_are_no_proof() -> None:
    """Four equal differences have an infinite t; the exact p, 1/8, stands in."""
    result = stats.paired([0.35] * 4, [0.25] * 4)
    assert (result.p_t, result.correlation) == (0.125, None)
    assert stats.paired([0.3] * 4, [0.3] * 4).p_t == 1.0


# The pick.


def choose(rows: Sequence[Mapping[str, Any]], **more: Any) -> stats.Answer:
    return stats.choose([run(**row) for row in rows], **more)


def spread(rows: Sequence[Mapping[str, Any]], **more: Any) -> stats.Spread:
    return stats.spread([run(**row) for row in rows], **more)


def confirmed(effect: float = 0.01, n: int = 6, **changes: object) -> list[dict[str, object]]:
    """A search of two configurations and a baseline, and the better one confirmed on n fresh seeds."""
    rng = np.random.default_rng(3)
    rows: list[dict[str, object]] = [
        {"trial": 0, "name": "cosine", "stage": "baseline", "seed": 0, "score": 0.3, "run_id": "b0"},
        {
            "trial": 1,
            "name": "cawb-1",
            "stage": "search",
            "seed": 0,
            "score": 0.31,
            "params": {"lr": 0.1},
            "run_id": "r1",
        },
        {"trial": 2, "name": "cawb-2", "stage": "search", "seed": 0, "score": 0.305, "params": {"lr": 0.2}},
    ]
    for seed in range(1, n + 1):
        base = 0.3 + 0.004 * rng.standard_normal()
        rows.append({"trial": 10 + seed, "name": "cosine", "stage": "confirm", "seed": seed, "score": base})
        score = base + effect + 0.002 * rng.standard_normal()
        rows.append({"trial": 30 + seed, "name": "cawb-1", "stage": "confirm", "seed": seed, "score": score} | changes)
    return rows


def test_a_clear_winner_is_named_with_everything_a_reader_needs() -> None:
    answer = choose(confirmed(), baselines=["cosine"])
    assert answer.winner is not None
    assert (answer.winner.name, answer.winner.trial, answer.winner.run_id) == ("cawb-1", 1, "r1")
    assert (answer.tried, answer.pairs) == (2, 6)
    assert answer.winner.pairs is not None
    assert answer.winner.pairs.low > 0
    assert answer.winner.pairs.correlation is not None
    data = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert {"trial", "params", "score", "run_id"} <= data["ranking"][0].keys()
    assert data["winner"]["params"] == {"lr": 0.1}
    assert data["baseline"]["name"] == "cosine"
    assert data["ranking"][0]["score"] == pytest.approx(data["baseline"]["score"] + data["winner"]["pairs"]["mean"])
    for part in ("winner: cawb-1", "over cosine", "95% interval", "6 paired seeds", "2 schedules tried"):
        assert part in answer.sentence


def test_without_confirmation_there_is_never_a_winner() -> None:
    rows = [row for row in confirmed(0.5) if row["stage"] != "confirm"]
    rows[1] = rows[1] | {"score": 0.99}
    answer = choose(rows, baselines=["cosine"])
    assert answer.winner is None
    assert [entry.trial for entry in answer.ranking] == [1, 2]
    assert "no winner yet: one run each" in answer.sentence
    assert "by luck alone" in answer.sentence
    assert (answer.noise.needed, answer.noise.s_d, answer.noise.sigma) == (None, None, None)
    low, high = (stats.pairs_needed(0.004, s_d) for s_d in (answer.noise.low, answer.noise.high))
    assert answer.noise.needed_range == (low, high)
    assert f"+0.004 would need {low} pairs on a quiet data set and {high} on a noisy one" in answer.sentence
    assert high > 100 * low, "without pairs of its own a sweep knows that little"
    json.dumps(answer.to_dict(), allow_nan=False)


def test_no_difference_says_what_the_design_would_have_seen() -> None:
    answer = choose(confirmed(0.0), baselines=["cosine"])
    assert answer.winner is None
    assert answer.detectable is not None
    assert f"would have seen {answer.detectable:+.4f} over cosine with 80 % power" in answer.sentence


def test_the_winner_s_sentence_says_what_else_may_explain_it() -> None:
    rows = confirmed(0.02)
    for row in [row for row in rows if row["name"] == "cosine" and row["stage"] == "confirm"]:
        at, base = row["seed"], float(str(row["score"]))
        rows.append(row | {"trial": 50 + int(str(at)), "name": "stock", "score": base - 0.001})
        rows.append(row | {"trial": 70 + int(str(at)), "name": "wild", "score": base - 0.09 + 0.2 * (at == 1)})
    peak = {"n": 6, "mean": 0.004, "low": -0.001, "high": 0.009}
    examined: list[dict[str, Any]] = []

    def sentence() -> str:
        facts = {"restarts": 1} | ({"verdicts": examined} if examined else {})
        answer = choose(rows, baselines=["cosine", "stock", "wild"], shown=lambda _: facts)
        assert answer.winner is not None
        assert answer.winner.over.keys() == {"cosine", "stock", "wild"}
        assert answer.winner.over["cosine"] == answer.winner.pairs
        return answer.sentence

    assert "; stock does not explain it (+0.02" in sentence()
    assert "; wild may be as good, and then explains it (+0.0" in sentence()
    assert sentence().endswith(
        "; whether a larger learning rate alone explains it was not examined (sweeper confirm --escape --trial 1)"
    )
    for changes, words in (
        ({}, "a larger learning rate alone does not explain it (+0.0040 [-0.0010, +0.0090] over the matched peak of"),
        ({"mean": -0.004, "high": -0.001}, "a larger learning rate alone explains it (-0.0040 [-0.0010, -0.0010]"),
        ({"low": -0.003}, "whether a larger learning rate alone explains it is unclear (+0.0040 [-0.0030, +0.0090]"),
        ({"low": None, "high": None}, "whether a larger learning rate alone explains it is unclear (+0.0040 over"),
    ):
        examined[:] = [{"epoch": 20, "over_peak": {**peak, **changes}, "thresholds": {"practical": 0.002}}]
        assert f"; {words}" in sentence()
        assert sentence().endswith("of the restart at epoch 20)")
    alone = choose(confirmed(0.02), baselines=["cosine"]).sentence
    assert alone.endswith("; no other baseline was compared"), "without a restart there is no peak to match"


def test_without_a_winner_it_says_for_each_which_gain_is_ruled_out() -> None:
    rows = confirmed(0.0)
    for row in [row for row in rows if row["name"] == "cawb-1" and row["stage"] == "confirm"]:
        rows.append(
            row | {"trial": 40 + int(str(row["seed"])), "name": "cawb-2", "score": float(str(row["score"])) - 0.05}
        )
    answer = choose(rows, baselines=["cosine"])
    assert answer.winner is None
    best, worse = answer.candidates
    assert best.pairs is not None
    assert best.reason.endswith(f"and more than {best.pairs.high:+.4f} is ruled out")
    assert worse.reason == "not above cosine, and any gain is ruled out"
    assert best.reason in answer.sentence
    assert "; ruled out is also any gain for cawb-2; this design (2 candidates on 6 paired seeds)" in answer.sentence
    data = answer.to_dict()["candidates"][0]
    assert data["differences"] == best.differences
    assert f"{best.pairs.mean:+z.4f} [{best.pairs.low:+z.4f}, {best.pairs.high:+z.4f}] over cosine" in best.differences
    assert "on 6 paired seeds: not " in best.differences


def test_a_difference_too_small_to_matter_wins_nothing() -> None:
    rows = [row | {"score": 0.3} if row["name"] == "cosine" else row for row in confirmed(n=8)]
    for i, row in enumerate(row for row in rows if row["name"] == "cawb-1" and row["stage"] == "confirm"):
        row["score"] = 0.3010 + 0.0001 * (i % 3)
    answer = choose(rows, baselines=["cosine"])
    assert answer.winner is None
    assert "less than 0.002" in answer.candidates[0].reason
    assert choose(rows, baselines=["cosine"], equivalence=0.0005).winner is not None


@pytest.mark.parametrize("n", [0, 1, 3])
def test_too_few_pairs_crown_nobody(n: int) -> None:
    answer = choose(confirmed(0.1, n=n), baselines=["cosine"])
    assert answer.winner is None
    assert answer.sentence.startswith("no winner yet")


def test_a_confounded_run_is_listed_apart_and_its_configuration_never_wins() -> None:
    rows = confirmed(0.05)
    rows[-1] = rows[-1] | {"confounder": "batch halved"}
    answer = choose(rows, baselines=["cosine"])
    assert answer.winner is None
    assert [(run.trial, run.reason) for run in answer.excluded] == [(36, "batch halved")]
    assert "batch halved" in answer.sentence
    again = [*rows, rows[-1] | {"trial": 99, "confounder": None}]
    assert choose(again, baselines=["cosine"]).winner is not None, "a clean run on the same seed heals it"


def test_a_confounded_search_run_is_not_ranked() -> None:
    rows = confirmed()[:3]
    rows[1] = rows[1] | {"confounder": "recovered from NaN"}
    answer = choose(rows, baselines=["cosine"])
    assert [entry.trial for entry in answer.ranking] == [2]
    assert answer.excluded[0].reason == "recovered from NaN"


def test_looking_before_the_confirmation_is_over_crowns_nobody() -> None:
    """Otherwise a reader who looks after every run would get several chances at a false winner."""
    rows = confirmed(0.05)
    planned = [(row["name"], row["seed"]) for row in rows if row["stage"] == "confirm"]
    for late in (-1, -2):
        waiting = [*rows]
        waiting[late] = rows[late] | {"score": None}
        absent = rows[:late] + rows[len(rows) + late + 1 :]
        for seen, asked in ((waiting, ()), (waiting, planned), (absent, planned)):
            answer = choose(seen, baselines=["cosine"], planned=asked)
            assert answer.winner is None
            assert "5 of 6 paired seeds are finished (11 of 12 runs)" in answer.sentence
            assert answer.confirmation == stats.Progress(5, 6, 11, 12)
            assert answer.candidates[0].reason == "the confirmation is not finished"
    assert choose(rows, baselines=["cosine"], planned=planned).winner is not None


def test_a_run_that_was_not_designed_plays_no_part() -> None:
    """Seeds added after a look, by whatever means, are neither pairs nor waited for."""
    rows = confirmed(0.0)
    planned = [(row["name"], row["seed"]) for row in rows if row["stage"] == "confirm"]
    before = choose(rows, baselines=["cosine"], planned=planned)
    for seed in range(7, 30):
        rows.append({"trial": 100 + seed, "name": "cosine", "stage": "confirm", "seed": seed, "score": 0.1})
        rows.append({"trial": 200 + seed, "name": "cawb-1", "stage": "confirm", "seed": seed, "score": 0.5})
    rows[-1] = rows[-1] | {"score": None}
    answer = choose(rows, baselines=["cosine"], planned=planned)
    assert (answer.winner, answer.candidates) == (None, before.candidates)
    assert len(answer.excluded) == 46
    assert answer.excluded[0].reason == "not a run of the confirmation as it was designed"


def test_a_candidate_that_fails_on_a_seed_never_wins_and_holds_up_nobody() -> None:
    rows = confirmed(0.05)
    planned = [(row["name"], row["seed"]) for row in rows if row["stage"] == "confirm"]
    rows[-1] = rows[-1] | {"score": None, "confounder": "the loss is nan"}
    answer = choose(rows, baselines=["cosine"], planned=planned)
    assert answer.confirmation is not None
    assert answer.confirmation.complete
    assert (answer.winner, answer.candidates[0].wins) == (None, False)
    assert "the loss is nan" in answer.sentence


def test_the_seed_of_the_search_makes_no_pair() -> None:
    """A run that was selected for its score at that seed is no evidence at that seed."""
    rows = confirmed(0.01)
    rows.append({"trial": 50, "name": "cosine", "stage": "confirm", "seed": 0, "score": 0.30})
    rows.append({"trial": 51, "name": "cawb-1", "stage": "confirm", "seed": 0, "score": 0.99})
    answer = choose(rows, baselines=["cosine"])
    assert answer.pairs == 6
    assert [run.trial for run in answer.excluded] == [51]


def test_the_rival_is_the_best_baseline() -> None:
    rows = confirmed(0.01)
    strong = [r | {"trial": 60 + i, "name": "stock", "score": 0.3 + r["score"]} for i, r in enumerate(rows)
              if r["stage"] == "confirm" and r["name"] == "cosine"]  # fmt: skip
    answer = choose(rows + strong, baselines=["cosine", "stock"])
    assert answer.baseline is not None
    assert answer.baseline.name == "stock"
    assert answer.winner is None


def test_controls_play_no_part() -> None:
    rows = confirmed()
    extra = [row | {"trial": 80 + i, "stage": "control", "score": 0.0} for i, row in enumerate(rows)]
    assert choose(rows + extra, baselines=["cosine"]).to_dict() == choose(rows, baselines=["cosine"]).to_dict()


def test_noise_comes_from_the_sweeps_own_pairs_and_says_which() -> None:
    rng = np.random.default_rng(0)
    common, own = rng.normal(0, 0.004, 5), rng.normal(0, 0.0005, (3, 5))
    rows = [{"trial": 10 * i + s, "name": name, "stage": "confirm", "seed": s, "score": 0.3 + common[s] + own[i, s]}
            for i, name in enumerate(["cosine", "stock", "trial 7"]) for s in range(5)]  # fmt: skip
    baselines = ["cosine", "stock"]
    every = spread(rows, baselines=baselines)
    assert every.s_d is not None
    assert every.sigma is not None
    assert every.low < every.s_d < every.high
    assert every.s_d < 0.6 * every.sigma * 2**0.5
    assert "2 comparisons of schedules with baselines in the confirmation on 5 shared seeds" in every.source
    assert "1 comparison of baselines with each other" in spread(rows[:10], baselines=baselines).source
    searched = [row | {"stage": "search"} for row in rows]
    assert "in the search" in spread(searched, baselines=baselines).source, "where trials share several seeds"
    mixed = [row | {"score": 0.9 * row["seed"]} for row in searched] + rows
    assert spread(mixed, baselines=baselines) == every, "the confirmation's pairs come first"
    assert spread(rows[:1] + rows[11:], baselines=baselines) is stats.ELSEWHERE, "one seed has no spread"


@pytest.mark.parametrize("comparisons", [1, 5])
def test_the_interval_of_the_noise_covers_it_in_nineteen_of_twenty_sweeps(comparisons: int) -> None:
    rng, inside = np.random.default_rng(5), 0
    for _ in range(2000):
        baseline, *others = rng.normal(0.3, 0.01, (comparisons + 1, 6))
        noise = stats.Spread.of([stats.paired(scores, baseline) for scores in others], "schedules")
        inside += noise.low <= 0.01 * 2**0.5 <= noise.high
    alone = stats.Spread.of([stats.paired(others[0], baseline)], "schedules")
    assert noise.high / noise.low == pytest.approx(alone.high / alone.low), "no wider than that of one comparison"
    if comparisons == 1:
        assert inside / 2000 == pytest.approx(0.95, abs=0.015)  # three standard errors
    else:  # several comparisons share a baseline, so the interval is as wide as that of one: wider than it has to be
        assert inside / 2000 >= 0.95


def branched(rng: np.random.Generator, seeds: int, count: int = 9) -> tuple[list[Trial], dict[str, Trace]]:
    """Runs of a trunk and of branches with a drop or a rise at a step, the noisier the further they depart."""
    trunk = Trace(np.linspace(0.1, 0.01, 40), epochs=40)
    luck, rows = rng.normal(0.48, 0.02, seeds), []
    traces = {"trunk": trunk}
    for number in range(count):
        ratio, step = (0.9, 1.5, 3.0)[number % 3], 10 + 10 * (number // 3 % 3)
        traces[f"trial {number}"] = Trace(trunk.lr * np.where(np.arange(40) < step, 1, ratio), epochs=40)
    for number, (name, trace) in enumerate(traces.items()):
        at = stats.Departure.of(trace, trunk)
        noise = rng.normal(0, 0.01 * at.distance**0.75, seeds) if at else np.zeros(seeds)
        stage = "search" if at else "baseline"
        rows += [run(100 * number + s, name, stage, s, float(luck[s] + noise[s])) for s in range(seeds)]
    return rows, traces


def test_how_a_branch_departs_is_its_distance_and_when() -> None:
    trunk = Trace([0.4, 0.3, 0.2, 0.1], epochs=2, steps_per_epoch=2)
    at = stats.Departure.of(Trace([0.4, 0.3, 0.4, 0.1], epochs=2, steps_per_epoch=2), trunk)
    assert at == stats.Departure(pytest.approx(0.2), 1, 0.5)
    assert stats.Departure.of(Trace(trunk.lr, epochs=2, steps_per_epoch=2), trunk) is None


def test_the_noise_of_branches_is_learned_by_how_far_they_depart() -> None:
    errors, runs = [], []
    for start in range(30):
        rows, traces = branched(np.random.default_rng(start), seeds=6)
        noise = stats.branches(rows, "trunk", lambda row: stats.Departure.of(traces[row.name], traces["trunk"]))  # noqa: B023
        assert (noise.branches, noise.pairs, noise.schedules) == (9, 54, 10)
        for at, fitted in noise.fitted:
            errors.append(np.log(fitted / (0.01 * at.distance**0.75)))
        runs.append(noise.run)
        assert ", 54 pairs): about 0.00" in noise.sentence
        assert " for the mildest branch (" in noise.sentence
    assert np.mean(runs) == pytest.approx(0.02, rel=0.15)
    assert abs(np.mean(errors)) < 0.15, "not biased"
    assert np.quantile(np.abs(errors), 0.9) < np.log(2), "within a factor of two at both ends, which are ten apart"


def test_before_pairs_nobody_knows_the_noise_of_branches() -> None:
    rows, traces = branched(np.random.default_rng(0), seeds=1)
    depart = lambda row: stats.Departure.of(traces[row.name], traces["trunk"])  # noqa: E731
    assert stats.branches(rows, "trunk", depart).sentence == stats.UNKNOWN
    assert "0.0044 to 0.0215, of a branch's difference to its trunk 0.0021 to 0.0139" in stats.UNKNOWN
    few = [row for row in branched(np.random.default_rng(0), seeds=3)[0] if row.name in ("trunk", "trial 0", "trial 1")]
    noise = stats.branches(few, "trunk", depart)
    assert noise.fitted == ()
    assert "(2 branches, 6 pairs)" in noise.sentence, "too few to fit anything"
    same = [row if row.name == "trunk" else replace(row, score=None, state="WAITING") for row in few]
    assert stats.branches(same, "trunk", depart).sentence == stats.UNKNOWN


def test_every_finished_seed_of_a_confirmation_teaches_the_noise() -> None:
    rows = confirmed()
    planned = [(row["name"], row["seed"]) for row in rows if row["stage"] == "confirm"]
    widths = []
    for seeds in range(7):
        seen = [row if row["stage"] != "confirm" or row["seed"] <= seeds else row | {"score": None} for row in rows]
        answer = choose(seen, baselines=["cosine"], planned=planned)
        assert answer.noise.n == (seeds if seeds >= 2 else 0)
        assert (answer.noise.needed is None) == (seeds < 2)
        if seeds >= 2:
            widths.append(answer.noise.high / answer.noise.low)
    assert widths == sorted(widths, reverse=True)


def test_the_range_of_a_sweep_without_pairs_is_that_of_the_table_in_the_docs() -> None:
    table = (Path(__file__).parents[1] / "docs" / "evidence.md").read_text()
    for known in stats.KNOWN:
        span = f"{known.low:.4f} to {known.high:.4f}" if known.low < known.high else f"{known.low:.4f}"
        assert f"| {known.data} | {known.what} | {span} | {known.source} |" in table
    assert stats.ELSEWHERE.needs in table


def test_nothing_at_all_is_an_answer_too() -> None:
    answer = choose([], baselines=["cosine"])
    assert answer.winner is None
    assert answer.sentence.startswith("no winner yet: nothing to compare")


# What comes next.


def shifted(difference: float, spread: float, n: int = 6, equivalence: float = 0.002) -> stats.Answer:
    """The answer to a confirmation with exactly this mean difference, and this standard deviation of it."""
    wave = np.resize([1.0, -1.0], n) * spread * ((n - 1) / n) ** 0.5
    rows = confirmed(n=n)
    scores = {row["seed"]: row["score"] for row in rows if (row["name"], row["stage"]) == ("cosine", "confirm")}
    rows = [
        row | {"score": float(str(scores[row["seed"]])) + difference + wave[int(str(row["seed"])) - 1]}
        if (row["name"], row["stage"]) == ("cawb-1", "confirm")
        else row
        for row in rows
    ]
    return choose(rows, baselines=["cosine"], equivalence=equivalence)


def test_after_no_winner_the_next_step_is_the_number_of_seeds_that_would_decide() -> None:
    answer = shifted(0.006, 0.012)
    assert answer.winner is None
    assert answer.candidates[0].pairs is not None
    assert answer.candidates[0].pairs.s_d == pytest.approx(0.012)
    assert stats.detectable_effect(0.012, 34, equivalence=0.002) <= 0.006
    assert stats.detectable_effect(0.012, 33, equivalence=0.002) > 0.006
    assert "confirm it alone on 34 fresh seeds in a new sweep with another name and another seed" in answer.next_step
    assert "enqueue: its schedule, which sweeper export --trial 1 writes" in answer.next_step
    assert "confirm: {best: 1, seeds: 34}; 68 runs)" in answer.next_step
    assert answer.to_dict()["next_step"] == answer.next_step


def test_after_no_winner_the_next_step_is_another_space_where_seeds_would_not_help() -> None:
    ruled_out = shifted(0.0005, 0.0005)
    assert ruled_out.next_step.startswith("search another space")
    assert "a gain of 0.002 (confirm.equivalence) or more is ruled out" in ruled_out.next_step
    for small in (shifted(0.0015, 0.01), shifted(-0.001, 0.01), shifted(0.00201, 0.01)):
        assert small.winner is None
        assert small.next_step.startswith("search another space")
        assert "because the best schedule gained less than 0.002 (confirm.equivalence)" in small.next_step


def test_the_next_step_before_there_is_an_answer_is_the_command_that_comes_to_one() -> None:
    rows = confirmed()
    search = [row for row in rows if row["stage"] != "confirm"]
    confirm = "sweeper confirm trains the best of the search and the baselines again on fresh seeds"
    assert choose(search, baselines=["cosine"]).next_step.startswith(confirm)
    waiting = [*search, {"trial": 3, "name": "cawb-3", "stage": "search", "seed": 0}]
    assert choose(waiting, baselines=["cosine"]).next_step.startswith(
        f"sweeper run finishes the search, and then {confirm}"
    )
    began = [*rows[:-1], rows[-1] | {"score": None}]
    assert (
        choose(began, baselines=["cosine"]).next_step
        == "sweeper confirm trains the rest of the confirmation (1 of 12 runs)"
    )
    assert choose(confirmed(n=3), baselines=["cosine"]).next_step.startswith(
        "confirm on at least 4 seeds (confirm.seeds)"
    )
    halved = [*rows[:-1], rows[-1] | {"confounder": "batch halved"}]
    assert choose(halved, baselines=["cosine"]).next_step.startswith("remove the cause that stands above")
    assert choose([], baselines=["cosine"]).next_step.startswith("sweeper run trains the search")
    assert choose(confirmed(0.05), baselines=["cosine"]).next_step == "", "a winner needs none"


def test_a_confirmation_without_any_pair_is_not_called_one_run_each() -> None:
    rows = [
        row | {"score": None, "confounder": "the loss is nan"}
        if (row["name"], row["stage"]) == ("cawb-1", "confirm")
        else row
        for row in confirmed()
    ]
    sentence = choose(rows, baselines=["cosine"]).sentence
    assert sentence.startswith("no winner yet: cawb-1: a run is not comparable (seed 1: the loss is nan)")
