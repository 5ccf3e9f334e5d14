"""The commands that show or export the results of a launched sweep: status, pick, list, ui, report, export."""

import json
import signal
import time
import webbrowser
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from sweeper import names
from sweeper.cli import live, show
from sweeper.cli.options import STORE, DatabaseOption, JsonOption, StoreOption, Target, TrackingOption, on_sweep, say
from sweeper.errors import ConfigError, TrackingError

if TYPE_CHECKING:
    from sweeper.service import Service
    from sweeper.stats import Failures
    from sweeper.tracking.view import Served

PORT = 5000  # MLflow's own default


@on_sweep
def status(
    target: Target,
    watch: Annotated[bool, typer.Option("--watch", help="Update the status until the sweep is done.")] = False,
    every: Annotated[float | None, typer.Option(help="With --watch: update after so many seconds.", min=0.1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Print trials by state, workers, and epochs trained and reused.

    Exit status 1 if every trial failed.
    """
    service = target.launched()
    if watch:
        if (last := live.watch(service.status, as_json=as_json, every_s=every)) is not None:
            exit_if_failed(last.failures)
        return
    current = service.status()
    if as_json:
        typer.echo(json.dumps(current.to_dict(), indent=1))
    else:
        live.print_status(current)
    exit_if_failed(current.failures)


@on_sweep
def pick(
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Print the winner with its evidence, or why there is none.

    The ranking follows. Exit status 1 if every trial failed.
    """
    service = target.launched()
    answer, mismatches = service.pick(), service.store.mismatches()
    objective = service.sweep.objective
    if as_json:
        exact = {"mismatches": [mismatch.to_dict() for mismatch in mismatches]}
        typer.echo(json.dumps({"objective": objective, **answer.to_dict(score=objective), **exact}, indent=1))
    else:
        show.answer(answer, objective)
        show.exactness(mismatches)
    exit_if_failed(answer.failures)


def list_sweeps(
    store: StoreOption = STORE,
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the launched sweeps of a store or database."""
    from sweeper.service import Place, sweeps

    place = Place(store, database_url, tracking_uri)
    launched = sweeps(place)
    if as_json:
        typer.echo(json.dumps([asdict(sweep) for sweep in launched], indent=1))
    elif launched:
        live.print_sweeps(launched)
    else:
        typer.echo(f"no sweep was launched in {store if database_url is None else 'this database'}")


def exit_if_failed(failures: "Failures") -> None:
    """End the command with exit status 1 if every trial of the sweep failed."""
    if failures.every:
        raise typer.Exit(1)


@on_sweep
def ui(
    target: Target,
    port: Annotated[
        int | None, typer.Option(help=f"Start MLflow on this port (0: any); by default {PORT} or, if it is taken, any.")
    ] = None,
    opened: Annotated[bool, typer.Option("--open", help="Open the link in a browser, too.")] = False,
) -> None:
    """Print a link to MLflow: the learning rate beside mAP. MLflow is started if it is not running."""
    from sweeper import report as reports
    from sweeper.service.run import send_journals
    from sweeper.tracking import Tracker, view

    service = target.launched()
    answer = service.pick()
    send_journals(service, 20, say)
    # Set before MLflow is started, because a signal without a handler would end this process and leave MLflow running.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and that is kept
            signal.signal(number, _interrupt)
    url, started = _mlflow(service, port)
    try:
        folder = service.place.folder / "journals"
        tracker = Tracker(url, service.sweep.name, folder) if started is None else service.tracker
        winner = answer.winner.run_id if answer.winner else None
        prepared = view.publish(tracker, reports.axes(service.sweep), reports.best_runs(answer), winner)
        if prepared.note:
            say(prepared.note)
        if not prepared.runs:
            say("no trial has a run yet: the charts fill as trials begin")
        typer.echo(prepared.link(url))
        if opened:
            webbrowser.open(prepared.link(url))
        if started is not None:
            say("MLflow runs until Ctrl-C")
            _until_interrupted(started)
    finally:
        if started is not None:
            started.stop()


@on_sweep
def report(
    target: Target,
    output: Annotated[Path, typer.Option("-o", "--output", help="Write the page to this HTML file.")] = Path(
        "report.html"
    ),
    pictures: Annotated[
        bool,
        typer.Option(
            help="Draw the detections of the best baseline's and the best schedules' models, if that has not been done "
            "yet and no trial is running."
        ),
    ] = True,
) -> None:
    """Write a page: answer, curves, and pictures of what was learned.

    The page is stored in MLflow, too. If every trial failed, it says why, and the exit status is 1.
    """
    service = target.launched()
    if pictures and service.status().counts["running"]:
        say("no new pictures of what was learned: they are not drawn while a trial is running")
    page = write_report(service, output, draw=pictures)
    typer.echo(f"wrote {output} ({len(page) / 1e6:.2f} MB)")
    failures = service.status().failures
    show.failures(failures)
    exit_if_failed(failures)


def write_report(service: "Service", output: Path, *, draw: bool = False) -> bytes:
    """Write the report to ``output`` and to the sweep's run in MLflow, if MLflow answers; returns the HTML.

    ``draw``: draw the pictures of what was learned that are not in MLflow yet.
    """
    from sweeper import report as reports

    uri, link = service.place.tracking, None
    try:
        if uri.startswith(("http://", "https://")):
            link = f"{uri}/#/experiments/{service.tracker.server.experiment_id()}/runs/{{run_id}}"
    except TrackingError:
        pass  # The page then has no links, and the message comes when the page is sent to MLflow.
    page = reports.make(service, link, draw=draw)
    _write(output, page)
    try:
        reports.tell(service, service.pick(), page)
    except TrackingError as error:
        say(f"not kept in MLflow: {error}")
    return page


@on_sweep
def export(
    target: Target,
    trial: Annotated[int | None, typer.Option(help="Export this trial; by default the winner.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write to this folder; by default NAME-trial-N.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Write only this table of all trials: .csv or .parquet.")] = None,
    curves: Annotated[bool, typer.Option("--curves", help="With --table: write a row for each epoch.")] = False,
    register: Annotated[bool, typer.Option(help="Register the weights in MLflow's model registry.")] = True,
) -> None:
    """Write a schedule with its model, or a table of all trials.

    The schedule is written as YAML, as torch code and as an Ultralytics script, beside the weights and model.pt.
    """
    from sweeper import export as exports

    if curves and table is None:
        raise ConfigError("export --curves: goes with a table; expected --table FILE.csv or FILE.parquet")
    service = target.launched()
    if table is not None:
        _write(table, exports.table(service, table.suffix, curves=curves))
        typer.echo(f"wrote {table}")
        return
    exported = exports.export(service, trial)
    folder = output or Path(f"{service.sweep.name}-trial-{exported.trial}")
    for file, content in exported.files.items():
        _write(folder / file, content)
    typer.echo(f"wrote {folder}: {', '.join(exported.files)}")
    if exported.run_id is None:
        say(f"trial {exported.trial} has no weights in MLflow: nothing to register")
    elif register:
        name, alias, tags = service.sweep.name, exported.alias, {names.TRIAL: str(exported.trial)}
        version = service.tracker.server.register(exported.run_id, name, alias, tags)
        typer.echo(f"registered in MLflow: models:/{name}@{alias} (version {version})")


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; expected a file in a folder that can be written") from None


def _mlflow(service: "Service", port: int | None) -> "tuple[str, Served | None]":
    """The address of an MLflow server that has the sweep, and the server's process if it was started here."""
    from sweeper.tracking import Tracker, view

    uri = service.place.tracking
    if uri.startswith(("http://", "https://")):
        service.tracker.check()
        return uri, None
    url = f"http://127.0.0.1:{PORT if port is None else port}"
    parent = service.tracker.sweep()
    if port != 0 and view.answers(url):
        try:
            Tracker(url, service.sweep.name, service.place.folder / "journals").server.contents(parent)
            return url, None
        except TrackingError:
            if port is not None:
                raise TrackingError(f"{url} shows another store; choose another port, or leave --port out") from None
    log = service.place.folder / "work" / "mlflow-ui.log"
    say("starting MLflow, some 10 s")
    try:
        started = view.serve(uri, port=PORT if port is None else port, log=log)
    except TrackingError as error:
        if port is not None or "taken" not in str(error):
            raise
        started = view.serve(uri, port=0, log=log)
        say(f"port {PORT} is taken by another program")
    return started.url, started


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _until_interrupted(started: "Served") -> None:
    """Wait for Ctrl-C. Raises TrackingError if MLflow ends before."""
    signal.signal(signal.SIGINT, _interrupt)  # because a library may have set a handler that does not interrupt
    try:
        while (code := started.process.poll()) is None:
            time.sleep(0.2)  # A signal handler runs between short sleeps, but might not run during one long wait.
    except KeyboardInterrupt:
        return
    raise TrackingError(f"mlflow server ended with {code}; see its log in the store, work/mlflow-ui.log")
