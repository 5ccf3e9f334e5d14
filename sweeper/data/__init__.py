"""Data sets: opened by name or path, checked before anything is trained, identified by content, laid out privately.

Ultralytics writes beside the files that it reads (a label cache, "restored" JPEGs) and orders images by name. So every
data set is laid out once in a private folder: links to the images, label files, COCO ground truth. Sources are never
written to. Each link is named after the content of image and labels, so the order of the images, and with it the
training, depends on the digest alone.
"""

import atexit
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from sweeper.data import coco
from sweeper.data.made import coco_subset, digits_made, label_text, make_digits, published
from sweeper.data.source import SPLITS, Findings, Sample, Source, label_path, read_yolo
from sweeper.errors import DataError
from sweeper.reading import NotYaml, parse_yaml, read_text, why

__all__ = ["MARKER", "Dataset", "coco_subset", "open"]

MARKER = "dataset.json"  # This file is written last, so a folder without it is no finished data set.


@dataclass(frozen=True)
class Dataset:
    """A checked data set, ready for a trainer.

    ``source``: the name or path under which it was opened. ``folder``: its private folder. ``yaml``: the data.yaml for
    Ultralytics in it. ``digest``: SHA-256 (hex) over the content of images and labels and the number of classes, not
    over names, folders or the order in which files are listed. ``problems``: messages for the user, each with a count
    and the first example.
    """

    source: str
    folder: Path
    yaml: Path
    names: tuple[str, ...]
    train_images: int
    val_images: int
    digest: str
    problems: tuple[str, ...]

    def images(self, split: str) -> list[Path]:
        """The links to the images of "train" or "val" in the private folder, in the order of the training's indices."""
        return sorted((self.folder / "images" / split).iterdir())

    def ground_truth(self, split: str = "val") -> Path:
        """The file of COCO annotations of "train" or "val": integer ids, boxes in pixels of the image file, crowds.

        Categories are in the order of the classes: class ``i`` of a detection is the ``i``-th category.
        """
        return self.folder / "annotations" / f"instances_{split}.json"


def open(
    name_or_path: str | Path,
    *,
    folder: Path,
    invalid: Literal["refuse", "skip"] = "refuse",
    keep: bool = True,
    fraction: float | int = 1.0,
    single_cls: bool = False,
) -> Dataset:
    """Check a data set and lay it out under ``folder``, unless the same content is already laid out there.

    ``name_or_path``: "digits" (the built-in data set, which is written to ``folder``), the path of an Ultralytics
    data.yaml, or a folder in the layout of COCO (``annotations/*.json`` beside the images) or Pascal VOC
    (``Annotations/*.xml``). The source is only read; its images are linked, not copied. ``invalid``: what happens to
    broken images and impossible labels: "refuse" raises DataError, "skip" leaves them out and lists them in
    ``Dataset.problems``. ``keep=False``: nothing is written to ``folder``; a data set that is not there is laid out in
    a temporary folder, which is removed when this process ends. ``fraction`` and ``single_cls`` mean what they mean in
    Ultralytics: only a share of the training images (an int: their number), the first in the order of their paths; all
    classes become one, ``item``.
    """
    target = folder if keep else _scratch()
    if str(name_or_path) == "digits":
        path = make_digits(folder if digits_made(folder) else target).absolute()
    else:
        path = Path(name_or_path).expanduser().absolute()
    findings = Findings(path, folder)
    try:
        source = _read(path, findings)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if fraction != 1:
        train = sorted(source.samples["train"], key=lambda sample: str(sample.path))
        count = fraction if isinstance(fraction, int) else max(1, round(len(train) * fraction))
        source = replace(source, samples={**source.samples, "train": train[:count]})
    if single_cls:
        source = _of_one_class(source)
    _check_across(source, findings)
    problems = findings.settle(invalid)
    for split in SPLITS:
        samples = source.samples[split]
        if not samples:
            raise DataError(f"{path}: {split}: no image is left; {' '.join(problems) or 'the split is empty'}")
        if not any(len(sample.rows) for sample in samples):
            hint = f"add them, or fill in {label_path(samples[0].path)}"
            raise DataError(f"{path}: {split}: none of {len(samples)} images has a label; {hint}")
    dataset = _lay_out(source, folder, str(name_or_path), problems, target)
    if keep:
        findings.save()
    return dataset


@functools.cache
def _scratch() -> Path:
    """A temporary folder, which is removed when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="sweeper-data-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _read(path: Path, findings: Findings) -> Source:
    """Read the data set at ``path`` in the format that it has: COCO's, Pascal VOC's or Ultralytics'."""
    if os.path.isdir(path):  # unlike Path.is_dir, this returns False for a name that no file can have
        return _read_folder(path, findings)
    described = read_yaml(path)
    if "annotations" in described:
        return coco.read_described(path, described, findings)
    return read_yolo(path, described, findings)


