"""The one loop: claim a trial, find the deepest stored prefix of its trace, train on from there, tell.

Stopping and resuming, sharing a beginning, forking and recognising a duplicate are all the same lines of
``Worker._train``: there is no second path.
"""

import contextlib
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from sweeper import evidence, names, search
from sweeper.config import Recipe
from sweeper.errors import (
    ConfigError,
    DataError,
    DeviceError,
    LeaseLost,
    OutOfMemory,
    SnapshotCorrupt,
    StoreError,
    SweeperError,
    TrackingError,
    TrackingRefused,
    TrainingError,
)
from sweeper.schedules import Trace, prefix_keys
from sweeper.service import Service
from sweeper.store import Snapshot
from sweeper.study import Slot
from sweeper.tracking import TrialLog
from sweeper.training.process import Beat, Crash, Epoch, Hang, TrainingProcess
from sweeper.worker.known import Known
from sweeper.worker.segments import UNTRAINED, Elsewhere, Segments
from sweeper.worker.telling import Telling, row_of

say = logging.getLogger("sweeper")

BEAT_S = 2.0
LONGEST_PAUSE_S = 300.0
LONGEST_LOOK_S = 10.0


def pause(count: int, longest: float) -> float:
    """Seconds to wait after the ``count``-th time in a row (from 1): half a second, twice as long each time.

    Never more than ``longest``, however high the count: a float has no room for a power of two above 1,023.

    >>> [pause(count, 10.0) for count in (1, 2, 5, 6, 10**9)]
    [0.5, 1.0, 8.0, 10.0, 10.0]
    """
    return min(0.25 * 2.0 ** min(count, 60), longest)


class Stopped(Exception):
    """The worker was asked to stop; the lease is given back and the trial goes on elsewhere."""


