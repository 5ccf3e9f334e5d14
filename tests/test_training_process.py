"""A training left before its end: the process that it ran in is of use for the next one, and the bits are the same."""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from sweeper import training
from sweeper.config import Recipe
from sweeper.errors import NotFinite
from sweeper.schedules import TimeBase, Trace, parse
from sweeper.training.process import Beat, Epoch, TrainingProcess

REST_S = 2.0


class Noting:
    """A real trainer that leaves a file ``trained-N`` when it has trained epoch N."""

    def __init__(self, recipe: Recipe, *, folder: Path, **where: Any) -> None:
        self._folder, self._trainer = folder, training.open(recipe, folder=folder, **where)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def train_epoch(self, epoch: int, *arguments: Any, **more: Any) -> training.EpochLog:
        log = self._trainer.train_epoch(epoch, *arguments, **more)
        (self._folder / f"trained-{epoch}").touch()
        return log


class Resting(Noting):
    """A real trainer that rests before every validation."""

    def evaluate(self, *arguments: Any) -> training.Evaluation:
        time.sleep(REST_S)
        evaluation: training.Evaluation = self._trainer.evaluate(*arguments)
        return evaluation


def small(folder: Path) -> Recipe:
    return Recipe(data=str(tiny.images(folder)), model="yolo11n.yaml", imgsz=32, batch=2, nbs=8)


def test_the_next_epoch_is_trained_while_nobody_has_asked_for_it_and_counts_only_then(tmp_path: Path) -> None:
    recipe, work = small(tmp_path), tmp_path / "work"
    trace = parse({"family": "yolo_linear", "lr": 0.02, "warmup": "1ep"}).trace(TimeBase(3, 3))
    with TrainingProcess(device="cpu", folder=work, stall_s=300, open_trainer=Noting) as child:  # type: ignore[arg-type]

        def events(until: int) -> list[Epoch]:
            with contextlib.closing(child.train(recipe, trace, start=0, state=None)) as all_of_them:
                taken: list[Epoch] = []
                for event in all_of_them:
                    if isinstance(event, Epoch):
                        taken.append(event)
                        tiny.wait((work / f"trained-{min(event.epoch + 1, 2)}").exists)
                        if event.epoch + 1 == until:
                            break
                return taken

        (first,) = events(1)
        assert not (work / "trained-2").exists()
        assert child.epochs == 1
        process = child._process.pid
        straight = events(3)
        assert [event.epoch for event in straight] == [0, 1, 2]
        assert straight[0].state_digest == first.state_digest
        assert child._process.pid == process
        with contextlib.closing(child.train(recipe, trace, start=1, state=first.state)) as rest:
            digests = [event.state_digest for event in rest if isinstance(event, Epoch)]
        assert digests == [event.state_digest for event in straight[1:]]


def test_the_seconds_of_an_epoch_have_its_validation_in_them(tmp_path: Path) -> None:
    recipe = small(tmp_path)
    trace = parse({"family": "constant", "lr": 0.01}).trace(TimeBase(1, 3))
    with TrainingProcess(device="cpu", folder=tmp_path, stall_s=300, open_trainer=Resting) as child:  # type: ignore[arg-type]
        (epoch,) = (event for event in child.train(recipe, trace, start=0, state=None) if isinstance(event, Epoch))
    assert epoch.seconds >= REST_S


def test_an_error_in_an_epoch_that_was_trained_ahead_concerns_only_who_asks_for_it(tmp_path: Path) -> None:
    recipe = small(tmp_path)
    trace = Trace(lr=np.array([0.01] * 3 + [1e30] * 3), steps_per_epoch=3, epochs=2)
    with TrainingProcess(device="cpu", folder=tmp_path / "work", stall_s=300) as child:
        with contextlib.closing(child.train(recipe, trace, start=0, state=None)) as events:
            first = next(event for event in events if isinstance(event, Epoch))
            tiny.wait(lambda: "NotFinite" in child.last_lines())
        process = child._process.pid
        assert len(child.detections(recipe, first.state)) == 8
        assert "NotFinite" not in child.last_lines()

        def all_of_it() -> None:
            for event in child.train(recipe, trace, start=0, state=None):
                if isinstance(event, Epoch):
                    tiny.wait(lambda: "NotFinite" in child.last_lines())

        with pytest.raises(NotFinite, match="epoch 1"):
            all_of_it()
        assert "NotFinite" in child.last_lines()
        assert child._process.pid == process


def test_a_training_left_after_an_epoch_leaves_its_process_and_one_left_inside_does_not(tmp_path: Path) -> None:
    recipe = small(tmp_path)
    trace = parse({"family": "yolo_linear", "lr": 0.02, "warmup": "1ep"}).trace(TimeBase(3, 3))

    with TrainingProcess(device="cpu", folder=tmp_path / "work", stall_s=300) as child:

        def digest(until: int, start: int = 0, state: bytes | None = None) -> tuple[str, bytes]:
            with contextlib.closing(child.train(recipe, trace, start=start, state=state)) as events:
                for event in events:
                    if isinstance(event, Epoch) and event.epoch + 1 == until:
                        return event.state_digest, event.state
            raise AssertionError

        first, state = digest(1)
        process = child._process.pid
        assert digest(2, 1, state)[0] == digest(2)[0]
        assert digest(1)[0] == first
        assert len(child.detections(recipe, state)) == 8
        assert child._process.pid == process

        with contextlib.closing(child.train(recipe, trace, start=0, state=None)) as events:
            assert any(isinstance(event, Beat) for event in events)
        assert child._process is None
        assert digest(1)[0] == first
        assert child._process.pid != process
