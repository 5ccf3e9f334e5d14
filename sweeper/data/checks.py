"""What can be wrong with a data set, found before anything is trained."""

import hashlib
import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image

from sweeper.errors import DataError
from sweeper.reading import MAX_IMAGE, MAX_TEXT, check_file, read_text, why

ROUNDING = 1e-3  # how far a label's number may lie outside [0, 1]: writers round, Ultralytics itself allows 1e-2
SMALLEST = 10  # pixels; Ultralytics drops smaller images without a word
EXIF_ORIENTATION = 274
JPEGS = ("JPEG", "MPO")
JPEG_END = b"\xff\xd9"
SUFFIXES = frozenset({".avif", ".bmp", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})


@dataclass
class Findings:
    """What the checks found in ``source``, by kind, each kind with its count and first example.

    A *fault* would silently change or spoil a training (a broken image, an impossible label); a *note* is only worth
    knowing (a duplicate, an image without labels).
    """

    source: Path
    faults: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def fault(self, kind: str, example: str) -> None:
        """Count one more fault of this kind."""
        self.faults.setdefault(kind, []).append(example)

    def note(self, kind: str, example: str) -> None:
        """Count one more thing worth knowing."""
        self.notes.setdefault(kind, []).append(example)

    def settle(self, invalid: str) -> tuple[str, ...]:
        """One line per kind, faults first; with ``invalid="refuse"`` a fault raises DataError instead."""
        if self.faults and invalid == "refuse":
            faults = "; ".join(_line(kind, examples) for kind, examples in self.faults.items())
            raise DataError(f"{self.source}: {faults}; mend the data, or leave these out with invalid: skip")
        return (
            *(f"skipped: {_line(kind, examples)}" for kind, examples in self.faults.items()),
            *(_line(kind, examples) for kind, examples in self.notes.items()),
        )


def _line(kind: str, examples: list[str]) -> str:
    return f"{kind}: {len(examples)}, first {examples[0]}"


def image_facts(path: Path) -> tuple[str, int, int, str]:
    """SHA-256 of the file, width and height in pixels as a viewer shows it (EXIF orientation applied), and a remark.

    Raises ValueError, saying what is wrong, for a file that Ultralytics would drop in silence: not an image, cut short,
    or smaller than 10 pixels. The remark is "unended" for a JPEG that decodes but lacks its end marker, else empty.
    """
    try:
        check_file(path, MAX_IMAGE)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with _open(path) as image:
            (width, height), kind = image.size, image.format
            if kind in JPEGS and image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8):
                width, height = height, width
            image.verify()
        remark = ""
        if kind in JPEGS:
            with path.open("rb") as file:
                file.seek(-2, 2)
                remark = "" if file.read() == JPEG_END else "unended"
            if remark:  # verify() reads a JPEG's header only; decoding finds the missing half
                with _open(path) as image:
                    image.load()
    except Exception as error:  # PIL raises half a dozen classes, OSError and SyntaxError among them
        reason = " ".join(str(error).split()).replace(str(path), path.name)
        raise ValueError(reason or type(error).__name__) from None
    if min(width, height) < SMALLEST:
        raise ValueError(f"{width}x{height} pixels, expected at least {SMALLEST}x{SMALLEST}")
    return digest, width, height, remark


def _open(path: Path) -> PIL.Image.Image:
    """An image, its pixels not read yet. Of 179 million pixels and more PIL makes an error, and so do we."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # PIL warns from half of that on
        return PIL.Image.open(path)


def read_labels(path: Path, shown: str, classes: int, findings: Findings) -> np.ndarray:
    """The rows of a YOLO label file as float64 (n, 5): class, centre x, centre y, width, height in parts of the image.

    A polygon (class x y x y x y ...) stands for the box around it. A missing file gives no rows. Impossible rows go to
    ``findings`` as faults and are left out, repeated rows as notes.
    """
    if not os.path.exists(path):
        return np.empty((0, 5))
    try:
        lines = read_text(path, MAX_TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        findings.fault("unreadable label files", f"{shown} ({why(error)})")
        return np.empty((0, 5))
    rows: list[tuple[float, ...]] = []
    seen: set[bytes] = set()
    for number, line in enumerate(lines, 1):
        where = f"{shown} line {number}"
        if not line.strip():
            continue
        row = _five(line)
        if row is not None and len(line.split()) > 5:
            findings.note("label rows that are polygons, taken for the boxes around them", where)
        if row is None:
            what = f"{len(line.split())} words {line.strip()[:40]!r}"
            findings.fault("label rows that are not five numbers (class x y width height)", f"{where}: {what}")
        elif row[0] != int(row[0]) or not 0 <= row[0] < classes:
            known = f"the data have {classes} classes, 0 to {classes - 1}"
            findings.fault("labels of a class that does not exist", f"{where}: class {row[0]:g}, {known}")
        elif min(row[1:]) < -ROUNDING or max(row[1:]) > 1 + ROUNDING:
            worst = max(row[1:], key=lambda value: abs(value - 0.5))
            findings.fault("label coordinates outside 0 to 1", f"{where}: {worst:g}")
        elif min(row[3:]) <= 0:
            findings.fault("boxes without area", f"{where}: width {row[3]:g}, height {row[4]:g}")
        elif (
            key := np.asarray(row, np.float32).tobytes()
        ) in seen:  # Ultralytics drops these; so must the ground truth
            findings.note("repeated label rows, used once", where)
        else:
            seen.add(key)
            rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def _five(line: str) -> tuple[float, ...] | None:
    try:
        row = tuple(float(word) for word in line.split())
    except ValueError:
        return None
    if not all(map(math.isfinite, row)):
        return None
    if len(row) >= 7 and len(row) % 2:  # class x y x y ...: a polygon, as in Ultralytics' labels of COCO
        xs, ys = row[1::2], row[2::2]
        (left, right), (top, bottom) = (min(xs), max(xs)), (min(ys), max(ys))
        return row[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    return row if len(row) == 5 else None