class Worker:
    """One slot of a device. Setting ``stop`` ends it after the epoch in progress; killing it loses that epoch only."""

    def __init__(
        self, service: Service, *, device: str, stop: threading.Event, name: str | None = None, share: float = 1.0
    ) -> None:
        self.service = service
        self.device = device
        self.share = share
        self.stop = stop
        # containers may share both the host's name and the number
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.folder = service.place.folder / "work" / self.name
        self.metric = service.sweep.metric
        self.known = Known(service)
        self._telling = Telling(service)
        self._segments = Segments(service.store, self.name, service.sweep.lease_s)
        self._beaten = 0.0
        self._memory = 0.0  # the most of the GPU's that was held, as a share of it

    def run(self) -> None:
        """Train trials until every one of the sweep is finished, here or elsewhere, or ``stop`` is set.

        Raises StoreError if this is another store than the one that the sweep was launched with, DeviceError if the
        very first epoch needs more than our share of the GPU's memory: no trial would fare better.
        """
        say.info("sweep %s, on %s: opening it", self.service.sweep.name, self.device)
        self.service.check_store()
        self._check_tracking()
        study = self.service.study
        passed: set[int] = set()  # trials to be left to others for now
        faults = 0  # in a row, without an epoch in between
        looks = 0  # in a row, at trials that wait for what is trained elsewhere
        stall_s = self.service.sweep.stall_s
        with self.service.training(device=self.device, folder=self.folder, stall_s=stall_s, share=self.share) as child:
            try:
                child.fingerprint(self.service.recipe(self.service.sweep.recipe.seed))
            except DeviceError:  # as with every trial; all else may be a trial's matter
                raise
            except SweeperError as error:
                say.warning("%s", error)
            while not self.stop.is_set():
                self._beat(None, None)
                slot = study.claim(self.name, passing_over=passed, giving_up=self._give_up)
                if slot is not None:
                    if slot.adopted:
                        say.info("trial %d is taken over: %s", slot.number, slot.reasons[-1])
                    before, well = child.epochs, False
                    try:
                        well = self._trial(slot, child)
                    except Elsewhere:
                        # What is trained elsewhere now may be the beginning of every trial: a proposal made later
                        # knows more, and a hundred workers that ask together all wait for each other's answers.
                        passed.add(slot.number)
                        looks = 1 if child.epochs > before else looks + 1
                        self.stop.wait(random.uniform(0.5, 1.0) * pause(looks, LONGEST_LOOK_S))
                        continue
                    except (LeaseLost, TrackingError) as error:  # while its end was being written down
                        say.warning("trial %d: %s", slot.number, error)
                    looks = 0
                    faults = 0 if well or child.epochs > before else faults + 1
                    if not well:  # others may have more luck; a broken machine must not wear out trial after trial
                        passed.add(slot.number)
                        self.stop.wait(pause(faults + 1, LONGEST_PAUSE_S) if faults else 0)
                elif study.done:
                    say.info("sweep %s: every trial is finished; sweeper pick says what came out", study.name)
                    break
                else:  # the last ones are being trained elsewhere, or wait for a segment that is
                    passed.clear()
                    self.stop.wait(1)

    def _check_tracking(self) -> None:
        """TrackingError if the server does not let us in; where it does not answer, journals wait for it."""
        try:
            self.service.tracker.check()
        except TrackingRefused:
            raise
        except TrackingError as error:
            say.warning("%s; the trials go on and are sent later", error)

    def _trial(self, slot: Slot, child: TrainingProcess) -> bool:
        """Work on one trial and leave it told, failed or given back; False if that was due to a fault here.

        Only what is not about the trial is raised.
        """
        try:
            with self._renewing(slot):
                self._train(slot, child)
        except LeaseLost as error:
            child.end()
            say.warning("%s", error)
        except Stopped:
            slot.give_back()
        except Elsewhere:
            slot.give_back()
            raise
        # May be the machine's fault: the trial gets other attempts. A state that the trainer does not take has been
        # dropped where it was stored; it is a bad attempt because what is not of the store would come back for ever.
        except (Crash, Hang, OutOfMemory, DataError, SnapshotCorrupt) as error:
            child.end()  # what held the memory goes with it
            if isinstance(error, OutOfMemory) and self.share < 1 and not child.epochs:
                slot.give_back()
                raise DeviceError(
                    f"{self.device}: a training does not fit into {self.share:.3g} of its memory, a worker's share; "
                    f"expected fewer workers per device, or a smaller batch, imgsz or model ({error})"
                ) from error
            reason = _reason(error, child)
            say.warning("trial %d, attempt %d: %s", slot.number, slot.attempt, reason)
            self._bad_attempt(slot, reason)
            return False
        except (StoreError, TrackingError, DeviceError) as error:  # the machine's alone: no attempt of the trial's
            say.warning("trial %d goes back: %s", slot.number, error)
            slot.give_back()
            return False
        except (TrainingError, ConfigError) as error:  # the trial's own: again it would end the same way
            reason = _reason(error, child)
            say.warning("trial %d: %s", slot.number, reason)
            slot.set("confounder", error.reason if isinstance(error, TrainingError) else type(error).__name__)
            self._fail(slot, reason)
        except BaseException as error:
            child.end()
            with contextlib.suppress(SweeperError):  # a database that is away learns it from the lease running out
                if isinstance(error, Exception) and not isinstance(error, SweeperError | OSError):
                    # A mistake in the program, which ends this worker: without a limit it would end every other one.
                    self._bad_attempt(slot, f"{type(error).__name__}: {error}")
                else:
                    slot.give_back()
            raise
        else:
            self._unpin(slot)
        return True

    def _bad_attempt(self, slot: Slot, reason: str) -> None:
        """Give the trial back with a strike against it, or let it fail if it has had its attempts."""
        if slot.last_attempt:
            self._fail(slot, reason)
            return
        with contextlib.closing(self._telling.log(slot)) as log:
            log.tags({f"{names.REASON}.{slot.attempt}": reason})
        slot.give_back(reason)

    def _fail(self, slot: Slot, reason: str) -> None:
        """The end of a trial, in MLflow first: should this worker die in between, the next one does it again."""
        self._end_run(slot, reason)
        slot.fail(reason)
        self._unpin(slot)

    def _give_up(self, slot: Slot) -> None:
        """The same for a trial whose workers died too often; the study closes it."""
        say.warning("trial %d has had its attempts: %s", slot.number, "; ".join(slot.reasons))
        try:
            self._end_run(slot, slot.reasons[-1])
        except TrackingError as error:  # the study must not wait for it
            say.warning("trial %d: %s", slot.number, error)
        self._unpin(slot)

    def _end_run(self, slot: Slot, reason: str) -> None:
        with contextlib.closing(self._telling.log(slot)) as log:
            log.finish("FAILED", reason=reason)

    def _unpin(self, slot: Slot) -> None:
        """The trial is finished; until then its latest state stays, whoever goes on with it."""
        self.service.store.unpin(slot.owner)

    def _train(self, slot: Slot, child: TrainingProcess) -> None:
        service = self.service
        if self.known.awaits_trunk(slot):
            raise Elsewhere
        spec = slot.propose(
            lambda suggest: search.propose(service.searched, suggest, service.time),
            known=lambda spec: self.known.trained(slot, spec),
            reference=service.agenda.against,
        )
        trace = service.trace(spec)
        recipe = service.recipe(slot.seed)
        facts = service.facts(child.fingerprint(recipe))
        digest = recipe.digest(facts)
        keys = prefix_keys(digest, trace)
        branches = service.branches(trace)
        twin = self.known.twin(slot, trace, digest)
        log: TrialLog | None = None
        try:
            while True:
                # The idea, all of it: go on from the deepest stored prefix of this trace.
                found = self._segments.deepest(slot, keys, branches, twin)
                if log is None:
                    say.info("trial %d: %s", slot.number, _begins(spec, trace, found))
                    log = self._telling.log(slot, attrs=self._telling.describe(slot, spec, trace, digest), trace=trace)
                    if "epochs_reused" not in slot.attrs:
                        slot.set("epochs_reused", found.epoch)
                pruned = None
                for count, row in enumerate(found.rows, start=1):
                    self._telling.record(slot, log, trace, row)
                    if found.epoch < trace.epochs and (pruned := self._verdict(slot, trace, found.rows[:count])):
                        # its state and digest are those of a later epoch
                        found = Snapshot(count, b"", found.rows[:count], "")
                        break
                if pruned or found.epoch == trace.epochs:
                    break
                with contextlib.closing(self._epochs(slot, child, recipe, trace, found, keys)) as events:
                    for event in events:
                        self._beat(slot.number, event.epoch)
                        if isinstance(event, Beat):
                            continue
                        self._memory = max(self._memory, event.memory)
                        row = row_of(event, slot.owner, service.dataset)
                        found = Snapshot(event.epoch + 1, event.state, [*found.rows, row], event.state_digest)
                        try:
                            slot.renew()
                        except (
                            LeaseLost
                        ):  # whoever goes on with the trial can use what was trained, if nothing is there
                            self._put(slot, log, keys, found, facts, branch=found.epoch in branches, owner=None)
                            raise
                        if not self._put(
                            slot, log, keys, found, facts, branch=found.epoch in branches, owner=slot.owner
                        ):
                            found = UNTRAINED  # what was stored first is what all go on from
                            break
                        self._telling.record(slot, log, trace, row)
                        if found.epoch < trace.epochs:
                            if pruned := self._verdict(slot, trace, found.rows):
                                break
                            if self.stop.is_set():
                                raise Stopped
                            if not self._segments.next_is_ours(keys, found.epoch):
                                break
                if pruned or found.epoch == trace.epochs:
                    break
            landscape = self._landscape(slot, child, recipe, trace)
            try:
                self._telling.finish(slot, log, child, recipe, trace, found, pruned, landscape, self._memory)
            except SnapshotCorrupt as error:  # the last state, which nobody has trained on from, does not load
                service.store.drop(keys[found.epoch], str(error))
                raise
        finally:
            self._segments.release()
            if log is not None:
                log.close()

    def _epochs(
        self, slot: Slot, child: TrainingProcess, recipe: Recipe, trace: Trace, found: Snapshot, keys: list[str]
    ) -> Generator[Beat | Epoch]:
        """The training from a stored state on. One that the trainer cannot load is dropped, and there is no epoch."""
        detecting = self.service.sweep.with_coco
        state = found.state if found.epoch else None  # without bytes it is untrained, and only at the beginning
        try:
            yield from child.train(recipe, trace, start=found.epoch, state=state, detecting=detecting)
        except SnapshotCorrupt as error:
            if not found.epoch:
                raise
            say.warning("trial %d: %s", slot.number, error)
            self.service.store.drop(keys[found.epoch], str(error))

    def _landscape(self, slot: Slot, child: TrainingProcess, recipe: Recipe, trace: Trace) -> dict[str, Any] | None:
        """What a control trial of the battery is there to measure, None for all others. Raises Stopped."""
        asked, service = slot.attrs.get("control") or {}, self.service
        if asked.get("kind") != evidence.BARRIER:
            return None

        def states(recipe: Recipe) -> Callable[[int], bytes | None]:
            keys = prefix_keys(recipe.digest(service.facts(child.fingerprint(recipe))), trace)
            return evidence.states(service.store, child, recipe, trace, keys, beat)

        def beat() -> None:
            self._beat(slot.number, trace.epochs)
            if self.stop.is_set():
                raise Stopped

        other, (start, end) = service.recipe(asked["other"]), (asked["epoch"], asked["end"])
        return evidence.measure(
            *(child, recipe, trace, states(recipe), lambda: states(other)(end)),
            start=start,
            end=end,
            settings=service.sweep.escape,
            beat=beat,
        ).to_dict()

    def _verdict(self, slot: Slot, trace: Trace, rows: list[dict[str, Any]]) -> str | None:
        return self.known.verdict(slot, trace, [float(row[self.metric]) for row in rows])

    def _put(
        self,
        slot: Slot,
        log: TrialLog,
        keys: list[str],
        snapshot: Snapshot,
        facts: dict[str, Any],
        *,
        branch: bool,
        owner: str | None,
    ) -> bool:
        """Store the state; False if another one is there. A full disk costs the snapshot, not the trial."""
        profile = {**facts, "host": socket.gethostname()}
        try:
            mismatch = self.service.store.put(keys[snapshot.epoch], snapshot, profile, branch=branch, owner=owner)
        except StoreError as error:
            say.warning("trial %d goes on without the state after epoch %d: %s", slot.number, snapshot.epoch, error)
            log.tags({names.UNSTORED: str(error)})
            return True
        if mismatch is not None and not mismatch.known:
            say.warning("trial %d: %s", slot.number, mismatch)
        return mismatch is None

    def _beat(self, number: int | None, epoch: int | None) -> None:
        """Say what this worker is at, every other second at most."""
        if number is None or time.monotonic() - self._beaten > BEAT_S:
            self._beaten = time.monotonic()
            host = socket.gethostname()
            self.service.study.beat(
                self.name, host=host, pid=os.getpid(), device=self.device, number=number, epoch=epoch
            )

    @contextlib.contextmanager
    def _renewing(self, slot: Slot) -> Iterator[None]:
        """Hold the trial and its segment while the training takes its time; every write renews them, too."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self.service.sweep.lease_s / 4):
                try:
                    slot.renew()
                    self._segments.renew()
                except LeaseLost:
                    return  # the next write says so, too, and stops
                except SweeperError as error:
                    say.warning("trial %d: %s", slot.number, error)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _reason(error: SweeperError, child: TrainingProcess) -> str:
    """What ends an attempt, with the last lines that the training wrote."""
    kind = error.reason if isinstance(error, TrainingError) else type(error).__name__
    return f"{kind}: {error}\n{child.last_lines()}".strip()


def _begins(spec: dict[str, Any], trace: Trace, found: Snapshot) -> str:
    jumps = ", ".join(f"{jump.kind} at epoch {jump.epoch} x{jump.ratio:.2g}" for jump in trace.jumps()) or "no jump"
    reuse = f"; {found.epoch} of {trace.epochs} epochs are there already" if found.epoch else ""
    return f"{spec['family']}, {jumps}{reuse}"
