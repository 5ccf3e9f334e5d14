"""The measures of a restart and the verdict table: what each number means, and what the words hang on."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trials import trial

from sweeper import evidence
from sweeper.config import Escape
from sweeper.errors import ConfigError
from sweeper.evidence import Gain, Movement, verdict
from sweeper.schedules import TimeBase, Trace, counterfactual, matched_peak, parse, quench, snapshot_epochs
from sweeper.study import Trial

# The curve.


def jump(epoch: int, ratio: float = 5.0) -> SimpleNamespace:
    return SimpleNamespace(epoch=epoch, ratio=ratio, kind="restart" if ratio > 1 else "drop")


@given(st.integers(0, 1000), st.floats(0.0005, 0.01), st.floats(-0.002, 0.002))
def test_curve_noise_is_the_sigma_of_one_epoch_whatever_the_trend_and_the_jumps(
    seed: int, sigma: float, t: float
) -> None:
    curve = np.random.default_rng(seed).normal(0, sigma, 400) + t * np.arange(400)
    curve[100:] += 0.3
    assert evidence.curve_noise(curve) == pytest.approx(sigma, rel=0.35)


def test_dip_recovery_and_gain_of_two_restarts() -> None:
    cycles = [0.1] + [0.3] * 11, [0.2, 0.25, 0.3, 0.3, 0.35, 0.35, 0.35], [0.1, 0.1, 0.2, 0.3, 0.3, 0.3]
    first, second = evidence.effects(np.concatenate(cycles), [jump(12), jump(19, 3.0)], within=1e-9)
    assert (first.epoch, first.recovery, first.watched) == (12, 2, 7)
    assert first.dip == pytest.approx(0.1)
    assert first.gain == pytest.approx(0.05)
    assert second.recovery is None, "never back at 0.35 within the six epochs it was watched: censored"
    assert second.watched == 6
    assert second.gain == pytest.approx(-0.05), "against the best annealed value before, that of the first cycle"


def test_a_single_lucky_epoch_before_is_not_what_the_gain_is_measured_against() -> None:
    curve = [0.2, 0.2, 0.2, 0.2, 0.2, 0.9, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.1, 0.2, 0.3, 0.3, 0.3]
    [effect] = evidence.effects(curve, [jump(12)], within=0.0)
    assert effect.gain == pytest.approx(0.1)


LEARNING = {
    **{f"levels off in {tau} epochs": lambda t, tau=tau: 1 - np.exp(-(t + 1) / tau) for tau in (2, 4, 8, 15, 25)},
    **{f"begins at epoch {at}": lambda t, at=at: 1 / (1 + np.exp(-(t - at) / 3)) for at in (4, 8, 15)},
    "never levels off": lambda t: ((t + 1) / 60) ** 0.3,
}


@pytest.mark.parametrize("shape", LEARNING)
@pytest.mark.parametrize("sigma", [0.0, 0.003, 0.013])
def test_a_plain_learning_curve_has_no_gain_wherever_a_restart_is_said_to_be(shape: str, sigma: float) -> None:
    """A curve on which no jump does anything: what it rises by is learning, and no gain of the jump."""
    random, claimed = np.random.default_rng(0), []
    for _ in range(10):
        curve = np.maximum(0.5 * LEARNING[shape](np.arange(60)) + random.normal(0, sigma, 60), 0)
        for epoch in range(3, 57):
            gain = evidence.effects(curve, [jump(epoch, 1.14)])[0].gain
            claimed.append(gain if gain is not None and gain > 0 else 0.0)
    assert max(claimed) <= 8 * sigma, "of early learning nothing is claimed, at most noise on a level curve"
    assert np.mean(np.array(claimed) > 2 * sigma) <= 0.05


def test_a_restart_in_early_learning_has_no_gain() -> None:
    [effect] = evidence.effects([0.0, 0.0, 0.01, 0.03, 0.08, 0.2, 0.35, 0.45, 0.55, 0.56], [jump(5, 1.14)])
    assert effect.gain is None
    assert json.loads(json.dumps(effect.to_dict()))["gain"] is None


def test_one_epoch_back_is_no_recovery() -> None:
    curve = np.r_[[0.3] * 6, 0.1, 0.3, 0.1, 0.3, 0.3, 0.1, 0.3, 0.3, 0.3]
    [effect] = evidence.effects(curve, [jump(6)], within=0.0)
    assert effect.recovery == 6


def test_a_drop_is_measured_like_a_restart_and_keeps_its_name() -> None:
    [effect] = evidence.effects([0.1, 0.2, 0.2, 0.2, 0.25, 0.26, 0.27], [jump(4, 0.7)])
    assert (effect.kind, effect.ratio) == ("drop", 0.7)
    assert effect.dip < 0, "it never fell below"


def test_jumps_the_curve_has_not_reached_are_left_out() -> None:
    assert evidence.effects([0.1, 0.2], [jump(0), jump(2), jump(9)]) == []
    assert evidence.effects([], []) == []
    with pytest.raises(ConfigError, match="finite"):
        evidence.effects([0.1, math.nan], [jump(1)])


def branch() -> list[Trial]:
    """A branch of yolo_linear (LR x0.944 from epoch 20 on) and its trunk on four seeds, as trained on BCCD."""
    rows = json.loads(Path(__file__).with_name("bccd_branch.json").read_text())
    return [
        trial(**{**row, "curve": dict(enumerate(row["curve"]))}, score=float(np.mean(row["curve"][-3:])))
        for row in rows
    ]


def test_a_bad_epoch_of_the_trunk_is_no_dip_of_its_branch() -> None:
    """Epoch 22 of the first seed is bad in both, by half of the score; the branch itself lost a seventh of that."""
    trials = branch()
    first = next(row for row in trials if row.name == "trial 7")
    assert first.facts.effects[0]["dip"] == pytest.approx(0.247, abs=1e-3), "what its own curve says"
    [jump] = evidence.jumps_of(first, trials)
    ours, theirs = (np.array([row.values for row in trials if row.name == name]) for name in ("trial 7", "yolo_linear"))
    difference = (ours - theirs).mean(axis=0)
    assert not difference[:20].any(), "the same training up to the jump"
    assert (jump["over"], jump["seeds"], jump["fresh"]) == ("yolo_linear", 4, False)
    assert jump["before"] == 0.0
    assert jump["dip"] == pytest.approx(-difference[20:].min(), abs=1e-9)
    assert jump["dip"] == pytest.approx(0.035, abs=1e-3)
    assert jump["gain"] == pytest.approx(difference[-3:].mean(), abs=1e-9)
    assert evidence.effect_in_words(jump).startswith(
        "drop x0.944 at epoch 20, by the difference to yolo_linear on 4 search seeds: dip 0.035"
    )


def test_fresh_seeds_measure_a_branch_where_there_are_any_and_without_its_trunk_nothing_does() -> None:
    trials = branch()
    confirmed = [replace(row, stage="confirm", facts=replace(row.facts, name=row.name)) for row in trials[-1:]]
    stem = [
        replace(row, stage="confirm") for row in trials if row.name == "yolo_linear" and row.seed == trials[-1].seed
    ]
    [jump] = evidence.jumps_of(trials[4], [*trials[:-1], *confirmed, *stem])
    assert (jump["seeds"], jump["fresh"]) == (1, True)
    assert "on 1 fresh seed:" in evidence.effect_in_words(jump)
    assert evidence.jumps_of(trials[4], trials[4:]) == []


def test_a_run_that_cannot_be_compared_measures_no_jump() -> None:
    trials = branch()
    first, *others = trials
    confounded = replace(first, facts=replace(first.facts, confounder="another device"))
    [jump] = evidence.jumps_of(trials[4], [confounded, *others])
    assert jump["seeds"] == 3


def test_a_schedule_without_a_trunk_is_measured_by_its_own_curve() -> None:
    rows = [replace(row, spec={**(row.spec or {}), "trunk": None}) for row in branch()]
    assert evidence.jumps_of(rows[4], rows) == list(rows[4].facts.effects)


def test_effects_read_the_jumps_of_a_schedule() -> None:
    trace = parse({"family": "cawb", "lr": 0.1, "steps": [6], "step_scale": 0.9}).trace(TimeBase(12, 10))
    [effect] = evidence.effects(np.linspace(0.1, 0.3, 12), trace.jumps())
    assert (effect.epoch, effect.kind) == (6, trace.jumps()[0].kind)
    json.dumps(effect.to_dict())


# Barriers.


def double_well(weights: dict[str, np.ndarray]) -> float:
    x = float(np.asarray(weights["x"]).sum())
    return (x**2 - 1) ** 2


def point(x: float) -> dict[str, np.ndarray]:
    return {"x": np.array([float(x)]), "counter": np.array(3)}


def test_a_barrier_is_the_highest_loss_above_the_worse_end() -> None:
    line = evidence.barrier(double_well, point(-1), point(1))
    assert (line.height, line.top) == (pytest.approx(1.0), pytest.approx(1.0))
    lower = evidence.barrier(double_well, point(-1), point(0.5))
    assert lower.height == pytest.approx(1 - (0.25 - 1) ** 2, abs=0.02)
    assert evidence.barrier(double_well, point(1), point(2)).height == 0.0


def test_a_bend_is_no_barrier_along_the_path() -> None:
    """Two points of a ring are connected although the straight line between them is not."""

    def ring(weights: dict[str, np.ndarray]) -> float:
        return float((np.linalg.norm(weights["p"]) - 1) ** 2)

    around = [{"p": np.array([np.cos(a), np.sin(a)])} for a in np.linspace(0, np.pi, 10)]
    path = evidence.path_barrier(ring, around[0], around[1:-1], around[-1])
    assert path.direct.height == pytest.approx(1.0)
    assert path.height < 0.02
    assert evidence.path_barrier(ring, around[0], [], around[-1]).height == path.direct.height


def test_a_snapshot_on_top_of_the_hill_does_not_hide_it() -> None:
    path = evidence.path_barrier(double_well, point(-1), [point(0)], point(1))
    assert path.height == pytest.approx(1.0)


def test_losses_are_computed_once() -> None:
    calls = []

    def counted(weights: dict[str, np.ndarray]) -> float:
        calls.append(1)
        return double_well(weights)

    evidence.path_barrier(counted, point(-1), [point(-0.9), point(0.8)], point(1), points=11)
    assert len(calls) == 4 + 4 * 9


def test_interpolation_is_in_double_keeps_types_and_leaves_counters_alone() -> None:
    a = {"w": np.array([1.0, 1e8], dtype=np.float32), "n": np.array(7)}
    b = {"w": np.array([1.0, 1e8 + 8], dtype=np.float32), "n": np.array(9)}
    middle = evidence.interpolate(a, b, 0.1)
    assert middle["w"].dtype == np.float32
    assert middle["n"] == 7
    assert np.array_equal(evidence.interpolate(a, a, 0.3)["w"], a["w"])
    assert np.array_equal(evidence.interpolate(a, b, 1.0)["w"], b["w"])


def test_weights_of_two_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="both EMA or both raw"):
        evidence.barrier(double_well, point(0), {"x": np.zeros(2), "counter": np.array(3)})
    with pytest.raises(ConfigError, match="finite"):
        evidence.barrier(lambda w: math.nan, point(0), point(1))


def test_distance() -> None:
    a, b = {"w": np.array([3.0, 4.0])}, {"w": np.array([-4.0, 3.0])}
    assert evidence.distance(a, b) == (pytest.approx(math.sqrt(2)), pytest.approx(0.0))
    with pytest.raises(ConfigError):
        evidence.distance({"w": np.zeros(2)}, b)


# Controls.


@pytest.fixture
def warm() -> Trace:
    """Two cycles with warm-up, a bias group that starts high, and momentum: 20 epochs of 10 steps, restart at 10."""
    return parse(
        {
            "family": "cawb",
            "lr": 0.1,
            "steps": [10],
            "step_scale": 1.5,
            "warmup": "2ep",
            "groups": {"bias": {"lr": 0.2}},
        }
    ).trace(TimeBase(20, 10))


def test_the_counterfactual_shares_everything_before_the_restart_and_the_final_lr(warm: Trace) -> None:
    [restart] = warm.jumps()
    branch = counterfactual(warm, restart.step)
    assert branch.common_prefix(warm) == restart.step
    assert branch.final == warm.final
    assert branch.jumps() == []
    assert (branch.epochs, branch.steps_per_epoch) == (warm.epochs, warm.steps_per_epoch)
    assert branch.lr[restart.step :].max() <= max(branch.lr[restart.step - 1], branch.final)
    assert np.array_equal(branch.group("bias")[: restart.step], warm.group("bias")[: restart.step])
    assert branch.group("bias")[-1] == warm.group("bias")[-1]


def test_the_counterfactual_of_the_first_restart_has_no_later_one() -> None:
    run = parse({"family": "warm_restarts", "lr": 0.1, "T_0": 5}).trace(TimeBase(20, 4))
    first = run.jumps()[0]
    assert counterfactual(run, first.step).jumps() == []
    second = run.jumps()[1]
    assert [j.step for j in counterfactual(run, second.step).jumps()] == [first.step]


def test_the_matched_peak_is_one_anneal_from_the_restarts_lr(warm: Trace) -> None:
    [restart] = warm.jumps()
    control = matched_peak(warm, restart.step)
    assert control.peak == warm.lr[restart.step]
    assert control.final == warm.final
    assert control.jumps() == []
    assert control.steps == warm.steps
    top = int(control.lr.argmax())
    assert control.warmup_fraction == pytest.approx(0.1, abs=0.01)
    assert (np.diff(control.lr[: top + 1]) >= 0).all()
    assert (np.diff(control.lr[top:]) <= 0).all()


def test_a_quench_goes_on_at_the_lowest_lr_after_the_warmup(warm: Trace) -> None:
    longer = quench(warm, epochs=2)
    assert (longer.epochs, longer.common_prefix(warm)) == (22, 200)
    assert np.unique(longer.lr[200:]).tolist() == [warm.lr[20:].min()]
    assert np.unique(longer.group("bias")[200:]).tolist() == [warm.lr[20:].min()]


@given(st.lists(st.floats(1e-4, 1), min_size=2, max_size=40), st.integers(1, 12), st.data())
def test_snapshots_along_the_way_are_ordered_inside_and_as_many_as_fit(
    lr: list[float], k: int, data: st.DataObject
) -> None:
    trace = Trace(lr, epochs=len(lr))
    start = data.draw(st.integers(0, len(lr) - 1))
    end = data.draw(st.integers(start + 1, len(lr)))
    epochs = snapshot_epochs(trace, start, end, k)
    assert epochs == sorted(set(epochs))
    assert len(epochs) == min(k, end - start - 1)
    assert all(start < epoch < end for epoch in epochs)


# The verdict.

MOVED, STAYED, BETWEEN = Movement(0.5, 0.01, 1.0), Movement(0.005, 0.01, 1.0), Movement(0.03, 0.01, 1.0)
BETTER, SAME = Gain(0.01, 0.005, 0.015, 6), Gain(0.0005, -0.003, 0.004, 6)
WORSE = Gain(-0.01, -0.015, -0.005, 6)
TIE = Gain(0.0001, -0.0015, 0.0017, 6)


@pytest.mark.parametrize(
    ("kind", "movement", "gain", "over_peak", "word"),
    [
        ("restart", MOVED, BETTER, BETTER, "escape"),
        ("restart", MOVED, BETTER, TIE, "escape"),
        ("restart", MOVED, BETTER, WORSE, "gain explained by a larger LR"),
        ("restart", MOVED, BETTER, Gain(-0.001, -0.01, 0.008, 4), "unclear"),
        ("restart", MOVED, BETTER, None, "unclear"),
        ("restart", MOVED, SAME, None, "moved, not better"),
        ("restart", MOVED, WORSE, None, "moved, not better"),
        ("restart", STAYED, BETTER, WORSE, "progress in the same basin"),
        ("restart", STAYED, SAME, None, "no evidence of an escape"),
        ("restart", BETWEEN, SAME, BETTER, "no evidence of an escape"),
        ("restart", BETWEEN, BETTER, BETTER, "unclear"),
        ("restart", None, BETTER, BETTER, "unclear"),
        ("restart", MOVED, None, None, "unclear"),
        ("restart", STAYED, None, None, "no evidence of an escape"),
        ("restart", MOVED, Gain(0.05), Gain(0.05), "unclear"),
        ("restart", STAYED, Gain(0.05), Gain(0.05), "no evidence of an escape"),
        ("restart", MOVED, Gain(0.0015, 0.001, 0.002, 9), None, "moved, not better"),
        ("drop", MOVED, BETTER, BETTER, "not a restart"),
        ("drop", None, None, None, "not a restart"),
    ],
)
def test_the_verdict_table(
    kind: str, movement: Movement | None, gain: Gain | None, over_peak: Gain | None, word: str
) -> None:
    judged = verdict(kind, movement=movement, gain=gain, over_peak=over_peak)
    assert judged.word == word
    assert judged.sentence.startswith(word)
    assert "3x self-barrier" in judged.sentence, "thresholds are printed with every verdict"
    json.dumps(judged.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("movement", "state"),
    [
        (Movement(0.05, 0.001, 1.0), "yes"),
        (Movement(0.049, 0.001, 1.0), "unclear"),
        (Movement(0.019, 0.001, 1.0), "no"),
        (Movement(0.06, 0.03, 1.0), "unclear"),
        (Movement(0.06, 0.06, 1.0), "no"),
        (Movement(0.0, 0.0, 0.0), "no"),
        (Movement(0.1, 0.0, 0.0), "unclear"),
    ],
)
def test_moved(movement: Movement, state: str) -> None:
    assert movement.moved(Escape())[0] == state


def test_thresholds_are_the_sweeps_own_and_are_printed() -> None:
    strict = Escape(moved_beta=0.6, practical=0.02)
    judged = verdict("restart", movement=MOVED, gain=Gain(0.05, 0.03, 0.07, 6), thresholds=strict)
    assert judged.moved == "unclear"
    assert "beta 0.6" in judged.sentence
    assert "gain beyond 0.02" in judged.sentence
    assert verdict("restart", movement=MOVED, gain=BETTER, thresholds=strict).better is False
