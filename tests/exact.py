"""Small real trainings for the tests of exactness, in this process or (as a script) in a new one."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweeper import training
from sweeper.config import Recipe
from sweeper.schedules import TimeBase, Trace, parse

TRAIN, VAL = 15, 6  # photographs; with batches of 4 the last one has 3

# every augmentation that draws random numbers, and an accumulation window that the epoch's end cuts short
ALL_ON = {
    "degrees": 5.0,
    "shear": 1.0,
    "flipud": 0.3,
    "mixup": 0.4,
    "cutmix": 0.4,
    "multi_scale": 0.5,
    "nbs": 12,
    "mosaic_epochs": 2,
}


def subset(bccd: Path, folder: Path) -> Path:
    """A data.yaml over the first photographs of BCCD, linked into ``folder``."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
            for file in sorted((bccd / kind / split).iterdir())[:count]:
                (folder / kind / split / file.name).symlink_to(file)
    path = folder / "data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: [RBC, WBC, Platelets]\n")
    return path


def recipe(data: Path, **changes: Any) -> Recipe:
    """YOLO11n on 64 pixels with batches of 4."""
    return Recipe(**{"data": str(data), "model": "yolo11n.yaml", "imgsz": 64, "batch": 4, "nbs": 4} | changes)


def trace(spec: Mapping[str, Any], steps_per_epoch: int, epochs: int) -> Trace:
    """The trace of a schedule."""
    return parse(spec).trace(TimeBase(epochs, steps_per_epoch))


def open_trainer(what: Recipe, folder: Path, threads: int = 1, device: str = "cpu") -> training.Trainer:
    """A trainer as a worker opens it."""
    return training.open(what, device=device, threads=threads, folder=folder)


def straight(trainer: training.Trainer, plan: Trace, start: int = 0) -> tuple[list[bytes], list[str]]:
    """Train ``plan`` from ``start``, where ``trainer`` is: the states and digests before, and after each epoch."""
    states, digests = [trainer.state()], [trainer.state_digest()]
    for epoch in range(start, plan.epochs):
        log = trainer.train_epoch(epoch, plan)
        assert np.array_equal(log.lr, plan.lr.reshape(plan.epochs, -1)[epoch])
        states.append(trainer.state())
        digests.append(trainer.state_digest())
    return states, digests


class Elsewhere:
    """A training in new processes that keeps its last state in ``folder``."""

    def __init__(self, what: Recipe, spec: Mapping[str, Any], epochs: int, folder: Path, device: str = "cpu") -> None:
        self._what, self._spec, self._epochs, self._device = what, spec, epochs, device
        self.folder = folder
        folder.mkdir()

    def done(self) -> int:
        """Epochs trained."""
        return max((int(file.stem) for file in self.folder.glob("*.state")), default=0)

    def run(self, until: int, kill_after: int | None = None) -> None:
        """Train on in a new process, to epoch ``until`` or until killed (-9) after ``kill_after`` batches."""
        command = [sys.executable, __file__, self._what.model_dump_json(), repr(dict(self._spec))]
        with subprocess.Popen(
            [*command, str(self._epochs), str(until), str(self.folder), self._device],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path[1:]])},
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            for count, _ in enumerate(process.stdout, 1):
                if count == kill_after:
                    process.send_signal(signal.SIGKILL)
            errors = process.stderr.read()
            assert errors == "", errors
        assert process.returncode == (0 if kill_after is None else -signal.SIGKILL)

    def digest(self) -> str:
        """Of the last state, as the process that made it said."""
        return (self.folder / f"{self.done()}.digest").read_text()


def _main(arguments: Sequence[str]) -> None:
    import ast

    what, spec, epochs, until, folder, device = arguments
    home = Path(folder)
    trainer = open_trainer(Recipe.model_validate_json(what), home / "files", device=device)
    plan = trace(ast.literal_eval(spec), trainer.steps_per_epoch, int(epochs))
    done = max((int(file.stem) for file in home.glob("*.state")), default=0)
    if done:
        trainer.load((home / f"{done}.state").read_bytes())
    for epoch in range(done, int(until)):
        trainer.train_epoch(epoch, plan, lambda batch: print(batch, flush=True))
        (home / f"{epoch + 1}.digest").write_text(trainer.state_digest())
        (home / "aside").write_bytes(trainer.state())
        (home / "aside").rename(home / f"{epoch + 1}.state")


if __name__ == "__main__":
    _main(sys.argv[1:])
