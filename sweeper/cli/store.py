"""The command about stored training states: gc."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sweeper.cli.options import DatabaseOption, JsonOption, StoreOption
from sweeper.errors import DatabaseError


def gc(
    max_gb: Annotated[
        float | None, typer.Option("--max-gb", min=0, help="Least recently used states go until so much is left.")
    ] = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make room in the store; what an unfinished trial of any sweep needs stays, and branch points go last.

    Without --max-gb only files that dead writers left behind go. Safe while workers train.
    """
    from sweeper import database
    from sweeper.service import Place
    from sweeper.store import Store
    from sweeper.study import unfinished

    place = Place(store, database_url)
    url = database.parse(place.database)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise DatabaseError(
            f"{url.database}: no database is there, so nothing is known of {store}; give the --store and "
            "--database-url of the sweeps"
        )
    index = database.open(place.database)
    states = Store(place.snapshots, index)
    needed = unfinished(index)
    count, size = states.gc(None if max_gb is None else int(max_gb * 1e9), unfinished=needed)
    left = states.usage()
    if as_json:
        told = {"removed": count, "removed_bytes": size, "kept": left.count, "kept_bytes": left.bytes}
        typer.echo(json.dumps({**told, "unfinished": needed}, indent=1))
        return
    typer.echo(
        f"removed {count} states ({size / 1e9:.2f} GB), kept {left.count} ({left.bytes / 1e9:.2f} GB) "
        f"for {len(needed)} unfinished trials and later sweeps"
    )
    if max_gb is not None and left.bytes > max_gb * 1e9:
        typer.echo(f"more than {max_gb:g} GB: what is left is needed by trials that are not finished")


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(gc)
