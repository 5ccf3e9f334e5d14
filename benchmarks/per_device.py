"""Workers on one GPU, 1, 2, 4 and 8 at a time: epochs an hour, beside one after another. Needs a CUDA device.

    python benchmarks/per_device.py jobs/digits.yaml [--workers 1 2 4 8] [key=value ...]

Each line is a sweep of its own: as many trials as workers, at least 8, of schedules that share nothing. Where NVIDIA's
MPS is to be tried, start it before (nvidia-cuda-mps-control -d) and compare. Figures: docs/scale.md.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweeper import fleet
from sweeper.config import Sweep
from sweeper.service import Place, Service


def measure(file: Path, overrides: list[str], workers: int) -> tuple[float, float]:
    """Epochs an hour, and the share of the GPU's memory that a trial held."""
    trials = max(8, workers)
    constants = ",".join(f"{{family: constant, lr: {0.001 * (1 + number / 100)}}}" for number in range(trials))
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*overrides, f"baselines=[{constants}]", "trials=0", "enqueue=[]"]
        arguments = [str(file), *overrides, "--store", folder]
        program = [sys.executable, "-m", "sweeper"]
        subprocess.run([*program, "launch", *arguments], check=True, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        crew = ["--devices", "0", "--per-device", str(workers)]
        subprocess.run([*program, "worker", *arguments, *crew], check=True, stderr=subprocess.DEVNULL)
        seconds = time.monotonic() - began
        rows = Service(Sweep.load(file, overrides), Place(folder)).study.trials()
        held = max(float(row.facts.gpu_memory or 0) for row in rows)
        return sum(len(row.curve) for row in rows) / seconds * 3600, held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    asked = parser.parse_args()
    if not fleet.gpus():
        print("needs a CUDA device: there is none here")
        return 2
    alone = None
    for workers in asked.workers:
        speed, held = measure(asked.sweep.absolute(), asked.overrides, workers)
        alone = alone or speed
        print(
            f"{workers} workers: {speed:.0f} epochs/h, {speed / alone:.2f} times one; a trial held {held:.1%}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
