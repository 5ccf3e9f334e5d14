"""What the optimizer used is compared with what was proposed, by the worker, in real trainings that go wrong."""

import functools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import misread
import numpy as np
import pytest
import tiny
import torch

from sweeper.config import Recipe, Sweep
from sweeper.errors import LRMismatch
from sweeper.schedules import TimeBase, Trace, parse
from sweeper.service import Place, Service
from sweeper.training import Applied
from sweeper.training.process import TrainingProcess
from sweeper.training.scheduler import Recorder
from sweeper.worker import Worker

GOOD = 0.02
WHY = "the trainer reads the trace wrongly, or something else in its process sets it"

# -- real trainings, in a real process of a real worker

# 24 images in batches of 8 with nbs 16: two steps an epoch, the second of one batch
SWEEP: dict[str, Any] = {
    "name": "applied",
    "epochs": 2,
    "imgsz": 64,
    "batch": 8,
    "nbs": 16,
    "mosaic": 0.0,
    "lr0": GOOD,
    "trials": 0,
    "search": {},
}
YOLO = {"model": "yolo11n.yaml"}
BOX = {"model": "retinanet_shufflenet_v2_x0_5_fpn"}


def warm(lr: float) -> dict[str, Any]:
    """In the first epoch the LR and the momentum rise and the biases' LR falls; then all stay. The peak is ``lr``."""
    return {"family": "yolo_linear", "lr": lr, "lrf": 1.0, "warmup": "1ep"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("applied")
    tiny.images(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "wrongs"),
    [
        pytest.param(YOLO, ["late", "group", "momentum", "twice"], id="yolo sgd"),
        pytest.param(BOX | {"optimizer": "AdamW"}, ["momentum"], id="torchvision adamw"),
        pytest.param(YOLO | {"optimizer": "MuSGD"}, list(misread.WRONG.values()), id="musgd", marks=pytest.mark.slow),
        pytest.param(BOX, list(misread.WRONG.values()), id="torchvision sgd", marks=pytest.mark.slow),
    ],
)
def test_a_trial_whose_trainer_does_not_apply_the_schedule_fails_and_says_where(
    folder: Path, tmp_path: Path, changes: dict[str, Any], wrongs: list[str]
) -> None:
    """One trial whose schedule is applied, and one for each way in which it can be misread."""
    peaks = [GOOD, *(peak for peak, wrong in misread.WRONG.items() if wrong in wrongs)]
    baselines = [warm(peak) for peak in peaks]
    sweep = Sweep.build({**SWEEP, "data": str(folder / "data" / "data.yaml"), "baselines": baselines, **changes})
    opening = functools.partial(TrainingProcess, open_trainer=misread.open_trainer)
    service = Service(sweep, Place(str(tmp_path)), training=opening)
    service.launch()
    Worker(service, device="cpu", stop=threading.Event()).run()

    good, *rows = service.study.trials()
    assert (good.state, len(good.values)) == ("COMPLETE", 2)
    assert [(row.state, row.attempt, row.curve) for row in rows] == [("FAIL", 1, {})] * len(wrongs)
    assert {row.facts.confounder for row in rows} == {"learning rate not as proposed"}
    times, adam = 3 if sweep.recipe.optimizer == "MuSGD" else 1, sweep.recipe.optimizer == "AdamW"
    for wrong, row in zip(wrongs, rows, strict=True):
        trace = service.trace(row.schedule)
        lr, bias = (times * trace.group(name).astype(np.float64) for name in ("weight", "bias"))
        assert trace.momentum is not None
        name, used, proposed = ("beta 1", 0.9, 0.937) if adam else ("momentum", *trace.momentum[[-1, 0]].tolist())
        said = {
            "late": f"epoch 0, step 0: group weight used LR {lr[-1]}, the schedule says {lr[0]}; {WHY}",
            "group": f"epoch 0, step 0: group bias used LR {lr[0]}, the schedule says {bias[0]}; {WHY}",
            "momentum": f"epoch 0, step 0: group weight used {name} {used}, the schedule says {proposed}; {WHY}",
            "twice": "epoch 0: the optimizer made 4 steps, the schedule has 2; the trainer calls the optimizer at "
            "other batches than the recipe says",
        }[wrong]
        assert row.reasons[-1].splitlines()[0] == f"learning rate not as proposed: {said}"
    service.tracker.drain(30)
    statuses = {run["tags"]["sweeper.trial"]: run["status"] for run in service.tracker.runs()}
    assert statuses == {"0": "FINISHED"} | {str(row.number): "FAILED" for row in rows}


