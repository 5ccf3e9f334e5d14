"""Looking at a sweep: nothing is created by it, and what was launched is what is shown."""

import json
import shutil
from pathlib import Path

import invented
import psycopg
import pytest
import tiny
import yaml
from postgres import Postgres
from typer.testing import CliRunner, Result

from sweeper.cli import app
from sweeper.cli.options import Target
from sweeper.config import Sweep, built_in
from sweeper.database import update
from sweeper.errors import ConfigError, DatabaseError, SweeperError
from sweeper.schedules import legend
from sweeper.service import Place, Service, launched, sweeps

LAUNCHED_ONLY = [["status"], ["status", "--watch"], ["pick"], ["ui"], ["report"], ["export"], ["confirm"]]


def sweeper(*arguments: object) -> Result:
    """A command with its own defaults: nothing of this process's environment says where things are."""
    unset = dict.fromkeys(("SWEEPER_STORE", "SWEEPER_DATABASE_URL", "MLFLOW_TRACKING_URI"))
    return CliRunner(env=unset).invoke(app, [str(argument) for argument in arguments])


def told(done: Result) -> str:
    """What a command printed that went through."""
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_looking_where_nothing_was_launched_makes_nothing(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "here").mkdir()
    file, url = tiny.write(tmp_path / "file"), postgres.database()
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    for options in ([], ["--database-url", url]):
        for command in LAUNCHED_ONLY:
            done = sweeper(*command, file, *options)
            assert isinstance(done.exception, DatabaseError), (command, done.output)
            assert str(done.exception).endswith("launch it first")
        assert "0.0% shared" not in told(sweeper("plan", file, *options))
        told(sweeper("doctor", *options))
        assert "tiny is not launched yet" in told(sweeper("doctor", file, *options))
        assert sorted(tmp_path.rglob("*")) == before
    with psycopg.connect(url) as connection:
        made = connection.execute(
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname IN ('public', 'sweeper_tables')"
        ).fetchone()
    assert made == (0,)


