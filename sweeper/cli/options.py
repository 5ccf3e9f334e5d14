"""What every command about a sweep takes, and the sweep that it means."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper.config import Sweep

if TYPE_CHECKING:
    from sweeper.service import Service

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP", help="The sweep file (YAML).")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as with yolo.")]
StoreOption = Annotated[
    str, typer.Option("--store", envvar="SWEEPER_STORE", help="Folder or fsspec URL of training states.")
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database-url", envvar="SWEEPER_DATABASE_URL", help="By default SQLite in the store.")
]
TrackingOption = Annotated[
    str | None, typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="By default SQLite in the store.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


def service_of(
    sweep: Path,
    overrides: list[str] | None,
    store: str,
    database_url: str | None,
    tracking_uri: str | None,
    *,
    looking: bool = False,
) -> "Service":
    """The sweep of a command line with its parts not opened yet; ``looking``: none of them is ever created."""
    from sweeper.service import Place, Service  # Optuna, SQLAlchemy, SciPy: seconds that `trace` need not wait for

    given, place = overrides or [], Place(store, database_url, tracking_uri)
    return Service(Sweep.load(sweep, given), place, overrides=given, looking=looking)


def launched_service(
    sweep: Path, overrides: list[str] | None, store: str, database_url: str | None, tracking_uri: str | None
) -> "Service":
    """The launched sweep that a command line names, to look at; what is said differently now is said on stderr."""
    from sweeper.service import Place, launched

    service, notes = launched(sweep, overrides or (), Place(store, database_url, tracking_uri))
    for note in notes:
        print(f"sweeper: {note}", file=sys.stderr)
    return service


def launched_overrides(
    sweep: Path, overrides: list[str] | None, store: str, database_url: str | None, tracking_uri: str | None
) -> list[str]:
    """The overrides for training more of a launched sweep: those of its launch, then the ones given."""
    from sweeper.service import Place, launched

    service, _ = launched(sweep, overrides or (), Place(store, database_url, tracking_uri))
    return [*service.launch_overrides, *(overrides or ())]
