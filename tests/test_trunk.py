"""A search among the branches of a baseline: every proposal is the trunk to the last bit up to its first jump."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sweeper import search, stats
from sweeper.cli import app
from sweeper.config import Sweep
from sweeper.errors import ConfigError
from sweeper.schedules import TimeBase, begin_alike, parse, prefix_keys
from sweeper.service import Place, Service

RECIPE = {"name": "s", "data": "digits", "model": "yolo11n.yaml", "epochs": 40, "lr0": 0.02, "trials": 8}
SPACE: dict[str, Any] = {
    "family": "cawb",
    "trunk": "yolo_linear",
    "restarts": {"min": 0, "max": 2, "every": 5, "distance": 10},
    "step_scale": {"per": "cycle", "choices": [0.5, 0.7, 1.0]},
    "horizon": {"per": "cycle", "choices": [5, "end"]},
    "decay": ["cosine", {"linear": {"floor": [0.0, 0.1]}}],
    "floor": 0.05,
}
TIME = TimeBase(40, 13, 13 * 16)


def build(space: dict[str, Any], **more: Any) -> Sweep:
    return Sweep.build({**RECIPE, "search": space, **more})


def without(key: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in SPACE.items() if name != key} | more


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["tpe", "random", "gp", "grid"]), st.integers(0, 2))
def test_every_proposal_is_the_trunk_up_to_its_first_restart(seed: int, sampler: str, least: int) -> None:
    sweep = build({**SPACE, "restarts": {**SPACE["restarts"], "min": least}}, sampler=sampler)
    spec = search.propose(sweep, search.OfflineTrial(seed), TIME).spec
    trace, trunk = parse(spec).trace(TIME), sweep.schedule("yolo_linear").trace(TIME)
    first = min(spec["steps"], default=40)
    assert prefix_keys("recipe", trace)[: first + 1] == prefix_keys("recipe", trunk)[: first + 1]
    assert len(spec["steps"]) >= least
    assert (trace == trunk) == (not spec["steps"])
    for key in ("step_scale", "horizon"):
        assert not isinstance(spec[key], list) or len(spec[key]) == len(spec["steps"])


def test_only_what_acts_is_asked_for_and_by_the_same_names() -> None:
    class Asked(search.OfflineTrial):
        def __init__(self, answer: str) -> None:
            super().__init__(0)
            self.answer, self.names = answer, list[str]()

        def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
            self.names.append(name)
            return super().suggest_int(name, low, high, step=step)

        def suggest_categorical(self, name: str, choices: Any) -> Any:
            self.names.append(name)
            return self.answer if self.answer in choices else choices[0]

    sweep = build(SPACE)
    off, on = Asked("off"), Asked("on")
    search.propose(sweep, off, TIME)
    search.propose(sweep, on, TIME)
    assert off.names == ["restart_1", "restart_2"]
    restarts = ["restart_1", "steps_1", "restart_2", "steps_2"]
    assert set(on.names) == {*restarts, "decay", "step_scale_1", "step_scale_2", "horizon_1", "horizon_2"}


def test_restarts_come_after_the_trunks_warmup() -> None:
    sweep = build(SPACE, baselines=[{"family": "yolo_linear", "warmup": "12ep"}])
    assert search.restart_sections(sweep, TIME)[0][0] == 15  # the first place of the grid that does


def test_the_trunk_is_a_baseline_by_name_or_as_the_same_schedule() -> None:
    short = {"family": "yolo_linear", "warmup": "1ep"}
    schedule = build(SPACE).schedule(short)
    assert build(SPACE, baselines=[short]).trunk == schedule
    assert build({**SPACE, "trunk": short}, baselines=["yolo_linear", short]).trunk == schedule
    assert build({**SPACE, "trunk": "yolo_linear-2"}, baselines=["yolo_linear", short]).trunk == schedule
    swept = build({**SPACE, "lr": [0.01, 0.02]})
    specs = [search.propose(swept, search.OfflineTrial(seed), TIME).spec for seed in range(20)]
    assert {spec["trunk"]["lr"] for spec in specs} == {0.02}
    assert {spec["lr"] for spec in specs if spec["steps"]} == {0.01, 0.02}


@pytest.mark.parametrize(
    ("space", "more", "says"),
    [
        (
            {**SPACE, "trunk": "constant"},
            {},
            "search.trunk: constant is not among the baselines; expected one of yolo_",
        ),
        ({**SPACE, "trunk": "yolo_liner"}, {}, r"yolo_liner is not among the baselines .did you mean 'yolo_linear'"),
        (
            {**SPACE, "trunk": {"family": "yolo_linear", "lrf": 0.1}},
            {},
            "this yolo_linear schedule is not among the baselines",
        ),
        (SPACE, {"baselines": []}, "is not among the baselines; expected baselines: with the trunk in it"),
        (
            {**SPACE, "restarts": {"max": 2, "every": 5, "first": 3}},
            {},
            "first 3 is not after the trunk's warm-up; expected epoch 4 or later",
        ),
        ({**SPACE, "warmup": "3ep"}, {}, "search: cawb: warmup: given beside trunk"),
        ({**SPACE, "mode": "article"}, {}, "search: cawb: mode: article has a warm-up of its own"),
        (without("restarts", steps=[2], step_scale=1.0, horizon="end"), {}, "steps: 2 is inside the trunk's warm-up"),
        ({"family": "cosine", "trunk": "yolo_linear"}, {}, "search: cosine: from is missing"),
        ({"family": "cosine", "trunk": "yolo_linear", "from": [2, 20]}, {}, "from: 2ep is inside the trunk's warm-up"),
        (
            {"family": "cosine", "trunk": "yolo_linear", "from": {"low": 10, "high": 30}},
            {},
            "is not a whole number of epochs; expected for example 20ep",
        ),
        ({"family": "cosine", "trunk": "yolo_linear", "from": [20, 45]}, {}, "from: 45ep is outside the run"),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_is_trained(
    space: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        search.check(build(space, **more), TIME)
    assert "\n" not in str(caught.value)


def test_a_branch_of_the_space_is_enqueued_as_answers() -> None:
    known = {"family": "cawb", "trunk": "yolo_linear", "steps": [20], "step_scale": 0.7, "horizon": "end"}
    other = {**known, "trunk": "yolo_cosine"}
    given = search.enqueued(build(SPACE, enqueue=[known, other]), TIME)
    assert (given[0].params or {})["step_scale_1"] == 0.7
    assert (given[0].params or {})["horizon_1"] == "end"
    assert given[1].schedule == build(SPACE).schedule(other)


def test_states_are_kept_where_branches_may_begin(tmp_path: Path) -> None:
    def parts(space: dict[str, Any], **more: Any) -> set[int]:
        return search.branch_epochs(build(space, **more), TIME)

    assert parts(SPACE) == set(range(10, 35, 5))
    assert parts(without("restarts", steps=[20, 33.5], step_scale=1.0, horizon="end")) == {20, 33}
    cosine = {"family": "cosine", "trunk": "yolo_linear"}
    assert parts({**cosine, "from": {"low": 10, "high": 30, "step": 10}}) == {10, 20, 30}
    assert parts({**cosine, "from": ["8ep", "0.5dur"]}) == {8, 20}
    assert parts({"family": "cawb"}, baselines=["yolo_linear", {**cosine, "from": 25}]) == {25}


def test_a_sweep_without_a_trunk_is_what_it_was() -> None:
    assert "trunk" not in build(without("trunk")).identity()["search"]
    assert build(SPACE).identity()["search"]["trunk"] == "yolo_linear"


# ---- what plan says ---------------------------------------------------------------------------------------------


def test_runs_begin_alike_with_the_same_warmup() -> None:
    def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
        runs = [parse({"lr": 0.02, **spec}) for spec in (one, other)]
        steps = int(max(TIME.steps_per_epoch, *(run.warmup_steps(TIME) for run in runs)))
        return begin_alike(runs[0].trace(TIME), runs[1].trace(TIME), steps)

    linear, cosine = {"family": "yolo_linear"}, {"family": "yolo_cosine"}
    plain, trainer = {"family": "cawb", "warmup": "3ep"}, {"family": "cawb", "warmup_kind": "trainer"}
    assert alike(linear, cosine)
    assert alike(linear, trainer)
    assert alike(linear, {"family": "cawb", "trunk": "yolo_linear", "steps": [5]})
    assert alike(plain, {"family": "cosine", "warmup": "3ep"})
    assert not alike(linear, plain)
    assert not alike(linear, {"family": "yolo_linear", "warmup": "1ep"})
    assert not alike(linear, {"family": "yolo_linear", "momentum": 0.9})
    assert not alike(plain, {"family": "cawb", "warmup": "3ep", "lr": 0.01})


def plan(folder: Path, space: dict[str, Any], **more: Any) -> tuple[dict[str, Any], str]:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**RECIPE, "search": space, **more}))
    sweep = Sweep.load(file)
    shown = CliRunner().invoke(app, ["plan", str(file), "--store", str(folder / "store")])
    assert shown.exit_code == 0, shown.output
    return Service(sweep, Place(str(folder / "store"))).plan().to_dict(), shown.stdout


def test_plan_says_what_is_shared_with_the_baselines_and_where_pairing_buys_nothing(tmp_path: Path) -> None:
    results, printed = plan(tmp_path, {**SPACE, "restarts": {**SPACE["restarts"], "min": 1}})
    draws = [item["spec"] for item in results["schedules"] if item["kind"] == "search"]
    assert results["share_of_baselines"] == sum(min(spec["steps"]) for spec in draws) / (40 * len(draws)) > 0.2
    assert results["begin_otherwise"] == {"yolo_linear": 0, "yolo_cosine": 0}
    assert f"{results['share_of_baselines']:.0%} of the proposals' epochs are shared with a baseline" in printed
    assert results["race"]["noise"] == stats.UNKNOWN
    assert "noise      not known before pairs on two seeds are finished; in an earlier measurement (BCCD," in printed
    assert "warning" not in printed


def test_plan_warns_where_proposals_begin_otherwise(tmp_path: Path) -> None:
    plain = without("trunk", warmup="3ep", horizon="end")
    results, printed = plan(tmp_path, plain)
    assert results["share_of_baselines"] == 0
    assert results["begin_otherwise"] == {"yolo_linear": 8, "yolo_cosine": 8}
    assert "of 8 proposals 8 begin otherwise than yolo_linear, yolo_cosine" in printed
    assert "search.trunk: yolo_linear makes the proposals branches of it" in printed
    trained, printed = plan(tmp_path, {**plain, "warmup_kind": "trainer"})
    assert set(trained["begin_otherwise"].values()) == {0}
    assert "warning" not in printed
