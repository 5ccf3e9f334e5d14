"""The private layout in which a data set is trained: links to the images, own labels, COCO ground truth; its digest.

Ultralytics writes beside what it reads (a label cache, "restored" JPEGs) and orders images by name. So every data set
is laid out once in a folder of our own: sources are never written to, and because each link is named after the content
of image and labels, the order of the images, and with it the training, follows from the digest alone.
"""

import hashlib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sweeper.errors import DataError

SPLITS = ("train", "val")
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


@dataclass(frozen=True)
class Sample:
    """One image with its labels.

    ``rows`` float64 (n, 5): class, centre x, centre y, width, height in parts of the image; what is trained.
    ``record`` and ``annotations`` are COCO's own entries where the source has them, else None and made from ``rows``.
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
        """SHA-256 of what is trained and measured: the image, the label rows in float32, the crowds."""
        crowds = [a["bbox"] for a in self.annotations or () if a.get("iscrowd")]
        parts = (bytes.fromhex(self.sha), self.rows.astype("<f4").tobytes(), np.asarray(crowds, "<f4").tobytes())
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()


@dataclass(frozen=True)
class Source:
    """What a reader found: class names, COCO's category ids in the same order, and the samples of both splits."""

    names: tuple[str, ...]
    categories: tuple[int, ...]
    samples: Mapping[str, Sequence[Sample]]


def write(path: Path, text: str) -> None:
    """Write a small file so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".writing-{uuid.uuid4().hex}")
    written.write_text(text, encoding="utf-8")
    written.replace(path)


def publish(aside: Path, folder: Path, marker: str) -> None:
    """Give a finished folder its name; where another process was first (``marker`` is there), ours goes."""
    try:
        aside.rename(folder)
    except OSError:
        shutil.rmtree(aside)
        if not (folder / marker).is_file():
            raise DataError(
                f"{folder}: holds something else than a finished data set; remove it and run again"
            ) from None


def aside(folder: Path) -> Path:
    """A new empty folder beside ``folder``, to be published under its name."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    except OSError as error:
        why = f"cannot write the data set there ({error.strerror}); expected a writable folder"
        raise DataError(f"{folder}: {why}") from None
    made.chmod(0o755)
    return made


def label_text(rows: np.ndarray) -> str:
    """A YOLO label file of ``rows``, with the nine digits that bring a float32, as a trainer reads it, back exactly."""
    exact = rows.astype(np.float32).tolist()
    return "".join(f"{int(row[0])} " + " ".join(f"{x:.9g}" for x in row[1:]) + "\n" for row in exact)


def lay_out(source: Source, folder: Path, shown: str, problems: tuple[str, ...], new: Path) -> Dataset:
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
        made = aside(home)
        for split in SPLITS:
            images, labels = made / "images" / split, made / "labels" / split
            images.mkdir(parents=True)
            labels.mkdir(parents=True)
            for sample, name in zip(samples[split], names[split], strict=True):
                (images / name).symlink_to(sample.path)
                (labels / name).with_suffix(".txt").write_text(label_text(sample.rows), encoding="utf-8")
            write(made / "annotations" / f"instances_{split}.json", annotations[split])
        # Without "path" the splits are beside the file, wherever that is moved.
        described = {**{split: f"images/{split}" for split in SPLITS}, "names": dict(enumerate(source.names))}
        write(made / "data.yaml", yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
        write(made / MARKER, json.dumps({"digest": digest, "source": shown}))
        publish(made, home, MARKER)
    counts = {split: len(samples[split]) for split in SPLITS}
    return Dataset(shown, home, home / "data.yaml", source.names, counts["train"], counts["val"], digest, problems)


def _names(samples: Sequence[Sample]) -> list[str]:
    """File names that sort by content and still show where they come from."""
    names: list[str] = []
    taken: set[str] = set()
    for sample in samples:
        stem = f"{sample.digest[:12]}-{re.sub(r'[^A-Za-z0-9_-]', '_', sample.path.stem)[:80]}"
        name, again = stem, 1
        while name in taken:
            again += 1
            name = f"{stem}-{again}"
        taken.add(name)
        names.append(name + sample.path.suffix.lower())
    return names


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
    order = zip(source.categories, source.names, strict=True)
    categories = [{"id": number, "name": name} for number, name in order]
    return {"images": images, "categories": categories, "annotations": annotations}


def _from_rows(source: Source, sample: Sample) -> list[dict[str, Any]]:
    made = []
    for kind, x, y, width, height in sample.rows.tolist():
        box = [
            (x - width / 2) * sample.width,
            (y - height / 2) * sample.height,
            width * sample.width,
            height * sample.height,
        ]
        kind_id = source.categories[int(kind)]
        made.append({"category_id": kind_id, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    return made
