"""Properties of schedules and traces: what clean CAWB means, canonical traces, jumps, prefix keys, bad input."""

import hashlib
import json
import math
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper import names
from sweeper.errors import ScheduleError, SweeperError, TrackingError
from sweeper.schedules import CONTROLS, FAMILIES, Duration, TimeBase, Trace, label, parse, prefix_keys, text_params
from sweeper.schedules.decay import expression

SPECS: dict[str, dict[str, Any]] = {
    "cawb": {"steps": [10, 20], "warmup": "2ep", "step_scale": 0.7},
    "cosine": {"warmup": 1},
    "warm_restarts": {"T_0": 10, "step_scale": 0.8},
    "multistep": {"boundaries": [10, 20]},
    "yolo_linear": {},
    "yolo_cosine": {},
    "onecycle": {},
    "wsd": {"warmup": "1ep", "decay": "1-sqrt"},
    "polynomial": {"power": 2},
    "exponential": {"gamma": 0.95},
    "constant": {},
}


def spec(family: str, **more: Any) -> dict[str, Any]:
    return {"family": family, "lr": 0.1, **SPECS[family], **more}


def test_every_family_is_tested() -> None:
    assert set(SPECS) == set(FAMILIES)


# ---- what a schedule is called ------------------------------------------------------------------------------------


def every_spec() -> list[dict[str, Any]]:
    """A schedule of every family, CAWB in its modes, parameter groups, expressions, and controls of a restart."""
    cawb = spec("cawb", horizon="end")
    results = [*(spec(family) for family in FAMILIES), cawb]
    results += [spec("cawb", decay="cos(pi*x/y)/2+1/2", step_scale=[0.7, 0.5])]
    results += [spec("cawb", mode=mode) for mode in ("article", "reference")]
    results += [spec("cosine", groups={"bias": {"lr": 0.2}})]
    results += [{"family": family, "of": spec("cawb", step_scale=1), "restart": 1} for family in CONTROLS]
    return [parse(one).spec for one in results]


@pytest.mark.parametrize("written", every_spec(), ids=lambda written: written["family"])
def test_every_parameter_of_a_schedule_is_a_param_of_its_run_and_no_fact_takes_its_name(
    written: dict[str, Any],
) -> None:
    run = parse(written).trace(TimeBase(40, 10))
    params = names.params(text_params(written), run.facts(), 3)
    assert {name: params[name] for name in text_params(written)} == text_params(written)
    assert {name: params[f"trace/{name}"] for name in run.facts()} == run.facts()
    assert params["seed"] == 3
    assert len(params) == len(text_params(written)) + len(run.facts()) + 1
    for name in params:
        names.check("param", name)
    tree: dict[str, Any] = {}
    for name, text in text_params(written).items():  # everything reads back from the params
        *above, last = name.split(".")
        below = tree
        for key in above:
            below = below.setdefault(key, {})
        below[last] = yaml.safe_load(text)
    assert parse(tree) == parse(written)


