"""What every command about a sweep takes, and the sweep that it means."""

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
    sweep: Path, overrides: list[str] | None, store: str, database_url: str | None, tracking_uri: str | None
) -> "Service":
    """The sweep of a command line with its parts not opened yet."""
    from sweeper.service import Place, Service  # Optuna, SQLAlchemy, SciPy: seconds that `trace` need not wait for

    return Service(Sweep.load(sweep, overrides or ()), Place(store, database_url, tracking_uri))
