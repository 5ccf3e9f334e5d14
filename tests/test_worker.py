"""Every segment is trained once, and nobody can tell: not by stops, kills, frozen workers, damage or two at once."""

import functools
import json
import logging
import os
import subprocess
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation import Home, Toy, World, begin, digest, forged, train, undisturbed
from trials import history
from typer.testing import CliRunner

from sweeper import data, database
from sweeper.cli import app
from sweeper.errors import DatabaseError, DeviceError, OutOfMemory, SnapshotCorrupt, TrackingError, TrackingRefused
from sweeper.schedules import text_params
from sweeper.search import rules
from sweeper.store import Snapshot
from sweeper.tracking import Tracker
from sweeper.worker import LONGEST_PAUSE_S, LONGEST_WAIT_S, Worker, pause

EPOCHS = 4
STAY = {"family": "constant", "lr": 1.0}
DROPS = [
    {"family": "multistep", "lr": 1.0, "boundaries": [at], "gamma": gamma} for at in (1, 2, 3) for gamma in (0.5, 0.1)
]
WARM = {"family": "yolo_linear", "lr": 1.0, "warmup": "1.5ep"}
SEARCH = {
    "family": "cawb",
    "lr": 1.0,
    "restarts": {"min": 0, "max": 2, "first": 1, "last": 3},
    "step_scale": [0.5, 2.0],
    "horizon": "end",
}
count = iter(range(10**6))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    return Home(data.open("digits", folder=folder), f"sqlite:///{folder}/mlflow.db")


def written(**changes: Any) -> dict[str, Any]:
    """A sweep of four epochs under a name that no other test has."""
    return {
        "name": f"sweep-{next(count)}",
        "epochs": EPOCHS,
        "trials": 0,
        "baselines": [STAY],
        "attempts": 100,
    } | changes


def assert_exact(world: World) -> set[str]:
    """Every trial ended where its undisturbed training ends, with complete curves; the keys of all segments."""
    keys: set[str] = set()
    for row in world.service.study.trials():
        trace = world.service.trace(row.schedule)
        digest, value = undisturbed(row.seed or 0, trace)
        assert (row.state, row.score, row.facts.state_digest) == ("COMPLETE", value, digest)
        assert sorted(row.curve) == list(range(EPOCHS))
        assert row.facts.epochs_trained + row.facts.epochs_reused == EPOCHS
        keys.update(world.keys(row.seed or 0, trace)[1:])
    assert world.service.store.mismatches() == []
    assert set(world.trained) <= keys
    return keys


def check(world: World) -> Counter[str]:
    """The same, and the trials' counts add up; how often each segment was trained."""
    keys = assert_exact(world)
    assert set(world.trained) == keys
    counted = sum(row.facts.epochs_trained for row in world.service.study.trials())
    # who trains a damaged state again has trained it, too
    assert len(keys) <= counted <= (len(world.trained) if "damage" in world.happened else len(keys))
    return Counter(world.trained)


EVENTS = st.sampled_from(["switch", "switch", "stop", "kill", "freeze", "damage"])
PLANS = st.dictionaries(st.integers(1, 400), EVENTS, max_size=12)


def property_of(examples: int) -> Any:
    """Any schedules that begin alike, any interruptions, two workers."""

    def decorate(test: Any) -> Any:
        test = given(
            baselines=st.lists(st.sampled_from([STAY, WARM, *DROPS]), min_size=1, max_size=4, unique_by=repr),
            trials=st.integers(0, 2),
            plan=PLANS,
        )(test)
        return settings(
            max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
        )(test)

    return decorate


def every_segment_is_trained_once(
    home: Home, folder: Path, baselines: list[dict[str, Any]], trials: int, plan: dict[int, str]
) -> None:
    sweep = written(baselines=baselines, trials=trials, search=SEARCH)
    world = World(home, folder / sweep["name"], sweep, plan)
    world.run()
    times = check(world)
    again = sum(times.values()) - len(times)
    lost = Counter(world.happened)
    # Who is killed or frozen may take one segment along, and one that is damaged has to be trained again.
    assert again <= lost["kill"] + lost["freeze"] + lost["damage"]


@property_of(6)
def test_every_segment_is_trained_once_and_nobody_can_tell(home: Home, tmp_path: Path, **drawn: Any) -> None:
    every_segment_is_trained_once(home, tmp_path, **drawn)


@pytest.mark.slow
@property_of(150)
def test_every_segment_is_trained_once_and_nobody_can_tell_many(home: Home, tmp_path: Path, **drawn: Any) -> None:
    every_segment_is_trained_once(home, tmp_path, **drawn)


