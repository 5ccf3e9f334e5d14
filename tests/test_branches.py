"""Branches: the trunk to the last bit up to the first jump, the family's own from there, and what cannot be one."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sweeper.cli import app
from sweeper.errors import ScheduleError
from sweeper.schedules import FAMILIES, Schedule, TimeBase, Trace, parse, prefix_keys
from sweeper.schedules.branch import FROM_TRUNK, LENGTHS, POSITIONS

TIME = TimeBase(40, 13)
LINEAR: dict[str, Any] = {"family": "yolo_linear", "lr": 0.01}
#: A branch of every family that begins after 20 epochs.
BRANCHES: dict[str, dict[str, Any]] = {
    "cawb": {"steps": [20, 30], "step_scale": 0.9, "horizon": "end"},
    "cosine": {"eta_min": 1e-4},
    "warm_restarts": {"T_0": 5},
    "multistep": {"boundaries": [25, 35]},
    "yolo_linear": {},
    "yolo_cosine": {},
    "onecycle": {},
    "wsd": {},
    "polynomial": {"power": 2},
    "exponential": {"gamma": 0.9},
    "constant": {},
}


def branch(family: str, trunk: Any = LINEAR, **more: Any) -> Schedule:
    begins = {} if family == "cawb" else {"from": "20ep"}
    return parse({"family": family, "trunk": trunk, **begins, **BRANCHES[family], **more})


def trunk_trace(spec: dict[str, Any] = LINEAR, time: TimeBase = TIME) -> Trace:
    return parse(spec).trace(time)


def traced(*words: str) -> Any:
    result = CliRunner().invoke(app, ["trace", *words, "--epochs", "40", "--steps-per-epoch", "13", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_command_prints_the_trunk_to_the_last_digit_and_then_the_jump() -> None:
    shown = traced("cawb", "lr=0.01", "trunk=yolo_linear", "steps=[20]", "step_scale=1.0")
    trunk = traced("yolo_linear", "lr=0.01")
    assert shown["lr"][:20] == trunk["lr"][:20]
    assert shown["groups"]["bias"][:20] == trunk["groups"]["bias"][:20]
    assert shown["momentum"] == trunk["momentum"]
    assert [(jump["step"], jump["kind"]) for jump in shown["jumps"]] == [(260, "restart")]
    assert shown["begins"] == 260
    assert shown["lr"][20][0] == 0.01
    assert shown["groups"]["bias"][20:] == shown["lr"][20:] != trunk["lr"][20:]


def test_the_table_says_where_the_branch_leaves_its_trunk() -> None:
    run = ["trace", "cawb", "lr=0.01", "trunk=yolo_linear", "--epochs", "40", "--steps-per-epoch", "13"]
    assert "a branch of yolo_linear: never leaves it" in CliRunner().invoke(app, run).stdout
    branched = CliRunner().invoke(app, [*run, "steps=[20]"]).stdout
    assert "a branch of yolo_linear: leaves it at step 260 (epoch 20)" in branched


def test_cawbs_cycles_are_those_that_follow_a_first_one() -> None:
    """Peaks, decays and horizons are the plain schedule's; only what comes before the first restart is the trunk's."""
    for more in (
        {"horizon": "end"},
        {"epoch_scale": 2.0},
        {"horizon": 8, "step_scale": [0.7, 1.2]},
        {"decay": "linear", "granularity": "epoch"},
    ):
        space = {"family": "cawb", "lr": 0.01, "steps": [20, "33.5ep"], "step_scale": 0.8, **more}
        plain, branched = parse({**space, "warmup": "3ep"}), parse({**space, "trunk": "yolo_linear"})
        np.testing.assert_array_equal(branched.values(TIME)[260:], plain.values(TIME)[260:])
        assert branched.trace(TIME).marks == plain.trace(TIME).marks
    one_each = {"family": "cawb", "lr": 0.01, "steps": [20, 30], "trunk": "yolo_linear"}
    np.testing.assert_array_equal(
        parse({**one_each, "horizon": [10, 5]}).values(TIME)[260:],
        parse({**one_each, "horizon": [7, 10, 5], "trunk": None}).values(TIME)[260:],
    )


@pytest.mark.parametrize("family", BRANCHES)
def test_every_family_shares_the_trunks_epochs_and_no_more(family: str) -> None:
    assert set(BRANCHES) == set(FAMILIES)
    made, trunk = branch(family), trunk_trace()
    trace = made.trace(TIME)
    assert made.begins(TIME) == 260
    keys, theirs = prefix_keys("recipe", trace), prefix_keys("recipe", trunk)
    assert keys[:21] == theirs[:21]
    assert keys[40] != theirs[40]
    np.testing.assert_array_equal(trace.momentum, trunk.momentum)
    np.testing.assert_array_equal(trace.group("bias")[260:], trace.lr[260:])
    assert parse(made.spec) == made
    assert parse(made.spec).trace(TIME) == trace
    assert trace.warmup_fraction == trunk.warmup_fraction


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(BRANCHES)),
    st.sampled_from(sorted(BRANCHES)),
    st.integers(2, 14),
    st.integers(1, 5),
    st.integers(1, 13),
    st.sampled_from([None, 0.004, 0.02]),
)
def test_any_trunk_is_kept_up_to_the_branch(
    family: str, trunk: str, epochs: int, unit: int, at: int, lr: float | None
) -> None:
    time = TimeBase(epochs, unit)
    extra: dict[str, dict[str, Any]] = {
        "cawb": {"steps": [1]},
        "warm_restarts": {"T_0": 2},
        "multistep": {"boundaries": []},
        "exponential": {"gamma": 0.9},
    }
    stem = {"family": trunk, "lr": 0.01, **extra.get(trunk, {})}
    begins = {"steps": [at]} if family == "cawb" else {"from": at}
    more = extra.get(family, {})
    base = {} if lr is None else {"lr": lr}
    try:
        made = parse({"family": family, "trunk": stem, **more, **begins, **base})
        trace = made.trace(time)
    except ScheduleError:
        return
    step = made.begins(time)
    assert step == at * unit
    assert trace.common_prefix(trunk_trace(stem, time)) >= step
    assert all(0 < jump.step < trace.steps for jump in trace.jumps())


def test_without_a_jump_it_is_the_trunk_itself() -> None:
    made = parse({"family": "cawb", "lr": 0.01, "trunk": "yolo_linear", "floor": 0.3, "horizon": "end"})
    assert made.begins(TIME) is None
    assert prefix_keys("recipe", made.trace(TIME)) == prefix_keys("recipe", trunk_trace())


def test_two_branches_share_the_trunk_up_to_the_earlier_one() -> None:
    early, late = branch("cawb", steps=[20]).trace(TIME), branch("cawb", steps=[30]).trace(TIME)
    assert early.common_prefix(late) == 260


def test_a_branch_goes_on_at_the_trunks_lr_unless_it_has_its_own() -> None:
    trunk = parse(LINEAR).values(TIME)
    smooth = branch("cosine")
    values = smooth.values(TIME)
    rest = np.arange(20 * 13)
    expected = 1e-4 + (trunk[260] - 1e-4) * (1 + np.cos(np.pi * rest / 260)) / 2
    np.testing.assert_allclose(values[260:], expected, rtol=1e-14)
    assert values[260] == trunk[260]
    assert smooth.trace(TIME).jumps() == []
    assert smooth.values_at(TIME, np.array([520.0]))[0] == pytest.approx(1e-4)
    higher = branch("cosine", lr=0.019)
    assert higher.values(TIME)[260] == 0.019
    assert [(jump.step, jump.kind) for jump in higher.trace(TIME).jumps()] == [(260, "restart")]
    assert higher.spec["trunk"]["lr"] == 0.01
    assert parse({"family": "cosine", "lr": 0.02, "trunk": "yolo_linear", "from": 20}).spec["trunk"]["lr"] == 0.02
    assert parse({"family": "cawb", "trunk": LINEAR}).spec["lr"] == 0.01


def test_lengths_count_from_the_branch_points_from_the_runs_start_and_shares_are_the_runs() -> None:
    stairs = branch("multistep", boundaries=[20, "30ep", "0.9dur"], gamma=0.5)
    assert [jump.epoch for jump in stairs.trace(TIME).jumps()] == [20, 30, 36]
    assert stairs.values(TIME)[260] == pytest.approx(0.5 * parse(LINEAR).values(TIME)[260])
    held = branch("wsd", decay_length="0.2dur").values(TIME)
    assert len(set(held[260 : 32 * 13 + 1])) == 1
    assert held[32 * 13 + 1] < held[260]
    assert [jump.epoch for jump in branch("warm_restarts", T_0=8).trace(TIME).jumps()] == [28, 36]


def test_whatever_is_a_duration_or_the_trunks_is_known_to_branches() -> None:
    """A family's new key has to be told to branches, too: what it counts from, or that the trunk has it."""
    durations = {"warmup", "steps", "horizon", *LENGTHS, *POSITIONS}
    for name, family in FAMILIES.items():
        for key, rule in family.keys({}).items():
            try:
                is_duration = rule.check(key, "3ep") in ("3ep", 3)
            except ScheduleError:
                try:
                    is_duration = rule.check(key, ["3ep"]) == [3]
                except ScheduleError:
                    is_duration = False
            assert not is_duration or key in durations, f"{name}: {key}"
            assert ("warm" not in key and "momentum" not in key) or key in FROM_TRUNK or key == "warm_restarts", key


