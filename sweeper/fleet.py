"""Worker processes, one or several on each device: started, replaced when they die, and stopped together."""

import contextlib
import itertools
import os
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from sweeper.errors import DeviceError, SweeperError
from sweeper.training import loader_workers

CPU = "cpu"
EARLY_DEATH_S = 60.0  # The death of a process that lived shorter is an early one.
MAX_EARLY_DEATHS = 5  # After so many early deaths in a row, the process is not replaced.
INTERRUPT_GRACE_S = 30.0  # How long processes may take to end after Ctrl-C, before they are killed.
MOST_PER_GPU = 8


def _nvidia_smi(*arguments: str) -> list[str]:
    """Return the lines that nvidia-smi prints; none where there is no driver."""
    try:
        completed = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return completed.stdout.splitlines()


def gpu_memory_gb() -> list[float]:
    """Return the memory of each GPU of this machine in GB."""
    lines = _nvidia_smi("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    return [int(mebibytes) * 2**20 / 1e9 for mebibytes in lines if mebibytes.strip().isdigit()]


def gpus() -> list[str]:
    """Return the GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES; [] without a driver."""
    installed = [str(index) for index in range(sum(line.startswith("GPU ") for line in _nvidia_smi("-L")))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    stripped = (name.strip() for name in visible.split(","))
    selected = itertools.takewhile(lambda name: not name.startswith("-"), stripped)  # CUDA ignores what follows a -1.
    return [name for name in selected if name] if installed else []


@contextlib.contextmanager
def visible(device: str) -> Iterator[None]:
    """Processes that are started inside the block see only the GPU ``device``, as number 0; "cpu" changes nothing."""
    name, before = "CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")
    if device != CPU:
        os.environ[name] = gpus()[int(device)]
    try:
        yield
    finally:
        if device != CPU:
            del os.environ[name]
            os.environ.update({} if before is None else {name: before})


def worker_devices(devices: str, per_device: int | None = 1, *, threads: int = 1) -> list[str]:
    """Return the device of each worker: "cpu" or the number of a visible GPU, which occurs ``per_device`` times.

    ``devices`` is ``auto`` (all visible GPUs, or the CPU if there is none), ``cpu``, or numbers of visible GPUs like
    "0,2". ``per_device`` None means one worker per GPU, and on the CPU as many as have ``threads`` cores each. The
    devices alternate, so that a few workers are spread over them. Raises DeviceError, naming the visible GPUs.
    """
    available = [str(index) for index in range(len(gpus()))]
    requested = [part.strip() for part in devices.split(",")]
    if devices == CPU or (devices == "auto" and not available):
        return [CPU] * (max(cores() // threads, 1) if per_device is None else per_device)
    if missing := [part for part in requested if devices != "auto" and part not in available]:
        expected = ", ".join(available) or "none"
        raise DeviceError(f"device {', '.join(missing)} is not there; expected auto, cpu, or of these GPUs: {expected}")
    return (available if devices == "auto" else requested) * (1 if per_device is None else per_device)


def loaders(wanted: int | Literal["auto"], devices: Sequence[str]) -> int:
    """Return the number of loader processes of each worker; ``devices`` has an entry for each worker.

    On GPUs it is at most the number of cores that the workers leave free.

    >>> loaders(8, ["cpu", "cpu"]), loaders("auto", ["cpu"]), loaders(10**6, ["0"] * 10**6)
    (8, 0, 0)
    """
    if CPU in devices:
        return 0 if wanted == "auto" else wanted
    free = max(cores() // len(devices) - 1, 0)
    return loader_workers(cores(), len(devices)) if wanted == "auto" else min(wanted, free)


def per_gpu(memory: float, cores: int, loaders: int = 0) -> int:
    """Return how many workers may share a GPU, of whose memory one worker held the share ``memory``.

    ``cores`` is the number of CPU cores for each GPU; a worker and each of its loader processes use one. A tenth of
    the memory is reserved for what torch does not count, such as the CUDA context of each process. (Eight workers on
    an H200 train 1.6 times the epochs of one, see docs/scale.md.)

    >>> per_gpu(0.1, cores=16), per_gpu(0.1, cores=4), per_gpu(0.3, cores=16), per_gpu(0.01, 64), per_gpu(0.8, 16, 3)
    (8, 4, 3, 8, 1)
    """
    return max(min(int(0.9 / memory), cores // (1 + loaders), MOST_PER_GPU), 1)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Process(Protocol):
    """The part of ``subprocess.Popen`` that a fleet needs of a worker process, on whichever machine it runs."""

    def poll(self) -> int | None:
        """Return the exit status; None while the process lives."""

    def send_signal(self, sig: int, /) -> None:
        """Send a signal; do nothing if the process has ended."""


class Fleet:
    """Runs one process of ``command`` for each entry of ``devices``, see :func:`worker_devices`.

    Their output goes to files in the folder ``logs`` (None: to this process's output). ``environment`` has variables
    that they get in addition to this process's; None removes a variable. Each process sees only its own GPU, as
    number 0, and uses ``threads`` CPU threads, or on a GPU its share of the cores. Processes that share a GPU get
    ``--share``, their part of its memory. A subclass for other machines overrides ``spawn``, which starts a process,
    and ``grow``, which adds processes.
    """

    def __init__(
        self,
        command: Sequence[str],
        devices: Sequence[str],
        *,
        threads: int = 1,
        logs: Path | None = None,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self._command, self._devices, self._threads, self._logs = list(command), list(devices), threads, logs
        self._extra_environment = dict(environment or {})
        self._gpus = gpus()  # Read once, because after the loss of a GPU the driver may not answer for the others.
        self._running: dict[int, Process] = {}  # By index, as the following ones; times are in monotonic seconds.
        self._started: dict[int, float] = {}
        self._due: dict[int, float] = dict.fromkeys(range(len(devices)), 0.0)  # When to start a process.
        self._early_deaths: defaultdict[int, int] = defaultdict(int)  # In a row.

    def run(
        self,
        done: Callable[[], bool],
        *,
        stop: threading.Event,
        say: Callable[[str], None],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Run the processes until each has ended with exit status 0.

        A process that dies is replaced, unless ``done()`` says that all work is done (it is slow, so it is called only
        then), or the process has died early too often. ``tick`` is called twice a second, ``say`` gets messages.
        After ``stop`` is set, the processes end at their next snapshot; after KeyboardInterrupt they end at once.
        Raises SweeperError if all processes have ended and the work is not done.
        """
        try:
            while (self._running or self._due) and not stop.is_set():
                _call(self.grow, say)
                now = time.monotonic()
                for index in [index for index, when in self._due.items() if when <= now]:
                    del self._due[index]
                    self._started[index], self._running[index] = now, self.spawn(index)
                stop.wait(0.5)
                self._replace_dead(done, say)
                _call(tick, say)
            self._signal(signal.SIGTERM)
            for process in self._running.values():
                while process.poll() is None:
                    # Not process.wait(): after a library has set SA_RESTART, a signal would not interrupt it, and this
                    # process's handlers would run only after it.
                    time.sleep(0.1)
            if not stop.is_set() and not done():
                raise SweeperError(f"the workers ended before the sweep was done; the reasons are in {self._log_name}")
        except KeyboardInterrupt:
            # The terminal has sent the processes a first SIGINT, after which they finish their epoch; a second one ends
            # them at once.
            self._signal(signal.SIGINT)
            end = time.monotonic() + INTERRUPT_GRACE_S
            while time.monotonic() < end and any(process.poll() is None for process in self._running.values()):
                time.sleep(0.1)
            raise
        finally:
            self._signal(signal.SIGKILL)

    @property
    def _log_name(self) -> str:
        return f"{self._logs}/*.log" if self._logs else "the lines above"

    def grow(self) -> None:
        """Add processes to ``_due`` if more can run; called twice a second. On one machine, their number is fixed."""

    def spawn(self, index: int) -> Process:
        """Start process ``index``."""
        device = CPU if self._devices[index] == CPU else "0"  # The process sees only its own GPU.
        command, environment = [*self._command, "--devices", device], self._environment(index)
        if device != CPU and (sharing := self._devices.count(self._devices[index])) > 1:
            command += ["--share", f"{1 / sharing:.4g}"]
        if self._logs is None:
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{os.uname().nodename}-{index}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _environment(self, index: int) -> dict[str, str]:
        device = self._devices[index]
        merged = os.environ | self._extra_environment
        environment = {name: value for name, value in merged.items() if value is not None}
        if device == CPU:
            return environment | {"OMP_NUM_THREADS": str(self._threads)}
        share = max(cores() // len(self._devices), 1)
        return environment | {"OMP_NUM_THREADS": str(share), "CUDA_VISIBLE_DEVICES": self._gpus[int(device)]}

    def _replace_dead(self, done: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Remove the processes that have ended, and schedule a replacement for each that died."""
        now = time.monotonic()
        for index, process in list(self._running.items()):
            if (code := process.poll()) is None:
                continue
            del self._running[index]
            if code == 0:
                continue
            if (finished := _call(done, say)) is True:
                continue
            if finished is not None:  # During an outage of the database workers die, too; that does not count.
                early = now - self._started[index] < EARLY_DEATH_S
                self._early_deaths[index] = self._early_deaths[index] + 1 if early else 0
            if self._early_deaths[index] >= MAX_EARLY_DEATHS:
                often = f"for the {MAX_EARLY_DEATHS}th time within {EARLY_DEATH_S:.0f} s"
                say(f"a worker ended with {code} {often}; not started again")
            else:
                wait = 2.0 ** self._early_deaths[index] - 1
                say(f"a worker ended with {code}; another takes its place in {wait:.0f} s (why: {self._log_name})")
                self._due[index] = now + wait

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            process.send_signal(number)


def _call(query: Callable[[], bool | None], say: Callable[[str], None]) -> bool | None:
    """Return ``query()``, or None after a SweeperError, which ``say`` gets.

    The fleet must not end because its query fails during an outage of the database, which its workers outlast.
    """
    try:
        return query()
    except SweeperError as error:
        say(str(error))
        return None
