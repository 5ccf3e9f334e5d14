"""The search space: every proposal is a valid schedule within the limits that the sweep file sets."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper import database, search
from sweeper.config import Sweep
from sweeper.config.sweep import SAMPLERS
from sweeper.errors import ConfigError
from sweeper.schedules import Duration, TimeBase, parse
from sweeper.study import Study, Wanted, samplers

RECIPE = {"name": "s", "data": "digits", "model": "yolo11n.yaml", "lr0": 0.01, "trials": 8, "baselines": []}
SPACE = {
    "family": "cawb",
    "restarts": {"min": 0, "max": 3, "every": 10, "distance": 10},
    "step_scale": {"per": "cycle", "choices": [0.5, 0.7, 1.0]},
    "horizon": "end",
    "warmup": "3ep",
}
OPEN = "a*((1+cos(pi*x/y))/2)**b+(1-a)"


def build(space: dict[str, Any] | None = None, **more: Any) -> Sweep:
    return Sweep.build({**RECIPE, "epochs": 100, "search": SPACE if space is None else space, **more})


def time(sweep: Sweep, steps: int = 3) -> TimeBase:
    return TimeBase(sweep.epochs, steps, images=steps * 16)


def digest(sweep: Sweep, spec: dict[str, Any]) -> str:
    return parse(spec).trace(time(sweep)).digest


class Walk:
    """Answers that go through every path of a finite space, one after the other."""

    def __init__(self) -> None:
        self.path: list[tuple[int, int]] = []
        self.at = 0

    def _next(self, count: int) -> int:
        if self.at == len(self.path):
            self.path.append((0, count))
        self.at += 1
        return self.path[self.at - 1][0]

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        assert step is not None
        return low + step * self._next(int((high - low) / step + 1e-9) + 1)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return low + step * self._next((high - low) // step + 1)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[self._next(len(choices))]

    def forward(self) -> bool:
        """To the next path; False after the last."""
        self.at = 0
        while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
            self.path.pop()
        if self.path:
            index, count = self.path.pop()
            self.path.append((index + 1, count))
        return bool(self.path)


def walked(sweep: Sweep) -> list[dict[str, Any]]:
    walk, results = Walk(), []
    while True:
        results.append(search.propose(sweep, walk, time(sweep)).spec)
        if not walk.forward():
            return results


# -- properties

restarts = st.fixed_dictionaries(
    {"min": st.integers(0, 4), "max": st.integers(1, 5), "every": st.integers(1, 12), "distance": st.integers(1, 25)},
    optional={"last": st.integers(20, 99)},
)
warmups = st.sampled_from([0, "3ep", "2.5ep", "17ep", "0.1dur", "20it", "100img", [0, "5ep"]])
sampled = st.sampled_from(SAMPLERS)


@settings(max_examples=150, deadline=None)
@given(restarts=restarts, warmup=warmups, sampler=sampled, seed=st.integers(0, 10**6))
def test_every_proposal_is_valid_and_keeps_to_the_limits(
    restarts: dict[str, int], warmup: Any, sampler: str, seed: int
) -> None:
    """Number of restarts, distance, grid, warm-up, range: whatever is drawn, in every encoding."""
    restarts["max"] = max(restarts["min"], restarts["max"])
    sweep = build({**SPACE, "restarts": restarts, "warmup": warmup}, sampler=sampler)
    try:
        places = search.restart_sections(sweep, time(sweep))
    except ConfigError:  # they do not fit; that is said, not drawn
        return
    spec = search.propose(sweep, search.OfflineTrial(seed), time(sweep)).spec
    steps = spec["steps"]
    assert restarts["min"] <= len(steps) <= restarts["max"]
    assert all(later - earlier >= restarts["distance"] for earlier, later in pairwise(steps))
    assert all((step - places[0][0]) % restarts["every"] == 0 for step in steps)
    assert all(places[0][0] <= step <= places[-1][-1] for step in steps)
    trace = parse(spec).trace(time(sweep))
    assert all(step > Duration.parse(spec["warmup"]).epochs(time(sweep)) for step in steps)
    breaks = [step for step in steps if trace.lr[step * 3 - 1] != trace.lr[step * 3]]
    assert [jump.epoch for jump in trace.jumps()] == breaks
    assert parse(spec).spec == spec


@settings(max_examples=25, deadline=None)
@given(restarts=restarts, sampler=sampled)
def test_the_corners_of_a_space_that_fits_are_schedules(restarts: dict[str, int], sampler: str) -> None:
    restarts["max"] = max(restarts["min"], restarts["max"])
    space = {
        **SPACE,
        "restarts": restarts,
        "decay": ["linear", {"cosine": {"power": {"low": 0.5, "high": 2, "step": 0.5}}}],
    }
    sweep = build(space, sampler=sampler)
    try:
        search.restart_sections(sweep)
    except ConfigError:
        return
    search.check(sweep, time(sweep))
    counts = {len(corner.params["steps"]) for corner in search.corners(sweep, time(sweep))}
    assert counts == {restarts["min"], restarts["max"]}


@pytest.mark.parametrize("distance", [10, 25, 30])
def test_a_walk_over_the_grid_meets_no_schedule_twice_and_all_that_tpe_can_propose_by_slot(distance: int) -> None:
    limits = {"min": 1, "max": 3, "every": 10, "distance": distance, "first": 10, "last": 90}
    space = {**SPACE, "restarts": limits, "step_scale": [0.5, 0.7]}
    grid = build(space, sampler="grid")
    specs = walked(grid)
    assert len({digest(grid, spec) for spec in specs}) == len(specs)
    places = search.restart_sections(grid)
    canonical = {
        digest(grid, spec)
        for spec in walked(build(space))
        if len({index for step in spec["steps"] for index, place in enumerate(places) if step in place})
        == len(spec["steps"])
    }
    assert canonical <= {digest(grid, spec) for spec in specs}


class Noted(search.OfflineTrial):
    """Draws, and notes what was asked for."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.names: list[str] = []

    def suggest_float(self, name: str, *args: Any, **kwargs: Any) -> float:
        self.names.append(name)
        return super().suggest_float(name, *args, **kwargs)

    def suggest_int(self, name: str, *args: Any, **kwargs: Any) -> int:
        self.names.append(name)
        return super().suggest_int(name, *args, **kwargs)

    def suggest_categorical(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.names.append(name)
        return super().suggest_categorical(name, *args, **kwargs)


def test_what_changes_nothing_is_not_asked_for() -> None:
    sweep = build({**SPACE, "floor": [0.0, 0.1]})
    for seed in range(40):
        noted = Noted(seed)
        spec = search.propose(sweep, noted, time(sweep)).spec
        assert len(noted.names) == len(set(noted.names))
        for name in ("steps_", "step_scale_"):
            assert sum(asked.startswith(name) for asked in noted.names) == len(spec["steps"])


def test_a_gaussian_process_is_asked_everything_every_time() -> None:
    """It models what every trial has; the schedules are the same as those of other samplers."""
    space = {**SPACE, "decay": ["linear", {"cosine": {"power": {"low": 0.5, "high": 2}}}]}
    sweep = build(space, sampler="gp")
    asked = set()
    for seed in range(40):
        noted = Noted(seed)
        spec = search.propose(sweep, noted, time(sweep)).spec
        asked.add(frozenset(noted.names))
        assert len(spec["steps"]) <= 3
        assert spec["power"] == 1.0 or spec["decay"] == "cosine"
    assert len(asked) == 1
    assert {"restart_3", "steps_3", "step_scale_3", "power_cosine"} <= asked.pop()


# -- parameters of a choice


def test_a_choice_has_parameters_of_its_own() -> None:
    decay = [
        "linear",
        {"cosine": {"power": {"low": 0.5, "high": 2}, "floor": [0.0, 0.1]}},
        {OPEN: {"a": [0.5], "b": {"low": 1, "high": 3}}},
    ]
    sweep = build({**SPACE, "decay": decay})
    search.check(sweep)
    seen = set()
    for seed in range(60):
        spec = search.propose(sweep, search.OfflineTrial(seed)).spec
        seen.add(spec["decay"].partition("*")[0])
        if spec["decay"] == "cosine":
            assert 0.5 <= spec["power"] <= 2
            assert spec["floor"] in (0.0, 0.1)
        elif spec["decay"] == "linear":
            assert spec["power"] == 1.0
        else:
            assert "a" not in spec["decay"].replace("max", "")
            assert parse(spec).trace(time(sweep)).final == pytest.approx(0.01 * 0.5 * min(1, _last(spec)), rel=0.01)
    assert seen == {"linear", "cosine", "0.5"}


@pytest.mark.parametrize("sampler", ["tpe", "gp", "grid"])
def test_a_choices_own_parameter_wins_wherever_it_stands(sampler: str) -> None:
    decay = {"decay": ["linear", {"cosine": {"floor": [0.2, 0.3]}}]}
    floor = {"floor": [0.0, 0.1]}
    for space in ({**SPACE, **decay, **floor}, {**SPACE, **floor, **decay}):
        sweep = build(space, sampler=sampler)
        search.check(sweep)
        for seed in range(20):
            noted = Noted(seed)
            spec = search.propose(sweep, noted, time(sweep)).spec
            extra = spec["decay"] == "cosine"
            assert spec["floor"] in ((0.2, 0.3) if extra else (0.0, 0.1))
            assert sampler == "gp" or ("floor" in noted.names) != extra


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_fixed_steps_have_cycles_too(sampler: str) -> None:
    space = {key: value for key, value in SPACE.items() if key != "restarts"} | {"steps": [30, "60ep"]}
    sweep = build(space, sampler=sampler)
    search.check(sweep)
    seen = {
        tuple(search.propose(sweep, search.OfflineTrial(seed), time(sweep)).spec["step_scale"]) for seed in range(200)
    }
    assert len(seen) == 9
    assert all(len(scales) == 2 for scales in seen)


def _last(spec: dict[str, Any]) -> float:
    peak = 1.0
    for scale in spec["step_scale"] if spec["steps"] else []:
        peak *= scale
    return peak


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"decay": OPEN}, "a is not known; expected x, y, u, pi, e, a function or a number; a search takes the values"),
        ({"decay": [{OPEN: {"a": [0.5]}}]}, "b is not known; expected x, y, u, pi, e, a function"),
        ({"decay": [{OPEN: {"a": ["x", 1], "b": [2]}}]}, "search: decay: a: 'x' is not allowed; expected a number"),
        ({"decay": [{"cosine": {"pwer": [1, 2]}}]}, "search: cawb: pwer is not a parameter; known are lr,"),
        ({"decay": [{OPEN: {"a": [0.5], "b": [1], "c": [2]}}]}, "search: cawb: c is not a parameter"),
        ({"decay": [{"cosine": {"power": [-1, 2]}}]}, "power"),
        ({"decay": [{"(u-0.5)**b": {"b": {"low": 0.5, "high": 1.5}}}]}, "LR is nan"),
        ({"decay": [{"cosine": 3}]}, "one with conditional parameters"),
        ({"warmup": "20ep", "restarts": {"first": 20}}, "expected epoch 21"),
        ({"restarts": {"max": 4, "distance": 30}}, "do not fit"),
        ({"decay": [[1, 2]]}, "single value"),
        ({"restarts": None}, "step_scale: is drawn for each restart, but the search has no restarts"),
        (
            {
                "decay": ["linear", {"u*b": {"b": [1], "floor": [0, 0.1]}}],
                "floor": {"per": "cycle", "choices": [0, 0.2]},
            },
            "floor_2",
        ),
        ({"warmup": "0.29dur", "restarts": {"first": 29}}, "expected epoch 30"),
    ],
)
def test_what_cannot_be_proposed_is_refused_before_it_is(space: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        search.check(build({**SPACE, **space}))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("epochs", "restarts", "warmup", "says"),
    [
        (
            3,
            {"every": 10},
            None,
            "a run of 3 epochs is too short for a restart from epoch 10 on that is 10 epochs (distance) before the "
            "end; expected at least 20 epochs or a smaller distance",
        ),
        (15, {"every": 10, "max": 1}, None, "a run of 15 epochs is too short for a restart from epoch 10 on"),
        (9, {"first": 7, "distance": 4}, None, "too short for a restart from epoch 7 on that is 4 epochs (distance)"),
        (10, {"first": 12}, "2ep", "first 12 does not lie inside the run; expected 3 (after the warm-up) to 9"),
        (10, {"last": 10}, None, "last 10 does not lie inside the run; expected 1 (after the warm-up) to 9"),
        (10, {"last": 2}, "3ep", "last 2 is not after the warm-up; expected epoch 4 or later"),
        (10, {"first": 6, "last": 5}, None, "first 6 is after last 5; expected a last of 6 or more"),
        (4, {}, "4ep", "the warm-up leaves no epoch of 4 for a restart; expected a shorter warm-up or a longer run"),
    ],
)
def test_restarts_for_which_the_run_has_no_place_are_refused_in_numbers_that_can_be(
    epochs: int, restarts: dict[str, int], warmup: str | None, says: str
) -> None:
    """Each limit that is named is one that a file may have, and no range runs backwards."""
    space = {"family": "cawb", "restarts": restarts, "horizon": "end"} | ({"warmup": warmup} if warmup else {})
    with pytest.raises(ConfigError) as caught:
        search.check(build(space, epochs=epochs))
    assert says in str(caught.value)
    assert " -" not in str(caught.value)


