"""An epoch of this trainer, all included, against one of ``yolo train``: the same data, model and threads, in one run.

Each trains in a process of its own; while one works through an epoch the other waits, and they take turns, so that
whatever else the machine does falls on both. An epoch is training, validation and saving: a checkpoint there, here a
full-precision snapshot and the digest of all tensors, made beside the next epoch as a worker does. CPU seconds (loader
processes included) are steadier than wall seconds on shared cores; both are printed, as the median over the pairs of
epochs after the first. Then one more epoch of this trainer says where the time goes: each part waits for the GPU
before and after, so their sum is more than an epoch that does not. Loader and image cache are as the options say for
both.

    python benchmarks/epoch.py ../shared/data/bccd/data.yaml --imgsz 160 320 --rounds 5
    python benchmarks/epoch.py DATA --device 0 --imgsz 160 320 640 --workers 8 --amp --cache-mb 4096
"""

import argparse
import contextlib
import multiprocessing
import os
import pickle
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sweeper import data, training
from sweeper.config import Recipe
from sweeper.schedules import TimeBase, Trace, parse

Spent = tuple[float, float]  # wall seconds, CPU seconds


def clock() -> Spent:
    """Wall and CPU seconds; those of loader processes count when they have ended, so they are asked for by id."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), cpu


def since(start: Spent) -> Spent:
    """What was spent since ``start``."""
    now = clock()
    return now[0] - start[0], now[1] - start[1]


def ours(pipe: Connection, recipe: Recipe, device: str, epochs: int, folder: Path, dataset: data.Dataset) -> None:
    """Train an epoch whenever told to, and say what it took; at the end, where the time of another one goes."""
    where = device if device == "cpu" else f"cuda:{device}"
    trainer = training.open(recipe, device=where, threads=recipe.threads, folder=folder)
    trace = parse({"family": "yolo_linear", "lr": 0.01}).trace(TimeBase(epochs + 1, trainer.steps_per_epoch))
    with ThreadPoolExecutor(1) as aside:
        written = None
        for epoch in range(epochs):
            pipe.recv()
            start = clock()
            trainer.train_epoch(epoch, trace)
            trainer.evaluate()
            if written is not None:
                written.result()
            written = aside.submit(trainer.copied())
            pipe.send(since(start))
    pipe.recv()
    pipe.send(profile(trainer, trace, epochs, dataset, where))


def profile(trainer: Any, trace: Trace, epoch: int, dataset: data.Dataset, device: str) -> dict[str, float]:
    """Wall seconds of one epoch by part; ``epoch`` is the one that the loader has prepared."""
    import torch

    from sweeper.training.evaluation import coco_metrics

    parts, spent = trainer._parts, defaultdict[str, float](float)

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        yield
        if device != "cpu":
            torch.cuda.synchronize()
        spent[name] += time.perf_counter() - start

    def wrap(owner: Any, method: str, name: str) -> None:
        call: Callable[..., Any] = getattr(owner, method)

        def wrapped(*arguments: Any, **more: Any) -> Any:
            with timed(name):
                return call(*arguments, **more)

        setattr(owner, method, wrapped)

    batches = trainer._load_epoch

    def loading(number: int) -> Iterator[Any]:
        iterator = batches(number)
        while True:
            with timed("loader"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    trainer._load_epoch = loading
    wrap(parts, "preprocess_batch", "copy to the device")
    wrap(parts, "step", "optimizer and EMA")
    wrap(parts.validator, "get_stats", "validation: its metrics")
    with timed("epoch"):
        trainer.train_epoch(epoch, trace)
    spent["forward and backward"] = spent.pop("epoch") - sum(spent.values())
    with timed("validation"):
        evaluation = trainer.evaluate()
    spent["validation"] -= spent["validation: its metrics"]
    with timed("snapshot"):
        copy = trainer.copied()
    with timed("beside the next epoch: digest and bytes"):
        state, _ = copy()
    with timed("beside the next epoch: to the worker"):
        pickle.loads(pickle.dumps((state, evaluation.detections)))
    with timed("beside the next epoch: COCO's metrics"):
        coco_metrics(dataset, evaluation.detections)
    return dict(spent)


def stock(pipe: Connection, recipe: Recipe, device: str, epochs: int, folder: Path, dataset: data.Dataset) -> None:
    """The same for ``yolo train``, held at the start of its epochs."""
    from sweeper.training.parts import SAME_NAMES  # before Ultralytics

    # isort: split
    import torch
    import ultralytics

    started = (0.0, 0.0)

    def start(trainer: Any) -> None:
        nonlocal started
        torch.set_num_threads(recipe.threads)
        pipe.recv()
        started = clock()

    # its check of mixed precision downloads weights
    ultralytics.engine.trainer.check_amp = lambda model: device != "cpu"
    model = ultralytics.YOLO(recipe.model)
    model.add_callback("on_train_epoch_start", start)
    model.add_callback("on_fit_epoch_end", lambda trainer: pipe.send(since(started)))
    same = {name: getattr(recipe, name) for name in SAME_NAMES if name != "model"}
    model.train(
        **same,
        data=recipe.data,
        device=device,
        epochs=epochs + 1,  # the last would evaluate twice
        workers=recipe.loader_workers,
        cache="ram" if recipe.cache_mb else False,
        amp=recipe.amp,
        close_mosaic=0,
        plots=False,
        project=str(folder),
        val=True,
    )


def compare(recipe: Recipe, dataset: data.Dataset, device: str, epochs: int, folder: Path) -> None:
    """Print one line per epoch, the ratios, and where an epoch goes."""
    spent: dict[str, list[Spent]] = {"sweeper": [], "yolo train": []}
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, task in {"sweeper": ours, "yolo train": stock}.items():
        pipes[name], theirs = spawn.Pipe()
        process = spawn.Process(target=task, args=(theirs, recipe, device, epochs, folder / name, dataset))
        process.start()
        theirs.close()  # else nobody would notice its death
        processes.append(process)
    try:
        for epoch in range(epochs):
            for name in spent if epoch % 2 else reversed(spent):
                pipes[name].send("go")
                spent[name].append(pipes[name].recv())
                wall, cpu = spent[name][-1]
                print(f"epoch {epoch}  {name:<10}  {wall:7.2f} s wall  {cpu:7.2f} s CPU", flush=True)
        pipes["sweeper"].send("go")
        where = pipes["sweeper"].recv()
    finally:  # else this process would wait for the one whose partner has failed
        for process in processes:
            process.kill()
            process.join()
    for what, column in (("wall", 0), ("CPU", 1)):
        pairs = zip(spent["sweeper"][1:], spent["yolo train"][1:], strict=True)
        ratios = sorted(mine[column] / theirs[column] for mine, theirs in pairs)
        middle = statistics.median(ratios)
        seconds = statistics.median(mine[column] for mine in spent["sweeper"][1:])
        print(f"{what}: {seconds:.2f} s; sweeper / yolo train {middle:.3f} ({ratios[0]:.3f}..{ratios[-1]:.3f})")
    for name, seconds in where.items():
        print(f"{seconds:8.3f} s  {name}")


def main() -> None:
    """Compare at each image size."""
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("data", help="an Ultralytics data.yaml")
    read.add_argument("--model", default="yolo11n.yaml")
    read.add_argument("--device", default="cpu", help="cpu, or the number of a GPU")
    read.add_argument("--imgsz", type=int, nargs="+", default=[320])
    read.add_argument("--amp", action="store_true", help="mixed precision, on a GPU")
    for name, default in {"batch": 16, "rounds": 5, "threads": 1, "workers": 0, "cache-mb": 1024}.items():
        read.add_argument(f"--{name}", type=int, default=default)
    asked = read.parse_args()
    for size in asked.imgsz:
        print(f"{size} pixels, device {asked.device}, AMP {'on' if asked.amp else 'off'}", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            dataset = data.open(asked.data, folder=folder / "data")
            recipe = Recipe(
                data=str(dataset.yaml),
                model=asked.model,
                imgsz=size,
                batch=asked.batch,
                nbs=asked.batch,
                threads=asked.threads,
                loader_workers=asked.workers,
                cache_mb=asked.cache_mb,
                amp=asked.amp,
            )
            compare(recipe, dataset, asked.device, asked.rounds + 1, folder)


if __name__ == "__main__":
    main()
