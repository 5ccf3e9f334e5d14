"""``sweeper plan`` refuses what cannot run, as a launch does, and answers for any number of trials."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from simulation import Home, World
from test_worker import home  # noqa: F401  # a fixture
from test_worker import written as toy
from typer.testing import CliRunner

from sweeper.cli import app, show
from sweeper.config import Recipe, Sweep
from sweeper.errors import ConfigError
from sweeper.service import Place, Service
from sweeper.service.plan import TrainingTime
from sweeper.training.process import Epoch

RECIPE: dict[str, Any] = {**tiny.SWEEP, "epochs": 40, "trials": 6}
WIDE = {
    "family": "cawb",
    "restarts": {"max": 2, "every": 2, "distance": 4},
    "step_scale": {"per": "cycle", "choices": [0.5, 0.7, 1.0]},
    "floor": {"low": 0.0, "high": 0.1},
    "horizon": "end",
    "warmup": "1ep",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.images(tmp_path_factory.mktemp("plan"))


def written(folder: Path, data: Path, **changes: Any) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**RECIPE, "data": str(data), **changes}))
    return file


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model=nosuch.yaml", "model: nosuch.yaml is neither a file nor one of Ultralytics' models"),
        ("model=yolo11n-seg.yaml", "model: yolo11n-seg.yaml ends in Segment; expected a detector"),
        ("freeze=999", "freeze: 999 leaves nothing to train or names layers that yolo11n.yaml does not have"),
        ("device=tpu", "device: 'tpu' is not a device"),
    ],
)
def test_plan_and_launch_refuse_what_cannot_run_in_the_same_line(
    tmp_path: Path, data: Path, override: str, says: str
) -> None:
    file = written(tmp_path, data)
    lines = []
    for command in ("plan", "launch"):
        done = tiny.sweeper(command, file, override, cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        lines.append(done.stderr)
    assert lines[0] == lines[1]
    assert says in lines[0]
    assert lines[0].count("\n") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "yolo11n-cls.yaml"}, "ends in Classify; expected a detector"),
        ({"model": "yolov8s-worldv2.yaml"}, "ends in WorldDetect; expected a detector"),
        ({"model": "junk.pt"}, "junk.pt cannot be read as Ultralytics' weights"),
        ({"model": "deep.yaml"}, "deep.yaml cannot be read as a model: line 1: is nested too deeply"),
        ({"model": "empty.yaml"}, "empty.yaml has no head"),
        ({"model": "foo.yaml"}, "foo.yaml cannot be built: 'Foo'"),
        ({"model": "folder.yaml"}, "folder.yaml cannot be read as a model: is a folder"),
        ({"freeze": 24}, "freeze: 24 leaves nothing to train"),
        ({"freeze": [5, 99]}, "freeze: [5, 99] leaves nothing to train or names layers"),
        ({"freeze": list(range(24))}, "leaves nothing to train"),
        (
            {"model": "yolov8n-p6.yaml", "imgsz": 96},
            "imgsz: 96 is not a multiple of 64, the largest stride of yolov8n-p6",
        ),
    ],
)
def test_a_model_that_cannot_be_trained_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    from sweeper.training.models import check

    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.pt").write_text("junk")
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 500)
    (tmp_path / "empty.yaml").write_text("nc: 3\nbackbone: []\nhead: []\n")
    (tmp_path / "foo.yaml").write_text("nc: 3\nbackbone:\n- [-1, 1, Foo, [3]]\nhead:\n- [[-1], 1, Detect, [nc]]\n")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError) as caught:
        check(Recipe.model_validate({"data": "digits", "model": "yolo11n.yaml", **change}))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_looking_at_a_model_uses_up_no_random_number() -> None:
    import torch

    from sweeper.training.models import _built, check

    _built.cache_clear()
    torch.manual_seed(3)
    check(Recipe(data="digits", model="yolo11n.yaml", freeze=23))
    after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), after)


def test_of_many_trials_a_sample_is_drawn_and_the_rest_bounded(tmp_path: Path, data: Path) -> None:
    file = written(tmp_path, data, search=WIDE)
    shown = CliRunner().invoke(app, ["plan", str(file), "trials=100000", "--store", str(tmp_path / "store")])
    assert shown.exit_code == 0, shown.output
    assert "1000 of 100000 proposals as a sample" in shown.stdout
    assert "at most about" in shown.stdout
    assert "at least about" in shown.stdout
    assert "970 more" in shown.stdout
    assert len(shown.stdout.splitlines()) < 120
    place = Place(str(tmp_path / "store"))
    found = Service(Sweep.load(file, ["trials=100000"]), place).plan().to_dict()
    assert (found["trials"], found["drawn"], found["sampled"], found["distinct"]) == (100_000, 1000, 1000, 1000)
    assert found["epochs_asked"] == 40 * 100_001
    json.dumps(found, allow_nan=False)
    # what 1,000 proposals train is no more than what 500 say, and more than those train
    whole = Service(Sweep.load(file, ["trials=1000"]), place).plan().to_dict()
    assert whole["sampled"] is None
    assert whole["epochs_to_train"] < found["epochs_to_train"] < found["epochs_asked"]


def test_the_bound_from_a_sample_holds(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, place = written(tmp_path, data, search=WIDE | {"floor": 0.05}), Place(str(tmp_path / "store"))
    whole = Service(Sweep.load(file, ["trials=400"]), place).plan().to_dict()
    monkeypatch.setattr("sweeper.service.plan.SAMPLE", 100)
    part = Service(Sweep.load(file, ["trials=400"]), place).plan().to_dict()
    assert (part["sampled"], part["epochs_asked"]) == (100, whole["epochs_asked"])
    assert whole["epochs_to_train"] < part["epochs_to_train"] < part["epochs_asked"]


def test_a_space_that_has_fewer_schedules_than_trials_says_so(tmp_path: Path, data: Path) -> None:
    space = {"family": "cawb", "restarts": {"min": 1, "max": 1, "first": 2, "last": 4}, "horizon": "end"}
    file = written(tmp_path, data, search=space)
    shown = CliRunner().invoke(app, ["plan", str(file), "trials=5000", "--store", str(tmp_path / "store")])
    assert shown.exit_code == 0, shown.output
    assert "3 proposals for 5000 trials: the space has no more, the others cost no epoch" in shown.stdout
    assert len(shown.stdout.splitlines()) < 40


def test_a_device_that_is_not_here_is_said_and_no_reason_not_to_plan(tmp_path: Path, data: Path) -> None:
    file = written(tmp_path, data)
    shown = CliRunner().invoke(app, ["plan", str(file), "device=4321", "--store", str(tmp_path / "store")])
    assert shown.exit_code == 0, shown.output
    assert "device     device 4321 is not there" in shown.stdout


GIVEN = [{"family": "multistep", "lr": 0.3, "boundaries": [at], "gamma": 0.5} for at in (1, 2, 3)]


def test_disk_and_hours_are_those_of_the_sweep(
    home: Home,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(home, tmp_path, toy(enqueue=GIVEN, trials=3, workers=2, device="cpu"), ballast=100_000)
    before = world.service.plan()
    assert (before.disk.state_bytes, before.disk.measured, before.duration) == (100_064, False, None)
    assert before.disk.free is not None
    assert 0 < before.disk.limit < min(before.disk.free, 100e9)
    show.plan(before)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"disk {before.disk.states} states of about 0.1 MB" in shown
    assert "time known after the first epochs" in shown
    world.run()
    after, usage = world.service.plan(), world.service.store.usage()
    assert after.disk.states == before.disk.states == usage.count == len(set(world.trained))
    assert after.disk.measured
    assert after.disk.needed == pytest.approx(usage.bytes, rel=0.1)
    assert after.duration == TrainingTime(
        epochs=usage.count,
        worker_hours=usage.count * 36 / 3600,
        workers=2,
        devices=1,
        wall_hours=usage.count * 36 / 3600 / 2,
        device_hours=usage.count * 36 / 3600 / 2,
    )
    json.dumps(after.to_dict(), allow_nan=False)
    world.sweep = world.sweep.model_copy(update={"store_gb": 2.0, "device": "77"})
    show.plan(Service(world.sweep, world.service.place, training=world.service.training).plan())
    shown = " ".join(capsys.readouterr().out.split())
    assert "all are kept (store_gb: 2)" in shown
    assert f"{usage.count} epochs at 36 s: {usage.count / 100:.2g} hours of one worker" in shown
    assert "device hours" not in shown


def test_two_epochs_say_how_long_it_takes(home: Home, tmp_path: Path) -> None:  # noqa: F811
    world = World(home, tmp_path, toy(), hook=lambda world, _, epoch: world.leave() if epoch == 1 else None)
    world.run(workers=1)
    assert len(world.trained) == 2
    assert not any(row.state == "COMPLETE" for row in world.service.study.trials())
    assert world.service.plan().seconds_per_epoch == 36


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_state_has_about_the_size_that_plan_says(tmp_path: Path, data: Path, optimizer: str) -> None:
    sweep = Sweep.load(written(tmp_path, data, optimizer=optimizer, epochs=2, freeze=None))
    service = Service(sweep, Place(str(tmp_path / "store")))
    recipe = service.recipe(0)
    with service.training(device="cpu", folder=tmp_path / "child", stall_s=300) as child:
        trace = service.trace(next(iter(sweep.named_baselines.values())))
        with contextlib.closing(child.train(recipe, trace, start=0, state=None)) as events:
            epoch = next(event for event in events if isinstance(event, Epoch))
        assert child.state_bytes(recipe) == pytest.approx(len(epoch.state), rel=0.05)
