"""Workers on a Ray cluster: each is an actor that reserves resources of a node and runs one ``sweeper worker`` there.

Ray chooses the node and assigns its GPU and CPUs; leases in the database decide which worker trains which trial. If the
cluster loses a node, other workers adopt the trials of its workers. A worker without resources waits for them.
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
from sweeper.fleet import MAX_EARLY_DEATHS, Fleet, Process

PASSED_ON = ("SWEEPER_", "MLFLOW_", "AWS_", "FSSPEC_", "GOOGLE_APPLICATION_CREDENTIALS")
LOST = -1  # The exit status of a worker whose node or actor is lost.
GROW_S = 5.0  # Seconds between two queries for free resources.
CONNECT_S = 5.0  # How long a cluster may take to accept a connection.
WAITING_S = 30.0  # After so many seconds, waiting workers are reported.


def connect(address: str = "auto") -> None:
    """Join the running cluster at ``address``; ``auto`` is the one in RAY_ADDRESS or on this machine.

    Raises DeviceError if there is none.
    """
    if host := re.fullmatch(r"([^:/]+):([0-9]+)", address):  # Ray itself would try for more than a minute.
        try:
            socket.create_connection((host[1], int(host[2])), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise DeviceError(
                f"no Ray cluster at {address}: no answer ({error}); start one (ray start --head), or name "
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
    """Raise ConfigError if the cluster has several machines, but a database is a file on one of them."""
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    for option, url in (("--database-url", database_url), ("--tracking-uri", tracking_uri)):
        if len(machines) > 1 and url.startswith("sqlite"):
            raise ConfigError(
                f"{option} {url}: SQLite is for one machine, the cluster has {len(machines)}; "
                f"expected a server that all of them reach"
            )


class Actor:
    """Runs on a node of the cluster: one worker process, whose output goes to Ray's logs."""

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
    """The ``fleet.Process`` of an actor, on this machine; ``placed`` says whether Ray has started the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._answer = actor.poll.remote()  # The future of the exit status.
        self._code: int | None = None
        self.placed = False

    def poll(self) -> int | None:
        if self._code is None and ray.wait([self._answer], timeout=0)[0]:
            try:
                code = ray.get(self._answer)
                self.placed = True
            except RayError:
                code = LOST
            if code is None:
                self._answer = self._actor.poll.remote()
            else:
                self.remove(code)
        return self._code

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is not None:
            return
        if not self.placed:
            self.remove(0)
            return
        with contextlib.suppress(RayError):
            self._actor.signal.remote(sig)

    def remove(self, code: int) -> None:
        """Set the exit status and remove the actor from the cluster, even if it still waits for resources."""
        self._code = code
        with contextlib.suppress(RayError):
            ray.kill(self._actor)


class RayFleet(Fleet):
    """A fleet of ``workers`` actors; with None, as many as the cluster has free resources for, now and later.

    Each reserves ``gpus`` (also a fraction) and ``cpus``, and runs ``command`` with the node's Python. ``wanted()``
    returns the number of unfinished trials, above which more workers are useless. ``threads`` is the number of CPU
    threads of each (0: Ray's default).
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
        # How many workers have died early too often, and the cluster's resources when the last of them did.
        self._abandoned, self._resources_then = 0, dict[str, float]()
        self._grows, self._wanted = workers is None, wanted
        self._need = {name: amount for name, amount in (("GPU", gpus), ("CPU", cpus)) if amount}
        self._passed_on = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        self._passed_on |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self._kind = ray.remote(Actor).options(num_gpus=gpus, num_cpus=cpus, max_restarts=0)
        self._last_query = 0.0
        self._waiting_since = time.monotonic()

    _log_name = "Ray's logs: ray logs cluster 'worker-*.err'"

    def spawn(self, index: int) -> Process:
        """Create an actor, which Ray starts as soon as its resources are free."""
        return Remote(self._kind.remote(self._command, os.getcwd(), self._passed_on))

    @property
    def _waiting(self) -> list[Remote]:
        return [remote for remote in self._running.values() if isinstance(remote, Remote) and not remote.placed]

    def grow(self) -> None:
        """With ``workers`` None, add a worker for each free share of resources, unless one waits for resources.

        After a worker and its replacements have died early too often, none is added until the cluster's resources
        change, because a new worker would die for the same reason.
        """
        if not self._grows or self._due or self._waiting or time.monotonic() - self._last_query < GROW_S:
            return
        self._last_query = time.monotonic()
        abandoned = sum(deaths >= MAX_EARLY_DEATHS for deaths in self._early_deaths.values())
        resources = ray.cluster_resources()
        if abandoned > self._abandoned:
            self._abandoned, self._resources_then = abandoned, resources
        if abandoned and resources == self._resources_then:
            return
        free = ray.available_resources()
        fitting = min(int(free.get(name, 0.0) / amount + 1e-6) for name, amount in self._need.items())
        count = min(fitting, self._wanted() - len(self._running))
        first = max([*self._running, *self._started, -1]) + 1
        self._due.update(dict.fromkeys(range(first, first + count), 0.0))

    def _replace_dead(self, done: Callable[[], bool], say: Callable[[str], None]) -> None:
        before = len(self._running)
        super()._replace_dead(done, say)
        waiting = self._waiting
        if waiting and len(self._running) < before:  # A worker has ended, so all trials may be finished.
            with contextlib.suppress(SweeperError):
                if done():
                    for remote in waiting:
                        remote.remove(0)
        if not waiting:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > WAITING_S:
            self._waiting_since = float("inf")  # Reported once.
            need = " and ".join(f"{amount:g} {name}" for name, amount in self._need.items())
            free = ray.available_resources()
            available = ", ".join(f"{free.get(name, 0):g} {name}" for name in self._need)
            say(f"workers that wait for {need}: {len(waiting)}; free in the cluster: {available}")
