"""Reads COCO annotations: ids, areas and crowds stay in the ground truth, labels are made from the boxes."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweeper.data.checks import Findings
from sweeper.data.layout import SPLITS, Sample, Source
from sweeper.data.yolo import class_names, read, read_yaml, root
from sweeper.errors import DataError
from sweeper.reading import MAX_JSON, read_bytes, why

OUTSIDE = 1.0  # pixels by which a box may leave its image without a remark; COCO's own do by fractions


def read_folder(path: Path, findings: Findings) -> Source:
    """A folder: COCO annotations where it has ``annotations/*.json``, else its data.yaml."""
    if (path / "annotations").is_dir():
        return _read([Annotations(split, file, path) for split, file in find_annotations(path).items()], None, findings)
    if (path / "data.yaml").is_file():
        return read(path / "data.yaml", read_yaml(path / "data.yaml"), findings)
    raise DataError(
        f"{path}: neither annotations/*.json, Annotations/*.xml nor data.yaml in this folder; name the data.yaml, or a "
        "folder in COCO's or Pascal VOC's layout"
    )


def read_described(path: Path, described: dict[str, Any], findings: Findings) -> Source:
    """A data.yaml with ``annotations: {train: FILE, val: FILE}``; the images lie where train: and val: say."""
    top, files = root(path, described), described["annotations"]
    if isinstance(files, list):
        raise DataError(f"{path}: is a file of COCO annotations; name the folder that has annotations/ and the images")
    if not isinstance(files, dict) or not all(isinstance(files.get(split), str) for split in SPLITS):
        raise DataError(f"{path}: annotations: {files!s:.100}; expected a COCO json for train and one for val")
    images = {split: [top / str(described[split])] for split in SPLITS if isinstance(described.get(split), str)}
    names = class_names(path, described) if "names" in described else None
    splits = [Annotations(split, top / files[split], top, images.get(split, ())) for split in SPLITS]
    return _read(splits, names, findings)


def _read(splits: "Sequence[Annotations]", names: tuple[str, ...] | None, findings: Findings) -> Source:
    train, val = splits
    if train.categories != val.categories:
        expected = "expected the same ids and names"
        raise DataError(f"{val.file}: categories: differ from those of {train.file.name}; {expected}")
    classes = tuple(train.categories.values())
    if names is not None and names != classes:
        shown = f"{', '.join(names)} are not the categories of {train.file.name}, {', '.join(classes)}"
        raise DataError(f"{train.top}: names: {shown}")
    return Source(classes, tuple(train.categories), {each.split: each.samples(findings) for each in splits})


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


class Annotations:
    """The annotations of one split. Raises DataError for a file that is no COCO json.

    ``categories``: names by id, in the order of the ids, which is the order of the classes. The images lie in
    ``folders``, or in the usual places of COCO layouts below ``top``.
    """

    def __init__(self, split: str, file: Path, top: Path, folders: Sequence[Path] = ()) -> None:
        self.split, self.file, self.top = split, file, top
        self.content = _load(file)
        self.categories = _categories(file, self.content["categories"])
        self._classes = {category: number for number, category in enumerate(self.categories)}
        stem = file.stem.removeprefix("instances_")
        usual = (top / "images" / stem, top / stem, top / "images" / split, top / split, top / "images", top)
        self._folders = (*folders, *usual)

    def samples(self, findings: Findings) -> list[Sample]:
        """The split's images with their labels; what is wrong with single ones goes to ``findings``."""
        records = self.images(findings)
        boxes = self.boxes(records, findings)
        made = (self.sample(record, boxes[record["id"]], findings) for record in records)
        return [sample for sample in made if sample is not None]

    def images(self, findings: Findings) -> list[dict[str, Any]]:
        """COCO's entries of the images. DataError where there are none."""
        records = self._unique("images", findings)
        if not records:
            raise DataError(f"{self.file}: images: none; expected at least one")
        return records

    def boxes(self, images: Sequence[Mapping[str, Any]], findings: Findings) -> dict[int, list[dict[str, Any]]]:
        """Annotations by image, in the file's order, without those of no image or no category, which are faults."""
        listed = {record["id"] for record in images}
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in self._unique("annotations", findings):
            image, kind = annotation.get("image_id"), annotation.get("category_id")
            example = f"{self.file.name}: annotation {annotation['id']}"
            if image is None or image not in listed:
                findings.fault("annotations of an image that is not listed", f"{example}: image_id {image}")
            elif kind not in self._classes:
                known = f"category_id {kind}, {len(self._classes)} categories are listed"
                findings.fault("labels of a class that does not exist", f"{example}: {known}")
            else:
                found[image].append(annotation)
        return found

    def sample(
        self, record: Mapping[str, Any], annotations: Sequence[dict[str, Any]], findings: Findings
    ) -> Sample | None:
        """One image with its annotations, None for one that cannot be used; the image file knows its own size best."""
        name = str(record.get("file_name"))
        path = next((folder / name for folder in self._folders if (folder / name).is_file()), None)
        if path is None:
            findings.fault("missing images", f"{self.file.name}: {record.get('file_name')}")
            return None
        if (facts := findings.facts(path)) is None:
            return None
        _, width, height = facts
        if (record.get("width", width), record.get("height", height)) != (width, height):
            wrong = f"{path} is {width}x{height}, not {record.get('width')}x{record.get('height')}"
            findings.note("image sizes that the annotations have wrong", wrong)
        return Sample(path, *facts, *self._labels(annotations, width, height, findings, record))

    def _labels(
        self,
        annotations: Sequence[dict[str, Any]],
        width: int,
        height: int,
        findings: Findings,
        record: Mapping[str, Any],
    ) -> tuple[np.ndarray, Mapping[str, Any], list[dict[str, Any]]]:
        """Label rows float64 (n, 5), the image's entry, and those of the ground truth. A crowd is no label, because
        COCO ignores what is found inside it."""
        rows: dict[bytes, tuple[float, ...]] = {}
        truth = []
        for annotation in annotations:
            where, kind = f"{self.file.name}: annotation {annotation['id']}", annotation["category_id"]
            try:
                row = row_of(annotation.get("bbox"), width, height, self._classes[kind])
            except ValueError as error:
                findings.fault("broken boxes", f"{where}: {error}")
                continue
            x, y, w, h = annotation["bbox"]
            if min(x, y) < -OUTSIDE or x + w > width + OUTSIDE or y + h > height + OUTSIDE:
                findings.note("boxes that leave their image, clipped in the labels", f"{where}: {annotation['bbox']}")
            if annotation.get("ignore") and not annotation.get("iscrowd"):
                findings.note("boxes marked ignore but not iscrowd, ordinary ones to pycocotools and so here", where)
            crowd = int(bool(annotation.get("iscrowd")))
            box = {"category_id": kind, "bbox": annotation["bbox"], "area": annotation.get("area", w * h)}
            truth.append({**box, "iscrowd": crowd})
            key = np.asarray(row, np.float32).tobytes()
            if crowd:
                findings.note("crowds, in the ground truth but not in the labels", where)
                continue
            if key in rows:
                findings.note("repeated boxes, used once in the labels", where)
            rows[key] = row
        return np.array(list(rows.values()), dtype=np.float64).reshape(-1, 5), record, truth

    def _unique(self, what: str, findings: Findings) -> list[dict[str, Any]]:
        """The file's entries without those that have no integer id or an id seen before, which are faults."""
        kept: dict[int, dict[str, Any]] = {}
        for entry in self.content[what]:
            key = entry.get("id")
            if not isinstance(key, int) or isinstance(key, bool):
                findings.fault(f"{what} without an integer id", f"{self.file.name}: id {key!r}")
            elif key in kept:
                findings.fault(f"{what} whose id occurs twice", f"{self.file.name}: id {key}")
            else:
                kept[key] = entry
        return list(kept.values())


def _load(file: Path) -> dict[str, Any]:
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


def _categories(file: Path, listed: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Category names by id, in the order of the ids."""
    if not listed or not all(isinstance(c.get("id"), int) and "name" in c for c in listed):
        expected = "expected at least one, each with an integer id and a name"
        raise DataError(f"{file}: categories: {len(listed)} listed; {expected}")
    for key in ("id", "name"):
        if twice := [value for value, times in Counter(c[key] for c in listed).items() if times > 1]:
            raise DataError(f"{file}: categories: {key} {twice[0]!r} occurs twice; expected one each")
    return {c["id"]: str(c["name"]) for c in sorted(listed, key=lambda c: c["id"])}


def row_of(box: Any, width: int, height: int, index: int) -> tuple[float, ...]:
    """The label row of a box (x, y, width, height in pixels), clipped to the image, in parts of it.

    Raises ValueError for a broken box.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        raise ValueError(f"bbox {box}, expected four numbers x y width height")
    if not all(map(math.isfinite, box)):
        raise ValueError(f"bbox {box}, expected four numbers x y width height")
    left, right = (min(max(v, 0.0), width) for v in (box[0], box[0] + box[2]))
    top, bottom = (min(max(v, 0.0), height) for v in (box[1], box[1] + box[3]))
    if right <= left or bottom <= top:
        raise ValueError(f"bbox {box} has no area inside its image of {width}x{height}")
    centre = ((left + right) / 2 / width, (top + bottom) / 2 / height)
    return (index, *centre, (right - left) / width, (bottom - top) / height)
