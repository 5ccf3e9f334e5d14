"""What it costs to be exact: snapshot, digest and store as a share of an epoch, all from one run.

An epoch is training and validation. Each is followed by what the worker does with it: the full-precision snapshot, the
SHA-256 of all tensors, the file written, flushed to the disk, read back and put in place, the row in the index; and
once by what a fork costs: found, read, checked, loaded. CPU seconds are steadier than wall seconds on shared cores; a
disk's time shows in wall seconds only, so the medians of both are printed.

    python benchmarks/states.py ../shared/data/bccd/data.yaml --imgsz 640 --epochs 2
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from sweeper import data, database, training
from sweeper.config import Recipe
from sweeper.schedules import TimeBase, parse, prefix_keys
from sweeper.store import Snapshot, Store

Clock = tuple[float, float]  # wall and CPU seconds


def clock() -> Clock:
    """Now."""
    return time.perf_counter(), time.process_time()


def since(start: Clock) -> Clock:
    """Wall and CPU seconds since ``start``."""
    now = clock()
    return now[0] - start[0], now[1] - start[1]


def main() -> None:
    """Print a line per epoch and the shares."""
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("data", help="an Ultralytics data.yaml")
    read.add_argument("--model", default="yolo11n.yaml")
    read.add_argument("--device", default="cpu")
    read.add_argument("--store", help="where the states go; a temporary folder by default")
    for name, default in {"imgsz": 640, "batch": 16, "epochs": 2, "threads": 1}.items():
        read.add_argument(f"--{name}", type=int, default=default)
    asked = read.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = data.open(asked.data, folder=folder / "data")
        same = {name: getattr(asked, name) for name in ("model", "imgsz", "batch", "threads")}
        recipe = Recipe(data=str(source.yaml), nbs=asked.batch, **same)
        trainer = training.open(recipe, device=asked.device, threads=asked.threads, folder=folder)
        store = Store(asked.store or folder / "store", database.open(folder / "sweep.db"))
        trace = parse({"family": "yolo_linear", "lr": 0.01}).trace(TimeBase(asked.epochs, trainer.steps_per_epoch))
        keys = prefix_keys(f"{time.time()}", trace)
        spent: dict[str, list[Clock]] = {"epoch": [], "snapshot": [], "digest": [], "store": []}
        state = b""
        for epoch in range(asked.epochs):
            start = clock()
            trainer.train_epoch(epoch, trace)
            trainer.evaluate()
            spent["epoch"].append(since(start))
            start = clock()
            state = trainer.state()
            spent["snapshot"].append(since(start))
            start = clock()
            digest = trainer.state_digest()
            spent["digest"].append(since(start))
            start = clock()
            store.put(keys[epoch + 1], Snapshot(epoch + 1, state, [], digest))
            spent["store"].append(since(start))
            said = ", ".join(f"{name} {parts[-1][0]:.3f} s ({parts[-1][1]:.3f} CPU)" for name, parts in spent.items())
            print(f"epoch {epoch}: {said}", flush=True)
        start = clock()
        trainer.load(store.get(keys[store.deepest(keys)]).state)
        fork = since(start)
    print(f"{asked.model}, {asked.imgsz} px, {source.train_images} images, {len(state) / 1e6:.1f} MB a state")
    for column, what in enumerate(("wall", "CPU")):
        epochs = [parts[column] for parts in spent["epoch"]]
        kept = [sum(spent[name][i][column] for name in ("snapshot", "digest", "store")) for i in range(asked.epochs)]
        share = statistics.median(part / epoch for part, epoch in zip(kept, epochs, strict=True))
        print(
            f"{what}: of an epoch, snapshot, digest and store {share:.2%} "
            f"(1 % is at {100 * share * source.train_images:.0f} "
            f"training images); a fork {fork[column] / statistics.median(epochs):.2%}"
        )


if __name__ == "__main__":
    main()
