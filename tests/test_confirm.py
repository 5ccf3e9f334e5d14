"""Confirmation and the battery: what is asked for, that nothing is trained twice for it, and what comes out."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from test_main_job import wait
from tiny import SWEEP, sweeper
from trials import history, trial

from sweeper import evidence
from sweeper.config import Confirm, Escape, Sweep
from sweeper.errors import ConfigError
from sweeper.schedules import CONTROLS, TimeBase, Trace, parse, prefix_keys
from sweeper.service import Place, Service
from sweeper.study import Trial
from sweeper.worker import Worker

RESTART = {"family": "cawb", "lr": 0.02, "steps": [2], "step_scale": 1.0, "horizon": "end", "warmup": "1ep"}
STAIRCASE = {"family": "cawb", "mode": "article", "steps": [31, 81], "step_scale": 0.7, "floor": 0.35, "epoch_scale": 4}


def row(number: int, stage: str, value: float | None = None, **more: Any) -> Trial:
    return trial(number, stage, score=value, **{"spec": RESTART, "trace": f"trace {number}", **more})


# What is asked for.


def test_fresh_seeds_are_a_function_of_sweep_and_index_and_never_the_searchs() -> None:
    for seed in range(50):
        seeds = evidence.fresh_seeds(seed, 40)
        assert len(set(seeds)) == 40
        assert seed not in seeds
        assert seeds[:7] == evidence.fresh_seeds(seed, 7)
    assert not set(evidence.fresh_seeds(0, 6)) & set(evidence.fresh_seeds(1, 6)), "a repetition is independent"


def test_the_best_distinct_comparable_schedules_are_confirmed() -> None:
    rows = [
        row(0, "baseline", 0.5, trace="plain"),
        row(1, "search", 0.4),
        row(2, "search", 0.9, confounder="out of memory"),
        row(3, "search", 0.6),
        row(4, "search", 0.6, trace="trace 3"),
        row(5, "search", 0.7, trace="plain"),
        row(6, "search", state="FAIL"),
    ]
    assert evidence.chosen(rows, 2) == [3, 1]
    with pytest.raises(ConfigError, match="sweeper run"):
        evidence.chosen([*rows, row(7, "search")], 2)


BASELINES = {"yolo_linear": {"family": "yolo_linear", "lr": 0.02}}
SEARCHED = [row(0, "baseline", 0.5, name="yolo_linear"), row(1, "search", 0.4), row(2, "search", 0.6)]


def test_the_design_is_that_of_the_first_slot_whatever_comes_later() -> None:
    begun = evidence.Design.begin(SEARCHED, list(BASELINES), Confirm(best=1, seeds=2), 0)
    first = evidence.wanted_confirmation(SEARCHED, BASELINES, begun)
    assert [(wanted.name, wanted.seed) for wanted in first] == [
        (name, seed) for seed in evidence.fresh_seeds(0, 2) for name in ("yolo_linear", "trial 2")
    ]
    assert evidence.Design.of(SEARCHED) is None
    # one slot was made, then the power failed; meanwhile the search got a better trial
    stored = json.loads(json.dumps(first[0].given))
    there = row(3, "confirm", **{key: stored[key] for key in ("name", "design", "seed", "schedule")})
    later = [*SEARCHED, there, row(4, "search", 0.99)]
    design = evidence.Design.of(later)
    assert design == begun
    assert evidence.wanted_confirmation(later, BASELINES, design) == first
    assert design.changes(Confirm(best=1, seeds=2)) == []
    assert [change.split(",")[0] for change in design.changes(Confirm(best=2, seeds=3, alpha=0.1, equivalence=0))] == [
        "confirm.best is 2", "confirm.seeds is 3", "confirm.alpha is 0.1", "confirm.equivalence is 0",
    ]  # fmt: skip


def test_a_search_that_left_nothing_cannot_be_confirmed() -> None:
    with pytest.raises(ConfigError, match="no trial of the search is finished"):
        evidence.Design.begin([row(0, "baseline", 0.5), row(1, "search", state="FAIL")], [], Confirm(), 0)


def test_the_default_subject_is_chosen_by_the_search_alone_among_those_that_are_confirmed() -> None:
    up, down = {"facts": {"restarts": 1, "drops": 0}}, {"facts": {"restarts": 0, "drops": 1}}
    rows = [row(0, "baseline", 0.9, name="linear"), row(1, "search", 0.8, **down), row(2, "search", 0.7, **up)]
    assert evidence.subject(rows).number == 2
    rows += [row(3, "search", 0.6, **up), row(4, "search", 0.5, **up)]
    design = evidence.Design((1, 3, 4), ("linear",), 3, (7,), 0.05, 0.002)
    for wanted, value in zip(
        evidence.wanted_confirmation(rows, {"linear": RESTART}, design), (0.1, 0.2, 0.3, 0.9), strict=True
    ):
        rows.append(row(len(rows), "confirm", value, **{key: wanted.given[key] for key in ("name", "seed", "design")}))
    assert evidence.subject(rows).number == 3, "trial 4 was luckier on the fresh seed, trial 2 was not confirmed"
    assert evidence.subject(rows, 1).number == 1
    assert evidence.subject(rows[:2]).number == 1, "no restart at all: the drop, to say that it is none"
    with pytest.raises(ConfigError, match="nothing to examine"):
        evidence.subject(rows[:1])
    with pytest.raises(ConfigError, match="trial 6"):
        evidence.subject(rows, 6)


TRACE = parse({**RESTART, "steps": [20], "warmup": "3ep"}).trace(TimeBase(40, 13))


def test_every_seed_gets_its_controls_and_one_the_landscape() -> None:
    rows = [row(2, "search", 0.7), *(row(n, "confirm", 0.6, seed=n, name="trial 2") for n in (5, 6, 7))]
    slots = evidence.wanted_controls(rows, rows[0], TRACE, 0)
    assert {((wanted.schedule or {})["family"], wanted.seed) for wanted in slots} == {
        (f, s) for f in CONTROLS for s in (5, 6, 7)
    }
    [measuring] = evidence.wanted_barriers(rows, rows[0], TRACE, 0, Escape())
    assert (measuring.seed, (measuring.control or {})["other"], measuring.schedule) == (5, 6, RESTART)

    alone = evidence.wanted_controls(rows[:1], rows[0], TRACE, 0)
    assert [wanted.seed for wanted in alone] == [0, 0, *evidence.fresh_seeds(0, 1)], "its own seed, and another run"
    json.dumps([wanted.given for wanted in alone])


def test_a_control_is_a_spec_like_any_other_and_shares_what_comes_before_the_restart() -> None:
    spec = {"family": "counterfactual", "of": {**RESTART, "steps": [20], "warmup": "3ep"}, "restart": 1}
    branch = parse(spec)
    assert parse(json.loads(json.dumps(branch.spec))) == branch
    trace = branch.trace(TimeBase(40, 13))
    shared = [a == b for a, b in zip(prefix_keys("r", trace), prefix_keys("r", TRACE), strict=True)]
    assert shared == [True] * 21 + [False] * 20
    assert trace.final == TRACE.final
    assert not trace.jumps()
    assert branch.values(TimeBase(40, 13)).shape == (520,)
    peak = parse({**spec, "family": "matched_peak"}).trace(TimeBase(40, 13))
    assert peak.peak == pytest.approx(float(TRACE.lr[20 * 13]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"restart": 2}, "expected at most 1"),
        ({"restart": 0}, "whole number"),
        ({"of": "cawb"}, "schedule that it controls"),
        ({"lr": 0.1}, "lr is not a parameter"),
        ({"of": {"family": "cawb"}}, "lr is missing"),
    ],
)
def test_a_control_that_cannot_be_says_so(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse({"family": "counterfactual", "of": RESTART, **change}).trace(TimeBase(4, 3))


# What comes out.


SETTINGS = Escape()
FEWER = Escape(points=5)


def examined(
    gains: list[float],
    over: list[float],
    path: float = 0.5,
    asked: Escape = SETTINGS,
    score: float = 0.5,
    beside: Sequence[Trial] = (),
) -> list[dict[str, Any]]:
    """The verdicts on a confirmed trial with one restart, whose controls were beaten by so much on each seed.

    ``beside``: other trials of the sweep. It was measured twice: with the settings ``SETTINGS``, and after that with
    fewer losses, which saw no barrier.
    """
    rows = [row(0, "search", score, facts={"restarts": 1}), *beside]
    for seed, (gain, more) in enumerate(zip(gains, over, strict=True), start=10):
        rows.append(row(len(rows), "confirm", score, seed=seed, name="trial 0"))
        for family, value in (("counterfactual", score - gain), ("matched_peak", score - more)):
            control = {"trial": 0, "kind": family, "restart": 1, "epoch": 20, "ratio": 3.0, "end": 40}
            rows.append(row(len(rows), "control", value, seed=seed, control=control))
    at = {"trial": 0, "kind": evidence.BARRIER, "restart": 1, "epoch": 20, "ratio": 3.0, "end": 40, "other": 11}
    for settings, height in ((SETTINGS, path), (FEWER, 0.0)):
        found = evidence.Landscape(20, 40, height, height, height, 0.01, 1.0, (30,), 0.1, 0.9, 38, 5, 3, 1.0)
        control = json.loads(json.dumps({**at, "settings": settings.cost()}))  # as the study keeps them
        measured = json.loads(json.dumps(asdict(found)))
        rows.append(row(len(rows), "control", score, seed=10, control=control, landscape=measured))
    verdicts = [jump.to_dict() for jump in evidence.verdicts(rows, rows[0], asked)]
    json.dumps(verdicts, allow_nan=False)
    return verdicts


def test_verdicts_pair_runs_with_their_controls_by_seed() -> None:
    [found] = examined([0.01, 0.012, 0.011, 0.009], [0.001, 0.0, -0.001, 0.0])
    assert (found["word"], found["gain"]["n"], found["epoch"]) == ("escape", 4, 20)
    assert found["gain"]["mean"] == pytest.approx(0.0105)
    assert (
        examined([0.01, 0.012, 0.011, 0.009], [-0.05, -0.06, -0.05, -0.05])[0]["word"]
        == evidence.verdict(
            "restart",
            movement=evidence.Movement(0.5, 0.01, 1.0),
            gain=evidence.Gain(0.0105, 0.008, 0.012, 4),
            over_peak=evidence.Gain(-0.05, -0.06, -0.04, 4),
        ).word
    )
    assert examined([0.01, 0.012, 0.011, 0.009], [0.0] * 4, path=0.001)[0]["word"] == "progress in the same basin"


def test_a_landscape_counts_only_with_the_settings_that_are_asked_for() -> None:
    """Verdicts print the settings of today; a measurement that was made with others must not stand beside them."""
    runs = [0.01, 0.012, 0.011, 0.009], [0.001, 0.0, -0.001, 0.0]
    assert examined(*runs)[0]["landscape"]["path"] == 0.5
    assert examined(*runs, asked=FEWER)[0]["word"] == "progress in the same basin"
    [never] = examined(*runs, asked=Escape(points=9))
    assert (never["word"], never["landscape"]) == ("unclear", None)
    assert "path barrier not measured with these settings" in never["sentence"]


def test_runs_whose_scores_are_all_0_get_no_verdict() -> None:
    [found] = examined([0.0] * 4, [0.0] * 4, score=0.0)
    assert (found["word"], found["better"]) == ("nothing learned", None)
    [one] = examined([-0.1, 0.0, 0.0, 0.0], [0.0] * 4, score=0.0)
    assert one["word"] == "moved, not better"


GAINS = [0.01, 0.012, 0.011, 0.009]


def test_a_verdict_on_another_trial_than_the_searchs_best_says_that_it_was_chosen() -> None:
    [own] = examined(GAINS, GAINS, beside=[row(77, "search", 0.4, facts={"restarts": 1})])
    assert "does not account" not in own["sentence"]
    [own] = examined(GAINS, GAINS, beside=[row(77, "search", 0.6, facts={"restarts": 1})])
    assert own["reason"].endswith("choosing this trial among several (the one that the search ranked best is trial 77)")
    assert own["reason"] in own["sentence"]


def test_a_gain_has_no_interval_where_the_run_itself_failed_on_a_seed() -> None:
    """Its bad seeds are those that are missing."""
    [own] = examined(GAINS, GAINS, beside=[row(77, "confirm", seed=99, state="FAIL", name="trial 0")])
    assert (own["better"], own["gain"]["low"], own["gain"]["n"]) == (None, None, 4)
    assert "counterfactual gain +0.0105 (4 pairs, no interval)" in own["reason"]
    assert "the run itself failed on 1 of 5 seeds" in own["reason"]


def test_one_run_gives_no_word_on_a_gain() -> None:
    assert examined([0.05], [0.05])[0]["word"] == "unclear"


def test_the_articles_staircase_is_not_a_restart_and_asks_for_nothing() -> None:
    trace = parse({"lr": 0.1, **STAIRCASE}).trace(TimeBase(150, 8))
    effects = [effect.to_dict() for effect in evidence.effects([0.1] * 150, trace.jumps())]
    staircase = row(3, "search", 0.3, effects=effects)
    assert evidence.wanted_controls([staircase], staircase, trace, 0) == []
    assert evidence.wanted_barriers([staircase], staircase, trace, 0, SETTINGS) == []
    found = evidence.verdicts([staircase], staircase, SETTINGS)
    assert [(jump.epoch, jump.verdict.word) for jump in found] == [(33, "not a restart"), (83, "not a restart")]


def test_jump_measures_have_no_infinite_numbers() -> None:
    trace = Trace([0.1, 0.0, 0.1, 0.05], epochs=4, marks=(2,))
    [measured] = evidence.effects([0.1, 0.2, 0.1, 0.2], trace.jumps())
    effect = measured.to_dict()
    assert effect["ratio"] is None
    assert "jump/ratio" not in evidence.jump_metrics(effect)
    json.dumps(effect, allow_nan=False)


# The real thing, small.


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set on which a tiny sweep learns something: without that there is nothing to confirm or examine."""
    return tiny.squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def trained(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """A baseline, a staircase as another, and a trial with a restart, trained by a worker in this process."""
    steps = {**STAIRCASE, "steps": [1], "family": "cawb"}
    written = {
        **SWEEP,
        **tiny.LEARNING,
        "data": str(squares),
        "name": "battery",
        "trials": 1,
        "search": {**RESTART, "lr": tiny.LEARNING["lr0"]},
    }
    written |= {"baselines": [*SWEEP["baselines"], steps], "confirm": {"best": 1, "seeds": 2}}
    written |= {"escape": {"snapshots": 1, "points": 3, "bn_batches": 1, "val_images": 8}}
    service = Service(Sweep.build(written), Place(str(tmp_path_factory.mktemp("battery"))))
    service.launch()
    work(service)
    return service


def work(service: Service) -> None:
    Worker(service, device="cpu", stop=threading.Event()).run()


def test_the_battery_trains_nothing_before_the_restart_again(trained: Service) -> None:
    rows = trained.study.trials()
    assert [row.facts.effects[0]["kind"] for row in rows[1:3]] == ["drop", "restart"]
    assert list(trained.examine(rows[1])) == [0, 0], "nothing is trained for a staircase"
    assert trained.verdicts(rows[1])[0].verdict.word == "not a restart"

    steps = trained.examine(evidence.subject(rows))
    assert next(steps) == 3
    work(trained)
    assert next(steps) == 1
    work(trained)
    kinds = {row.facts.control.kind: row for row in trained.study.trials() if row.stage == "control"}
    spent = {kind: (row.facts.epochs_reused, row.facts.epochs_trained) for kind, row in kinds.items()}
    # with step_scale 1 the restart's peak is the run's, so the matched peak has the run's warm-up of one epoch
    assert spent == {"counterfactual": (2, 2), "matched_peak": (1, 3), "seed": (0, 4), "barrier": (4, 0)}
    landscape = kinds["barrier"].facts.landscape
    assert (landscape["start"], landscape["end"]) == (2, 4)
    assert landscape["quenches"] >= 4

    answer = trained.pick().to_dict()
    [ranked] = [entry for entry in answer["ranking"] if entry["trial"] == 2]
    assert ranked["facts"]["jumps"][0]["kind"] == "restart"
    assert ranked["facts"]["verdicts"][0]["word"] in ("unclear", "no evidence of an escape"), "one run each"
    assert ranked["facts"]["verdicts"][0]["landscape"] == landscape
    assert list(trained.examine(evidence.subject(trained.study.trials()))) == [3, 1], "asked for again: nothing new"
    assert trained.study.done


def test_measures_of_jumps_are_on_the_trials_run(trained: Service) -> None:
    trained.tracker.drain(30)
    runs = {run["tags"]["sweeper.trial"]: run for run in trained.tracker.runs()}
    assert {"jump/dip", "jump/ratio", "jump/noise"} <= runs["2"]["metrics"].keys()
    assert [step for step, _, _ in history(trained.tracker.server, runs["2"]["run_id"], "jump/dip")] == [2]
    effect = trained.study.trials()[2].facts.effects[0]
    assert effect["gain"] is None or effect["gain"] <= 0, "two epochs before a restart are too few to tell a gain"
    assert ("jump/gain" in runs["2"]["metrics"]) == (effect["gain"] is not None)
    assert runs["1"]["tags"]["sweeper.verdict"] == "not a restart"
    assert "sweeper.verdict" not in runs["2"]["tags"]


@pytest.mark.slow
def test_confirmation_interrupted_and_continued_then_the_battery_with_pairs(squares: Path, tmp_path: Path) -> None:
    """run, confirm (Ctrl-C in the middle), confirm again, more seeds refused, the battery: nothing is trained twice."""
    file, search = tmp_path / "evidence.yaml", {**RESTART, "lr": tiny.LEARNING["lr0"]}
    written = {**SWEEP, **tiny.LEARNING, "data": str(squares), "name": "evidence", "trials": 1, "search": search}
    written |= {"confirm": {"best": 1, "seeds": 3}}
    file.write_text(yaml.safe_dump(written))
    ask: Callable[[], Any] = lambda: json.loads(sweeper("status", file, "--json", cwd=tmp_path).stdout)  # noqa: E731
    refused = sweeper("confirm", file, cwd=tmp_path, check=False)
    assert refused.returncode == 1
    assert "launch it first" in refused.stderr
    sweeper("run", file, cwd=tmp_path)
    snapshots = tmp_path / "sweeper_store" / "snapshots"
    before = len(list(snapshots.glob("??/*")))
    command = [sys.executable, "-m", "sweeper", "confirm", str(file)]
    first = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        wait(lambda: len(list(snapshots.glob("??/*"))) > before + 2, first)
        os.killpg(first.pid, signal.SIGINT)
        assert first.wait(60) == 130
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    assert not ask()["done"]
    sweeper("confirm", file, cwd=tmp_path)
    status = ask()
    assert status["done"]
    assert status["budget"] == 2 + 3 * 2
    refused = sweeper("confirm", file, "confirm.seeds=4", cwd=tmp_path, check=False)
    assert refused.returncode == 1
    assert "confirm.seeds is 4, but the confirmation began with 3" in refused.stderr
    assert ask()["budget"] == status["budget"]
    picked = json.loads(sweeper("pick", file, "confirm.seeds=4", "--json", cwd=tmp_path).stdout)
    assert [(c["name"], c["pairs"]["n"]) for c in picked["candidates"]] == [("trial 1", 3)]
    assert picked["notes"] == [
        "confirm.seeds is 4, but the confirmation began with 3; the design that it began with counts"
    ]
    stored = len(list(snapshots.glob("??/*")))
    said = sweeper("confirm", file, "--escape", cwd=tmp_path).stdout
    assert "3 pairs" in said or "n=3" in said
    status = ask()
    assert status["budget"] == 2 + 3 * 2 + 3 * 2 + 1
    added = status["store"]["count"] - stored
    assert added == 3 * (2 + 3), "branches from the restart on, matched peaks from the warm-up on"
    picked = json.loads(sweeper("pick", file, "--json", cwd=tmp_path).stdout)
    [verdict] = picked["candidates"][0]["facts"]["verdicts"]
    assert verdict["gain"]["n"] == verdict["over_peak"]["n"] == 3
    assert verdict["thresholds"]["over_self"] == 3.0
