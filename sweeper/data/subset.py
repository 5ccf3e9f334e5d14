"""The article's draw from COCO 2017 (or any COCO layout): so many images at random, as links, told in a manifest."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sweeper.data.checks import Findings
from sweeper.data.coco import categories, find_annotations, find_image, load, row_of, unique
from sweeper.data.layout import MARKER, SPLITS, aside, label_text, publish, write
from sweeper.errors import DataError


def coco_subset(
    coco_dir: Path, out: Path, *, train: int = 10000, val: int = 1000, seed: int = 0, stratified: bool = False
) -> dict[str, Any]:
    """Draw ``train`` images of the training and ``val`` of the validation set, and lay them out under ``out``.

    The result is a COCO layout (links to the images, the annotations of the images drawn, word for word) with YOLO
    labels and a data.yaml beside, and ``manifest.json``, which is returned: ids, seed, options and a digest over names
    and contents. The same arguments draw the same images anywhere. The two sets share no image, by content: training
    images that are also drawn for validation are passed over. ``stratified`` draws the same share of every stratum,
    an image's stratum being its rarest class, so that class frequencies stay what they were.

    Raises DataError where images are missing or too few, or where ``out`` holds another draw.
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
    drawn: dict[str, list[tuple[dict[str, Any], Path, str]]] = {}
    seen: set[str] = set()
    for split, count in (("val", val), ("train", train)):  # val first: its images are the ones to keep out of training
        records = unique(contents[split]["images"], "images", files[split], findings)
        drawn[split] = []
        for record in _order(
            records,
            contents[split]["annotations"],
            count,
            np.random.default_rng([seed, SPLITS.index(split)]),
            stratified,
        ):
            if len(drawn[split]) == count:
                break
            path = find_image(str(record["file_name"]), split, files[split], coco_dir)
            if path is None:
                findings.fault("missing images", f"{files[split].name}: {record['file_name']}")
                continue
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            if split == "val" or sha not in seen:
                drawn[split].append((record, path, sha))
        seen = {sha for _, _, sha in drawn[split]}
        findings.settle("refuse")
        if len(drawn[split]) < count:
            raise DataError(
                f"{files[split]}: {split} {count}: only {len(drawn[split])} images to draw from; ask for fewer"
            )
    made = aside(out)
    for split in SPLITS:
        _write(made, split, drawn[split], contents[split], known)
    described: dict[str, Any] = {split: f"images/{split}" for split in SPLITS}
    described["names"] = dict(enumerate(known.values()))
    described["annotations"] = {split: f"annotations/instances_{split}.json" for split in SPLITS}
    write(made / "data.yaml", yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
    ids = {split: sorted(record["id"] for record, _, _ in drawn[split]) for split in SPLITS}
    content = {split: sorted((record["id"], sha) for record, _, sha in drawn[split]) for split in SPLITS}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    manifest = {**options, "digest": digest, "ids": ids, "source": {split: files[split].name for split in SPLITS}}
    write(made / "manifest.json", json.dumps(manifest, indent=1))
    write(made / MARKER, json.dumps({"digest": digest}))
    publish(made, out)
    return manifest


def _there(out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of an earlier draw with the same options; anything else under this name is left alone."""
    try:
        manifest = dict(json.loads((out / "manifest.json").read_text()))
    except (OSError, ValueError):
        raise DataError(f"{out}: exists and is no subset; name a folder that does not exist yet") from None
    if differ := [f"{key} {manifest.get(key)}" for key, value in options.items() if manifest.get(key) != value]:
        raise DataError(f"{out}: holds another draw ({', '.join(differ)}); name another folder or remove this one")
    return manifest


def _order(
    records: Sequence[dict[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    count: int,
    rng: np.random.Generator,
    stratified: bool,
) -> list[dict[str, Any]]:
    """All images in the order in which they are drawn, independent of the order in which the file lists them."""
    records = sorted(records, key=lambda record: int(record["id"]))
    shuffled = [records[i] for i in rng.permutation(len(records))]
    if not stratified:
        return shuffled
    classes: dict[int, set[int]] = defaultdict(set)
    for annotation in annotations:
        classes[annotation["image_id"]].add(annotation["category_id"])
    often = Counter(category for found in classes.values() for category in found)
    strata: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in shuffled:
        found = classes[record["id"]]
        strata[min(found, key=lambda category: (often[category], category)) if found else -1].append(record)
    share = min(count / len(records), 1.0)
    quota = {stratum: int(len(found) * share) for stratum, found in strata.items()}
    by_remainder = sorted(strata, key=lambda s: (quota[s] - len(strata[s]) * share, s))  # the largest remainders first
    for stratum in by_remainder[: max(min(count, len(records)) - sum(quota.values()), 0)]:
        quota[stratum] += 1
    first = [record for stratum, found in strata.items() for record in found[: quota[stratum]]]
    rest = [record for stratum, found in strata.items() for record in found[quota[stratum] :]]
    return first + [rest[i] for i in rng.permutation(len(rest))]  # the rest only where an image has to be passed over


def _write(
    out: Path,
    split: str,
    drawn: Sequence[tuple[dict[str, Any], Path, str]],
    content: Mapping[str, Any],
    known: Mapping[int, str],
) -> None:
    """Annotations, links and labels of one split; a broken box has no label row (data.open says so)."""
    index = {category: number for number, category in enumerate(known)}
    ids = {record["id"] for record, _, _ in drawn}
    annotations = [a for a in content["annotations"] if a.get("image_id") in ids]
    rows: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    sizes = {record["id"]: (record["width"], record["height"]) for record, _, _ in drawn}
    for annotation in annotations:
        if not annotation.get("iscrowd"):
            try:
                rows[annotation["image_id"]].append(
                    row_of(annotation, *sizes[annotation["image_id"]], index[annotation["category_id"]])
                )
            except (KeyError, ValueError):
                continue
    for record, path, _ in sorted(drawn, key=lambda entry: int(entry[0]["id"])):
        link = out / "images" / split / str(record["file_name"])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
        text = label_text(np.array(rows[record["id"]], dtype=np.float64).reshape(-1, 5))
        write((out / "labels" / split / str(record["file_name"])).with_suffix(".txt"), text)
    records = sorted((record for record, _, _ in drawn), key=lambda record: int(record["id"]))
    kept = {**content, "images": records, "annotations": annotations}
    write(out / "annotations" / f"instances_{split}.json", json.dumps(kept))
