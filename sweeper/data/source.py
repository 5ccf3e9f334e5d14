"""The samples of a data set with the problems that checks find, and the reader of Ultralytics' ``data.yaml``.

``sweeper.data.coco`` reads the formats of COCO and Pascal VOC into the same classes.
"""

import contextlib
import hashlib
import json
import math
import os
import uuid
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from sweeper.errors import DataError, shorten
from sweeper.reading import MAX_IMAGE, MAX_TEXT, check_file, read_text, why

SPLITS = ("train", "val")
MIN_SIDE = 10  # pixels, because Ultralytics drops smaller images without a message
EXIF_ORIENTATION = 274
JPEGS = ("JPEG", "MPO")
JPEG_END = b"\xff\xd9"
SUFFIXES = frozenset({".avif", ".bmp", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})
ROUNDING = 1e-3  # by which a label coordinate may lie outside [0, 1], because writers round; Ultralytics allows 1e-2
MAX_CLASSES = 100_000
MAX_FOLDERS = 100_000  # of one split


@dataclass(frozen=True)
class Sample:
    """One image with its labels.

    ``sha``: SHA-256 (hex) of the image file. ``rows``: the labels of the training, float64 (n, 5), class, centre x,
    centre y, width, height relative to the image's size. ``record`` and ``annotations``: COCO's entries of the image
    and its objects, or None if the source has none and the ground truth is computed from ``rows``.
    """

    path: Path
    sha: str
    width: int
    height: int
    rows: np.ndarray
    record: Mapping[str, Any] | None = None
    annotations: Sequence[Mapping[str, Any]] | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all that training and metrics depend on: the image, the rows in float32, the crowds."""
        crowds = [a["bbox"] for a in self.annotations or () if a.get("iscrowd")]
        parts = (bytes.fromhex(self.sha), self.rows.astype("<f4").tobytes(), np.asarray(crowds, "<f4").tobytes())
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()


@dataclass(frozen=True)
class Source:
    """The content of a data set: class names, COCO's category ids in the same order, the samples by split."""

    names: tuple[str, ...]
    categories: tuple[int, ...]
    samples: Mapping[str, Sequence[Sample]]


class Findings:
    """The problems that the checks of ``source`` find, by kind, each kind with its count and first example.

    A *fault* would silently change or spoil a training (a broken image, an impossible label); a *note* would not (a
    duplicate, an image without labels). ``folder``: where hash and size of each image file are cached by its path, size
    and modification time, so that opening the data set again is quick; None: no cache.
    """

    def __init__(self, source: Path, folder: Path | None = None) -> None:
        self.source = source
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.notes: dict[str, list[str]] = defaultdict(list)
        name = f"{hashlib.sha256(str(source).encode()).hexdigest()[:16]}.json"
        self._file = folder / "hashes" / name if folder else None
        self._cached: dict[str, list[Any]] = {}
        self._current: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            self._cached = json.loads(self._file.read_text()) if self._file else {}

    def fault(self, kind: str, example: str) -> None:
        """Count one more fault of this kind."""
        self.faults[kind].append(example)

    def note(self, kind: str, example: str) -> None:
        """Count one more note of this kind."""
        self.notes[kind].append(example)

    def settle(self, invalid: str) -> tuple[str, ...]:
        """One line per kind, faults first; with ``invalid="refuse"`` a fault raises DataError instead."""
        faults, notes = (
            [f"{kind}: {len(examples)}, first {examples[0]}" for kind, examples in kinds.items()]
            for kinds in (self.faults, self.notes)
        )
        if faults and invalid == "refuse":
            raise DataError(f"{self.source}: {'; '.join(faults)}; mend the data, or leave these out with invalid: skip")
        return (*(f"skipped: {fault}" for fault in faults), *notes)

    def facts(self, image: Path) -> tuple[str, int, int] | None:
        """(SHA-256, width, height) of an image file, or None for a broken one, which is counted as a fault."""
        try:
            stat = image.stat()
            stamp, cached = [stat.st_size, stat.st_mtime_ns], self._cached.get(str(image), [])
            digest, width, height = cached[2:5] if cached[:2] == stamp else image_facts(image)
        except (OSError, ValueError) as error:
            self.fault("broken images", f"{image} ({error})")
            return None
        self._current[str(image)] = [*stamp, digest, width, height]
        return digest, width, height

    def save(self) -> None:
        """Write the cache if it changed. A folder that cannot be written is no error: only the cache is missing."""
        if self._file and self._current != self._cached:
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                written = self._file.with_name(f".writing-{uuid.uuid4().hex}")
                written.write_text(json.dumps(self._current))
                written.replace(self._file)


