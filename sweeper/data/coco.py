"""Reads COCO annotations: ids, areas and crowds stay in the ground truth, labels are made from the boxes."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweeper.data.checks import Findings
from sweeper.data.layout import SPLITS, Hashes, Sample, Source
from sweeper.data.yolo import class_names, read, read_yaml, root
from sweeper.errors import DataError
from sweeper.reading import MAX_JSON, read_bytes, why

OUTSIDE = 1.0  # pixels by which a box may leave its image without a remark; COCO's own do by fractions


def read_folder(path: Path, hashes: Hashes, findings: Findings) -> Source:
    """A folder: COCO annotations where it has ``annotations/*.json``, else its data.yaml."""
    if (path / "annotations").is_dir():
        return _read(path, find_annotations(path), {}, None, hashes, findings)
    if (path / "data.yaml").is_file():
        return read(path / "data.yaml", read_yaml(path / "data.yaml"), hashes, findings)
    raise DataError(
        f"{path}: neither annotations/*.json, Annotations/*.xml nor data.yaml in this folder; name the data.yaml, or a "
        "folder in COCO's or Pascal VOC's layout"
    )


def read_described(path: Path, described: dict[str, Any], hashes: Hashes, findings: Findings) -> Source:
    """A data.yaml with ``annotations: {train: FILE, val: FILE}``; the images lie where train: and val: say."""
    top, files = root(path, described), described["annotations"]
    if isinstance(files, list):
        raise DataError(f"{path}: is a file of COCO annotations; name the folder that has annotations/ and the images")
    if not isinstance(files, dict) or not all(isinstance(files.get(split), str) for split in SPLITS):
        raise DataError(f"{path}: annotations: {files!s:.100}; expected a COCO json for train and one for val")
    images = {split: [top / str(described[split])] for split in SPLITS if isinstance(described.get(split), str)}
    names = class_names(path, described) if "names" in described else None
    return _read(top, {split: top / files[split] for split in SPLITS}, images, names, hashes, findings)


def find_annotations(path: Path) -> dict[str, Path]:
    """``annotations/instances_train*.json`` and ``..._val*.json``, else ``*train*`` and ``*val*``; one of each."""
    files = {}
    for split in SPLITS:
        candidates = sorted((path / "annotations").glob(f"instances_{split}*.json"))
        candidates = candidates or sorted((path / "annotations").glob(f"*{split}*.json"))
        if len(candidates) != 1:
            there = ", ".join(file.name for file in candidates) or "none"
            hint = "name one in a data.yaml, annotations: {train: FILE, val: FILE}"
            raise DataError(f"{path}: annotations/instances_{split}*.json: expected one file, found {there}; {hint}")
        files[split] = candidates[0]
    return files


def load(file: Path) -> dict[str, Any]:
    """A COCO json with its three lists. Raises DataError for anything else."""
    try:
        content = json.loads(read_bytes(file, MAX_JSON))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; expected COCO annotations") from None
    except OSError as error:
        raise DataError(f"{file}: {why(error)}; expected COCO annotations") from None
    except ValueError as error:
        raise DataError(f"{file}: cannot be read as JSON ({error!s:.200})") from None
    except RecursionError:
        raise DataError(f"{file}: is nested too deeply; expected COCO annotations") from None
    for key in ("images", "annotations", "categories"):
        listed = content.get(key) if isinstance(content, dict) else None
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise DataError(f"{file}: has no list {key}; expected COCO annotations (images, annotations, categories)")
    return dict(content)


def categories(file: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Category names by id, in the order of the ids, which is the order of the classes."""
    listed = content["categories"]
    if not listed or not all(isinstance(c.get("id"), int) and "name" in c for c in listed):
        raise DataError(
            f"{file}: categories: {len(listed)} listed; expected at least one, each with an integer id and a name"
        )
    for key in ("id", "name"):
        if twice := [value for value, times in Counter(c[key] for c in listed).items() if times > 1]:
            raise DataError(f"{file}: categories: {key} {twice[0]!r} occurs twice; expected one each")
    return {c["id"]: str(c["name"]) for c in sorted(listed, key=lambda c: c["id"])}


def find_image(name: str, split: str, file: Path, top: Path, folders: Sequence[Path] = ()) -> Path | None:
    """Where an annotation's image lies: in ``folders``, else beside, in the usual places of COCO layouts."""
    stem = file.stem.removeprefix("instances_")
    usual = (top / "images" / stem, top / stem, top / "images" / split, top / split, top / "images", top)
    return next((place / name for place in (*folders, *usual) if (place / name).is_file()), None)


def unique(entries: Sequence[dict[str, Any]], what: str, file: Path, findings: Findings) -> list[dict[str, Any]]:
    """``entries`` without those that have no integer id or an id seen before, which are faults."""
    kept: dict[int, dict[str, Any]] = {}
    for entry in entries:
        key = entry.get("id")
        if not isinstance(key, int) or isinstance(key, bool):
            findings.fault(f"{what} without an integer id", f"{file.name}: id {key!r}")
        elif key in kept:
            findings.fault(f"{what} whose id occurs twice", f"{file.name}: id {key}")
        else:
            kept[key] = entry
    return list(kept.values())


def row_of(annotation: Mapping[str, Any], width: int, height: int, index: int) -> tuple[float, ...]:
    """The label row of an annotation: its box clipped to the image, in parts of it. ValueError for a broken box."""
    box = annotation.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(v, int | float) and math.isfinite(v) for v in box)
    ):
        raise ValueError(f"bbox {box}, expected four numbers x y width height")
    left, right = (min(max(v, 0.0), width) for v in (box[0], box[0] + box[2]))
    top, bottom = (min(max(v, 0.0), height) for v in (box[1], box[1] + box[3]))
    if right <= left or bottom <= top:
        raise ValueError(f"bbox {box} has no area inside its image of {width}x{height}")
    return (
        index,
        (left + right) / 2 / width,
        (top + bottom) / 2 / height,
        (right - left) / width,
        (bottom - top) / height,
    )


def _read(
    top: Path,
    files: Mapping[str, Path],
    folders: Mapping[str, Sequence[Path]],
    names: tuple[str, ...] | None,
    hashes: Hashes,
    findings: Findings,
) -> Source:
    contents = {split: load(files[split]) for split in SPLITS}
    known = {split: categories(files[split], contents[split]) for split in SPLITS}
    if known["train"] != known["val"]:
        raise DataError(
            f"{files['val']}: categories: differ from those of {files['train'].name}; expected the same ids and names"
        )
    classes = tuple(known["train"].values())
    if names is not None and names != classes:
        raise DataError(
            f"{top}: names: {', '.join(names)} are not the categories of {files['train'].name}, {', '.join(classes)}"
        )
    samples = {
        split: _split(
            split, top, files[split], contents[split], folders.get(split, ()), list(known["train"]), hashes, findings
        )
        for split in SPLITS
    }
    return Source(classes, tuple(known["train"]), samples)


def _split(
    split: str,
    top: Path,
    file: Path,
    content: Mapping[str, Any],
    folders: Sequence[Path],
    order: Sequence[int],
    hashes: Hashes,
    findings: Findings,
) -> list[Sample]:
    records = unique(content["images"], "images", file, findings)
    if not records:
        raise DataError(f"{file}: images: none; expected at least one")
    index = {category: number for number, category in enumerate(order)}
    boxes = by_image(content, {record["id"] for record in records}, index, file, findings)
    samples = []
    for record in records:
        path = find_image(str(record.get("file_name")), split, file, top, folders)
        if path is None:
            findings.fault("missing images", f"{file.name}: {record.get('file_name')}")
            continue
        facts = hashes.facts(path, findings)
        if facts is None:
            continue
        samples.append(sample_of(path, facts, record, boxes[record["id"]], index, file, findings))
    return samples


def sample_of(
    path: Path,
    facts: tuple[str, int, int],
    record: Mapping[str, Any],
    annotations: Sequence[dict[str, Any]],
    index: Mapping[int, int],
    file: Path,
    findings: Findings,
) -> Sample:
    """One image of ``file`` with its annotations; the image file knows its size better than its record."""
    sha, width, height = facts
    if (record.get("width", width), record.get("height", height)) != (width, height):
        recorded = f"{record.get('width')}x{record.get('height')}"
        findings.note("image sizes that the annotations have wrong", f"{path} is {width}x{height}, not {recorded}")
    rows, kept = _boxes(annotations, width, height, index, f"{file.name}:", findings)
    return Sample(path, sha, width, height, rows, record, kept)


def by_image(
    content: Mapping[str, Any], images: set[int], index: Mapping[int, int], file: Path, findings: Findings
) -> dict[int, list[dict[str, Any]]]:
    """Annotations by image, in the file's order, without those of no image or no category, which are faults."""
    annotations = defaultdict(list)
    for annotation in unique(content["annotations"], "annotations", file, findings):
        where = f"{file.name}: annotation {annotation['id']}"
        if annotation.get("image_id") not in images:
            findings.fault(
                "annotations of an image that is not listed", f"{where}: image_id {annotation.get('image_id')}"
            )
        elif annotation.get("category_id") not in index:
            category = f"category_id {annotation.get('category_id')}, {len(index)} categories are listed"
            findings.fault("labels of a class that does not exist", f"{where}: {category}")
        else:
            annotations[annotation["image_id"]].append(annotation)
    return annotations


def _boxes(
    annotations: Sequence[dict[str, Any]],
    width: int,
    height: int,
    index: Mapping[int, int],
    file: str,
    findings: Findings,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Label rows float64 (n, 5) and ground truth entries. A crowd is no label: COCO ignores what is found inside it."""
    rows: dict[bytes, tuple[float, ...]] = {}
    kept = []
    for annotation in annotations:
        where = f"{file} annotation {annotation['id']}"
        try:
            row = row_of(annotation, width, height, index[annotation["category_id"]])
        except ValueError as error:
            findings.fault("broken boxes", f"{where}: {error}")
            continue
        x, y, w, h = annotation["bbox"]
        if min(x, y) < -OUTSIDE or x + w > width + OUTSIDE or y + h > height + OUTSIDE:
            findings.note("boxes that leave their image, clipped in the labels", f"{where}: {annotation['bbox']}")
        if annotation.get("ignore") and not annotation.get("iscrowd"):
            findings.note("boxes marked ignore but not iscrowd, ordinary ones to pycocotools and so here", where)
        crowd = int(bool(annotation.get("iscrowd")))
        area = annotation.get("area", w * h)
        kept.append(
            {"category_id": annotation["category_id"], "bbox": annotation["bbox"], "area": area, "iscrowd": crowd}
        )
        key = np.asarray(row, np.float32).tobytes()
        if crowd:
            findings.note("crowds, in the ground truth but not in the labels", where)
        elif key in rows:
            findings.note("repeated boxes, used once in the labels", where)
        rows.update({} if crowd else {key: row})
    return np.array(list(rows.values()), dtype=np.float64).reshape(-1, 5), kept
