"""A training left before its end: the process that it ran in is of use for the next one, and the bits are the same."""

import contextlib
from pathlib import Path

import tiny

from sweeper.config import Recipe
from sweeper.schedules import TimeBase, parse
from sweeper.training.process import Beat, Epoch, TrainingProcess


def test_a_training_left_after_an_epoch_leaves_its_process_and_one_left_inside_does_not(tmp_path: Path) -> None:
    recipe = Recipe(data=str(tiny.images(tmp_path)), model="yolo11n.yaml", imgsz=32, batch=2, nbs=8)
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