def image_facts(path: Path) -> tuple[str, int, int]:
    """SHA-256 of the file, width and height in pixels as a viewer shows the image (EXIF orientation applied).

    Raises ValueError with the reason for a file that Ultralytics would drop without a message: no image, an incomplete
    one, or one with a side below 10 pixels.
    """
    try:
        check_file(path, MAX_IMAGE)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(max(file.tell() - 2, 0))
            end = file.read()
        with _open(path) as image:
            (width, height), kind = image.size, image.format
            if kind in JPEGS and image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8):
                width, height = height, width
            image.verify()
        if kind in JPEGS and end != JPEG_END:  # verify() reads only a JPEG's header, load() also finds missing data
            with _open(path) as image:
                image.load()
    except Exception as error:  # PIL raises half a dozen classes, OSError and SyntaxError among them
        reason = " ".join(str(error).split()).replace(str(path), path.name)
        raise ValueError(reason or type(error).__name__) from None
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{width}x{height} pixels, expected at least {MIN_SIDE}x{MIN_SIDE}")
    return digest, width, height


def _open(path: Path) -> PIL.Image.Image:
    """Open an image without reading its pixels. PIL refuses images of 179 million pixels and more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # PIL warns from half of that on
        return PIL.Image.open(path)


# -- Ultralytics' data.yaml --------------------------------------------------------------------------------------------


def read_yolo(path: Path, described: dict[str, Any], findings: Findings) -> Source:
    """The samples of the data.yaml at ``path``, whose content is ``described``; problems go to ``findings``.

    Images lie in folders or are listed in files. The labels of an image lie where ``label_path`` says.
    """
    names = class_names(path, described)
    top = root(path, described)
    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        entries = described.get(split) or (described.get("validation") if split == "val" else None)
        if not entries:
            expected = "expected a folder, a list of folders or a .txt list of images"
            raise DataError(f"{path}: {split}: is missing; {expected}")
        files = sorted(_image_files(path, split, top, entries if isinstance(entries, list) else [entries]))
        if not files:
            endings = " ".join(sorted(SUFFIXES))
            raise DataError(f"{path}: {split}: no images in {entries}; expected files ending in {endings}")
        for image in files:
            labels = label_path(image)
            rows = _read_labels(labels, _relative(labels, top), len(names), findings)
            if (facts := findings.facts(image)) is None:
                continue
            samples[split].append(Sample(image, *facts, rows))
            if not labels.is_file():
                findings.note(f"{split} images without a label file, taken as background", _relative(image, top))
    return Source(names, tuple(range(1, len(names) + 1)), samples)


def class_names(path: Path, described: dict[str, Any]) -> tuple[str, ...]:
    """``names`` as a list or as a dict from 0 on, or ``nc`` alone. Raises DataError for a contradiction."""
    names, count = described.get("names"), described.get("nc")
    if isinstance(count, int) and count > MAX_CLASSES:
        raise DataError(f"{path}: nc: {shorten(count)} classes are too many; expected at most {MAX_CLASSES}")
    if names is None and isinstance(count, int) and count > 0:
        return tuple(f"class_{number}" for number in range(count))
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in names.items()}
        if numbered.keys() != {str(number) for number in range(len(names))}:
            numbers = f"{', '.join(numbered):.100}, expected 0 to {len(names) - 1}"
            raise DataError(f"{path}: names: numbers its classes {numbers}")
        names = [numbered[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        expected = "is no list of class names; expected a list, or a mapping from 0 on"
        raise DataError(f"{path}: names: {shorten(names)} {expected}")
    if count is not None and count != len(names):
        raise DataError(f"{path}: nc: {count} contradicts the {len(names)} classes in names:; remove nc")
    if repeated := [name for name, times in Counter(map(str, names)).items() if times > 1]:
        raise DataError(f"{path}: names: {repeated[0]!r} occurs twice; expected one name per class")
    return tuple(str(name) for name in names)


def root(path: Path, described: dict[str, Any]) -> Path:
    """The folder to which a data.yaml's paths are relative: ``path:``, itself relative to the file, or the file's."""
    top = path.parent / str(described.get("path") or ".")
    if not top.is_dir():
        missing = f"{described['path']} is no folder ({top})"
        raise DataError(f"{path}: path: {missing}; nothing is downloaded, put the data there")
    return top.resolve()


def label_path(image: Path) -> Path:
    """Where Ultralytics reads an image's labels: the last folder ``images`` becomes ``labels``, the suffix ``.txt``."""
    changed = f"{os.sep}labels{os.sep}".join(str(image).rsplit(f"{os.sep}images{os.sep}", 1))
    return Path(changed).with_suffix(".txt")


