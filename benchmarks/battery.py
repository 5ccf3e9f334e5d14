"""What the battery on one restart costs, as a share of the run: quenches, losses, and all of it at k snapshots.

The parts are measured on a few epochs (their time does not depend on how far the training is) and put together for a
run of ``--epochs``; the counterfactual and matched-peak runs, which are ordinary trainings, are left out. CPU seconds
of this process, steadier than wall seconds on shared cores.

    python benchmarks/battery.py ../shared/data/bccd/data.yaml --imgsz 160 --epochs 40
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sweeper import data, evidence, training
from sweeper.config import Escape, Recipe
from sweeper.schedules import TimeBase, parse, quench


def seconds(work: Callable[[], object], times: int) -> float:
    """Median CPU seconds of ``work``."""
    spent = []
    for _ in range(times):
        started = time.process_time()
        work()
        spent.append(time.process_time() - started)
    return statistics.median(spent)


def main() -> None:
    """Print the parts and the shares."""
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("data", help="an Ultralytics data.yaml")
    read.add_argument("--model", default="yolo11n.yaml")
    read.add_argument("--device", default="cpu")
    for name, default in {"imgsz": 160, "batch": 16, "epochs": 40, "times": 3, "threads": 1, "snapshots": 8}.items():
        read.add_argument(f"--{name}", type=int, default=default)
    asked = read.parse_args()
    settings = Escape(snapshots=asked.snapshots)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = Recipe(
            data=str(data.open(asked.data, folder=folder / "data").yaml),
            model=asked.model,
            imgsz=asked.imgsz,
            batch=asked.batch,
            nbs=asked.batch,
            threads=asked.threads,
        )
        trainer = training.open(recipe, device=asked.device, threads=recipe.threads, folder=folder)
        trace = parse({"family": "yolo_linear", "lr": 0.01}).trace(TimeBase(asked.epochs, trainer.steps_per_epoch))
        trainer.train_epoch(0, trace)  # fills the caches

        def epoch() -> None:
            trainer.train_epoch(1, trace)
            trainer.evaluate()
            trainer.state()
            trainer.state_digest()

        run = asked.epochs * seconds(epoch, asked.times)
        state, weights = trainer.state(), trainer.arrays()
        steps = min(math.ceil(settings.quench * trace.steps), trace.steps_per_epoch)
        tail = quench(trace, epochs=2)

        def quenched() -> None:
            trainer.load(state)
            trainer.train_epoch(trace.epochs, tail, steps=steps)
            trainer.arrays()

        def loss() -> None:
            trainer.set_weights(evidence.interpolate(weights, weights, 0.5))
            trainer.recompute_bn(trace.epochs, settings.bn_batches)
            trainer.val_loss(settings.val_images)

        loss()
        a_quench, a_loss = seconds(quenched, asked.times), seconds(loss, asked.times)
    k = settings.snapshots
    lines = 3 * settings.points  # before to after, the self-barrier, another seed
    way = k + (k + 1) * (settings.piece_points - 2)
    print(
        f"run of {asked.epochs} epochs: {run:.0f} s; a quench of {steps} steps {a_quench:.2f} s, a loss {a_loss:.2f} s"
    )
    for what, quenches, losses in (
        ("the straight line settles it", 4, lines),
        (f"k = {k} on the way", 4 + k, lines + way),
    ):
        total = quenches * a_quench + losses * a_loss
        print(f"{what}: {quenches} quenches, {losses} losses: {total:.0f} s, {total / run:.1%} of the run")


if __name__ == "__main__":
    main()
