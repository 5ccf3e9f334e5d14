"""COCO's metrics beside Ultralytics' own, and as what a study maximises: real trainings by the real command."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from PIL import Image

from sweeper import training
from sweeper.config import Sweep
from sweeper.errors import ConfigError
from sweeper.schedules import prefix_keys
from sweeper.service import Place, Service
from sweeper.tracking import Tracker
from sweeper.training import Detections, evaluation

CONSTANT = {"family": "constant", "lr": 0.02}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sweep files of one trial each, on images of one square: so easy that it is found after an epoch."""
    folder, chance = tmp_path_factory.mktemp("measures"), np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 8)):
        for kind in ("images", "labels"):
            (folder / "data" / kind / split).mkdir(parents=True)
        for number in range(count):
            side = int(chance.integers(30, 50))
            (x, y), kind = chance.integers(0, 64 - side, 2), number % 2
            pixels = chance.integers(0, 60, (64, 64, 3), dtype=np.uint8)
            pixels[y : y + side, x : x + side] = [(200, 80, 80), (80, 80, 200)][kind]
            Image.fromarray(pixels).save(folder / "data" / "images" / split / f"{number}.png")
            box = f"{kind} {(x + side / 2) / 64} {(y + side / 2) / 64} {side / 64} {side / 64}\n"
            (folder / "data" / "labels" / split / f"{number}.txt").write_text(box)
    described = {"path": ".", "train": "images/train", "val": "images/val", "names": ["red", "blue"]}
    (folder / "data" / "data.yaml").write_text(yaml.safe_dump(described))
    common = {**tiny.SWEEP, "data": "data/data.yaml", "batch": 2, "nbs": 2, "trials": 0, "workers": 1}
    sweeps: dict[str, dict[str, Any]] = {
        "plain": {"epochs": 4, "coco_epochs": [1]},
        "shorter": {"epochs": 3},
        "by-ar": {"epochs": 3, "objective": "AR100"},
    }
    for name, written in sweeps.items():
        content = {**common, "name": name, "baselines": [CONSTANT], **written}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return {name: folder / f"{name}.yaml" for name in sweeps}