@pytest.mark.parametrize(("low", "high", "step"), [(0.1, 0.3, 0.1), (0.05, 0.35, 0.05), (0.1, 0.7, 0.2)])
def test_the_end_of_a_range_belongs_to_it_although_binary_fractions_add_up_to_more(
    low: float, high: float, step: float
) -> None:
    sweep = build({**SPACE, "step_scale": {"low": low, "high": high, "step": step}})
    search.check(sweep, time(sweep))
    assert sweep.search.params["step_scale"].examples() == (low, high)


def test_a_grid_needs_a_step() -> None:
    space = {**SPACE, "decay": [{"cosine": {"power": {"low": 0.5, "high": 2}}}]}
    with pytest.raises(ConfigError, match="no step"):
        search.check(build(space, sampler="grid"))
    search.check(build(space))


@pytest.mark.parametrize("sampler", ["tep", "optuna.samplers", "a b:c"])
def test_a_sampler_is_known_when_the_file_is_read(sampler: str) -> None:
    with pytest.raises(ConfigError, match="sampler"):
        build(sampler=sampler)
    assert set(SAMPLERS) == set(samplers.SAMPLERS)


def test_restarts_come_after_a_warmup_in_steps() -> None:
    sweep = build({**SPACE, "warmup": "1E2 it"})
    assert search.restart_sections(sweep, TimeBase(100, 4))[0][0] == 30  # 25 epochs, and the grid of 10
    assert search.restart_sections(sweep, TimeBase(100, 100))[0][0] == 10
    search.check(sweep)  # nothing to say before the steps of an epoch are known
    with pytest.raises(ConfigError, match="warm"):
        search.check(sweep, TimeBase(100, 1))


