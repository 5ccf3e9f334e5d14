"""Reads annotations in the formats of COCO and Pascal VOC, and computes YOLO label rows from their boxes.

COCO's ids, areas and crowds stay in the ground truth. Pascal VOC's layout is ``Annotations`` (one XML file per image),
``JPEGImages``, and splits in ``ImageSets``; format: Everingham et al., The PASCAL Visual Object Classes Challenge 2012,
development kit.
"""

import hashlib
import json
import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sweeper.data.source import SPLITS, SUFFIXES, Findings, Sample, Source, class_names, read_list, root
from sweeper.errors import DataError
from sweeper.reading import MAX_JSON, read_bytes, why

MAX_OVERHANG = 1.0  # pixels by which a box may leave its image without a note; COCO's own do by fractions of a pixel
VOC_LISTS = {"train": ("train.txt", "trainval.txt"), "val": ("val.txt", "test.txt")}
VAL_ONE_IN = 5  # Every fifth image of a VOC folder without lists is for validation.
MAX_XML = 10_000_000  # bytes of an annotation file of VOC


def read_coco(path: Path, findings: Findings) -> Source:
    """The samples of a folder in COCO's layout: ``annotations/*.json`` beside the images."""
    return _read({split: load(file, split, path) for split, file in find_annotations(path).items()}, findings)


def read_described(path: Path, described: dict[str, Any], findings: Findings) -> Source:
    """The samples of the data.yaml at ``path``, whose content is ``described``.

    ``annotations: {train: FILE, val: FILE}`` names its COCO annotations, ``train:`` and ``val:`` the image folders.
    """
    top, files = root(path, described), described["annotations"]
    if isinstance(files, list):
        raise DataError(f"{path}: is a file of COCO annotations; name the folder that has annotations/ and the images")
    if not isinstance(files, dict) or not all(isinstance(files.get(split), str) for split in SPLITS):
        raise DataError(f"{path}: annotations: {files!s:.100}; expected a COCO json for train and one for val")
    folders = {split: [top / described[split]] for split in SPLITS if isinstance(described.get(split), str)}
    source = _read({split: load(top / files[split], split, top, folders.get(split, ())) for split in SPLITS}, findings)
    if "names" in described and (names := class_names(path, described)) != source.names:
        categories = f"are not the categories of {files['train']}, {', '.join(source.names)}"
        raise DataError(f"{path}: names: {', '.join(names)} {categories}")
    return source


def _read(splits: "Mapping[str, Annotations]", findings: Findings) -> Source:
    train, val = splits["train"], splits["val"]
    if train.categories != val.categories:
        expected = "expected the same ids and names"
        raise DataError(f"{val.file}: categories: differ from those of {train.file.name}; {expected}")
    samples = {split: annotations.samples(findings) for split, annotations in splits.items()}
    return Source(tuple(train.categories.values()), tuple(train.categories), samples)


def find_annotations(path: Path) -> dict[str, Path]:
    """The annotation file of each split: ``annotations/instances_SPLIT*.json``, else ``annotations/*SPLIT*.json``.

    Raises DataError where a split does not have exactly one.
    """
    files = {}
    for split in SPLITS:
        candidates = sorted((path / "annotations").glob(f"instances_{split}*.json"))
        candidates = candidates or sorted((path / "annotations").glob(f"*{split}*.json"))
        if len(candidates) != 1:
            names = ", ".join(file.name for file in candidates) or "none"
            hint = "name one in a data.yaml, annotations: {train: FILE, val: FILE}"
            raise DataError(f"{path}: annotations/instances_{split}*.json: expected one file, found {names}; {hint}")
        files[split] = candidates[0]
    return files


def load(file: Path, split: str, top: Path, folders: Sequence[Path] = ()) -> "Annotations":
    """Read the annotations of one split, whose images lie in ``folders`` or in COCO's usual folders below ``top``.

    Raises DataError for a file that is no COCO json.
    """
    try:
        content = json.loads(read_bytes(file, MAX_JSON))
    except OSError as error:
        raise DataError(f"{file}: {why(error)}; expected COCO annotations") from None
    except ValueError as error:
        raise DataError(f"{file}: cannot be read as JSON ({error!s:.200})") from None
    except RecursionError:
        raise DataError(f"{file}: is nested too deeply; expected COCO annotations") from None
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{file}: has no list {key}; expected COCO annotations (images, annotations, categories)")
    stem = file.stem.removeprefix("instances_")
    usual = (top / "images" / stem, top / stem, top / "images" / split, top / split, top / "images", top)
    return Annotations(file, content, (*folders, *usual))


