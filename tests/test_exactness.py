"""A run that was stopped, killed, moved to another process or forked is, bit for bit, the uninterrupted one.

Every comparison is over all tensors of the model, the EMA and the optimizer. The matrix over optimizers and models is
marked slow (``make exactness``); the default suite trains YOLO11n with SGD and every augmentation on.
"""

import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import exact
import numpy as np
import pytest
import torch
from exact import ALL_ON, Elsewhere

from sweeper import schedules, training
from sweeper.config import Recipe

EPOCHS = 4
# warm-up to the middle of epoch 1, bias and momentum moving; mosaic closes at epoch 2
WARM = {"family": "yolo_linear", "lr": 0.01, "warmup": "1.5ep"}
MATRIX: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "AdamW"},
    "musgd": {"optimizer": "MuSGD"},
    "yolo26n-musgd": {"model": "yolo26n.yaml", "optimizer": "MuSGD"},
    "yolov5s-sgd": {"model": "yolov5s.yaml"},
    "yolov10n-adamw": {"model": "yolov10n.yaml", "optimizer": "AdamW"},
    "frozen-layers": {"freeze": 5},
    "not-deterministic": {"deterministic": False},
}


@dataclass(frozen=True)
class Run:
    """An uninterrupted run: states and digests before epoch 0 and after each epoch. The trainer is free for use."""

    recipe: Recipe
    trainer: training.Trainer
    trace: schedules.Trace
    states: list[bytes]
    digests: list[str]


@pytest.fixture(scope="module")
def data(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exact.subset(bccd, tmp_path_factory.mktemp("photographs") / "data")


def whole(data: Path, folder: Path, spec: dict[str, Any] = WARM, **changes: Any) -> Run:
    recipe = exact.recipe(data, **ALL_ON | changes)
    trainer = exact.open_trainer(recipe, folder)
    trace = exact.trace(spec, trainer.steps_per_epoch, EPOCHS)
    return Run(recipe, trainer, trace, *exact.straight(trainer, trace))


@pytest.fixture(
    scope="module",
    params=[pytest.param({}, id="sgd"), *(pytest.param(c, id=n, marks=pytest.mark.slow) for n, c in MATRIX.items())],
)
def changes(request: pytest.FixtureRequest) -> Any:
    """What a case of the matrix changes in the recipe."""
    return request.param


@pytest.fixture(scope="module")
def run(data: Path, changes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return whole(data, tmp_path_factory.mktemp("run"), **changes)


def test_stopped_after_every_epoch_and_resumed_in_a_new_process(run: Run, tmp_path: Path) -> None:
    assert len(set(run.digests)) == EPOCHS + 1
    elsewhere = Elsewhere(run.recipe, WARM, EPOCHS, tmp_path / "elsewhere")
    for epoch in range(EPOCHS):
        elsewhere.run(until=epoch + 1)
        assert elsewhere.digest() == run.digests[epoch + 1]


def test_killed_at_a_random_batch_and_resumed(run: Run, tmp_path: Path) -> None:
    elsewhere = Elsewhere(run.recipe, WARM, EPOCHS, tmp_path / "elsewhere")
    moment = random.randint(1, 15)
    elsewhere.run(until=EPOCHS, kill_after=moment)
    elsewhere.run(until=EPOCHS)
    assert elsewhere.digest() == run.digests[-1], f"killed after batch {moment}"


@pytest.mark.parametrize("start", [1, 2, 3], ids=["mid-warm-up", "as-mosaic-closes", "after-mosaic-closed"])
def test_forked_from_another_schedule_where_their_traces_part(run: Run, start: int) -> None:
    """The fork trains only the epochs after the common prefix, from the other run's state."""
    end = start * run.trace.steps_per_epoch + 1  # they part inside epoch ``start``
    other = schedules.Trace(
        lr=np.where(np.arange(run.trace.steps) < end, run.trace.lr, 0.5 * run.trace.lr),
        groups=run.trace.groups,
        momentum=run.trace.momentum,
        steps_per_epoch=run.trace.steps_per_epoch,
        epochs=EPOCHS,
    )
    assert run.trace.common_prefix(other) == end
    keys = zip(schedules.prefix_keys("recipe", run.trace), schedules.prefix_keys("recipe", other), strict=True)
    assert sum(mine == theirs for mine, theirs in keys) == start + 1
    run.trainer.load(run.states[0])
    _, straight = exact.straight(run.trainer, other)
    run.trainer.load(run.states[start])
    _, forked = exact.straight(run.trainer, other, start)
    assert forked == straight[start:]
    assert forked[1:] != run.digests[start + 1 :]


def test_epochs_in_any_order(run: Run) -> None:
    for epoch in (3, 0, 2, 1):
        run.trainer.load(run.states[epoch])
        assert run.trainer.state_digest() == run.digests[epoch]
        run.trainer.train_epoch(epoch, run.trace)
        assert run.trainer.state_digest() == run.digests[epoch + 1]


def test_loader_processes_change_no_bit(run: Run, data: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    other = whole(data, tmp_path, **changes, loader_workers=2, cache_mb=0)
    assert other.digests == run.digests
    other.trainer.load(other.states[1])  # the processes have prepared another epoch
    other.trainer.train_epoch(1, other.trace)
    assert other.trainer.state_digest() == run.digests[2]


def test_an_average_far_into_its_decay(run: Run) -> None:
    """After 10,000 updates the EMA keeps 0.9932 of itself in a step: a snapshot that rounded it would show."""
    buffer = io.BytesIO()
    torch.save(torch.load(io.BytesIO(run.states[1]), weights_only=True) | {"updates": 10_000}, buffer)
    run.trainer.load(buffer.getvalue())
    late, digests = exact.straight(run.trainer, run.trace, 1)
    for epoch in range(1, EPOCHS):
        run.trainer.load(run.states[0])
        run.trainer.load(late[epoch - 1])
        run.trainer.train_epoch(epoch, run.trace)
        assert run.trainer.state_digest() == digests[epoch]


def test_looking_at_a_run_does_not_change_it(run: Run) -> None:
    run.trainer.load(run.states[0])
    for epoch in range(2):
        assert run.trainer.evaluate().metrics == run.trainer.evaluate().metrics
        run.trainer.weights()
        run.trainer.val_loss()
        run.trainer.train_epoch(epoch, run.trace)
        assert run.trainer.state_digest() == run.digests[epoch + 1]


def test_the_seed_and_the_momentum_do_change_it(data: Path, tmp_path: Path) -> None:
    digests = whole(data, tmp_path / "a").digests
    other_seed = whole(data, tmp_path / "b", seed=1).digests
    other_momentum = whole(data, tmp_path / "c", WARM | {"warmup_momentum": 0.5}).digests
    assert not set(digests) & set(other_seed)
    assert digests[0] == other_momentum[0]
    assert not set(digests[1:]) & set(other_momentum[1:])
