"""Real workers, studies and stores in one process, with a small exact training and chance in the test's hands.

Workers sit in threads of which one runs at a time; each may be interrupted before any of its transactions and after any
of its epochs. What happens there is the test's to say: the other worker's turn, kill -9 (the worker can write nothing
any more), a freeze during which its leases run out, SIGTERM, a damaged file. So a run with any of it can be repeated.
"""

import functools
import hashlib
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy

from sweeper.config import Recipe, Sweep
from sweeper.data import Dataset
from sweeper.errors import SnapshotCorrupt
from sweeper.schedules import Trace, prefix_keys
from sweeper.search import rules
from sweeper.service import Place, Service
from sweeper.store import Snapshot
from sweeper.tracking import Tracker
from sweeper.training import Detections
from sweeper.training.process import Epoch
from sweeper.worker import Worker

MAP = "curve/mAP50-95"
SEATS = 2
LONG = 100_000  # turns: nobody needs that many, so workers wait for each other for ever


class Killed(BaseException):
    """What a worker that is dead meets at whatever it does."""


# -- a training small enough to be done thousands of times, as exact as the real ones


def begin(seed: int) -> np.ndarray:
    """Places and velocities of four balls, untrained."""
    return np.random.default_rng(seed).normal(size=(2, 4))


def train(state: np.ndarray, seed: int, trace: Trace, epoch: int) -> np.ndarray:
    """An epoch of SGD with momentum between the two wells of (x^2 - 1)^2 + x / 4, with noise for data."""
    x, v = state
    for step in range(epoch * trace.steps_per_epoch, (epoch + 1) * trace.steps_per_epoch):
        noise = np.random.default_rng([seed, step]).normal(size=4)
        v = 0.9 * v + 4 * x * (x**2 - 1) + 0.25 + noise
        x = np.clip(x - 0.1 * float(trace.lr[step]) * v, -3, 3)
    return np.stack([x, v])


def digest(state: np.ndarray) -> str:
    return hashlib.sha256(state.tobytes()).hexdigest()


def score(state: np.ndarray) -> float:
    return float(np.exp(-np.mean((state[0] + 1) ** 2)))


def undisturbed(seed: int, trace: Trace) -> tuple[str, float]:
    """Digest of the final state and the value told, of a training that nobody touched."""
    state, curve = begin(seed), []
    for epoch in range(trace.epochs):
        state = train(state, seed, trace, epoch)
        curve.append(score(state))
    return digest(state), rules.score(curve)


class Toy:
    """What a worker sees of a training process."""

    def __init__(self, *, device: str, folder: Path, stall_s: float, world: "World", share: float = 1.0) -> None:
        self._world = world
        self.epochs = 0

    def __enter__(self) -> "Toy":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def fingerprint(self, recipe: Recipe) -> dict[str, Any]:
        return {"device": "paper and pencil"}

    def state_bytes(self, recipe: Recipe) -> int:
        return 64 + self._world.ballast

    def train(
        self, recipe: Recipe, trace: Trace, *, start: int, state: bytes | None, detecting: Callable[[int], bool]
    ) -> Iterator[Epoch]:
        if state is not None and len(state) < 64:
            raise SnapshotCorrupt("snapshot: is not of this model and optimizer")
        here = begin(recipe.seed) if state is None else np.frombuffer(state[:64]).reshape(2, 4)
        for epoch in range(start, trace.epochs):
            here = train(here, recipe.seed, trace, epoch)
            self._world.was_trained(recipe, trace, epoch)
            metrics = {"mAP50-95": score(here), "mAP50": score(here)}
            content = here.tobytes() + bytes(self._world.ballast)
            lr = float(trace.lr[(epoch + 1) * trace.steps_per_epoch - 1])
            self.epochs += 1
            loss, found = -np.log(score(here)), [] if detecting(epoch) else None
            yield Epoch(epoch, lr, metrics, {"train/loss": loss}, 36.0, content, digest(here), found)

    def detections(self, recipe: Recipe, state: bytes) -> list[Detections]:
        return []

    def weights(self, recipe: Recipe, state: bytes) -> bytes:
        return state

    def last_lines(self) -> str:
        return ""

    def end(self) -> None:
        """There is no process."""


# -- the world in which it is done


@dataclass(frozen=True)
class Home:
    """What all worlds of a module share: the data set, MLflow, and an empty database to begin with."""

    dataset: Dataset
    tracking_uri: str