def files(folder: Path) -> list[Path]:
    """All that lies in it, but for what SQLite puts beside an open database."""
    return sorted(path for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm")))


GIVEN = ["lr0=0.03", "search.step_scale=0.5", "confirm.alpha=0.1"]


@pytest.fixture(scope="module")
def overridden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep that was launched with overrides, worked off; its file, whose data are gone, and its store."""
    folder = tmp_path_factory.mktemp("overridden")
    file = invented.written(folder)
    service = Service(Sweep.load(file, GIVEN), Place(str(folder / "store")), overrides=GIVEN)
    service.launch()
    invented.work(service, {})
    service.tracker.drain(60)
    service.tracker.close()
    shutil.rmtree(folder / "data")
    return file, folder / "store"


def test_overrides_of_the_launch_need_not_be_repeated(
    overridden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, store = overridden
    monkeypatch.chdir(tmp_path)
    before = files(store)
    status = sweeper("status", file, "--store", store, "--json")
    assert json.loads(told(status))["counts"]["total"] == 8
    assert not status.stderr
    shown = told(sweeper("status", file, "--store", store))
    assert "The search ended with the 6 proposals that `trials` asks for; next: sweeper confirm" in shown
    assert f"labels: {legend(['yolo_linear', 'yolo_cosine', 'cawb steps=[4,8] decay=linear'])}" in shown
    picked = json.loads(told(sweeper("pick", file, "--store", store, "--json")))
    assert {entry["params"]["lr"] for entry in picked["ranking"]} == {0.03}
    assert files(store) == before
    assert not list(tmp_path.iterdir())
    told(sweeper("report", file, "--store", store, "-o", "page.html"))
    assert "lr0: 0.03" in Path("page.html").read_text()
    told(sweeper("export", file, "--store", store, "--trial", picked["ranking"][0]["trial"], "--no-register"))
    (exported,) = tmp_path.glob("shown-trial-*/schedule.yaml")
    assert yaml.safe_load(exported.read_text())["lr"] == 0.03


def test_what_is_said_differently_is_said_in_a_line(overridden: tuple[Path, Path]) -> None:
    file, store = overridden
    done = sweeper("pick", file, "lr0=0.5", "epochs=99", "--store", store, "--json")
    assert {entry["params"]["lr"] for entry in json.loads(told(done))["ranking"]} == {0.03}
    (line,) = done.stderr.splitlines()
    assert line == (
        "sweeper: sweep shown is shown as it was launched; what is said now does not count: "
        "epochs: 16 -> 99, lr0: 0.03 -> 0.5"
    )
    assert not sweeper("pick", file, *GIVEN, "--store", store).stderr
    with pytest.raises(ConfigError, match="is not a key of a sweep"):
        raise sweeper("pick", file, "lr1=0.5", "--store", store).exception or AssertionError


def test_the_file_is_needed_for_the_name_alone(overridden: tuple[Path, Path], tmp_path: Path) -> None:
    _, store = overridden
    file = tmp_path / "name.yaml"
    file.write_text("name: shown\n")
    done = sweeper("pick", file, "--store", store, "--json")
    assert {entry["params"]["lr"] for entry in json.loads(told(done))["ranking"]} == {0.03}
    assert len(done.stderr.splitlines()) == 1
    assert "sweep shown is shown as it was launched, because its file cannot be read" in done.stderr


def test_a_launched_sweep_goes_before_a_built_in_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = invented.launched(invented.written(tmp_path, name="digits"), tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    service, notes = launched("digits", [], ours.place)
    assert service.sweep.confirm == ours.sweep.confirm != Sweep.load("digits").confirm
    assert notes == ["sweep digits is the one that was launched here, not the built-in one of that name"]
    more = Target(Path("digits"), None, ours.place.store, None, None).resumed()
    assert more.study.id == ours.study.id, "confirm goes on with it, too"
    (tmp_path / "digits").mkdir()  # of its data, perhaps
    more = Target(Path("digits"), None, ours.place.store, None, None).resumed()
    assert more.study.id == ours.study.id
    place = Place(str(tmp_path / "built-in"))
    Service(Sweep.load("digits", ["epochs=9"]), place, overrides=["epochs=9"]).launch()
    service, notes = launched("digits", [], place)
    assert (service.sweep.epochs, notes) == (9, [])


def test_what_may_change_can_be_given_anew(overridden: tuple[Path, Path]) -> None:
    file, store = overridden
    place = Place(str(store))
    service, notes = launched(file, [], place)
    assert (service.sweep.confirm.alpha, notes) == (0.1, [])
    service, notes = launched(file, ["confirm.alpha=0.2"], place)
    assert (service.sweep.confirm.alpha, notes) == (0.2, [])
    assert service.sweep.identity() == Sweep.load(file, GIVEN).identity()


def test_who_trains_is_refused_as_before(overridden: tuple[Path, Path], tmp_path: Path) -> None:
    file, store = overridden
    again = tmp_path / file.name
    invented.written(tmp_path)
    for command in ("run", "launch"):
        done = sweeper(command, again, "--store", store)
        assert isinstance(done.exception, SweeperError)
        assert "lr0: 0.03 -> 0.02" in str(done.exception)


@pytest.mark.parametrize("name", sorted(built_in()))
def test_a_sweep_is_built_again_from_what_a_launch_keeps(name: str) -> None:
    sweep = Sweep.load(name)
    assert Sweep.build(json.loads(json.dumps(sweep.to_dict()))) == sweep


def test_the_sweeps_of_a_place_are_listed_with_their_state(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "store"))
    assert sweeps(place) == []
    assert list(tmp_path.iterdir()) == []
    names = ("one", "other")
    first, second = (
        invented.launched(invented.written(tmp_path / name, name=name), tmp_path / "store") for name in names
    )
    [one, other] = sweeps(place)
    assert (one.name, one.state, one.best, one.winner, one.heard_s) == ("one", "waiting", None, None, None)
    assert one.counts["waiting"] == one.counts["total"] == first.study.counts()["total"]
    second.study.heartbeat("inventor", host="here", pid=1, device="cpu", number=0, epoch=3)
    invented.work(first, {})
    [one, other] = sweeps(place)
    assert (one.state, one.objective) == ("done", "mAP50-95")
    assert one.best == max(row.score or 0.0 for row in first.study.trials() if row.state == "COMPLETE")
    assert one.counts == first.study.counts()
    assert other.state == "running"
    assert other.heard_s is not None
    assert other.heard_s < 120


def test_a_sweep_that_this_version_cannot_read_is_listed_with_the_reason(tmp_path: Path) -> None:
    service = invented.launched(invented.written(tmp_path, name="old"), tmp_path / "store")
    studies = service.database.tables.studies
    config = json.dumps({**service.study.config, "epochs": -3})
    service.database.transaction(lambda connection: connection.execute(update(studies).values(config=config)))
    [old] = sweeps(service.place)
    assert (old.name, old.state, old.counts["total"]) == ("old", "unreadable", service.study.counts()["total"])
    assert "epochs: -3" in (old.problem or "")


def test_what_the_default_of_amp_was_before_is_no_change(tmp_path: Path) -> None:
    service = invented.launched(file := invented.written(tmp_path), tmp_path / "store")
    studies = service.database.tables.studies
    config = json.dumps({**service.study.config, "amp": False})
    service.database.transaction(lambda connection: connection.execute(update(studies).values(config=config)))
    assert launched(file, (), service.place)[1] == []
    [changed] = launched(file, ("amp=true",), service.place)[1]
    assert changed.endswith("amp: false -> true")
