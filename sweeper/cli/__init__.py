"""The command line: a thin skin over the library, and the only reader of argv and environment."""

import sys

import typer

from sweeper import __version__
from sweeper.cli import look, schedules, sweeps, tools
from sweeper.errors import SweeperError

INTERRUPTED = 130

app = typer.Typer(
    name="sweeper",
    help="Sweep learning-rate schedules for detection models, and pick one with evidence, or none.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sweeper {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


for command in (sweeps.run, sweeps.init, sweeps.plan, sweeps.launch, sweeps.worker, sweeps.confirm, sweeps.ray):
    app.command()(command)
for command in (look.status, look.pick, look.ui, look.report, look.export):
    app.command()(command)
app.command("list")(look.list_sweeps)
for command in (tools.doctor, tools.gc, schedules.trace, schedules.families, schedules.convert):
    app.command()(command)
app.add_typer(tools.data, name="data")


def main() -> None:
    """The console script. Exit 0 done, 1 a ``SweeperError`` in one line on stderr, 2 usage, 130 interrupted."""
    try:
        app()
    except SweeperError as error:
        print("sweeper: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # what Typer makes of KeyboardInterrupt
            over = "\r" if sys.stderr.isatty() else ""  # the terminal has just shown ^C where the line begins
            print(f"{over}sweeper: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise
