"""Trains a sweep on this machine, with one or several worker processes on each device."""

import os
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from sweeper import fleet
from sweeper.config import Sweep
from sweeper.errors import TrackingError
from sweeper.training import cache_mb, memory

if TYPE_CHECKING:
    from sweeper.service.service import Service

UNLIMITED = 1_000_000  # more workers than any machine has
SEND_S = 60.0  # time for sending the journals that are left when the workers have ended

Say = Callable[[str], None]


def worker_devices(sweep: Sweep) -> list[str]:
    """The device of each of the sweep's workers on this machine, as in ``fleet.worker_devices``. Raises DeviceError."""
    count = None if sweep.workers == "auto" else sweep.workers
    return fleet.worker_devices(str(sweep.device), count, threads=sweep.recipe.threads)[:count]


def open_trials(service: "Service") -> int:
    """How many workers could train at once: one for each open trial, or no limit if the agenda adds trials."""
    counts = service.study.counts()
    left = counts["waiting"] + counts["running"]
    return left if not service.agenda.adds_trials or service.study.done else UNLIMITED


def train(
    service: "Service",
    devices: list[str],
    *,
    stop: threading.Event | None = None,
    say: Say = print,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Train every open trial with a worker for each entry of ``devices``; their output goes to files in the store.

    ``say`` gets messages for the user, such as that a worker died; ``tick`` is called about twice a second. When
    ``stop`` is set, the workers end after their epoch. Raises KeyboardInterrupt if ``stop`` was set, SweeperError if
    every worker died again and again.
    """
    stop = threading.Event() if stop is None else stop
    if count := open_trials(service):
        workers = crew(service, devices[:count], say, logs=service.place.folder / "work")
        workers.run(lambda: service.study.done, stop=stop, say=say, tick=tick)
    settle(service, stop, say)


def crew(service: "Service", devices: list[str], say: Say, *, logs: Path | None) -> fleet.Fleet:
    """The sweep's worker processes, not started yet. ``logs``: the folder of their log files (None: they print here).

    Workers read the sweep from a copy in the store, because the sweep may not come from a file. They get addresses,
    which may contain passwords, in the environment, because other users of the machine can read a command line.
    """
    recipe = service.sweep.recipe
    command = [sys.executable, "-m", "sweeper", "worker", str(write_sweep(service))]
    loaders, wanted = fleet.loaders(recipe.loader_workers, devices), recipe.loader_workers
    if loaders != wanted:
        command.append(f"loader_workers={loaders}")
        if wanted != "auto":
            say(f"loader_workers: {loaders} each, not {wanted}: {len(devices)} workers share {fleet.cores()} cores")
    if recipe.cache_mb == "auto":
        command.append(f"cache_mb={cache_mb(memory(), len(devices))}")
    place = service.place
    environment = {
        "SWEEPER_STORE": place.store,
        "SWEEPER_DATABASE_URL": place.database_url,
        "MLFLOW_TRACKING_URI": place.tracking_uri,
    }
    return fleet.Fleet(command, devices, threads=recipe.threads, logs=logs, environment=environment)


def settle(service: "Service", stop: threading.Event, say: Say) -> None:
    """Send the remaining journals and mark the sweep's run in MLflow as finished, when the workers have ended.

    Raises KeyboardInterrupt if ``stop`` is set.
    """
    if stop.is_set():
        raise KeyboardInterrupt
    send_journals(service, SEND_S, say)
    try:
        if service.study.done:
            service.tracker.sweep(status="FINISHED")
    except TrackingError as error:  # The study has the answer, so the sweep need not fail.
        say(str(error))


def send_journals(service: "Service", timeout: float, say: Say) -> None:
    """Send the journals of ended workers, for at most ``timeout`` seconds; report how many are left, and why."""
    if left := service.tracker.drain(timeout):
        reason = f": {service.tracker.problem}" if service.tracker.problem else ""
        say(f"{left} journal{'s wait' if left > 1 else ' waits'} to be sent by the next command{reason}")


def write_sweep(service: "Service") -> Path:
    """Write the sweep to a file in this machine's folder, from which the workers read it; returns its path."""
    keys = service.sweep.to_dict()
    if "data" in keys and os.path.exists(keys["data"]):
        keys["data"] = str(Path(keys["data"]).absolute())  # a path in a sweep file is relative to that file
    file = service.place.folder / "work" / f"{service.sweep.name}.sweep.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{uuid.uuid4().hex}.yaml")
    temporary.write_text(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(file)  # in one step, because a worker may be reading it
    return file