class World:
    """A sweep and its workers. ``plan``: what happens at which turn; ``hook`` is called with every trained segment."""

    def __init__(
        self,
        home: Home,
        folder: Path,
        written: Mapping[str, Any],
        plan: Mapping[int, str] | None = None,
        *,
        store: str | None = None,
        ballast: int = 0,
        hook: Callable[["World", str, int], None] | None = None,
    ) -> None:
        data = {"data": str(home.dataset.yaml), "model": "toy", "imgsz": 64, "batch": 256, "nbs": 256}
        self.written = {**data, "lr0": 1.0, "lease_s": 1000, "search": {}, **written}
        self.sweep = Sweep.build(self.written)
        self.place = Place(
            store or str(folder), database_url=f"sqlite:///{folder}/sweep.db", tracking_uri=home.tracking_uri
        )
        self.folder, self.ballast = folder, ballast
        self.trained: list[str] = []  # the key of every segment, as often as it was trained
        self.happened: list[str] = []
        self._home, self._plan, self._hook = home, dict(plan or {}), hook
        self._store = store
        self._chance = random.Random(0)
        self._turn = threading.Condition()
        self._turns, self._current = 0, 0
        self._seats: dict[int, int] = {}
        self._present: set[int] = set()
        self._dead: set[int] = set()
        self._names = ["", ""]
        self._stops = [Stop(self) for _ in range(SEATS)]
        self._errors: list[BaseException] = []
        self.tracker = Tracker(home.tracking_uri, self.sweep.name, folder / "journals")
        self.service = self.open()
        self.service.launch()

    def open(self) -> Service:
        """The sweep as a process of its own sees it, in the same place."""
        service = Service(self.sweep, self.place, training=functools.partial(Toy, world=self))
        service.dataset, service.tracker = self._home.dataset, self.tracker
        return service

    def again(self) -> "World":
        """The same command once more, with nothing in its way."""
        return World(self._home, self.folder, self.written, store=self._store, ballast=self.ballast)

    def runs(self) -> list[dict[str, Any]]:
        """The trials' runs in MLflow."""
        return self.tracker.runs()

    def run(self, workers: int = SEATS) -> None:
        """Until the sweep is done or every worker was told to go."""
        threads = [threading.Thread(target=self._sit, args=(seat,), daemon=True) for seat in range(workers)]
        self._present = set(range(workers))
        self._current = 0
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(900)
            assert not thread.is_alive(), "a worker waits for ever"
        self.tracker.close()
        if self._errors:
            raise self._errors[0]

    def keys(self, seed: int, trace: Trace) -> list[str]:
        """Prefix keys as the workers see them."""
        recipe = self.service.recipe(seed)
        return prefix_keys(recipe.digest(self.service.facts({"device": "paper and pencil"})), trace)

    # -- what a worker goes through

    def _sit(self, seat: int) -> None:
        self._seats[threading.get_ident()] = seat
        generation = 0
        try:
            with self._turn:
                self._await(seat)
            while True:
                self._dead.discard(seat)
                self._stops[seat].clear()
                generation += 1
                self._names[seat] = f"worker {seat}.{generation}"
                service = self.open()
                _ = service.study, service.store, service.time  # not with a turn in between: threads share their locks
                sqlalchemy.event.listen(service.database.engine, "checkout", lambda *_: self.turn())
                try:
                    Worker(service, device="cpu", stop=self._stops[seat], name=self._names[seat]).run()
                except Killed:
                    continue
                finally:
                    service.database.engine.dispose()
                if not self._stops[seat].is_set() or self._stops[seat].for_good:
                    return
        except BaseException as error:
            self._errors.append(error)
        finally:
            with self._turn:
                del self._seats[threading.get_ident()]  # another thread may get the number
                self._present.discard(seat)
                if self._current == seat:
                    self._pass_on(seat)

    def turn(self, *, waiting: bool = False) -> None:
        """A worker is about to act: what happens now? Other threads (uploads, renewals) are not asked."""
        seat = self._seats.get(threading.get_ident())
        if seat is None:
            return
        with self._turn:
            if seat in self._dead:
                raise Killed
            self._turns += 1
            assert self._turns < LONG, "workers wait for each other for ever"
            event = self._plan.pop(self._turns, None)
            if event is not None:
                self.happened.append(event)
            if event == "damage":
                self._damage()
            if event == "stop":
                self._stops[seat].set()
            if event in ("kill", "freeze"):
                self._lapse(self._names[seat])
            if event == "kill":
                self._dead.add(seat)
                raise Killed
            if waiting or event in ("switch", "freeze"):
                self._pass_on(seat)
                self._await(seat)

    def was_trained(self, recipe: Recipe, trace: Trace, epoch: int) -> None:
        key = self.keys(recipe.seed, trace)[epoch + 1]
        self.trained.append(key)
        if self._hook is not None:
            self._hook(self, key, epoch)
        self.turn()

    def leave(self) -> None:
        """SIGTERM for the worker whose turn it is, which does not come back."""
        stop = self._stops[self._seats[threading.get_ident()]]
        stop.for_good = True
        stop.set()

    def _pass_on(self, seat: int) -> None:
        self._current = next((other for other in self._present if other != seat), seat)
        self._turn.notify_all()

    def _await(self, seat: int) -> None:
        while self._current != seat:
            assert self._turn.wait(900), "nobody gave the turn back"

    def _lapse(self, name: str) -> None:
        """Time passes for everything that ``name`` holds."""
        database = sqlite3.connect(self.folder / "sweep.db")
        with database:
            database.execute("UPDATE sweeper_slots SET expires = 0 WHERE worker = ?", (name,))
            database.execute("UPDATE sweeper_segments SET expires = 0 WHERE owner = ?", (name,))
        database.close()

    def lapse(self) -> None:
        """The leases of the worker whose turn it is run out."""
        self._lapse(self._names[self._seats[threading.get_ident()]])

    def files(self) -> list[Path]:
        """The stored states."""
        return sorted((self.folder / "snapshots").glob("??/*"))

    def _damage(self) -> None:
        if files := self.files():
            file = self._chance.choice(files)
            content = file.read_bytes()
            match self._chance.randrange(3):
                case 0:
                    file.unlink()
                case 1:
                    file.write_bytes(content[: len(content) // 2])
                case _:
                    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


class Stop(threading.Event):
    """A worker's event to stop, at which it also waits."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.for_good = False
        self.waited: Callable[[float], Any] = lambda seconds: None  # a test may listen

    def wait(self, timeout: float | None = None) -> bool:
        self.waited(timeout or 0.0)
        self._world.turn(waiting=True)
        return self.is_set()


def forged(epoch: int) -> Snapshot:
    """A state that no honest training would end in."""
    state = np.full((2, 4), 0.5)
    row = {"time": 1795169283123, "by": "another/0", "seconds": 36.0, "curve/lr": 1.0, MAP: 0.1, "curve/mAP50": 0.1}
    return Snapshot(epoch + 1, state.tobytes(), [{"epoch": at, **row} for at in range(epoch + 1)], digest(state))
