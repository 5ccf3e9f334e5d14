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
from sweeper.data.layout import SPLITS, Hashes, Sample, Source
from sweeper.errors import DataError
from sweeper.reading import MAX_TEXT, read_bytes, read_text, why

LISTS = {"train": ("train.txt", "trainval.txt"), "val": ("val.txt", "test.txt")}
ONE_IN = 5  # images of a folder without lists that are for validation
MOST_BYTES = 10_000_000  # of an annotation file


@dataclass(frozen=True)
class Box:
    """An object in an annotation file: class, corners in pixels from 1, and whether VOC's evaluation skips it."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


def is_voc(folder: Path) -> bool:
    """Whether ``folder`` is in VOC's layout."""
    return (folder / "Annotations").is_dir() and any((folder / "Annotations").glob("*.xml"))


def read_folder(folder: Path, hashes: Hashes, findings: Findings) -> Source:
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
    images = _images(folder)
    samples = {
        split: [
            made
            for stem in stems[split]
            if (made := _sample(stem, images.get(stem), boxes[stem], names, hashes, findings)) is not None
        ]
        for split in SPLITS
    }
    return Source(tuple(names), tuple(range(1, len(names) + 1)), samples)


def _splits(folder: Path, findings: Findings) -> dict[str, list[str]]:
    """The images' names without their suffix, by split."""
    lists = folder / "ImageSets" / "Main"
    files = {split: next((lists / name for name in LISTS[split] if (lists / name).is_file()), None) for split in SPLITS}
    if files["train"] and files["val"]:
        stems = {split: _listed(file) for split, file in files.items() if file is not None}
        if both := sorted(set(stems["train"]) & set(stems["val"])):
            raise DataError(
                f"{lists}: {both[0]} is in {files['train'].name} and in {files['val'].name}; expected two sets that "
                "share no image"
            )
        return stems
    everything = sorted(file.stem for file in (folder / "Annotations").glob("*.xml"))
    chosen = {stem for stem in everything if int(hashlib.sha256(stem.encode()).hexdigest(), 16) % ONE_IN == 0}
    findings.note(
        "sets drawn here, by the hash of the images' names, as there are no lists of them",
        f"{len(chosen)} of {len(everything)} images for validation (expected {lists}/train.txt and val.txt)",
    )
    return {"train": [stem for stem in everything if stem not in chosen], "val": sorted(chosen)}


def _listed(file: Path) -> list[str]:
    try:
        lines = read_text(file, MAX_TEXT).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as a list of images ({why(error)})") from None
    # lists of one class have a second column: 1 for images with an object of it
    return list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))


def _images(folder: Path) -> dict[str, Path]:
    """Name without suffix -> image file."""
    place = next((folder / name for name in ("JPEGImages", "images", "Images") if (folder / name).is_dir()), folder)
    return {file.stem: file for file in sorted(place.iterdir()) if file.suffix.lower() in SUFFIXES}


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
    return Box(name, (left, top, right, bottom), (entry.findtext("difficult") or "0").strip() == "1")


def _sample(
    stem: str, path: Path | None, boxes: Sequence[Box], names: Sequence[str], hashes: Hashes, findings: Findings
) -> Sample | None:
    if path is None:
        findings.fault("missing images", f"{stem}, an image of its name in JPEGImages")
        return None
    facts = hashes.facts(path, findings)
    if facts is None:
        return None
    _, width, height = facts
    rows: list[tuple[float, ...]] = []
    for box in boxes:
        left, top, right, bottom = box.corners
        if box.difficult:
            findings.note("objects marked difficult, left out", f"{stem}: {box.name}")
            continue
        try:
            row = row_of(
                {"bbox": [left - 1, top - 1, right - left + 1, bottom - top + 1]}, width, height, names.index(box.name)
            )
        except ValueError as error:
            findings.fault("boxes that cannot be", f"{stem}: {box.name}: {error}")
            continue
        if row in rows:
            findings.note("repeated boxes, used once", f"{stem}: {box.name}")
        else:
            rows.append(row)
    return Sample(path, *facts, np.array(rows, dtype=np.float64).reshape(-1, 5))
