"""Data sets: what is accepted, what is refused and how, and what identifies them."""

import json
import multiprocessing
import shutil
from collections import Counter
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner
from ultralytics.data.utils import check_det_dataset

from sweeper import data
from sweeper.data.made import published
from sweeper.errors import DataError

NAMES = ["cat", "dog"]
LABEL = "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.125 0.125\n"


def picture(path: Path, shade: int, size: tuple[int, int] = (32, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, (shade, 90, 200)).save(path)
    return path


def yolo(top: Path, label: str = LABEL, train: int = 3, val: int = 2) -> Path:
    """A small data set in YOLO layout; its data.yaml."""
    for split, count in (("train", train), ("val", val)):
        (top / "labels" / split).mkdir(parents=True)
        for number in range(count):
            picture(top / "images" / split / f"{split}{number}.png", 10 * number + (100 if split == "val" else 0))
            (top / "labels" / split / f"{split}{number}.txt").write_text(label)
    return describe(top / "data.yaml", train="images/train", val="images/val", names=NAMES)


def describe(file: Path, **content: object) -> Path:
    file.write_text(yaml.safe_dump(content))
    return file


def coco(top: Path) -> Path:
    """A small data set in COCO layout: ids with gaps, one crowd, one image without objects."""
    for split, first in (("train", 100), ("val", 200)):
        images, annotations = [], []
        for number in range(3):
            picture(top / split / f"{number}.jpg", 10 * number + first)
            images.append({"id": first + 7 * number, "file_name": f"{number}.jpg", "width": 32, "height": 24})
            box = {"image_id": first + 7 * number, "area": 33.5, "iscrowd": 0}
            if number < 2:
                annotations.append({**box, "id": 10 * number, "category_id": 18, "bbox": [4.25, 3.0, 10.0, 12.5]})
                annotations.append({**box, "id": 10 * number + 1, "category_id": 3, "bbox": [20, 10, 8, 8]})
        annotations[1]["iscrowd"] = 1
        categories = [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (top / "annotations").mkdir(exist_ok=True)
        (top / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return top


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def tree(top: Path) -> dict[str, bytes]:
    return {str(file.relative_to(top)): file.read_bytes() for file in sorted(top.rglob("*")) if file.is_file()}


def refused(path: Path | str, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        data.open(path, folder=folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- the embedded digits -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> data.Dataset:
    return data.open("digits", folder=tmp_path_factory.mktemp("digits"))


def test_digits_are_what_they_are_said_to_be(digits: data.Dataset) -> None:
    """128-pixel canvases, 2 to 6 digits each, apart from one another, of every class and of varied sizes."""
    assert (digits.names, digits.problems) == (tuple("0123456789"), ())
    for split, count in (("train", digits.train_images), ("val", digits.val_images)):
        truth = json.loads(digits.ground_truth(split).read_text())
        assert len(truth["images"]) == len(digits.images(split)) == count
        heights, classes = set(), Counter()
        for image in truth["images"]:
            with PIL.Image.open(digits.folder / "images" / split / image["file_name"]) as opened:
                assert (opened.size, opened.mode) == ((128, 128), "RGB")
            boxes = [a["bbox"] for a in truth["annotations"] if a["image_id"] == image["id"]]
            assert 2 <= len(boxes) <= 6
            taken = np.zeros((128, 128), int)
            for x, y, w, h in boxes:
                assert x >= 0
                assert y >= 0
                assert x + w <= 128
                assert y + h <= 128
                taken[y : y + h, x : x + w] += 1
                heights.add(h)
            assert taken.max() == 1
        classes.update(a["category_id"] for a in truth["annotations"])
        assert len(classes) == 10
        assert max(heights) > 1.7 * min(heights)


def test_digits_labels_are_the_annotations(digits: data.Dataset) -> None:
    truth = json.loads(digits.ground_truth("val").read_text())
    for image in truth["images"]:
        rows = np.loadtxt(digits.folder / "labels/val" / (Path(image["file_name"]).stem + ".txt"), ndmin=2)
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        assert [a["category_id"] - 1 for a in own] == rows[:, 0].tolist()
        corners = (rows[:, 1:3] - rows[:, 3:] / 2) * 128
        np.testing.assert_array_equal([a["bbox"] for a in own], np.hstack([corners, rows[:, 3:] * 128]))


def _open_digits(folder: str) -> str:
    return data.open("digits", folder=Path(folder)).digest


def test_two_processes_that_race_for_the_digits_get_the_same_ones(tmp_path: Path, digits: data.Dataset) -> None:
    """Both are given the finished folder, nothing half-written stays behind, and the bytes are the same every time."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert set(pool.map(_open_digits, [str(tmp_path)] * 2, chunksize=1)) == {digits.digest}
    assert not list(tmp_path.glob(".writing-*"))


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    path = yolo(tmp_path / "source")
    first = data.open(path, folder=tmp_path / "folder")
    before = {file: file.lstat().st_mtime_ns for file in (tmp_path / "folder").rglob("*")}
    assert data.open(path, folder=tmp_path / "folder") == first
    assert {file: file.lstat().st_mtime_ns for file in (tmp_path / "folder").rglob("*")} == before


# -- data.yaml ---------------------------------------------------------------------------------------------------------


def test_a_data_yaml_is_laid_out_by_links_and_its_source_stays_untouched(tmp_path: Path) -> None:
    path = yolo(tmp_path / "source")
    before = tree(tmp_path / "source")
    opened = data.open(path, folder=tmp_path / "folder")
    assert (opened.train_images, opened.val_images, opened.names) == (3, 2, tuple(NAMES))
    assert tree(tmp_path / "source") == before
    assert all(image.is_symlink() for split in ("train", "val") for image in opened.images(split))
    described = yaml.safe_load(opened.yaml.read_text())
    assert (opened.yaml.parent / described["val"]).is_dir()
    assert described["names"] == {0: "cat", 1: "dog"}


def test_ground_truth_from_labels_is_in_pixels_of_the_true_size(tmp_path: Path) -> None:
    """A photograph stored lying down is measured as it is shown: 24 x 32, not 32 x 24."""
    path = yolo(tmp_path, label="1 0.5 0.5 0.25 0.5\n", val=1)
    exif = PIL.Image.Exif()
    exif[274] = 6
    (tmp_path / "images/val/val0.png").unlink()
    PIL.Image.new("RGB", (32, 24)).save(tmp_path / "images/val/val0.jpg", exif=exif)
    truth = json.loads(data.open(path, folder=tmp_path / "folder").ground_truth().read_text())
    assert [(i["width"], i["height"]) for i in truth["images"]] == [(24, 32)]
    assert [a["bbox"] for a in truth["annotations"]] == [[9.0, 8.0, 6.0, 16.0]]
    assert truth["annotations"][0]["id"] == 1
    assert truth["categories"][1] == {"id": truth["annotations"][0]["category_id"], "name": "dog"}


@pytest.mark.parametrize("way", ["folder", "list of folders", "txt", "path:", "names as a mapping"])
def test_the_ways_to_say_where_images_are_are_one_data_set(tmp_path: Path, way: str) -> None:
    """The digest knows neither names nor places, so it tells that these are the same."""
    plain = data.open(yolo(tmp_path / "a"), folder=tmp_path / "folder").digest
    path, top = yolo(tmp_path / "b"), tmp_path / "b"
    content = yaml.safe_load(path.read_text())
    if way == "list of folders":
        (top / "images/more").mkdir()
        (top / "labels/more").mkdir()
        (top / "images/train/train1.png").rename(top / "images/more/other.png")
        (top / "labels/train/train1.txt").rename(top / "labels/more/other.txt")
        content["train"] = ["images/train", "images/more"]
    elif way == "txt":
        (top / "lists").mkdir()
        (top / "lists/train.txt").write_text("".join(f"images/train/train{n}.png\n" for n in (2, 0, 1)))
        (top / "val.txt").write_text("./images/val/val1.png\n\n./images/val/val0.png\n")
        content |= {"train": "lists/train.txt", "val": "val.txt"}
    elif way == "path:":
        path = (tmp_path / "elsewhere").with_suffix(".yaml")
        content["path"] = "b"
    elif way == "names as a mapping":
        content["names"] = {1: "chien", 0: "chat"}
    assert data.open(describe(path, **content), folder=tmp_path / "folder").digest == plain


@pytest.mark.parametrize("what", ["a pixel", "a label", "a class more", "one image less", "the splits exchanged"])
def test_whatever_changes_the_training_changes_the_digest(tmp_path: Path, what: str) -> None:
    path, folder = yolo(tmp_path), tmp_path / "folder"
    before = data.open(path, folder=folder).digest
    content = yaml.safe_load(path.read_text())
    if what == "a pixel":
        picture(tmp_path / "images/val/val0.png", 99)
    elif what == "a label":
        (tmp_path / "labels/train/train0.txt").write_text(LABEL.replace("0.125\n", "0.12501\n"))
    elif what == "a class more":
        content["names"] = [*NAMES, "cow"]
    elif what == "one image less":
        (tmp_path / "images/train/train0.png").unlink()
    else:
        content |= {"train": content["val"], "val": content["train"]}
    assert data.open(describe(path, **content), folder=folder).digest != before


def test_order_of_training_follows_from_content_not_from_names(tmp_path: Path) -> None:
    """Ultralytics orders by name; two copies of one data set under other names must train alike."""
    orders = []
    for name, flip in (("a", False), ("b", True)):
        path = yolo(tmp_path / name)
        if flip:
            for kind, suffix in (("images", "png"), ("labels", "txt")):
                for number in range(3):
                    folder = tmp_path / name / kind / "train"
                    (folder / f"train{number}.{suffix}").rename(folder / f"z{9 - number}.{suffix}")
        opened = data.open(path, folder=tmp_path / "folder")
        orders.append([image.read_bytes() for image in opened.images("train")])
    assert orders[0] == orders[1]


def test_a_data_set_that_moved_is_found_again(tmp_path: Path) -> None:
    """Same content, same digest; but the links lead to where the images are now."""
    first = data.open(yolo(tmp_path / "here"), folder=tmp_path / "folder")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = data.open(tmp_path / "there/data.yaml", folder=tmp_path / "folder")
    assert moved.digest == first.digest
    assert all(image.is_file() for image in moved.images("val"))


def test_the_folder_with_its_layouts_can_be_moved(tmp_path: Path) -> None:
    """The digits lie in it, so they are laid out anew, with links to where they are now."""
    first = data.open("digits", folder=tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = data.open("digits", folder=tmp_path / "there")
    assert moved.digest == first.digest
    assert all(image.is_file() for split in ("train", "val") for image in moved.images(split))
    assert not (tmp_path / "here").exists()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "holds a list; expected a mapping"),
        ("a: [1\n", "cannot be read as YAML"),
        ("val: images/val\nnames: [cat]\n", "train: is missing"),
        ("train: images/train\nnames: [cat]\n", "val: is missing"),
        ("train: nowhere\nval: images/val\nnames: [cat, dog]\n", "nowhere is not there"),
        ("train: labels\nval: images/val\nnames: [cat, dog]\n", "no images in labels"),
        ("path: gone\ntrain: images/train\nval: images/val\nnames: [cat]\n", "path: gone is no folder"),
        ("train: images/train\nval: images/val\n", "names: None is no list"),
        ("train: images/train\nval: images/val\nnames: {0: cat, 2: dog}\n", "expected 0 to 1"),
        ("train: images/train\nval: images/val\nnames: [cat, dog]\nnc: 3\n", "nc: 3 contradicts the 2 classes"),
        ("train: images/train\nval: images/val\nnames: [cat, cat]\n", "'cat' occurs twice"),
    ],
)
def test_a_data_yaml_that_cannot_be_is_refused_in_one_line(tmp_path: Path, content: str | None, says: str) -> None:
    path = yolo(tmp_path / "source")
    path.unlink()
    if content is not None:
        path.write_text(content)
    message = refused(path, tmp_path / "folder")
    assert says in message
    assert str(path) in message
    assert not (tmp_path / "folder").exists()


def test_a_polygon_is_taken_for_the_box_around_it(tmp_path: Path) -> None:
    """Ultralytics' labels of COCO are polygons."""
    path = yolo(tmp_path / "source")
    with (tmp_path / "source/labels/val/val1.txt").open("a") as file:
        file.write("0 0.25 0.5 0.75 0.5 0.5 0.875\n")
    opened = data.open(path, folder=tmp_path / "folder")
    assert any("polygons" in problem for problem in opened.problems)
    boxes = [file.read_text() for file in (opened.folder / "labels" / "val").iterdir()]
    assert any("0 0.5 0.6875 0.5 0.375\n" in box for box in boxes)


def test_what_is_no_data_set_is_told_in_one_short_line(tmp_path: Path) -> None:
    annotations = [{"id": number, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]} for number in range(10_000)]
    (tmp_path / "instances_val.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    message = refused(tmp_path / "instances_val.json", tmp_path / "folder")
    assert "name the folder" in message
    assert len(message) < 400
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected a writable folder"), published(tmp_path / "file" / "x", ""):
        pass


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 3: class 2, the data have 2 classes, 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "class -1"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5"),
        ("0 0.5 0.5 0.1", "line 3: 4 words"),
        ("0 0.1 0.1 0.9 0.1 0.9", "line 3: 6 words"),
        ("0 0.5 x 0.1 0.1", "not five numbers"),
        ("0 0.5 nan 0.1 0.1", "not five numbers"),
        ("0 64 0.5 0.1 0.1", "outside 0 to 1: 1, first"),
        ("0 0.5 -0.1 0.1 0.1", "line 3: -0.1"),
        ("0 0.5 0.5 0 0.1", "boxes without area"),
    ],
)
def test_an_impossible_label_is_refused_or_skipped_never_overlooked(tmp_path: Path, row: str, says: str) -> None:
    path = yolo(tmp_path / "source")
    clean = data.open(path, folder=tmp_path / "folder")
    with (tmp_path / "source/labels/val/val1.txt").open("a") as file:
        file.write(row + "\n")
    message = refused(path, tmp_path / "folder")
    assert says in message
    assert "labels/val/val1.txt" in message
    skipped = data.open(path, folder=tmp_path / "folder", invalid="skip")
    assert skipped.digest == clean.digest
    assert [p.startswith("skipped: ") and says in p for p in skipped.problems] == [True]


def test_rounding_beyond_the_edge_is_no_fault(tmp_path: Path) -> None:
    assert data.open(yolo(tmp_path, label="0 1.000001 0.5 0.1 0.1\n"), folder=tmp_path / "folder").problems == ()


@pytest.mark.parametrize("how", ["no image", "half a PNG", "half a JPEG", "tiny", "empty"])
def test_a_broken_image_is_refused_or_skipped(tmp_path: Path, how: str) -> None:
    """Ultralytics would leave it out of the training and say so in the middle of its log."""
    path = yolo(tmp_path / "source")
    image = tmp_path / "source/images/train/train1.png"
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    if how == "tiny":
        picture(image, 9, (9, 30))
    elif how == "half a JPEG":
        noise.save(image, "JPEG")
        image.write_bytes(image.read_bytes()[:2000])
    elif how == "half a PNG":
        noise.save(image)
        image.write_bytes(image.read_bytes()[:2000])
    else:
        image.write_bytes(b"" if how == "empty" else b"not an image at all")
    message = refused(path, tmp_path / "folder")
    assert "broken images: 1, first" in message
    assert "train1.png" in message
    skipped = data.open(path, folder=tmp_path / "folder", invalid="skip")
    assert skipped.train_images == 2
    assert "broken images: 1" in skipped.problems[0]


def test_faults_are_counted_by_kind(tmp_path: Path) -> None:
    message = refused(yolo(tmp_path, label="0 0.5 0.5 2 2\n7 0.5 0.5 0.1 0.1\n"), tmp_path / "folder")
    assert "label coordinates outside 0 to 1: 5, first" in message
    assert "labels of a class that does not exist: 5, first" in message


def test_a_split_without_any_label_is_refused(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    shutil.rmtree(tmp_path / "labels/val")
    assert "val: none of 2 images has a label" in refused(path, tmp_path / "folder")


def test_what_is_odd_but_allowed_is_listed(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    (tmp_path / "labels/train/train2.txt").unlink()
    (tmp_path / "labels/val/val1.txt").write_text(LABEL + LABEL)
    shutil.copy(tmp_path / "images/train/train0.png", tmp_path / "images/val/val0.png")
    problems = "\n".join(data.open(path, folder=tmp_path / "folder").problems)
    assert "train images without a label file, taken as background: 1, first images/train/train2.png" in problems
    assert "repeated label rows, used once: 2, first labels/val/val1.txt line 3" in problems
    assert "images in both train and val: 1, first" in problems


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for source in (yolo(tmp_path / "source"), "digits"):
        assert "cannot write the data set there" in refused(source, tmp_path / "file" / "below")


# -- COCO --------------------------------------------------------------------------------------------------------------


def test_a_coco_folder_keeps_ids_areas_and_crowds_and_trains_on_the_rest(tmp_path: Path) -> None:
    before = tree(coco(tmp_path / "source"))
    opened = data.open(tmp_path / "source", folder=tmp_path / "folder")
    assert tree(tmp_path / "source") == before
    assert opened.names == ("cat", "dog")  # in the order of ids, 3 and 18
    truth = json.loads(opened.ground_truth().read_text())
    assert sorted(image["id"] for image in truth["images"]) == [200, 207, 214]
    assert all(isinstance(a["id"], int) and a["id"] > 0 for a in truth["annotations"])
    assert {a["area"] for a in truth["annotations"]} == {33.5}
    assert [a["iscrowd"] for a in truth["annotations"] if a["image_id"] == 200] == [0, 1]
    (first,) = (image["file_name"] for image in truth["images"] if image["id"] == 200)
    rows = np.loadtxt(opened.folder / "labels/val" / (Path(first).stem + ".txt"), ndmin=2)
    np.testing.assert_allclose(rows, [[1, 9.25 / 32, 9.25 / 24, 10 / 32, 12.5 / 24]], rtol=1e-7)
    assert opened.problems == (
        "crowds, in the ground truth but not in the labels: 2, first instances_train.json: annotation 1",
    )


def test_a_data_yaml_may_name_coco_annotations(tmp_path: Path) -> None:
    coco(tmp_path)
    files = {split: f"annotations/instances_{split}.json" for split in ("train", "val")}
    path = describe(tmp_path / "data.yaml", train="train", val="val", annotations=files, names=["cat", "dog"])
    folder = tmp_path / "folder"
    assert data.open(path, folder=folder).digest == data.open(tmp_path, folder=folder).digest
    path = describe(tmp_path / "data.yaml", train="train", val="val", annotations=files, names=["dog", "cat"])
    assert "names: dog, cat are not the categories" in refused(path, tmp_path / "folder")


def _drop_image(content: dict) -> None:
    content["images"][0]["file_name"] = "gone.jpg"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 4]), "broken boxes: 1"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "expected four numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "broken boxes: 1"),
        (lambda c: c["annotations"][0].update(bbox=[50, 2, 3, 4]), "no area inside its image of 32x24"),
        (lambda c: c["annotations"][1].update(id=0), "annotations whose id occurs twice: 1, first"),
        (lambda c: c["images"][1].update(id=200), "images whose id occurs twice: 1, first"),
        (lambda c: c["annotations"][0].update(image_id=1), "annotations of an image that is not listed: 1"),
        (lambda c: c["annotations"][0].update(image_id=[1]), "annotations of an image that is not listed: 1"),
        (lambda c: c["annotations"][0].update(category_id=4), "category_id 4, 2 categories are listed"),
        (lambda c: c["annotations"][0].update(category_id=[4]), "category_id [4], 2 categories are listed"),
        (_drop_image, "missing images: 1, first instances_val.json: gone.jpg"),
    ],
)
def test_broken_annotations_are_refused_or_skipped(tmp_path: Path, change, says: str) -> None:
    coco(tmp_path / "source")
    edit(tmp_path / "source/annotations/instances_val.json", change)
    assert says in refused(tmp_path / "source", tmp_path / "folder")
    skipped = data.open(tmp_path / "source", folder=tmp_path / "folder", invalid="skip")
    assert any(line.startswith("skipped: ") and says in line for line in skipped.problems)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("annotations"), "has no list annotations"),
        (lambda c: c["categories"].pop(), "categories: differ from those of instances_train.json"),
        (lambda c: c["categories"].append({"id": 3, "name": "x"}), "id 3 occurs twice"),
        (lambda c: c["images"].clear(), "images: none"),
    ],
)
def test_annotations_that_cannot_be_used_at_all_are_refused(tmp_path: Path, change, says: str) -> None:
    coco(tmp_path / "source")
    edit(tmp_path / "source/annotations/instances_val.json", change)
    assert says in refused(tmp_path / "source", tmp_path / "folder")


