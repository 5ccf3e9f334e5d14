"""What is said before training: `sweeper doctor`, another machine's store, and the secrets of docker compose."""

import functools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from simulation import Home, Toy, World
from test_fleet import gpus  # noqa: F401  # a fixture
from test_worker import home  # noqa: F401  # a fixture
from test_worker import written as toy

from sweeper import database, fleet
from sweeper.config import Sweep
from sweeper.errors import StoreError
from sweeper.service import Place, Service
from sweeper.service.doctor import TRIAL_EPOCHS, _workers, examine
from sweeper.study import Study
from sweeper.training import cache_mb, memory
from sweeper.training.process import Epoch

ROOT = Path(__file__).resolve().parents[1]


def test_doctor_finds_a_healthy_place_healthy(tmp_path: Path) -> None:
    sweep = tiny.write(tmp_path, device="cpu")
    found = {finding.what: finding for finding in examine(Place(str(tmp_path / "store")), Sweep.load(sweep))}
    assert list(found) == ["versions", "device", "threads", "database", "tracking", "store", "data", "study", "workers"]
    assert all(finding.good for finding in found.values()), found
    assert "; a worker has 0 loader processes, and " in found["device"].says
    megabytes = cache_mb(memory(), fleet.cores())
    assert found["device"].says.endswith(f"and {megabytes} MB for decoded images")
    assert "holds no sweep yet: the first launch makes its tables" in found["database"].says
    assert "not there yet: the first launch makes it" in found["tracking"].says
    assert "nothing is stored there yet, " in found["store"].says
    assert "GB free" in found["store"].says
    assert found["data"].says == "24 training and 8 validation images"
    assert found["study"].says == "tiny is not launched yet"
    room = re.fullmatch(
        r"one worker alone, (\d) epochs? tried: ([0-9.]+) s an epoch, ([0-9.]+) of ([0-9.]+) GB of memory, "
        r"1 of (\d+) cores; room for (\d+) workers? \(--per-device \6\)",
        found["workers"].says,
    )
    assert room is not None, found["workers"].says
    epochs, seconds, held, there, cores, workers = map(float, room.groups())
    assert 1 <= epochs <= TRIAL_EPOCHS
    assert seconds > 0
    assert 0.3 < held < there
    assert cores == fleet.cores()
    assert 1 <= workers <= cores


class Holding(Toy):
    """A training that holds a part of the memory of the one GPU that it sees."""

    def train(self, *arguments: Any, **more: Any) -> Iterator[Epoch]:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        for epoch in super().train(*arguments, **more, detecting=lambda epoch: False):
            yield replace(epoch, memory=0.3)


def test_memory_and_cores_say_how_many_workers_a_gpu_has_room_for(
    gpus: None,  # noqa: F811
    home: Home,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(home, tmp_path, toy(loader_workers=0))
    service = Service(world.sweep, world.place, training=functools.partial(Holding, world=world))  # type: ignore[arg-type]
    service.dataset = home.dataset
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    cores = fleet.cores() // 2
    room = max(min(cores, 3), 1)  # three times 0.3 and a tenth to spare are all of the memory
    what = rf"30\.0% of the GPU's, with {cores} cores for each GPU; room for {room} workers? \(--per-device {room}\)"
    assert re.fullmatch(rf"one worker alone, 4 epochs tried: .* GB of memory, {what}", _workers(service, True))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert _workers(service, False) == "how many a device has room for is known after the first epochs"


def test_doctor_looks_at_what_a_launch_has_made(shown: Service) -> None:
    found = {finding.what: finding for finding in examine(shown.place, shown.sweep)}
    assert all(finding.good for finding in found.values()), found
    assert "SQLite 3." in found["database"].says
    assert "answers in" in found["tracking"].says
    assert "written and read in" in found["store"].says
    assert found["study"].says.startswith("shown: ")
    finished = sum(trial.facts.epoch_seconds is not None for trial in shown.study.trials())
    cores = fleet.cores()
    expected = f"{finished} trials: 60 s an epoch, 1 of {cores} cores; room for {cores} worker"
    assert found["workers"].says.startswith(expected)


def test_doctor_says_what_to_do_and_ends_with_1(tmp_path: Path) -> None:
    sweep = tiny.write(tmp_path)
    options = ["--tracking-uri", "http://127.0.0.1:1", "--database-url", "postgresql://me:secret@127.0.0.1:1/x"]
    done = tiny.sweeper("doctor", sweep, "threads=999", "device=7", *options, "--json", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "secret" not in done.stdout + done.stderr
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    red = {what: finding["says"] for what, finding in found.items() if not finding["good"]}
    assert set(red) == {"device", "threads", "database", "tracking", "study"}
    assert "expected auto, cpu, or of these GPUs" in red["device"]
    assert "set threads to" in red["threads"]
    assert "check the host, and that it is running" in red["database"]
    assert "start it or change the address" in red["tracking"]
    assert all("\n" not in says for says in red.values())


def test_a_machine_that_sees_another_store_is_refused_before_it_trains(tmp_path: Path) -> None:
    sweep = Sweep.load(tiny.write(tmp_path))
    url = f"sqlite:///{tmp_path}/study.db"
    here, there = (Service(sweep, Place(str(tmp_path / name), url)) for name in ("here", "there"))
    Study.create(
        database.open(url),
        sweep.name,
        config={**sweep.identity(), "data_digest": here.dataset.digest, "store": here.store.id},
        trials=[],
        sampler=sweep.sampler,
        seed=0,
    )
    here.check_store()
    with pytest.raises(StoreError, match=r"store .*there/snapshots: not the one that tiny was launched with .*; mount"):
        there.check_store()


def test_secrets_are_random_kept_and_for_their_owner_only(tmp_path: Path) -> None:
    def made(name: str) -> dict[str, str]:
        subprocess.run([sys.executable, ROOT / "jobs" / "compose_env.py", tmp_path / name], check=True)
        lines = (tmp_path / name).read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    first, other = made("a"), made("b")
    assert not set(first.values()) & set(other.values())
    assert all(len(value) >= 32 for value in first.values())
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    text = (tmp_path / "a").read_text()
    assert made("a") == first
    assert (tmp_path / "a").read_text() == text
    with (tmp_path / "a").open("a") as file:
        file.write("SWEEP=mine.yaml\n")
    assert made("a") == {**first, "SWEEP": "mine.yaml"}
    compose = (ROOT / "docker-compose.yml").read_text()
    assert all(f"${{{name}:?make compose-env}}" in compose for name in first)


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="needs docker-compose")
def test_the_compose_file_refuses_to_start_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    command = [
        "docker-compose",
        "--env-file",
        str(tmp_path / "empty"),
        "-f",
        str(ROOT / "docker-compose.yml"),
        "config",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "make compose-env" in done.stderr
