"""Data sets: opened by name or path, checked before anything is trained, identified by content.

``open`` takes the embedded digits, an Ultralytics ``data.yaml``, or a folder in the layout of COCO or Pascal VOC, and
gives a ``Dataset``.
"""

import atexit
import functools
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

from sweeper.data import coco, voc, yolo
from sweeper.data.checks import Findings
from sweeper.data.layout import SPLITS, Dataset, Sample, Source, lay_out
from sweeper.data.made import coco_subset, digits_made, make_digits
from sweeper.errors import DataError

__all__ = ["Dataset", "coco_subset", "open"]


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
    impossible labels: "refuse" raises
    DataError, "skip" leaves them out and lists them in ``Dataset.problems``. Without ``keep`` nothing is written to
    ``folder``: what is not there is laid out in a temporary folder, which goes with this process. ``fraction`` and
    ``single_cls`` are Ultralytics': only a share of the training images (an int: so many of them), the first in the
    order of their paths; all classes become one, ``item``.
    """
    if invalid not in ("refuse", "skip"):
        raise DataError(f"invalid: {invalid!r} is unknown; expected refuse or skip")
    try:
        return _open(name_or_path, folder, invalid, keep, fraction, single_cls)
    except OSError as error:
        raise DataError(f"{folder}: cannot write the data set there ({error}); name a folder with room") from None


def _open(
    name_or_path: str | Path, folder: Path, invalid: str, keep: bool, fraction: float | int, single_cls: bool
) -> Dataset:
    place = folder if keep else _scratch()
    if str(name_or_path) == "digits":
        path = make_digits(folder if digits_made(folder) else place).absolute()
    else:
        path = Path(name_or_path).expanduser().absolute()
    findings = Findings(path, folder)
    source = _read(path, findings)
    if fraction != 1:
        train = sorted(source.samples["train"], key=lambda sample: str(sample.path))
        count = fraction if isinstance(fraction, int) else max(1, round(len(train) * fraction))
        source = replace(source, samples={**source.samples, "train": train[:count]})
    if single_cls:
        source = _of_one_class(source)
    _check_across(source, findings)
    problems = findings.settle(invalid)
    for split in SPLITS:
        if not source.samples[split]:
            raise DataError(f"{path}: {split}: no image is left; {' '.join(problems) or 'the split is empty'}")
        if not any(len(sample.rows) for sample in source.samples[split]):
            hint = f", or fill in {yolo.label_path(source.samples[split][0].path)}"
            raise DataError(f"{path}: {split}: none of {len(source.samples[split])} images has a label; add them{hint}")
    dataset = lay_out(source, folder, str(name_or_path), problems, place)
    if keep:
        findings.save()
    return dataset


def _of_one_class(source: Source) -> Source:
    number = source.categories[0]

    def merged(sample: Sample) -> Sample:
        rows = sample.rows.copy()
        rows[:, 0] = 0
        entries = sample.annotations and [{**entry, "category_id": number} for entry in sample.annotations]
        return replace(sample, rows=rows, annotations=entries)

    samples = {split: [merged(sample) for sample in source.samples[split]] for split in SPLITS}
    return Source(("item",), (number,), samples)


@functools.cache
def _scratch() -> Path:
    """A folder of this process, removed at its end."""
    folder = tempfile.TemporaryDirectory(prefix="sweeper-data-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _read(path: Path, findings: Findings) -> Source:
    is_folder = os.path.isdir(path)  # as Path.is_dir, but False for a name that no file can have
    if is_folder and voc.is_voc(path):
        return voc.read_folder(path, findings)
    if is_folder:
        return coco.read_folder(path, findings)
    described = yolo.read_yaml(path)
    if "annotations" in described:
        return coco.read_described(path, described, findings)
    return yolo.read(path, described, findings)


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
