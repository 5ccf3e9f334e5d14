"""Duplicates, pruned and dead trials in a real study with a real worker, on a handful of digits."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny

from sweeper.config import Sweep
from sweeper.errors import ConfigError
from sweeper.schedules import Trace, parse
from sweeper.search import rules
from sweeper.service import Place, Service
from sweeper.study import Slot, Trial
from sweeper.worker import Worker
from sweeper.worker.segments import OtherTrials

EPOCHS = 3
SWEEP: dict[str, Any] = {
    "name": "twins",
    "model": "yolo11n.yaml",
    "epochs": EPOCHS,
    "imgsz": 32,
    "batch": 8,
    "nbs": 8,
    "mosaic": 0.0,
    "lr0": 0.02,
    "trials": 1,
    "baselines": [],
    # two answers to each question, one schedule: whatever is proposed is a duplicate
    "search": {"family": "cawb", "warmup": ["1ep", 1], "floor": [0, "0.0"]},
    "sampler": "random",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 + 8 digits as a data set; the store will be here, too."""
    folder = tmp_path_factory.mktemp("twins")
    tiny.images(folder, train=16)
    return folder


def service(folder: Path, **more: Any) -> Service:
    sweep = Sweep.build({**SWEEP, "data": str(folder / "data" / "data.yaml"), **more})
    opened = Service(sweep, Place(str(folder / "store")))
    opened.launch()
    return opened


def test_a_plan_counts_what_was_enqueued_and_refuses_what_launch_does(folder: Path) -> None:
    space = {"family": "cawb", "restarts": {"max": 2}, "warmup": 0, "step_scale": [0.5, 1.0]}
    answers = {"restart_1": True, "restart_2": False, "step_scale": 1.0}
    sweep = Sweep.build(
        {**SWEEP, "data": str(folder / "data" / "data.yaml"), "search": space, "trials": 3, "enqueue": [answers]}
    )
    planned = Service(sweep, Place(str(folder / "store"))).plan().to_dict()
    draws = [shown["spec"] for shown in planned["schedules"] if shown["kind"] == "search"]
    assert len(draws) == planned["distinct"] == 3
    assert (draws[0]["steps"], draws[0]["step_scale"]) == ([1], 1.0)
    with pytest.raises(ConfigError, match="sampler: 'nobody:Has' cannot be made: No module named 'nobody'"):
        Service(sweep.model_copy(update={"sampler": "nobody:Has"}), Place(str(folder / "store"))).plan().to_dict()


def trained(folder: Path, **more: Any) -> Service:
    opened = service(folder, **more)
    Worker(opened, device="cpu", stop=threading.Event(), name="w").run()
    return opened


@pytest.fixture(scope="module")
def twins(folder: Path) -> tuple[Trial, Service]:
    """One trial trained, every state of it thrown away, then two more proposals."""
    first = trained(folder)
    [row] = first.study.trials()
    first.store.gc(0)
    assert first.store.usage().count == 0
    return row, trained(folder, trials=3)


def test_a_duplicate_takes_its_twins_result_even_when_the_states_are_gone(twins: tuple[Trial, Service]) -> None:
    first, after = twins
    rows = after.study.trials()
    assert [row.state for row in rows] == ["COMPLETE"] * 3
    assert after.store.usage().count == 0  # nothing was trained
    for row in rows[1:]:
        assert row.facts.duplicate_of == 0
        assert (row.score, row.curve) == (first.score, first.curve)
        assert (row.facts.epochs_trained, row.facts.epochs_reused) == (0, EPOCHS)
        assert row.facts.state_digest == first.facts.state_digest
        assert {"warmup", "floor"} == set(row.params)  # the sampler learns the value of these answers


def test_proposals_are_counted(twins: tuple[Trial, Service]) -> None:
    status = twins[1].status().to_dict()
    counted = {"asked": 101, "told": 3, "distinct": 1, "duplicates": 2}
    assert status["proposals"] == {**counted, "per_trial": pytest.approx(101 / 3)}  # 50 for each of the last two
    assert status["epochs"] == {"per_trial": EPOCHS, "trained": EPOCHS, "reused": 2 * EPOCHS}


