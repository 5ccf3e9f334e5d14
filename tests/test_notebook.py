"""The Python face: the commands as functions, light to import, and a notebook that runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import sweeper
from sweeper.service import Place, Service

PUBLIC = {
    *("Answer", "ScheduleCallback", "Sweep", "SweeperError", "TimeBase", "Trace", "TraceLR", "parse"),
    *("confirm", "launch", "pick", "plan", "run", "status", "trials", "work"),
}


def test_every_public_name_is_there_and_documented() -> None:
    assert set(sweeper.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(sweeper, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sweeper.nothing  # noqa: B018


def test_schedules_and_the_package_import_without_torch_and_mlflow() -> None:
    heavy = ["torch", "mlflow", "optuna", "pandas", "ultralytics", "matplotlib"]
    code = f"import sys, sweeper, sweeper.schedules; sweeper.parse; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_sweep_is_planned_run_and_read_by_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = sweeper.Sweep.load(tiny.write(tmp_path))
    keys = {"trials": 1, "epochs": 3, "workers": 1}
    assert sweeper.plan(sweep, store="store", **keys)
    assert not (tmp_path / "store").exists()
    answer = sweeper.run(sweep, store="store", **keys)
    assert isinstance(answer, sweeper.Answer)
    assert answer.winner is None
    assert "6/6" in capfd.readouterr().err  # the bar: two trials of three epochs
    table = sweeper.trials(sweep, store="store")
    assert table["stage"].tolist() == ["baseline", "search"]
    assert table["family"].tolist() == ["yolo_linear", "cawb"]
    assert table["epochs"].tolist() == [3, 3]
    assert all(len(curve) == 3 for curve in table["curve"])
    assert sweeper.pick(sweep, store="store").sentence == answer.sentence
    with pytest.raises(sweeper.SweeperError, match="is not a key of a sweep"):
        sweeper.run(sweep, store="store", trails=1)


def test_a_worker_reads_the_same_sweep_from_the_copy_in_the_store(tmp_path: Path) -> None:
    from sweeper.service import run

    sweep = sweeper.Sweep.load(tiny.write(tmp_path))
    service = Service(sweep, Place(str(tmp_path / "store")))
    copy = run.write_sweep(service)
    assert sweeper.Sweep.load(copy).identity() == sweep.identity()
    assert Path(sweeper.Sweep.load(copy).recipe.data).samefile(sweep.recipe.data)


def test_the_notebook_of_the_docs_runs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    shutil.copytree(Path(__file__).parents[1] / "jobs", tmp_path / "jobs")
    notebook = nbformat.read(Path(__file__).parents[1] / "docs" / "python.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = json.dumps([cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code"])
    assert "no winner" in outputs.lower()
