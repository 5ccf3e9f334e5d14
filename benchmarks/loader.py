"""What two workers on one seed would save if they made each augmented image once, in CPU seconds.

Both see the very same images in the same epochs. They load some epochs each for itself, then with a folder between
them: who needs an image takes it from there or makes it and puts it there, as sharing would have to. Decoded images are
cached in both cases. An epoch of both, with training, validation and state, says what share that is.

    python benchmarks/loader.py ../shared/data/bccd/data.yaml --imgsz 160 320 --shared /dev/shm
"""

import argparse
import multiprocessing
import os
import pickle
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sweeper import data, training
from sweeper.config import Recipe
from sweeper.schedules import TimeBase, parse


def worker(pipe: Connection, recipe: Recipe, folder: Path, shared: Path) -> None:
    """Load epochs when told to, from ``shared`` or not, or train one; say what CPU seconds it took."""
    from sweeper.training.epochs import ExactDataset

    class Sharing(ExactDataset):
        def __getitem__(self, key: Any) -> dict[str, Any]:
            if not self.augment:
                return super().__getitem__(key)
            file = shared / "{}-{}".format(*key)
            try:
                item: dict[str, Any] = pickle.loads(file.read_bytes())
            except FileNotFoundError:
                item = super().__getitem__(key)
                aside = file.with_suffix(f".{os.getpid()}")
                aside.write_bytes(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))
                aside.replace(file)
            return item

    trainer: Any = training.open(recipe, device="cpu", threads=1, folder=folder)
    trace = parse({"family": "yolo_linear", "lr": 0.01}).trace(TimeBase(1000, trainer.steps_per_epoch))
    dataset = trainer._parts.train_loader.dataset
    while True:
        what, epoch = pipe.recv()
        dataset.__class__ = Sharing if what == "shared" else ExactDataset
        start = time.process_time()
        if what == "trained":
            trainer.train_epoch(epoch, trace)
            trainer.evaluate()
            trainer.copied()()
        else:
            for _ in trainer._load_epoch(epoch):
                pass
        pipe.send(time.process_time() - start)


def measure(recipe: Recipe, epochs: int, folder: Path, shared: Path) -> None:
    """Print one line."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for name in ("one", "two"):
        pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=worker, args=(theirs, recipe, folder / name, shared))
        process.start()
        processes.append(process)
        pipes.append(pipe)

    def both(what: str, epoch: int) -> float:
        for pipe in pipes:
            pipe.send((what, epoch))
        return float(sum(pipe.recv() for pipe in pipes))

    both("loaded", 0)  # decodes the images
    loaded, together, held = 0.0, 0.0, 0
    for epoch in range(1, epochs + 1):
        loaded += both("loaded", epoch) / epochs
        together += both("shared", epoch) / epochs
        held = sum(file.stat().st_size for file in shared.iterdir())
        for file in shared.iterdir():
            file.unlink()
    trained = both("trained", epochs + 1)
    for process in processes:
        process.kill()
        process.join()
    print(
        f"{recipe.imgsz} pixels, CPU seconds of 2 workers per epoch: loaded {loaded:.2f}, shared {together:.2f} "
        f"({held / 1e6:.0f} MB), all in all {trained:.2f}; sharing saves {(loaded - together) / trained:.1%}, "
        f"at most {loaded / 2 / trained:.1%} if it cost nothing",
        flush=True,
    )


def main() -> None:
    """Measure at each image size."""
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("data", help="an Ultralytics data.yaml")
    read.add_argument("--imgsz", type=int, nargs="+", default=[320])
    read.add_argument("--epochs", type=int, default=5)
    read.add_argument("--shared", help="a folder in memory, for what is shared; by default a temporary one")
    asked = read.parse_args()
    for size in asked.imgsz:
        with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory(dir=asked.shared) as shared:
            folder = Path(temporary)
            dataset = data.open(asked.data, folder=folder / "data")
            recipe = Recipe(data=str(dataset.yaml), model="yolo11n.yaml", imgsz=size, batch=16, nbs=16, cache_mb=1024)
            measure(recipe, asked.epochs, folder, Path(shared))


if __name__ == "__main__":
    main()