class Annotations:
    """The annotations of one split.

    ``content``: a COCO json. ``folders``: where its images are looked up, in this order. ``categories``: names by id,
    in the order of the ids, which is the order of the classes.
    """

    def __init__(self, file: Path, content: dict[str, Any], folders: Sequence[Path]) -> None:
        self.file, self.content, self._folders = file, content, folders
        self.categories = _categories(file, content["categories"])
        self._classes = {category: number for number, category in enumerate(self.categories)}

    def samples(self, findings: Findings) -> list[Sample]:
        """The split's images with their labels; broken images and boxes are left out and counted as faults."""
        records = self.images(findings)
        boxes = self.boxes(records, findings)
        samples = (self.sample(record, boxes[record["id"]], findings) for record in records)
        return [sample for sample in samples if sample is not None]

    def images(self, findings: Findings) -> list[dict[str, Any]]:
        """COCO's entries of the images. Raises DataError where there are none."""
        records = self._unique("images", findings)
        if not records:
            raise DataError(f"{self.file}: images: none; expected at least one")
        return records

    def boxes(self, images: Sequence[Mapping[str, Any]], findings: Findings) -> dict[int, list[dict[str, Any]]]:
        """Annotations by image id, in the file's order; those of an unknown image or category are faults."""
        boxes: dict[int, list[dict[str, Any]]] = {record["id"]: [] for record in images}
        for annotation in self._unique("annotations", findings):
            image, kind = annotation.get("image_id"), annotation.get("category_id")
            example = f"{self.file.name}: annotation {annotation['id']}"
            if not isinstance(image, int | float) or image not in boxes:
                findings.fault("annotations of an image that is not listed", f"{example}: image_id {image}")
            elif not isinstance(kind, int | float) or kind not in self._classes:
                expected = f"category_id {kind}, {len(self._classes)} categories are listed"
                findings.fault("labels of a class that does not exist", f"{example}: {expected}")
            else:
                boxes[int(image)].append(annotation)
        return boxes

    def sample(
        self, record: Mapping[str, Any], annotations: Sequence[dict[str, Any]], findings: Findings
    ) -> Sample | None:
        """One image with its annotations; None for a missing or broken image, which is counted as a fault.

        The image's size is read from its file, because annotations may be wrong about it. A crowd becomes no label,
        because COCO ignores detections inside it.
        """
        name = str(record.get("file_name"))
        path = next((folder / name for folder in self._folders if (folder / name).is_file()), None)
        if path is None:
            findings.fault("missing images", f"{self.file.name}: {name}")
            return None
        if (facts := findings.facts(path)) is None:
            return None
        _, width, height = facts
        if (record.get("width", width), record.get("height", height)) != (width, height):
            wrong = f"{path} is {width}x{height}, not {record.get('width')}x{record.get('height')}"
            findings.note("images whose size differs from the annotations'", wrong)
        rows: dict[bytes, tuple[float, ...]] = {}
        truth = []
        for annotation in annotations:
            where, kind = f"{self.file.name}: annotation {annotation['id']}", annotation["category_id"]
            try:
                row = _row(annotation.get("bbox"), width, height, self._classes[kind])
            except ValueError as error:
                findings.fault("broken boxes", f"{where}: {error}")
                continue
            x, y, w, h = annotation["bbox"]
            if min(x, y) < -MAX_OVERHANG or x + w > width + MAX_OVERHANG or y + h > height + MAX_OVERHANG:
                findings.note("boxes that leave their image, clipped in the labels", f"{where}: {annotation['bbox']}")
            if annotation.get("ignore") and not annotation.get("iscrowd"):
                findings.note("boxes marked ignore but not iscrowd, used as ordinary boxes, as by pycocotools", where)
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
        return Sample(path, *facts, np.array(list(rows.values()), np.float64).reshape(-1, 5), record, truth)

    def _unique(self, what: str, findings: Findings) -> list[dict[str, Any]]:
        """The file's entries without those that have no integer id or an id seen before, which are faults."""
        entries: dict[int, dict[str, Any]] = {}
        for entry in self.content[what]:
            key = entry.get("id")
            if not isinstance(key, int) or isinstance(key, bool):
                findings.fault(f"{what} without an integer id", f"{self.file.name}: id {key!r}")
            elif key in entries:
                findings.fault(f"{what} whose id occurs twice", f"{self.file.name}: id {key}")
            else:
                entries[key] = entry
        return list(entries.values())


