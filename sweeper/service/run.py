"""A sweep trained on this machine: a worker process for each slot of a device."""

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

MANY = 1_000_000
SEND_S = 60.0  # for the journals that are left when the workers have ended

Say = Callable[[str], None]


def slots(sweep: Sweep) -> list[str]:
    """Where on this machine the sweep's workers go, an entry each, see ``fleet.slots``. Raises DeviceError."""
    count = None if sweep.workers == "auto" else sweep.workers
    return fleet.slots(str(sweep.device), count, threads=sweep.recipe.threads)[:count]


def open_trials(service: "Service") -> int:
    """How many workers find something to do at most: a trial each, and in a search that still grows no limit."""
    counts = service.study.counts()
    left = counts["waiting"] + counts["running"]
    return left if not service.agenda.grows or service.study.done else MANY


def train(
    service: "Service",
    where: list[str],
    *,
    stop: threading.Event | None = None,
    say: Say = print,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Train every open trial with workers in the slots ``where``; what they print goes to logs in the store.

    ``say`` is told about workers that die and the like, ``tick`` is called about twice a second. ``stop`` ends the
    workers after their epoch. Raises KeyboardInterrupt if it was set, SweeperError if no worker could be kept alive.
    """
    stop = threading.Event() if stop is None else stop
    if left := open_trials(service):
        workers = crew(service, where[:left], say, logs=service.place.folder / "work")
        workers.run(lambda: service.study.done, stop=stop, say=say, tick=tick)
    settle(service, stop, say)


def crew(service: "Service", where: list[str], say: Say, *, logs: Path | None) -> fleet.Fleet:
    """Worker processes of this sweep, not started; ``logs``: a folder for what they print, None: where ours goes.

    They read the sweep from a copy in the store, so that it need not come from a file. Addresses, which may hold
    passwords, are given to them by the environment, where other users of the machine cannot read them.
    """
    recipe = service.sweep.recipe
    command = [sys.executable, "-m", "sweeper", "worker", str(written(service))]
    loaders, given = fleet.loaders(recipe.loader_workers, where), recipe.loader_workers
    if loaders != given:
        command.append(f"loader_workers={loaders}")
        if given != "auto":
            say(f"loader_workers: {loaders} each, not {given}: {len(where)} workers share {fleet.cores()} cores")
    if recipe.cache_mb == "auto":
        command.append(f"cache_mb={cache_mb(memory(), len(where))}")
    place = service.place
    environment = {
        "SWEEPER_STORE": place.store,
        "SWEEPER_DATABASE_URL": place.database_url,
        "MLFLOW_TRACKING_URI": place.tracking_uri,
    }
    return fleet.Fleet(command, where, threads=recipe.threads, logs=logs, environment=environment)


def settle(service: "Service", stop: threading.Event, say: Say) -> None:
    """What is left to do when the workers have ended; KeyboardInterrupt if they were told to."""
    if stop.is_set():
        raise KeyboardInterrupt
    send_journals(service, SEND_S, say)
    try:
        if service.study.done:
            service.tracker.sweep(status="FINISHED")
    except TrackingError as error:  # the answer is in the study
        say(str(error))


def send_journals(service: "Service", timeout: float, say: Say) -> None:
    """Send the journals that no worker sends any more, within ``timeout`` seconds; say how many are left, and why."""
    if left := service.tracker.drain(timeout):
        why = f": {service.tracker.problem}" if service.tracker.problem else ""
        say(f"{left} journal{'s wait' if left > 1 else ' waits'} to be sent by the next command{why}")


def written(service: "Service") -> Path:
    """The sweep as a file in this machine's folder, from which a worker reads the same sweep."""
    keys = service.sweep.flat()
    if "data" in keys and os.path.exists(keys["data"]):
        keys["data"] = str(Path(keys["data"]).absolute())  # a path in a sweep file is relative to that file
    file = service.place.folder / "work" / f"{service.sweep.name}.sweep.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_name(f".{uuid.uuid4().hex}.yaml")
    written.write_text(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True), encoding="utf-8")
    written.replace(file)
    return file
