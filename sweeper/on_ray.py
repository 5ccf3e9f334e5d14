"""Workers on a Ray cluster: each is an actor that holds a share of a node and runs one ``sweeper worker`` there.

Ray places, counts and pins; which trial is trained where stays a matter of leases, as everywhere else. The cluster may
lose nodes and gain some: workers that have no place wait for one, and a lost worker's trial is adopted by another.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from sweeper.errors import ConfigError, DeviceError, SweeperError
from sweeper.fleet import TRIES, Fleet, Process

PASSED_ON = ("SWEEPER_", "MLFLOW_", "AWS_", "FSSPEC_", "GOOGLE_APPLICATION_CREDENTIALS")
LOST = -1  # the exit status of a worker whose node or actor is gone
GROW_S = 5.0  # between two looks at what is free
ANSWER_S = 5.0  # for a cluster's address to answer
PATIENCE_S = 30.0  # until those who wait for a place are spoken of


def connect(address: str = "auto") -> None:
    """Join a cluster that runs: by its address, or by ``auto`` the one of this machine or of RAY_ADDRESS.

    Raises DeviceError if there is none.
    """
    if host := re.fullmatch(r"([^:/]+):([0-9]+)", address):  # Ray itself would try for a minute and longer
        try:
            socket.create_connection((host[1], int(host[2])), timeout=ANSWER_S).close()
        except (OSError, OverflowError) as error:
            raise DeviceError(
                f"no Ray cluster at {address}: nobody answers there ({error}); start one (ray start --head), or name "
                "another by --address or RAY_ADDRESS"
            ) from None
    try:
        ray.init(address=address, logging_level="warning")
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise DeviceError(
            f"the Ray cluster at {address} cannot be joined: {' '.join(str(error).split())}; expected one that runs "
            "(ray start --head), with the same versions of Ray and Python everywhere, named by --address or RAY_ADDRESS"
        ) from None


def has_gpus() -> bool:
    """Whether any node of the cluster has a GPU."""
    return bool(ray.cluster_resources().get("GPU"))


def check(database_url: str, tracking_uri: str) -> None:
    """ConfigError if the cluster has several machines, but a database is a file on one of them."""
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    for option, url in (("--database-url", database_url), ("--tracking-uri", tracking_uri)):
        if len(machines) > 1 and url.startswith("sqlite"):
            raise ConfigError(
                f"{option} {url}: SQLite is for one machine, the cluster has {len(machines)}; "
                f"expected a server that all of them reach"
            )


class Actor:
    """Runs in the cluster: one process, whose output goes where this actor's goes (Ray's logs, the driver)."""

    def __init__(self, command: Sequence[str], folder: str, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder if os.path.isdir(folder) else None,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
        )

    def poll(self) -> int | None:
        return self._process.poll()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)


class Remote:
    """An actor's process, seen from here as a ``fleet.Process``; ``placed`` once it runs."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._asked = actor.poll.remote()
        self._code: int | None = None
        self.placed = False

    def poll(self) -> int | None:
        if self._code is None and ray.wait([self._asked], timeout=0)[0]:
            try:
                code = ray.get(self._asked)
                self.placed = True
            except RayError:
                code = LOST
            if code is None:
                self._asked = self._actor.poll.remote()
            else:
                self.leave(code)
        return self._code

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is not None:
            return
        if not self.placed:
            self.leave(0)
            return
        with contextlib.suppress(RayError):
            self._actor.signal.remote(sig)

    def leave(self, code: int) -> None:
        """Give the place back, be it taken or waited for."""
        self._code = code
        with contextlib.suppress(RayError):
            ray.kill(self._actor)


class RayFleet(Fleet):
    """``workers`` of them, or None: as many as find ``gpus`` (a fraction, too) and ``cpus`` free, now and later.

    ``command``: what the Python of a node is to run. ``wanted()``: how many are of use, the trials left. ``threads``
    of the CPU for each, 0: Ray's choice.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        workers: int | None,
        gpus: float,
        cpus: float,
        wanted: Callable[[], int],
        threads: int = 0,
    ) -> None:
        super().__init__(command, ["ray"] * (workers or 1))
        self._given_up, self._cluster = 0, dict[str, float]()  # slots, and the cluster when the last one was given up
        self._follow, self._wanted = workers is None, wanted
        self._need = {name: amount for name, amount in (("GPU", gpus), ("CPU", cpus)) if amount}
        self._passed_on = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        self._passed_on |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self._kind = ray.remote(Actor).options(num_gpus=gpus, num_cpus=cpus, max_restarts=0)
        self._looked = 0.0
        self._waiting_since = time.monotonic()

    _place = "Ray's logs: ray logs cluster 'worker-*.err'"

    def spawn(self, index: int) -> Process:
        """An actor, placed as soon as there is room for it."""
        return Remote(self._kind.remote(self._command, os.getcwd(), self._passed_on))

    @property
    def _waiting(self) -> list[Remote]:
        return [remote for remote in self._running.values() if isinstance(remote, Remote) and not remote.placed]

    def grow(self) -> None:
        """With ``workers`` None: one more for each free share; none while one of ours waits for a place.

        Nor after one was given up, until the cluster is another: it would die of the same, again and again.
        """
        if not self._follow or self._again or self._waiting or time.monotonic() - self._looked < GROW_S:
            return
        self._looked = time.monotonic()
        given_up, cluster = sum(deaths >= TRIES for deaths in self._in_vain.values()), ray.cluster_resources()
        if given_up > self._given_up:
            self._given_up, self._cluster = given_up, cluster
        if given_up and cluster == self._cluster:
            return
        free = ray.available_resources()
        room = min(int(free.get(name, 0.0) / amount + 1e-6) for name, amount in self._need.items())
        more = min(room, self._wanted() - len(self._running))
        first = max([*self._running, *self._born, -1]) + 1
        self._again.update(dict.fromkeys(range(first, first + more), 0.0))

    def _look(self, done: Callable[[], bool], say: Callable[[str], None]) -> None:
        before = len(self._running)
        super()._look(done, say)
        waiting = self._waiting
        if waiting and len(self._running) < before:  # one has ended: is there anything left to wait for?
            with contextlib.suppress(SweeperError):
                if done():
                    for remote in waiting:
                        remote.leave(0)
        if not waiting:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > PATIENCE_S:
            self._waiting_since = float("inf")  # say it once
            need = " and ".join(f"{amount:g} {name}" for name, amount in self._need.items())
            free = ray.available_resources()
            there = ", ".join(f"{free.get(name, 0):g} {name}" for name in self._need)
            say(f"workers that wait for {need}: {len(waiting)}; free in the cluster: {there}")
