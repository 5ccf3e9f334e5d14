"""Worker processes on devices: where they go, what they see, and that the dead are replaced."""

import importlib
import os
import signal
import stat
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
import tiny

from sweeper import fleet
from sweeper.errors import DatabaseError, DeviceError, SweeperError


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver lists four GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor i in 0 1 2 3; do echo "GPU $i: NVIDIA H200 (UUID: GPU-$i)"; done\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def command(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys, time\n{code}"]


def run(crew: fleet.Fleet, *, done: bool = False, stop: threading.Event | None = None) -> list[str]:
    said: list[str] = []
    crew.run(lambda: done, stop=stop or threading.Event(), say=said.append)
    return said


def test_slots_are_all_visible_gpus_or_the_cpu(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fleet.worker_devices("auto") == ["0", "1", "2", "3"]
    assert fleet.worker_devices("1,3", 2) == ["1", "3", "1", "3"]  # the first few are spread
    assert fleet.worker_devices("cpu", 3) == ["cpu"] * 3
    assert fleet.worker_devices("cpu", None, threads=1) == ["cpu"] * fleet.cores()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert fleet.worker_devices("auto") == ["0", "1"]  # as this process numbers them
    with pytest.raises(DeviceError, match="device 2 is not there; expected auto, cpu, or of these GPUs: 0, 1"):
        fleet.worker_devices("0,2")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert fleet.worker_devices("auto") == ["cpu"]


def test_a_lost_gpu_does_not_end_the_other_workers(gpus: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When one falls off the bus, the driver answers for none."""
    monkeypatch.chdir(tmp_path)
    code = "name = os.environ['CUDA_VISIBLE_DEVICES']; again = os.path.exists(name); open(name, 'a').write('x')\n"
    code += "time.sleep(3 if name == '1' else 0.5); sys.exit(0 if again or name == '1' else 1)"
    crew = fleet.Fleet(command(code), ["0", "1"])
    threading.Timer(0.3, (tmp_path / "bin" / "nvidia-smi").unlink).start()
    said: list[str] = []
    ended = tmp_path / "0"
    crew.run(lambda: ended.read_text() == "xx", stop=threading.Event(), say=said.append)
    assert len(said) == 1
    assert (tmp_path / "1").read_text() == "x"


def test_each_process_sees_its_own_gpu_as_number_0(gpus: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-3")
    code = (
        "open(os.environ['CUDA_VISIBLE_DEVICES'], 'w').write(' '.join([*sys.argv[1:], os.environ['OMP_NUM_THREADS']]))"
    )
    monkeypatch.chdir(tmp_path)
    run(fleet.Fleet(command(code), fleet.worker_devices("auto")), done=True)
    share = max(fleet.cores() // 2, 1)
    assert [Path(name).read_text() for name in ("GPU-1", "GPU-3")] == [f"--devices 0 {share}"] * 2


def test_who_share_a_gpu_are_told_their_share_of_its_memory(gpus: None, tmp_path: Path) -> None:
    code = f"open({str(tmp_path)!r} + f'/{{os.getpid()}}.said', 'w').write(' '.join(sys.argv[1:]))"
    run(fleet.Fleet(command(code), fleet.worker_devices("0,2", 4)), done=True)
    assert [path.read_text() for path in tmp_path.glob("*.said")] == ["--devices 0 --share 0.25"] * 8


def test_a_process_that_is_killed_is_replaced_until_the_sweep_is_done(tmp_path: Path) -> None:
    """The first one is killed, its successor ends well; what they write is in the log of their number."""
    mark = tmp_path / "mark"
    code = f"""
if not os.path.exists({str(mark)!r}):
    open({str(mark)!r}, "w").close()
    print("the first", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
print("the second", sys.argv[1:])"""
    crew = fleet.Fleet(command(code), ["cpu"], logs=tmp_path / "logs")
    said: list[str] = []
    crew.run(mark.with_name("second").exists, stop=threading.Event(), say=said.append, tick=lambda: after(tmp_path))
    assert "ended with -9; another takes its place in 1 s" in said[0]
    (log,) = (tmp_path / "logs").iterdir()
    assert log.read_text().splitlines() == ["the first", "the second ['--devices', 'cpu']"]


def after(folder: Path) -> None:
    """The sweep is done once the second has spoken."""
    logs = [path.read_text() for path in (folder / "logs").glob("*.log")]
    if any("the second" in log for log in logs):
        (folder / "second").touch()


def test_one_that_cannot_live_is_not_started_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "MAX_EARLY_DEATHS", 2)
    with pytest.raises(SweeperError, match="the workers ended before the sweep was done"):
        run(fleet.Fleet(command("sys.exit(3)"), ["cpu"]))


def test_an_outage_of_the_database_does_not_end_those_who_outlast_it(tmp_path: Path) -> None:
    said: list[str] = []

    def away() -> None:
        raise DatabaseError("the database does not answer")

    crew = fleet.Fleet(command("time.sleep(2)"), ["cpu"])
    crew.run(lambda: True, stop=threading.Event(), say=said.append, tick=away)
    assert "the database does not answer" in said


def test_stop_ends_all_with_sigterm_and_waits(tmp_path: Path) -> None:
    code = f"""
def leave(*_):
    time.sleep(1)
    open({str(tmp_path)!r} + f"/{{os.getpid()}}", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
open({str(tmp_path)!r} + f"/ready-{{os.getpid()}}", "w").close()
time.sleep(60)"""
    stop = threading.Event()
    crew = fleet.Fleet(command(code), ["cpu", "cpu"])
    threading.Thread(target=set_when_ready, args=(tmp_path, stop), daemon=True).start()
    assert run(crew, stop=stop) == []
    assert len(list(tmp_path.glob("[0-9]*"))) == 2


def set_when_ready(folder: Path, stop: threading.Event) -> None:
    while len(list(folder.glob("ready-*"))) < 2:
        time.sleep(0.05)
    stop.set()


def test_interrupted_none_is_left_behind(tmp_path: Path) -> None:
    code = f"""
open({str(tmp_path)!r} + f"/ready-{{os.getpid()}}", "w").close()
time.sleep(60)"""

    def interrupt() -> None:
        if list(tmp_path.glob("ready-*")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet.Fleet(command(code), ["cpu"]).run(
            lambda: False, stop=threading.Event(), say=lambda _: None, tick=interrupt
        )
    (ready,) = tmp_path.glob("ready-*")
    with pytest.raises(ProcessLookupError):
        os.kill(int(ready.name.removeprefix("ready-")), signal.SIG_DFL)


# -- on a cluster, as far as it goes without Ray: the rest is `make ray-test`


@pytest.fixture
def on_ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, on a Ray whose cluster has two cores, both free."""
    there: Any = types.ModuleType("ray")
    there.exceptions = types.ModuleType("ray.exceptions")
    there.exceptions.RayError = type("RayError", (Exception,), {})
    there.remote = lambda kind: types.SimpleNamespace(options=lambda **options: kind)
    there.cluster_resources = there.available_resources = lambda: {"CPU": 2.0}
    monkeypatch.setitem(sys.modules, "ray", there)
    monkeypatch.setitem(sys.modules, "ray.exceptions", there.exceptions)
    monkeypatch.delitem(sys.modules, "sweeper.on_ray", raising=False)
    yield importlib.import_module("sweeper.on_ray")
    del sys.modules["sweeper.on_ray"], sys.modules["sweeper"].on_ray  # the next one wants the real one


def test_a_cluster_whose_workers_cannot_live_gets_no_more_of_them(on_ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = on_ray.RayFleet(["none"], workers=None, gpus=0, cpus=1, wanted=lambda: 20)
    crew._due.clear()
    crew.grow()
    assert len(crew._due) == 2
    crew._due.clear()
    crew._early_deaths[0] = fleet.MAX_EARLY_DEATHS  # not replaced any more
    for _ in range(2):
        crew._last_query = -on_ray.GROW_S
        crew.grow()
        assert not crew._due
    monkeypatch.setattr(on_ray.ray, "cluster_resources", lambda: {"CPU": 4.0})
    crew._last_query = -on_ray.GROW_S
    crew.grow()
    assert len(crew._due) == 2


def test_a_cluster_that_is_not_there_is_said_in_one_line(on_ray: Any) -> None:
    def other_version(**options: Any) -> None:
        raise RuntimeError("Version mismatch: the cluster was started with:\n    Ray: 2.40.0")

    with pytest.raises(DeviceError, match=r"no Ray cluster at 127.0.0.1:1: no answer"):
        on_ray.connect("127.0.0.1:1")
    on_ray.ray.init = other_version
    with pytest.raises(DeviceError, match=r"^the Ray cluster at auto cannot be joined: Version .*: Ray: 2.40.0; exp"):
        on_ray.connect()


def test_a_share_is_what_a_worker_takes(tmp_path: Path) -> None:
    told = tiny.sweeper("ray", "sweep.yaml", "--gpus", "0.005", cwd=tmp_path, check=False)
    assert told.returncode == 1
    assert told.stderr == "sweeper: --gpus 0.005: is too little for a worker; expected 0 (CPU), or 0.01 to 1\n"
