"""`sweeper init --data`: what is chosen for a data set and a machine, and that the file written is a sweep."""

from pathlib import Path

import PIL.Image
import pytest
import yaml
from test_data import as_voc
from typer.testing import CliRunner, Result

from sweeper import search
from sweeper.cli import app
from sweeper.config import Sweep
from sweeper.errors import ConfigError, DataError
from sweeper.schedules import TimeBase
from sweeper.service.init import Machine, suggest, template

CPU, GPU = Machine(0, 4.0, 2), Machine(1, 16.0, 8)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def boxes(top: Path, *, train: int = 3, val: int = 2, size: tuple[int, int] = (64, 48), side: float = 0.5) -> Path:
    """A generated data set of one box an image, ``side`` of the image's width and height; its data.yaml."""
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (top / kind / split).mkdir(parents=True)
        for number in range(count):
            shade = 10 * number + (100 if split == "val" else 0)
            PIL.Image.new("RGB", size, (shade, 90, 200)).save(top / "images" / split / f"{number}.png")
            (top / "labels" / split / f"{number}.txt").write_text(f"0 0.5 0.5 {side} {side}\n")
    file = top / "data.yaml"
    file.write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": ["box: of #1"]}))
    return file


def written(path: Path | str, tmp_path: Path, machine: Machine = CPU) -> tuple[Sweep, dict[str, str]]:
    """The sweep that is suggested, read from its file, and the comment that begins beside each key."""
    (tmp_path / "laid-out").mkdir(exist_ok=True)
    file = tmp_path / "sweep.yaml"
    file.write_text(suggest(str(path), file, tmp_path / "laid-out", machine))
    comments: dict[str, str] = {}
    for line in file.read_text().splitlines():
        assert len(line) <= 120
        entry, _, comment = line.partition("# ")
        key = entry.partition(":")[0].strip() if ":" in entry else ""
        if key:
            comments[key] = comment
        elif comments and comment:
            comments[list(comments)[-1]] += " " + comment
    return Sweep.load(file), comments


def test_photographs_in_yolos_and_in_vocs_layout_lead_to_the_same_recipe(bccd: Path, tmp_path: Path) -> None:
    (tmp_path / "yolo").mkdir()
    (tmp_path / "voc").mkdir()
    of_yolo, reasons = written(bccd / "data.yaml", tmp_path / "yolo")
    of_voc, _ = written(as_voc(bccd, tmp_path / "BCCD"), tmp_path / "voc")
    recipe = of_yolo.recipe
    assert (recipe.imgsz, recipe.batch, recipe.nbs, of_yolo.epochs) == (288, 16, 16, 50)
    assert "smallest class, Platelets, is then typically 17 pixels" in reasons["imgsz"]
    assert "13 batches an epoch" in reasons["batch"]
    assert (of_yolo.search.seeds, of_yolo.search.begin, of_yolo.confirm.seeds) == (4, 1, 6)
    same = {"name", "data"}
    assert {k: v for k, v in of_voc.to_dict().items() if k not in same} == {
        k: v for k, v in of_yolo.to_dict().items() if k not in same
    }


def test_a_gpu_takes_more_than_a_cpu(bccd: Path, tmp_path: Path) -> None:
    sweep, reasons = written(bccd, tmp_path, GPU)
    assert (sweep.recipe.imgsz, sweep.epochs, sweep.search.seeds, sweep.confirm.seeds) == (544, 100, 8, 8)
    assert "one on each GPU" in reasons["workers"]
    small, reasons = written(bccd, tmp_path, Machine(1, 1.0, 8))
    assert small.recipe.batch < sweep.recipe.batch
    assert "might not fit the memory" in reasons["batch"]