# -- known good schedules


def test_the_kind_of_warmup_is_a_parameter_like_any_other() -> None:
    held = {key: value for key, value in SPACE.items() if key != "warmup"}
    sweep = build({**held, "warmup_kind": "trainer"}, momentum=0.9)
    search.check(sweep, time(sweep))
    spec = search.propose(sweep, search.OfflineTrial(0), time(sweep)).spec
    assert (spec["warmup"], spec["momentum"], spec["warmup_kind"]) == ("3ep", 0.9, "trainer")
    kinds = ["lr", {"trainer": {"warmup": ["3ep", "12ep"], "warmup_bias_lr": [0.05, 0.1]}}]
    sweep = build({**held, "warmup": "1ep", "warmup_kind": kinds})
    search.check(sweep, time(sweep))
    assert search.restart_sections(sweep, time(sweep))[0][0] == 20  # after the longest of the warm-ups
    results = [search.propose(sweep, search.OfflineTrial(seed), time(sweep)).spec for seed in range(30)]
    assert {(spec["warmup_kind"], spec["warmup"]) for spec in results} == {
        ("lr", "1ep"),
        ("trainer", "3ep"),
        ("trainer", "12ep"),
    }
    given = search.enqueued(build({**held, "warmup_kind": ["lr", "trainer"]}, enqueue=[results[0]]), time(sweep))
    assert given[0].schedule == sweep.schedule(results[0])  # its warm-up is not the space's
    extra = {"family": "cawb", "warmup_kind": "lr", "horizon": "end"}
    given = search.enqueued(build({**held, "warmup_kind": ["lr", "trainer"]}, enqueue=[extra]), time(sweep))
    assert (given[0].params or {})["warmup_kind"] == "lr"


