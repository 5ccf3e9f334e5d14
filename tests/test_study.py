"""The study: exactly the trials that were asked for, whoever dies, and a plain Optuna study to everybody else."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

import optuna
import pytest
import sqlalchemy
from postgres import Postgres

from sweeper import database
from sweeper.errors import ConfigError, DatabaseError, LeaseLost, NotFinite
from sweeper.search import Suggest
from sweeper.store import Snapshot, Store
from sweeper.study import Slot, Study, Wanted, check_optuna, fence, unfinished

CONFIG = {"epochs": 4, "recipe": {"imgsz": 320, "batch": 8}, "trials": 3}
COSINE = {"family": "cosine", "lr": 0.1}
FORK = get_context("fork")


def search(count: int, **more: Any) -> list[Wanted]:
    return [Wanted("search", 7, **more)] * count


def baseline(name: str | None = None) -> Wanted:
    return Wanted("baseline", 7, schedule=COSINE, name=name)


def launch(
    url: str,
    trials: Sequence[Wanted] | int = 3,
    config: Mapping[str, Any] = CONFIG,
    sampler: str = "random",
    seed: int = 1,
    name: str = "sweep",
    **options: Any,
) -> Study:
    trials = search(trials) if isinstance(trials, int) else trials
    opened = database.open(url)
    return Study.create(opened, name, config=config, trials=trials, sampler=sampler, seed=seed, **options)


def foreign(url: str, name: str = "sweep") -> optuna.Study:
    """The study as anybody sees it who knows nothing of us."""
    return optuna.load_study(study_name=name, storage=url.replace("postgresql://", "postgresql+psycopg://"))


def space(suggest: Suggest) -> dict[str, Any]:
    lr = suggest.suggest_float("lr", 0.001, 1.0, log=True)
    power = suggest.suggest_float("power", 0.5, 2.0) if suggest.suggest_categorical("decay", ["cos", "poly"]) else 1.0
    return {"family": "cawb", "lr": lr, "power": power, "step": suggest.suggest_int("step", 10, 90, step=10)}


def claim(study: Study, worker: str = "w") -> Slot:
    slot = study.claim(worker)
    assert slot is not None
    return slot


def finish(study: Study, value: float = 0.5) -> Slot:
    slot = claim(study)
    slot.propose(space)
    slot.report(0, value)
    slot.tell(value)
    return slot


# -- the budget


def test_every_slot_is_a_waiting_trial_with_a_known_number(url: str) -> None:
    study = launch(url, [*search(3), baseline(name="article")])
    rows = study.trials()
    assert [(row.number, row.state, row.stage, row.seed) for row in rows] == [
        (0, "WAITING", "search", 7),
        (1, "WAITING", "search", 7),
        (2, "WAITING", "search", 7),
        (3, "WAITING", "baseline", 7),
    ]
    assert rows[3].spec == COSINE
    assert rows[3].facts.name == "article"
    assert not study.done


def test_baselines_come_first_then_the_lowest_number(url: str) -> None:
    study = launch(url, [*search(2), baseline(), replace(baseline(), stage="confirm")])
    assert [claim(study).number for _ in range(4)] == [2, 0, 1, 3]
    assert study.claim("w") is None
    assert not study.done


def test_launching_again_adds_only_what_is_missing(url: str) -> None:
    slots = [baseline(), baseline(), *search(2)]  # two equal baselines are two trials
    launch(url, slots)
    study = launch(url, slots)
    assert study.counts()["total"] == 4
    study = launch(url, [baseline(), baseline(), *search(5)])
    assert [row.stage for row in study.trials()] == ["baseline"] * 2 + ["search"] * 5


def test_trials_are_known_by_the_names_that_earlier_versions_gave_them() -> None:
    """Otherwise a study that was launched with one would get all of its trials a second time."""
    spec, settings = {"family": "cosine", "lr": 0.1}, {"alpha": 0.05, "equivalence": 0.002}
    design = {"candidates": [3], "baselines": ["linear"], "best": 1, "seeds": [11], **settings}
    control = {"trial": 3, "kind": "counterfactual", "restart": 1, "epoch": 20, "ratio": None, "end": 40}
    known = [
        ("baseline/31b9ec59081e2aaa", Wanted("baseline", 7, schedule=spec, name="cosine")),
        ("search/2cc713f53d4e2de4", Wanted("search", 7)),
        ("search/4822234d6661cb8e", Wanted("search", 7, name="enqueued 1", params={"floor": 0.1})),
        ("search/2cba9e8c52d23d0d", Wanted("search", 7, schedule=spec, name="enqueued 2")),
        ("search/1ac36eca26e3dedb", Wanted("search", 11, replicate_of=3)),
        ("search/17b1851fead82631", Wanted("search", 12, replicate_of=3, name="enqueued 1")),
        ("confirm/42b1d35478fd118a", Wanted("confirm", 11, schedule=spec, name="trial 3", design=design)),
        (
            "control/ac2167808813347a",
            Wanted("control", 11, schedule=spec, name="trial 3: no restart (epoch 20)", control=control),
        ),
    ]
    assert [wanted.item for _, wanted in known] == [name for name, _ in known]


def test_slots_added_later_are_added_once(url: str) -> None:
    study = launch(url, 2)
    confirm = [Wanted("confirm", seed, schedule=COSINE, name="trial 1") for seed in (11, 12)]
    study.add(confirm)
    Study.open(database.open(url), "sweep").add(confirm)
    launch(url, 3)
    assert [(row.stage, row.seed) for row in study.trials()] == [
        ("search", 7),
        ("search", 7),
        ("confirm", 11),
        ("confirm", 12),
        ("search", 7),
    ]


def _launch_at(url: str, at: float) -> None:
    time.sleep(max(0.0, at - time.time()))
    launch(url, [baseline(), *search(9)])


def test_many_workers_may_launch_at_once(url: str) -> None:
    at = time.time() + 0.3
    processes = [FORK.Process(target=_launch_at, args=(url, at)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    study = Study.open(database.open(url), "sweep")
    assert [row.number for row in study.trials()] == list(range(10))
    assert study.counts()["total"] == 10


def test_another_configuration_is_refused_with_what_changed(url: str) -> None:
    launch(url, config={**CONFIG, "seed": 1})
    changed = {"epochs": 5, "recipe": {"imgsz": 640, "batch": 8, "amp": True}, "trials": 9, "seed": 2}
    with pytest.raises(ConfigError) as caught:
        launch(url, config=changed, free_keys=("trials",))
    message = str(caught.value)
    assert "epochs: 4 -> 5, recipe.amp: null -> true, recipe.imgsz: 320 -> 640, seed: 1 -> 2;" in message
    assert "trials" not in message
    launch(url, config={**CONFIG, "seed": 1, "trials": 9}, free_keys=("trials",))
    launch(url, config={**CONFIG, "seed": 1, "trials": 9, "recipe": {"imgsz": 1}}, free_keys=("trials", "recipe"))
    assert Study.open(database.open(url), "sweep").config["trials"] == 9


def test_a_study_that_somebody_else_made_is_left_alone(url: str) -> None:
    launch(url)
    plain = foreign(url)
    other = optuna.create_study(storage=plain._storage, study_name="theirs", direction="maximize")
    other.ask()
    with pytest.raises(ConfigError, match=r"'theirs': .* has one of this name that sweeper did not create"):
        launch(url, name="theirs")
    optuna.create_study(storage=plain._storage, study_name="down", direction="minimize")
    with pytest.raises(ConfigError, match=r"'down': .* has one of this name that sweeper did not create"):
        launch(url, name="down")


def test_a_study_that_is_not_there_is_named_with_those_that_are(url: str) -> None:
    launch(url)
    with pytest.raises(DatabaseError, match=r"'other': not in .*, which has: sweep; launch it first"):
        Study.open(database.open(url), "other")


def test_a_deleted_studys_name_can_be_used_again(url: str) -> None:
    study = launch(url, 3)
    finish(study)
    running = claim(study)
    optuna.delete_study(study_name="sweep", storage=foreign(url)._storage)
    with pytest.raises(DatabaseError, match="launch it first"):
        Study.open(database.open(url), "sweep")
    again = launch(url, 2)
    assert again.counts() == {
        "waiting": 2,
        "running": 0,
        "complete": 0,
        "pruned": 0,
        "fail": 0,
        "total": 2,
    }
    with pytest.raises((LeaseLost, DatabaseError)):
        running.report(0, 0.5)


def test_a_study_made_anew_owns_nothing_of_the_deleted_one(url: str, tmp_path: Any) -> None:
    """Neither the epochs that the old one's trial of the same number trained, nor what it had pinned."""
    opened = database.open(url)
    store, state = Store(tmp_path, opened), Snapshot(1, b"state", [], "digest")
    before = claim(launch(url, 1))
    assert unfinished(opened) == [before.owner]
    store.put("key", state, owner=before.owner)
    assert store.gc(0) == (0, 0)
    optuna.delete_study(study_name="sweep", storage=foreign(url)._storage)
    after = claim(launch(url, 1))
    assert after.number == before.number
    assert after.owner != before.owner
    assert unfinished(opened) == [after.owner]
    assert store.gc(0)[0] == 1


