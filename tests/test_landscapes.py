"""The detector against landscapes whose truth is known: it finds escapes, and where there are none it finds none."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from landscapes import digits, surfaces

from sweeper import evidence, stats
from sweeper.config import Escape
from sweeper.schedules import TimeBase, Trace, counterfactual, matched_peak, parse, snapshot_epochs

WELL = surfaces.tilted_double_well()
LIMITS = Escape(practical=0.01)  # in the loss of these landscapes: 5 % of the tilt between the wells


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.5])
def test_true_escapes_are_found(scale: float) -> None:
    measured = surfaces.battery(WELL, surfaces.restarted(0.25, scale, (150, 150)), runs=200)
    assert measured.escaped.sum() >= 5
    assert (measured.moved[measured.escaped] == "yes").mean() >= 0.95
    assert (measured.moved[~measured.escaped] == "yes").mean() <= 0.05


def test_the_curve_of_a_true_escape_shows_a_gain_and_that_of_another_run_none() -> None:
    """Runs that left the bad well for the good one with the restart, and runs that stayed where they were."""
    trace, runs, epoch = surfaces.restarted(0.25, 1.0, (900, 600)), 200, 30  # steps
    order = surfaces.gradient_noise(WELL, trace.steps, runs, seed=0)
    way = surfaces.descend(WELL, surfaces.start(WELL, runs), trace.lr, order)
    before, after = (WELL.basin(surfaces.quenched(WELL, way[step], seed=step)) for step in (900, 1500))
    averaged = way[1:].reshape(-1, epoch, *way.shape[1:]).mean(axis=1)
    scores = np.exp(-np.stack([WELL.loss(points) for points in averaged], axis=1))
    restart = SimpleNamespace(epoch=900 // epoch, ratio=100.0, kind="restart")
    gains = [evidence.effects(curve, [restart])[0].gain or 0.0 for curve in scores]
    shows = np.array(gains) > 0.05
    assert (after > before).sum() >= 20
    assert shows[after > before].mean() >= 0.95
    assert not shows[after == before].any()


@pytest.mark.parametrize("scale", [0.2, 0.4])
def test_small_restarts_escape_nothing_and_nothing_is_reported(scale: float) -> None:
    measured = surfaces.battery(WELL, surfaces.restarted(0.25, scale, (150, 150)), runs=200)
    assert measured.escaped.mean() <= 0.01, "but for a run that was still between the wells when the restart came"
    assert not (measured.moved[~measured.escaped] == "yes").any()


@pytest.mark.parametrize("surface", [surfaces.quadratic(), surfaces.straight_river()], ids=["quadratic", "river"])
def test_where_there_is_one_basin_and_no_bend_nothing_is_ever_reported(surface: surfaces.Surface) -> None:
    measured = surfaces.battery(surface, surfaces.restarted(0.25, 1.0, (150, 150)), runs=200)
    assert not (measured.moved == "yes").any()


def test_a_curved_river_fools_the_straight_line_but_not_the_path() -> None:
    trace = surfaces.restarted(0.25, 1.0, (150, 300))
    measured = surfaces.battery(surfaces.curved_river(), trace, runs=200)
    assert (measured.direct > 3 * measured.self_barrier).mean() >= 0.85, "the trap works: the line crosses the wall"
    assert (measured.moved == "yes").mean() <= 0.10
    assert ((measured.path > 3 * measured.self_barrier) & (measured.path > 0)).mean() <= 0.10, (
        "even without the scale of seeds"
    )
    few = surfaces.battery(surfaces.curved_river(), trace, runs=100, thresholds=Escape(snapshots=2))
    assert (few.moved == "yes").mean() > 0.10, "two snapshots are too few: the number matters"


def outcome(surface: surfaces.Surface, trace: Trace, runs: int) -> np.ndarray:
    """What a run is worth: minus the loss at the bottom below its end, the same data order in every call."""
    order = surfaces.gradient_noise(surface, trace.steps, runs, seed=0)
    way = surfaces.descend(surface, surfaces.start(surface, runs), trace.lr, order)
    return -surface.loss(surfaces.quenched(surface, way[-1], seed=9))


def judge(surface: surfaces.Surface, trace: Trace, *, moved: bool, runs: int = 1000) -> evidence.Verdict:
    """The whole battery on one restart; the barrier is that of the first run which has (not) moved in truth."""
    [restart] = trace.jumps()
    run = outcome(surface, trace, runs)
    branch = outcome(surface, counterfactual(trace, restart.step), runs)
    control = outcome(surface, matched_peak(trace, restart.step), runs)
    measured = surfaces.battery(surface, trace, 100)
    one = int(np.flatnonzero(measured.escaped == moved)[0])
    return evidence.verdict(
        restart.kind,
        movement=evidence.Movement(float(measured.path[one]), float(measured.self_barrier[one]), measured.seeds),
        gain=stats.paired(run, branch),
        over_peak=stats.paired(run, control),
        thresholds=LIMITS,
    )


def test_a_stuck_start_is_credited_to_the_larger_lr() -> None:
    """At LR 0.05 nothing leaves the bad well; a restart at 5x does, and one anneal from that LR does it better."""
    trace = surfaces.restarted(0.05, 5.0, (500, 500))
    [restart] = trace.jumps()
    good = [
        (outcome(WELL, t, 1000) > -0.1).mean()
        for t in (counterfactual(trace, restart.step), trace, matched_peak(trace, restart.step))
    ]
    assert good[0] == 0.0
    assert 0.5 < good[1] < good[2] < 0.75
    assert judge(WELL, trace, moved=True).word == "gain explained by a larger LR"


def test_a_restart_that_no_single_anneal_beats_is_an_escape() -> None:
    """The first cycle was too short to leave the bad well; the restart is as good as the best single anneal."""
    assert judge(WELL, surfaces.restarted(0.25, 1.0, (150, 850)), moved=True).word == "escape"


def test_more_of_the_same_valley_is_progress_not_an_escape() -> None:
    assert judge(surfaces.straight_river(slope=0.1), surfaces.restarted(0.25, 1.0, (150, 150)), moved=False).word == (
        "progress in the same basin"
    )


def test_a_bowl_gives_no_evidence_of_an_escape() -> None:
    trace = surfaces.restarted(0.25, 1.0, (150, 150))
    assert judge(surfaces.quadratic(), trace, moved=False).word == "no evidence of an escape"


def test_the_articles_staircase_is_not_a_restart() -> None:
    spec = {"family": "cawb", "mode": "article", "lr": 0.1, "steps": [31, 81], "step_scale": 0.7, "epoch_scale": 4}
    trace = parse({**spec, "decay": "0.65*((1+cos(pi*x/y))/2)+0.35"}).trace(TimeBase(150, 4))
    jumps = trace.jumps()
    assert [round(jump.ratio, 2) for jump in jumps] == [0.77, 0.77]
    curve = np.linspace(0.1, 0.165, 150)
    for effect in evidence.effects(curve, jumps):
        assert evidence.verdict(effect.kind, gain=stats.paired(curve[:9] + 0.1, curve[:9])).word == "not a restart"


# A network.


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def settle(weights: digits.Weights, order: int) -> digits.Weights:
    return digits.train(weights, surfaces.anneal(0.01, 60, 0.001), order)


@pytest.fixture(scope="module")
def trained() -> list[digits.Weights]:
    """Two networks from independent seeds, each at the bottom of its basin."""
    return [
        settle(digits.train(digits.weights_of(digits.network(seed)), surfaces.anneal(0.1, 300), seed), seed)
        for seed in (1, 2)
    ]


@pytest.fixture(scope="module")
def scales(trained: list[digits.Weights]) -> tuple[float, float]:
    """Self-barrier, and the barrier between seeds."""
    one, other = settle(trained[0], 5), settle(trained[0], 6)
    return evidence.barrier(digits.loss, one, other).height, evidence.barrier(digits.loss, *trained).height


def test_the_network_learned(trained: list[digits.Weights]) -> None:
    assert min(digits.accuracy(weights) for weights in trained) > 0.9


def test_independent_seeds_have_moved_apart(trained: list[digits.Weights], scales: tuple[float, float]) -> None:
    own, seeds = scales
    movement = evidence.Movement(evidence.path_barrier(digits.loss, trained[0], [], trained[1]).height, own, seeds)
    assert movement.moved(Escape())[0] == "yes"


def test_without_fresh_batchnorm_statistics_barriers_are_inflated(trained: list[digits.Weights]) -> None:
    fresh = evidence.barrier(digits.loss, *trained).height
    stale = evidence.barrier(lambda weights: digits.loss(weights, recompute=False), *trained).height
    assert stale > 1.5 * fresh


@pytest.mark.parametrize("peak", [0.02, 0.1])
def test_a_restart_to_no_more_than_the_first_lr_leaves_a_network_in_its_basin(
    trained: list[digits.Weights], scales: tuple[float, float], peak: float
) -> None:
    own, seeds = scales
    lr = surfaces.anneal(peak, 300)
    trace = Trace(lr, epochs=len(lr))
    stops = [0, *snapshot_epochs(trace, 0, 300, 8), 300]
    weights, quenched = trained[0], [settle(trained[0], 5)]
    for i, (first, last) in enumerate(pairwise(stops)):
        weights = digits.train(weights, trace.lr[first:last], 100 + i)
        quenched.append(settle(weights, 200 + i))
    height = evidence.path_barrier(digits.loss, quenched[0], quenched[1:-1], quenched[-1]).height
    assert evidence.Movement(height, own, seeds).moved(Escape())[0] == "no"
