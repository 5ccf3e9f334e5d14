"""An epoch of this trainer, all included, against one of ``yolo train``: the same data, model and threads, in one run.

Each trains in a process of its own; while one works through an epoch the other waits, and they take turns, so that
whatever else the machine does falls on both. An epoch is training, validation and saving: a checkpoint there, here a
full-precision snapshot and the digest of all tensors. CPU seconds (loader processes included) are steadier than wall
seconds on shared cores; both are printed, as the median over the pairs of epochs after the first.

    python benchmarks/epoch.py ../shared/data/bccd/data.yaml --imgsz 320 --rounds 5
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sweeper import data, training
from sweeper.config import Recipe
from sweeper.schedules import TimeBase, parse

Spent = tuple[float, float, float]  # wall seconds, CPU seconds, wall seconds of them spent on the snapshot


def clock() -> tuple[float, float]:
    """Wall and CPU seconds; those of loader processes count when they have ended, so they are asked for by id."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    cpu = own.ru_utime + own.ru_stime
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), cpu


def ours(pipe: Connection, recipe: Recipe, device: str, epochs: int, folder: Path) -> None:
    """Train an epoch whenever told to, and say what it took."""
    trainer = training.open(recipe, device=device, threads=recipe.threads, folder=folder)
    trace = parse({"family": "yolo_linear", "lr": 0.01}).trace(TimeBase(epochs, trainer.steps_per_epoch))
    for epoch in range(epochs):
        pipe.recv()
        wall, cpu = clock()
        trainer.train_epoch(epoch, trace)
        trainer.evaluate()
        before = time.perf_counter()
        trainer.state()
        trainer.state_digest()
        saved = time.perf_counter() - before
        after = clock()
        pipe.send((after[0] - wall, after[1] - cpu, saved))


def stock(pipe: Connection, recipe: Recipe, device: str, epochs: int, folder: Path) -> None:
    """The same for ``yolo train``, held at the start of its epochs."""
    from sweeper.training import isolated  # noqa: F401
    from sweeper.training.parts import SAME_NAMES

    # isort: split
    import torch
    import ultralytics

    started = (0.0, 0.0)

    def start(trainer: Any) -> None:
        nonlocal started
        torch.set_num_threads(recipe.threads)
        pipe.recv()
        started = clock()

    def end(trainer: Any) -> None:
        wall, cpu = clock()
        pipe.send((wall - started[0], cpu - started[1], 0.0))

    model = ultralytics.YOLO(recipe.model)
    model.add_callback("on_train_epoch_start", start)
    model.add_callback("on_fit_epoch_end", end)
    same = {name: getattr(recipe, name) for name in SAME_NAMES if name != "model"}
    model.train(
        **same,
        data=recipe.data,
        device=device,
        epochs=epochs + 1,  # the last would evaluate twice
        workers=recipe.loader_workers,
        amp=recipe.amp,
        close_mosaic=0,
        plots=False,
        project=str(folder),
        val=True,
    )


def main() -> None:
    """Print one line per epoch and the ratios."""
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("data", help="an Ultralytics data.yaml")
    read.add_argument("--model", default="yolo11n.yaml")
    read.add_argument("--device", default="cpu")
    for name, default in {"imgsz": 320, "batch": 16, "rounds": 5, "threads": 1, "workers": 0}.items():
        read.add_argument(f"--{name}", type=int, default=default)
    asked = read.parse_args()
    epochs = asked.rounds + 1
    spent: dict[str, list[Spent]] = {"sweeper": [], "yolo train": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = Recipe(
            data=str(data.open(asked.data, folder=folder / "data").yaml),
            model=asked.model,
            imgsz=asked.imgsz,
            batch=asked.batch,
            nbs=asked.batch,
            threads=asked.threads,
            loader_workers=asked.workers,
            deterministic=True,
        )
        spawn = multiprocessing.get_context("spawn")
        pipes, processes = {}, []
        for name, task in {"sweeper": ours, "yolo train": stock}.items():
            pipes[name], theirs = spawn.Pipe()
            process = spawn.Process(target=task, args=(theirs, recipe, asked.device, epochs, folder / name))
            process.start()
            processes.append(process)
        for epoch in range(epochs):
            for name in spent if epoch % 2 else reversed(spent):
                pipes[name].send("go")
                spent[name].append(pipes[name].recv())
                wall, cpu, _ = spent[name][-1]
                print(f"epoch {epoch}  {name:<10}  {wall:7.2f} s wall  {cpu:7.2f} s CPU", flush=True)
        for process in processes:
            process.kill()
            process.join()
    for what, column in (("wall", 0), ("CPU", 1)):
        pairs = zip(spent["sweeper"][1:], spent["yolo train"][1:], strict=True)
        ratios = sorted(mine[column] / theirs[column] for mine, theirs in pairs)
        print(
            f"{what} seconds, sweeper / yolo train: {statistics.median(ratios):.3f} ({ratios[0]:.3f}..{ratios[-1]:.3f})"
        )
    shares = [saved / wall for wall, _, saved in spent["sweeper"][1:]]
    print(f"of an epoch, snapshot and digest: {statistics.median(shares):.2%}")


if __name__ == "__main__":
    main()