def test_an_export_of_roboflow_is_taken_as_ultralytics_takes_it(tmp_path: Path) -> None:
    """Its data.yaml says ``../train/images`` for the folder beside it."""
    top = tmp_path / "exported"
    for split, shade in (("train", 0), ("valid", 100)):
        picture(top / split / "images" / f"{split}.png", shade)
        (top / split / "labels").mkdir()
        (top / split / "labels" / f"{split}.txt").write_text(LABEL)
    file = describe(top / "data.yaml", train="../train/images", val="../valid/images", nc=len(NAMES), names=NAMES)
    theirs = check_det_dataset(str(file), autodownload=False)
    opened = data.open(file, folder=tmp_path / "folder")
    sources = [json.loads(opened.ground_truth(split).read_text())["images"][0]["source"] for split in ("train", "val")]
    assert [str(Path(source).parent) for source in sources] == [theirs["train"], theirs["val"]]


def test_a_folder_that_holds_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "neither annotations/*.json, Annotations/*.xml nor data.yaml" in refused(
        tmp_path / "empty", tmp_path / "folder"
    )
    (tmp_path / "empty/annotations").mkdir()
    assert "expected one file, found none" in refused(tmp_path / "empty", tmp_path / "folder")


def test_a_folder_beside_the_data_set_is_answered_with_the_right_one(tmp_path: Path) -> None:
    """A clone of BCCD has VOC's layout one folder down, and VOC's own archive two."""
    voc = tmp_path / "clone/VOC2012"
    for folder in ("Annotations", "JPEGImages/more"):
        (voc / folder).mkdir(parents=True)
    (voc / "Annotations/0.xml").touch()
    for wrong in (voc.parent, voc / "Annotations", voc / "JPEGImages/more"):
        assert f"expected {voc}, which has" in refused(wrong, tmp_path / "folder")