def test_groups_keep_their_ratio_and_may_have_their_own_parameters() -> None:
    trunk = {"family": "multistep", "lr": [0.01, 0.001], "boundaries": [10], "warmup": "2ep"}
    made = branch("cawb", trunk, lr=0.02).trace(TIME)
    np.testing.assert_allclose(made.group("1")[260:], 0.1 * made.lr[260:], rtol=1e-6)
    assert made.common_prefix(trunk_trace(trunk)) == 260
    extra = branch("cawb", trunk, lr=0.02, groups={"1": {"lr": 0.005}})
    assert extra.values(TIME, "1")[260] == pytest.approx(0.9 * 0.005)


def test_a_trunk_may_be_a_branch() -> None:
    inner = branch("cosine", lr=0.02).spec
    made = parse({"family": "cawb", "trunk": inner, "steps": [30], "step_scale": 1.5, "horizon": "end"})
    assert made.trace(TIME).common_prefix(trunk_trace(inner)) == 390
    assert [jump.epoch for jump in made.trace(TIME).jumps()] == [20, 30]
    assert made.warmup_steps(TIME) == 39
    assert made.values(TIME)[390] == 0.01 * 1.5
    deep: Any = "yolo_linear"
    for _ in range(6):
        deep = {"family": "constant", "from": 20, "trunk": deep}
    with pytest.raises(ScheduleError, match="a branch of a branch 5 times; expected at most 4"):
        parse({**deep, "lr": 0.1})


