"""What can be wrong with a data set, found before anything is trained."""

import contextlib
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import PIL.Image

from sweeper.data.layout import write
from sweeper.errors import DataError
from sweeper.reading import MAX_IMAGE, check_file

SMALLEST = 10  # pixels; Ultralytics drops smaller images without a word
EXIF_ORIENTATION = 274
JPEGS = ("JPEG", "MPO")
JPEG_END = b"\xff\xd9"
SUFFIXES = frozenset({".avif", ".bmp", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})


class Findings:
    """What the checks found in ``source``, by kind, each kind with its count and first example.

    A *fault* would silently change or spoil a training (a broken image, an impossible label); a *note* is only worth
    knowing (a duplicate, an image without labels). In ``folder`` the facts of image files are remembered by path, size
    and modification time, so that opening a data set again is quick.
    """

    def __init__(self, source: Path, folder: Path | None = None) -> None:
        self.source = source
        self.faults: dict[str, list[str]] = {}
        self.notes: dict[str, list[str]] = {}
        name = f"{hashlib.sha256(str(source).encode()).hexdigest()[:16]}.json"
        self._file = None if folder is None else folder / "hashes" / name
        self._known: dict[str, list[Any]] = {}
        self._now: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            self._known = json.loads(self._file.read_text()) if self._file else {}

    def fault(self, kind: str, example: str) -> None:
        """Count one more fault of this kind."""
        self.faults.setdefault(kind, []).append(example)

    def note(self, kind: str, example: str) -> None:
        """Count one more thing worth knowing."""
        self.notes.setdefault(kind, []).append(example)

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
            stamp = [stat.st_size, stat.st_mtime_ns]
            known = self._known.get(str(image))
            digest, width, height, remark = known[2:] if known and known[:2] == stamp else image_facts(image)
        except (OSError, ValueError) as error:
            self.fault("broken images", f"{image} ({error})")
            return None
        self._now[str(image)] = [*stamp, digest, width, height, remark]
        if remark:
            self.note("JPEG files without their end marker, which Ultralytics encodes anew in our copy", str(image))
        return digest, width, height

    def save(self) -> None:
        """Remember the facts of image files, if there are new ones; a folder that cannot be written is no error."""
        if self._file and self._now != self._known:
            with contextlib.suppress(OSError):
                write(self._file, json.dumps(self._now))


def image_facts(path: Path) -> tuple[str, int, int, str]:
    """SHA-256 of the file, width and height in pixels as a viewer shows it (EXIF orientation applied), and a remark.

    Raises ValueError, saying what is wrong, for a file that Ultralytics would drop in silence: not an image, cut short,
    or smaller than 10 pixels. The remark is "unended" for a JPEG that decodes but lacks its end marker, else empty.
    """
    try:
        check_file(path, MAX_IMAGE)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with _open(path) as image:
            (width, height), kind = image.size, image.format
            if kind in JPEGS and image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8):
                width, height = height, width
            image.verify()
        remark = ""
        if kind in JPEGS:
            with path.open("rb") as file:
                file.seek(-2, 2)
                remark = "" if file.read() == JPEG_END else "unended"
            if remark:  # verify() reads a JPEG's header only; decoding finds the missing half
                with _open(path) as image:
                    image.load()
    except Exception as error:  # PIL raises half a dozen classes, OSError and SyntaxError among them
        reason = " ".join(str(error).split()).replace(str(path), path.name)
        raise ValueError(reason or type(error).__name__) from None
    if min(width, height) < SMALLEST:
        raise ValueError(f"{width}x{height} pixels, expected at least {SMALLEST}x{SMALLEST}")
    return digest, width, height, remark


def _open(path: Path) -> PIL.Image.Image:
    """An image, its pixels not read yet. Of 179 million pixels and more PIL makes an error, and so do we."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # PIL warns from half of that on
        return PIL.Image.open(path)