# -- leases


def test_no_slot_is_claimed_twice(url: str) -> None:
    launch(url, 40)
    opened = database.open(url)

    def work(worker: int) -> list[int]:
        study, numbers = Study.open(opened, "sweep"), []
        while (slot := study.claim(f"w{worker}")) is not None:
            numbers.append(slot.number)
        return numbers

    with ThreadPoolExecutor(4) as pool:
        claimed = list(pool.map(work, range(4)))
    assert sorted(number for numbers in claimed for number in numbers) == list(range(40))


def test_a_dead_workers_trial_is_adopted_as_it_was(url: str) -> None:
    study = launch(url, 1, lease_seconds=0.3)
    dead = claim(study, "dead")
    spec = dead.propose(space)
    dead.report(0, 0.25)
    dead.set("trace", "abc")
    assert study.claim("heir") is None
    time.sleep(0.4)
    heir = claim(study, "heir")
    assert (heir.number, heir.attempt, heir.curve) == (dead.number, dead.attempt + 1, {0: 0.25})
    assert heir.facts.trace == "abc"
    assert heir.reasons == ("dead stopped renewing its lease (attempt 1)",)
    assert heir.propose(lambda suggest: pytest.fail("asked again")) == spec  # type: ignore[arg-type, return-value]


def test_who_lost_the_lease_writes_nothing(url: str) -> None:
    study = launch(url, 1, lease_seconds=0.2)
    frozen = claim(study, "frozen")
    time.sleep(0.3)
    heir = claim(study, "heir")
    before = study.trials()
    for write in (
        frozen.renew,
        lambda: frozen.propose(space),
        lambda: frozen.report(0, 0.9),
        lambda: frozen.set("pruned", "late"),
        lambda: frozen.tell(0.9),
        lambda: frozen.prune(0.9),
        lambda: frozen.fail("late"),
    ):
        with pytest.raises(LeaseLost, match="trial 0: frozen no longer holds attempt 1"):
            write()
    frozen.release("late")  # nothing to give
    assert study.trials() == before
    heir.tell(0.5)
    with pytest.raises(LeaseLost):
        frozen.tell(0.9)
    with pytest.raises(LeaseLost):
        heir.report(1, 0.9)
    assert study.trials()[0].score == 0.5


