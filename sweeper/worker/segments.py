"""Segments of trainings: trained once, by whoever holds the lease."""

import contextlib
import logging

from sweeper.errors import LeaseLost, SnapshotCorrupt
from sweeper.store import Snapshot, Store
from sweeper.study import Slot

say = logging.getLogger("sweeper")

UNTRAINED = Snapshot(0, b"", [], "")


class Elsewhere(Exception):
    """Another worker is training the very segment that this trial needs next; there is other work."""


class Segments:
    """The one segment that ``worker`` holds at a time, for ``seconds`` from each sign of life."""

    def __init__(self, store: Store, worker: str, seconds: float) -> None:
        self._store, self._worker, self._seconds = store, worker, seconds
        self._held: str | None = None

    def deepest(self, slot: Slot, keys: list[str], branches: set[int], twin: Snapshot | None) -> Snapshot:
        """The deepest stored state of this trace with the right to train on from it. Raises Elsewhere.

        A finished twin stands in where the last state is gone: its values are known, there is nothing to train.
        """
        while True:
            depth = self._store.deepest(keys, owner=slot.owner)
            if depth + 1 < len(keys):
                if twin is not None:
                    return twin
                if not self._lease(keys[depth + 1]):
                    raise Elsewhere
            if self._store.deepest(keys) != depth:  # it was stored while we asked
                continue
            if depth == 0:
                return UNTRAINED
            try:
                return self._store.get(keys[depth], branch=depth in branches)
            except SnapshotCorrupt as error:
                say.warning("trial %d: %s", slot.number, error)

    def next_is_ours(self, keys: list[str], epoch: int) -> bool:
        """Whether to train on after ``epoch`` epochs; not where the next state is stored or trained elsewhere."""
        return self._lease(keys[epoch + 1]) and self._store.deepest(keys) <= epoch

    def renew(self) -> None:
        """Hold on to it; safe to call from another thread."""
        if (held := self._held) is not None:
            with contextlib.suppress(LeaseLost):  # given up in this moment; else storing the state shows it
                self._store.renew(held, self._worker, self._seconds)

    def release(self) -> None:
        """Let others train it."""
        if self._held is not None:
            self._store.release(self._held, self._worker)
        self._held = None

    def _lease(self, key: str) -> bool:
        before = self._held
        if not self._store.lease(key, self._worker, self._seconds):
            return False
        self._held = key
        if before is not None and before != key:  # after the next one: in between nobody can take it
            self._store.release(before, self._worker)
        return True
