"""What a reader of a data set gives: images with their labels, and what is wrong with them; and how it is written."""

import contextlib
import hashlib
import json
import shutil
import tempfile
import uuid
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from sweeper.errors import DataError
from sweeper.reading import MAX_IMAGE, check_file

SPLITS = ("train", "val")
SMALLEST = 10  # pixels; Ultralytics drops smaller images without a word
EXIF_ORIENTATION = 274
JPEGS = ("JPEG", "MPO")
JPEG_END = b"\xff\xd9"
SUFFIXES = frozenset({".avif", ".bmp", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})


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
    """A data set as it was read: class names, COCO's category ids in the same order, the samples of both splits."""

    names: tuple[str, ...]
    categories: tuple[int, ...]
    samples: Mapping[str, Sequence[Sample]]


class Findings:
    """What the checks found in ``source``, by kind, each kind with its count and first example.

    A *fault* would silently change or spoil a training (a broken image, an impossible label); a *note* is only worth
    knowing (a duplicate, an image without labels). In ``folder`` the facts of image files are remembered by path, size
    and modification time, so that opening a data set again is quick.
    """

    def __init__(self, source: Path, folder: Path | None = None) -> None:
        self.source = source
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.notes: dict[str, list[str]] = defaultdict(list)
        name = f"{hashlib.sha256(str(source).encode()).hexdigest()[:16]}.json"
        self._file = folder / "hashes" / name if folder else None
        self._before: dict[str, list[Any]] = {}
        self._now: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            self._before = json.loads(self._file.read_text()) if self._file else {}

    def fault(self, kind: str, example: str) -> None:
        """Count one more fault of this kind."""
        self.faults[kind].append(example)

    def note(self, kind: str, example: str) -> None:
        """Count one more thing worth knowing."""
        self.notes[kind].append(example)

    def settle(self, invalid: str) -> tuple[str, ...]:
        """One line per kind, faults first; with ``invalid="refuse"`` a fault raises DataError instead."""
        faults, notes = (
            [f"{kind}: {len(examples)}, first {examples[0]}" for kind, examples in kinds.items()]
            for kinds in (self.faults, self.notes)
        )
        if faults and invalid == "refuse":
            raise DataError(f"{self.source}: {'; '.join(faults)}; mend the data, or leave these out with invalid: skip")
        return (*(f"skipped: {fault}" for fault in faults), *notes)

    def facts(self, image: Path) -> tuple[str, int, int] | None:
        """(SHA-256, width, height) of an image file, or None for a broken one, which becomes a fault."""
        try:
            stat = image.stat()
            stamp, before = [stat.st_size, stat.st_mtime_ns], self._before.get(str(image), [])
            digest, width, height = before[2:5] if before[:2] == stamp else image_facts(image)
        except (OSError, ValueError) as error:
            self.fault("broken images", f"{image} ({error})")
            return None
        self._now[str(image)] = [*stamp, digest, width, height]
        return digest, width, height

    def save(self) -> None:
        """Remember the facts of image files, if there are new ones; a folder that cannot be written is no error."""
        if self._file and self._now != self._before:
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                written = self._file.with_name(f".writing-{uuid.uuid4().hex}")
                written.write_text(json.dumps(self._now))
                written.replace(self._file)


def image_facts(path: Path) -> tuple[str, int, int]:
    """SHA-256 of the file, width and height in pixels as a viewer shows it (EXIF orientation applied).

    Raises ValueError, saying what is wrong, for a file that Ultralytics would drop in silence: not an image, cut short,
    or smaller than 10 pixels.
    """
    try:
        check_file(path, MAX_IMAGE)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(max(file.tell() - 2, 0))
            end = file.read()
        with _open(path) as image:
            (width, height), kind = image.size, image.format
            if kind in JPEGS and image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8):
                width, height = height, width
            image.verify()
        if kind in JPEGS and end != JPEG_END:  # verify() reads a JPEG's header only; decoding finds the missing half
            with _open(path) as image:
                image.load()
    except Exception as error:  # PIL raises half a dozen classes, OSError and SyntaxError among them
        reason = " ".join(str(error).split()).replace(str(path), path.name)
        raise ValueError(reason or type(error).__name__) from None
    if min(width, height) < SMALLEST:
        raise ValueError(f"{width}x{height} pixels, expected at least {SMALLEST}x{SMALLEST}")
    return digest, width, height


def _open(path: Path) -> PIL.Image.Image:
    """An image, its pixels not read yet. PIL refuses 179 million pixels and more, and so do we."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # PIL warns from half of that on
        return PIL.Image.open(path)


@contextlib.contextmanager
def published(folder: Path, marker: str) -> Iterator[Path]:
    """A new empty folder that gets the name ``folder`` when the block ends, finished or not at all.

    Where another process was first (``marker`` is there), ours goes. Raises DataError where it cannot be written, or
    where ``folder`` is something else.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
        made.chmod(0o755)
        yield made
    except OSError as error:
        why = f"cannot write the data set there ({error.strerror}); expected a writable folder with room"
        raise DataError(f"{folder}: {why}") from None
    try:
        made.rename(folder)
    except OSError:
        shutil.rmtree(made)
        if not (folder / marker).is_file():
            raise DataError(f"{folder}: is no finished data set; remove it and run again") from None


def label_text(rows: np.ndarray) -> str:
    """A YOLO label file of ``rows``, with the nine digits that bring a float32, as a trainer reads it, back exactly."""
    exact = rows.astype(np.float32).tolist()
    return "".join(f"{int(row[0])} " + " ".join(f"{x:.9g}" for x in row[1:]) + "\n" for row in exact)
