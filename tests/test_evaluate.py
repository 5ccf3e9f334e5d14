"""COCO's metrics equal pycocotools run by hand, digit for digit, whatever is in the data."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sweeper import data
from sweeper.errors import DataError
from sweeper.training.evaluation import coco_summary

PRECISIONS = ["AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge"]
STATS = [*PRECISIONS, "AR1", "AR10", "AR100", "ARsmall", "ARmedium", "ARlarge"]  # the order of summarize()


@dataclass(frozen=True)
class Found:
    path: str
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def by_hand(file: Path, results: list[dict], folder: Path) -> dict[str, float]:
    """What somebody with two files and pycocotools' own demo gets: results.json through loadRes and summarize."""
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        run = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
        values = dict(zip(STATS, run.stats.tolist(), strict=True))
        for category in truth.loadCats(truth.getCatIds()):  # each class on its own, the slow and certain way
            alone = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
            alone.params.catIds = [category["id"]]
            alone.evaluate()
            alone.accumulate()
            alone.summarize()
            values[f"class {category['name']}"] = float(alone.stats[0])
    return values


def flat(result: dict) -> dict[str, float]:
    """Our result as pycocotools prints it: -1 for what there is not."""
    classes = {f"class {name}": value for name, value in result["classes"].items()}
    values = {**{key: result[key] for key in STATS}, **classes}
    return {key: -1.0 if value is None else value for key, value in values.items()}


def detect(file: Path, rng: np.random.Generator, extra: int = 4, ties: bool = True) -> list[Found]:
    """Noisy, doubled, invented and forgotten detections of the objects in a COCO json."""
    content = json.loads(file.read_text())
    index = {c["id"]: i for i, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
    found = []
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"] for _ in range(rng.integers(0, 3))]
        boxes = np.array([a["bbox"] for a in own], float).reshape(-1, 4)
        boxes += rng.normal(0, 0.08, boxes.shape) * boxes[:, [2, 3, 2, 3]]
        size = np.array([image["width"], image["height"]] * 2)
        boxes = np.vstack([boxes, rng.uniform(0, 0.6, (extra, 4)) * size])
        boxes[:, 2:] = boxes[:, :2] + np.abs(boxes[:, 2:])
        classes = np.array([index[a["category_id"]] for a in own] + rng.integers(0, len(index), extra).tolist(), int)
        scores = rng.uniform(0, 1, len(boxes))
        found.append(Found(f"/somewhere/{image['file_name']}", boxes, scores.round(1) if ties else scores, classes))
    return found


def results(file: Path, found: list[Found]) -> list[dict]:
    """The same detections as COCO wants them in a file."""
    content = json.loads(file.read_text())
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    order = sorted(c["id"] for c in content["categories"])
    return [
        {
            "image_id": ids[Path(one.path).name],
            "category_id": order[int(kind)],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for one in found
        for (x1, y1, x2, y2), score, kind in zip(
            one.boxes.tolist(), one.scores.tolist(), one.classes.tolist(), strict=True
        )
    ]


def assert_same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[key] for key in theirs], list(theirs.values()), rtol=0, atol=1e-9)


def small_coco(folder: Path, rng: np.random.Generator, images: int = 12) -> Path:
    """Annotations with everything odd that is allowed: see the tests that use it."""
    content: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": f"c{i}"} for i in (90, 7, 11, 3)],
    }
    for number in range(images):
        image = int(1000 - 13 * number)  # ids in another order than the images
        content["images"].append({"id": image, "file_name": f"{number}.jpg", "width": 640, "height": 480})
        for _ in range(int(rng.integers(0, 7)) if number else 0):  # the first image is without objects
            w, h = (float(value) for value in rng.uniform(4, 200, 2))
            own = {"image_id": image, "category_id": int(rng.choice([7, 11, 90]))}  # category 3 never occurs
            box = [float(rng.uniform(0, 400)), float(rng.uniform(0, 250)), w, h]
            crowd = int(rng.random() < 0.2)
            ident = len(content["annotations"]) + 1
            content["annotations"].append({**own, "id": ident, "bbox": box, "area": 0.7 * w * h, "iscrowd": crowd})
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json"


@pytest.mark.parametrize("layout", ["data.yaml", "."])
def test_both_layouts_of_bccd_equal_pycocotools(bccd: Path, tmp_path: Path, layout: str) -> None:
    dataset = data.open(bccd / layout, folder=tmp_path)
    found = detect(dataset.ground_truth(), np.random.default_rng(1))
    ours = flat(coco_summary(dataset, found))
    assert 0.05 < ours["AP"] < 0.95
    assert_same(ours, by_hand(dataset.ground_truth(), results(dataset.ground_truth(), found), tmp_path))


def test_a_coco_set_equals_pycocotools_on_the_annotations_as_they_were_given(bccd: Path, tmp_path: Path) -> None:
    """Conversion changed nothing that counts: the hand-made result uses the original file, ids and all."""
    dataset = data.open(bccd, folder=tmp_path)
    original = bccd / "annotations/instances_val.json"
    found = detect(original, np.random.default_rng(2))
    renamed = {Path(i["source"]).name: i["file_name"] for i in json.loads(dataset.ground_truth().read_text())["images"]}
    moved = [Found(renamed[Path(f.path).name], f.boxes, f.scores, f.classes) for f in found]
    assert_same(flat(coco_summary(dataset, moved)), by_hand(original, results(original, found), tmp_path))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans(), extra=st.integers(0, 30))
