"""A sweep that has work left for the next disturbance, however fast the machine: the test holds trials back itself.

It claims them as a worker does, and gives one back when the workers have none. So a disturbance can wait for a state of
the sweep, a worker in the middle of a trial, and the sweep cannot end before the last disturbance.
"""

import time
from collections.abc import Callable

from sweeper import database
from sweeper.study import Study, Trial

HOLDER = "held back by the test"
LEASE_S = 1e6


class Held:
    """The open trials of the launched sweep ``name`` in the database at ``url`` that no worker had claimed yet."""

    def __init__(self, url: str, name: str) -> None:
        self._study = Study.open(database.open(url), name, lease_seconds=LEASE_S)
        self._slots = []
        while (slot := self._study.claim(HOLDER)) is not None:
            self._slots.append(slot)

    def release(self, count: int = 1) -> None:
        """Give back the first ``count`` of them, or all that are left."""
        for slot in self._slots[:count]:
            slot.release()
        self._slots = self._slots[count:]

    def release_all(self) -> None:
        """Let the sweep come to its end."""
        self.release(len(self._slots))

    def at_work(
        self,
        more: int = 1,
        *,
        free: int = 1,
        keep: int = 1,
        meanwhile: Callable[[], None] = lambda: None,
        seconds: float = 1800,
    ) -> list[Trial]:
        """Wait until ``more`` epochs were reported and a worker is in the middle of a trial; the trials in training.

        Gives back a trial whenever the workers have fewer than ``free``, but never the last ``keep``: when all others
        are finished, the list is empty and the workers wait. ``meanwhile`` is called again and again. AssertionError
        after ``seconds``.
        """
        end, goal = time.monotonic() + seconds, self.epochs() + more
        while True:
            held = {slot.number for slot in self._slots}
            rows = self._study.trials()
            theirs = [row for row in rows if row.state in ("WAITING", "RUNNING") and row.number not in held]
            training = [row for row in theirs if row.state == "RUNNING" and row.worker and row.curve]
            if training and sum(len(row.curve) for row in rows) >= goal:
                return training
            if not theirs and len(self._slots) <= keep:
                return []
            if len(theirs) < free and len(self._slots) > keep:
                self.release()
            meanwhile()
            assert time.monotonic() < end, f"nobody is at work on trials {[row.number for row in theirs]}"
            time.sleep(0.05)

    def epochs(self) -> int:
        """Values reported so far."""
        return sum(len(row.curve) for row in self._study.trials())

    def pids(self, rows: list[Trial]) -> list[int]:
        """The process ids of the workers that are at these trials."""
        known = {worker.worker: worker.pid for worker in self._study.workers()}
        return [known[row.worker] for row in rows if row.worker in known]