@pytest.mark.parametrize("name", ["seed", "trace/steps", "trace/else"])
def test_a_parameter_with_the_name_of_a_fact_is_refused(name: str) -> None:
    with pytest.raises(TrackingError, match=f"param '{name}'"):
        names.params({"family": "new", name: "1"}, {"steps": 220}, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_label_is_the_family_and_what_is_not_its_default(family: str) -> None:
    assert label(parse(spec(family)).spec, {"lr": 0.1}).split(" ")[0] == family
    defaults = {key: default for key, default in SPECS[family].items() if key in ("T_0", "boundaries", "gamma")}
    assert label(parse({"family": family, "lr": 0.1, **defaults}).spec, {"lr": "1e-1", **defaults}) == family


def test_a_label_leaves_out_what_does_nothing() -> None:
    held = {"lr": 0.1, "horizon": "end", "step_scale": 0.7}
    assert label(spec("cawb", horizon="end", steps=[]), held) == "cawb warmup=2ep"
    scaled = parse(spec("cawb", steps=[], step_scale=[0.9])).spec  # of the first cycle
    assert label(scaled, {"lr": 0.1}) == "cawb step_scale=[0.9] warmup=2ep"
    assert label(parse(spec("cawb", step_scale=[0.7, 1.0])).spec, held) == (
        "cawb steps=[10,20] step_scale=[0.7,1] warmup=2ep horizon=none"
    )
    branch = parse({"family": "cawb", "trunk": spec("yolo_linear"), "steps": [20], "step_scale": 1}).spec
    assert label(branch, {"lr": 0.1}) == "cawb trunk=(yolo_linear) steps=[20] step_scale=1"
    assert label(branch, {"lr": 0.1, "trunk": branch["trunk"]}) == "cawb steps=[20] step_scale=1"
    alone = parse({"family": "cawb", "lr": 0.1, "steps": [20]}).spec
    assert label(alone, {"lr": 0.1, "trunk": branch["trunk"]}) == "cawb trunk=none steps=[20]"
    grouped = parse({"family": "constant", "lr": [0.1, 0.2]}).spec
    assert label(grouped, {"lr": 0.1}) == "constant groups.1.lr=0.2"


# ---- clean CAWB -------------------------------------------------------------------------------------------------


def clean(t: float, run: dict[str, Any], end: int) -> float:
    """The formula of clean mode for one moment, written as it is read."""
    w, edges = run["warmup"], sorted(set(run["steps"]))
    if t < w:
        return run["lr"] * (run["warmup_start"] + (1 - run["warmup_start"]) * t / w)
    starts = [w, *edges]
    i = sum(1 for x in edges if x <= t)
    ends = [*edges, end]
    stretch = run["epoch_scale"] if i < len(edges) else 1
    u = min(max((t - starts[i]) / (stretch * (ends[i] - starts[i])), 0), 1)
    return run["lr"] * run["step_scale"] ** i * ((1 + math.cos(math.pi * u)) / 2 * (1 - run["floor"]) + run["floor"])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_clean_is_its_formula(data: st.DataObject) -> None:
    end, unit = data.draw(st.integers(2, 30)), data.draw(st.integers(1, 9))
    warmup = data.draw(st.integers(0, end - 2))
    number = st.floats(0.05, 4)
    run = {
        "lr": 0.1,
        "warmup": warmup,
        "steps": data.draw(st.lists(st.integers(warmup + 1, end - 1), max_size=4)),
        "step_scale": data.draw(number),
        "epoch_scale": data.draw(number),
        "floor": data.draw(st.floats(0, 1)),
        "warmup_start": data.draw(st.floats(0, 1)),
    }
    granularity = data.draw(st.sampled_from(["step", "epoch"]))
    values = parse({"family": "cawb", "granularity": granularity, **run}).values(TimeBase(end, unit))
    hold = unit if granularity == "epoch" else 1
    expected = [clean(k // hold * hold / unit, run, end) for k in range(end * unit)]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)


def test_a_restart_is_exact_and_at_full_height() -> None:
    run = parse(spec("cawb", floor=0.0))
    values, trace = run.values(TimeBase(30, 5)), run.trace(TimeBase(30, 5))
    assert values[50] == pytest.approx(0.07, abs=1e-15)
    assert values[100] == pytest.approx(0.049, abs=1e-15)
    assert [(j.step, j.epoch, j.kind) for j in trace.jumps()] == [(50, 10, "restart"), (100, 20, "restart")]
    assert trace.peak == np.float32(0.1)  # never above the base because of the warm-up


@pytest.mark.parametrize(("stretch", "kind"), [(1, "restart"), (4, "drop")])
def test_kind_of_jump_is_known_before(stretch: float, kind: str) -> None:
    """Up when step_scale * shape(0) > shape(1/stretch)."""
    jumps = parse(spec("cawb", floor=0.35, epoch_scale=stretch)).trace(TimeBase(30, 20)).jumps()
    assert [jump.kind for jump in jumps] == [kind] * 2


def test_a_kink_is_no_jump() -> None:
    """A cycle that begins where the last one ended changes the slope only."""
    run = spec("cawb", decay="linear", floor=0.5, step_scale=0.5, warmup=0, steps=[10])
    assert parse(run).trace(TimeBase(30, 20)).jumps() == []


def test_a_break_between_two_steps_is_at_the_next_one() -> None:
    run = {"family": "cawb", "lr": 1, "steps": ["3it", 2.1], "decay": "linear", "floor": 0.5}
    assert parse(run).trace(TimeBase(4, 4)).marks == (3, 9)
    assert parse({**run, "step_scale": 0.5}).trace(TimeBase(4, 4)).marks == ()  # each goes on where the last one ended


def test_the_trapezoid_is_held_until_its_decay_begins() -> None:
    run = parse({"family": "wsd", "lr": 1, "warmup": "2it", "decay_length": 1})
    assert run.values(TimeBase(3, 2)).tolist() == [0.0, 0.5, 1.0, 1.0, 1.0, 0.5]


def test_horizon_shares_the_beginning() -> None:
    """What comes before a restart does not depend on when it comes, nor on whether it comes."""
    time = TimeBase(40, 10)
    base = {"family": "cawb", "lr": 0.1, "warmup": 2, "horizon": "end"}
    runs = [parse({**base, "steps": steps}).trace(time) for steps in ([], [10], [25], [10, 25])]
    assert [runs[0].common_prefix(run) for run in runs[1:]] == [100, 250, 100]
    assert runs[1].common_prefix(runs[3]) == 250
    cut = parse({**base, "horizon": [6, 30, "end"], "steps": [10, 25], "step_scale": [0.9, 0.5]})
    values = cut.values(time)
    assert values[99] == pytest.approx(0.005)  # 6 epochs of decay, then held at the floor
    assert (values[100], values[250]) == (pytest.approx(0.09), pytest.approx(0.045))
    assert values[249] > values[399]


def test_one_factor_more_scales_the_first_cycle() -> None:
    run = spec("cawb", steps=[10], warmup=0)
    assert parse({**run, "step_scale": [0.5, 0.5]}).values(TimeBase(20, 1))[[0, 10]].tolist() == [0.05, 0.025]


def test_past_the_end_it_stays() -> None:
    late = parse(spec("cawb", horizon=50)).values_at(TimeBase(30, 2), np.asarray([60.0, 61.0, 1e6]))
    assert late[0] == late[1] == late[2] > 0.005 * 0.49


def test_groups_have_their_own_parameters() -> None:
    run = parse(spec("cawb", groups={"bias": {"lr": 0.2}, "same": {"lr": 0.1}}))
    trace = run.trace(TimeBase(30, 2))
    assert list(trace.groups) == ["bias"]
    np.testing.assert_array_equal(trace.group("bias"), (run.values(TimeBase(30, 2)) * 2).astype(np.float32))
    assert trace.group("same") is trace.lr
    listed = parse(spec("cosine", lr=[0.1, 0.2]))
    assert listed == parse(spec("cosine", groups={"1": {"lr": 0.2}}))


# ---- durations --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(1, 9), st.sampled_from(["3ep", "0ep", "1.3ep", "7it", "0.5dur", "90ep"]))
def test_the_trainers_warmup_is_that_of_yolo(epochs: int, unit: int, warmup: str) -> None:
    time = TimeBase(epochs, unit)
    extra = {"warmup": warmup, "warmup_bias_lr": 0.2, "warmup_momentum": 0.7, "momentum": 0.9}
    held = parse({"family": "yolo_linear", "lr": 0.1, "lrf": 1, **extra})  # no decay: what is left is the warm-up
    flat = parse({"family": "cawb", "lr": 0.1, "warmup_kind": "trainer", "decay": "constant", **extra})
    assert flat.trace(time) == held.trace(time)
    assert flat.warmup_steps(time) == held.warmup_steps(time)
    made = parse({"family": "cawb", "lr": 0.1, "warmup_kind": "trainer", **extra})
    assert made.trace(time).common_prefix(held.trace(time)) >= held.warmup_steps(time)
    plain = parse({"family": "cawb", "lr": 0.1, "warmup": f"{held.warmup_steps(time)}it"})
    np.testing.assert_array_equal(made.values(time), plain.values(time))
    assert made.trace(time).jumps() == []


def test_the_trainers_warmup_has_the_trainers_defaults() -> None:
    time = TimeBase(40, 13)
    made = parse({"family": "cawb", "lr": 0.01, "warmup_kind": "trainer"})
    yolo = parse({"family": "yolo_linear", "lr": 0.01})
    assert {key: made.params[key] for key in ("warmup", "warmup_bias_lr", "warmup_momentum", "momentum")} == {
        key: yolo.params[key] for key in ("warmup", "warmup_bias_lr", "warmup_momentum", "momentum")
    }
    np.testing.assert_array_equal(made.trace(time).momentum, yolo.trace(time).momentum)
    assert made.trace(time).group("bias")[0] == np.float32(0.1)
    assert parse({"family": "cawb", "lr": 0.01}).trace(time).momentum is None


def test_units_mean_the_same_time() -> None:
    time = TimeBase.from_images(6400, 64, epochs=50)
    written = [5, "5ep", "500it", "32000img", "0.1dur"]
    assert {Duration.parse(text).steps(time) for text in written} == {500.0}
    traces = {parse(spec("multistep", boundaries=[text])).trace(time).digest for text in written}
    assert len(traces) == 1
    with pytest.raises(ScheduleError, match="32000img: images need a time base"):
        Duration.parse("32000img").steps(TimeBase(3, 4))


@given(st.integers(1, 1000), st.integers(1, 3000))
def test_a_boundary_is_its_step(boundary: int, unit: int) -> None:
    """k/n epochs of n steps are k steps, whatever the floats say."""
    assert Duration.parse(boundary / unit).steps(TimeBase(1, unit)) == boundary


# ---- traces -----------------------------------------------------------------------------------------------------


def find_jumps(trace: Trace) -> tuple[int, ...]:
    """Steps at which the values alone look like a break, to hold the families' own marks against.

    The trace is read as levels (runs of equal values). A change of level counts if it is at least 0.1 % of the LR and
    both levels last longer than an epoch, or it is more than 4 times as large as each of the next two changes on either
    side. The first rise of a warm-up from 0 does not count.
    """
    starts = np.r_[0, np.flatnonzero(np.diff(trace.lr)) + 1]
    levels, held = trace.lr[starts].astype(np.float64), np.diff(np.r_[starts, trace.steps])
    change = np.abs(np.diff(levels))
    if not len(change):
        return ()
    padded = np.r_[0.0, 0.0, change, 0.0, 0.0]
    n = len(change)
    near = np.max([padded[i : i + n] for i in (0, 1, 3, 4)], axis=0)
    stair = (held[:-1] > trace.steps_per_epoch) & (held[1:] > trace.steps_per_epoch)
    jump = ((change > 4 * near) & (near > 0) | stair) & (change > 1e-3 * levels[:-1]) & (levels[:-1] > 0)
    return tuple(int(step) for step in starts[1:][jump])


@pytest.mark.parametrize("family", SPECS)
def test_round_trip_and_jumps(family: str) -> None:
    schedule, time = parse(spec(family)), TimeBase(30, 50)
    assert parse(json.loads(json.dumps(schedule.spec))) == schedule
    assert parse(yaml.safe_load(yaml.safe_dump(schedule.spec))) == schedule
    assert hash(parse(schedule.spec)) == hash(schedule)
    assert parse(schedule) is schedule
    trace = schedule.trace(time)
    assert trace.lr.dtype == np.float32
    assert trace.lr.shape == (1500,)
    np.testing.assert_array_equal(trace.lr, schedule.values(time).astype(np.float32))
    expected = {"cawb": 2, "warm_restarts": 2, "multistep": 2}.get(family, 0)
    assert len(trace.jumps()) == expected
    blind = Trace(trace.lr, trace.groups, trace.momentum, 50, 30)
    assert blind == trace
    if not family.startswith("yolo"):  # the lerp to a moving target has breaks that are no restart
        assert find_jumps(blind) == tuple(jump.step for jump in trace.jumps())


@pytest.mark.parametrize("mode", ["reference", "article"])
def test_an_epoch_late_is_where_the_reference_jumps(mode: str) -> None:
    trace = parse(spec("cawb", mode=mode)).trace(TimeBase(30, 10))
    assert [jump.step for jump in trace.jumps()] == [120, 220] == list(find_jumps(trace))


def test_held_stairs_are_no_jumps() -> None:
    for family in ("cosine", "polynomial", "exponential"):
        trace = parse(spec(family, granularity="epoch")).trace(TimeBase(30, 10))
        assert trace.jumps() == []
        assert find_jumps(trace) == ()


def test_resumed_rows_are_the_published_loops() -> None:
    """A resume warms up again and begins at the base: the rows are not those of the uninterrupted run."""
    run, time = spec("cawb", mode="reference", steps=[10, 20], warmup=2), TimeBase(30, 4)
    whole, resumed = parse(run).trace(time), parse({**run, "last_epoch": 12}).trace(time)
    assert (resumed.epochs, resumed.steps) == (18, 72)
    assert resumed.lr[0] == 0
    np.testing.assert_array_equal(resumed.lr[8:], whole.lr[56:])
    assert [jump.step for jump in resumed.jumps()] == [40]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 119), st.booleans())
def test_keys_are_shared_exactly_as_far_as_the_steps(epochs: int, unit: int, change: int, bias: bool) -> None:
    steps = epochs * unit
    lr = np.linspace(0.1, 0.2, steps)
    other = np.where(np.arange(steps) >= change, lr * 1.5, lr)
    groups = {"bias": other} if bias else {}
    one, two = Trace(lr, {}, None, unit, epochs), Trace(lr if bias else other, groups, None, unit, epochs)
    same = min(change, steps)
    assert one.common_prefix(two) == same
    a, b = prefix_keys("root", one), prefix_keys("root", two)
    assert [x == y for x, y in zip(a, b, strict=True)] == [e * unit <= same for e in range(epochs + 1)]
    assert (one == two) == (same == steps)
    assert a[0] == hashlib.sha256(b"root").hexdigest()
    assert a[1] == hashlib.sha256(bytes.fromhex(a[0]) + one.chunk(0)).hexdigest()
    assert prefix_keys("other", one)[0] != a[0]


def test_names_and_values_cannot_run_into_each_other() -> None:
    """Different contents never have the same bytes: momentum is not a group's LR, zero has one sign."""
    lr = [0.5, 0.25]
    one = Trace(lr, {"momentum": [0.9, 0.9]}, None, 1, 2)
    two = Trace(lr, {}, [0.9, 0.9], 1, 2)
    assert one.chunk(0) != two.chunk(0)
    assert Trace([0.0]).digest == Trace([-0.0]).digest
    assert Trace(lr, steps_per_epoch=2).digest != Trace(lr, epochs=2).digest


def test_the_bits_of_cycles_of_broken_length_stay() -> None:
    """States that were stored under such a trace's prefix keys are found again."""
    spec = {
        "family": "warm_restarts",
        "lr": 0.037,
        "T_0": "1.1ep",
        "step_scale": 0.5,
        "eta_min": 0.002,
        "warmup": "1ep",
    }
    assert parse(spec).trace(TimeBase(epochs=110, steps_per_epoch=3)).digest.startswith("5cbad153dee357cd")


def test_a_trace_cannot_be_written() -> None:
    given = np.asarray([0.1, 0.2], np.float32)
    trace = Trace(given, epochs=2)
    given[0] = 1
    assert trace.lr[0] == np.float32(0.1)
    with pytest.raises(ValueError, match="read-only"):
        trace.lr[0] = 1


@pytest.mark.parametrize(
    ("lr", "message"), [([0.1], "expected 2"), ([0.1, np.nan], "at step 1"), ([-1, 0], "at step 0")]
)
def test_a_trace_is_finite_and_whole(lr: list[float], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        Trace(lr, epochs=2)


def test_facts() -> None:
    facts = parse(spec("cawb", floor=0)).trace(TimeBase(30, 10)).facts()
    assert facts["restarts"] == 2
    assert facts["warmup_fraction"] == pytest.approx(2 / 30)
    assert facts["integral"] == pytest.approx(0.1 * (1 + 4 + 3.5 + 2.45), abs=0.1)


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"step_scale": 0}, "step_scale: 0 is not allowed; expected a number > 0"),
        ({"epoch_scale": -1}, "epoch_scale: -1 is not allowed"),
        ({"step_scal": 1}, "known are lr, .*did you mean 'step_scale'"),
        ({"steps": 31}, "steps: 31 is not a list"),
        ({"steps": ["soon"]}, r"steps\[0\]: 'soon' is not a duration"),
        ({"steps": [31]}, "steps: 31.* is outside the run; expected epochs above 0 and below 30"),
        ({"steps": [30]}, "outside the run"),
        ({"steps": [2]}, "steps: 2.* is not after the warm-up of 2ep"),
        ({"warmup": "30ep", "steps": []}, "warmup: 30ep leaves nothing"),
        ({"lr": float("nan")}, "lr: nan is not allowed"),
        ({"lr": True}, "lr: True is not allowed"),
        ({"lr": None}, "lr: None is not allowed"),
        ({"decay": "cosin"}, "decay.*'cosin' is not known; .*did you mean 'cosine'"),
        ({"decay": "exponential", "floor": 0}, "floor: 0 is not allowed; expected a number > 0"),
        ({"mode": "Clean"}, "mode: 'Clean' is not known; expected clean or article or reference"),
        ({"horizon": 5, "epoch_scale": 2}, "horizon: given beside epoch_scale"),
        ({"horizon": [1, 2]}, "horizon: 2 lengths do not fit 3 cycles"),
        ({"step_scale": [0.5]}, "step_scale: 1 factors do not fit 2 distinct steps"),
        ({"last_epoch": 3}, "last_epoch is not a parameter"),
        ({"groups": {"bias": {"mode": "article"}}}, "mode is one for all groups"),
        ({"warmup_kind": "yolo"}, "warmup_kind: 'yolo' is not known; expected lr or trainer"),
        ({"warmup_kind": "trainer", "mode": "article"}, "warmup_kind: mode article has a warm-up of its own"),
        ({"warmup_kind": "trainer", "warmup_start": 0.1}, "warmup_start is not a parameter"),
        ({"warmup_bias_lr": 0.1}, "warmup_bias_lr is not a parameter"),
        ({"groups": {"bias": {"warmup_kind": "trainer"}}}, "warmup_kind is one for all groups"),
        ({"groups": {"bias": {"momentum": 1}}}, "groups.bias: momentum is not a parameter"),
        ({"groups": [1]}, "groups: '.1.' is not allowed"),
        ({"decay": "0.5-u"}, r"LR is -.* at step \d+ \(epoch \d+\); expected a finite number"),
        ({"decay": "(0.5-u)**0.5"}, "LR is nan .complex, undefined or infinite. at step"),
        ({"decay": "1/u"}, "LR is nan .* at step 8 "),
    ],
)
def test_bad_parameters_name_themselves(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError, match=message) as caught:
        parse(spec("cawb", **more)).trace(TimeBase(30, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "x.real",
        "(lambda: 1)()",
        "[x for x in y]",
        "z+1",
        "x if y else u",
        "x < y",
        "cos",
        "cos(x, key=1)",
        "cos(x, y)",
        "open(x)",
        "'a'*9",
        "x**99999999",
        "9**9**9**9",
        "1e999",
        "1j*x",
        "True",
        "x//y",
        "x%y",
        "x@y",
        "~x",
        "x\n+y;y",
        "",
        "(" * 300 + "x" + ")" * 300,
        "+".join("x" * 190),
        "x" * 5000,
        "1" * 399,
        "f'{x}'",
        "x:=1",
        "\0",
    ],
)
def test_only_arithmetic_is_read(text: str) -> None:
    with pytest.raises(ScheduleError):
        parse(spec("cawb", decay=text))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="xyu0123456789.e+-*/() cosqrtminpialg,_[]", max_size=40))
