"""The command that looks at everything a sweep stands on: doctor."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sweeper.cli.options import DatabaseOption, JsonOption, Overrides, StoreOption, TrackingOption
from sweeper.cli.show import console
from sweeper.config import Sweep


def doctor(
    sweep: Annotated[Path | None, typer.Argument(metavar="[SWEEP]", help="Look at its data and study, too.")] = None,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Device, threads, database, tracking server, store, versions: what works, and what to do where it does not."""
    from sweeper.service import Place
    from sweeper.service.doctor import examine

    place = Place(store, database_url, tracking_uri)
    found = []
    for finding in examine(place, None if sweep is None else Sweep.load(sweep, overrides or ())):
        found.append(finding)
        if not as_json:
            mark = Text("ok " if finding.good else "RED", style="green" if finding.good else "bold red")
            console.print(Text.assemble(mark, f"  {finding.what:<9} {finding.says}"), soft_wrap=True)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    if not all(finding.good for finding in found):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)