def _read_folder(path: Path, findings: Findings) -> Source:
    if any((path / "Annotations").glob("*.xml")):
        return coco.read_voc(path, findings)
    if (path / "annotations").is_dir():
        return coco.read_coco(path, findings)
    if (path / "data.yaml").is_file():
        return read_yolo(path / "data.yaml", read_yaml(path / "data.yaml"), findings)
    layouts = ("annotations/*.json", "Annotations/*.xml", "data.yaml")
    near = (path.parent, path.parent.parent, *sorted(path.glob("*/")))
    dataset = next((folder for folder in near if any(any(folder.glob(layout)) for layout in layouts)), None)
    hint = f"expected {dataset}, which has" if dataset else "expected a data.yaml, or a folder as of COCO or Pascal VOC"
    raise DataError(f"{path}: neither {layouts[0]}, {layouts[1]} nor {layouts[2]} in this folder; {hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in ``path``. Raises DataError for a file that is missing, empty or holds something else."""
    expected = "expected an Ultralytics data.yaml, a folder in COCO's or VOC's layout, or digits"
    if path.suffix == ".json":
        expected += "; of COCO annotations name the folder that has annotations/ and the images"
    try:
        described = parse_yaml(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {why(error)}; {expected}") from None
    except NotYaml as error:
        raise DataError(f"{path}: cannot be read as YAML ({error}); {expected}") from None
    if not isinstance(described, dict):
        content = "is empty" if described is None else f"holds a {type(described).__name__}"
        raise DataError(f"{path}: {content}; expected a mapping with train:, val: and names:")
    return described


def _of_one_class(source: Source) -> Source:
    """``source`` with the class of every label and annotation replaced by the first."""
    number = source.categories[0]

    def merged(sample: Sample) -> Sample:
        rows = sample.rows.copy()
        rows[:, 0] = 0
        entries = sample.annotations and [{**entry, "category_id": number} for entry in sample.annotations]
        return replace(sample, rows=rows, annotations=entries)

    samples = {split: [merged(sample) for sample in source.samples[split]] for split in SPLITS}
    return Source(("item",), (number,), samples)


def _check_across(source: Source, findings: Findings) -> None:
    """Note images that occur twice: in one split they weigh double, in both splits they make the metrics too good."""
    trained = {sample.sha: sample.path for sample in source.samples["train"]}
    for split in SPLITS:
        first: dict[str, Path] = {}
        for sample in source.samples[split]:
            if sample.sha in first:
                findings.note(f"{split} images that occur twice", f"{sample.path} = {first[sample.sha]}")
            first.setdefault(sample.sha, sample.path)
            if split == "val" and sample.sha in trained:
                findings.note("images in both train and val", f"{sample.path} = {trained[sample.sha]}")


def _lay_out(source: Source, folder: Path, shown: str, problems: tuple[str, ...], target: Path) -> Dataset:
    """Lay ``source`` out under ``target``, unless the same content is laid out under ``folder``, and describe it.

    ``shown``: the name or path under which it was opened.
    """
    samples = {split: sorted(source.samples[split], key=lambda sample: sample.digest) for split in SPLITS}
    content = [len(source.names), {split: [sample.digest for sample in samples[split]] for split in SPLITS}]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    names = {split: _names(samples[split]) for split in SPLITS}
    annotations = {split: json.dumps(_coco(source, samples[split], names[split])) for split in SPLITS}
    # Two sources of the same content are one training, but their links and class names differ, as do their folders.
    layout = hashlib.sha256(json.dumps([source.names, annotations], sort_keys=True).encode()).hexdigest()
    home = folder.resolve() / f"{digest[:16]}-{layout[:8]}"
    if not (home / MARKER).is_file():
        home = target.resolve() / home.name
    if not (home / MARKER).is_file():
        with published(home, MARKER) as made:
            (made / "annotations").mkdir()
            for split in SPLITS:
                images, labels = made / "images" / split, made / "labels" / split
                images.mkdir(parents=True)
                labels.mkdir(parents=True)
                for sample, name in zip(samples[split], names[split], strict=True):
                    (images / name).symlink_to(sample.path)
                    (labels / name).with_suffix(".txt").write_text(label_text(sample.rows), encoding="utf-8")
                (made / "annotations" / f"instances_{split}.json").write_text(annotations[split], encoding="utf-8")
            # There is no "path" in it, so the splits are relative to the file, and the folder can be moved.
            described = {**{split: f"images/{split}" for split in SPLITS}, "names": dict(enumerate(source.names))}
            text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
            (made / "data.yaml").write_text(text, encoding="utf-8")
            (made / MARKER).write_text(json.dumps({"digest": digest, "source": shown}), encoding="utf-8")
    train, val = (len(samples[split]) for split in SPLITS)
    return Dataset(shown, home, home / "data.yaml", source.names, train, val, digest, problems)


def _names(samples: Sequence[Sample]) -> list[str]:
    """Unique file names that sort by content and contain the name of the original file."""
    names: dict[str, str] = {}
    for sample in samples:
        stem = f"{sample.digest[:12]}-{re.sub(r'[^A-Za-z0-9_-]', '_', sample.path.stem)[:80]}"
        name, count = stem, 1
        while name in names:
            count += 1
            name = f"{stem}-{count}"
        names[name] = name + sample.path.suffix.lower()
    return list(names.values())


def _coco(source: Source, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Any]:
    """COCO annotations with the source's own ids, boxes, areas and crowds; without them, computed from the labels.

    Annotations are renumbered from 1 in their order, because pycocotools takes a match with the id 0 for none.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (sample, name) in enumerate(zip(samples, names, strict=True), 1):
        image = sample.record["id"] if sample.record else number
        size = {"width": sample.width, "height": sample.height}
        images.append({"id": image, "file_name": name, **size, "source": str(sample.path)})
        for entry in sample.annotations if sample.annotations is not None else _from_rows(source, sample):
            annotations.append({**entry, "image_id": image, "id": len(annotations) + 1})
    categories = [{"id": key, "name": name} for key, name in zip(source.categories, source.names, strict=True)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _from_rows(source: Source, sample: Sample) -> list[dict[str, Any]]:
    """COCO's entries, without ids, of a sample's label rows."""
    entries = []
    for index, x, y, width, height in sample.rows.tolist():
        corner = [(x - width / 2) * sample.width, (y - height / 2) * sample.height]
        box = [*corner, width * sample.width, height * sample.height]
        category = source.categories[int(index)]
        entries.append({"category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    return entries
