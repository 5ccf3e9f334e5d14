"""The trace of 300 epochs of COCO at batch 16 against stepping torch's schedulers and the published CAWB loop.

    python benchmarks/trace.py

Stepping is measured on the first STEPPED steps and scaled to the whole run (its cost per step is constant).
"""

import math
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import torch

from sweeper.schedules import TimeBase, parse, prefix_keys

TIME = TimeBase.from_images(118_287, 16, epochs=300)
STEPPED = 50_000
S = torch.optim.lr_scheduler
Make = Callable[[torch.optim.Optimizer], Any]
FAMILIES: list[tuple[dict[str, Any], Make | None]] = [
    ({"family": "cawb", "steps": [100, 200], "warmup": "3ep"}, None),
    ({"family": "cawb", "steps": [100, 200], "decay": "0.65*((1+cos(pi*x/y))/2)**1.0+0.35"}, None),
    ({"family": "cawb", "steps": [100, 200], "mode": "reference"}, None),
    ({"family": "cosine"}, lambda o: S.CosineAnnealingLR(o, TIME.steps)),
    ({"family": "warm_restarts", "T_0": 50}, lambda o: S.CosineAnnealingWarmRestarts(o, TIME.steps // 6)),
    ({"family": "multistep", "boundaries": [100, 200]}, lambda o: S.MultiStepLR(o, [TIME.steps // 3])),
    ({"family": "yolo_linear"}, lambda o: S.LambdaLR(o, lambda x: max(1 - x / TIME.steps, 0) * 0.99 + 0.01)),
    ({"family": "yolo_cosine"}, lambda o: S.LambdaLR(o, lambda x: (1 + math.cos(x * math.pi / TIME.steps)) / 2)),
    ({"family": "onecycle"}, lambda o: S.OneCycleLR(o, 0.1, TIME.steps)),
    ({"family": "wsd"}, None),
    ({"family": "polynomial"}, lambda o: S.PolynomialLR(o, TIME.steps)),
    ({"family": "exponential", "gamma": 0.99}, lambda o: S.ExponentialLR(o, 0.99)),
    ({"family": "constant"}, lambda o: S.ConstantLR(o, 1.0)),
]


def stepped(make: Make) -> float:
    """Seconds that torch's scheduler takes for the whole run, scaled from its first steps; no optimizer work."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer itself is never stepped here
        scheduler = make(optimizer)
        start, lrs = time.perf_counter(), []
        for _ in range(STEPPED):
            lrs.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return (time.perf_counter() - start) * TIME.steps / STEPPED


def published() -> float:
    """The same for the published CAWB's loop: a call before every batch, the segment search after every epoch."""
    group, bounds, gap, warm, lrs = {"lr": 0.1}, [3, 100, 200, 300], 1.0, 3 * TIME.steps_per_epoch, []
    start = time.perf_counter()
    for batch in range(STEPPED):
        if batch < warm:
            group["lr"] = 0.1 * (batch / warm)
        lrs.append(group["lr"])
        if batch % TIME.steps_per_epoch == TIME.steps_per_epoch - 1:
            k, scale = batch // TIME.steps_per_epoch, 1.0
            for i in range(len(bounds) - 1):
                if k <= bounds[i + 1]:
                    gap, k = bounds[i + 1] - bounds[i] + 1.0, k - bounds[i]
                    break
                scale *= 0.8
            group["lr"] = scale * 0.1 * ((1 + math.cos(k * math.pi / gap)) / 2 * 0.95 + 0.05)
    return (time.perf_counter() - start) * TIME.steps / STEPPED


def main() -> None:
    """Print one line per family."""
    print(f"{TIME.steps:,} steps; stepping measured on {STEPPED:,} of them and scaled; best of 3 for ours")
    default, loop = stepped(lambda o: S.CosineAnnealingLR(o, TIME.steps)), published()
    print(f"stepping torch CosineAnnealingLR {default:.2f} s, the published CAWB loop {loop:.2f} s")
    print(f"{'family':<16}{'trace s':>9}{'keys s':>9}{'torch s':>9}{'x torch':>9}{'x loop':>8}{'bytes/step':>12}")
    for spec, make in FAMILIES:
        schedule, best = parse({**spec, "lr": 0.1}), math.inf
        for _ in range(3):
            start = time.perf_counter()
            trace = schedule.trace(TIME)
            best = min(best, time.perf_counter() - start)
        start = time.perf_counter()
        prefix_keys("recipe", trace)
        keys = time.perf_counter() - start
        tracemalloc.start()
        schedule.trace(TIME)
        peak = tracemalloc.get_traced_memory()[1] / TIME.steps
        tracemalloc.stop()
        torchs = stepped(make) if make else default
        times = f"{best:>9.3f}{keys:>9.3f}{torchs:>9.2f}{torchs / best:>9.0f}{loop / best:>8.1f}"
        print(f"{spec['family']:<16}{times}{peak:>12.0f}")


if __name__ == "__main__":
    main()