def test_what_lies_in_the_space_is_enqueued_as_answers_and_the_rest_as_it_is() -> None:
    inside = {"family": "cawb", "steps": [30, 70], "step_scale": [0.7, 1.0], "horizon": "end", "warmup": "3ep"}
    outside = {"family": "warm_restarts", "T_0": "10ep", "T_mult": 2}
    answers = {"restart_1": "on", "steps_1": 20}
    plain = {"family": "cawb", "warmup": "3ep"}
    sweep = build(enqueue=[inside, outside, {**inside, "steps": [31, 70]}, answers, plain, "yolo_cosine"])
    results = search.enqueued(sweep, time(sweep))
    assert [one.params is None for one in results] == [False, True, True, False, False, True]
    assert all((one.params is None) == (one.schedule is not None) for one in results)
    assert results[0].params == {
        "restart_1": "on",
        "steps_1": 30,
        "restart_2": "off",
        "restart_3": "on",
        "steps_3": 70,
        "step_scale_1": 0.7,
        "step_scale_2": 1.0,
    }
    assert results[3].params == answers
    assert results[4].params == {f"restart_{slot}": "off" for slot in (1, 2, 3)}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"restart_9": "on"}, "restart_9: is not a parameter of the search"),
        ({"restart_1": "yes"}, "'yes' is not in the search space"),
        ({"restart_1": "on", "steps_1": 11}, "11 is not in the search space"),
        ({"restart_1": "on", "steps_1": 30, "restart_2": "on", "steps_2": 40}, "steps_2: 40 "),
        ({"restart_1": "off", "restart_2": "off", "restart_3": "off"}, "3 restarts are off; expected at most 2"),
        ({"family": "cawb", "steps": [300]}, "300"),
    ],
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_cannot_be_enqueued_is_said(given: dict[str, Any], says: str, sampler: str) -> None:
    space = {**SPACE, "restarts": {"min": 1, "max": 3, "every": 10, "distance": 20, "first": 10, "last": 90}}
    with pytest.raises(ConfigError) as caught:
        search.check(build(space, enqueue=[given], sampler=sampler))
    assert says in str(caught.value)
    assert str(caught.value).startswith("enqueue: 1: ")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_switch_is_on_without_quotes(sampler: str) -> None:
    """YAML 1.1 reads `on` as true."""
    sweep = build(enqueue=[{"restart_1": True, "steps_1": 30, "restart_2": False}], sampler=sampler)
    (results,) = search.enqueued(sweep, time(sweep))
    assert (results.params or {}).items() >= {"restart_1": "on", "steps_1": 30, "restart_2": "off"}.items()


