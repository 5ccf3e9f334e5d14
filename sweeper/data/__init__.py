"""Data sets: opened by name or path, checked before anything is trained, identified by content, laid out privately.

Ultralytics writes beside what it reads (a label cache, "restored" JPEGs) and orders images by name. So every data set
is laid out once in a folder of our own: links to the images, own labels, COCO ground truth. Sources are never written
to, and because each link is named after the content of image and labels, the order of the images, and with it the
training, follows from the digest alone.
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

from sweeper.data import coco, yolo
from sweeper.data.made import coco_subset, digits_made, make_digits
from sweeper.data.source import SPLITS, Findings, Sample, Source, label_text, published
from sweeper.errors import DataError

__all__ = ["MARKER", "Dataset", "coco_subset", "open"]

MARKER = "dataset.json"  # written last; a layout without it does not exist


@dataclass(frozen=True)
class Dataset:
    """A checked data set, ready for a trainer.

    ``yaml`` is what Ultralytics is given; it and everything beside it lie in a private folder. ``digest`` is the
    SHA-256 over the content of images and labels (and the number of classes): not over names, folders or the order in
    which files are listed. ``problems`` are lines for the user, each with a count and the first example.
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
        """The images of "train" or "val" in the order in which they are trained, inside the private folder."""
        return sorted((self.folder / "images" / split).iterdir())

    def ground_truth(self, split: str = "val") -> Path:
        """COCO annotations of "train" or "val": integer ids, boxes in pixels of the true image size, crowds kept.

        Categories stand in the order of the classes: class ``i`` of a detection is the ``i``-th category.
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
    """Check a data set and lay it out under ``folder``, once: opening it again finds what is there.

    ``name_or_path`` is "digits" (the embedded data set, made under ``folder``), the path of an Ultralytics data.yaml,
    or a folder in the layout of COCO (``annotations/*.json`` beside the images) or Pascal VOC (``Annotations/*.xml``).
    The source is only read, its images are linked, not copied. ``invalid`` says what happens to broken images and
    impossible labels: "refuse" raises DataError, "skip" leaves them out and lists them in ``Dataset.problems``. Without
    ``keep`` nothing is written to ``folder``: what is not there is laid out in a temporary folder, which goes with this
    process. ``fraction`` and ``single_cls`` are Ultralytics': only a share of the training images (an int: so many of
    them), the first in the order of their paths; all classes become one, ``item``.
    """
    place = folder if keep else _scratch()
    if str(name_or_path) == "digits":
        path = make_digits(folder if digits_made(folder) else place).absolute()
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
            hint = f"add them, or fill in {yolo.label_path(samples[0].path)}"
            raise DataError(f"{path}: {split}: none of {len(samples)} images has a label; {hint}")
    dataset = _lay_out(source, folder, str(name_or_path), problems, place)
    if keep:
        findings.save()
    return dataset


@functools.cache
def _scratch() -> Path:
    """A folder of this process, removed at its end."""
    folder = tempfile.TemporaryDirectory(prefix="sweeper-data-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _read(path: Path, findings: Findings) -> Source:
    if os.path.isdir(path):  # as Path.is_dir, but False for a name that no file can have
        return coco.read_folder(path, findings)
    described = yolo.read_yaml(path)
    if "annotations" in described:
        return coco.read_described(path, described, findings)
    return yolo.read(path, described, findings)


def _of_one_class(source: Source) -> Source:
    number = source.categories[0]

    def merged(sample: Sample) -> Sample:
        rows = sample.rows.copy()
        rows[:, 0] = 0
        entries = sample.annotations and [{**entry, "category_id": number} for entry in sample.annotations]
        return replace(sample, rows=rows, annotations=entries)

    samples = {split: [merged(sample) for sample in source.samples[split]] for split in SPLITS}
    return Source(("item",), (number,), samples)


def _check_across(source: Source, findings: Findings) -> None:
    """Note images that occur twice: within a split they weigh double, across splits they flatter the measurement."""
    trained = {sample.sha: sample.path for sample in source.samples["train"]}
    for split in SPLITS:
        first: dict[str, Path] = {}
        for sample in source.samples[split]:
            if sample.sha in first:
                findings.note(f"{split} images that occur twice", f"{sample.path} = {first[sample.sha]}")
            first.setdefault(sample.sha, sample.path)
            if split == "val" and sample.sha in trained:
                findings.note("images in both train and val", f"{sample.path} = {trained[sample.sha]}")


def _lay_out(source: Source, folder: Path, shown: str, problems: tuple[str, ...], new: Path) -> Dataset:
    """Lay ``source`` out and describe it: found again under ``folder`` when nothing changed, else under ``new``."""
    samples = {split: sorted(source.samples[split], key=lambda sample: sample.digest) for split in SPLITS}
    content = [len(source.names), {split: [sample.digest for sample in samples[split]] for split in SPLITS}]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    names = {split: _names(samples[split]) for split in SPLITS}
    annotations = {split: json.dumps(_coco(source, samples[split], names[split])) for split in SPLITS}
    # two sources of one content are one training, but their links and names differ: so do their folders
    place = hashlib.sha256(json.dumps([source.names, annotations], sort_keys=True).encode()).hexdigest()
    home = folder.resolve() / f"{digest[:16]}-{place[:8]}"
    if not (home / MARKER).is_file():
        home = new.resolve() / home.name
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
            # Without "path" the splits are beside the file, wherever that is moved.
            described = {**{split: f"images/{split}" for split in SPLITS}, "names": dict(enumerate(source.names))}
            text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
            (made / "data.yaml").write_text(text, encoding="utf-8")
            (made / MARKER).write_text(json.dumps({"digest": digest, "source": shown}), encoding="utf-8")
    train, val = (len(samples[split]) for split in SPLITS)
    return Dataset(shown, home, home / "data.yaml", source.names, train, val, digest, problems)


def _names(samples: Sequence[Sample]) -> list[str]:
    """File names that sort by content and still show where they come from."""
    names: dict[str, str] = {}
    for sample in samples:
        stem = f"{sample.digest[:12]}-{re.sub(r'[^A-Za-z0-9_-]', '_', sample.path.stem)[:80]}"
        name, again = stem, 1
        while name in names:
            again += 1
            name = f"{stem}-{again}"
        names[name] = name + sample.path.suffix.lower()
    return list(names.values())


def _coco(source: Source, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Any]:
    """COCO annotations: the source's own ids, boxes, areas and crowds where it has them, else made from the labels.

    Annotations are numbered anew from 1 in their order: pycocotools takes an annotation with id 0 for unmatched.
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
    entries = []
    for kind, x, y, width, height in sample.rows.tolist():
        corner = [(x - width / 2) * sample.width, (y - height / 2) * sample.height]
        box = [*corner, width * sample.width, height * sample.height]
        category = source.categories[int(kind)]
        entries.append({"category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    return entries
