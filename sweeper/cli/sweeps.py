"""The commands about a sweep: init, plan, run, launch, worker, status, pick."""

import functools
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sweeper import fleet
from sweeper.cli import live, look, show
from sweeper.cli.options import JsonOption, Target, on_sweep
from sweeper.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from sweeper.service import Service

console = Console(stderr=True, highlight=False, soft_wrap=True)
say = functools.partial(console.print, soft_wrap=True)


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("sweep.yaml"),
    data: Annotated[
        str | None,
        typer.Option(help="Fit it to this data set: a data.yaml, a folder as of COCO or Pascal VOC, or digits."),
    ] = None,
) -> None:
    """Write a commented sweep to start from; with --data, one that fits a data set and this machine, with reasons."""
    from sweeper.service.init import suggest, template

    if file.exists():
        raise ConfigError(f"{file}: is there already; expected a new file's name")
    with tempfile.TemporaryDirectory() as folder:
        text = template() if data is None else suggest(data, file, Path(folder))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; expected a place to write to") from None
    typer.echo(f"wrote {file}; {'' if data else 'say where your data are, then: '}sweeper plan {file}")


@on_sweep
def plan(
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Schedules drawn, epochs shared, hours, detectable effect; nothing is trained."""
    from sweeper.service.run import slots

    service = target.service(looking=True)
    found = service.plan()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
        return
    show.plan(found)
    try:
        slots(service.sweep)
    except DeviceError as error:  # plan and launch where you like; only who trains needs the device
        typer.echo(f"device     {error}; `sweeper run` would be refused here")


@on_sweep
def launch(
    target: Target,
) -> None:
    """Create study and experiment and print where they are; `worker` trains, here or elsewhere."""
    service = target.service()
    service.launch()
    service.tracker.close()
    typer.echo(f"study {service.sweep.name}: {service.study.counts()['total']} trials in {service.database}")
    typer.echo(f"experiment {service.sweep.name} in {service.place.tracking}")
    sweep = target.sweep
    typer.echo(f"train:  sweeper worker {sweep}        look:  sweeper status {sweep}   sweeper ui {sweep}")


@on_sweep
def worker(
    target: Target,
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
    from sweeper.service.run import crew, tend
    from sweeper.worker import Worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("alembic", "mlflow", "optuna"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    service = target.service()
    slots = fleet.slots(wanted, per_device)
    if launch_it and not service.launched:
        service.launch()
    stop = stop_on_signals(signal.SIGTERM, signal.SIGINT)
    if len(slots) > 1:
        tend(service, crew(service, slots, say, logs=None), stop=stop, say=say)
    else:
        try:
            Worker(
                service, device=slots[0] if slots[0] == fleet.CPU else f"cuda:{slots[0]}", stop=stop, share=share
            ).run()
        finally:
            service.tracker.close(10)
    if stop.is_set() and not service.study.done:  # whoever started us must not take it for finished
        raise KeyboardInterrupt


@on_sweep
def run(
    target: Target,
) -> None:
    """All of it on this machine: study, workers, answer. Ctrl-C is safe: the same command goes on where it stopped."""
    from sweeper.service.run import slots

    service = target.service()
    where = slots(service.sweep)
    for problem in service.dataset.problems:
        say(f"data: {problem}")
    service.launch()
    train_all(service, where)
    answer(service, target.name)


def train_all(service: "Service", where: list[str]) -> None:
    """Train every open trial in these slots, with a line that shows how it comes along; KeyboardInterrupt if told to
    stop before the end."""
    from sweeper.service.run import train

    stop = stop_on_signals(signal.SIGTERM)
    with live.progress(console) as update:
        train(service, where, stop=stop, say=say, tick=lambda: update(service.status))


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
        look.leave(last is not None and last.failures.every)
        return
    found = service.status()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        show.status(found)
    look.leave(found.failures.every)


@on_sweep
def pick(
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Ranking, evidence, and the winner or "no winner". Exit status 1 if every trial failed."""
    service = target.launched()
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