def test_a_late_renewal_counts_while_nobody_else_came(url: str) -> None:
    study = launch(url, 1, lease_seconds=0.1)
    slot = claim(study)
    time.sleep(0.2)  # the database was away, say: better to go on than to train again
    slot.report(0, 0.5)
    slot.tell(0.5)
    assert study.done


def test_every_write_renews(url: str) -> None:
    study = launch(url, 1, lease_seconds=0.6)
    slot = claim(study)
    for epoch in range(4):
        time.sleep(0.25)
        slot.report(epoch, 0.5)
    assert study.claim("thief") is None


def test_what_is_given_back_is_claimable_at_once_and_costs_nothing(url: str) -> None:
    study = launch(url, 1, attempts=2)
    for attempt in range(1, 6):
        slot = claim(study)
        assert (slot.attempt, slot.reasons) == (attempt, ())
        slot.release()
    claim(study).tell(0.5)
    assert study.done


def test_a_trial_counts_as_running_while_a_worker_has_it(url: str) -> None:
    """A trial that waits for its trunk is claimed and given back: Optuna calls it running from then on."""
    study = launch(url, 2)
    slot = claim(study)
    assert (study.counts()["running"], study.counts()["waiting"]) == (1, 1)
    slot.release()
    assert (study.counts()["running"], study.counts()["waiting"]) == (0, 2)
    assert [trial.shown_state for trial in study.trials()] == ["waiting", "waiting"]
    assert study.trials()[0].state == "RUNNING"


