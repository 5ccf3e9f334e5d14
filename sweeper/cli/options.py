"""The arguments and options that all commands on a sweep have, and the sweep that they identify."""

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
        help="The sweep: a YAML file, the name of a built-in sweep (digits, or bccd with data=PATH), or the name of a "
        "launched sweep.",
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override its keys: epochs=60.")]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="SWEEPER_STORE", help="Keep the training states in this folder or at this fsspec URL."
    ),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar="SWEEPER_DATABASE_URL",
        help="Keep the study in this database (a SQLAlchemy URL); by default in an SQLite file in the store.",
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="Log to this MLflow server or database; by default to an SQLite file in the store.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]
STORE = "sweeper_store"

messages = Console(stderr=True, highlight=False, soft_wrap=True)  # stdout is reserved for results
say = messages.print


@dataclass(frozen=True)
class Target:
    """The sweep and the addresses that a command line gives. Nothing is opened before a method needs it."""

    sweep: Path
    overrides: list[str] | None
    store: str
    database_url: str | None
    tracking_uri: str | None

    def service(self, *, looking: bool = False) -> "Service":
        """The sweep of the file with the overrides; with ``looking`` the service creates nothing."""
        from sweeper.service import Service  # It imports Optuna, SQLAlchemy, SciPy: seconds that `trace` does not need.

        overrides = self.overrides or []
        return Service(Sweep.load(self.sweep, overrides), self._place, overrides=overrides, looking=looking)

    def launched(self) -> "Service":
        """The sweep as it was launched, for commands that only read; prints to stderr how its file differs now."""
        service, notes = self._launched
        for note in notes:
            print(f"sweeper: {note}", file=sys.stderr)
        return service

    def resumed(self) -> "Service":
        """The launched sweep, for training more of it: its file with the overrides of the launch, then those of the
        command line. If there is no such file, the sweep as it was launched."""
        as_launched, _ = self._launched
        overrides = [*as_launched.launched_as.get("overrides", ()), *(self.overrides or ())]
        if self.sweep.is_file():
            return replace(self, overrides=overrides).service()
        from sweeper.service import Service

        return Service(self.launched().sweep, self._place, overrides=overrides)

    @property
    def name(self) -> str:
        """The arguments with which the next command finds this sweep; it reads the overrides from the study."""
        return str(self.sweep) + ("" if self.store == STORE else f" --store {self.store}")

    def arguments(self, store: str) -> list[str]:
        """The arguments of the same sweep for a process on another machine with the same environment variables."""
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
    """The parameters of every command on a sweep, as Typer needs them."""


def on_sweep(command: Callable[..., None]) -> Callable[..., None]:
    """Turn ``command(target, ...)`` into a Typer command that takes a sweep, overrides and addresses.

    Typer reads the parameters of a command from its signature, so the signature is set here: first the parameters of
    ``_common``, then those of ``command``.
    """
    common = list(inspect.signature(_common, eval_str=True).parameters.values())
    specific = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def with_target(**arguments: Any) -> None:
        target = Target(*(arguments.pop(parameter.name) for parameter in common))
        command(target, **arguments)

    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*common, *specific)]
    with_target.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    with_target.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    return with_target