def test_restarts_that_answers_leave_out_are_off_in_a_grid() -> None:
    """Its ranges depend on earlier answers: a restart drawn before an answered one could make that one invalid."""
    space = {**SPACE, "restarts": {"max": 3, "every": 10, "distance": 20}}
    sweep = build(space, enqueue=[{"restart_2": "on", "steps_2": 50}], sampler="grid")
    (results,) = search.enqueued(sweep, time(sweep))
    assert results.params == {"restart_1": "off", "restart_2": "on", "steps_2": 50, "restart_3": "off"}


def test_answers_are_not_drawn() -> None:
    sweep = build({**SPACE, "floor": {"low": 0.0, "high": 0.1}})
    for seed in range(10):
        answers = {"restart_1": "on", "steps_1": 30, "floor": 0.05}
        spec = search.propose(sweep, search.OfflineTrial(seed, answers), time(sweep)).spec
        assert spec["steps"][0] == 30
        assert spec["floor"] == 0.05


def test_the_template_uses_the_space_made_for_sharing() -> None:
    sweep = Sweep.load(Path(search.__file__).parents[1] / "service" / "sweep.yaml")
    search.check(sweep)
    params = sweep.search.params
    assert params["horizon"].value == "end"
    assert not params["decay"].searched
    assert sweep.search.trunk == "yolo_linear"
    assert sweep.search.restarts is not None
    assert sweep.search.restarts.every == 10


