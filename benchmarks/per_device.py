"""Workers on one device, 1, 2, 4 and 8 at a time: epochs an hour, and what they keep busy.

    python benchmarks/per_device.py jobs/bccd.yaml data=DATA imgsz=320 [--workers 1 2 4 8] [--seconds 60]

Each line is a sweep of its own with the recipe of SWEEP: a trial for each worker, of schedules that share nothing. Time
counts from the moment when each worker has finished an epoch, so that starting them is not in it. Where NVIDIA's MPS is
to be tried, start it before (nvidia-cuda-mps-control -d) and compare. Figures: docs/scale.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from sweeper import fleet
from sweeper.config import Sweep
from sweeper.service import Place, Service

LIMIT_S = 600.0  # until each worker has finished an epoch


def busy() -> float:
    """Core seconds that the machine has worked so far."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def gpu() -> tuple[float, float]:
    """The share of the time in which the first GPU has run a kernel lately, in percent, and the MB that are in use."""
    question = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    try:
        percent, used = subprocess.run(question, capture_output=True, text=True, check=True).stdout.split(",")
        return float(percent), float(used)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return 0.0, 0.0


def sweep_file(folder: Path, recipe: Sweep, device: str, workers: int) -> Path:
    """A sweep of that recipe whose trials do not end while this measures."""
    constants = [{"family": "constant", "lr": 0.001 * (1 + number / 100)} for number in range(workers)]
    rest = {
        "name": f"workers-{workers}",
        "device": device,
        "epochs": 10_000,
        "lr0": 0.01,
        "baselines": constants,
        "trials": 0,
    }
    search = {"family": "cawb", "restarts": {"min": 0, "max": 1}}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**recipe.recipe.model_dump(mode="json"), **rest, "search": search}))
    return file


def measure(recipe: Sweep, device: str, workers: int, seconds: float) -> tuple[float, str]:
    """Epochs an hour, and what was busy."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = sweep_file(folder, recipe, device, workers)
        arguments = [str(file), "--store", str(folder / "store")]
        program = [sys.executable, "-m", "sweeper"]
        subprocess.run([*program, "launch", *arguments], check=True, stdout=subprocess.DEVNULL)
        service = Service(Sweep.load(file), Place(str(folder / "store")))
        crew = ["--devices", device, "--per-device", str(workers)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*program, "worker", *arguments, *crew], stdout=log, stderr=log)
        try:
            wait(service, process, workers, folder / "log")
            epochs, cores, began = trained(service), busy(), time.monotonic()
            samples = [gpu()]
            while time.monotonic() - began < seconds and process.poll() is None:
                time.sleep(1)
                samples.append(gpu())
            took = time.monotonic() - began
            epochs, cores = trained(service) - epochs, busy() - cores
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        percent, used = (statistics.mean(column) for column in zip(*samples, strict=True))
        at_work = f"{cores / took:.1f} of {fleet.cores()} cores"
        if device != fleet.CPU:
            at_work += f" and the GPU {percent:.0f} % of the time, {used / workers:.0f} MB of it for each worker"
        return epochs / took * 3600, f"{epochs} in {took:.0f} s; busy: {at_work}"


def trained(service: Service) -> int:
    """Epochs that were reported."""
    return sum(len(trial.curve) for trial in service.study.trials())


def wait(service: Service, process: "subprocess.Popen[bytes]", workers: int, log: Path) -> None:
    """Until each worker has finished an epoch."""
    end = time.monotonic() + LIMIT_S
    while sum(bool(trial.curve) for trial in service.study.trials()) < workers:
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{workers} workers did not each finish an epoch:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=60.0, help="to measure each number of workers")
    parser.add_argument("--device", default="0", help="the number of a GPU, or cpu")
    asked = parser.parse_args(arguments)
    recipe = Sweep.load(asked.sweep, asked.overrides)
    alone = None
    for workers in asked.workers:
        speed, at_work = measure(recipe, asked.device, workers, asked.seconds)
        alone = alone or speed
        print(f"{workers} workers: {speed:.0f} epochs/h, {speed / alone:.2f} times one; {at_work}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
