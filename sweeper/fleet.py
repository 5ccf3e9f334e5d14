"""Worker processes, one per slot of a device: started, replaced when they die, stopped together."""

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
SOON_S = 60.0  # a process that lived shorter died in vain
TRIES = 5  # such deaths in a row end a slot
LAST_WORDS_S = 30.0
MOST_PER_GPU = 8


def _driver(*question: str) -> list[str]:
    """The lines that the GPUs' driver answers; none where there is no driver."""
    try:
        done = subprocess.run(["nvidia-smi", *question], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def gpu_memory_gb() -> list[float]:
    """GB of memory of each GPU of this machine."""
    answer = _driver("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    return [int(mebibytes) * 2**20 / 1e9 for mebibytes in answer if mebibytes.strip().isdigit()]


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no driver."""
    there = [str(index) for index in range(sum(line.startswith("GPU ") for line in _driver("-L")))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    stripped = (name.strip() for name in visible.split(","))
    named = itertools.takewhile(lambda name: not name.startswith("-"), stripped)  # CUDA, too, stops at a -1
    return [name for name in named if name] if there else []


@contextlib.contextmanager
def visible(slot: str) -> Iterator[None]:
    """Let processes that are started meanwhile see the GPU of this slot only, as number 0; nothing for "cpu"."""
    name, before = "CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")
    if slot != CPU:
        os.environ[name] = gpus()[int(slot)]
    try:
        yield
    finally:
        if slot != CPU:
            del os.environ[name]
            os.environ.update({} if before is None else {name: before})


def slots(devices: str, per_device: int | None = 1, *, threads: int = 1) -> list[str]:
    """Where the workers go: "cpu", or the number of a visible GPU, once for each of ``per_device`` workers on it.

    ``devices``: ``auto`` (all visible GPUs, else the CPU), ``cpu``, or numbers of visible GPUs, "0,2". ``per_device``:
    None for one per GPU, and on the CPU as many as there are cores for ``threads`` each. Slots alternate between the
    devices, so that the first few are spread. Raises DeviceError naming what is there.
    """
    there = [str(index) for index in range(len(gpus()))]
    asked = [part.strip() for part in devices.split(",")]
    if devices == CPU or (devices == "auto" and not there):
        return [CPU] * (max(cores() // threads, 1) if per_device is None else per_device)
    if missing := [part for part in asked if devices != "auto" and part not in there]:
        known = ", ".join(there) or "none"
        raise DeviceError(f"device {', '.join(missing)} is not there; expected auto, cpu, or of these GPUs: {known}")
    return (there if devices == "auto" else asked) * (1 if per_device is None else per_device)


def loaders(wanted: int | Literal["auto"], slots: Sequence[str]) -> int:
    """Loader processes for each worker: what is ``wanted``, or on GPUs what is left of the cores beside the workers.

    >>> loaders(8, ["cpu", "cpu"]), loaders("auto", ["cpu"]), loaders(10**6, ["0"] * 10**6)
    (8, 0, 0)
    """
    if CPU in slots:
        return 0 if wanted == "auto" else wanted
    room = max(cores() // len(slots) - 1, 0)
    return loader_workers(cores(), len(slots)) if wanted == "auto" else min(wanted, room)


def per_gpu(memory: float, cores: int, loaders: int = 0) -> int:
    """How many workers may share a GPU when one has held ``memory``, a share of it, and a GPU has so many ``cores``.

    A tenth of the memory is kept for what torch does not count (each process's CUDA context); a worker keeps a core and
    each of its loader processes another one busy. (8 workers on an H200: 1.6 times one's epochs, see docs/scale.md.)

    >>> per_gpu(0.1, cores=16), per_gpu(0.1, cores=4), per_gpu(0.3, cores=16), per_gpu(0.01, 64), per_gpu(0.8, 16, 3)
    (8, 4, 3, 8, 1)
    """
    return max(min(int(0.9 / memory), cores // (1 + loaders), MOST_PER_GPU), 1)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Process(Protocol):
    """What a fleet needs of a worker process, wherever it runs; as of ``subprocess.Popen``."""

    def poll(self) -> int | None:
        """Its exit status, None while it lives."""

    def send_signal(self, sig: int, /) -> None:
        """Nothing if it has ended."""


class Fleet:
    """One process of ``command`` per slot. ``logs``: a folder for their output; None: where ours goes.

    ``environment``: variables that they get beside ours; None unsets one.
    Each sees its own GPU only, as number 0, and takes ``threads`` of the CPU, on a GPU its share of the cores;
    those who share a GPU are told how much of its memory is theirs.
    Workers elsewhere are a subclass that says how one is started (``spawn``) and how many there may be (``grow``).
    """

    def __init__(
        self,
        command: Sequence[str],
        slots: Sequence[str],
        *,
        threads: int = 1,
        logs: Path | None = None,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self._command, self._slots, self._threads, self._logs = list(command), list(slots), threads, logs
        self._given = dict(environment or {})
        self._gpus = gpus()  # asked once: when one is lost later, the driver may not answer for the others either
        self._running: dict[int, Process] = {}
        self._born: dict[int, float] = {}
        self._again: dict[int, float] = dict.fromkeys(range(len(slots)), 0.0)  # slot -> when to start it
        self._in_vain: defaultdict[int, int] = defaultdict(int)

    def run(
        self,
        done: Callable[[], bool],
        *,
        stop: threading.Event,
        say: Callable[[str], None],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep the processes going until each has ended with exit status 0.

        A process that dies is replaced, unless ``done()``, which is slow and so asked only then, says that all work is
        done; one that dies again and again at its start is not. ``tick`` is called twice a second. ``stop`` ends all at
        a snapshot, KeyboardInterrupt at once. Raises SweeperError when it was in vain.
        """
        try:
            while (self._running or self._again) and not stop.is_set():
                _patiently(self.grow, say)
                now = time.monotonic()
                for index in [index for index, when in self._again.items() if when <= now]:
                    del self._again[index]
                    self._born[index], self._running[index] = now, self.spawn(index)
                stop.wait(0.5)
                self._look(done, say)
                _patiently(tick, say)
            self._signal(signal.SIGTERM)
            for process in self._running.values():
                while process.poll() is None:
                    time.sleep(0.1)  # not one long wait, in which a handler of ours might not run
            if not stop.is_set() and not done():
                raise SweeperError(f"the workers ended before the sweep was done; the reasons stand in {self._place}")
        except KeyboardInterrupt:
            self._signal(signal.SIGINT)  # a second one, after the terminal's own, means now
            end = time.monotonic() + LAST_WORDS_S
            while time.monotonic() < end and any(process.poll() is None for process in self._running.values()):
                time.sleep(0.1)
            raise
        finally:
            self._signal(signal.SIGKILL)

    @property
    def _place(self) -> str:
        return f"{self._logs}/*.log" if self._logs else "the lines above"

    def grow(self) -> None:
        """Asked twice a second: add slots to ``_again`` where there is room for more; on one machine there never is."""

    def spawn(self, index: int) -> Process:
        """Start the process of a slot."""
        device = CPU if self._slots[index] == CPU else "0"  # the only one that it sees
        command, environment = [*self._command, "--devices", device], self._environment(index)
        if device != CPU and (together := self._slots.count(self._slots[index])) > 1:
            command += ["--share", f"{1 / together:.4g}"]
        if self._logs is None:
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{os.uname().nodename}-{index}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _environment(self, index: int) -> dict[str, str]:
        slot = self._slots[index]
        ours = {name: value for name, value in (os.environ | self._given).items() if value is not None}
        if slot == CPU:
            return ours | {"OMP_NUM_THREADS": str(self._threads)}
        share = max(cores() // len(self._slots), 1)
        return ours | {"OMP_NUM_THREADS": str(share), "CUDA_VISIBLE_DEVICES": self._gpus[int(slot)]}

    def _look(self, done: Callable[[], bool], say: Callable[[str], None]) -> None:
        now = time.monotonic()
        for index, process in list(self._running.items()):
            if (code := process.poll()) is None:
                continue
            del self._running[index]
            if code == 0:
                continue
            if (finished := _patiently(done, say)) is True:
                continue
            if finished is not None:  # else the database is away, for as long as it takes
                self._in_vain[index] = self._in_vain[index] + 1 if now - self._born[index] < SOON_S else 0
            if self._in_vain[index] >= TRIES:
                say(f"a worker ended with {code} for the {TRIES}th time within {SOON_S:.0f} s; not started again")
            else:
                wait = 2.0 ** self._in_vain[index] - 1
                say(f"a worker ended with {code}; another takes its place in {wait:.0f} s (why: {self._place})")
                self._again[index] = now + wait

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            process.send_signal(number)


def _patiently(ask: Callable[[], bool | None], say: Callable[[str], None]) -> bool | None:
    """``ask()``; None if that cannot be told now: workers outlast a database's outage, so must who watches them."""
    try:
        return ask()
    except SweeperError as error:
        say(str(error))
        return None
