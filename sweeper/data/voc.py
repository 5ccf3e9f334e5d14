"""Reads Pascal VOC's layout: ``Annotations`` (one XML file per image), ``JPEGImages``, and splits in ``ImageSets``.

Format: Everingham et al., The PASCAL Visual Object Classes Challenge 2012, development kit. Pixels are counted from 1
and both corners lie inside the box, so a box from (1, 1) to (width, height) is the whole image.
"""

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sweeper.data.checks import SUFFIXES, Findings
from sweeper.data.coco import row_of
from sweeper.data.layout import SPLITS, Sample, Source
from sweeper.data.yolo import read_list
from sweeper.errors import DataError
from sweeper.reading import read_bytes

LISTS = {"train": ("train.txt", "trainval.txt"), "val": ("val.txt", "test.txt")}
ONE_IN = 5  # images of a folder without lists that are for validation
MOST_BYTES = 10_000_000  # of an annotation file


@dataclass(frozen=True)
class Box:
    """An object in an annotation file: class, x, y, width and height in pixels, and whether VOC's evaluation skips
    it."""

    name: str
    bounds: list[float]
    difficult: bool


def is_voc(folder: Path) -> bool:
    """Whether ``folder`` is in VOC's layout."""
    return (folder / "Annotations").is_dir() and any((folder / "Annotations").glob("*.xml"))


def read_folder(folder: Path, findings: Findings) -> Source:
    """Both splits of ``folder``. Classes are in alphabetical order, as VOC's own are.

    Objects marked ``difficult`` are left out, as VOC's evaluation does. Without ``ImageSets/Main/train.txt`` and
    ``val.txt`` every fifth image, by the hash of its name, is for validation. Raises DataError where there are no
    images or no objects; what is wrong with single files becomes a fault in ``findings``.
    """
    stems = _splits(folder, findings)
    boxes = {
        stem: _objects(folder / "Annotations" / f"{stem}.xml", findings) for split in SPLITS for stem in stems[split]
    }
    names = sorted({box.name for found in boxes.values() for box in found if not box.difficult})
    if not names:
        raise DataError(f"{folder}: Annotations: no object in {len(boxes)} files; expected <object> with <bndbox>")
    place = next((folder / name for name in ("JPEGImages", "images", "Images") if (folder / name).is_dir()), folder)
    images = {file.stem: file for file in sorted(place.iterdir()) if file.suffix.lower() in SUFFIXES}
    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for stem in stems[split]:
            if stem not in images:
                findings.fault("missing images", f"{stem}, an image of its name in JPEGImages")
            elif (facts := findings.facts(images[stem])) is not None:
                rows = _rows(stem, facts[1], facts[2], boxes[stem], names, findings)
                samples[split].append(Sample(images[stem], *facts, rows))
    return Source(tuple(names), tuple(range(1, len(names) + 1)), samples)


def _splits(folder: Path, findings: Findings) -> dict[str, list[str]]:
    """The images' names without their suffix, by split."""
    lists = folder / "ImageSets" / "Main"
    train, val = (next(filter(Path.is_file, (lists / name for name in LISTS[split])), None) for split in SPLITS)
    if train is not None and val is not None:
        # lists of one class have a second column: 1 for images with an object of it
        stems = [list(dict.fromkeys(line.split()[0] for line in read_list(file, str(file)))) for file in (train, val)]
        if both := sorted(set(stems[0]) & set(stems[1])):
            expected = "expected two sets that share no image"
            raise DataError(f"{lists}: {both[0]} is in {train.name} and in {val.name}; {expected}")
        return dict(zip(SPLITS, stems, strict=True))
    everything = sorted(file.stem for file in (folder / "Annotations").glob("*.xml"))
    chosen = {stem for stem in everything if int(hashlib.sha256(stem.encode()).hexdigest(), 16) % ONE_IN == 0}
    findings.note(
        "sets drawn here, by the hash of the images' names, as there are no lists of them",
        f"{len(chosen)} of {len(everything)} images for validation (expected {lists}/train.txt and val.txt)",
    )
    return {"train": [stem for stem in everything if stem not in chosen], "val": sorted(chosen)}


def _objects(file: Path, findings: Findings) -> list[Box]:
    try:
        return [_box(entry) for entry in ElementTree.fromstring(read_bytes(file, MOST_BYTES)).iter("object")]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        findings.fault("annotation files that cannot be read", f"{file.name} ({error})")
        return []


def _box(entry: ElementTree.Element) -> Box:
    name = (entry.findtext("name") or "").strip()
    bounds = entry.find("bndbox")
    if not name or bounds is None:
        raise ValueError("an object without a <name> or a <bndbox>")
    try:
        left, top, right, bottom = (float(bounds.findtext(key) or "") for key in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        raise ValueError(f"{name}: a <bndbox> without four numbers xmin, ymin, xmax, ymax") from None
    difficult = (entry.findtext("difficult") or "0").strip() == "1"
    return Box(name, [left - 1, top - 1, right - left + 1, bottom - top + 1], difficult)


def _rows(
    stem: str, width: int, height: int, boxes: Sequence[Box], names: Sequence[str], findings: Findings
) -> np.ndarray:
    """The label rows of an image, float64 (n, 5)."""
    rows: list[tuple[float, ...]] = []
    for box in boxes:
        where = f"{stem}: {box.name}"
        if box.difficult:
            findings.note("objects marked difficult, left out", where)
            continue
        try:
            row = row_of(box.bounds, width, height, names.index(box.name))
        except ValueError as error:
            findings.fault("boxes that cannot be", f"{where}: {error}")
            continue
        if row in rows:
            findings.note("repeated boxes, used once", where)
        else:
            rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, 5)
