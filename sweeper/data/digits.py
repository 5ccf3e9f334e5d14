"""The embedded data set: scikit-learn's real handwritten digits (8 x 8 pixels), laid out as a detection problem."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import yaml

from sweeper.data.layout import SPLITS, aside, label_text, publish, write

MARKER = "digits.json"  # written last
VERSION = 1  # of the pictures; another version is another folder and another digest
SEED = 20240611
IMAGES = {"train": 352, "val": 96}
SIDE = 128  # pixels of a canvas
DIGITS = (2, 6)  # on a canvas, both included
GLYPH = (26, 52)  # pixels of a glyph's height before it is trimmed to its ink
VAL_GLYPHS = 360  # of 1797 handwritten digits; they never appear in training
INK = 48  # of 255: what is lighter belongs to the ground, not to the box
GAP = 2  # pixels between boxes


def made(folder: Path) -> bool:
    """Whether :meth:`make` would find the data set there."""
    return (folder / f"digits-{VERSION}" / MARKER).is_file()


def make(folder: Path) -> Path:
    """Write the data set to ``folder/digits-1`` unless it is there, and return its data.yaml.

    The same bytes every time (one seed, PNG), by whichever of several processes is first: a folder appears finished or
    not at all.
    """
    home = folder.resolve() / f"digits-{VERSION}"
    if not (home / MARKER).is_file():
        made = aside(home)
        _draw(made)
        publish(made, home, MARKER)
    return home / "data.yaml"


def _draw(folder: Path) -> None:
    from sklearn.datasets import load_digits  # a second's import, needed once

    raw = load_digits()
    glyphs = np.asarray(raw.images * (255 / 16), np.uint8)
    order = np.random.default_rng(SEED).permutation(len(glyphs))
    pools = {"train": order[VAL_GLYPHS:], "val": order[:VAL_GLYPHS]}
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([SEED, number])
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        coco: dict[str, Any] = {"images": [], "annotations": []}
        for image in range(1, IMAGES[split] + 1):
            pixels, boxes = _canvas(rng, glyphs, raw.target, pools[split])
            name = f"{image:04d}"
            PIL.Image.fromarray(pixels).save(folder / "images" / split / f"{name}.png")
            rows = np.array(
                [(c, (x + w / 2) / SIDE, (y + h / 2) / SIDE, w / SIDE, h / SIDE) for c, x, y, w, h in boxes]
            )
            write(folder / "labels" / split / f"{name}.txt", label_text(rows))
            coco["images"].append({"id": image, "file_name": f"{name}.png", "width": SIDE, "height": SIDE})
            for c, x, y, w, h in boxes:
                ids = {"id": len(coco["annotations"]) + 1, "image_id": image, "category_id": c + 1}
                coco["annotations"].append({**ids, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
        coco["categories"] = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
        write(folder / "annotations" / f"instances_{split}.json", json.dumps(coco))
    described: dict[str, Any] = {split: f"images/{split}" for split in SPLITS}
    described["names"] = {digit: str(digit) for digit in range(10)}
    described["annotations"] = {split: f"annotations/instances_{split}.json" for split in SPLITS}
    write(folder / "data.yaml", yaml.safe_dump(described, sort_keys=False))
    write(folder / MARKER, json.dumps({"seed": SEED, "version": VERSION, **IMAGES}))


def _canvas(
    rng: np.random.Generator, glyphs: np.ndarray, classes: np.ndarray, pool: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, int, int, int, int]]]:
    """One canvas uint8 (128, 128, 3) and its digits as (class, x, y, width, height) in pixels."""
    canvas = _ground(rng)
    boxes: list[tuple[int, int, int, int, int]] = []
    wanted = int(rng.integers(DIGITS[0], DIGITS[1] + 1))
    while len(boxes) < wanted:
        chosen = int(rng.choice(pool))
        ink = _glyph(glyphs[chosen], int(rng.integers(GLYPH[0], GLYPH[1] + 1)), float(rng.uniform(0.8, 1.2)))
        height, width = ink.shape
        spots = _free(boxes, width, height)
        if not len(spots):
            continue  # no room for one of this size: draw a smaller one
        x, y = (int(value) for value in spots[rng.integers(len(spots))])
        patch = canvas[y : y + height, x : x + width]
        colour = rng.uniform(0, 70, 3) if patch.mean() > 110 else rng.uniform(185, 255, 3)
        patch += (colour - patch) * (ink / 255 * rng.uniform(0.85, 1.0))[..., None]
        boxes.append((int(classes[chosen]), x, y, width, height))
    return np.clip(canvas + rng.normal(0, 5, canvas.shape), 0, 255).astype(np.uint8), boxes


def _free(boxes: list[tuple[int, int, int, int, int]], width: int, height: int) -> np.ndarray:
    """All places (n, 2) as x, y where a box of this size touches no other."""
    free = np.ones((SIDE - height + 1, SIDE - width + 1), bool)
    for _, x, y, w, h in boxes:
        free[max(y - height - GAP + 1, 0) : y + h + GAP, max(x - width - GAP + 1, 0) : x + w + GAP] = False
    return np.argwhere(free)[:, ::-1]


def _glyph(glyph: np.ndarray, height: int, stretch: float) -> np.ndarray:
    """The glyph as ink from 0 to 255, enlarged and trimmed to where there is ink."""
    width = max(round(height * stretch), 8)
    ink = np.asarray(PIL.Image.fromarray(glyph).resize((width, height), PIL.Image.Resampling.BICUBIC), np.float64)
    rows, columns = np.nonzero((ink > INK).any(1))[0], np.nonzero((ink > INK).any(0))[0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A textured ground, float64 (128, 128, 3): a tint under clouds of two sizes, partly the same in all colours."""
    ground = np.ones((SIDE, SIDE, 3)) * rng.uniform(50, 190, 3)
    for cells, strength in ((4, 32.0), (20, 16.0)):
        noise = rng.uniform(0, 255, (cells, cells, 3)) * 0.4 + rng.uniform(0, 255, (cells, cells, 1)) * 0.6
        clouds = PIL.Image.fromarray(noise.astype(np.uint8)).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
        ground += (np.asarray(clouds, np.float64) / 127.5 - 1) * strength
    return ground
