"""A trace in a training loop: TraceLR, and Ultralytics' own schedule as its own trainer applies it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sweeper.errors import ScheduleError
from sweeper.schedules import TimeBase, Trace, parse
from sweeper.training.scheduler import TraceLR


def optimizer(names: tuple[str, ...] = ("weight", "bias")) -> torch.optim.SGD:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "name": name} for name in names]
    return torch.optim.SGD(groups, lr=0.5, momentum=0.9)


def steps(scheduler: TraceLR, count: int) -> list[tuple[float, ...]]:
    """What the optimizer used in ``count`` steps: every group's LR, and the momentum."""
    used = []
    for _ in range(count):
        groups = scheduler.optimizer.param_groups
        assert scheduler.get_last_lr() == [group["lr"] for group in groups]
        used.append((*(group["lr"] for group in groups), groups[0]["momentum"]))
        scheduler.optimizer.step()
        scheduler.step()
    return used


@pytest.fixture(scope="module")
def trace() -> Trace:
    return parse({"family": "yolo_linear", "lr": 0.02}).trace(TimeBase(5, 3))


def test_every_group_gets_its_trace(trace: Trace) -> None:
    used = steps(TraceLR(optimizer(), trace), 15)
    assert trace.momentum is not None
    np.testing.assert_array_equal(np.float32(used).T, [trace.lr, trace.group("bias"), trace.momentum])
    assert used[0][0] != used[0][1]


def test_groups_without_names_go_by_index() -> None:
    lrs = parse({"family": "cosine", "lr": [0.1, 0.2]}).trace(TimeBase(3, 1))
    bare = torch.optim.Adam([{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(3)], lr=1.0)
    assert TraceLR(bare, lrs).get_last_lr() == [float(np.float32(lr)) for lr in (0.1, 0.2, 0.1)]


@pytest.mark.parametrize("stop", [0, 1, 7, 15])
def test_a_resume_is_exact_at_any_step(trace: Trace, stop: int) -> None:
    whole = steps(TraceLR(optimizer(), trace), 15)
    first = TraceLR(optimizer(), trace)
    assert steps(first, stop) == whole[:stop]
    file = io.BytesIO()
    torch.save({"scheduler": first.state_dict(), "optimizer": first.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for order in (["optimizer", "scheduler"], ["scheduler", "optimizer"]):
        again = TraceLR(optimizer(), trace)
        for part in order:
            (again if part == "scheduler" else again.optimizer).load_state_dict(saved[part])
        assert steps(again, 15 - stop) == whole[stop:]
    assert steps(TraceLR(optimizer(), trace, start=stop), 15 - stop) == whole[stop:]


def test_after_the_end_it_stays(trace: Trace) -> None:
    used = steps(TraceLR(optimizer(), trace), 18)
    assert used[15:] == [used[14]] * 3


def test_a_tensor_lr_is_filled(trace: Trace) -> None:
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=torch.tensor(0.5))
    lr = adam.param_groups[0]["lr"]
    TraceLR(adam, trace, start=4)
    assert lr == trace.lr[4]


def test_what_does_not_belong_is_refused(trace: Trace) -> None:
    other = parse({"family": "constant", "lr": 0.1}).trace(TimeBase(5, 3))
    with pytest.raises(ScheduleError, match="the saved state belongs to"):
        TraceLR(optimizer(), other).load_state_dict(TraceLR(optimizer(), trace).state_dict())
    with pytest.raises(ScheduleError, match="start: 16 is not a step"):
        TraceLR(optimizer(), trace, start=16)
    with pytest.raises(ScheduleError, match="one step at a time"):
        TraceLR(optimizer(), trace).step(3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of noise with one box each, in YOLO layout."""
    from PIL import Image

    folder, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(12):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / "images" / f"{i}.png")
        (folder / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [box]\n")
    return folder


@pytest.mark.parametrize(("family", "warmup"), [("yolo_linear", 1.5), ("yolo_cosine", 3.0)])
def test_ultralytics_applies_what_we_say(family: str, warmup: float, images: Path, monkeypatch: Any) -> None:
    """Two epochs of its own trainer; LR of every group and momentum at every optimizer step."""
    monkeypatch.setenv("YOLO_AUTOINSTALL", "False")
    from ultralytics.models.yolo.detect import DetectionTrainer

    seen: list[dict[str, tuple[float, float]]] = []

    class Recorded(DetectionTrainer):
        def optimizer_step(self) -> None:
            seen.append({g["param_group"]: (g["lr"], g["momentum"]) for g in self.optimizer.param_groups})
            super().optimizer_step()

    arguments = {
        "model": "yolo11n.yaml", "data": str(images / "data.yaml"), "epochs": 2, "imgsz": 32, "batch": 2, "nbs": 2,
        "optimizer": "SGD", "lr0": 0.02, "lrf": 0.05, "cos_lr": family == "yolo_cosine", "warmup_epochs": warmup,
        "workers": 0, "device": "cpu", "project": str(images / family), "val": False, "plots": False, "save": False,
        "amp": False, "mosaic": 0.0, "verbose": False,
    }  # fmt: skip
    Recorded(overrides=arguments).train()
    spec = {"family": family, "lr": 0.02, "lrf": 0.05, "warmup": warmup}
    schedule, time = parse(spec), TimeBase.from_images(12, 2, epochs=2)
    trace = schedule.trace(time)
    assert trace.momentum is not None
    assert len(seen) == trace.steps == 12
    for group in ("weight", "bn", "bias"):
        used = [step[group][0] for step in seen]
        np.testing.assert_allclose(used, schedule.values(time, group), rtol=0, atol=1e-15)
    np.testing.assert_array_equal(np.float32([step["weight"][1] for step in seen]), trace.momentum)