def test_random_detections_equal_pycocotools(tmp_path_factory, seed: int, ties: bool, extra: int) -> None:
    """Crowds, foreign areas, images without objects, an absent class, ties: the same numbers as by hand."""
    folder = tmp_path_factory.mktemp("random")
    rng = np.random.default_rng(seed)
    file = small_coco(folder, rng)
    found = detect(file, rng, extra, ties)
    if not any(len(one.boxes) for one in found):
        return  # loadRes cannot read an empty list; the next test is about that
    ours = flat(coco_summary(file, found))
    assert ours["class c3"] == -1
    assert_same(ours, by_hand(file, results(file, found), folder))


def test_nothing_found_is_zero_and_not_an_error(tmp_path: Path) -> None:
    file = small_coco(tmp_path, np.random.default_rng(0))
    none = Found("0.jpg", np.empty((0, 4)), np.empty(0), np.empty(0, int))
    for found in ([], [none]):
        result = coco_summary(file, found)
        assert (result["AP"], result["AR100"]) == (0.0, 0.0)
        assert result["classes"] == {"c3": None, "c7": 0.0, "c11": 0.0, "c90": 0.0}


def test_a_ground_truth_without_objects_has_no_ap(tmp_path: Path) -> None:
    """None, as COCO's -1 says: not 0, which would be a bad detector."""
    file = small_coco(tmp_path, np.random.default_rng(0))
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    result = coco_summary(file, [Found("1.jpg", np.array([[1, 1, 9, 9.0]]), np.ones(1), np.zeros(1, int))])
    assert {result[key] for key in STATS} == {None}


def one_object(folder: Path, **annotation: object) -> Path:
    own = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0, **annotation}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 99, "height": 99}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [own],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json"


def test_the_hundred_and_first_detection_does_not_count(tmp_path: Path) -> None:
    """100 better ones come first: the right one is the 101st and is lost; as the 100th it is found."""
    wrong, right = [70.0, 70, 90, 90], [10.0, 10, 60, 60]
    file = one_object(tmp_path)
    for before, recall in ((100, 0.0), (99, 1.0)):
        boxes = np.array([wrong] * before + [right])
        found = Found("a.jpg", boxes, np.linspace(1, 0.5, len(boxes)), np.zeros(len(boxes), int))
        assert coco_summary(file, [found])["AR100"] == recall


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    """Beside one ordinary object, three detections inside a crowd cost nothing; outside of it they would."""
    file = one_object(tmp_path)
    content = json.loads(file.read_text())
    crowd = {**content["annotations"][0], "id": 2, "bbox": [70, 70, 29, 29], "iscrowd": 1}
    boxes = np.array([[71.0, 71, 80, 80]] * 3 + [[10, 10, 60, 60]])
    found = Found("a.jpg", boxes, np.array([0.9, 0.8, 0.7, 0.6]), np.zeros(4, int))
    assert coco_summary(file, [found])["AP"] == pytest.approx(0.25)
    file.write_text(json.dumps({**content, "annotations": [*content["annotations"], crowd]}))
    assert coco_summary(file, [found])["AP"] == pytest.approx(1.0)


def test_nothing_is_rounded(tmp_path: Path) -> None:
    """IoU 0.9500001 passes 0.95 and 0.9499999 does not: save_json's three decimals could not tell them apart."""
    file = one_object(tmp_path, bbox=[0, 0, 1, 1], area=1)
    for width, ap in ((0.9500001, 1.0), (0.9499999, 0.9)):
        found = Found("a.jpg", np.array([[0, 0, width, 1]]), np.ones(1), np.zeros(1, int))
        assert coco_summary(file, [found])["AP"] == pytest.approx(ap)


def test_float32_detections_are_taken_as_they_are(tmp_path: Path) -> None:
    file = small_coco(tmp_path, np.random.default_rng(4))
    found = detect(file, np.random.default_rng(5))
    halves = [Found(f.path, f.boxes.astype("f4"), f.scores.astype("f4"), f.classes.astype("f4")) for f in found]
    again = [Found(f.path, f.boxes.astype("f8"), f.scores.astype("f8"), f.classes.astype(int)) for f in halves]
    assert coco_summary(file, halves) == coco_summary(file, again)


def test_annotation_id_zero_counts_in_an_opened_data_set(bccd: Path, tmp_path: Path) -> None:
    """pycocotools takes a match with annotation 0 for none; opening a data set numbers annotations from 1."""
    (tmp_path / "source/annotations").mkdir(parents=True)
    (tmp_path / "source/images").symlink_to(bccd / "images")
    for split in ("train", "val"):
        content = json.loads((bccd / f"annotations/instances_{split}.json").read_text())
        for number, annotation in enumerate(content["annotations"]):
            annotation["id"] = number
        (tmp_path / f"source/annotations/instances_{split}.json").write_text(json.dumps(content))
    dataset = data.open(tmp_path / "source", folder=tmp_path / "folder")
    truth = json.loads(dataset.ground_truth().read_text())
    found = []
    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in own], float)
        boxes[:, 2:] += boxes[:, :2]
        found.append(Found(image["file_name"], boxes, np.ones(len(own)), np.array([a["category_id"] - 1 for a in own])))
    assert coco_summary(dataset, found)["AP"] == pytest.approx(1.0)


def test_it_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = small_coco(tmp_path, np.random.default_rng(0))
    coco_summary(file, detect(file, np.random.default_rng(0)))
    assert capfd.readouterr() == ("", "")


def test_detections_of_another_image_are_refused(tmp_path: Path) -> None:
    other = Found("b.jpg", np.array([[0, 0, 1, 1]]), np.ones(1), np.zeros(1, int))
    with pytest.raises(DataError, match="does not list"):
        coco_summary(one_object(tmp_path), [other])


def test_a_file_that_is_no_ground_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as COCO annotations"):
        coco_summary(tmp_path / "gone.json", [])