# -- through a real study


def test_the_grid_is_walked_once_by_the_sampler(tmp_path: Path) -> None:
    """As many trials as the grid has schedules: each of them once, by two workers in turn."""
    limits = {"min": 0, "max": 2, "every": 20, "distance": 40, "first": 20, "last": 80}
    decay = ["linear", {"cosine": {"power": [1, 2]}}]
    sweep = build({**SPACE, "restarts": limits, "step_scale": 0.5, "decay": decay}, sampler="grid")
    everything = {digest(sweep, spec) for spec in walked(sweep)}
    assert len(everything) == (1 + 2 + 2 + 3) * 3
    study = launched(sweep, tmp_path, len(everything))
    seen = []
    while (slot := study.claim("a")) is not None:
        other = study.claim("b")
        for held in filter(None, (slot, other)):
            seen.append(digest(sweep, held.propose(lambda suggest: search.propose(sweep, suggest, time(sweep)).spec)))
        for held in filter(None, (slot, other)):
            held.tell(0.5)
    assert set(seen) == everything
    assert len(seen) == len(everything)


def test_the_space_of_a_study_is_frozen_and_a_change_is_told(tmp_path: Path) -> None:
    sweep = build()
    launched(sweep, tmp_path, 1)
    changed = build({**SPACE, "step_scale": {"per": "cycle", "choices": [0.5, 0.9]}}, sampler="gp")
    with pytest.raises(ConfigError) as caught:
        launched(changed, tmp_path, 1)
    assert "search.params.step_scale.choices: [0.5, 0.7, 1.0] -> [0.5, 0.9]" in str(caught.value)
    assert "sampler" in str(caught.value)


def test_the_samplers_seed_and_the_trainings_are_two_keys(tmp_path: Path) -> None:
    def proposals(name: str, **more: Any) -> list[str]:
        sweep = build(**more)
        (tmp_path / name).mkdir()
        study, digests = launched(sweep, tmp_path / name, 4), []
        while (slot := study.claim("w")) is not None:
            digests.append(
                digest(sweep, slot.propose(lambda suggest: search.propose(sweep, suggest, time(sweep)).spec))
            )
            slot.tell(0.5)
        return digests

    assert proposals("a", seed=3) == proposals("b", sampler_seed=3) != proposals("c", sampler_seed=4)
    assert proposals("d", seed=4, sampler_seed=3) == proposals("e", seed=3)
    assert build(sampler_seed=4).recipe == build().recipe != build(seed=4).recipe


def launched(sweep: Sweep, folder: Path, count: int) -> Study:
    return Study.create(
        database.open(f"sqlite:///{folder}/s.db"),
        sweep.name,
        config=sweep.identity(),
        trials=[Wanted("search", 0)] * count,
        sampler=sweep.sampler,
        seed=sweep.sampling_seed,
        free_keys=Sweep.CHANGEABLE,
    )


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "grid"])
def test_what_is_known_is_asked_for_again(tmp_path: Path, sampler: str) -> None:
    """Every trial is another schedule while the space has one left; then what is known is taken."""
    limits = {"min": 0, "max": 1, "every": 20, "distance": 20}
    sweep = build({**SPACE, "restarts": limits, "step_scale": [0.5, 1.0]}, sampler=sampler)
    everything = {
        digest(sweep, spec) for spec in walked(build({**SPACE, "restarts": limits, "step_scale": [0.5, 1.0]}))
    }
    study, seen = launched(sweep, tmp_path, len(everything) + 1), []
    while (slot := study.claim("w")) is not None:
        spec = slot.propose(
            lambda suggest: search.propose(sweep, suggest, time(sweep)).spec,
            known=lambda spec: digest(sweep, spec) in seen,
        )
        seen.append(digest(sweep, spec))
        slot.tell(0.5 if spec["steps"] else 0.6)
    rows = study.trials()
    assert len(set(seen)) == len(everything) == 9
    assert rows[-1].facts.proposals == samplers.TRIES
    assert all(row.params.keys() >= {"restart_1"} for row in rows)  # only the accepted answers are stored
    assert sum("steps_1" in row.params for row in rows) >= 8
