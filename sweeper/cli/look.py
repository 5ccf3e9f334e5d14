"""The commands that look at a launched sweep and take away what came out: status, pick, list, ui, report, export."""

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
    from sweeper.tracking.view import Served

PORT = 5000  # MLflow's own


@on_sweep
def status(
    target: Target,
    watch: Annotated[bool, typer.Option("--watch", help="Until it is done: live on a terminal, else lines.")] = False,
    every: Annotated[float | None, typer.Option(help="With --watch: seconds between looks.", min=0.1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Trials by state, workers, epochs trained and reused. Exit status 1 if every trial failed."""
    service = target.launched()
    if watch:
        last = live.watch(service.status, as_json=as_json, every_s=every)
        leave(last is not None and last.failures.every)
        return
    shown = service.status()
    if as_json:
        typer.echo(json.dumps(shown.to_dict(), indent=1))
    else:
        live.print_status(shown)
    leave(shown.failures.every)


@on_sweep
def pick(
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Ranking, evidence, and the winner or "no winner". Exit status 1 if every trial failed."""
    service = target.launched()
    answer, mismatches = service.pick(), service.store.mismatches()
    objective = service.sweep.objective
    if as_json:
        exact = {"mismatches": [mismatch.to_dict() for mismatch in mismatches]}
        typer.echo(json.dumps({"objective": objective, **answer.to_dict(score=objective), **exact}, indent=1))
    else:
        show.answer(answer, objective)
        show.exactness(mismatches)
    leave(answer.failures.every)


def list_sweeps(
    store: StoreOption = STORE,
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the sweeps launched in this store, with their state. Nothing is created."""
    from sweeper.service import Place, sweeps

    place = Place(store, database_url, tracking_uri)
    launched = sweeps(place)
    if as_json:
        typer.echo(json.dumps([asdict(sweep) for sweep in launched], indent=1))
    elif launched:
        live.print_sweeps(launched)
    else:
        typer.echo(f"no sweep was launched in {store if database_url is None else 'this database'}")


def leave(every_failed: bool) -> None:
    """End the command with exit status 1 if every trial of the sweep failed."""
    if every_failed:
        raise typer.Exit(1)


@on_sweep
def ui(
    target: Target,
    port: Annotated[
        int | None, typer.Option(help=f"Of the MLflow to start; {PORT} or, if taken, any (0: any).")
    ] = None,
    opened: Annotated[bool, typer.Option("--open", help="Open the link in a browser, too.")] = False,
) -> None:
    """Print one link to MLflow: learning rate beside mAP. Starts MLflow where none answers."""
    from sweeper import report as reports
    from sweeper.service.run import send_journals
    from sweeper.tracking import Tracker, view

    service = target.launched()
    answer = service.pick()
    send_journals(service, 20, say)
    for number in (signal.SIGTERM, signal.SIGHUP):  # before there is a server that would outlive us
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(number, _leave)
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
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
    pictures: Annotated[
        bool, typer.Option(help="Draw what the baseline's and the best models find, once, while no trial is running.")
    ] = True,
) -> None:
    """Write one page: the answer, the curves, what was learned. It is kept in MLflow, too.

    Exit status 1 if every trial failed; the page is written all the same and says why.
    """
    service = target.launched()
    if pictures and service.status().counts["running"]:
        say("no new pictures of what was learned: they are not drawn while a trial is running")
    page = write_report(service, output, draw=pictures)
    typer.echo(f"wrote {output} ({len(page) / 1e6:.2f} MB)")
    failures = service.status().failures
    show.failures(failures)
    leave(failures.every)


def write_report(service: "Service", output: Path, *, draw: bool = False) -> bytes:
    """Write the page to ``output`` and onto the sweep's run in MLflow; without MLflow to ``output`` only.

    ``draw``: with pictures of what was learned that nobody has drawn yet.
    """
    from sweeper import report as reports

    uri, link = service.place.tracking, None
    try:
        if uri.startswith(("http://", "https://")):
            link = f"{uri}/#/experiments/{service.tracker.server.experiment_id()}/runs/{{run_id}}"
    except TrackingError:
        pass  # said below
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
    trial: Annotated[int | None, typer.Option(help="Which; by default the winner.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The folder to write; NAME-trial-N.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write a table of all trials instead: FILE.csv or FILE.parquet.")
    ] = None,
    curves: Annotated[bool, typer.Option("--curves", help="With --table: a row for each epoch of each trial.")] = False,
    register: Annotated[bool, typer.Option(help="Register the weights in MLflow's model registry.")] = True,
) -> None:
    """Write a schedule with its model, or tables, to take away.

    The schedule as YAML, torch code and an Ultralytics script, and model.pt; the weights are registered in MLflow.
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
    """The address of an MLflow that shows the sweep, and the server if it had to be started."""
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


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _until_interrupted(started: "Served") -> None:
    signal.signal(signal.SIGINT, _leave)  # a library may have put a handler in its place that lets waiting go on
    try:
        while (code := started.process.poll()) is None:
            time.sleep(0.2)  # not one long wait, in which no handler of ours would run
    except KeyboardInterrupt:
        return
    raise TrackingError(f"mlflow server ended with {code}; see its log in the store, work/mlflow-ui.log")