def test_attempts_that_get_on_are_not_counted(url: str) -> None:
    """What dies again and again, but an epoch later each time, ends well."""
    study = launch(url, 1, attempts=2)
    for epoch in range(5):
        slot = claim(study)
        assert slot.number == 0
        slot.propose(lambda suggest: {"x": 1})
        slot.report(epoch, 0.5)
        slot.release("segmentation fault")
    assert len(claim(study).reasons) == 5


def test_attempts_that_end_badly_are_limited_and_remembered(url: str) -> None:
    study = launch(url, 2, attempts=2, lease_seconds=0.2)
    claim(study).release("out of memory")
    slot = claim(study)
    assert slot.number == 0
    slot.release("segmentation fault")
    claim(study, "w1")
    time.sleep(0.3)
    claim(study, "w2")
    time.sleep(0.3)
    assert study.claim("w3") is None
    assert study.done
    first, second = study.trials()
    assert (first.state, first.reasons) == ("FAIL", ("out of memory", "segmentation fault"))
    assert second.state == "FAIL"
    assert [reason.split()[0] for reason in second.reasons] == ["w1", "w2"]
    assert [trial.user_attrs["reasons"] for trial in foreign(url).trials] == [list(first.reasons), list(second.reasons)]


def test_states_and_values_as_optuna_sees_them(url: str) -> None:
    study = launch(url, 3)
    told, pruned, failed = claim(study), claim(study), claim(study)
    for slot in (told, pruned, failed):
        slot.propose(space)
        for epoch, value in enumerate((0.1, 0.4, 0.2)):
            slot.report(epoch, value)
    told.tell(0.3)
    pruned.prune(0.4)  # the best annealed value, not the dip that came last
    failed.fail("not finite")
    trials = foreign(url).trials
    assert [(trial.state.name, trial.value) for trial in trials] == [("COMPLETE", 0.3), ("PRUNED", 0.4), ("FAIL", None)]
    assert trials[1].intermediate_values == {0: 0.1, 1: 0.4, 2: 0.2}
    assert study.done
    assert study.counts()["pruned"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_objective_is_a_finite_number(url: str, value: float) -> None:
    study = launch(url, 1)
    slot = claim(study)
    with pytest.raises(NotFinite, match="trial 0: the objective is"):
        slot.tell(value)
    slot.report(0, value)  # a single epoch may be anything
    slot.tell(0.5)


# -- others at the same study


def test_a_trial_that_somebody_else_asked_for_is_trained_all_the_same(url: str) -> None:
    study = launch(url, [*search(2), baseline(name="b")])
    theirs = foreign(url).ask()
    assert theirs.number == 0
    numbers = []
    while (slot := study.claim("w")) is not None:
        slot.propose(space)
        slot.tell(0.5)
        numbers.append((slot.number, slot.stage))
    assert numbers == [(2, "baseline"), (0, "search"), (1, "search")]
    assert study.done


def test_a_trial_that_somebody_else_added_is_none_of_the_studys(url: str) -> None:
    study = launch(url, 2)
    foreign(url).add_trial(optuna.trial.create_trial(value=0.9))
    foreign(url).enqueue_trial({"x": 0.5})
    assert [trial.number for trial in study.trials()] == [0, 1]
    assert study.counts() == {"waiting": 2, "running": 0, "complete": 0, "pruned": 0, "fail": 0, "total": 2}
    for _ in range(2):
        finish(study)
    assert study.done


def test_a_trial_told_by_somebody_else_is_finished(url: str) -> None:
    study = launch(url, 2)
    slot = claim(study)
    foreign(url).tell(slot.number, 0.75)
    with pytest.raises(LeaseLost):
        slot.tell(0.5)
    with pytest.raises(LeaseLost):
        slot.set("pruned", "late")
    slot.release()
    assert claim(study).number == 1
    assert [(row.state, row.score) for row in study.trials()] == [("COMPLETE", 0.75), ("RUNNING", None)]


def test_optunas_command_line_reads_the_study(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/sweep.db"
    finish(launch(url, 2), 0.625)
    command = ["best-trial", "--study-name", "sweep", "--storage", url, "-f", "json"]
    program = [sys.executable, "-c", "from optuna.cli import main; main()"]
    said = subprocess.run([*program, *command], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout)["value"] == 0.625


# -- proposals


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "grid"])
def test_a_proposal_depends_on_seed_number_and_searched_history_alone(tmp_path: Any, sampler: str) -> None:
    """Also past the samplers' start-up trials, and whatever baselines there are and how good they were."""
    count = 13

    def proposals(name: str, others: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        # The others come behind in numbers, and are claimed first where they are baselines.
        study = launch(f"sqlite:///{tmp_path}/{name}.db", [*search(count), *others], sampler=sampler, seed=3)
        found = []
        while (slot := study.claim("w")) is not None:
            if slot.stage == "baseline":
                slot.report(0, 99.0)
                slot.tell(99.0)
            else:
                found.append(slot.propose(_grid))
                slot.tell(-((found[-1]["x"] - 0.3) ** 2) - found[-1]["y"] / 100)
        return found

    alone = proposals("alone", [])
    assert proposals("again", []) == alone
    assert proposals("among", [baseline(f"b{index}") for index in range(4)]) == alone
    if sampler == "grid":
        assert len({json.dumps(point) for point in alone}) == count


def _grid(suggest: Suggest) -> dict[str, Any]:
    return {"x": suggest.suggest_float("x", 0.0, 1.0, step=0.1), "y": suggest.suggest_int("y", 1, 3)}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_samplers_learn_while_there_are_baselines(tmp_path: Any, sampler: str) -> None:
    slots = [baseline(f"b{index}") for index in range(12)] + search(24)
    study = launch(f"sqlite:///{tmp_path}/sweep.db", slots, sampler=sampler)
    found = []
    while (slot := study.claim("w")) is not None:
        if slot.stage == "baseline":
            slot.tell(1.0)
        else:
            x = slot.propose(lambda suggest: {"x": suggest.suggest_float("x", 0.0, 1.0)})["x"]
            found.append(abs(x - 0.3))
            slot.tell(-found[-1])
    assert sum(found[-8:]) / 8 < 0.17  # 0.29 by chance


def test_the_same_seed_proposes_the_same_in_another_process(tmp_path: Any) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_study import launch, space\n"
        "study = launch(sys.argv[1], 13, sampler='tpe')\n"
        "while (slot := study.claim('w')) is not None: print(slot.propose(space)); slot.tell(slot.number % 5)"
    )
    said = set()
    for seed in ("1", "2"):
        path = [str(os.path.dirname(__file__)), os.path.dirname(os.path.dirname(__file__))]
        said.add(
            subprocess.run(
                [sys.executable, "-c", code, f"sqlite:///{tmp_path}/{seed}.db", *path],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    assert len(said) == 1


def test_parallel_workers_propose_differently(url: str) -> None:
    study = launch(url, 6, sampler="tpe")
    proposals = [json.dumps(claim(study, f"w{index}").propose(space)) for index in range(6)]
    assert len(set(proposals)) == 6


def test_a_pruned_trial_teaches_what_it_was_told(tmp_path: Any) -> None:
    """TPE ranks pruned trials by their last epoch, which may lie in a dip: it gets to see the value told."""

    def next_after(last: float) -> dict[str, Any]:
        study = launch(f"sqlite:///{tmp_path}/{last}.db", 14, sampler="tpe")
        for index in range(13):
            slot = claim(study)
            spec = slot.propose(space)
            slot.report(0, spec["lr"])
            slot.report(1, last if index % 2 else -last)
            slot.prune(spec["lr"])
        return claim(study).propose(space)

    assert next_after(0.0) == next_after(0.9)


def test_a_proposal_that_is_turned_down_or_cut_short_leaves_nothing(url: str) -> None:
    study = launch(url, 1, sampler="tpe")
    slot, known = claim(study), list[Any]()

    def dies(suggest: Suggest) -> dict[str, Any]:
        space(suggest)
        raise KeyboardInterrupt

    def turned_down(spec: Mapping[str, Any]) -> bool:
        known.append(dict(spec))
        return len(known) < 4

    with pytest.raises(KeyboardInterrupt):
        slot.propose(dies)
    assert study.trials()[0].params == {}
    assert slot.propose(space, known=turned_down) == known[-1]
    assert len({json.dumps(spec) for spec in known}) == 4
    (row,) = study.trials()
    assert (row.params["lr"], row.params["step"]) == (known[-1]["lr"], known[-1]["step"])
    assert (row.facts.proposals, row.spec) == (4, known[-1])


def test_a_proposal_goes_on_with_the_answers_that_an_earlier_attempt_stored(url: str) -> None:
    study = launch(url, 1, sampler="tpe")
    slot = claim(study)
    with pytest.raises(KeyboardInterrupt), interrupted_after(2):
        slot.propose(space)
    (stored,) = (row.params for row in study.trials())
    assert len(stored) == 2
    slot.release()
    again = claim(Study.open(database.open(url), "sweep"))
    assert again.propose(space, known=lambda spec: True)["lr"] == stored["lr"]
    params = study.trials()[0].params
    assert len(params) > 2
    assert params.items() >= stored.items()


@contextmanager
def interrupted_after(answers: int) -> Iterator[None]:
    """The process is interrupted when it has stored so many of a proposal's answers."""
    stored = []

    def executed(*statement: Any) -> None:
        if statement[2].startswith("INSERT INTO trial_params"):
            stored.append(statement[2])
            if len(stored) > answers:
                raise KeyboardInterrupt

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", executed)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", executed)


def test_known_good_parameters_can_be_given(url: str) -> None:
    known = {"lr": 0.125, "decay": "poly", "power": 1.5, "step": 30}
    study = launch(url, search(1, params=known), sampler="tpe")
    assert claim(study).propose(space) == {"family": "cawb", "lr": 0.125, "power": 1.5, "step": 30}
    assert study.trials()[0].params == known


def test_a_fixed_schedule_is_proposed_as_it_is(url: str) -> None:
    study = launch(url, [baseline()])
    assert claim(study).propose(space) == COSINE
    assert study.trials()[0].params == {}


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ("best", "'best' cannot be made: .*; expected one of tpe, random, gp, grid, or module:Class"),
        ("no_such:Thing", "No module named 'no_such'"),
        ("optuna.samplers:NoSuch", "has no attribute 'NoSuch'"),
        ("json:dumps", "is no subclass of optuna.samplers.BaseSampler"),
        ("optuna.samplers:GridSampler", "cannot be made"),
    ],
)
def test_a_sampler_that_cannot_be_had_is_named_before_anything_is_made(tmp_path: Any, sampler: str, said: str) -> None:
    url = f"sqlite:///{tmp_path}/sweep.db"
    with pytest.raises(ConfigError, match=said):
        launch(url, sampler=sampler)
    with pytest.raises(DatabaseError, match="which has: none"):
        Study.open(database.open(url), "sweep")


