"""What every command about a sweep takes, and the sweep that it means."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sweeper.config import Sweep

if TYPE_CHECKING:
    from sweeper.service import Service

SweepFile = Annotated[
    Path,
    typer.Argument(
        metavar="SWEEP",
        help="A sweep file (YAML), a built-in sweep (digits, or bccd with data=PATH), or a launched one.",
    ),
]
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
STORE = "sweeper_store"

messages = Console(stderr=True, highlight=False, soft_wrap=True)  # what is no result
say = messages.print


@dataclass(frozen=True)
class Target:
    """The sweep that a command line names, and where its things are. Nothing is opened before it is asked for."""

    sweep: Path
    overrides: list[str] | None
    store: str
    database_url: str | None
    tracking_uri: str | None

    def service(self, *, looking: bool = False) -> "Service":
        """The sweep of the file with the overrides; ``looking``: nothing of it is ever created."""
        from sweeper.service import Service  # Optuna, SQLAlchemy, SciPy: seconds that `trace` need not wait for

        given = self.overrides or []
        return Service(Sweep.load(self.sweep, given), self._place, overrides=given, looking=looking)

    def launched(self) -> "Service":
        """The launched sweep of that name, to look at; what the file says differently now is said on stderr."""
        service, notes = self._launched
        for note in notes:
            print(f"sweeper: {note}", file=sys.stderr)
        return service

    def more(self) -> "Service":
        """For training more of a launched sweep: of its file, with the overrides of its launch and then the ones given;
        where there is no file, as it was launched."""
        looking, _ = self._launched
        overrides = [*looking.launched_as.get("overrides", ()), *(self.overrides or ())]
        if self.sweep.is_file():
            return replace(self, overrides=overrides).service()
        from sweeper.service import Service

        return Service(self.launched().sweep, self._place, overrides=overrides)

    @property
    def name(self) -> str:
        """The sweep as a further command has to name it; overrides of its launch are known to those who look."""
        return str(self.sweep) + ("" if self.store == STORE else f" --store {self.store}")

    def arguments(self, store: str) -> list[str]:
        """The same sweep for a process on another machine, without addresses that are in its environment."""
        arguments = [str(self.sweep), *(self.overrides or ()), "--store", store]
        for option, variable, value in (
            ("--database-url", "SWEEPER_DATABASE_URL", self.database_url),
            ("--tracking-uri", "MLFLOW_TRACKING_URI", self.tracking_uri),
        ):
            if value and value != os.environ.get(variable):
                arguments += [option, value]
        return arguments

    @property
    def _place(self) -> Any:
        from sweeper.service import Place

        return Place(self.store, self.database_url, self.tracking_uri)

    @functools.cached_property
    def _launched(self) -> "tuple[Service, list[str]]":
        from sweeper.service import launched

        return launched(self.sweep, self.overrides or (), self._place)


def _common(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = STORE,
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """The parameters of every command about a sweep."""


def on_sweep(command: Callable[..., None]) -> Callable[..., None]:
    """Make ``command(target, ...)`` a command that takes a sweep, overrides and the options of its place.

    Typer reads a command's parameters from its signature: here those of the sweep come first, then the command's.
    """
    shared = list(inspect.signature(_common, eval_str=True).parameters.values())
    its_own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def with_target(**given: Any) -> None:
        target = Target(*(given.pop(parameter.name) for parameter in shared))
        command(target, **given)

    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*shared, *its_own)]
    with_target.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    with_target.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    return with_target