def test_the_facts_of_a_schedule_are_plain_numbers_on_the_trial(twins: tuple[Trial, Service]) -> None:
    """One by one, as optuna-dashboard shows and plots them."""
    row = twins[1].study.trials()[0]
    assert row.spec is not None
    facts = twins[1].trace(row.schedule).facts()
    for name in ("restarts", "drops", "peak", "final", "integral", "warmup_fraction"):
        assert getattr(row.facts, name) == facts[name]


def test_a_dead_run_is_stopped_and_keeps_its_states(folder: Path) -> None:
    """mAP 0 in all of the first epochs; it is told 0, which the sampler learns, and others may go on from it."""
    after = trained(folder, name="dead", dead_after=2, lr0=1e-7, search={"family": "cawb", "warmup": "1ep"})
    [row] = after.study.trials()
    assert row.state == "PRUNED"
    assert row.score == 0.0
    assert list(row.curve) == [0, 1]
    assert row.facts.pruned.startswith("dead: ")
    assert after.store.usage().count == 2


# -- the verdict on a trial, against what a real study holds

STEPPED = {"family": "cawb", "steps": [2], "lr": 0.02}


@pytest.fixture(scope="module")
def judged(folder: Path) -> tuple[OtherTrials, Slot, Trace]:
    """Five finished trials that stood at 0.30 to 0.34 after two of four epochs, and a sixth at work."""
    opened = service(
        folder,
        name="pruned",
        epochs=4,
        trials=6,
        search={"family": "cawb", "restarts": {"min": 1, "max": 1, "first": 2}, "horizon": "end", "floor": [0.0, 0.1]},
        pruner={"name": "cycle_end", "from_epoch": 2, "share": 0.5},
    )
    for number in range(5):
        slot = opened.study.claim("w")
        assert slot is not None
        slot.propose(lambda suggest: STEPPED)
        for epoch, value in enumerate((0.30 + number / 100, 0.30 + number / 100, 0.0, 0.4)):
            slot.report(epoch, value)
        slot.tell(0.4)
    last = opened.study.claim("w")
    assert last is not None
    return OtherTrials(opened), last, opened.trace(parse(STEPPED))


@pytest.mark.parametrize(
    ("curve", "stops"),
    [
        ([0.2, 0.2], True),
        ([0.3, 0.35], False),  # as good as the others
        ([0.2], False),  # no cycle ends here
        ([0.3, 0.35, 0.0], False),  # in the dip after a restart nobody is judged
        ([0.2, 0.2, 0.2, 0.2], False),  # finished
    ],
)
def test_a_trial_is_stopped_at_the_end_of_a_cycle_only(
    judged: tuple[OtherTrials, Slot, Trace], curve: list[float], stops: bool
) -> None:
    judge, slot, trace = judged
    assert (judge.verdict(slot, trace, curve) is not None) is stops


# -- the rule, on plain numbers


def rule(curve: list[float], others: list[list[float]], **more: Any) -> str | None:
    options: Mapping[str, Any] = {"from_epoch": 1, "share": 0.25, "least": 3, **more}
    return rules.cycle_end(curve, {3, 6}, others, **options)


def test_a_dip_of_others_does_not_lower_the_bar() -> None:
    others = [[0.3, 0.3, 0.3, 0.0, 0.0, 0.0]] * 4
    assert rule([0.1] * 6, others) is not None
    assert rule([0.3] * 6, others) is None


def test_a_dip_of_its_own_is_not_held_against_a_trial() -> None:
    others = [[0.3] * 6] * 4
    assert rule([0.4, 0.4, 0.4, 0.0, 0.0, 0.0], others) is None


def test_who_did_not_get_so_far_is_not_compared_with() -> None:
    assert rule([0.1] * 6, [[0.3] * 5] * 9) is None
    assert rule([0.1] * 6, [[0.3] * 6] * 2) is None
    assert rule([0.1] * 6, [[0.3] * 6] * 3) is not None
    assert rule([0.1] * 6, [[0.3] * 6] * 3, from_epoch=7) is None


def test_dead_is_never_having_left_0() -> None:
    assert rules.never_learned([0.0] * 5, 5) is not None
    assert rules.never_learned([0.0] * 4, 5) is None
    assert rules.never_learned([0.1, 0.0, 0.0, 0.0, 0.0], 5) is None
    assert rules.never_learned([0.0] * 5, None) is None