def test_an_optuna_that_would_write_past_the_fence_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = database.open(tmp_path / "sweep.db")
    check_optuna()
    with monkeypatch.context() as later:
        later.delattr(optuna.storages.BaseStorage, "check_trial_is_updatable")
        with pytest.raises(DatabaseError, match=r"RDBStorage\.check_trial_is_updatable is missing") as refused:
            fence.open_storage(opened)
        assert f"Optuna {optuna.__version__}" in str(refused.value)
        assert "optuna>=5.0,<5.1" in str(refused.value)
    fence.open_storage(opened)


def test_any_sampler_of_optunas_by_import_path(tmp_path: Any) -> None:
    study = launch(f"sqlite:///{tmp_path}/sweep.db", 3, sampler="optuna.samplers:NSGAIISampler")
    assert all(finish(study).spec for _ in range(3))


def test_a_sampler_that_counts_in_the_study_goes_on_where_the_last_proposal_ended(url: str) -> None:
    study = launch(url, 6, sampler="optuna.samplers:QMCSampler")
    points = {tuple(finish(study).propose(space).items()) for _ in range(6)}
    assert len(points) == 6


# -- what it tells


def test_a_finished_twin_is_found(url: str) -> None:
    study = launch(url, 3)
    first = claim(study)
    for key, value in {"trace": "t", "recipe": "r"}.items():
        first.set(key, value)
    assert study.find("t", 7, "r") is None  # not finished yet
    first.report(0, 0.25)
    first.tell(0.5)
    twin = study.find("t", 7, "r")
    assert twin is not None
    assert (twin.number, twin.score, twin.curve) == (0, 0.5, {0: 0.25})
    assert study.find("t", 8, "r") is None
    assert study.find("t", 7, "other") is None


