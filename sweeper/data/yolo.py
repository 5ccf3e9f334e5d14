"""Reads Ultralytics' ``data.yaml``: images in folders or lists, labels found by replacing ``images`` by ``labels``."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sweeper.data.checks import SUFFIXES, Findings, read_labels
from sweeper.data.layout import SPLITS, Hashes, Sample, Source
from sweeper.errors import DataError, shorten
from sweeper.reading import MAX_TEXT, NotYaml, parse_yaml, read_text, why

MAX_CLASSES = 100_000
MAX_FOLDERS = 100_000  # of one split, those reached through links counted again


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in ``path``. Raises DataError for a file that is missing, empty or says something else."""
    expected = "expected an Ultralytics data.yaml, a folder in COCO's or VOC's layout, or digits"
    if path.suffix == ".json":
        expected += "; of COCO annotations name the folder that has annotations/ and the images"
    try:
        described = parse_yaml(read_text(path))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {expected}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {why(error)}; {expected}") from None
    except NotYaml as error:
        raise DataError(f"{path}: cannot be read as YAML ({error}); {expected}") from None
    if described is None:
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
    if isinstance(count, int) and count > MAX_CLASSES:
        raise DataError(f"{path}: nc: {shorten(count)} classes are too many; expected at most {MAX_CLASSES}")
    if names is None and isinstance(count, int) and count > 0:
        return tuple(f"class_{number}" for number in range(count))
    if isinstance(names, dict):
        numbered = {str(number): name for number, name in names.items()}
        if numbered.keys() != {str(number) for number in range(len(names))}:
            numbers = f"{', '.join(numbered):.100}, expected 0 to {len(names) - 1}"
            raise DataError(f"{path}: names: numbers its classes {numbers}")
        names = [numbered[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        expected = "is no list of class names; expected a list, or a mapping from 0 on"
        raise DataError(f"{path}: names: {shorten(names)} {expected}")
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
            for folder, files in _walk(where):
                visible = (folder / name for name in files if not name.startswith("."))
                yield from (file for file in visible if file.suffix.lower() in SUFFIXES)
        elif where.is_file() and where.suffix.lower() in SUFFIXES:
            yield where
        elif where.is_file():
            try:
                lines = read_text(where, MAX_TEXT).splitlines()
            except (OSError, UnicodeDecodeError) as error:
                reason = f"{entry} cannot be read as a list of images ({why(error)})"
                raise DataError(f"{path}: {split}: {reason}") from None
            for line in filter(None, map(str.strip, lines)):
                yield Path(os.path.normpath((where.parent if line.startswith("./") else top) / line))
        else:
            raise DataError(
                f"{path}: {split}: {entry} is not there ({where}); nothing is downloaded, put the data there"
            )


def _walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """``top`` and the folders below, each with its files, also through links; a link to a folder above is passed over.

    Raises DataError where there are more than MAX_FOLDERS.
    """
    above = {str(top): frozenset[tuple[int, int]]()}  # by folder: device and inode of those that it lies in
    for count, (folder, below, files) in enumerate(os.walk(top, followlinks=True)):
        if count >= MAX_FOLDERS:
            raise DataError(f"{top}: has more than {MAX_FOLDERS} folders; expected a folder of images")
        stat = os.stat(folder)
        chain = above.pop(folder) | {(stat.st_dev, stat.st_ino)}
        below[:] = sorted(name for name in below if not name.startswith(".") and not _is_one_of(chain, folder, name))
        above |= {os.path.join(folder, name): chain for name in below}
        yield Path(folder), files


def _is_one_of(chain: frozenset[tuple[int, int]], folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    try:
        stat = os.stat(path)
    except OSError:
        return True
    return (stat.st_dev, stat.st_ino) in chain


def _sample(file: Path, top: Path, classes: int, hashes: Hashes, findings: Findings) -> Sample | None:
    rows = read_labels(label_path(file), shown(label_path(file), top), classes, findings)
    facts = hashes.facts(file, findings)
    return Sample(file, *facts, rows) if facts else None