def test_both_layouts_of_bccd_hold_the_same_boxes(bccd: Path, tmp_path: Path) -> None:
    by_yaml, by_coco = (data.open(path, folder=tmp_path) for path in (bccd / "data.yaml", bccd))
    assert (by_yaml.train_images, by_yaml.val_images, by_yaml.names) == (205, 87, ("RBC", "WBC", "Platelets"))
    assert (by_coco.train_images, by_coco.val_images, by_coco.names) == (205, 87, by_yaml.names)
    boxes = []
    for opened in (by_yaml, by_coco):
        truth = json.loads(opened.ground_truth().read_text())
        source = {image["id"]: image["source"] for image in truth["images"]}
        entries = [(source[a["image_id"]], a["category_id"], *a["bbox"]) for a in truth["annotations"]]
        entries.sort(key=lambda entry: (*entry[:2], *map(round, entry[2:])))
        boxes.append(np.array([entry[2:] for entry in entries]))
    np.testing.assert_allclose(*boxes, atol=2e-3)


# -- Pascal VOC --------------------------------------------------------------------------------------------------------


def as_voc(bccd: Path, folder: Path, *, lists: bool = True) -> Path:
    """BCCD's photographs in the layout of Pascal VOC, made from their COCO annotations."""
    (folder / "Annotations").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split in ("train", "val"):
        truth = json.loads((bccd / "annotations" / f"instances_{split}.json").read_text())
        names = {entry["id"]: entry["name"] for entry in truth["categories"]}
        stems = []
        for image in truth["images"]:
            stems.append(Path(image["file_name"]).stem)
            (folder / "JPEGImages" / f"{stems[-1]}.jpg").symlink_to(bccd / "images" / split / image["file_name"])
            objects = ""
            for entry in truth["annotations"]:
                if entry["image_id"] == image["id"]:
                    x, y, width, height = entry["bbox"]
                    corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
                    bounds = "".join(f"<{key}>{value!r}</{key}>" for key, value in corners.items())
                    objects += f"<object><name>{names[entry['category_id']]}</name><bndbox>{bounds}</bndbox></object>"
            (folder / "Annotations" / f"{stems[-1]}.xml").write_text(f"<annotation>{objects}</annotation>")
        if lists:
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return folder