def test_plan_accepts_what_was_written_for_photographs(
    bccd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    as_voc(bccd, tmp_path / "BCCD")
    done = invoke("init", "--data", "BCCD", "jobs.yaml")
    assert done.exit_code == 0, done.output
    assert done.output == "wrote jobs.yaml; sweeper plan jobs.yaml\n"
    planned = invoke("plan", "jobs.yaml")
    assert planned.exit_code == 0, planned.exception
    assert "205 training and 87 validation images" in planned.output
    assert "; +0.004 takes " in planned.output
    assert "warning" not in planned.output
    bought = int(planned.output.split("for the baselines; about ")[1].split(" proposals at ")[0])
    assert bought >= 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BCCD", "jobs.yaml"]


def test_plan_accepts_what_was_written_for_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("init", "--data", "digits").exit_code == 0
    sweep = Sweep.load("sweep.yaml")
    assert sweep.name == "my-digits"  # the built-in sweep has the other name
    assert sweep.recipe.imgsz <= 128
    planned = invoke("plan", "sweep.yaml")
    assert planned.exit_code == 0, planned.exception


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_a_single_image(tmp_path: Path, machine: Machine) -> None:
    sweep, reasons = written(boxes(tmp_path / "data", train=1, val=1), tmp_path, machine)
    assert (sweep.recipe.batch, sweep.recipe.imgsz, sweep.epochs) == (1, 64, 100)
    assert "1 batch an epoch" in reasons["batch"]
    assert "its mAP is measured on 1 image" in reasons["seeds"]
    assert "box: of #1" in reasons["imgsz"]


def test_huge_images_with_small_objects_are_to_be_cut_into_tiles(tmp_path: Path) -> None:
    data = boxes(tmp_path / "data", train=2, val=1, size=(6000, 4000), side=0.004)
    for machine, size in ((CPU, 640), (GPU, 1280)):
        sweep, reasons = written(data, tmp_path, machine)
        assert sweep.recipe.imgsz == size
        assert f"more than {size} is slow here" in reasons["imgsz"]
        assert "cut the images into tiles" in reasons["imgsz"]
    sweep, reasons = written(boxes(tmp_path / "large", size=(6000, 4000), side=0.5), tmp_path)
    assert sweep.recipe.imgsz == 64
    assert "tiles" not in reasons["imgsz"]


@pytest.mark.parametrize("epochs_of", [1, 12, 40, 160, 205, 700, 5000])
def test_every_length_of_a_run_is_one_that_the_search_takes(tmp_path: Path, epochs_of: int) -> None:
    data = boxes(tmp_path / "data", train=2, val=1)
    for number in range(2, epochs_of + 1):
        (tmp_path / "data" / "images" / "train" / f"{number}.png").symlink_to(
            tmp_path / "data" / "images" / "train" / f"{number % 2}.png"
        )
        (tmp_path / "data" / "labels" / "train" / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    for machine in (CPU, GPU):
        sweep, _ = written(data, tmp_path, machine)
        assert 20 <= sweep.epochs <= 100
        time = TimeBase.from_images(
            epochs_of + 1, sweep.recipe.batch, accumulate=sweep.recipe.accumulate, epochs=sweep.epochs
        )
        for searched in sweep.with_each_trunk():
            search.check(searched, time)


def test_wrong_data_are_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    boxes(tmp_path / "empty", val=0)
    boxes(tmp_path / "broken", side=1.5)
    for path, says in (
        ("empty", "val: no images in images/val"),
        ("broken/data.yaml", "label coordinates outside 0 to 1: 5, first labels/train/0.txt line 1: 1.5"),
        ("nowhere", "no such file; expected an Ultralytics data.yaml, a folder"),
    ):
        done = invoke("init", "--data", path)
        assert isinstance(done.exception, DataError)
        assert says in str(done.exception)
        assert "\n" not in str(done.exception)
        assert not Path("sweep.yaml").exists()


def test_a_path_is_written_as_the_file_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    boxes(tmp_path / "my data: #1")
    (tmp_path / "jobs").mkdir()
    assert invoke("init", "--data", "my data: #1", "jobs/a.yaml").exit_code == 0
    sweep = Sweep.load("jobs/a.yaml")
    assert sweep.name == "my-data-1"
    assert Path(sweep.recipe.data).resolve() == tmp_path / "my data: #1"
    assert invoke("init", "--data", tmp_path / "my data: #1", "b.yaml").exit_code == 0
    assert Sweep.load("b.yaml").recipe.data == str(tmp_path / "my data: #1")
    again = invoke("init", "--data", "my data: #1", "b.yaml")
    assert isinstance(again.exception, ConfigError)
    assert "is there already" in str(again.exception)


def test_without_data_the_template_is_written(tmp_path: Path) -> None:
    done = invoke("init", tmp_path / "a.yaml")
    assert "set `data` in it" in done.output
    assert (tmp_path / "a.yaml").read_text() == template()