def test_a_quench_is_compared_too(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(data=str(folder / "data" / "data.yaml"), imgsz=64, batch=8, nbs=8, **YOLO)
    good, late = (parse(warm(lr)).trace(TimeBase(2, 3)) for lr in (GOOD, 0.021))
    with TrainingProcess(device="cpu", folder=tmp_path, stall_s=300, open_trainer=misread.open_trainer) as child:
        assert child.quench(recipe, good, epoch=0, steps=2, state=None)
        with pytest.raises(LRMismatch, match=r"epoch 0, step 0: group weight used LR 0\.02"):
            child.quench(recipe, late, epoch=0, steps=2, state=None)


# -- the comparison, on arrays

GROUPS = ("bias", "weight", "bn")
TRACE = parse({"family": "yolo_linear", "lr": 0.01, "warmup": "1ep"}).trace(TimeBase(3, 4))
PLAIN = Trace(TRACE.lr, TRACE.groups, None, 4, 3)


def recipe(optimizer: str = "SGD") -> Recipe:
    return Recipe(data="d.yaml", model="yolo11n.yaml", optimizer=optimizer, momentum=0.9)


def as_proposed(epoch: int, trace: Trace = TRACE, optimizer: str = "SGD") -> Applied:
    """Written down by hand, value by value, as an optimizer would hold them."""
    names = tuple(name for name in GROUPS for _ in range(1 + (optimizer == "MuSGD")))
    lr, momentum = [], []
    for step in range(epoch * 4, epoch * 4 + 4):
        lr.append([float(trace.group(name)[step]) for name in names])
        own = [0.9, 0.999] if optimizer == "AdamW" else [0.9 if trace.momentum is None else float(trace.momentum[step])]
        momentum.append([own for _ in names])
        if optimizer == "MuSGD":
            lr[-1] = [value * (1 + 2 * (index % 2 == 0)) for index, value in enumerate(lr[-1])]
    return Applied(names, np.array(lr), np.array(momentum), np.zeros(4, bool))


@pytest.mark.parametrize("trace", [TRACE, PLAIN], ids=["momentum driven", "momentum left alone"])
@pytest.mark.parametrize("optimizer", ["SGD", "MuSGD", "AdamW"])
@pytest.mark.parametrize("epoch", [0, 2])
def test_what_is_as_proposed_passes_and_the_least_change_of_any_value_does_not(
    epoch: int, optimizer: str, trace: Trace
) -> None:
    applied = as_proposed(epoch, trace, optimizer)
    applied.check(epoch, trace, recipe(optimizer))
    replace(applied, skipped=~applied.skipped).check(epoch, trace, recipe(optimizer))
    for name in ("lr", "momentum"):
        for index in np.ndindex(getattr(applied, name).shape):
            other = getattr(applied, name).copy()
            other[index] = np.nextafter(other[index], 1)
            words = {"lr": ["LR"], "momentum": ["beta 1", "beta 2"] if optimizer == "AdamW" else ["momentum"]}[name]
            said = (
                f"epoch {epoch}, step {4 * epoch + index[0]}: group {applied.groups[index[1]]} used "
                f"{words[index[-1] if name == 'momentum' else 0]} {float(other[index])!r}, "
                f"the schedule says {float(getattr(applied, name)[index])!r}; {WHY}"
            )
            with pytest.raises(LRMismatch) as caught:
                replace(applied, **{name: other}).check(epoch, trace, recipe(optimizer))
            assert str(caught.value) == said


def test_a_step_too_few_or_too_many_is_an_error() -> None:
    applied, next_one = as_proposed(0), as_proposed(1)
    few = Applied(GROUPS, applied.lr[:3], applied.momentum[:3], applied.skipped[:3])
    many = Applied(GROUPS, *(np.concatenate(pair) for pair in (
        (applied.lr, next_one.lr), (applied.momentum, next_one.momentum), (applied.skipped, next_one.skipped)
    )))  # fmt: skip
    few.check(0, TRACE, recipe(), steps=3)
    applied.check(0, TRACE, recipe(), steps=9)  # an epoch has no more
    for wrong, steps, said in ((few, None, "3 steps, the schedule has 4"), (many, None, "8 steps"), (few, 2, "has 2")):
        with pytest.raises(LRMismatch, match=said):
            wrong.check(0, TRACE, recipe(), steps)


def test_another_optimizer_or_other_groups_are_an_error() -> None:
    applied = as_proposed(0)
    with pytest.raises(LRMismatch, match=r"have 1 values for momentum, AdamW has 2 \(beta 1, beta 2\)"):
        applied.check(0, TRACE, recipe("AdamW"))
    with pytest.raises(LRMismatch, match="an LR for group bias, the optimizer has no such group; expected one of x, y"):
        replace(applied, groups=("x", "y", "y")).check(0, TRACE, recipe())
    with pytest.raises(LRMismatch, match="step 0: group bn used LR"):
        replace(applied, groups=("bn", "weight", "bias")).check(0, TRACE, recipe())


# -- the record, from torch's own optimizers


def optimizer(kind: Any, **more: Any) -> Any:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "param_group": name} for name in ("weight", "bias")]
    return kind(groups, lr=0.5, **more)


