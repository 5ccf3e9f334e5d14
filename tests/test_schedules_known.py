"""Schedules agree with what they are named after, before the rounding to float32."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.errors import ScheduleError
from sweeper.schedules import TimeBase, parse
from sweeper.schedules.cawb import formula

TOLERANCE = 1e-12


class Stepped:
    """The published CAWB scheduler, one call at a time, as SCHEDULES.md describes it; the oracle of this file."""

    def __init__(self, lrs: list[float], arguments: dict[str, Any], decay: Any, multiply: bool) -> None:
        self.base, self.lr, self.decay, self.multiply = list(lrs), list(lrs), decay, multiply
        self.first, self.calls, self.batches, self.gap = arguments["last_epoch"], 0, 0, 0.0
        warm, end = arguments["warmup"], arguments["epochs"]
        self.bounds = [warm] + [x for x in sorted(arguments["steps"]) if warm < x < end] + [end]
        self.warmup = arguments["batches"] * warm
        self.scale, self.stretch = arguments["step_scale"], arguments["epoch_scale"]

    def step(self) -> None:
        k, factor = self.first + self.calls, 1.0
        self.calls += 1
        x: float = k
        for i in range(len(self.bounds) - 1):
            if k <= self.bounds[i + 1]:
                self.gap = self.bounds[i + 1] - self.bounds[i]
                x = k - self.bounds[i]
                if i < len(self.bounds) - 2:
                    self.gap = self.gap * self.stretch if self.multiply else self.gap + self.stretch
                break
            factor *= self.scale
        self.lr = [factor * base * self.decay(x, self.gap) for base in self.base]

    def step_batch(self) -> None:
        if self.batches < self.warmup:
            self.lr = [base * (self.batches / self.warmup) for base in self.base]
        self.batches += 1


def stepped(arguments: dict[str, Any], lrs: list[float], decay: Any, multiply: bool) -> list[list[list[float]]]:
    run, rows = Stepped(lrs, arguments, decay, multiply), []
    for _ in range(arguments["last_epoch"], arguments["epochs"]):
        row = []
        for _ in range(arguments["batches"]):
            run.step_batch()
            row.append(list(run.lr))
        run.step()
        rows.append(row)
    return rows


def spec_of(arguments: dict[str, Any], lrs: list[float], mode: str) -> dict[str, Any]:
    keys = ("steps", "step_scale", "epoch_scale", "warmup")
    spec = {"family": "cawb", "mode": mode, "lr": lrs, **{key: arguments[key] for key in keys}}
    return spec | ({"last_epoch": arguments["last_epoch"]} if mode == "reference" else {})


def cosine(x: float, y: float) -> float:
    return (1 + math.cos(x * math.pi / y)) / 2 * 0.95 + 0.05


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "epochs": st.integers(1, 40),
            "batches": st.integers(1, 7),
            "steps": st.lists(st.one_of(st.integers(-3, 45), st.floats(0, 45)), max_size=6),
            "step_scale": st.floats(0.1, 1.5),
            "epoch_scale": st.one_of(st.integers(-30, 30), st.floats(-30, 30)),
            "warmup": st.one_of(st.integers(0, 5), st.floats(0, 45)),
            "last_epoch": st.integers(0, 50),
        }
    ),
    st.lists(st.floats(1e-4, 1), min_size=1, max_size=3),
)
def test_reference_is_the_published_code(arguments: dict[str, Any], lrs: list[float]) -> None:
    """Fractional warm-up, negative epoch_scale, duplicate steps, resumes, several groups: the same to 1e-12."""
    arguments["steps"] = [abs(x) for x in arguments["steps"]]
    time = TimeBase(arguments["epochs"], arguments["batches"])
    schedule = parse(spec_of(arguments, lrs, "reference"))
    if arguments["last_epoch"] >= arguments["epochs"]:
        with pytest.raises(ScheduleError, match="last_epoch"):
            schedule.values(time)
        return
    try:
        expected = np.asarray(stepped(arguments, lrs, cosine, multiply=False))
    except ZeroDivisionError:
        with pytest.raises(ScheduleError, match="divides by zero"):
            schedule.values(time)
        return
    for index in range(len(lrs)):
        values = schedule.values(time, "main" if index == 0 else str(index))
        np.testing.assert_allclose(values.reshape(expected.shape[:2]), expected[:, :, index], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mode", ["article", "reference"])
@pytest.mark.parametrize("warmup", [0, 2, 2.5])
def test_a_linear_decay_overshoots_and_is_followed(mode: str, warmup: float) -> None:
    given = {"epochs": 20, "batches": 3, "steps": [7, 12], "step_scale": 0.7, "epoch_scale": 3.0, "warmup": warmup}
    given["last_epoch"] = 0
    expected = stepped(given, [0.1], lambda x, y: 1 - x / y, multiply=mode == "article")
    values = parse(spec_of(given, [0.1], mode) | {"decay": "1-x/y"}).values(TimeBase(20, 3))
    np.testing.assert_allclose(values, np.ravel(expected), rtol=0, atol=TOLERANCE)
    assert (values.max() > 0.1) == (warmup > 0)


def test_the_formula_goes_on_past_the_end() -> None:
    given = {"epochs": 10, "batches": 1, "steps": [4, 4], "step_scale": 0.7, "epoch_scale": -1.5, "warmup": 0}
    run, expected = Stepped([0.1], {**given, "last_epoch": 0}, cosine, False), []
    for _ in range(30):
        run.step()
        expected.append(run.lr[0])
    run_of = {"family": "cawb", "mode": "reference", "lr": 0.1, "steps": [4, 4], "step_scale": 0.7, "epoch_scale": -1.5}
    values = formula(parse(run_of).params, TimeBase(10, 1), np.arange(30.0))
    np.testing.assert_allclose(values, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("more", "why"),
    [({"warmup": 5}, "as long as the run"), ({"steps": [3], "epoch_scale": -3}, "epoch_scale -3")],
)
def test_where_the_reference_divides_by_zero(more: dict[str, Any], why: str) -> None:
    with pytest.raises(ScheduleError, match=f"divides by zero.*{why}"):
        parse({"family": "cawb", "mode": "reference", "lr": 0.1, **more}).values(TimeBase(5, 1))


def oracle(shared: Path, name: str) -> Any:
    return json.loads((shared / "oracles" / name).read_text())


def test_published_configurations(shared: Path) -> None:
    known = oracle(shared, "cawb.json")
    for mode, runs in (("reference", known["configs"]), ("article", known["article_variant"])):
        for run in runs:
            a = run["args"]
            spec = {
                "family": "cawb",
                "mode": mode,
                "lr": run["base_lr"],
                "steps": a["steps"],
                "warmup": a["warmup_epoch"],
            }
            spec |= {"step_scale": a["step_scale"], "epoch_scale": a.get("epoch_scale", 1.0)}
            spec |= {"decay": run["lf_expr"]} if "lf" in a else {"floor": a["eta_min"]}
            schedule, time = parse(spec), TimeBase(a["epochs"], a["batchs"])
            for index in range(len(run["base_lr"])):
                values = schedule.values(time, "main" if index == 0 else str(index)).reshape(a["epochs"], -1)
                for column, key in ((0, "per_epoch_first"), (-1, "per_epoch_last")):
                    expected = np.asarray(run[key])[:, index]
                    np.testing.assert_allclose(values[:, column], expected, rtol=0, atol=TOLERANCE)
                if index == 0 and "per_iter" in run:
                    np.testing.assert_allclose(values, run["per_iter"], rtol=0, atol=TOLERANCE)


def test_the_articles_figure() -> None:
    """Steps 31 and 81 of 150, step_scale 0.7, floor 0.35, epoch_scale 4: a staircase of two drops."""
    spec = {"family": "cawb", "mode": "article", "lr": 0.1, "steps": [31, 81], "step_scale": 0.7, "floor": 0.35}
    trace = parse({**spec, "epoch_scale": 4}).trace(TimeBase(150, 1))
    seen = [(trace.lr[jump.step - 1], trace.lr[jump.step], jump.kind) for jump in trace.jumps()]
    assert [(round(float(a), 4), round(float(b), 4), kind) for a, b, kind in seen] == [
        (0.0905, 0.07, "drop"),
        (0.0633, 0.049, "drop"),
    ]
    assert round(trace.final, 4) == 0.0172


def test_other_families(shared: Path) -> None:
    cases = {case["id"]: case["lr"] for case in oracle(shared, "families.json")["cases"]}
    specs = {
        "cosine_T10": {"family": "cosine", "lr": 0.1, "T_max": 10, "eta_min": 1e-3},
        "cawr_5_2": {"family": "warm_restarts", "lr": 0.1, "T_0": 5, "T_mult": 2},
        "multistep": {"family": "multistep", "lr": 0.1, "boundaries": [6, 9]},
        "seq_warm_cos": {"family": "cosine", "lr": 0.1, "warmup": "5it", "warmup_start": 0.01, "T_max": 10},
        "poly": {"family": "polynomial", "lr": 0.1, "total_iters": 10, "power": 0.9},
    }
    for name, spec in specs.items():
        values = parse(spec).values(TimeBase(len(cases[name]), 1))
        np.testing.assert_allclose(values, cases[name], rtol=0, atol=TOLERANCE)
    values = parse({"family": "yolo_linear", "lr": 0.01}).values(TimeBase(10, 7)).reshape(10, 7)
    np.testing.assert_allclose(values, cases["ultralytics_linear_weight"], rtol=0, atol=TOLERANCE)


def test_the_warmup_article(shared: Path) -> None:
    case = next(c for c in oracle(shared, "families.json")["cases"] if c["id"] == "paddle")
    spec = {"family": "multistep", "lr": 0.001, "boundaries": ["65000it", "68000it"], "gamma": 0.1}
    schedule = parse({**spec, "warmup": "4000it", "warmup_start": 0.3333})
    steps, expected = np.asarray(case["lr"]).T
    np.testing.assert_allclose(schedule.values_at(TimeBase(90, 1000), steps), expected, rtol=0, atol=TOLERANCE)


def side_by_side(make: Any, lr: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls what torch deprecates
        scheduler = make(optimizer)
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return seen


S = torch.optim.lr_scheduler
TORCH: list[tuple[dict[str, Any], Any, int]] = [
    ({"family": "cosine", "T_max": 13, "eta_min": 0.002}, lambda o: S.CosineAnnealingLR(o, 13, 0.002), 60),
    (
        {"family": "warm_restarts", "T_0": 4, "T_mult": 3, "eta_min": 0.002},
        lambda o: S.CosineAnnealingWarmRestarts(o, 4, 3, 0.002),
        90,
    ),
    ({"family": "warm_restarts", "T_0": 7}, lambda o: S.CosineAnnealingWarmRestarts(o, 7), 40),
    ({"family": "multistep", "boundaries": [3, 9, 9], "gamma": 0.5}, lambda o: S.MultiStepLR(o, [3, 9, 9], 0.5), 12),
    ({"family": "polynomial", "total_iters": 8, "power": 2.0}, lambda o: S.PolynomialLR(o, 8, 2.0), 12),
    ({"family": "exponential", "gamma": 0.9}, lambda o: S.ExponentialLR(o, 0.9), 30),
    ({"family": "constant"}, lambda o: S.ConstantLR(o, 1.0), 5),
    ({"family": "constant", "warmup": 5, "warmup_start": 0.2}, lambda o: S.LinearLR(o, 0.2, 1.0, 5), 9),
    ({"family": "onecycle"}, lambda o: S.OneCycleLR(o, 0.1, 50), 50),
    ({"family": "onecycle", "pct_start": 0.25}, lambda o: S.OneCycleLR(o, 0.1, 40, pct_start=0.25), 40),
    (
        {"family": "onecycle", "anneal": "linear", "three_phase": True, "div_factor": 10, "final_div_factor": 100},
        lambda o: S.OneCycleLR(
            o, 0.1, 50, anneal_strategy="linear", three_phase=True, div_factor=10, final_div_factor=100
        ),
        50,
    ),
]


@pytest.mark.parametrize(("spec", "make", "steps"), TORCH)
def test_torchs_own(spec: dict[str, Any], make: Any, steps: int) -> None:
    values = parse({**spec, "lr": 0.1}).values(TimeBase(steps, 1))
    np.testing.assert_allclose(values, side_by_side(make, 0.1, steps), rtol=0, atol=TOLERANCE)


def test_onecycles_momentum() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler, seen = S.OneCycleLR(optimizer, 0.1, 30), []
    for _ in range(30):
        seen.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    spec = {"family": "onecycle", "lr": 0.1, "base_momentum": 0.85, "max_momentum": 0.95}
    np.testing.assert_array_equal(parse(spec).trace(TimeBase(30, 1)).momentum, np.asarray(seen, np.float32))