def test_vocs_layout_of_bccd_holds_the_same_boxes(bccd: Path, tmp_path: Path) -> None:
    by_voc, by_coco = (data.open(path, folder=tmp_path) for path in (as_voc(bccd, tmp_path / "voc"), bccd))
    assert by_voc.names == ("Platelets", "RBC", "WBC")
    assert (by_voc.train_images, by_voc.val_images) == (205, 87)
    boxes = []
    for opened in (by_voc, by_coco):
        truth = json.loads(opened.ground_truth().read_text())
        source = {image["id"]: Path(image["source"]).stem for image in truth["images"]}
        names = {entry["id"]: entry["name"] for entry in truth["categories"]}
        entries = [(source[a["image_id"]], names[a["category_id"]], *a["bbox"]) for a in truth["annotations"]]
        boxes.append(sorted(entries, key=lambda entry: (*entry[:2], *map(round, entry[2:]))))
    assert [entry[:2] for entry in boxes[0]] == [entry[:2] for entry in boxes[1]]
    np.testing.assert_allclose(*([entry[2:] for entry in entries] for entries in boxes), atol=2e-3)


def test_voc_without_lists_is_split_the_same_way_each_time(bccd: Path, tmp_path: Path) -> None:
    folder = as_voc(bccd, tmp_path / "voc", lists=False)
    opened = data.open(folder, folder=tmp_path / "out")
    assert opened.train_images + opened.val_images == 292
    assert 40 <= opened.val_images <= 80
    assert any("images for validation" in problem for problem in opened.problems)
    assert data.open(folder, folder=tmp_path / "again").digest == opened.digest


