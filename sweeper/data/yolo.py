"""Reads Ultralytics' ``data.yaml``: images in folders or lists, labels found by replacing ``images`` by ``labels``."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sweeper.data.source import SPLITS, SUFFIXES, Findings, Sample, Source
from sweeper.errors import DataError, shorten
from sweeper.reading import MAX_TEXT, NotYaml, parse_yaml, read_text, why

ROUNDING = 1e-3  # how far a label's number may lie outside [0, 1]: writers round, Ultralytics itself allows 1e-2
MAX_CLASSES = 100_000
MAX_FOLDERS = 100_000  # of one split


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in ``path``. Raises DataError for a file that is missing, empty or says something else."""
    expected = "expected an Ultralytics data.yaml, a folder in COCO's or VOC's layout, or digits"
    if path.suffix == ".json":
        expected += "; of COCO annotations name the folder that has annotations/ and the images"
    try:
        described = parse_yaml(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {why(error)}; {expected}") from None
    except NotYaml as error:
        raise DataError(f"{path}: cannot be read as YAML ({error}); {expected}") from None
    if described is None:
        raise DataError(f"{path}: is empty; expected train:, val: and names:")
    if not isinstance(described, dict):
        raise DataError(f"{path}: holds a {type(described).__name__}, expected a mapping with train:, val: and names:")
    return described


def read(path: Path, described: dict[str, Any], findings: Findings) -> Source:
    """The samples that a data.yaml describes, with what is wrong about them in ``findings``."""
    names = class_names(path, described)
    top = root(path, described)
    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        entries = described.get(split) or (described.get("validation") if split == "val" else None)
        if not entries:
            expected = "expected a folder, a list of folders or a .txt list of images"
            raise DataError(f"{path}: {split}: is missing; {expected}")
        files = sorted(_listed(path, split, top, entries if isinstance(entries, list) else [entries]))
        if not files:
            endings = " ".join(sorted(SUFFIXES))
            raise DataError(f"{path}: {split}: no images in {entries}; expected files ending in {endings}")
        for image in files:
            labels = label_path(image)
            rows = read_labels(labels, _shown(labels, top), len(names), findings)
            if (facts := findings.facts(image)) is None:
                continue
            samples[split].append(Sample(image, *facts, rows))
            if not labels.is_file():
                findings.note(f"{split} images without a label file, taken as background", _shown(image, top))
    return Source(names, tuple(range(1, len(names) + 1)), samples)


def class_names(path: Path, described: dict[str, Any]) -> tuple[str, ...]:
    """``names`` as a list or as a dict from 0 on, or ``nc`` alone. DataError where they contradict themselves."""
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
    """The folder to which a data.yaml's paths are relative: ``path:`` (itself relative to the file), or the file's."""
    top = path.parent / str(described.get("path") or ".")
    if not top.is_dir():
        missing = f"{described['path']} is no folder ({top})"
        raise DataError(f"{path}: path: {missing}; nothing is downloaded, put the data there")
    return top.resolve()


def label_path(image: Path) -> Path:
    """Ultralytics' rule: the last folder ``images`` becomes ``labels``, the suffix ``.txt``."""
    changed = f"{os.sep}labels{os.sep}".join(str(image).rsplit(f"{os.sep}images{os.sep}", 1))
    return Path(changed).with_suffix(".txt")


def read_labels(path: Path, shown: str, classes: int, findings: Findings) -> np.ndarray:
    """The rows of a YOLO label file as float64 (n, 5): class, centre x, centre y, width, height in parts of the image.

    A polygon (class x y x y x y ...) stands for the box around it. A missing file gives no rows. Impossible rows go to
    ``findings`` as faults and are left out, repeated rows as notes.
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
        row = _five(line)
        if row is not None and words > 5:
            findings.note("label rows that are polygons, taken for the boxes around them", where)
        if row is None:
            what = f"{words} words {line.strip()[:40]!r}"
            findings.fault("label rows that are not five numbers (class x y width height)", f"{where}: {what}")
        elif row[0] != int(row[0]) or not 0 <= row[0] < classes:
            expected = f"the data have {classes} classes, 0 to {classes - 1}"
            findings.fault("labels of a class that does not exist", f"{where}: class {row[0]:g}, {expected}")
        elif min(row[1:]) < -ROUNDING or max(row[1:]) > 1 + ROUNDING:
            worst = max(row[1:], key=lambda value: abs(value - 0.5))
            findings.fault("label coordinates outside 0 to 1", f"{where}: {worst:g}")
        elif min(row[3:]) <= 0:
            findings.fault("boxes without area", f"{where}: width {row[3]:g}, height {row[4]:g}")
        elif (key := np.asarray(row, np.float32).tobytes()) in rows:  # Ultralytics drops these, so the truth must, too
            findings.note("repeated label rows, used once", where)
        else:
            rows[key] = row
    return np.array(list(rows.values()), dtype=np.float64).reshape(-1, 5)


def _five(line: str) -> tuple[float, ...] | None:
    """Class, centre, width and height; None for a line that does not say them."""
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


def _shown(path: Path, top: Path) -> str:
    """``path`` as short as it is clear."""
    return str(path.relative_to(top)) if path.is_relative_to(top) else str(path)


def read_list(file: Path, where: str) -> list[str]:
    """The lines of a list of images, without empty ones; DataError, beginning with ``where``, if it is none."""
    try:
        return [line.strip() for line in read_text(file, MAX_TEXT).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where} cannot be read as a list of images ({why(error)})") from None


def _listed(path: Path, split: str, top: Path, entries: list[Any]) -> Iterator[Path]:
    """Image files of folders (and all below), .txt lists and single files; not resolved, for the label rule's sake.

    As in Ultralytics, ``../train/images`` that is not there is looked for without ``../``: Roboflow's exports say so.
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
    """The files in ``top`` and in the folders below, also through links, each folder once; none that is hidden.

    Raises DataError where there are more than MAX_FOLDERS.
    """
    seen: set[tuple[int, int]] = set()  # a link may lead back up
    for folder, below, files in os.walk(top, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            below.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        if len(seen) > MAX_FOLDERS:
            raise DataError(f"{top}: has more than {MAX_FOLDERS} folders; expected a folder of images")
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith("."))
