"""Where things are: an address that cannot be meant is refused by every command and never becomes a file."""

from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from sweeper.cli import app
from sweeper.errors import DatabaseError, StoreError, SweeperError, TrackingError
from sweeper.service import Place

DATABASES = [
    "postgresql:/optuna:s3cret@head/optuna",
    "postgresql//optuna:s3cret@head/optuna",
    "optuna:s3cret@head/optuna",
    "postgresql:///optuna:s3cret@head/optuna",
    "postgresql://optuna:s3cret@head",
    "postgresql://optuna:s3cret@head:port/optuna",
    "foo",
    "study.db",
    "",
    "sqlite:study.db",
    "sqlite:/study.db",
    "sqlite://study.db",
    "sqlite://folder/study.db",
    "sqlite:///",
    "mysql://optuna:s3cret@head/optuna",
]
TRACKING = [
    "mlruns",
    "",
    "head:5000",
    "http:/me:s3cret@head:5000",
    "http//head:5000",
    "http://",
    "http://head:port",
    "http://head name:5000",
    "sqlite:mlflow.db",
    "sqlite://mlflow.db",
    "sqlite:///",
    "file:///mlruns",
    "postgresql://mlflow@head/mlflow",
    "databricks",
]
STORES = ["", " ", "s3:/bucket", "s3:bucket", "gs//bucket", "s3://", "nosuch://bucket/folder", "https://head/states"]
GIVEN = [
    *[("database_url", url, DatabaseError, "expected .*sqlite") for url in DATABASES],
    *[("tracking_uri", uri, TrackingError, r"expected http\(s\)://HOST:PORT or sqlite:///FILE") for uri in TRACKING],
    *[("store", url, StoreError, "expected a folder, or a URL like s3://") for url in STORES],
]


@pytest.mark.parametrize(("name", "value", "kind", "says"), GIVEN)
def test_an_address_that_cannot_be_meant_is_refused(
    name: str, value: str, kind: type[SweeperError], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=says) as caught:
        Place(**{name: value})
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_can_be_meant_is_taken(tmp_path: Path) -> None:
    for url in (
        "postgresql://optuna@head/optuna",
        "postgresql+psycopg://o:p@head:5432/o?sslmode=require",
        "postgres:///o",
    ):
        assert Place(database_url=url).database == url
    for uri in (
        "http://head:5000",
        "https://head",
        f"sqlite:///{tmp_path}/mlflow.db",
    ):
        assert Place(tracking_uri=uri).tracking == uri
    for store in (
        "states",
        "/states",
        "./s3:bucket",
        "s3://bucket/folder",
        "gs://bucket",
        "file:///states",
        "dir::file:///x",
    ):
        assert Place(store).store == store
    assert Place("~/states").folder == Path.home() / "states"


@pytest.mark.parametrize("option", ["--database-url", "--tracking-uri", "--store"])
@pytest.mark.parametrize(
    "command",
    [
        *(["run"], ["launch"], ["worker"], ["worker", "--launch"], ["confirm"], ["confirm", "--escape"]),
        *(
            ["plan"],
            ["status"],
            ["status", "--watch"],
            ["pick"],
            ["ui"],
            ["report"],
            ["export"],
            ["doctor"],
            ["gc"],
            ["list"],
        ),
    ],
    ids=" ".join,
)
def test_every_command_refuses_it_from_option_and_environment(
    command: list[str], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == ["gc"] and option == "--tracking-uri":  # states have nothing to do with MLflow
        assert "No such option" in CliRunner().invoke(app, ["gc", option, "x"]).output
        return
    (tmp_path / "file").mkdir()
    file, here = tiny.written(tmp_path / "file"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    variable = {"--tracking-uri": "MLFLOW_TRACKING_URI"}.get(
        option
    ) or f"SWEEPER_{option[2:].upper().replace('-', '_')}"
    given = [*command, *([] if command in (["gc"], ["list"]) else [str(file)])]
    for arguments, environment in (([*given, option, "s3:/head"], {}), (given, {variable: "s3:/head"})):
        done = CliRunner(env={variable: None, **environment}).invoke(app, arguments)
        assert isinstance(done.exception, SweeperError), done.output
        assert "s3:/head" in str(done.exception)
        assert option in str(done.exception)
        assert not list(here.iterdir())


def test_how_much_is_kept_follows_from_what_is_free_unless_it_is_said(tmp_path: Path) -> None:
    here, far = Place(str(tmp_path / "store")), Place("s3://bucket/sweeps")
    assert here.free is not None
    assert here.free > 0
    assert here.limit(2.5, used=7) == far.limit(2.5, used=7) == 2_500_000_000
    assert here.limit(None, used=10**15) == 100_000_000_000
    assert 0 < here.limit(None, used=0) < here.free
    assert (far.free, far.limit(None, used=0)) == (None, 20_000_000_000)
    assert not list(tmp_path.iterdir())
