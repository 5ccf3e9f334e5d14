"""A sweep of seconds: 24 + 8 images of the digits at 64 pixels, and the real commands on it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from sweeper import data

EPOCHS = 4
SWEEP: dict[str, Any] = {
    "name": "tiny",
    "model": "yolo11n.yaml",
    "epochs": EPOCHS,
    "imgsz": 64,
    "batch": 8,
    "nbs": 8,
    "mosaic": 0.0,
    "lr0": 0.02,
    "trials": 3,
    "baselines": [{"family": "yolo_linear", "warmup": "1ep"}],
    "search": {
        "family": "cawb",
        "restarts": {"min": 1, "max": 1, "first": 2},
        "step_scale": [0.5, 1.0],
        "horizon": "end",
        "warmup": "1ep",
    },
    "workers": 2,
}


def images(folder: Path, train: int = 24) -> Path:
    """``train`` + 8 images of the digits as a data set in ``folder``/data; its data.yaml."""
    digits = data.open("digits", folder=folder / "digits")
    for split, count in (("train", train), ("val", 8)):
        for kind in ("images", "labels"):
            (folder / "data" / kind / split).mkdir(parents=True, exist_ok=True)
        for image in digits.images(split)[:count]:
            shutil.copy(image, folder / "data" / "images" / split)
            label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
            shutil.copy(label, folder / "data" / "labels" / split)
    described = {"path": ".", "train": "images/train", "val": "images/val", "names": list(digits.names)}
    file = folder / "data" / "data.yaml"
    file.write_text(yaml.safe_dump(described))
    return file


#: Of SWEEP, for ``squares``: enough steps to learn them, so that mAP is above 0 from the first epoch on.
LEARNING: dict[str, Any] = {
    "batch": 2,
    "nbs": 2,
    "optimizer": "AdamW",
    "lr0": 0.005,
    **dict.fromkeys(("fliplr", "scale", "translate", "hsv_h", "hsv_s", "hsv_v"), 0.0),
}


def squares(folder: Path) -> Path:
    """24 + 8 images of one bright square on a dark ground, which a detector learns in some dozen steps; data.yaml."""
    for split, count in (("train", 24), ("val", 8)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([count, number]).integers(0, 60, (64, 64, 3), dtype=np.uint8)
            pixels[8:56, 8:56] = 230
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            (folder / "labels" / split / f"{number}.txt").write_text("0 0.5 0.5 0.75 0.75\n")
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump({"path": ".", "train": "images/train", "val": "images/val", "names": ["square"]}))
    return file


def write(folder: Path, **changes: Any) -> Path:
    """A sweep file beside its images; ``changes`` to the keys of SWEEP."""
    images(folder)
    return written(folder, **changes)


def written(folder: Path, **changes: Any) -> Path:
    """The sweep file alone, without its images."""
    file = folder / f"{changes.get('name', 'tiny')}.yaml"
    file.write_text(yaml.safe_dump({**SWEEP, "data": "data/data.yaml", **changes}))
    return file


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sweeper", *map(str, arguments)]


def sweeper(*arguments: object, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | environment,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def children(parent: int, *, below: bool = False) -> list[int]:
    """Process ids of the living children of ``parent``; with ``below`` also theirs."""
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout.split()
    ids = [int(pid) for pid in found]
    return [*ids, *(pid for each in ids for pid in children(each, below=True))] if below else ids


def wait(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """What ``condition`` returns once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found