VOC_OBJECT = (
    "<object><name>a</name>{}<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>5</ymax></bndbox></object>"
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("<annotation>", "annotation files that cannot be read: 1, first b.xml"),
        ("<annotation><object><name>a</name></object></annotation>", "without a <name> or a <bndbox>"),
        (f"<annotation>{VOC_OBJECT.format('', 'x')}</annotation>", "without four numbers"),
        (
            f"<annotation>{VOC_OBJECT.format('', -7)}</annotation>",
            "broken boxes: 1, first Annotations: annotation b.xml, a:",
        ),
    ],
)
def test_a_broken_voc_annotation_is_refused_or_skipped(tmp_path: Path, content: str, says: str) -> None:
    folder = voc_of_two(tmp_path / "voc")
    (folder / "Annotations" / "b.xml").write_text(content)
    assert says in refused(folder, tmp_path / "out")
    assert any(says in problem for problem in data.open(folder, folder=tmp_path / "out", invalid="skip").problems)


def test_voc_leaves_difficult_objects_out_and_takes_the_whole_image_for_a_box_of_its_size(tmp_path: Path) -> None:
    folder = voc_of_two(tmp_path / "voc")
    both = VOC_OBJECT.format("<difficult>1</difficult>", 20) + VOC_OBJECT.format("", 32)
    (folder / "Annotations" / "b.xml").write_text(f"<annotation>{both}</annotation>")
    opened = data.open(folder, folder=tmp_path / "out")
    assert any("difficult" in problem for problem in opened.problems)
    boxes = [annotation["bbox"] for annotation in json.loads(opened.ground_truth().read_text())["annotations"]]
    assert sorted(box[2] for box in boxes) == pytest.approx([5, 32])
    assert all(box[:2] == pytest.approx([0, 0]) and box[3] == pytest.approx(5) for box in boxes)


