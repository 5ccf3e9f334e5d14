"""The loop of a worker: claim a trial, find the deepest stored prefix of its trace, train on from there, store it.

``Worker.run`` claims trials, ``_attempt`` decides how an attempt at a trial ends, and ``_train`` is the attempt itself.
The same lines of ``_train`` resume a trial, share the beginning of another one and recognise a duplicate.
"""

import contextlib
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from sweeper import search
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
from sweeper.schedules import Schedule, parse, prefix_keys
from sweeper.service import Service
from sweeper.store import Snapshot
from sweeper.study import Slot
from sweeper.tracking import TrialLog
from sweeper.training.process import Beat, Crash, Hang, TrainingProcess
from sweeper.worker.reporter import Reporter, row_of
from sweeper.worker.segments import UNTRAINED, OtherTrials, Segments, Task, TrainedElsewhere, landscape

__all__ = ["Worker"]

logger = logging.getLogger("sweeper")

HEARTBEAT_S = 2.0  # The shortest time between two heartbeats during a training.
LONGEST_PAUSE_S = 300.0  # The longest pause after attempts that this machine has ended.
LONGEST_WAIT_S = 10.0  # The longest pause after trials whose next segment another worker trains.


def pause(count: int, longest: float) -> float:
    """Return seconds to wait after ``count`` (from 1) events in a row: 0.5, doubled each time, up to ``longest``."""
    return min(0.25 * 2.0 ** min(count, 60), longest)  # 2.0 ** 1024 raises OverflowError.


class Stopped(Exception):
    """The worker was asked to stop; it releases the trial, which another worker continues."""