def _categories(file: Path, entries: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Category names by id, in the order of the ids."""
    if not entries or not all(isinstance(entry.get("id"), int) and "name" in entry for entry in entries):
        expected = "expected at least one, each with an integer id and a name"
        raise DataError(f"{file}: categories: {len(entries)} listed; {expected}")
    for key in ("id", "name"):
        if repeated := [value for value, times in Counter(entry[key] for entry in entries).items() if times > 1]:
            raise DataError(f"{file}: categories: {key} {repeated[0]!r} occurs twice; expected one each")
    return {entry["id"]: str(entry["name"]) for entry in sorted(entries, key=lambda entry: entry["id"])}


def _row(box: Any, width: int, height: int, index: int) -> tuple[float, ...]:
    """The label row (class, centre x, centre y, width, height relative to the image) of a box, clipped to the image.

    ``box``: x, y, width, height in pixels. Raises ValueError for a broken one.
    """
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)
    if not numbers or not all(map(math.isfinite, box)):
        raise ValueError(f"bbox {box}, expected four numbers x y width height")
    left, right = (min(max(value, 0.0), width) for value in (box[0], box[0] + box[2]))
    top, bottom = (min(max(value, 0.0), height) for value in (box[1], box[1] + box[3]))
    if right <= left or bottom <= top:
        raise ValueError(f"bbox {box} has no area inside its image of {width}x{height}")
    centre = ((left + right) / 2 / width, (top + bottom) / 2 / height)
    return (index, *centre, (right - left) / width, (bottom - top) / height)


def read_voc(folder: Path, findings: Findings) -> Source:
    """The samples of a folder in VOC's layout, whose XML is converted to COCO's entries.

    The ground truth is computed from the labels, so a box that leaves its image is clipped and a repeated one counts
    once. Classes are in alphabetical order, as VOC's own are. Objects marked ``difficult`` are left out, as in VOC's
    evaluation. Without lists in ``ImageSets/Main`` every fifth image, by the hash of its name, is for validation.
    Raises DataError where there are no objects; a broken file or image is a fault.
    """
    stems = _voc_splits(folder, findings)
    files = {stem: folder / "Annotations" / f"{stem}.xml" for split in SPLITS for stem in stems[split]}
    objects = {stem: voc_objects(file, findings) for stem, file in files.items()}
    names = sorted({name for boxes in objects.values() for name, _ in boxes})
    if not names:
        raise DataError(f"{folder}: Annotations: no object in {len(objects)} files; expected <object> with <bndbox>")
    usual = [folder / name for name in ("JPEGImages", "images", "Images")]
    image_folder = next(filter(Path.is_dir, usual), folder)
    images = {file.stem: file.name for file in sorted(image_folder.iterdir()) if file.suffix.lower() in SUFFIXES}
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    annotations = Annotations(folder / "Annotations", {"categories": categories}, [image_folder])
    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for number, stem in enumerate(stems[split], 1):
            entries = [
                {"id": f"{stem}.xml, {name}", "category_id": names.index(name) + 1, "bbox": box}
                for name, box in objects[stem]
            ]
            record = {
                "id": number,
                "file_name": images.get(stem, f"{stem}, an image of this name in {image_folder.name}"),
            }
            if (sample := annotations.sample(record, entries, findings)) is not None:
                samples[split].append(replace(sample, record=None, annotations=None))
    return Source(tuple(names), tuple(range(1, len(names) + 1)), samples)


def _voc_splits(folder: Path, findings: Findings) -> dict[str, list[str]]:
    """The names of the images without suffix, by split. Raises DataError for an image in both splits."""
    lists = folder / "ImageSets" / "Main"
    train, val = (next(filter(Path.is_file, (lists / name for name in VOC_LISTS[split])), None) for split in SPLITS)
    if train is not None and val is not None:
        # Lists of one class have a second column, which says whether an image has an object of the class.
        stems = [list(dict.fromkeys(line.split()[0] for line in read_list(file, str(file)))) for file in (train, val)]
        if both := sorted(set(stems[0]) & set(stems[1])):
            expected = "expected two sets that share no image"
            raise DataError(f"{lists}: {both[0]} is in {train.name} and in {val.name}; {expected}")
        return dict(zip(SPLITS, stems, strict=True))
    everything = sorted(file.stem for file in (folder / "Annotations").glob("*.xml"))
    chosen = {stem for stem in everything if int(hashlib.sha256(stem.encode()).hexdigest(), 16) % VAL_ONE_IN == 0}
    findings.note(
        "splits by the hash of the images' names, because there are no lists of them",
        f"{len(chosen)} of {len(everything)} images for validation (expected {lists}/train.txt and val.txt)",
    )
    return {"train": [stem for stem in everything if stem not in chosen], "val": sorted(chosen)}


def voc_objects(file: Path, findings: Findings) -> list[tuple[str, list[float]]]:
    """Class and box (x, y, width, height in pixels from 0) of each object of an XML file; difficult ones are left out.

    VOC counts pixels from 1 and both corners lie inside the box: the box of a whole image goes from (1, 1) to
    (width, height). A file that cannot be read has no objects and is a fault.
    """
    objects = []
    try:
        for entry in ElementTree.fromstring(read_bytes(file, MAX_XML)).iter("object"):
            name, bounds = (entry.findtext("name") or "").strip(), entry.find("bndbox")
            if not name or bounds is None:
                raise ValueError("an object without a <name> or a <bndbox>")
            corners = [bounds.findtext(key) or "" for key in ("xmin", "ymin", "xmax", "ymax")]
            try:
                left, top, right, bottom = map(float, corners)
            except ValueError:
                raise ValueError(f"{name}: a <bndbox> without four numbers xmin, ymin, xmax, ymax") from None
            if (entry.findtext("difficult") or "0").strip() == "1":
                findings.note("objects marked difficult, left out", f"{file.name}: {name}")
            else:
                objects.append((name, [left - 1, top - 1, right - left + 1, bottom - top + 1]))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        findings.fault("annotation files that cannot be read", f"{file.name} ({error})")
        return []
    return objects
