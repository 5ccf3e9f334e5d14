"""What works here and what does not: device, threads, database, tracking server, store, versions, and the sweep."""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sweeper import database, fleet, training
from sweeper.config import Sweep
from sweeper.errors import SweeperError
from sweeper.service import Place, Service
from sweeper.store import Store
from sweeper.study import check_optuna
from sweeper.tracking import Tracker

LIBRARIES = ("torch", "torchvision", "ultralytics", "optuna", "mlflow", "sqlalchemy", "numpy")
LEAST_FREE = 2e9  # bytes; some hundred states of a small model


@dataclass(frozen=True)
class Finding:
    """One line: ``what`` was looked at, whether it is ``good``, what was found or, when it is not, what to do."""

    what: str
    good: bool
    says: str


def examine(place: Place, sweep: Sweep | None = None) -> Iterator[Finding]:
    """Look at everything; a fault in one part hides no other. With ``sweep`` also at its data and its study."""
    device = "auto" if sweep is None else str(sweep.device)
    threads = 1 if sweep is None else sweep.recipe.threads
    look: list[tuple[str, Callable[[], str]]] = [
        ("versions", _versions),
        ("device", lambda: _device(device)),
        ("threads", lambda: _threads(threads)),
        ("database", lambda: _database(place)),
        ("tracking", lambda: _tracking(place, "doctor" if sweep is None else sweep.name)),
        ("store", lambda: _store(place)),
    ]
    if sweep is not None:
        if fleet.gpus() and device != fleet.CPU:
            look.append(("per GPU", lambda: _per_gpu(Service(sweep, place))))
        look += [("data", lambda: _data(Service(sweep, place))), ("study", lambda: _study(Service(sweep, place)))]
    for what, ask in look:
        try:
            yield Finding(what, True, ask())
        except (SweeperError, OSError) as error:
            yield Finding(what, False, " ".join(str(error).split()))
        except ImportError as error:
            yield Finding(what, False, f"{' '.join(str(error).split())}; install sweeper again, with constraints.txt")


def _versions() -> str:
    def version(name: str) -> str:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            raise SweeperError(f"{name} is not installed; install sweeper again, with constraints.txt") from None

    check_optuna()
    return ", ".join([f"python {platform.python_version()}", version("sweeper"), *map(version, LIBRARIES)])


def _device(wanted: str) -> str:
    slots, torch = fleet.slots(wanted), training.torch_sees()
    if fleet.CPU in slots:
        return f"cpu, {platform.machine()}; torch {torch.version}" + (", no GPU here" if not fleet.gpus() else "")
    if len(torch.gpus) < len(fleet.gpus()):
        raise SweeperError(
            f"{len(fleet.gpus())} GPUs, but torch {torch.version} sees {len(torch.gpus)} of them; "
            "install a torch built for this driver's CUDA (nvidia-smi names its version)"
        )
    return f"{len(slots)} x {', '.join(sorted(set(torch.gpus)))}; torch {torch.version}"


def _threads(threads: int) -> str:
    cores = fleet.cores()
    if threads > cores:
        raise SweeperError(f"threads: {threads} for a training, but {cores} cores here; set threads to {cores} or less")
    return f"{cores} cores, {threads} for a training on the CPU: {cores // threads} workers"


def _database(place: Place) -> str:
    opened = database.open(place.database)
    version, began = opened.version(), time.perf_counter()
    opened.version()
    milliseconds = 1000 * (time.perf_counter() - began)
    opened.close()
    alone = "" if place.database_url else " (embedded: for one machine)"
    return f"{opened}, {version}, answers in {milliseconds:.1f} ms{alone}"


def _tracking(place: Place, experiment: str) -> str:
    folder = place.folder
    with Tracker(place.tracking, experiment, folder / "journals", folder / "mlartifacts") as tracker:
        tracker.check()
        began = time.perf_counter()  # of the second answer: for the first one, MLflow had to be imported
        tracker.check()
        seconds, waiting = time.perf_counter() - began, tracker.waiting()
        later = f"; {waiting} journals wait to be sent, `sweeper ui` sends them or says why not" if waiting else ""
        return f"{tracker.server}, MLflow {tracker.server.version()}, answers in {1000 * seconds:.0f} ms{later}"


def _store(place: Place) -> str:
    store = Store(place.snapshots, database.open(place.database))
    began = time.perf_counter()
    free = store.check()
    milliseconds, usage = 1000 * (time.perf_counter() - began), store.usage()
    if free is not None and free < LEAST_FREE:
        raise SweeperError(
            f"{store.url}: {free / 1e9:.1f} GB free; free some space, `sweeper gc` removes states, or choose another"
        )
    left = "free space unknown" if free is None else f"{free / 1e9:.0f} GB free"
    return f"{store.url}, written and read in {milliseconds:.0f} ms, {usage.count} states, {left}"


def _data(service: Service) -> str:
    found = service.dataset
    problems = f"; {len(found.problems)} oddities, `sweeper plan` lists them" if found.problems else ""
    return f"{found.train_images} training and {found.val_images} validation images{problems}"


def _per_gpu(service: Service) -> str:
    held = (
        [row.attrs["gpu_memory"] for row in service.study.rows() if "gpu_memory" in row.attrs]
        if service.launched
        else []
    )
    if not held:
        return "one worker; how many could share it is known after the first trial"
    loaders, cores = service.sweep.recipe.loader_workers, fleet.cores() // len(fleet.gpus())
    count = fleet.per_gpu(max(held), cores, loaders)
    return (
        f"a trial held {max(held):.0%} of its memory, {cores} cores for each GPU: room for {count} workers "
        f"(--per-device {count}); benchmarks/per_device.py measures what they gain"
    )


def _study(service: Service) -> str:
    if not service.launched:
        return f"{service.sweep.name} is not launched yet"
    service.check_store()
    counts = service.study.counts()
    beats = [worker for worker in service.study.workers() if worker.age_s < service.sweep.lease_s]
    finished = counts["complete"] + counts["pruned"] + counts["fail"]
    return f"{service.sweep.name}: {finished} of {counts['total']} trials finished, {len(beats)} workers alive"
