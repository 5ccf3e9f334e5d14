"""The commands about a sweep: init, plan, run, launch, worker, status, pick."""

import functools
import json
import logging
import os
import signal
import sys
import threading
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sweeper import fleet
from sweeper.cli import live, look, show
from sweeper.cli.options import (
    DatabaseOption,
    JsonOption,
    Overrides,
    StoreOption,
    SweepFile,
    TrackingOption,
    launched_service,
    service_of,
)
from sweeper.errors import ConfigError, DeviceError, TrackingError

if TYPE_CHECKING:
    from sweeper.service import Service

MANY = 1_000_000
console = Console(stderr=True, highlight=False, soft_wrap=True)


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("sweep.yaml"),
) -> None:
    """Write a commented sweep to start from."""
    if file.exists():
        raise ConfigError(f"{file}: is there already; expected a new file's name")
    try:
        file.write_text(resources.files("sweeper.cli").joinpath("sweep.yaml").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; expected a place to write to") from None
    typer.echo(f"wrote {file}; say where your data are, then: sweeper plan {file}")


def plan(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Schedules drawn, epochs shared, hours, detectable effect; nothing is trained."""
    service = service_of(sweep, overrides, store, database_url, tracking_uri, looking=True)
    found = service.plan()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    show.plan(found)
    try:
        slots_here(service)
    except DeviceError as error:  # plan and launch where you like; only who trains needs the device
        typer.echo(f"device     {error}; `sweeper run` would be refused here")


def launch(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Create study and experiment and print where they are; `worker` trains, here or elsewhere."""
    service = service_of(sweep, overrides, store, database_url, tracking_uri)
    service.launch()
    service.tracker.close()
    typer.echo(f"study {service.sweep.name}: {service.study.counts()['total']} trials in {service.database}")
    typer.echo(f"experiment {service.sweep.name} in {service.place.tracking}")
    typer.echo(f"train:  sweeper worker {sweep}        look:  sweeper status {sweep}   sweeper ui {sweep}")


def worker(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    wanted: Annotated[
        str, typer.Option("--devices", help="auto (all visible GPUs, else the CPU), cpu, or GPU numbers: 0,2.")
    ] = "auto",
    per_device: Annotated[int, typer.Option(min=1, help="Workers on each device.")] = 1,
    share: Annotated[
        float, typer.Option(min=0.01, max=1, help="Of its GPU's memory, for a worker that shares it with others.")
    ] = 1.0,
    launch_it: Annotated[bool, typer.Option("--launch", help="Launch the sweep first, if nobody has.")] = False,
) -> None:
    """Train trials of a launched sweep until it is done (one process per device slot).

    Exit status 0: it is done; 130: told to stop before (SIGTERM, Ctrl-C), after the epoch in progress.
    """
    from sweeper.worker import Worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("alembic", "mlflow", "optuna"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    service = service_of(sweep, overrides, store, database_url, tracking_uri)
    slots = fleet.slots(wanted, per_device)
    if launch_it and not service.launched:
        service.launch()
    stop = stop_on_signals(signal.SIGTERM, signal.SIGINT)
    if len(slots) > 1:
        workers(service, arguments_of(sweep, overrides, store, database_url, tracking_uri), slots, stop=stop)
    else:
        try:
            Worker(
                service, device=slots[0] if slots[0] == fleet.CPU else f"cuda:{slots[0]}", stop=stop, share=share
            ).run()
        finally:
            service.tracker.close(10)
    if stop.is_set() and not service.study.done:  # whoever started us must not take it for finished
        raise KeyboardInterrupt


def run(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """All of it on this machine: study, workers, answer. Ctrl-C is safe: the same command goes on where it stopped."""
    service = service_of(sweep, overrides, store, database_url, tracking_uri)
    slots = slots_here(service)
    for problem in service.dataset.problems:
        console.print(f"data: {problem}", soft_wrap=True)
    service.launch()
    train_all(service, arguments_of(sweep, overrides, store, database_url, tracking_uri), slots)
    answer(service, named(sweep, store))


def slots_here(service: "Service") -> list[str]:
    """The slots of this machine that the sweep asks for. Raises DeviceError."""
    count = service.sweep.workers
    slots = fleet.slots(
        str(service.sweep.device), None if count == "auto" else count, threads=service.sweep.recipe.threads
    )
    return slots if count == "auto" else slots[:count]


def train_all(service: "Service", arguments: list[str], slots: list[str]) -> None:
    """Train every open trial with workers of ours, to the end; KeyboardInterrupt if told to stop before it."""
    stop = stop_on_signals(signal.SIGTERM)
    if left := open_trials(service):
        workers(service, arguments, slots[:left], stop=stop, logs=service.place.folder / "work")
    settle(service, stop)


def settle(service: "Service", stop: threading.Event) -> None:
    """What is left to do when the workers have ended; KeyboardInterrupt if they were told to."""
    if stop.is_set():
        raise KeyboardInterrupt
    look.drain(service, 60)
    try:
        if service.study.done:
            service.tracker.sweep(status="FINISHED")
    except TrackingError as error:  # the answer is in the study
        console.print(str(error), soft_wrap=True)


def answer(service: "Service", again: str) -> None:
    """Print who won and write the page; ``again``: the sweep as it was named on the command line.

    Exit status 1 if every trial failed.
    """
    found = service.pick()
    show.answer(found, service.sweep.objective)
    page = service.place.folder / "reports" / f"{service.sweep.name}.html"
    look.write_report(service, page)
    typer.echo(f"\nall of it on one page:      {os.path.relpath(page)}\nlearning rate beside mAP:   sweeper ui {again}")
    look.leave(found.failures.every)


def named(sweep: Path, store: str) -> str:
    """The sweep as a further command has to name it; the overrides of its launch are known to those who look."""
    return str(sweep) + ("" if store == "sweeper_store" else f" --store {store}")


def open_trials(service: "Service") -> int:
    """How many workers find something to do at most: a trial each, and in a search that still grows no limit."""
    counts = service.study.counts()
    left = counts["waiting"] + counts["running"]
    return left if not service.agenda.grows or service.study.done else MANY


def arguments_of(
    sweep: Path, overrides: list[str] | None, store: str, database_url: str | None, tracking_uri: str | None
) -> list[str]:
    """The same sweep at the same place, for a process of ours. No password: those stay in the environment."""
    arguments = [str(sweep), *(overrides or ()), "--store", store]
    for option, variable, value in (
        ("--database-url", "SWEEPER_DATABASE_URL", database_url),
        ("--tracking-uri", "MLFLOW_TRACKING_URI", tracking_uri),
    ):
        if value and value != os.environ.get(variable):
            arguments += [option, value]
    return arguments


def workers(
    service: "Service",
    arguments: list[str],
    slots: list[str],
    *,
    stop: threading.Event,
    logs: Path | None = None,
) -> None:
    """A process per slot until the sweep is done; with ``logs``, show how it comes along instead of what they say."""
    wanted = service.sweep.recipe.loader_workers
    if (loaders := fleet.loaders(wanted, slots)) < wanted:
        console.print(f"loader_workers: {loaders} each, not {wanted}: {len(slots)} workers share {fleet.cores()} cores")
        arguments = [*arguments, f"loader_workers={loaders}"]
    command = [sys.executable, "-m", "sweeper", "worker", *arguments]
    crew = fleet.Fleet(command, slots, threads=service.sweep.recipe.threads, logs=logs)
    tend(service, crew, stop=stop, quiet=logs is not None)


def tend(service: "Service", crew: fleet.Fleet, *, stop: threading.Event, quiet: bool) -> None:
    """Keep the workers going until the sweep is done; ``quiet``: they write elsewhere, show how it comes along."""
    say = functools.partial(console.print, soft_wrap=True)
    if not quiet:
        crew.run(lambda: service.study.done, stop=stop, say=say)
        return
    with live.progress(console) as update:
        crew.run(lambda: service.study.done, stop=stop, say=say, tick=lambda: update(service.status))


def stop_on_signals(*signals: signal.Signals) -> threading.Event:
    """An event that these signals set: stop after this epoch. A second SIGINT is KeyboardInterrupt: now."""
    stop = threading.Event()

    def leave(number: int, _: Any) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.print(f"{signal.Signals(number).name}: stopping after this epoch; SIGINT (Ctrl-C) once more: now")

    for number in signals:
        signal.signal(number, leave)
    return stop


def status(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Until it is done: live on a terminal, else lines.")] = False,
    every: Annotated[float | None, typer.Option(help="With --watch: seconds between looks.", min=0.1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Trials by state, workers, epochs trained and reused. Exit status 1 if every trial failed."""
    service = launched_service(sweep, overrides, store, database_url, tracking_uri)
    if watch:
        last = live.watch(service.status, as_json=as_json, every_s=every)
        look.leave(last is not None and last["failures"]["every"])
        return
    found = service.status()
    if as_json:
        typer.echo(json.dumps(show.status_json(found), indent=1))
    else:
        show.status(found)
    look.leave(found["failures"]["every"])


def pick(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ranking, evidence, and the winner or "no winner". Exit status 1 if every trial failed."""
    service = launched_service(sweep, overrides, store, database_url, tracking_uri)
    answer, mismatches = service.pick(), service.mismatches()
    objective = service.sweep.objective
    if as_json:
        told = {"objective": objective, **answer.to_dict(score=objective), "mismatches": mismatches}
        typer.echo(json.dumps(told, indent=1))
    else:
        show.answer(answer, objective)
        show.exactness(mismatches)
    look.leave(answer.failures.every)


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (run, init, plan, launch, worker, status, pick):
        app.command()(command)