@pytest.fixture(scope="module")
def place(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all three were run, one after the other, on one store."""
    folder = tmp_path_factory.mktemp("runs")
    for file in files.values():
        tiny.sweeper("run", file, cwd=folder)
    return folder


def histories(place: Path, name: str) -> dict[str, list[tuple[int, float]]]:
    """metric -> (step, value) of the only trial's run."""
    store = place / "sweeper_store"
    tracker = Tracker(f"sqlite:///{store / 'mlflow.db'}", name, store / "journals")
    (run,) = [run for run in tracker.runs() if run["tags"]["sweeper.kind"] == "trial"]
    with sqlite3.connect(store / "mlflow.db") as database:
        rows = database.execute("select key, step, value from metrics where run_uuid = ?", [run["run_id"]])
        found: dict[str, list[tuple[int, float]]] = {}
        for key, step, value in rows.fetchall():
            found.setdefault(key, []).append((step, value))
    return {key: sorted(points) for key, points in found.items()}


def service(file: Path, place: Path) -> Service:
    return Service(Sweep.load(file), Place(str(place / "sweeper_store")))


def by_hand(file: Path, place: Path, tmp_path: Path) -> dict[str, float]:
    """COCO's metrics of the stored final state, loaded into a trainer of this process."""
    one = service(file, place)
    (row,) = one.study.trials()
    trace = one.trace(row.schedule)
    recipe = one.recipe(0)
    facts = one.facts(training.fingerprint(recipe, "cpu", recipe.threads))
    key = prefix_keys(recipe.digest(facts), trace)[-1]
    trainer = training.open(recipe, device="cpu", threads=recipe.threads, folder=tmp_path)
    trainer.load(one.store.get(key).state)
    return evaluation.coco_metrics(one.dataset, trainer.evaluate().detections)


def test_coco_stands_beside_the_own_map_after_chosen_epochs_and_the_last(
    files: dict[str, Path], place: Path, tmp_path: Path
) -> None:
    found = histories(place, "plain")
    assert [step for step, _ in found["coco/AP"]] == [0, 3]
    assert [step for step, _ in found["curve/mAP50-95"]] == [0, 1, 2, 3]
    expected = by_hand(files["plain"], place, tmp_path)
    assert expected["coco/AR100"] > 0
    assert {key: points[-1][1] for key, points in found.items() if key.startswith("coco/")} == expected
    assert sum(key.startswith("coco/class/") for key in found) > 1


def test_the_final_model_of_reused_epochs_has_them_too(files: dict[str, Path], place: Path, tmp_path: Path) -> None:
    """The longer sweep had trained these epochs and had not looked at the third."""
    (row,) = service(files["shorter"], place).study.trials()
    assert row.facts.epochs_reused == 3
    found = histories(place, "shorter")
    assert [step for step, _ in found["coco/AP"]] == [0, 2]
    expected = by_hand(files["shorter"], place, tmp_path)
    assert {key: points[-1][1] for key, points in found.items() if key.startswith("coco/")} == expected


def test_a_study_can_maximise_it(files: dict[str, Path], place: Path) -> None:
    found = histories(place, "by-ar")
    curve = [value for _, value in found["coco/AR100"]]
    assert len(curve) == 3
    assert max(curve) > 0
    picked = json.loads(tiny.sweeper("pick", files["by-ar"], "--json", cwd=place).stdout)
    assert picked["objective"] == "AR100"
    assert picked["baseline"]["AR100"] == pytest.approx(np.mean(curve))
    assert "mAP50-95" not in json.dumps(picked)
    status = json.loads(tiny.sweeper("status", files["by-ar"], "--json", cwd=place).stdout)
    assert status["trials"][0]["AR100"] == pytest.approx(np.mean(curve))
    assert max(curve) == found["best/AR100"][0][1]
    (row,) = service(files["by-ar"], place).study.trials()
    assert list(row.curve.values()) == curve
    said = tiny.sweeper("pick", files["by-ar"], cwd=place).stdout
    assert "AR100: the mean of a run's last 3 epochs" in said
    assert "mAP50-95" not in said
    tiny.sweeper("report", files["by-ar"], cwd=place)
    page = place / "sweeper_store" / "reports" / "by-ar.html"
    assert "mAP50-95" not in page.read_text()


def test_an_objective_that_the_data_cannot_tell_is_refused_before_anything(files: dict[str, Path], place: Path) -> None:
    refused = tiny.sweeper("run", files["plain"], "objective=APlarge", "name=large", cwd=place, check=False)
    assert refused.returncode == 1
    assert "objective: 'APlarge' has no value" in refused.stderr
    misspelt = tiny.sweeper("run", files["plain"], "objective=mAP5095", "name=misspelt", cwd=place, check=False)
    assert misspelt.returncode == 1
    assert "did you mean 'mAP50-95'?" in misspelt.stderr


def test_a_study_of_a_version_without_a_key_goes_on_with_its_default(files: dict[str, Path], place: Path) -> None:
    one = service(files["plain"], place)
    older = {key: value for key, value in one.study.config.items() if key not in ("objective", "dead_after")}
    one.study.check(one.study.config)
    with pytest.raises(ConfigError, match="objective"):
        one.study.check({**older, "objective": "AP"}, free_keys=one._free_keys(one.study.config))
    with sqlite3.connect(place / "sweeper_store" / "sweeper.db") as database:
        database.execute(
            "update sweeper_studies set config = ? where name = 'plain'", [json.dumps(older, sort_keys=True)]
        )
    assert service(files["plain"], place).study.trials()
    with pytest.raises(ConfigError, match="objective"):
        assert Service(Sweep.load(files["plain"], ["objective=AP50"]), one.place).study


def test_classes_of_any_name_become_metrics(tmp_path: Path) -> None:
    """MLflow takes few characters; two classes that lose the same ones stay apart."""
    truth = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 100}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": i, "bbox": [10 * i, 10, 9, 9], "area": 81, "iscrowd": 0}
            for i in range(3)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(["cup (red)", "cup (red]", "cup"])],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    boxes = np.float32([[0, 10, 9, 19], [10, 10, 19, 19]])
    found = Detections("1.jpg", boxes, np.float32([0.9, 0.8]), np.int64([0, 1]))
    named = evaluation.coco_metrics(tmp_path / "truth.json", [found])
    classes = {key: value for key, value in named.items() if key.startswith("coco/class/")}
    assert list(classes.values()) == pytest.approx([1, 1, 0])
    assert list(classes) == ["coco/class/cup _red_", "coco/class/cup _red_ 1", "coco/class/cup"]


def test_looking_makes_no_database(files: dict[str, Path], tmp_path: Path) -> None:
    for url, says in ((f"sqlite:///{tmp_path}/none/x.db", "launch it first"), ("postgre", "not a database URL")):
        done = tiny.sweeper("status", files["plain"], "--database-url", url, cwd=tmp_path, check=False)
        assert done.returncode == 1
        assert says in done.stderr
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "postgre").exists()
    none = tiny.sweeper("run", files["plain"], "workers=0", cwd=tmp_path, check=False)
    assert none.returncode == 1
    assert "workers" in none.stderr


def test_a_study_of_before_there_was_amp_auto_goes_on_without(files: dict[str, Path], tmp_path: Path) -> None:
    before = Service(Sweep.load(files["plain"], ["amp=false"]), Place(str(tmp_path / "sweeper_store")))
    before.launch()
    again = service(files["plain"], tmp_path)
    assert again.sweep.recipe.amp == "auto"
    assert again.recipe(3).amp is False
    again.launch()  # what it is now does not become what it was launched with
    assert service(files["plain"], tmp_path).recipe(3).amp is False
    with pytest.raises(ConfigError, match="amp: false -> true"):
        assert Service(Sweep.load(files["plain"], ["amp=true"]), again.place).study
    new = service(files["by-ar"], tmp_path)
    new.launch()
    assert new.recipe(3).amp == "auto"