# -- two workers


def test_two_workers_that_want_the_same_segment_train_it_once(home: Home, tmp_path: Path) -> None:
    """After every segment it is the other's turn: it takes another trial, or waits when there is none."""
    world = World(
        home,
        tmp_path,
        written(baselines=[STAY, *DROPS[:2]]),
        hook=lambda world, key, epoch: world._plan.update({world._turns + 1: "switch"}),
    )
    world.run()
    assert set(check(world).values()) == {1}
    assert len(world.happened) == len(world.trained)
    by = {
        row["by"]
        for row in world.service.store.get(world.keys(0, world.service.trace(world.sweep.schedule(STAY)))[EPOCHS]).rows
    }
    assert by <= {f"{world.service.study.id}/{number}" for number in range(3)}


def test_whose_lease_is_lost_ends_politely_and_what_it_trained_is_kept(
    home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first worker freezes with a segment trained and not stored; the second goes on, or finds it there."""
    world = World(
        home,
        tmp_path,
        written(),
        hook=lambda world, key, epoch: (
            world._plan.update({world._turns + 1: "freeze"}) if len(world.trained) == 2 else None
        ),
    )
    with caplog.at_level(logging.WARNING, "sweeper"):
        world.run()
    assert world.happened == ["freeze"]
    assert "no longer holds attempt 1" in caplog.text
    assert max(check(world).values()) <= 2
    assert world.service.study.trials()[0].reasons == ("worker 0.1 stopped renewing its lease (attempt 1)",)


# -- what is kept


def states(world: World, spec: dict[str, Any]) -> list[int]:
    """After which epochs of a schedule there is a stored state."""
    keys = world.keys(world.sweep.recipe.seed, world.service.trace(world.sweep.schedule(spec)))
    return [epoch for epoch in range(1, EPOCHS + 1) if world.service.store.deepest(["", keys[epoch]])]


def gc(world: World, *arguments: str) -> Any:
    place = world.place
    assert place.database_url is not None
    command = ["gc", "--store", place.store, "--database-url", place.database_url, "--json", *arguments]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    return json.loads(result.output)


def test_gc_keeps_what_unfinished_trials_of_all_sweeps_go_on_from(home: Home, tmp_path: Path) -> None:
    """Two sweeps stop in the middle; with no room at all, each keeps the latest state and loses nothing."""

    def leave_after(epochs: int) -> Any:
        return lambda world, key, epoch: world.leave() if len(world.trained) == epochs else None

    one = World(home, tmp_path, written(baselines=[DROPS[2], STAY]), hook=leave_after(2))
    other = World(home, tmp_path, written(seed=1), hook=leave_after(3))
    for world in (one, other):
        world.run(workers=1)
    assert (states(one, STAY), states(other, STAY)) == ([1, 2], [1, 2, 3])
    done = gc(one, "--max-gb", "0")
    assert (done["removed"], done["kept"], len(done["unfinished"])) == (3, 2, 3)
    assert (states(one, DROPS[2]), states(other, STAY)) == ([2], [3])
    trained = one.trained + other.trained
    for world in (one, other):
        again = world.again()
        again.run()
        assert_exact(again)
        trained += again.trained
    assert len(trained) == len(set(trained))


def test_branch_points_go_last(home: Home, tmp_path: Path) -> None:
    """After the jump and at the ends is where others part or begin; states between them make room first."""
    world = World(home, tmp_path, written(baselines=[STAY, DROPS[2]]), ballast=100_000)
    world.run()
    assert (states(world, STAY), states(world, DROPS[2])) == ([1, 2, 3, 4], [1, 2, 3, 4])
    sizes = world.service.store.usage()
    assert sizes.count == 6
    done = gc(world, "--max-gb", str(3.5 * sizes.bytes / 6 / 1e9))
    assert (done["removed"], done["unfinished"]) == (3, [])
    assert (states(world, STAY), states(world, DROPS[2])) == ([2, 4], [2, 4])
    assert gc(world)["removed"] == 0
    assert gc(world, "--max-gb", "0")["kept"] == 0
    assert world.files() == []


def test_gc_of_a_place_that_the_database_does_not_know_removes_nothing(home: Home, tmp_path: Path) -> None:
    world = World(home, tmp_path, written())
    world.run()
    for file in world.files():
        os.utime(file, (0, 0))
    command = ["gc", "--store", str(tmp_path), "--max-gb", "0", "--database-url"]
    with pytest.raises(DatabaseError, match="contains no sweep"):
        CliRunner().invoke(app, [*command, f"sqlite:///{tmp_path}/other.db"], catch_exceptions=False)
    database.open(tmp_path / "other.db")
    CliRunner().invoke(app, [*command, f"sqlite:///{tmp_path}/other.db"], catch_exceptions=False)
    assert len(world.files()) == EPOCHS


def test_without_room_every_trial_still_ends_where_it_should(home: Home, tmp_path: Path) -> None:
    """A budget of two states: much is trained again, nothing that a running trial needs goes."""
    plan = {30: "switch", 60: "kill", 90: "switch", 120: "stop", 150: "switch"}
    baselines = [STAY, *DROPS[:3]]
    world = World(home, tmp_path, written(baselines=baselines, store_gb=2.5e-4), plan, ballast=100_000)
    world.run()
    assert_exact(world)
    assert len(world.trained) >= len(set(world.trained))
    assert world.service.store.usage().bytes <= 2.5e5


# -- what goes wrong


@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_damaged_states_are_named_dropped_and_trained_again(
    home: Home, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    def all_of_them(world: World, key: str, epoch: int) -> None:
        if len(world.trained) == EPOCHS:  # the first trial is at its end; the second begins like it
            world.happened.append("damage")
            for file in world.files():
                content = file.read_bytes()
                file.unlink()
                if harm != "remove":
                    file.write_bytes(content[:-20] if harm == "cut" else content[:-1] + bytes([content[-1] ^ 1]))

    world = World(home, tmp_path, written(baselines=[STAY, DROPS[4]]), hook=all_of_them)
    with caplog.at_level(logging.WARNING, "sweeper"):
        world.run()
    assert set(check(world).values()) == {1, 2}
    named = [line for line in caplog.messages if "dropped, it is trained again" in line]
    assert [line.split()[6] for line in named] == ["3:", "2:", "1:"]  # deepest first, down to where nothing is left
    assert all({"cut": "bytes of", "flip": "altered", "remove": "is missing"}[harm] in line for line in named)
    assert world.service.store.get(world.keys(0, world.service.trace(world.sweep.schedule(STAY)))[2]).epoch == 2


def test_another_training_of_the_same_key_is_reported_once_and_the_sweep_goes_on(
    home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else was quicker with a segment, and got other bytes: all trials go on from what was there first."""

    def quicker(world: World, key: str, epoch: int) -> None:
        if world.trained == [key]:
            world.service.store.put(key, forged(epoch), {"host": "elsewhere", "device": "abacus"})

    world = World(home, tmp_path, written(baselines=[STAY, DROPS[4]]), hook=quicker)
    with caplog.at_level(logging.WARNING, "sweeper"):
        world.run(workers=1)
    said = [line for line in caplog.messages if "two trainings of" in line]
    assert len(said) == 1
    trained = train(begin(0), 0, world.service.trace(world.sweep.schedule(STAY)), 0)
    here = f"{digest(trained)[:12]} on {gethostname()} (paper"
    assert f"{forged(0).state_digest[:12]} on elsewhere (abacus)" in said[0]
    assert here in said[0]
    rows = world.service.study.trials()
    assert [row.state for row in rows] == ["COMPLETE", "COMPLETE"]
    assert [(row.facts.epochs_trained, row.facts.epochs_reused) for row in rows] == [(3, 1), (1, 3)]
    assert len(world.trained) == 1 + 3 + 1
    status = world.service.status().to_dict()
    (mismatch,) = status["mismatches"]
    assert (mismatch["first_profile"]["host"], mismatch["profile"]["host"]) == ("elsewhere", gethostname())
    assert mismatch["sentence"] in said[0]
    for command in ("status", "pick"):
        told = sweeper(world, command)
        assert f"not exact: {mismatch['sentence']}" in told


def sweeper(world: World, command: str) -> str:
    """A command about the world's sweep, in this process."""
    file = world.folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(world.written))
    place = world.place
    where = ["--store", place.store, "--database-url", place.database_url, "--tracking-uri", place.tracking_uri]
    result = CliRunner().invoke(app, [command, str(file), *map(str, where)], catch_exceptions=False)
    return result.output


