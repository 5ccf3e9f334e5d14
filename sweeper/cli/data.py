"""``sweeper data``: look at a data set before training on it, and draw the article's subset from COCO."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Check a data set, or draw a subset from COCO.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(parent: typer.Typer) -> None:
    """Add ``data`` to the command line."""
    parent.add_typer(app, name="data")


@app.command()
def check(
    path: Annotated[str, typer.Argument(help="A data.yaml, a folder in the layout of COCO or Pascal VOC, or digits.")],
    skip: Annotated[bool, typer.Option("--skip", help="List what is invalid instead of refusing it.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is in a data set and what is wrong with it; it is only read."""
    from sweeper import data

    with tempfile.TemporaryDirectory() as folder:
        found = data.open(path, folder=Path(folder), invalid="skip" if skip else "refuse")
    if as_json:
        images = {"train": found.train_images, "val": found.val_images}
        described = {"digest": found.digest, "images": images, "names": found.names, "problems": found.problems}
        typer.echo(json.dumps(described))
        return
    names = ", ".join(found.names[:10]) + (", ..." if len(found.names) > 10 else "")
    typer.echo(f"images    {found.train_images} train, {found.val_images} val")
    typer.echo(f"classes   {len(found.names)}: {names}")
    typer.echo(f"digest    {found.digest}")
    for problem in found.problems or ("none",):
        typer.echo(f"problems  {problem}")


@app.command("coco-subset")
def coco_subset(
    coco_dir: Annotated[Path, typer.Argument(help="COCO: annotations/instances_{train,val}*.json beside the images.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    train: Annotated[int, typer.Option(min=1, help="Training images to draw.")] = 10000,
    val: Annotated[int, typer.Option(min=1, help="Validation images to draw.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same images.")] = 0,
    stratified: Annotated[bool, typer.Option("--stratified", help="Keep the frequencies of the classes.")] = False,
    as_json: Json = False,
) -> None:
    """Draw images at random from COCO: links, labels, annotations, and a manifest that says which."""
    from sweeper import data

    drawn = data.coco_subset(coco_dir, out, train=train, val=val, seed=seed, stratified=stratified)
    if as_json:
        typer.echo(json.dumps(drawn))
        return
    for problem in drawn["problems"]:
        typer.echo(f"problems  {problem}")
    typer.echo(f"{train} + {val} images, digest {drawn['digest'][:12]}, in {out} (manifest.json says which)")
    typer.echo(f"next: sweeper run SWEEP data={out / 'data.yaml'}")
