"""The one loop: claim a trial, find the deepest stored prefix of its trace, train on from there, write it down.

``Worker.run`` claims trials, ``_attempt`` decides how an attempt at one ends, and ``_train`` is the attempt itself.
Resuming, sharing a beginning, forking and recognising a duplicate are all the same lines of ``_train``.
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
from sweeper.worker.segments import UNTRAINED, Elsewhere, Known, Segments, Task, landscape

__all__ = ["Worker"]

say = logging.getLogger("sweeper")

BEAT_S = 2.0
LONGEST_PAUSE_S = 300.0
LONGEST_LOOK_S = 10.0


def pause(count: int, longest: float) -> float:
    """Seconds to wait after the ``count``-th time in a row (from 1): 0.5, doubled each time, up to ``longest``."""
    return min(0.25 * 2.0 ** min(count, 60), longest)  # a float has no room for a power of two above 1,023


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
        # Two containers may share both the host's name and the process number.
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.folder = service.place.folder / "work" / self.name
        self._known = Known(service)
        self._reporter = Reporter(service)
        self._segments = Segments(service, self.name)
        self._beaten = 0.0
        self._memory = 0.0  # the largest share of the GPU's memory that was held

    def run(self) -> None:
        """Train trials until every one of the sweep is finished, here or elsewhere, or ``stop`` is set.

        Raises StoreError for another store than the launch's, DeviceError if the very first epoch needs more than our
        share of the GPU's memory.
        """
        say.info("sweep %s, on %s: opening it", self.service.sweep.name, self.device)
        self.service.check_store()
        self._check_tracking()
        study = self.service.study
        passed: set[int] = set()  # numbers of the trials that are left to other workers for now
        faults = 0  # in a row, without an epoch in between
        looks = 0  # in a row, at trials that wait for what is trained elsewhere
        stall_s = self.service.sweep.stall_s
        with self.service.training(device=self.device, folder=self.folder, stall_s=stall_s, share=self.share) as child:
            try:
                child.fingerprint(self.service.recipe(self.service.sweep.recipe.seed))
            except DeviceError:  # every trial would fail on it; another error may concern a single trial
                raise
            except SweeperError as error:
                say.warning("%s", error)
            while not self.stop.is_set():
                self._beat(None, None)
                slot = study.claim(self.name, excluded=passed, on_exhausted=self._reporter.give_up)
                if slot is not None:
                    if slot.adopted:
                        say.info("trial %d is taken over: %s", slot.number, slot.reasons[-1])
                    before, well = child.epochs, False
                    try:
                        well = self._attempt(slot, child)
                    except Elsewhere:
                        # What is trained elsewhere may be the beginning of every trial; a later proposal knows more.
                        passed.add(slot.number)
                        looks = 1 if child.epochs > before else looks + 1
                        self.stop.wait(random.uniform(0.5, 1.0) * pause(looks, LONGEST_LOOK_S))
                        continue
                    except (LeaseLost, TrackingError) as error:  # while the end of the trial was written down
                        say.warning("trial %d: %s", slot.number, error)
                    looks = 0
                    faults = 0 if well or child.epochs > before else faults + 1
                    if not well:  # a broken machine must not use up the attempts of trial after trial
                        passed.add(slot.number)
                        self.stop.wait(pause(faults + 1, LONGEST_PAUSE_S) if faults else 0)
                elif study.done:
                    say.info("sweep %s: every trial is finished; sweeper pick says what came out", study.name)
                    break
                else:  # the trials that are left are trained elsewhere, or wait for a segment that is
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

    def _attempt(self, slot: Slot, child: TrainingProcess) -> bool:
        """Work on a trial and leave it finished, failed or given back; False if a fault of this machine ended it."""
        try:
            with self._segments.renewing(slot):
                self._train(slot, child)
        except LeaseLost as error:
            child.end()
            say.warning("%s", error)
        except Stopped:
            slot.release()
        except Elsewhere:
            slot.release()
            raise
        # These may be the machine's fault, so the trial gets other attempts. A state that does not load is one of them:
        # it has been dropped, but a trainer that takes no state at all would bring the trial back for ever.
        except (Crash, Hang, OutOfMemory, DataError, SnapshotCorrupt) as error:
            child.end()  # the child's memory is freed with it
            if isinstance(error, OutOfMemory) and self.share < 1 and not child.epochs:
                slot.release()
                raise DeviceError(
                    f"{self.device}: a training does not fit into {self.share:.3g} of its memory, a worker's share; "
                    f"expected fewer workers per device, or a smaller batch, imgsz or model ({error})"
                ) from error
            reason = _reason(error, child)
            say.warning("trial %d, attempt %d: %s", slot.number, slot.attempt, reason)
            self._reporter.bad_attempt(slot, reason)
            return False
        except (StoreError, TrackingError, DeviceError) as error:  # the machine's fault, not the trial's
            say.warning("trial %d goes back: %s", slot.number, error)
            slot.release()
            return False
        except (TrainingError, ConfigError) as error:  # another attempt would end the same way
            reason = _reason(error, child)
            say.warning("trial %d: %s", slot.number, reason)
            slot.set("confounder", error.reason if isinstance(error, TrainingError) else type(error).__name__)
            self._reporter.fail(slot, reason)
        except BaseException as error:
            child.end()
            with contextlib.suppress(SweeperError):  # where the database does not answer, the lease runs out
                if isinstance(error, Exception) and not isinstance(error, SweeperError | OSError):
                    # A mistake in the program, which ends this worker: without a limit it would end every other one.
                    self._reporter.bad_attempt(slot, f"{type(error).__name__}: {error}")
                else:
                    slot.release()
            raise
        else:
            self.service.store.unpin(slot.owner)  # until now its latest state was kept for any worker
        return True

    def _train(self, slot: Slot, child: TrainingProcess) -> None:
        """Train the trial to its end, or until it is pruned, and write down how it ended."""
        if self._known.awaits_trunk(slot):
            raise Elsewhere
        task = self._task(slot, child)
        twin, epochs = self._known.twin(task), task.trace.epochs
        log: TrialLog | None = None
        try:
            while True:
                # The idea, all of it: go on from the deepest stored prefix of this trace.
                state = self._segments.deepest(task, twin)
                if log is None:
                    log = self._reporter.begin(task, state.epoch)
                state, pruned = self._replay(task, log, state)
                if not pruned and state.epoch < epochs:
                    state, pruned = self._advance(task, log, state, child)
                if pruned or state.epoch == epochs:
                    break
            measured = landscape(self.service, task, child, lambda: self._go_on(task))
            try:
                self._reporter.finish(task, log, child, state, pruned, measured, self._memory)
            except SnapshotCorrupt as error:  # the last state, which nobody has trained on from, does not load
                self.service.store.drop(task.keys[state.epoch], str(error))
                raise
        finally:
            self._segments.release()
            if log is not None:
                log.close()

    def _task(self, slot: Slot, child: TrainingProcess) -> Task:
        """The trial's schedule, proposed if it has none yet, and all that determines its training."""
        service = self.service
        proposals: list[Schedule] = []

        def propose(suggest: search.Suggest) -> Mapping[str, Any]:
            proposals.append(search.propose(service.searched, suggest, service.time))
            return proposals[-1].spec

        spec = slot.propose(
            propose, known=lambda spec: self._known.trained(slot, proposals[-1]), reference=service.agenda.against
        )
        schedule = proposals[-1] if proposals else parse(spec)
        trace, recipe = service.trace(schedule), service.recipe(slot.seed)
        facts = service.facts(child.fingerprint(recipe))
        digest = recipe.digest(facts)
        return Task(slot, schedule, trace, recipe, facts, digest, prefix_keys(digest, trace), service.branches(trace))

    def _replay(self, task: Task, log: TrialLog, state: Snapshot) -> tuple[Snapshot, str | None]:
        """Record the epochs of a stored state; unless it is the last one, it is cut where the trial is pruned."""
        for count, row in enumerate(state.rows, start=1):
            self._reporter.epoch(task, log, row)
            if state.epoch < task.trace.epochs and (pruned := self._verdict(task, state.rows[:count])):
                return Snapshot(count, b"", state.rows[:count], ""), pruned  # the bytes are those of a later epoch
        return state, None

    def _advance(
        self, task: Task, log: TrialLog, state: Snapshot, child: TrainingProcess
    ) -> tuple[Snapshot, str | None]:
        """Train on while the next segment is ours; gives the state reached and why the trial is pruned, if it is."""
        with contextlib.closing(self._segments.train(task, child, state)) as events:
            for event in events:
                self._beat(task.slot.number, event.epoch)
                if isinstance(event, Beat):
                    continue
                self._memory = max(self._memory, event.memory)
                row = row_of(event, task.slot.owner, self.service.dataset)
                state = Snapshot(event.epoch + 1, event.state, [*state.rows, row], event.state_digest)
                if not self._segments.put(task, log, state):
                    return UNTRAINED, None  # all trials go on from the state that was stored first
                self._reporter.epoch(task, log, row)
                if state.epoch < task.trace.epochs:
                    if pruned := self._verdict(task, state.rows):
                        return state, pruned
                    if self.stop.is_set():
                        raise Stopped
                    if not self._segments.next_is_ours(task, state.epoch):
                        break
        return state, None

    def _verdict(self, task: Task, rows: list[dict[str, Any]]) -> str | None:
        metric = self.service.sweep.metric
        return self._known.verdict(task.slot, task.trace, [float(row[metric]) for row in rows])

    def _go_on(self, task: Task) -> None:
        """Note that the worker is at the end of the trial; raises Stopped if it shall stop."""
        self._beat(task.slot.number, task.trace.epochs)
        if self.stop.is_set():
            raise Stopped

    def _beat(self, number: int | None, epoch: int | None) -> None:
        """Note in the study what this worker is at, every other second at most."""
        if number is None or time.monotonic() - self._beaten > BEAT_S:
            self._beaten = time.monotonic()
            host, pid = socket.gethostname(), os.getpid()
            self.service.study.beat(self.name, host=host, pid=pid, device=self.device, number=number, epoch=epoch)


def _reason(error: SweeperError, child: TrainingProcess) -> str:
    """What ends an attempt, with the last lines that the training wrote."""
    kind = error.reason if isinstance(error, TrainingError) else type(error).__name__
    return f"{kind}: {error}\n{child.last_lines()}".strip()
