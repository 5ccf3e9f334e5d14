"""Reads Ultralytics' ``data.yaml``: images in folders or lists, labels found by replacing ``images`` by ``labels``."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from sweeper.data.checks import SUFFIXES, Findings, read_labels
from sweeper.data.layout import SPLITS, Hashes, Sample, Source
from sweeper.errors import DataError


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in ``path``. Raises DataError for a file that is missing, empty or says something else."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        described = yaml.safe_load(text)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected an Ultralytics data.yaml, a folder in COCO's or VOC's layout, or digits"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not text.strip() or described is None:
        raise DataError(f"{path}: is empty; expected train:, val: and names:")
    if not isinstance(described, dict):
        raise DataError(f"{path}: holds a {type(described).__name__}, expected a mapping with train:, val: and names:")
    return described


def read(path: Path, described: dict[str, Any], hashes: Hashes, findings: Findings) -> Source:
    """The samples that a data.yaml describes, with what is wrong about them in ``findings``."""
    names = class_names(path, described)
    top = root(path, described)
    samples = {}
    for split in SPLITS:
        wanted = described.get(split) or (described.get("validation") if split == "val" else None)
        if not wanted:
            raise DataError(
                f"{path}: {split}: is missing; expected a folder, a list of folders or a .txt list of images"
            )
        files = list(_listed(path, split, top, wanted if isinstance(wanted, list) else [wanted]))
        if not files:
            raise DataError(
                f"{path}: {split}: no images in {wanted}; expected files ending in {' '.join(sorted(SUFFIXES))}"
            )
        samples[split] = [made for file in sorted(files) if (made := _sample(file, top, len(names), hashes, findings))]
        unlabelled = [sample.path for sample in samples[split] if not label_path(sample.path).is_file()]
        for image in unlabelled:
            findings.note(f"{split} images without a label file, taken as background", shown(image, top))
    return Source(names, tuple(range(1, len(names) + 1)), samples)


def class_names(path: Path, described: dict[str, Any]) -> tuple[str, ...]:
    """``names`` as a list or as a dict from 0 on, or ``nc`` alone. DataError where they contradict themselves."""
    names, count = described.get("names"), described.get("nc")
    if names is None and isinstance(count, int) and count > 0:
        return tuple(f"class_{number}" for number in range(count))
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in names.items()}
        if numbered.keys() != {str(number) for number in range(len(names))}:
            raise DataError(f"{path}: names: numbers its classes {', '.join(numbered)}, expected 0 to {len(names) - 1}")
        names = [numbered[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names: {names!r} is no list of class names; expected a list, or a mapping from 0 on")
    if count is not None and count != len(names):
        raise DataError(f"{path}: nc: {count} contradicts the {len(names)} classes in names:; remove nc")
    if twice := [name for name, times in Counter(map(str, names)).items() if times > 1]:
        raise DataError(f"{path}: names: {twice[0]!r} occurs twice; expected one name per class")
    return tuple(str(name) for name in names)


def root(path: Path, described: dict[str, Any]) -> Path:
    """The folder to which a data.yaml's paths are relative: ``path:`` (itself relative to the file), or the file's."""
    top = path.parent / str(described.get("path") or ".")
    if not top.is_dir():
        raise DataError(
            f"{path}: path: {described['path']} is no folder ({top}); nothing is downloaded, put the data there"
        )
    return top.resolve()


def label_path(image: Path) -> Path:
    """Ultralytics' rule: the last folder ``images`` becomes ``labels``, the suffix ``.txt``."""
    changed = f"{os.sep}labels{os.sep}".join(str(image).rsplit(f"{os.sep}images{os.sep}", 1))
    return Path(changed).with_suffix(".txt")


def shown(path: Path, top: Path) -> str:
    """``path`` as short as it is clear."""
    return str(path.relative_to(top)) if path.is_relative_to(top) else str(path)


def _listed(path: Path, split: str, top: Path, entries: list[Any]) -> Iterable[Path]:
    """Image files of folders (and all below), .txt lists and single files; not resolved, for the label rule's sake."""
    for entry in entries:
        where = Path(os.path.normpath(top / str(entry)))
        if where.is_dir():
            for folder, below, files in os.walk(where, followlinks=True):
                below[:] = sorted(name for name in below if not name.startswith("."))
                visible = (Path(folder, name) for name in files if not name.startswith("."))
                yield from (file for file in visible if file.suffix.lower() in SUFFIXES)
        elif where.is_file() and where.suffix.lower() in SUFFIXES:
            yield where
        elif where.is_file():
            try:
                lines = where.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: {split}: {entry} cannot be read as a list of images ({error})") from None
            for line in filter(None, map(str.strip, lines)):
                yield Path(os.path.normpath((where.parent if line.startswith("./") else top) / line))
        else:
            raise DataError(
                f"{path}: {split}: {entry} is not there ({where}); nothing is downloaded, put the data there"
            )


def _sample(file: Path, top: Path, classes: int, hashes: Hashes, findings: Findings) -> Sample | None:
    rows = read_labels(label_path(file), shown(label_path(file), top), classes, findings)
    facts = hashes.facts(file, findings)
    return Sample(file, *facts, rows) if facts else None
