"""Checks versions, device, threads, database, MLflow and store of this machine, and data set and study of a sweep."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sweeper import database, fleet, training
from sweeper.config import Sweep
from sweeper.errors import SweeperError
from sweeper.schedules import parse
from sweeper.service import Place, Service
from sweeper.store import Files
from sweeper.study import check_optuna
from sweeper.tracking import Tracker
from sweeper.training.process import Epoch

LIBRARIES = ("torch", "torchvision", "ultralytics", "optuna", "mlflow", "sqlalchemy", "numpy")
TIMEOUT_S = 5.0  # for an answer of MLflow
LEAST_FREE = 2e9  # bytes; some hundred states of a small model
TRIAL_S, TRIAL_EPOCHS = 60.0, 4  # `doctor --trial` trains the sweep's model for so many seconds or epochs.


@dataclass(frozen=True)
class Finding:
    """The result of a check: ``what`` was checked, whether it is ``good``, and a sentence ``says`` with the details."""

    what: str
    good: bool
    says: str


def examine(place: Place, sweep: Sweep | None = None, *, trial: bool = True) -> Iterator[Finding]:
    """Yield the finding of each check; a check that fails does not end the others. ``sweep``: check its data and study.

    If all checks of a sweep pass, the last finding says how many workers a device has room for. With ``trial`` the
    sweep's model is trained for that for about a minute, unless its trials have timed epochs already.
    """
    device = "auto" if sweep is None else str(sweep.device)
    threads = 1 if sweep is None else sweep.recipe.threads
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", _versions),
        ("device", lambda: _device(device, threads, sweep)),
        ("threads", lambda: _threads(threads)),
        ("database", lambda: _database(place)),
        ("tracking", lambda: _tracking(place, "doctor" if sweep is None else sweep.name)),
        ("store", lambda: _store(place)),
    ]
    if sweep is not None:
        service = Service(sweep, place, looking=True)
        checks += [
            ("data", lambda: _data(service)),
            ("study", lambda: _study(service)),
        ]
    good = True
    for what, check in checks:
        finding = _finding(what, check)
        good = good and finding.good
        yield finding
    if sweep is not None and good:
        yield _finding("workers", lambda: _workers(service, trial))


def _finding(what: str, check: Callable[[], str]) -> Finding:
    """The finding of a check: what it returns, or the message of its error."""
    try:
        return Finding(what, True, check())
    except (SweeperError, OSError) as error:
        return Finding(what, False, " ".join(str(error).split()))
    except ImportError as error:
        return Finding(what, False, f"{' '.join(str(error).split())}; install sweeper again, with constraints.txt")


def _versions() -> str:
    def version(name: str) -> str:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            raise SweeperError(f"{name} is not installed; install sweeper again, with constraints.txt") from None

    check_optuna()
    return ", ".join([f"python {platform.python_version()}", version("lr-sweeper"), *map(version, LIBRARIES)])


def _device(device: str, threads: int, sweep: Sweep | None) -> str:
    devices, (version, gpu_names) = fleet.worker_devices(device, None, threads=threads), training.torch_sees()
    if fleet.CPU in devices:
        named = f"cpu, {platform.machine()}; torch {version}" + (", no GPU here" if not fleet.gpus() else "")
    elif len(gpu_names) < len(fleet.gpus()):
        raise SweeperError(
            f"{len(fleet.gpus())} GPUs, but torch {version} sees {len(gpu_names)} of them; "
            "install a torch built for this driver's CUDA (nvidia-smi names its version)"
        )
    else:
        named = f"{len(devices)} x {', '.join(sorted(set(gpu_names)))}; torch {version}"
    loaders, cache = ("auto", "auto") if sweep is None else (sweep.recipe.loader_workers, sweep.recipe.cache_mb)
    megabytes = training.cache_mb(training.memory(), len(devices)) if cache == "auto" else cache
    count = fleet.loaders(loaders, devices)
    return f"{named}; a worker has {count} loader process{'es' * (count != 1)}, and {megabytes} MB for decoded images"


def _threads(threads: int) -> str:
    cores = fleet.cores()
    if threads > cores:
        raise SweeperError(f"threads: {threads} for a training, but {cores} cores here; set threads to {cores} or less")
    return f"{cores} cores, {threads} for a training on the CPU: {cores // threads} workers"


def _database(place: Place) -> str:
    try:
        opened = database.open(place.database, create=False)
    except database.NothingThere as nothing:
        url = database.parse(place.database)
        if url.get_backend_name() == "sqlite":
            _writable(Path(str(url.database)).parent)
        return f"{nothing.where}, holds no sweep yet: the first launch makes its tables"
    version, began = opened.version(), time.perf_counter()
    opened.version()
    milliseconds = 1000 * (time.perf_counter() - began)
    opened.engine.dispose()
    alone = "" if place.database_url else " (embedded: for one machine)"
    return f"{opened}, {version}, answers in {milliseconds:.1f} ms{alone}"


def _tracking(place: Place, experiment: str) -> str:
    with Tracker(place.tracking, experiment, place.folder / "journals") as tracker:
        server = tracker.server
        if server.file is not None and not server.file.exists():
            _writable(server.file.parent)
            return f"{server}, not there yet: the first launch makes it"
        server.check(TIMEOUT_S)
        began = time.perf_counter()  # The second answer is timed, because the first one includes importing MLflow.
        server.check(TIMEOUT_S)
        seconds, waiting = time.perf_counter() - began, tracker.waiting()
        unsent = f"; {waiting} journals wait to be sent, `sweeper ui` sends them or says why not" if waiting else ""
        return f"{server}, MLflow {server.version()}, answers in {1000 * seconds:.0f} ms{unsent}"


def _store(place: Place) -> str:
    store = Files(place.snapshots, make=False)
    if not store.id:
        free = shutil.disk_usage(_writable(place.folder)).free if "://" not in place.store else None
        return f"{store.url}, nothing is stored there yet{_free_space(store.url, free)}"
    began = time.perf_counter()
    free = store.check()
    milliseconds = 1000 * (time.perf_counter() - began)
    return f"{store.url}, written and read in {milliseconds:.0f} ms{_free_space(store.url, free)}"


def _free_space(url: str, free: int | None) -> str:
    """The free bytes of a store as text. Raises SweeperError if they are too few."""
    if free is not None and free < LEAST_FREE:
        raise SweeperError(
            f"{url}: {free / 1e9:.1f} GB free, expected at least {LEAST_FREE / 1e9:.0f}; free some space, remove "
            "states with `sweeper gc --max-gb`, or choose another --store"
        )
    return ", free space unknown" if free is None else f", {free / 1e9:.0f} GB free"


def _writable(folder: Path) -> Path:
    """The deepest existing folder among ``folder`` and its parents. Raises SweeperError if it is not writable."""
    deepest = next(path for path in (folder, *folder.parents) if path.exists())
    if not deepest.is_dir() or not os.access(deepest, os.W_OK):
        raise SweeperError(f"{folder}: cannot be made: {deepest} cannot be written to; expected a folder that can")
    return deepest


def _data(service: Service) -> str:
    dataset = service.dataset
    problems = f"; {len(dataset.problems)} oddities, `sweeper plan` lists them" if dataset.problems else ""
    return f"{dataset.train_images} training and {dataset.val_images} validation images{problems}"


def _study(service: Service) -> str:
    if not service.launched:
        return f"{service.sweep.name} is not launched yet"
    service.check_store()
    counts = service.study.counts()
    alive = [worker for worker in service.study.workers() if worker.age_s < service.sweep.lease_s]
    finished = counts["complete"] + counts["pruned"] + counts["fail"]
    return f"{service.sweep.name}: {finished} of {counts['total']} trials finished, {len(alive)} workers alive"


@dataclass(frozen=True)
class Load:
    """The resources that a worker needs: ``seconds`` an epoch, a ``share`` of a GPU's memory (0 on a CPU), and
    ``bytes`` of the machine's memory (0: not measured). ``source`` says for the user how they were measured."""

    source: str
    seconds: float
    share: float
    bytes: int