def test_a_finished_trial_says_how_long_it_took(url: str) -> None:
    study = launch(url, 1)
    assert study.trials()[0].seconds is None
    finish(study, 0.25)
    assert study.trials()[0].seconds is not None


def test_workers_are_known_by_their_last_word(url: str) -> None:
    study = launch(url, 1)
    study.heartbeat("a", host="h", pid=1, device="cuda:0")
    time.sleep(0.05)
    study.heartbeat("b", host="h", pid=2, device="cpu", number=3, epoch=4)
    study.heartbeat("b", host="h", pid=2, device="cpu", number=3, epoch=5)
    first, second = study.workers()
    assert (first.worker, first.number, first.epoch) == ("b", 3, 5)
    assert (second.worker, second.device, second.number) == ("a", "cuda:0", None)
    assert 0 <= first.age_s < second.age_s < 10


# -- faults


def objective(spec: Mapping[str, Any], epoch: int) -> float:
    return float(spec["lr"]) * (epoch + 1)


def work(url: str, epochs: int, pause: float) -> None:
    """A worker whose training is a pause; killed at any moment by the tests."""
    study = Study.open(database.open(url), "sweep", lease_seconds=0.8, attempts=1000)
    while not study.done:
        slot = study.claim(f"worker-{os.getpid()}")
        if slot is None:
            time.sleep(0.05)
            continue
        try:
            spec = slot.propose(space)
            for epoch in range(len(slot.curve), epochs):
                time.sleep(pause)
                slot.report(epoch, objective(spec, epoch))
            slot.tell(objective(spec, epochs - 1))
        except LeaseLost:
            continue


