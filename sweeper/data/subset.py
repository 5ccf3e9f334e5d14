"""The article's draw from COCO 2017 (or any COCO layout): so many images at random, as links, told in a manifest."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sweeper.data.checks import Findings, image_facts
from sweeper.data.coco import by_image, categories, find_annotations, find_image, load, sample_of, unique
from sweeper.data.layout import SPLITS, Sample, aside, label_text, publish, write
from sweeper.errors import DataError
from sweeper.reading import MAX_TEXT, read_bytes


def coco_subset(
    coco_dir: Path, out: Path, *, train: int = 10000, val: int = 1000, seed: int = 0, stratified: bool = False
) -> dict[str, Any]:
    """Draw ``train`` images of the training and ``val`` of the validation set, and lay them out under ``out``.

    The result is a COCO layout (links to the images, the annotations of the images drawn, word for word) with YOLO
    labels and a data.yaml beside, and ``manifest.json``, which is returned: ids, seed, options and a digest over ids
    and contents. The same arguments draw the same images anywhere. The two sets share no image, by content: training
    images that are also drawn for validation are passed over. ``stratified`` draws the same share of every stratum,
    an image's stratum being its rarest class, so that class frequencies stay what they were.

    Images that are missing or broken are passed over and listed under ``problems``. Raises DataError where too few are
    left, or where ``out`` holds something else.
    """
    coco_dir, out = Path(coco_dir).absolute(), Path(out).absolute()
    options = {"train": train, "val": val, "seed": seed, "stratified": stratified}
    if out.exists():
        return _there(out, options)
    if min(train, val) < 1:
        raise DataError(f"train {train}, val {val}: expected at least one image each")
    files = find_annotations(coco_dir)
    contents = {split: load(files[split]) for split in SPLITS}
    known = categories(files["train"], contents["train"])
    findings = Findings(coco_dir)
    drawn: dict[str, list[Sample]] = {"train": [], "val": []}
    for split, count in (("val", val), ("train", train)):  # val first: its images are the ones to keep out of training
        validated = {sample.sha for sample in drawn["val"]}
        drawn[split] = _draw(coco_dir, split, files[split], contents[split], known, options, validated, findings)
        if len(drawn[split]) < count:
            problems = "; ".join(findings.settle("skip"))
            there = f"only {len(drawn[split])} images to draw from{' (' + problems + ')' if problems else ''}"
            raise DataError(f"{files[split]}: {split} {count}: {there}; ask for fewer, or complete the images")
    content = {split: sorted((_id(sample), sample.sha) for sample in drawn[split]) for split in SPLITS}
    manifest = {
        **options,
        "digest": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        "problems": list(findings.settle("skip")),
        "source": {split: files[split].name for split in SPLITS},
        "ids": {split: [number for number, _ in content[split]] for split in SPLITS},
    }
    made = aside(out)
    for split in SPLITS:
        _write(made, split, sorted(drawn[split], key=_id), contents[split])
    described: dict[str, Any] = {split: f"images/{split}" for split in SPLITS}
    described["names"] = dict(enumerate(known.values()))
    described["annotations"] = {split: f"annotations/instances_{split}.json" for split in SPLITS}
    write(made / "data.yaml", yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
    write(made / "manifest.json", json.dumps(manifest, indent=1))
    publish(made, out, "manifest.json")
    return manifest


def _draw(
    coco_dir: Path,
    split: str,
    file: Path,
    content: Mapping[str, Any],
    known: Mapping[int, str],
    options: Mapping[str, Any],
    validated: Container[str],
    findings: Findings,
) -> list[Sample]:
    """So many images of one split, in the order of the draw; what cannot be used is passed over and listed."""
    records = unique(content["images"], "images", file, findings)
    index = {category: number for number, category in enumerate(known)}
    boxes = by_image(content, {record["id"] for record in records}, index, file, findings)
    rng = np.random.default_rng([options["seed"], SPLITS.index(split)])
    drawn: list[Sample] = []
    for record in _order(records, boxes, options[split], rng, options["stratified"]):
        if len(drawn) == options[split]:
            break
        path = find_image(str(record.get("file_name")), split, file, coco_dir)
        if path is None:
            findings.fault("missing images", f"{file.name}: {record.get('file_name')}")
            continue
        try:
            sha, width, height, _ = image_facts(path)
        except ValueError as error:
            findings.fault("broken images", f"{path} ({error})")
            continue
        if sha in validated:
            findings.note("training images passed over because they are drawn for validation", str(path))
        else:
            drawn.append(sample_of(path, (sha, width, height), record, boxes[record["id"]], index, file, findings))
    return drawn


def _there(out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of an earlier draw with the same options; anything else under this name is left alone."""
    try:
        manifest = dict(json.loads(read_bytes(out / "manifest.json", MAX_TEXT)))
    except (OSError, ValueError, TypeError, RecursionError):
        raise DataError(f"{out}: exists and is no subset; name a folder that does not exist yet") from None
    if differ := [f"{key} {manifest.get(key)}" for key, value in options.items() if manifest.get(key) != value]:
        raise DataError(f"{out}: holds another draw ({', '.join(differ)}); name another folder or remove this one")
    return manifest


def _order(
    records: Sequence[dict[str, Any]],
    boxes: Mapping[int, Sequence[Mapping[str, Any]]],
    count: int,
    rng: np.random.Generator,
    stratified: bool,
) -> list[dict[str, Any]]:
    """All images in the order in which they are drawn, independent of the order in which the file lists them."""
    records = sorted(records, key=lambda record: int(record["id"]))
    shuffled = [records[i] for i in rng.permutation(len(records))]
    if not stratified:
        return shuffled
    classes = {image: {annotation["category_id"] for annotation in listed} for image, listed in boxes.items()}
    often = Counter(category for present in classes.values() for category in present)
    strata: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in shuffled:
        present = classes.get(record["id"])
        strata[min(present, key=lambda category: (often[category], category)) if present else -1].append(record)
    share = min(count / len(records), 1.0)
    quota = {stratum: int(len(members) * share) for stratum, members in strata.items()}
    by_remainder = sorted(strata, key=lambda s: (quota[s] - len(strata[s]) * share, s))  # the largest remainders first
    for stratum in by_remainder[: max(min(count, len(records)) - sum(quota.values()), 0)]:
        quota[stratum] += 1
    first = [record for stratum, members in strata.items() for record in members[: quota[stratum]]]
    rest = [record for stratum, members in strata.items() for record in members[quota[stratum] :]]
    return first + [rest[i] for i in rng.permutation(len(rest))]  # the rest only where an image has to be passed over


def _write(out: Path, split: str, drawn: Sequence[Sample], content: Mapping[str, Any]) -> None:
    """Links, labels, and the annotations of the images drawn, word for word."""
    for sample in drawn:
        name = str((sample.record or {})["file_name"])
        link, labels = out / "images" / split / name, (out / "labels" / split / name).with_suffix(".txt")
        link.parent.mkdir(parents=True, exist_ok=True)
        labels.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(sample.path.resolve())
        labels.write_text(label_text(sample.rows), encoding="utf-8")
    ids = {_id(sample) for sample in drawn}
    annotations = [annotation for annotation in content["annotations"] if annotation.get("image_id") in ids]
    kept = {**content, "images": [sample.record for sample in drawn], "annotations": annotations}
    write(out / "annotations" / f"instances_{split}.json", json.dumps(kept))


def _id(sample: Sample) -> int:
    return int((sample.record or {})["id"])