def test_an_articles_staircase_can_be_a_trunk() -> None:
    article = {"family": "cawb", "lr": 0.02, "mode": "article", "steps": [8, 21], "warmup": "1ep", "epoch_scale": 4}
    made = branch("cosine", article).trace(TIME)
    assert made.common_prefix(trunk_trace(article)) >= 260
    assert [jump.epoch for jump in made.jumps()] == [10]


@pytest.mark.parametrize(
    ("family", "more", "message"),
    [
        ("cawb", {"steps": [2]}, r"cawb: steps: 2 is inside the trunk's warm-up, which ends after 3 epochs"),
        ("cawb", {"steps": [3]}, r"steps: 3 is inside the trunk's warm-up"),
        ("cawb", {"steps": [40]}, "steps: 40 is outside the run"),
        ("cawb", {"from": 20}, "cawb: from: a CAWB branch begins at the first of its steps"),
        ("cawb", {"mode": "article"}, "mode: article has a warm-up of its own and cannot begin at a trunk"),
        ("cawb", {"mode": "reference"}, "mode: reference has a warm-up of its own"),
        ("cawb", {"warmup": "3ep"}, "warmup: given beside trunk; a branch has its trunk's warm-up and momentum"),
        ("cawb", {"horizon": [1]}, "horizon: 1 lengths do not fit 2 distinct steps; expected one each"),
        ("yolo_cosine", {"momentum": 0.9}, "momentum: given beside trunk"),
        ("cosine", {"from": "2ep"}, "cosine: from: 2ep is inside the trunk's warm-up, which ends after 3 epochs"),
        ("cosine", {"from": "40ep"}, "from: 40ep is outside the run; expected epochs above 0 and below 40"),
        ("cosine", {"from": 20.5}, "from: 20.5ep is not a whole number of epochs; expected for example 20ep"),
        ("cosine", {"from": 0}, "from: 0 is not allowed; expected a duration above 0"),
        ("cosine", {"from": None}, "from: None is not a duration"),
        ("cosine", {"trunk": "yolo_liner", "lr": 1}, "cosine: trunk: family: 'yolo_liner'.*did you mean 'yolo_linear'"),
        ("cosine", {"trunk": "yolo_linear"}, "cosine: trunk: yolo_linear: lr is missing"),
        ("cosine", {"trunk": [1]}, r"trunk: '\[1\]' is not a schedule; expected a family's name"),
        ("cosine", {"trunk": {"family": "counterfactual", "of": LINEAR}}, "trunk: counterfactual is a control run"),
        (
            "cosine",
            {"trunk": {"family": "cawb", "lr": 1, "mode": "reference", "last_epoch": 3}},
            "trunk: last_epoch: a trunk begins with the run",
        ),
        ("cosine", {"trunk": {"family": "constant", "lr": 0.1, "warmup": "25ep"}}, "inside the trunk's warm-up, .* 25"),
        ("cosine", {"trunk": {"family": "cosine", "lr": 1, "T_max": 20}}, "the trunk's LR is 0 there"),
        ("multistep", {"boundaries": [10]}, "boundaries: 10 is before the branch, which begins after 20 epochs"),
        ("wsd", {"from": 36}, r"decay_length: 8ep .* \(the branch from 36ep has 4 epochs\)"),
    ],
)
def test_what_cannot_be_a_branch_is_said_in_one_line(family: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError, match=message) as caught:
        branch(family, **more).trace(TIME)
    assert "\n" not in str(caught.value)


def test_from_needs_a_trunk() -> None:
    with pytest.raises(ScheduleError, match="cosine: from: is allowed in a branch only; expected trunk: beside it"):
        parse({"family": "cosine", "lr": 1, "from": 3})
    with pytest.raises(ScheduleError, match="from is missing; it has no default"):
        parse({"family": "cosine", "trunk": LINEAR})


def test_a_control_run_of_a_branch_begins_with_its_trunk() -> None:
    made = branch("cawb", steps=[20])
    without = parse({"family": "counterfactual", "of": made.spec, "restart": 1}).trace(TIME)
    assert without.common_prefix(trunk_trace()) == 260
    assert without.jumps() == []
    lower = branch("cawb", steps=[20], step_scale=0.8)
    peak = parse({"family": "matched_peak", "of": lower.spec, "restart": 1}).trace(TIME)
    assert peak.warmup_fraction == pytest.approx(trunk_trace().warmup_fraction, abs=1 / 520)
    assert peak.peak == pytest.approx(0.008)