def loss(of: torch.optim.Optimizer, value: float) -> torch.Tensor:
    return torch.stack([group["params"][0].sum() * value for group in of.param_groups]).sum()


def test_the_record_is_what_the_groups_hold_after_every_other_hook() -> None:
    sgd = optimizer(torch.optim.SGD, momentum=0.9)
    record = Recorder(sgd)

    def meddle(of: torch.optim.Optimizer, *_: object) -> None:
        of.param_groups[1]["lr"] = 7.0

    loss(sgd, 1.0).backward()
    sgd.step()
    handle = sgd.register_step_pre_hook(meddle)
    sgd.param_groups[0]["momentum"] = 0.8
    sgd.step()
    handle.remove()
    applied = record.applied()
    assert applied.groups == ("weight", "bias")
    assert applied.lr.tolist() == [[0.5, 0.5], [0.5, 7.0]]
    assert applied.momentum[:, :, 0].tolist() == [[0.9, 0.9], [0.8, 0.9]]
    assert applied.skipped.tolist() == [False, False]
    record.clear()
    assert record.applied().lr.shape == (0, 2)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_mixed_precision_skips_are_noted_as_skipped(fused: bool) -> None:
    """A fused optimizer is called and skips the update itself; any other is not called."""
    adam = optimizer(torch.optim.AdamW, fused=fused)
    record, scaler = Recorder(adam), torch.amp.GradScaler("cpu")
    called = []
    for value in (1.0, float("inf"), 1.0):
        adam.zero_grad()
        scaler.scale(loss(adam, value)).backward()
        before = record.steps
        scaler.step(adam)
        scaler.update()
        called.append(record.steps > before)
        if not called[-1]:
            record.skipped()
    assert called == [True, fused, True]
    applied = record.applied()
    assert applied.skipped.tolist() == [False, True, False]
    assert applied.lr.tolist() == [[0.5, 0.5]] * 3
    assert applied.momentum.tolist() == [[[0.9, 0.999]] * 2] * 3