def start(url: str, epochs: int, pause: float) -> BaseProcess:
    process = FORK.Process(target=work, args=(url, epochs, pause), daemon=True)
    process.start()
    return process


def drill(url: str, trials: int, workers: int, kills: int, epochs: int, pause: float, seed: int) -> None:
    """Kill random workers until ``kills`` are dead, each replaced at once; then audit."""
    launch(url, trials, sampler="tpe")._database.engine.dispose()
    chance, crew, killed = random.Random(seed), [start(url, epochs, pause) for _ in range(workers)], 0
    limit = time.monotonic() + 60 + 3 * kills
    while any(process.is_alive() for process in crew):
        assert time.monotonic() < limit, "the sweep does not end"
        time.sleep(chance.uniform(0.05, 0.5))
        index = chance.randrange(workers)
        if killed < kills and crew[index].is_alive():
            os.kill(crew[index].pid or 0, signal.SIGKILL)
            crew[index].join()
            crew[index] = start(url, epochs, pause)
            killed += 1
    assert [process.exitcode for process in crew] == [0] * workers
    trials_seen = foreign(url).trials
    assert [trial.number for trial in trials_seen] == list(range(trials))
    assert {trial.state.name for trial in trials_seen} == {"COMPLETE"}
    for trial in trials_seen:
        spec = trial.user_attrs["schedule"]
        assert trial.params["lr"] == spec["lr"]
        assert trial.intermediate_values == {epoch: objective(spec, epoch) for epoch in range(epochs)}
        assert trial.value == objective(spec, epochs - 1)
    assert killed == kills