def _read_labels(path: Path, shown: str, classes: int, findings: Findings) -> np.ndarray:
    """The rows of a YOLO label file, float64 (n, 5) as in ``Sample``; a missing file has no rows.

    A polygon (class x y x y x y ...) becomes the box around it. Impossible rows are left out and counted as faults,
    repeated rows as notes. ``shown``: the path in messages.
    """
    lines: list[str] = []
    if os.path.exists(path):
        try:
            lines = read_text(path, MAX_TEXT).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            findings.fault("unreadable label files", f"{shown} ({why(error)})")
    rows: dict[bytes, tuple[float, ...]] = {}
    for number, line in enumerate(lines, 1):
        where, words = f"{shown} line {number}", len(line.split())
        if not words:
            continue
        row = _label_row(line)
        if row is not None and words > 5:
            findings.note("label rows that are polygons, replaced by the boxes around them", where)
        if row is None:
            content = f"{words} words {line.strip()[:40]!r}"
            findings.fault("label rows that are not five numbers (class x y width height)", f"{where}: {content}")
        elif row[0] != int(row[0]) or not 0 <= row[0] < classes:
            expected = f"the data have {classes} classes, 0 to {classes - 1}"
            findings.fault("labels of a class that does not exist", f"{where}: class {row[0]:g}, {expected}")
        elif min(row[1:]) < -ROUNDING or max(row[1:]) > 1 + ROUNDING:
            worst = max(row[1:], key=lambda value: abs(value - 0.5))
            findings.fault("label coordinates outside 0 to 1", f"{where}: {worst:g}")
        elif min(row[3:]) <= 0:
            findings.fault("boxes without area", f"{where}: width {row[3]:g}, height {row[4]:g}")
        elif (key := np.asarray(row, np.float32).tobytes()) in rows:  # The ground truth has a row once, as Ultralytics.
            findings.note("repeated label rows, used once", where)
        else:
            rows[key] = row
    return np.array(list(rows.values()), dtype=np.float64).reshape(-1, 5)


def _label_row(line: str) -> tuple[float, ...] | None:
    """Class, centre x, centre y, width and height of the box in a line of a label file; None if it holds no box."""
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


def _relative(path: Path, top: Path) -> str:
    return str(path.relative_to(top)) if path.is_relative_to(top) else str(path)


def read_list(file: Path, name: str) -> list[str]:
    """The lines of a list of images, without empty ones. Raises DataError, which begins with ``name``."""
    try:
        return [line.strip() for line in read_text(file, MAX_TEXT).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} cannot be read as a list of images ({why(error)})") from None


def _image_files(path: Path, split: str, top: Path, entries: list[Any]) -> Iterator[Path]:
    """Image files of folders with their subfolders, of .txt lists, and single files.

    Links are not resolved, because ``label_path`` depends on the path as it is written. As in Ultralytics, if
    ``../train/images`` does not exist, ``train/images`` is read, because Roboflow's exports write so.
    """
    for entry in entries:
        where = Path(os.path.normpath(top / str(entry)))
        if not where.exists() and str(entry).startswith("../"):
            where = Path(os.path.normpath(top / str(entry)[3:]))
        if where.is_dir():
            yield from (file for file in _walk(where) if file.suffix.lower() in SUFFIXES)
        elif where.is_file() and where.suffix.lower() in SUFFIXES:
            yield where
        elif where.is_file():
            for line in read_list(where, f"{path}: {split}: {entry}"):
                yield Path(os.path.normpath((where.parent if line.startswith("./") else top) / line))
        else:
            missing = f"{entry} is not there ({where})"
            raise DataError(f"{path}: {split}: {missing}; nothing is downloaded, put the data there")


def _walk(top: Path) -> Iterator[Path]:
    """The files in ``top`` and its subfolders, also through links, each folder once; hidden ones are left out.

    Raises DataError where there are more than MAX_FOLDERS.
    """
    visited: set[tuple[int, int]] = set()  # because a link may lead back to a folder above
    for folder, subfolders, files in os.walk(top, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((stat.st_dev, stat.st_ino))
        if len(visited) > MAX_FOLDERS:
            raise DataError(f"{top}: has more than {MAX_FOLDERS} folders; expected a folder of images")
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith("."))
