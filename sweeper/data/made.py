"""Writes data sets: the built-in digits, and random subsets of COCO as in the article on CAWB.

The digits are scikit-learn's scans of handwritten digits (8 x 8 pixels), placed on canvases as a detection problem.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import yaml

from sweeper.data.coco import Annotations, find_annotations, load
from sweeper.data.source import SPLITS, Findings, Sample
from sweeper.errors import DataError
from sweeper.reading import MAX_TEXT, read_bytes

MARKER, MANIFEST = "digits.json", "manifest.json"  # the last file that is written of the digits, and of a subset
VERSION = 1  # of the digits' images; another version has another folder and another digest
SEED = 20240611
IMAGES = {"train": 352, "val": 96}
SIDE = 128  # pixels of a canvas
DIGITS = (2, 6)  # least and most digits on a canvas
GLYPH = (26, 52)  # least and most pixels of a glyph's height before it is trimmed to its ink
VAL_GLYPHS = 360  # of the 1797 scans; they are never used for training images
INK = 48  # of 255: lighter pixels of a glyph are background, which the box leaves out
GAP = 2  # pixels between boxes


def digits_made(folder: Path) -> bool:
    """Whether :func:`make_digits` has written the data set to ``folder``."""
    return (folder / f"digits-{VERSION}" / MARKER).is_file()


def make_digits(folder: Path) -> Path:
    """Write the digits to ``folder/digits-1`` unless they are there, and return the path of their data.yaml.

    The bytes are the same every time (one seed, PNG). Several processes may call it at once: the folder appears when it
    is complete.
    """
    home = folder.resolve() / f"digits-{VERSION}"
    if not digits_made(folder):
        with published(home, MARKER) as made:
            _draw_digits(made)
    return home / "data.yaml"


def _draw_digits(folder: Path) -> None:
    from sklearn.datasets import load_digits  # imported here, because the import takes a second and is rarely needed

    raw = load_digits()
    glyphs = np.asarray(raw.images * (255 / 16), np.uint8)
    order = np.random.default_rng(SEED).permutation(len(glyphs))
    pools = {"train": order[VAL_GLYPHS:], "val": order[:VAL_GLYPHS]}
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    files = {split: f"annotations/instances_{split}.json" for split in SPLITS}
    (folder / "annotations").mkdir()
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([SEED, number])
        image_folder, label_folder = folder / "images" / split, folder / "labels" / split
        image_folder.mkdir(parents=True)
        label_folder.mkdir(parents=True)
        images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        for image in range(1, IMAGES[split] + 1):
            pixels, boxes = _canvas(rng, glyphs, raw.target, pools[split])
            PIL.Image.fromarray(pixels).save(image_folder / f"{image:04d}.png")
            rows = [(c, (x + w / 2) / SIDE, (y + h / 2) / SIDE, w / SIDE, h / SIDE) for c, x, y, w, h in boxes]
            (label_folder / f"{image:04d}.txt").write_text(label_text(np.array(rows)), encoding="utf-8")
            images.append({"id": image, "file_name": f"{image:04d}.png", "width": SIDE, "height": SIDE})
            for c, *box in boxes:
                ids = {"id": len(annotations) + 1, "image_id": image, "category_id": c + 1}
                annotations.append({**ids, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        coco = {"images": images, "annotations": annotations, "categories": categories}
        (folder / files[split]).write_text(json.dumps(coco), encoding="utf-8")
    _describe(folder, dict(enumerate("0123456789")), files)
    (folder / MARKER).write_text(json.dumps({"seed": SEED, "version": VERSION, **IMAGES}), encoding="utf-8")


def _canvas(
    rng: np.random.Generator, glyphs: np.ndarray, classes: np.ndarray, pool: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, int, int, int, int]]]:
    """One canvas uint8 (128, 128, 3) and its digits as (class, x, y, width, height) in pixels."""
    canvas = _background(rng)
    boxes: list[tuple[int, int, int, int, int]] = []
    count = int(rng.integers(DIGITS[0], DIGITS[1] + 1))
    while len(boxes) < count:
        chosen = int(rng.choice(pool))
        ink = _glyph(glyphs[chosen], int(rng.integers(GLYPH[0], GLYPH[1] + 1)), float(rng.uniform(0.8, 1.2)))
        height, width = ink.shape
        spots = _free(boxes, width, height)
        if not len(spots):
            continue  # No spot is free for this size, so another digit and size are drawn.
        x, y = (int(value) for value in spots[rng.integers(len(spots))])
        patch = canvas[y : y + height, x : x + width]
        colour = rng.uniform(0, 70, 3) if patch.mean() > 110 else rng.uniform(185, 255, 3)
        patch += (colour - patch) * (ink / 255 * rng.uniform(0.85, 1.0))[..., None]
        boxes.append((int(classes[chosen]), x, y, width, height))
    return np.clip(canvas + rng.normal(0, 5, canvas.shape), 0, 255).astype(np.uint8), boxes


def _free(boxes: list[tuple[int, int, int, int, int]], width: int, height: int) -> np.ndarray:
    """All positions x, y of a box of this size that is at least GAP pixels from ``boxes``: int64 (n, 2)."""
    free = np.ones((SIDE - height + 1, SIDE - width + 1), bool)
    for _, x, y, w, h in boxes:
        free[max(y - height - GAP + 1, 0) : y + h + GAP, max(x - width - GAP + 1, 0) : x + w + GAP] = False
    return np.argwhere(free)[:, ::-1]


def _glyph(glyph: np.ndarray, height: int, stretch: float) -> np.ndarray:
    """The glyph's ink from 0 to 255, float64 (rows, columns), enlarged and trimmed to the rows and columns with ink."""
    width = max(round(height * stretch), 8)
    ink = np.asarray(PIL.Image.fromarray(glyph).resize((width, height), PIL.Image.Resampling.BICUBIC), np.float64)
    rows, columns = np.nonzero((ink > INK).any(1))[0], np.nonzero((ink > INK).any(0))[0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _background(rng: np.random.Generator) -> np.ndarray:
    """A textured background, float64 (128, 128, 3): noise of two scales, partly equal in all channels."""
    background = np.ones((SIDE, SIDE, 3)) * rng.uniform(50, 190, 3)
    for cells, strength in ((4, 32.0), (20, 16.0)):
        noise = rng.uniform(0, 255, (cells, cells, 3)) * 0.4 + rng.uniform(0, 255, (cells, cells, 1)) * 0.6
        clouds = PIL.Image.fromarray(noise.astype(np.uint8)).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
        background += (np.asarray(clouds, np.float64) / 127.5 - 1) * strength
    return background


def coco_subset(
    coco_dir: Path, out: Path, *, train: int = 10000, val: int = 1000, seed: int = 0, stratified: bool = False
) -> dict[str, Any]:
    """Draw ``train`` images of COCO's training set and ``val`` of its validation set, and lay them out under ``out``.

    ``out`` gets COCO's layout (links to the images, their annotations unchanged), YOLO labels, a data.yaml, and
    ``manifest.json``, whose content is returned: ids, seed, options and a digest over ids and contents. The same
    arguments draw the same images on every machine. The two sets share no image: a training image with the content of a
    drawn validation image is skipped. ``stratified`` draws the same share of every stratum, so that class frequencies
    stay as they are; an image's stratum is its rarest class.

    Missing and broken images are skipped and listed under ``problems``. Raises DataError where too few images are left,
    or where ``out`` holds something else.
    """
    coco_dir, out = Path(coco_dir).absolute(), Path(out).absolute()
    options = {"train": train, "val": val, "seed": seed, "stratified": stratified}
    if out.exists():
        return _read_manifest(out, options)
    if min(train, val) < 1:
        raise DataError(f"train {train}, val {val}: expected at least one image each")
    source = {split: load(file, split, coco_dir) for split, file in find_annotations(coco_dir).items()}
    findings = Findings(coco_dir)
    drawn: dict[str, list[Sample]] = {"train": [], "val": []}
    for split in ("val", "train"):  # validation first, because its images are excluded from training
        count, rng = options[split], np.random.default_rng([seed, SPLITS.index(split)])
        validated = {sample.sha for sample in drawn["val"]}
        records = source[split].images(findings)
        boxes = source[split].boxes(records, findings)
        for record in _draw_order(records, boxes, count, rng, stratified):
            if len(drawn[split]) == count:
                break
            if (sample := source[split].sample(record, boxes[record["id"]], findings)) is None:
                continue
            if sample.sha in validated:
                findings.note("training images skipped because they are drawn for validation", str(sample.path))
            else:
                drawn[split].append(sample)
        if len(drawn[split]) < count:
            problems = f" ({'; '.join(findings.settle('skip'))})" if findings.faults or findings.notes else ""
            left = f"only {len(drawn[split])} images to draw from{problems}"
            raise DataError(f"{source[split].file}: {split} {count}: {left}; ask for fewer, or complete the images")
        drawn[split].sort(key=_id)
    content = {split: [(_id(sample), sample.sha) for sample in drawn[split]] for split in SPLITS}
    manifest = {
        **options,
        "digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "problems": list(findings.settle("skip")),
        "source": {split: source[split].file.name for split in SPLITS},
        "ids": {split: [number for number, _ in content[split]] for split in SPLITS},
    }
    files = {split: f"annotations/instances_{split}.json" for split in SPLITS}
    with published(out, MANIFEST) as made:
        (made / "annotations").mkdir()
        for split in SPLITS:
            _write(made, split, source[split], drawn[split], made / files[split])
        _describe(made, dict(enumerate(source["train"].categories.values())), files)
        (made / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def _read_manifest(out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the subset at ``out``. Raises DataError if it was drawn with other options, or is no subset."""
    try:
        manifest = dict(json.loads(read_bytes(out / MANIFEST, MAX_TEXT)))
    except (OSError, ValueError, TypeError, RecursionError):
        raise DataError(f"{out}: exists and is no subset; name a folder that does not exist yet") from None
    if differ := [f"{key} {manifest.get(key)}" for key, value in options.items() if manifest.get(key) != value]:
        raise DataError(f"{out}: holds another draw ({', '.join(differ)}); name another folder or remove this one")
    return manifest


def _draw_order(
    records: Sequence[dict[str, Any]],
    boxes: Mapping[int, Sequence[Mapping[str, Any]]],
    count: int,
    rng: np.random.Generator,
    stratified: bool,
) -> list[dict[str, Any]]:
    """All images in the order in which they are drawn; it does not depend on the order of ``records``."""
    records = sorted(records, key=lambda record: int(record["id"]))
    shuffled = [records[i] for i in rng.permutation(len(records))]
    if not stratified:
        return shuffled
    classes = {image: {annotation["category_id"] for annotation in entries} for image, entries in boxes.items()}
    frequency = Counter(category for present in classes.values() for category in present)
    strata: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in shuffled:
        present = classes.get(record["id"])
        strata[min(present, key=lambda category: (frequency[category], category)) if present else -1].append(record)
    share = min(count / len(records), 1.0)
    quota = {stratum: int(len(members) * share) for stratum, members in strata.items()}
    by_remainder = sorted(strata, key=lambda s: (quota[s] - len(strata[s]) * share, s))  # the largest remainders first
    for stratum in by_remainder[: max(min(count, len(records)) - sum(quota.values()), 0)]:
        quota[stratum] += 1
    first = [record for stratum, members in strata.items() for record in members[: quota[stratum]]]
    rest = [record for stratum, members in strata.items() for record in members[quota[stratum] :]]
    return first + [rest[i] for i in rng.permutation(len(rest))]  # the rest is drawn only if images have to be skipped


def _write(out: Path, split: str, source: Annotations, drawn: Sequence[Sample], file: Path) -> None:
    """Write links and labels of one split under ``out``, and the unchanged annotations of its images to ``file``."""
    for sample in drawn:
        name = str((sample.record or {})["file_name"])
        link = out / "images" / split / name
        labels = (out / "labels" / split / name).with_suffix(".txt")
        link.parent.mkdir(parents=True, exist_ok=True)
        labels.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(sample.path.resolve())
        labels.write_text(label_text(sample.rows), encoding="utf-8")
    ids = {_id(sample) for sample in drawn}
    annotations = [entry for entry in source.content["annotations"] if entry.get("image_id") in ids]
    content = {**source.content, "images": [sample.record for sample in drawn], "annotations": annotations}
    file.write_text(json.dumps(content), encoding="utf-8")


def _id(sample: Sample) -> int:
    return int((sample.record or {})["id"])


def _describe(folder: Path, names: Mapping[int, str], annotations: Mapping[str, str]) -> None:
    """Write the data.yaml of a data set that lies in ``folder`` in both YOLO's and COCO's layout."""
    images = {split: f"images/{split}" for split in SPLITS}
    text = yaml.safe_dump({**images, "names": names, "annotations": annotations}, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def published(folder: Path, marker: str) -> Iterator[Path]:
    """A new empty folder, which is renamed to ``folder`` when the block ends, so that no process sees it incomplete.

    If another process has finished the same folder first (``folder`` contains ``marker``), the new one is removed.
    Raises DataError where it cannot be written, or where ``folder`` is something else.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
        made.chmod(0o755)
        yield made
    except OSError as error:
        problem = f"cannot write the data set there ({error.strerror})"
        raise DataError(f"{folder}: {problem}; expected a writable folder with enough free space") from None
    try:
        made.rename(folder)
    except OSError:
        shutil.rmtree(made)
        if not (folder / marker).is_file():
            raise DataError(f"{folder}: is no finished data set; remove it and run again") from None


def label_text(rows: np.ndarray) -> str:
    """The text of a YOLO label file of ``rows``, with nine digits, by which a trainer reads the exact float32 again."""
    exact = rows.astype(np.float32).tolist()
    return "".join(f"{int(row[0])} " + " ".join(f"{x:.9g}" for x in row[1:]) + "\n" for row in exact)
