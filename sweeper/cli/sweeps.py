"""The commands about a sweep: init, plan, run, launch, worker, status, pick, ui."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sweeper.cli import show
from sweeper.config import Sweep
from sweeper.errors import ConfigError, DeviceError, SweeperError

if TYPE_CHECKING:
    from sweeper.service import Service

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP", help="The sweep file (YAML).")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as with yolo.")]
StoreOption = Annotated[
    str, typer.Option("--store", envvar="SWEEPER_STORE", help="Folder or fsspec URL of training states.")
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database-url", envvar="SWEEPER_DATABASE_URL", help="By default SQLite in the store.")
]
TrackingOption = Annotated[
    str | None, typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="By default SQLite in the store.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]

console = Console(stderr=True, highlight=False, soft_wrap=True)


def _service(
    sweep: Path, overrides: list[str] | None, store: str, database_url: str | None, tracking_uri: str | None
) -> "Service":
    from sweeper.service import Place, Service  # Optuna, SQLAlchemy, SciPy: seconds that `trace` need not wait for

    return Service(Sweep.load(sweep, overrides or ()), Place(store, database_url or None, tracking_uri or None))


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
    found = _service(sweep, overrides, store, database_url, tracking_uri).plan()
    typer.echo(json.dumps(found, indent=1)) if as_json else show.plan(found)


def launch(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Create study and experiment and print where they are; `worker` trains, here or elsewhere."""
    service = _service(sweep, overrides, store, database_url, tracking_uri)
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
    device: Annotated[str, typer.Option(help="auto, cpu, or a CUDA index.")] = "auto",
) -> None:
    """Train trials of a launched sweep until it is done (one process per device slot)."""
    from sweeper.worker import Worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("alembic", "mlflow", "optuna"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    service = _service(sweep, overrides, store, database_url, tracking_uri)
    stop = threading.Event()

    def leave(number: int, _: Any) -> None:
        if stop.is_set():  # asked twice: now
            raise KeyboardInterrupt
        stop.set()
        console.print(f"{signal.Signals(number).name}: stopping after this epoch; once more: now")

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    try:
        Worker(service, device=devices(device)[0], stop=stop).run()
    finally:
        service.tracker.close(10)


def run(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """All of it on this machine: study, workers, answer. Ctrl-C is safe: the same command goes on where it stopped."""
    service = _service(sweep, overrides, store, database_url, tracking_uri)
    slots = devices(str(service.sweep.device))
    count = service.sweep.workers
    if slots == ["cpu"]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        slots *= max(cores // service.sweep.recipe.threads, 1) if count == "auto" else count
    elif count != "auto":
        slots = [slots[index % len(slots)] for index in range(count)]
    for problem in service.dataset.problems:
        console.print(f"data: {problem}")
    service.launch()
    arguments = [str(sweep), *(overrides or ()), "--store", store]
    arguments += ["--database-url", database_url] if database_url else []
    arguments += ["--tracking-uri", tracking_uri] if tracking_uri else []
    _workers(service, arguments, slots[: max(_open_trials(service), 1)])
    service.tracker.drain(60)
    if service.study.done:
        service.tracker.sweep(status="FINISHED")
    show.answer(service.pick(), service.place.tracking)
    typer.echo(f"\ncompare in MLflow:  sweeper ui {sweep}" + _store_flag(store))


def _store_flag(store: str) -> str:
    return "" if store == "sweeper_store" else f" --store {store}"


def _open_trials(service: "Service") -> int:
    counts = service.study.counts()
    return counts["waiting"] + counts["running"]


def _workers(service: "Service", arguments: list[str], slots: list[str]) -> None:
    """A process per slot until the sweep is done; one that dies is replaced, a few times; Ctrl-C reaches all."""
    folder = service.place.folder / "work"
    folder.mkdir(parents=True, exist_ok=True)

    def start(index: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        command = [sys.executable, "-m", "sweeper", "worker", *arguments]
        if slots[index] == "cpu":
            environment["OMP_NUM_THREADS"] = str(service.sweep.recipe.threads)
            command += ["--device", "cpu"]
        else:  # the process sees its own GPU only, as number 0
            environment["CUDA_VISIBLE_DEVICES"] = slots[index]
            command += ["--device", "0"]
        with (folder / f"{socket.gethostname()}-{index}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    running = {index: start(index) for index in range(len(slots))}
    lives = dict.fromkeys(running, 5)
    try:
        with show.progress() as update:
            while running:
                time.sleep(0.5)
                for index, process in list(running.items()):
                    if (code := process.poll()) is None:
                        continue
                    del running[index]
                    if code != 0 and lives[index] > 0 and not service.study.done:
                        lives[index] -= 1
                        console.print(f"a worker ended with {code}; another takes its trial ({folder}/*.log)")
                        running[index] = start(index)
                update(service.status)
    except KeyboardInterrupt:
        console.print("stopping the workers; the same command goes on where they stopped")
        for process in running.values():
            process.send_signal(signal.SIGINT)  # a second one, after the terminal's own, means now
        for process in running.values():
            process.wait(30)
        raise
    finally:
        for process in running.values():
            process.kill()
    if not service.study.done:
        raise SweeperError(f"the workers ended before the sweep was done; the reasons stand in {folder}/*.log")


def status(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trials by state, workers, epochs trained and reused."""
    found = _service(sweep, overrides, store, database_url, tracking_uri).status()
    typer.echo(json.dumps(found, indent=1)) if as_json else show.status(found)


def pick(
    sweep: SweepFile,
    overrides: Overrides = None,
    store: StoreOption = "sweeper_store",
    database_url: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ranking, evidence, and the winner or "no winner"."""
    service = _service(sweep, overrides, store, database_url, tracking_uri)
    answer = service.pick()
    typer.echo(json.dumps(answer.to_dict(), indent=1)) if as_json else show.answer(answer, service.place.tracking)


def devices(wanted: str) -> list[str]:
    """Device slots: ["cpu"], or CUDA indices. Raises DeviceError naming what is there."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        there = [str(index) for index, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]
        there = [name for name in visible.split(",") if name] if visible is not None else there
    except (OSError, subprocess.SubprocessError):
        there = []
    if wanted == "auto":
        return there or ["cpu"]
    if wanted == "cpu":
        return ["cpu"]
    asked = [part.strip() for part in wanted.split(",")]
    missing = [part for part in asked if part not in there]
    if missing:
        found = ", ".join(there) if there else "none"
        raise DeviceError(f"device {', '.join(missing)} is not there; expected auto, cpu, or of these GPUs: {found}")
    return asked


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (run, init, plan, launch, worker, status, pick):
        app.command()(command)
