"""Races run by real workers: every replicate trained once, and the same promotions whatever happens to the workers."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation import World
from test_worker import DROPS, EPOCHS, PLANS, SEARCH, STAY, WARM, Home, check, home, written  # noqa: F401  # a fixture
from trials import history, trial

from sweeper import evidence, search
from sweeper.errors import ConfigError
from sweeper.study import Trial

SEEDS = {"seeds": 4, "race": 2}
RAISES = [{"family": "multistep", "lr": 1.0, "boundaries": [at], "gamma": 1.5} for at in (1, 2, 3)]
BRANCHES = {**SEARCH, **SEEDS, "trunk": "constant", "restarts": {"min": 1, "max": 1, "first": 1, "last": 3}}


def raced(world: World) -> set[tuple[str, int]]:
    """(name of the proposal, seed) of every search run; each is there once."""
    runs = [(row.name, row.seed or 0) for row in world.service.study.trials() if row.stage == "search"]
    assert max(Counter(runs).values(), default=1) == 1
    return set(runs)


def follow_from_the_scores(world: World, reference: str) -> None:
    """The replicates are those that the finished scores call for, no more and no fewer."""
    rows, settings = world.service.study.trials(), world.sweep.search
    seeds = search.search_seeds(world.sweep.recipe.seed, settings.seeds)
    wanted = search.promotions(evidence.entrants(rows, reference), seeds, settings.race, settings.begin)
    asked = [(row.original, row.seed) for row in rows if row.original is not None]
    assert sorted(wanted) == sorted(asked)
    by_number = {row.number: row for row in rows}
    for row in rows:
        if row.original is not None:
            first = by_number[row.original]
            assert (row.spec, row.params) == (first.spec, first.params)
            assert row.seed != first.seed


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schedules=st.permutations([WARM, STAY, *DROPS[::2], *RAISES]).map(lambda order: order[:5]),
    begin=st.integers(1, 2),
    plan=PLANS,
)
def test_interrupted_races_train_every_replicate_once_and_promote_as_undisturbed(
    home: Home,  # noqa: F811
    tmp_path: Path,
    schedules: list[dict[str, Any]],
    begin: int,
    plan: dict[int, str],
) -> None:
    """The proposals are given, so that the same ones race; their order in the study is that of the file."""
    sweep = written(trials=5, enqueue=schedules, search={**SEARCH, **SEEDS, "begin": begin})
    quiet = World(home, tmp_path / f"{sweep['name']}-quiet", {**sweep, "name": f"{sweep['name']}-quiet"})
    quiet.run(workers=1)
    world = World(home, tmp_path / sweep["name"], sweep, plan)
    world.run()
    times, lost = check(world), Counter(world.happened)
    assert sum(times.values()) - len(times) <= lost["kill"] + lost["freeze"] + lost["damage"]
    follow_from_the_scores(world, "constant")
    assert raced(world) == raced(quiet)
    assert ("enqueued 1", world.sweep.recipe.seed) in raced(world)
    duplicates = [f"enqueued {number}" for number, spec in enumerate(schedules, start=1) if spec == STAY]
    assert not [run for run in raced(world) if run[0] in duplicates and run[1] != world.sweep.recipe.seed]


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sampler=st.sampled_from(["random", "tpe"]), trunk=st.sampled_from(["constant", "best"]), plan=PLANS)
def test_searches_among_branches_race_by_their_scores(
    home: Home,  # noqa: F811
    tmp_path: Path,
    sampler: str,
    trunk: str,
    plan: dict[int, str],
) -> None:
    """Which schedules are proposed depends on what a sampler knows at that moment; who goes on, only on the scores."""
    sweep = written(trials=6, baselines=[STAY, RAISES[2]], sampler=sampler, search={**BRANCHES, "trunk": trunk})
    world = World(home, tmp_path / sweep["name"], sweep, plan)
    world.run()
    check(world)
    reference = world.service.study.notes["trunk"]["name"] if trunk == "best" else trunk
    follow_from_the_scores(world, reference)
    rows = world.service.study.trials()
    proposals = [row for row in rows if row.stage == "search" and row.original is None]
    assert len(proposals) == 6
    of_the_trunk = world.service.sweep.named_baselines[reference].spec
    assert all((row.spec or {}).get("trunk") == of_the_trunk for row in proposals)
    if trunk == "best":
        assert min(row.number for row in proposals) == 2 * SEEDS["seeds"], "baselines on all search seeds come first"
    assert world.service.study.done


def test_what_a_jump_of_a_branch_did_is_its_difference_to_the_trunk(home: Home, tmp_path: Path) -> None:  # noqa: F811
    """In MLflow on the seed of each run, in the answer on all search seeds that both were trained on."""
    sweep = written(trials=3, search={**BRANCHES, "restarts": {"min": 1, "max": 1, "first": 2, "last": 2}})
    world = World(home, tmp_path, sweep)
    world.run(workers=1)  # so that the trunk has ended on every seed before its branches do
    rows = world.service.study.trials()
    trunk = {row.seed: row for row in rows if row.stage == "baseline"}
    proposal = next(row for row in rows if row.stage == "search" and row.facts.effects)
    runs = [row for row in rows if row.name == proposal.name]
    assert world.tracker.drain(60) == 0  # all has arrived in MLflow
    ids = world.tracker.run_ids()
    for run in runs:
        [(epoch, gain, _)] = history(world.tracker.server, ids[run.number], "jump/gain")
        ends = [np.mean(row.values[2:]) for row in (run, trunk[run.seed])]
        assert (epoch, gain) == (2, pytest.approx(ends[0] - ends[1]))
    ranked = {entry.trial: entry for entry in world.open().answer(rows).ranking}
    [jump] = ranked[proposal.number].facts["jumps"]
    assert (jump["over"], jump["seeds"]) == ("constant", len(runs))
    assert jump["gain"] == pytest.approx(
        np.mean([np.mean(run.values[2:]) - np.mean(trunk[run.seed].values[2:]) for run in runs])
    )


def test_the_trunk_is_the_baseline_that_is_best_on_the_search_seeds(home: Home, tmp_path: Path) -> None:  # noqa: F811
    sweep = written(trials=2, baselines=[DROPS[0], STAY, RAISES[2]], search={**BRANCHES, "trunk": "best"})
    world = World(home, tmp_path, sweep)
    assert {row.stage for row in world.service.study.trials()} == {"baseline"}
    world.run()
    rows = world.service.study.trials()
    means: dict[str, float] = {}
    for name in world.service.baselines():
        values = [row.score or 0.0 for row in rows if row.stage == "baseline" and row.facts.name == name]
        assert len(values) == SEEDS["seeds"]
        means[name] = sum(values)
    best = max(means, key=lambda name: means[name])
    assert world.service.study.notes["trunk"]["name"] == best
    trunk = world.open().agenda.trunk(rows)
    assert trunk is not None
    assert (trunk.name, trunk.seeds) == (best, 4)
    assert f"trunk: {best}, the best baseline on 4 search seeds" in trunk.sentence
    assert all(paired is not None and paired.mean >= 0 for paired in trunk.ahead.values())


def row(number: int, stage: str, seed: int, value: float | None, state: str = "COMPLETE", **attrs: Any) -> Trial:
    return trial(number, stage, seed, value, state=state, **attrs)


def test_failed_stopped_and_repeated_proposals_do_not_race() -> None:
    rows = [
        row(0, "baseline", 0, 0.5, name="trunk", trace="t"),
        row(1, "baseline", 1, 0.4, name="trunk", trace="t"),
        row(2, "search", 0, 0.9, trace="t"),  # the trunk itself
        row(3, "search", 0, 0.7, trace="a"),
        row(4, "search", 0, 0.9, trace="a"),  # again
        row(5, "search", 0, None, "FAIL", trace="b"),
        row(6, "search", 0, 0.3, "PRUNED", trace="c"),
        row(7, "search", 0, 0.8, trace="d", confounder="not finite"),
        row(8, "search", 1, 0.6, trace="a", replicate_of=3),
        row(9, "search", 0, 0.6, trace="e"),
        row(10, "search", 1, None, "FAIL", trace="e", replicate_of=9),
    ]
    entrants = evidence.entrants(rows, "trunk")
    assert [(entrant.trial, entrant.pruned) for entrant in entrants] == [
        (3, False), (5, False), (6, True), (7, False), (9, False),
    ]  # fmt: skip
    assert search.promotions(entrants, [0, 1], 2) == [(3, 1)]
    (leader,) = evidence.standings(rows, "trunk")
    assert (leader.trial, leader.n, leader.mean) == (3, 2, pytest.approx(0.2))
    assert rows[8].name == "trial 3"


def test_a_trunk_cannot_be_chosen_among_baselines_that_all_failed() -> None:
    open_ones = [row(0, "baseline", 0, 0.5, name="a"), row(1, "baseline", 0, None, "RUNNING", name="b")]
    assert evidence.best_baseline(open_ones, ["a", "b"], [0]) is None
    one_failed = [row(0, "baseline", 0, 0.5, name="a"), row(1, "baseline", 0, None, "FAIL", name="b")]
    chosen = evidence.best_baseline(one_failed, ["a", "b"], [0])
    assert chosen is not None
    assert chosen.name == "a"
    with pytest.raises(ConfigError, match="no search seed that all of them finished"):
        evidence.best_baseline([row(0, "baseline", 0, None, "FAIL", name="a")], ["a"], [0])