def test_an_expression_is_finite_or_refused(text: str) -> None:
    try:
        values = expression(text)(np.linspace(0, 5, 7), 5.0)
    except ScheduleError:
        return
    assert values.shape == (7,)
    assert np.all(np.isfinite(values) | np.isnan(values))


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 40),
    st.floats(allow_nan=True),
    st.floats(0, 2),
    st.sampled_from(
        ["3ep", "40it", "0.1dur", "9img", "end", "1e-3", "linear", "exponential", "1-u", "epoch", "trainer", ""]
    ),
    st.lists(st.one_of(st.integers(-1, 12), st.floats(0, 2), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
WORDS = sorted(
    {key for family in FAMILIES for key in FAMILIES[family].keys({"decay": "linear"})} | {"last_epoch", "from"}
)
TRUNK = st.sampled_from([None, None, "yolo_linear", {"family": "cosine", "lr": 0.2, "warmup": 1}, {}, [1], "end"])


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from([*FAMILIES, *["cawb"] * 9]),
    st.dictionaries(st.sampled_from(WORDS), ODD, max_size=4),
    st.one_of(
        st.none(), st.dictionaries(st.text(max_size=4), st.dictionaries(st.sampled_from(WORDS), ODD, max_size=2))
    ),
    st.sampled_from(["clean", "article", "reference"]),
    st.integers(1, 14),
    st.integers(1, 5),
    TRUNK,
)
def test_a_typed_error_or_a_finite_trace(
    family: str, odd: dict[str, Any], groups: Any, mode: str, epochs: int, unit: int, trunk: Any
) -> None:
    small = {**SPECS[family], **({"steps": [3, 6], "mode": mode} if family == "cawb" else {})}
    written = {"family": family, "lr": 0.1, **small, **odd, "groups": groups, "trunk": trunk}
    try:
        schedule = parse(written)
        assert parse(schedule.spec) == schedule
        trace = schedule.trace(TimeBase(epochs, unit))
    except SweeperError:
        return
    for values in (trace.lr, *trace.groups.values()):
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert all(0 < jump.step < trace.steps for jump in trace.jumps())
    assert parse(schedule.spec).trace(TimeBase(epochs, unit)) == trace


@pytest.mark.parametrize("junk", [None, 3, "cawb", [], {}, {"family": 3}, {"family": "cawbb", "lr": 1}, {1: 2}])
def test_not_a_schedule(junk: Any) -> None:
    with pytest.raises(ScheduleError):
        parse(junk)