@pytest.mark.parametrize("url", ["{}", "dir::file://{}"], ids=["folder", "fsspec"])
def test_a_full_disk_costs_states_not_the_trial(
    url: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real small disk of 1 MB: two states of 400 kB fit. Also behind another fsspec file system."""
    monkeypatch.chdir(tmp_path)  # what a URL has no room for
    small = tmp_path / "snapshots"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "sweeper-test", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        store = url.format(small) if "://" in url else None
        world = World(home, tmp_path, written(baselines=[STAY, DROPS[4]], store_gb=20), store=store, ballast=400_000)
        with caplog.at_level(logging.WARNING, "sweeper"):
            world.run()
        assert_exact(world)
        assert states(world, STAY) == [1, 2]
        unstored = [line for line in caplog.messages if "goes on without the state after epoch" in line]
        assert len(unstored) == 4
        assert all("No space left on device; check the path and its free space" in line for line in unstored)
        assert all(run["tags"]["sweeper.unstored"] for run in world.runs())
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_state_that_does_not_load_is_dropped_and_trained_again(home: Home, tmp_path: Path) -> None:
    """One of the right bytes, which the trainer does not take: nobody else would, either."""
    world = World(home, tmp_path, written(baselines=[STAY]))
    bad = world.keys(world.sweep.recipe.seed, world.service.trace(world.sweep.schedule(STAY)))[2]
    rows = [{"epoch": epoch, "time": 1795169283123, "by": "x/0", "seconds": 1.0} for epoch in range(2)]
    rows = [row | {"curve/lr": 1.0, "curve/mAP50-95": 0.1, "curve/mAP50": 0.1} for row in rows]
    world.service.store.put(bad, Snapshot(2, b"not a state", rows, "x"))
    world.run(workers=1)
    assert states(world, STAY) == [1, 2, 3, 4]
    assert world.trained.count(bad) == 1
    assert world.service.study.done


def test_another_studys_runs_are_not_written_to(home: Home, tmp_path: Path) -> None:
    """The same name in another database, on the same MLflow."""
    (tmp_path / "ann").mkdir()
    (tmp_path / "bob").mkdir()
    config = written(name="theirs", baselines=[STAY])
    World(home, tmp_path / "ann", config)
    World(home, tmp_path / "ann", config)  # again is fine
    with pytest.raises(TrackingError, match="'theirs' holds the runs of another study"):
        World(home, tmp_path / "bob", config)


def test_a_server_that_refuses_the_password_ends_the_worker_before_it_trains(home: Home, tmp_path: Path) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing."""

    world = World(home, tmp_path, written(baselines=[STAY]))
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        world.service.tracker = Tracker(url, world.sweep.name, tmp_path / "journals")
        with pytest.raises(TrackingRefused, match="the password is refused; set MLFLOW_TRACKING_USERNAME"):
            Worker(world.service, device="cpu", stop=threading.Event()).run()
        server.shutdown()
    assert world.trained == []
    assert world.service.study.trials()[0].attempt == 0


# -- what ends, and what does not


@pytest.mark.slow
def test_a_worker_that_waits_for_hours_goes_on(home: Home, tmp_path: Path) -> None:
    """More looks in a row than a power of two has room for; then the one who held the segment is gone."""
    world = World(home, tmp_path, written(baselines=[STAY]))
    first = world.keys(world.sweep.recipe.seed, world.service.trace(world.sweep.schedule(STAY)))[1]
    waits: list[float] = []
    for stop in world._stops:
        stop.waited = lambda seconds: (
            waits.append(seconds),
            world.service.store.release(first, "elsewhere") if len(waits) == 2100 else None,
        )
    world.service.store.lease(first, "elsewhere", 1e6)
    world.run(workers=1)
    check(world)
    looks = [wait for wait in waits if wait != 1]  # between looks it waits for trials that are free
    assert len(looks) > 1030
    assert all(LONGEST_WAIT_S / 2 <= wait <= LONGEST_WAIT_S for wait in looks[10:])


@pytest.mark.parametrize("longest", [LONGEST_WAIT_S, LONGEST_PAUSE_S])
def test_a_pause_grows_to_its_longest_and_stays_there(longest: float) -> None:
    pauses = [pause(count, longest) for count in (*range(1, 3000), 10**300)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses == sorted(pauses)
    assert pauses[20:] == [longest] * len(pauses[20:])


JUDGED = {
    "baselines": [],
    "trials": 5,
    "search": {**SEARCH, "restarts": {"min": 1, "max": 1, "first": 2, "last": 2}},
    "pruner": {"name": "cycle_end", "from_epoch": 1, "share": 0.9, "others": 3},
    "enqueue": [{"step_scale": scale} for scale in (0.5, 0.5, 0.5, 0.5, 2.0)],
}


def others_get_ahead(world: World) -> None:
    """Trials 1 to 3 end much better than trial 0 stood after any of its epochs."""
    for number in (1, 2, 3):
        slot = world.service.study.claim("another worker", excluded={0})
        assert slot is not None
        assert slot.number == number
        slot.propose(lambda suggest: STAY)
        for epoch in range(EPOCHS):
            slot.report(epoch, 2.0)
        slot.tell(2.0)


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_resumed_trial_is_not_judged_again_where_it_was_judged_before(
    home: Home, tmp_path: Path, epochs: int
) -> None:
    """It passed the end of its cycle after epoch 2 when nobody was there to compare with, and was stopped then."""
    hook: Any = lambda world, key, epoch: world.leave() if len(world.trained) == epochs else None  # noqa: E731
    world = World(home, tmp_path, written(**JUDGED), hook=hook)
    world.run(workers=1)
    others_get_ahead(world)
    again = world.again()
    again.run(workers=1)
    resumed, newer = (again.service.study.trials()[number] for number in (0, 4))
    assert (resumed.state, len(resumed.curve), resumed.facts.judged) == ("COMPLETE", EPOCHS, 2)
    # the last one begins like it, and is judged for the first time
    assert (newer.state, len(newer.curve)) == ("PRUNED", 2)
    assert newer.score == rules.best_so_far([newer.curve[epoch] for epoch in (0, 1)])
    assert "after 2 epochs" in newer.facts.pruned
    assert newer.facts.epochs_trained == 0
    assert newer.facts.state_digest == ""


def test_a_last_state_that_does_not_load_is_trained_again(home: Home, tmp_path: Path) -> None:
    """Nobody trains on from it: only who asks for its weights finds out. Once, and not for ever."""

    class Choosy(Toy):
        def weights(self, recipe: Any, state: bytes) -> bytes:
            if len(state) < 64:
                raise SnapshotCorrupt("snapshot: is not of this model and optimizer")
            return state

    world = World(home, tmp_path, written(baselines=[STAY], weights="all", attempts=2))
    last = world.keys(world.sweep.recipe.seed, world.service.trace(world.sweep.schedule(STAY)))[EPOCHS]
    rows = [{"epoch": epoch, "time": 1795169283123, "by": "x/0", "seconds": 1.0} for epoch in range(EPOCHS)]
    rows = [row | {"curve/lr": 1.0, "curve/mAP50-95": 0.1, "curve/mAP50": 0.1} for row in rows]
    world.service.store.put(last, Snapshot(EPOCHS, b"not a state", rows, "x"))
    service = world.open()
    service.training = functools.partial(Choosy, world=world)
    Worker(service, device="cpu", stop=threading.Event()).run()
    (row,) = world.service.study.trials()
    digest, value = undisturbed(row.seed or 0, world.service.trace(world.sweep.schedule(STAY)))
    assert (row.state, row.facts.state_digest, row.score) == ("COMPLETE", digest, pytest.approx(value))
    assert [reason.splitlines()[0] for reason in row.reasons] == [
        "SnapshotCorrupt: snapshot: is not of this model and optimizer"
    ]


def test_a_mistake_in_the_program_ends_the_worker_and_in_the_end_the_trial(home: Home, tmp_path: Path) -> None:
    """Without a limit one trial would end every worker that there is, again and again."""

    class Broken(Toy):
        def train(self, *_: Any, **__: Any) -> Any:
            raise KeyError("nobody thought of it")

    world = World(home, tmp_path, written(attempts=2))
    for state in ("RUNNING", "FAIL"):
        service = world.open()
        service.training = functools.partial(Broken, world=world)
        with pytest.raises(KeyError, match="nobody thought of it"):
            Worker(service, device="cpu", stop=threading.Event()).run()
        (row,) = world.service.study.trials()
        assert row.state == state
    assert row.reasons == ("KeyError: 'nobody thought of it'",) * 2
    world.tracker.drain(30)
    assert [run["status"] for run in world.runs()] == ["FAILED"]


# -- what is told of it


def test_a_forked_trial_is_complete_in_mlflow_and_in_the_study(home: Home, tmp_path: Path) -> None:
    """Also the epochs that another trial has trained, and it says which those are."""
    world = World(home, tmp_path, written(baselines=[STAY, DROPS[2]]))
    world.run(workers=1)
    check(world)
    straight, fork = world.runs()
    assert {run["tags"]["sweeper.epochs_trained"] for run in (straight, fork)} == {"4", "2"}
    assert fork["tags"]["sweeper.epochs_reused"] == "2"
    for key in ("curve/lr", "curve/mAP50-95", "curve/lr_rel", "train/loss"):
        mine, theirs = (history(world.tracker.server, run["run_id"], key) for run in (fork, straight))
        assert [step for step, _, _ in mine] == list(range(EPOCHS))
        assert mine[:2] == theirs[:2]  # with the times at which they were trained
        assert mine[2:] != theirs[2:]
    for run, row in zip((straight, fork), world.service.study.trials(), strict=True):
        assert row.spec is not None
        assert text_params(row.spec).items() <= run["params"].items()
        assert int(run["params"]["trace/steps"]) == world.service.time.steps
        assert run["name"] == f"{row.number:03d} {world.sweep.label(row.spec)}"
    assert fork["name"] != straight["name"]


def test_only_the_branches_of_a_trunk_are_trained(home: Home, tmp_path: Path) -> None:
    """The trunk's epochs are the baseline's; a proposal that never leaves it has the baseline's result."""
    space = {**SEARCH, "trunk": "yolo_linear", "restarts": {"min": 0, "max": 2, "first": 2, "last": 3}}
    del space["lr"]
    short = {"family": "yolo_linear", "warmup": "1ep"}
    itself = {"family": "cawb", "trunk": "yolo_linear", "horizon": "end"}
    early: list[int] = []  # trials that were proposed while the trunk was being trained

    def look(world: World, key: str, epoch: int) -> None:
        trunk, *rows = world.service.study.trials()
        if trunk.state != "COMPLETE":
            early.extend(row.number for row in rows if row.spec)
            world._plan.update({world._turns + 1: "switch"})  # the other worker looks for something to do

    sweep = written(baselines=[short], trials=5, search=space, enqueue=[itself])
    world = World(home, tmp_path, sweep, plan={75: "kill", 90: "stop"}, hook=look)
    world.run()
    check(world)
    assert early == []
    baseline, same, *rows = world.service.study.trials()
    assert (same.facts.duplicate_of, same.score) == (baseline.number, baseline.score)
    trunk = world.keys(baseline.seed or 0, world.service.trace(baseline.schedule))
    for row in rows:
        first = min((row.spec or {})["steps"], default=EPOCHS)
        mine = world.keys(row.seed or 0, world.service.trace(row.schedule))
        assert mine[: first + 1] == trunk[: first + 1]
        assert row.facts.epochs_trained <= EPOCHS - first


def test_what_plan_predicts_is_what_was_shared(home: Home, tmp_path: Path) -> None:
    """The schedules that ``plan`` drew, trained."""
    world = World(home, tmp_path / "plan", written(baselines=[STAY, *DROPS], trials=6, search=SEARCH))
    plan = world.service.plan().to_dict()
    specs = [item["spec"] for item in plan["schedules"] if item["kind"] in ("baseline", "search")]
    world = World(home, tmp_path / "trained", written(baselines=specs))
    world.run()
    check(world)
    assert len(world.trained) == plan["epochs_to_train"] < plan["epochs_asked"] == EPOCHS * len(specs)
    status = world.service.status().to_dict()
    assert status["epochs"]["trained"] + status["epochs"]["reused"] == plan["epochs_asked"]
    assert status["hours_saved"] == pytest.approx(status["epochs"]["reused"] * 36 / 3600)
    told = sweeper(world, "status")
    assert f"reuse: {status['epochs']['reused']} of {plan['epochs_asked']} epochs were there already" in told
    assert "exactness: no two trainings of the same epochs have differed" in told


def test_a_share_of_a_gpu_that_is_too_small_costs_no_trial_an_attempt(home: Home, tmp_path: Path) -> None:
    """The first epoch does not fit: the worker says what would help and leaves; another one trains the same trial."""

    class Tight(Toy):
        def __init__(self, *, share: float, **more: Any) -> None:
            super().__init__(**more, world=world)

        def train(self, *_: Any, **__: Any) -> Any:
            raise OutOfMemory("training: CUDA out of memory")

    world = World(home, tmp_path, written(attempts=1))
    service = world.open()
    service.training = Tight
    with pytest.raises(DeviceError, match=r"does not fit into 0.25 of its memory.*fewer workers per device"):
        Worker(service, device="cuda:0", stop=threading.Event(), share=0.25).run()
    (row,) = service.study.trials()
    assert (row.worker, row.reasons) == (None, ())
    world.run()
    assert_exact(world)
