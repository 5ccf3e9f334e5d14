"""All that is to be measured on a GPU, what matters most first; each line is printed as soon as it is known.

    python benchmarks/gpu.py DATA [--minutes 12] [--first 3]

It ends by itself after so many minutes. ``--first`` begins at a later part, to go on where another call has ended. To
see that everything runs, without a GPU: ``--device cpu --sizes 32 32 32 --rounds 1 --seconds 5``.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("data", type=Path, help="an Ultralytics data.yaml")
    read.add_argument("--device", default="0", help="the number of a GPU, or cpu")
    read.add_argument("--minutes", type=float, default=12.0)
    read.add_argument("--first", type=int, default=1, metavar="PART")
    read.add_argument("--sizes", type=int, nargs=3, default=[160, 320, 640], metavar="PIXELS")
    read.add_argument("--rounds", type=int, default=4)
    read.add_argument("--seconds", type=int, default=30, help="to measure each number of workers")
    read.add_argument("--loaders", type=int, default=8, help="loader processes")
    asked = read.parse_args()
    data, (small, middle, large) = str(asked.data.absolute()), map(str, asked.sizes)
    epoch = ["epoch.py", data, "--device", asked.device, "--rounds", str(asked.rounds), "--workers", str(asked.loaders)]
    sweep = ["per_device.py", str(HERE.parent / "jobs" / "bccd.yaml"), f"data={data}"]
    workers = ["--device", asked.device, "--seconds", str(asked.seconds), "--workers"]
    parts = [
        [*epoch, "--imgsz", middle, "--amp"],
        [*epoch, "--imgsz", middle],
        [*sweep, f"imgsz={middle}", *workers, "1", "2", "4", "8"],
        [*epoch, "--imgsz", large, small, "--amp"],
        [*epoch, "--imgsz", middle, "--amp", "--cache-mb", "0"],
        [*sweep, f"imgsz={large}", *workers, "1", "8"],
        [*epoch, "--imgsz", large, small],
    ]
    end, failed = time.monotonic() + 60 * asked.minutes, False
    for number, (script, *arguments) in enumerate(parts, 1):
        if number < asked.first:
            continue
        began = time.monotonic()
        print(f"\n== part {number} of {len(parts)}: benchmarks/{script} {' '.join(arguments)}", flush=True)
        process = subprocess.Popen([sys.executable, str(HERE / script), *arguments], start_new_session=True)
        try:
            failed |= process.wait(max(end - began, 1)) != 0
        except subprocess.TimeoutExpired:
            print(f"{asked.minutes:g} minutes are over; --first {number} goes on here")
            return 1
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing of it is left
                os.killpg(process.pid, signal.SIGKILL)
        print(f"== {time.monotonic() - began:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