def test_a_voc_box_beyond_its_image_is_clipped_and_a_repeated_one_counts_once(tmp_path: Path) -> None:
    folder = voc_of_two(tmp_path / "voc")
    boxes = VOC_OBJECT.format("", 40) + VOC_OBJECT.format("", 40)
    (folder / "Annotations" / "b.xml").write_text(f"<annotation>{boxes}</annotation>")
    opened = data.open(folder, folder=tmp_path / "folder")
    assert {problem.partition(":")[0] for problem in opened.problems} == {
        "boxes that leave their image, clipped in the labels",
        "repeated boxes, used once in the labels",
    }
    annotations = json.loads(opened.ground_truth().read_text())["annotations"]
    boxes_of_both = sorted((entry["bbox"], entry["area"]) for entry in annotations)
    assert boxes_of_both == [([0, 0, 5, 5], 5 * 5), ([0, 0, 32, 5], 32 * 5)]


def test_voc_lists_that_share_an_image_are_refused(tmp_path: Path) -> None:
    folder = voc_of_two(tmp_path / "voc")
    (folder / "ImageSets" / "Main" / "val.txt").write_text("a\nb\n")
    assert "a is in train.txt and in val.txt" in refused(folder, tmp_path / "out")


def voc_of_two(folder: Path) -> Path:
    """Image ``a`` to train on, ``b`` and ``c`` to validate on, 32 pixels wide, an object each."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for stem, split in (("a", "train"), ("b", "val"), ("c", "val")):
        PIL.Image.new("RGB", (32, 24), (ord(stem), 0, 0)).save(folder / "JPEGImages" / f"{stem}.png")
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{VOC_OBJECT.format('', 5)}</annotation>")
        with (folder / "ImageSets" / "Main" / f"{split}.txt").open("a") as lines:
            lines.write(f"{stem}\n")
    return folder


# -- the article's draw ------------------------------------------------------------------------------------------------


def test_coco_subset_draws_links_and_says_which(bccd: Path, tmp_path: Path) -> None:
    manifest = data.coco_subset(bccd, tmp_path / "out", train=60, val=30, seed=3)
    assert manifest == json.loads((tmp_path / "out/manifest.json").read_text())
    assert {split: len(set(ids)) for split, ids in manifest["ids"].items()} == {"train": 60, "val": 30}
    links = list((tmp_path / "out/images").rglob("*.jpg"))
    assert len(links) == 90
    assert all(link.is_symlink() and bccd.resolve() in link.resolve().parents for link in links)
    source = json.loads((bccd / "annotations/instances_train.json").read_text())
    drawn = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    ids = set(manifest["ids"]["train"])
    assert drawn["annotations"] == [a for a in source["annotations"] if a["image_id"] in ids]
    assert drawn["categories"] == source["categories"]


def test_coco_subset_is_a_data_set_both_ways(bccd: Path, tmp_path: Path) -> None:
    """Its data.yaml and its folder are the same COCO layout; its labels alone are the same data in YOLO layout."""
    out = tmp_path / "out"
    data.coco_subset(bccd, out, train=20, val=10, seed=0)
    as_yaml, as_folder = (data.open(path, folder=tmp_path / "folder") for path in (out / "data.yaml", out))
    assert (as_yaml.train_images, as_yaml.val_images) == (20, 10)
    content = yaml.safe_load((out / "data.yaml").read_text())
    content.pop("annotations")
    labels = data.open(describe(out / "labels.yaml", **content), folder=tmp_path / "folder")
    assert as_yaml.digest == as_folder.digest == labels.digest


def test_coco_subset_is_reproducible_and_depends_on_its_seed(bccd: Path, tmp_path: Path) -> None:
    def draw(name: str, seed: int) -> dict:
        return data.coco_subset(bccd, tmp_path / name, train=30, val=10, seed=seed)

    first = draw("a", 0)
    assert draw("b", 0) == first
    assert draw("a", 0) == first  # what is there is kept
    assert draw("c", 1)["digest"] != first["digest"]
    with pytest.raises(DataError, match="holds another draw \\(seed 0\\)"):
        draw("a", 2)


def test_coco_subset_does_not_depend_on_the_order_of_the_file(bccd: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bccd, copy)
    edit(copy / "annotations/instances_train.json", lambda c: c["images"].reverse())
    one, other = (data.coco_subset(at, tmp_path / at.name / "out", train=9, val=3) for at in (copy, copy))
    original = tmp_path / "original"
    original.mkdir()
    (original / "annotations").symlink_to(bccd / "annotations")
    (original / "images").symlink_to(bccd / "images")
    assert one == other
    assert one["ids"] == data.coco_subset(original, tmp_path / "out", train=9, val=3)["ids"]


def test_coco_subset_shares_no_image_between_its_sets(tmp_path: Path) -> None:
    """A training image that is also drawn for validation, whatever its name, is skipped and listed."""
    coco(tmp_path / "source")
    shutil.copy(tmp_path / "source/val/1.jpg", tmp_path / "source/train/0.jpg")
    manifest = data.coco_subset(tmp_path / "source", tmp_path / "out", train=2, val=3)
    assert manifest["ids"]["train"] == [107, 114]
    assert "skipped because they are drawn for validation: 1" in manifest["problems"][-1]


def test_stratified_coco_subset_keeps_the_frequencies_of_the_classes(bccd: Path, tmp_path: Path) -> None:
    """Over several seeds the share of images with the rarest class strays less than in a plain draw, by much."""

    def strays(stratified: bool) -> float:
        off = []
        for seed in range(6):
            out = tmp_path / f"{stratified}{seed}"
            data.coco_subset(bccd, out, train=40, val=1, seed=seed, stratified=stratified)
            off.append(share(out) - share(bccd))
        return float(np.sqrt(np.mean(np.square(off))))

    def share(top: Path) -> float:
        content = json.loads((top / "annotations/instances_train.json").read_text())
        with_it = Counter(c for _, c in {(a["image_id"], a["category_id"]) for a in content["annotations"]})
        return min(with_it.values()) / len(content["images"])

    stratified = strays(True)
    assert stratified < 0.02
    assert strays(False) > 2 * stratified


@pytest.mark.parametrize(
    ("asked", "says"), [({"train": 500}, "only 205 images to draw from"), ({"val": 0}, "at least one")]
)
def test_coco_subset_says_what_it_cannot_draw(bccd: Path, tmp_path: Path, asked: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        data.coco_subset(bccd, tmp_path / "out", **{"train": 10, "val": 10, **asked})
    assert not (tmp_path / "out").exists()


def test_coco_subset_leaves_a_foreign_folder_alone(bccd: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="is no subset"):
        data.coco_subset(bccd, tmp_path, train=10, val=10)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


# -- the command line --------------------------------------------------------------------------------------------------


def run(*argv: object) -> Result:
    from sweeper.cli import app

    return CliRunner().invoke(app, ["data", *map(str, argv)])


def test_data_check_says_what_is_there(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    (tmp_path / "labels/train/train2.txt").unlink()
    result = run("check", path)
    assert result.exit_code == 0
    assert "3 train, 2 val" in result.output
    assert "taken as background: 1" in result.output
    printed = json.loads(run("check", path, "--json").output)
    assert printed["digest"] == data.open(path, folder=tmp_path / "folder").digest


def test_data_check_refuses_like_a_run_would(tmp_path: Path) -> None:
    path = yolo(tmp_path, label="5 0.5 0.5 0.1 0.1\n")
    refusal = run("check", path)
    assert isinstance(refusal.exception, DataError)
    assert "class 5" in str(refusal.exception)


def test_data_coco_subset_command(bccd: Path, tmp_path: Path) -> None:
    result = run("coco-subset", "--train", 12, "--val", 4, "--seed", 5, bccd, tmp_path / "out")
    assert result.exit_code == 0
    assert "12 + 4 images" in result.output
    assert json.loads((tmp_path / "out/manifest.json").read_text())["seed"] == 5


# -- a part of it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "count"), [({"fraction": 0.3}, 4), ({"fraction": 7}, 7), ({"single_cls": True, "fraction": 0.5}, 6)]
)
def test_fraction_and_single_cls_are_ultralytics_own(
    tmp_path: Path, digits: data.Dataset, part: dict[str, Any], count: int
) -> None:
    from sweeper.training import models  # noqa: F401  before Ultralytics

    # isort: split
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.utils import DEFAULT_CFG

    source = tmp_path / "source"
    for number, image in enumerate(digits.images("train")[:12]):  # in another order than ours, which is by content
        name = f"{number * 5 % 12:02}"
        labels = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt").read_text()
        for kind in ("images", "labels"):
            (source / kind).mkdir(parents=True, exist_ok=True)
        (source / "images" / (name + image.suffix)).write_bytes(image.read_bytes())
        (source / "labels" / (name + ".txt")).write_text(labels)
    file = source / "data.yaml"
    file.write_text(yaml.safe_dump({"train": "images", "val": "images", "names": list(digits.names)}))
    opened = data.open(file, folder=tmp_path / "folder", **part)
    assert (opened.train_images, opened.val_images) == (count, 12)
    asked = copy(DEFAULT_CFG)
    asked.__dict__.update(part)
    described = {"names": dict(enumerate(digits.names)), "channels": 3}
    theirs = build_yolo_dataset(asked, str(source / "images"), 4, described, mode="train")
    labelled = zip(theirs.im_files, theirs.labels, strict=True)
    expected = {Path(image).read_bytes(): set(label["cls"].ravel()) for image, label in labelled}
    ours = {}
    for image in opened.images("train"):
        rows = np.loadtxt(Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt"), ndmin=2)
        ours[image.read_bytes()] = set(rows[:, 0])
    assert ours == expected
    truth = json.loads(opened.ground_truth().read_text())
    classes = {entry["category_id"] for entry in truth["annotations"]}
    assert (opened.names, classes) == ((("item",), {1}) if "single_cls" in part else (digits.names, set(range(1, 11))))
