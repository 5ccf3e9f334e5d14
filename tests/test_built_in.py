"""Sweeps by name: those that come with the package, and those that were launched."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sweeper.cli import app
from sweeper.config import Sweep, built_in, find_file
from sweeper.service import Service

JOBS = Path(__file__).resolve().parents[1] / "jobs"


def test_the_built_in_sweeps_are_those_of_jobs() -> None:
    names = ["bccd", "cawb-article", "cawb-article-small", "digits"]
    assert sorted(built_in()) == names
    for name in names:
        assert built_in()[name].read_text() == (JOBS / f"{name}.yaml").read_text()
        assert Sweep.load(name).name == Sweep.load(JOBS / f"{name}.yaml").name


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_file("digits") == built_in()["digits"]
    Path("digits").write_text("name: mine")
    assert find_file("digits") == Path("digits")


def test_a_folder_of_that_name_is_no_sweep(shown: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data of the built-in sweep bccd lie in a folder bccd, those of a sweep by ``init`` in one of its name."""
    monkeypatch.chdir(tmp_path)
    for name in ("bccd", "shown"):
        Path(name).mkdir()
    assert Sweep.load("bccd").name == "bccd"
    done = CliRunner().invoke(app, ["pick", "shown", "--store", str(shown.place.folder)])
    assert done.exit_code == 0, done.output


def test_data_of_a_built_in_sweep_lie_where_the_command_is_given() -> None:
    assert Sweep.load("bccd").recipe.data == "bccd/data.yaml"
    assert Sweep.load(JOBS / "bccd.yaml").recipe.data == str(JOBS / "bccd/data.yaml")


def test_a_launched_sweep_is_read_by_its_name(shown: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ["--store", str(shown.place.folder)]
    by_name = CliRunner().invoke(app, ["pick", "shown", *store])
    by_file = CliRunner().invoke(app, ["pick", str(shown.place.folder.parent / "shown.yaml"), *store])
    assert by_name.exit_code == 0, by_name.output
    assert by_name.stdout == by_file.stdout
    nobody = CliRunner().invoke(app, ["pick", "nobody", *store])
    assert "study 'nobody': not in" in str(nobody.exception)


def test_short_help_and_completion() -> None:
    done = CliRunner().invoke(app, ["-h"])
    assert done.exit_code == 0
    assert "--install-completion" in done.output
    assert not [line for line in done.output.splitlines()[1:] if line.endswith("...")]  # a sentence that was cut


def test_list_shows_the_launched_sweeps_and_creates_nothing(shown: Service, tmp_path: Path) -> None:
    store = ["--store", str(shown.place.folder)]
    shown.study.heartbeat("inventor", host="here", pid=1, device="cuda:1", number=7, epoch=9)
    done = CliRunner().invoke(app, ["list", *store])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if line.split()[:1] == ["shown"]]
    best = max(trial.score or 0.0 for trial in shown.study.trials() if trial.state == "COMPLETE")
    winner = shown.pick().winner
    assert winner is not None
    assert line.split()[:7] == ["shown", "running", "23", "of", "24", f"{best:.4f}", "mAP50-95"]
    assert winner.title in line
    assert line.rstrip().endswith("s ago")
    (listed,) = json.loads(CliRunner().invoke(app, ["list", *store, "--json"]).output)
    assert (listed["name"], listed["best"], listed["winner"]) == ("shown", best, winner.title)
    assert listed["counts"]["total"] == 24
    nowhere = CliRunner().invoke(app, ["list", "--store", str(tmp_path / "nowhere")])
    assert nowhere.exit_code == 0
    assert nowhere.output == f"no sweep was launched in {tmp_path / 'nowhere'}\n"
    assert CliRunner().invoke(app, ["list", "--store", str(tmp_path / "nowhere"), "--json"]).output == "[]\n"
    assert not list(tmp_path.iterdir())