def test_kill_9_leaves_exactly_the_trials_asked_for(url: str) -> None:
    drill(url, trials=10, workers=3, kills=5, epochs=6, pause=0.06, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kill_9_many_times(url: str, seed: int) -> None:
    drill(url, trials=40, workers=6, kills=25, epochs=8, pause=0.08, seed=seed)


def _hold(url: str, ready: Any, said: Any) -> None:
    slot = claim(Study.open(database.open(url), "sweep", lease_seconds=0.5), "frozen")
    slot.report(0, 0.1)
    ready.set()
    try:
        while True:
            slot.report(1, 0.1)
    except LeaseLost as error:
        said.put(str(error))


def test_a_frozen_worker_that_wakes_up_writes_nothing(url: str) -> None:
    study = launch(url, 1, lease_seconds=0.5)
    ready, said = FORK.Event(), FORK.Queue()
    frozen = FORK.Process(target=_hold, args=(url, ready, said), daemon=True)
    frozen.start()
    assert ready.wait(20)
    heir = None
    while heir is None:  # frozen inside a transaction it may hold the database's lock: then wake it and try again
        os.kill(frozen.pid or 0, signal.SIGSTOP)
        try:
            time.sleep(0.7)
            heir = _patiently(lambda: study.claim("heir"), frozen)
        finally:
            os.kill(frozen.pid or 0, signal.SIGCONT)
    heir.report(1, 0.7)
    assert "frozen no longer holds attempt 1" in said.get(timeout=20)
    frozen.join(20)
    assert study.trials()[0].curve == {0: 0.1, 1: 0.7}
    heir.tell(0.7)


def _patiently(work: Any, frozen: BaseProcess) -> Any:
    """The result of ``work``; after two seconds the frozen process gets to run, for it may hold the lock."""
    wake = threading.Timer(2.0, os.kill, (frozen.pid, signal.SIGCONT))
    wake.start()
    try:
        return work()
    finally:
        wake.cancel()


def test_a_trial_goes_on_through_an_outage(postgres: Postgres) -> None:
    study = launch(postgres.database(), 2)
    slot = claim(study)
    slot.propose(space)
    postgres.stop()
    back = threading.Timer(2.0, postgres.start)
    back.start()
    slot.report(0, 0.25)
    back.join()
    postgres.stop()
    postgres.start()  # and one that nobody noticed
    slot.report(1, 0.5)
    slot.tell(0.5)
    assert study.trials()[0].curve == {0: 0.25, 1: 0.5}
    assert claim(study).number == 1