def _workers(service: Service, measure: bool) -> str:
    """How many workers each device has room for, from the sweep's trials or from a trial now, as a sentence."""
    sweep, memory, cores = service.sweep, training.memory(), fleet.cores()
    devices = fleet.worker_devices(str(sweep.device), None, threads=sweep.recipe.threads)
    on_gpu = fleet.CPU not in devices
    trials = service.study.trials() if service.launched else []
    timed = [trial.facts.epoch_seconds for trial in trials if trial.facts.epoch_seconds]
    share = max((trial.facts.gpu_memory or 0.0 for trial in trials), default=0.0)
    if timed and (share or not on_gpu):
        load = Load(f"{len(timed)} trials", median(timed), share, 0)
    elif measure and not timed:
        load = _measure(service, devices)
    else:
        return f"how many a device has room for is known after the first {'trial' if timed else 'epochs'}"
    needs = f"{load.source}: {load.seconds:.3g} s an epoch"
    if load.bytes:
        needs += f", {load.bytes / 1e9:.2g} of {memory / 1e9:.3g} GB of memory"
    if on_gpu:
        cores //= len(fleet.gpus())
        loaders = 1 if sweep.recipe.loader_workers == "auto" else sweep.recipe.loader_workers
        count = fleet.per_gpu(max(load.share, 0.001), cores, loaders)
        needs += f", {load.share:.1%} of the GPU's, with {cores} cores for each GPU"
    else:
        count = cores // sweep.recipe.threads
        needs += f", {sweep.recipe.threads} of {cores} cores"
    if load.bytes:
        count = min(count, memory // load.bytes // (len(devices) if on_gpu else 1))
    count = max(count, 1)
    return f"{needs}; room for {count} worker{'s' * (count != 1)} (--per-device {count})"


def _measure(service: Service, devices: list[str]) -> Load:
    """The load of one worker, measured by training the sweep's model for some epochs, or for a minute."""
    sweep, on_gpu, cache_mb = service.sweep, devices[0] != fleet.CPU, service.sweep.recipe.cache_mb
    recipe = service.recipe(sweep.recipe.seed).model_copy(
        update={
            "loader_workers": fleet.loaders(sweep.recipe.loader_workers, devices),
            "cache_mb": training.cache_mb(training.memory(), len(devices)) if cache_mb == "auto" else cache_mb,
        }
    )
    trace = service.trace(parse({"family": "constant", "lr": 1e-5}))
    share, step, began, now, epoch_ends = 0.0, 0, 0.0, 0.0, list[float]()
    with (
        tempfile.TemporaryDirectory(prefix="sweeper-trial-") as folder,
        fleet.visible(devices[0]),
        service.training(device="cuda:0" if on_gpu else "cpu", folder=Path(folder), stall_s=sweep.stall_s) as child,
        contextlib.closing(child.train(recipe, trace, start=0, state=None)) as events,
    ):
        for event in events:
            now = time.monotonic()
            began, share = began or now, max(share, event.memory)
            if isinstance(event, Epoch):
                epoch_ends.append(now)
            else:
                step = max(step, event.step)
            if now - began > TRIAL_S or len(epoch_ends) == TRIAL_EPOCHS:
                break
    unit = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss
    used = unit * sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    if not epoch_ends:
        batches = -(-service.dataset.train_images // recipe.batch)
        seconds = (now - began) * batches / max(step, 1)
        return Load(f"one worker alone, {step} of {batches} batches tried", seconds, share, used)
    count = len(epoch_ends)
    seconds = (epoch_ends[-1] - epoch_ends[0]) / (count - 1) if count > 1 else epoch_ends[0] - began
    return Load(f"one worker alone, {count} epoch{'s' * (count > 1)} tried", seconds, share, used)