class Worker:
    """Trains trials on one device. After ``stop`` is set, it finishes its epoch and ends; a kill loses that epoch only.

    ``name`` must be unique among living workers (None: host, process number and a random part). ``share`` is the part
    of the GPU's memory that this worker may use.
    """

    def __init__(
        self, service: Service, *, device: str, stop: threading.Event, name: str | None = None, share: float = 1.0
    ) -> None:
        self.service = service
        self.device = device
        self.share = share
        self.stop = stop
        # The random part is needed because two containers may have the same host name and process number.
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.folder = service.place.folder / "work" / self.name
        self._others = OtherTrials(service)
        self._reporter = Reporter(service)
        self._segments = Segments(service, self.name)
        self._last_heartbeat = 0.0  # In monotonic seconds.
        self._memory = 0.0  # The largest share of the GPU's memory that the trainings held.

    def run(self) -> None:
        """Train trials until all trials of the sweep are finished, by any worker, or ``stop`` is set.

        Raises StoreError if the store is not the one with which the sweep was launched, and DeviceError if the first
        epoch needs more than this worker's share of the GPU's memory.
        """
        logger.info("sweep %s, on %s: opening it", self.service.sweep.name, self.device)
        self.service.check_store()
        self._check_tracking()
        study = self.service.study
        excluded: set[int] = set()  # The numbers of the trials that this worker does not claim for now.
        faults = 0  # Attempts in a row that ended by a fault of this machine, without a new epoch.
        waits = 0  # Trials in a row that need a segment which another worker is training.
        stall_s = self.service.sweep.stall_s
        with self.service.training(device=self.device, folder=self.folder, stall_s=stall_s, share=self.share) as child:
            try:
                child.fingerprint(self.service.recipe(self.service.sweep.recipe.seed))
            except DeviceError:
                raise  # Every trial would fail on this device, whereas other errors may concern a single trial.
            except SweeperError as error:
                logger.warning("%s", error)
            while not self.stop.is_set():
                self._heartbeat(None, None)
                slot = study.claim(self.name, excluded=excluded, on_exhausted=self._reporter.give_up)
                if slot is not None:
                    if slot.adopted:
                        logger.info("trial %d is taken over: %s", slot.number, slot.reasons[-1])
                    before, machine_ok = child.epochs, False
                    try:
                        machine_ok = self._attempt(slot, child)
                    except TrainedElsewhere:
                        # All remaining trials may begin with that segment. Without a pause, this worker would claim
                        # them all at once and have them proposed before the sampler knows further results.
                        excluded.add(slot.number)
                        waits = 1 if child.epochs > before else waits + 1
                        self.stop.wait(random.uniform(0.5, 1.0) * pause(waits, LONGEST_WAIT_S))
                        continue
                    except (LeaseLost, TrackingError) as error:  # _attempt could not store how the trial ended.
                        logger.warning("trial %d: %s", slot.number, error)
                    waits = 0
                    faults = 0 if machine_ok or child.epochs > before else faults + 1
                    if not machine_ok:  # Otherwise a broken machine would use up the attempts of trial after trial.
                        excluded.add(slot.number)
                        self.stop.wait(pause(faults + 1, LONGEST_PAUSE_S) if faults else 0)
                elif study.done:
                    logger.info("sweep %s: every trial is finished; sweeper pick says what came out", study.name)
                    break
                else:  # Other workers hold the remaining trials, or train the segments that these need.
                    excluded.clear()
                    self.stop.wait(1)

    def _check_tracking(self) -> None:
        """Raise TrackingRefused if the MLflow server denies access; if it does not answer, journals wait for it."""
        try:
            self.service.tracker.check()
        except TrackingRefused:
            raise
        except TrackingError as error:
            logger.warning("%s; training continues, and its results are sent later", error)

    def _attempt(self, slot: Slot, child: TrainingProcess) -> bool:
        """Train a trial until it is finished, failed or released; return False if this machine may be at fault."""
        try:
            with self._segments.renewing(slot):
                self._train(slot, child)
        except LeaseLost as error:
            child.end()
            logger.warning("%s", error)
        except Stopped:
            slot.release()
        except TrainedElsewhere:
            slot.release()
            raise
        # The machine may have caused these errors, so the trial gets a limited number of further attempts. Without the
        # limit, a trial whose trainer can load no state (SnapshotCorrupt) would be trained again for ever.
        except (Crash, Hang, OutOfMemory, DataError, SnapshotCorrupt) as error:
            child.end()  # The end of the child process frees its memory.
            if isinstance(error, OutOfMemory) and self.share < 1 and not child.epochs:
                slot.release()
                raise DeviceError(
                    f"{self.device}: a training does not fit into {self.share:.3g} of its memory, a worker's share; "
                    f"expected fewer workers per device, or a smaller batch, imgsz or model ({error})"
                ) from error
            reason = _reason(error, child)
            logger.warning("trial %d, attempt %d: %s", slot.number, slot.attempt, reason)
            self._reporter.bad_attempt(slot, reason)
            return False
        except (StoreError, TrackingError, DeviceError) as error:  # The machine's fault, which counts no bad attempt.
            logger.warning("trial %d is released: %s", slot.number, error)
            slot.release()
            return False
        except (TrainingError, ConfigError) as error:  # Another attempt would end in the same way.
            reason = _reason(error, child)
            logger.warning("trial %d: %s", slot.number, reason)
            slot.set("confounder", error.reason if isinstance(error, TrainingError) else type(error).__name__)
            self._reporter.fail(slot, reason)
        except BaseException as error:
            child.end()
            with contextlib.suppress(SweeperError):  # If the database does not answer, the lease expires by itself.
                if isinstance(error, Exception) and not isinstance(error, SweeperError | OSError):
                    # A bug ends this worker. It counts as a bad attempt, because otherwise the trial would end every
                    # worker that adopts it.
                    self._reporter.bad_attempt(slot, f"{type(error).__name__}: {error}")
                else:
                    slot.release()
            raise
        else:
            self.service.store.unpin(slot.owner)  # While it was unfinished, its latest state had to stay.
        return True

    def _train(self, slot: Slot, child: TrainingProcess) -> None:
        """Train the trial to its end, or until it is pruned, and store how it ended."""
        if self._others.awaits_trunk(slot):
            raise TrainedElsewhere
        task = self._task(slot, child)
        twin, epochs = self._others.twin(task), task.trace.epochs
        log: TrialLog | None = None
        try:
            while True:
                # Whoever trained it, the training continues from the deepest stored prefix of this trace.
                state = self._segments.deepest(task, twin)
                if log is None:
                    log = self._reporter.begin(task, state.epoch)
                state, pruned = self._replay(task, log, state)
                if not pruned and state.epoch < epochs:
                    state, pruned = self._advance(task, log, state, child)
                if pruned or state.epoch == epochs:
                    break
            measured = landscape(self.service, task, child, lambda: self._heartbeat_at_end(task))
            try:
                self._reporter.finish(task, log, child, state, pruned, measured, self._memory)
            except SnapshotCorrupt as error:  # The trainer cannot load the last state, so it is trained again.
                self.service.store.drop(task.keys[state.epoch], str(error))
                raise
        finally:
            self._segments.release()
            if log is not None:
                log.close()

    def _task(self, slot: Slot, child: TrainingProcess) -> Task:
        """Return the trial's schedule, proposed if it has none yet, with everything that determines its training."""
        service = self.service
        proposals: list[Schedule] = []

        def propose(suggest: search.Suggest) -> Mapping[str, Any]:
            proposals.append(search.propose(service.searched, suggest, service.time))
            return proposals[-1].spec

        spec = slot.propose(
            propose,
            known=lambda spec: self._others.trained(slot, proposals[-1]),
            reference=service.agenda.known_reference,
        )
        schedule = proposals[-1] if proposals else parse(spec)
        trace, recipe = service.trace(schedule), service.recipe(slot.seed)
        facts = service.facts(child.fingerprint(recipe))
        digest = recipe.digest(facts)
        return Task(slot, schedule, trace, recipe, facts, digest, prefix_keys(digest, trace), service.branches(trace))

    def _replay(self, task: Task, log: TrialLog, state: Snapshot) -> tuple[Snapshot, str | None]:
        """Record the epochs of a stored state; return the state and, if the trial is pruned, the reason.

        The state of a pruned trial ends at the epoch of the verdict. A state of the last epoch is never pruned.
        """
        for count, row in enumerate(state.rows, start=1):
            self._reporter.epoch(task, log, row)
            if state.epoch < task.trace.epochs and (pruned := self._verdict(task, state.rows[:count])):
                # Without bytes and digest, because those of ``state`` belong to a later epoch.
                return Snapshot(count, b"", state.rows[:count], ""), pruned
        return state, None

    def _advance(
        self, task: Task, log: TrialLog, state: Snapshot, child: TrainingProcess
    ) -> tuple[Snapshot, str | None]:
        """Train on while this worker can lease the next segment; return the state and, if it is pruned, the reason."""
        with contextlib.closing(self._segments.train(task, child, state)) as events:
            for event in events:
                self._heartbeat(task.slot.number, event.epoch)
                if isinstance(event, Beat):
                    continue
                self._memory = max(self._memory, event.memory)
                row = row_of(event, task.slot.owner, self.service.dataset)
                state = Snapshot(event.epoch + 1, event.state, [*state.rows, row], event.state_digest)
                if not self._segments.put(task, log, state):
                    # Another worker has stored a different state under this key. The caller continues from that one, so
                    # that all trials of a prefix continue from the same state.
                    return UNTRAINED, None
                self._reporter.epoch(task, log, row)
                if state.epoch < task.trace.epochs:
                    if pruned := self._verdict(task, state.rows):
                        return state, pruned
                    if self.stop.is_set():
                        raise Stopped
                    if not self._segments.lease_next(task, state.epoch):
                        break
        return state, None

    def _verdict(self, task: Task, rows: list[dict[str, Any]]) -> str | None:
        metric = self.service.sweep.metric
        return self._others.verdict(task.slot, task.trace, [float(row[metric]) for row in rows])

    def _heartbeat_at_end(self, task: Task) -> None:
        """Send a heartbeat after the trial's last epoch; raise Stopped if the worker was asked to stop."""
        self._heartbeat(task.slot.number, task.trace.epochs)
        if self.stop.is_set():
            raise Stopped

    def _heartbeat(self, number: int | None, epoch: int | None) -> None:
        """Store the trial and epoch of this worker in the study, during a training at most every HEARTBEAT_S."""
        if number is None or time.monotonic() - self._last_heartbeat > HEARTBEAT_S:
            self._last_heartbeat = time.monotonic()
            host, pid = socket.gethostname(), os.getpid()
            self.service.study.heartbeat(self.name, host=host, pid=pid, device=self.device, number=number, epoch=epoch)


def _reason(error: SweeperError, child: TrainingProcess) -> str:
    """Return why an attempt ended, with the last lines that the training process printed."""
    kind = error.reason if isinstance(error, TrainingError) else type(error).__name__
    return f"{kind}: {error}\n{child.last_lines()}".strip()
