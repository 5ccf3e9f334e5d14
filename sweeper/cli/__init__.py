"""The command line. Only this package reads the arguments and the environment; it calls ``sweeper.service`` and prints.

This module has the commands ``doctor``, ``gc`` and ``data``, and registers those of the other modules.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sweeper import __version__
from sweeper.cli import look, schedules, sweeps
from sweeper.cli.options import STORE, DatabaseOption, JsonOption, Overrides, StoreOption, TrackingOption
from sweeper.cli.show import console
from sweeper.config import Sweep
from sweeper.errors import SweeperError

INTERRUPTED = 130  # the exit status after Ctrl-C

app = typer.Typer(
    name="sweeper",
    help="Sweep learning-rate schedules for detection models, and pick one with evidence, or none.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(no_args_is_help=True, help="Check a data set, or draw a subset from COCO.")


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"sweeper {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def doctor(
    sweep: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="Check the data set and the study of this sweep, too.")
    ] = None,
    overrides: Overrides = None,
    trial: Annotated[bool, typer.Option(help="Train its model for about a minute, if no epoch was timed yet.")] = True,
    store: StoreOption = STORE,
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check what works on this machine, and say how to mend the rest."""
    from sweeper.service import Place
    from sweeper.service.doctor import examine

    place = Place(store, database_url, tracking_uri)
    findings = []
    loaded = None if sweep is None else Sweep.load(sweep, overrides or ())
    with console.status("checking; a sweep's model is trained for about a minute"):
        for finding in examine(place, loaded, trial=trial):
            findings.append(finding)
            if not as_json:
                mark = Text("ok " if finding.good else "RED", style="green" if finding.good else "bold red")
                console.print(Text.assemble(mark, f"  {finding.what:<9} {finding.says}"), soft_wrap=True)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


def gc(
    max_gb: Annotated[
        float | None,
        typer.Option(
            "--max-gb", min=0, help="Remove the least recently used states until at most so many GB are left."
        ),
    ] = None,
    store: StoreOption = STORE,
    database_url: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove training states from the store.

    States that unfinished trials need are never removed, and those from which several schedules branch are removed
    last. Without --max-gb only incomplete files of workers that died are removed. Workers may train meanwhile.
    """
    from sweeper import database
    from sweeper.service import Place
    from sweeper.store import Store
    from sweeper.study import unfinished

    place = Place(store, database_url)
    index = database.open(place.database, create=False)
    store_of_states = Store(place.snapshots, index)
    needed = unfinished(index)
    count, size = store_of_states.gc(None if max_gb is None else int(max_gb * 1e9), unfinished=needed)
    usage = store_of_states.usage()
    if as_json:
        freed = {"removed": count, "removed_bytes": size, "kept": usage.count, "kept_bytes": usage.bytes}
        typer.echo(json.dumps({**freed, "unfinished": needed}, indent=1))
        return
    typer.echo(
        f"removed {count} states ({size / 1e9:.2f} GB), kept {usage.count} ({usage.bytes / 1e9:.2f} GB) "
        f"for {len(needed)} unfinished trials and later sweeps"
    )
    if max_gb is not None and usage.bytes > max_gb * 1e9:
        typer.echo(f"more than {max_gb:g} GB: what is left is needed by trials that are not finished")


@data_app.command()
def check(
    path: Annotated[str, typer.Argument(help="Check this data.yaml, folder in the layout of COCO or VOC, or digits.")],
    skip: Annotated[bool, typer.Option("--skip", help="List invalid images instead of failing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the images and classes of a data set, and what is wrong with it. The data set is not changed."""
    from sweeper import data

    with tempfile.TemporaryDirectory() as folder:
        dataset = data.open(path, folder=Path(folder), invalid="skip" if skip else "refuse")
    if as_json:
        images = {"train": dataset.train_images, "val": dataset.val_images}
        described = {"digest": dataset.digest, "images": images, "names": dataset.names, "problems": dataset.problems}
        typer.echo(json.dumps(described))
        return
    names = ", ".join(dataset.names[:10]) + (", ..." if len(dataset.names) > 10 else "")
    typer.echo(f"images    {dataset.train_images} train, {dataset.val_images} val")
    typer.echo(f"classes   {len(dataset.names)}: {names}")
    typer.echo(f"digest    {dataset.digest}")
    for problem in dataset.problems or ("none",):
        typer.echo(f"problems  {problem}")


@data_app.command("coco-subset")
def coco_subset(
    coco_dir: Annotated[Path, typer.Argument(help="Read COCO's images and annotations from this folder.")],
    out: Annotated[Path, typer.Argument(help="Write the subset to this new folder.")],
    train: Annotated[int, typer.Option(min=1, help="Draw this many training images.")] = 10000,
    val: Annotated[int, typer.Option(min=1, help="Draw this many validation images.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Draw with this seed; the same seed draws the same images.")] = 0,
    stratified: Annotated[bool, typer.Option("--stratified", help="Keep the frequencies of the classes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw images at random from COCO, and list them in a manifest."""
    from sweeper import data

    drawn = data.coco_subset(coco_dir, out, train=train, val=val, seed=seed, stratified=stratified)
    if as_json:
        typer.echo(json.dumps(drawn))
        return
    for problem in drawn["problems"]:
        typer.echo(f"problems  {problem}")
    typer.echo(f"{train} + {val} images, digest {drawn['digest'][:12]}, in {out} (manifest.json says which)")
    typer.echo(f"next: sweeper run SWEEP data={out / 'data.yaml'}")


for command in (sweeps.run, sweeps.init, sweeps.plan, sweeps.launch, sweeps.worker, sweeps.confirm, sweeps.ray):
    app.command()(command)
for command in (look.status, look.pick, look.ui, look.report, look.export):
    app.command()(command)
app.command("list")(look.list_sweeps)
for command in (doctor, gc, schedules.trace, schedules.families, schedules.convert):
    app.command()(command)
app.add_typer(data_app, name="data")


def main() -> None:
    """The console script. Exit status 0: done; 1: ``SweeperError``, one line on stderr; 2: wrong usage; 130: Ctrl-C."""
    try:
        app()
    except SweeperError as error:
        print("sweeper: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer turns KeyboardInterrupt into this exit status
            overwrite = "\r" if sys.stderr.isatty() else ""  # The terminal has printed ^C at the start of the line.
            print(f"{overwrite}sweeper: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise
