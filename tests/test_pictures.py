"""What was learned, in pictures: drawn once from the weights in MLflow, kept there, and shown on the page."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import sweeper

from sweeper import names
from sweeper.service import Place, Service, launched
from sweeper.training import evaluation

KEPT = [names.LEARNED + name for name in evaluation.FILES]
INLINED = re.compile(r'<img src="data:image/webp;base64,([\w+/=]+)" alt="([^"]+)"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that has learned its squares, and its page with the pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    tiny.squares(folder / "data")
    tiny.written(folder, **tiny.LEARNING, trials=1, epochs=3)
    sweeper("run", "tiny.yaml", cwd=folder)
    assert "sweeper report tiny" in (folder / "sweeper_store" / "reports" / "tiny.html").read_text()
    assert sweeper("report", "tiny.yaml", cwd=folder).stdout.startswith("wrote report.html (0.")
    return folder


def trained(folder: Path) -> Service:
    return launched("tiny", (), Place(str(folder / "sweeper_store")))[0]


def test_each_run_keeps_its_pictures_and_its_numbers(folder: Path) -> None:
    service, learned = trained(folder), list[float]()
    for run in service.tracker.runs():
        files = {name: service.tracker.server.fetch(run["run_id"], name) for name in KEPT}
        assert all(files.values())
        for name in KEPT[:-1]:
            assert min(Image.open(io.BytesIO(files[name] or b"")).size) > 400, name
        numbers = json.loads(files[KEPT[-1]] or b"")
        assert set(numbers["classes"]) == {"square"}
        logged = pytest.approx(run["metrics"]["curve/mAP50-95"], abs=1e-3)  # of the last epoch
        assert numbers["classes"]["square"] == numbers["AP50-95"] == logged
        learned.append(numbers["AP50-95"])
        assert (numbers["recall"][0], numbers["recall"][-1]) == (0, 1)
        area = np.trapezoid(numbers["precision"], numbers["recall"])
        assert area == pytest.approx(numbers["AP50"], abs=0.03)
    assert learned[0] > 0


def test_the_page_shows_the_same_images_for_all_and_stays_small(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    shown = {title: base64.b64decode(content) for content, title in INLINED.findall(page)}
    named = [title.partition(": ")[2].partition(",")[0] for title in shown]
    assert named == ["what is there", *["trial 0", "trial 1"] * 2]  # with boxes, then the confusion matrices
    assert len({Image.open(io.BytesIO(content)).size for title, content in shown.items() if "boxes" in title}) == 1
    assert len(page) < 500_000
    assert page.count('class="drawn"') == 2  # the matrices, which a dark screen shows light on dark
    assert re.search(r"<td>square</td>(<td class=\"n\">0\.\d{4}</td>){2}", page)


def test_pictures_are_drawn_once(folder: Path) -> None:
    stored = sorted((folder / "sweeper_store" / "mlartifacts").rglob("learned/*"))
    before = [path.stat().st_mtime_ns for path in stored]
    assert len(before) == 2 * len(KEPT)
    sweeper("report", "tiny.yaml", cwd=folder)
    assert [path.stat().st_mtime_ns for path in stored] == before


def test_without_weights_or_with_a_trial_in_training_the_page_says_why(
    folder: Path, shown: Service, tmp_path: Path
) -> None:
    tiny.squares(tmp_path / "data")
    tiny.written(tmp_path, **tiny.LEARNING, trials=0, epochs=3, weights="none")
    sweeper("run", "tiny.yaml", cwd=tmp_path)
    sweeper("report", "tiny.yaml", cwd=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "trial 0: no pictures, because its run in MLflow has no weights." in page
    assert shown.status().counts["running"]
    done = sweeper("report", "shown", "--store", shown.place.store, "-o", tmp_path / "shown.html", cwd=tmp_path)
    assert "while a trial is running" in done.stderr
    assert INLINED.findall((tmp_path / "shown.html").read_text()) == []
