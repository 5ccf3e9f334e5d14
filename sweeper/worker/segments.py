"""What the trials of a sweep share: segments of trainings, which are single epochs, and the results of other trials.

The worker that holds the lease of a segment trains it and stores its state, from which all trials can continue.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sweeper import evidence, names
from sweeper.config import Recipe
from sweeper.errors import LeaseLost, ScheduleError, SnapshotCorrupt, StoreError, SweeperError
from sweeper.schedules import Schedule, Trace, prefix_keys
from sweeper.search import rules
from sweeper.service import Service
from sweeper.store import Snapshot
from sweeper.study import Slot
from sweeper.tracking import TrialLog
from sweeper.training.process import Beat, Epoch, TrainingProcess

logger = logging.getLogger("sweeper")

UNTRAINED = Snapshot(0, b"", [], "")


class TrainedElsewhere(Exception):
    """Another worker trains what this trial needs next, so this worker should claim another trial meanwhile."""


@dataclass(frozen=True)
class Task:
    """A claimed trial with everything that determines its training.

    ``facts`` are data, versions and hardware, and ``digest`` is the digest of ``recipe`` and ``facts``. ``keys`` are
    the prefix keys of the states after 0, 1, ... epochs. ``branches`` are the numbers of epochs after which other
    trials may branch from this one.
    """

    slot: Slot
    schedule: Schedule
    trace: Trace
    recipe: Recipe
    facts: dict[str, Any]
    digest: str
    keys: list[str]
    branches: set[int]


class Segments:
    """The stored states of a worker's trial, and the segment whose lease the worker holds (at most one at a time)."""

    def __init__(self, service: Service, worker: str) -> None:
        self._service, self._worker = service, worker
        self._store, self._seconds = service.store, service.sweep.lease_s
        self._held: str | None = None

    def deepest(self, task: Task, twin: Snapshot | None) -> Snapshot:
        """Return the deepest stored state of this trace and lease the next segment; raises TrainedElsewhere.

        If the state of the last epoch is not stored, but ``twin`` is given, it is returned instead: the same training
        has finished, so its results are known and nothing has to be trained.
        """
        keys = task.keys
        while True:
            depth = self._store.deepest(keys, owner=task.slot.owner)
            if depth + 1 < len(keys):
                if twin is not None:
                    return twin
                if not self._lease(keys[depth + 1]):
                    raise TrainedElsewhere
            if self._store.deepest(keys) != depth:
                continue  # Before this worker got the lease, another worker stored the state of this segment.
            if depth == 0:
                return UNTRAINED
            try:
                return self._store.get(keys[depth], branch=depth in task.branches)
            except SnapshotCorrupt as error:
                logger.warning("trial %d: %s", task.slot.number, error)

    def train(self, task: Task, child: TrainingProcess, state: Snapshot) -> Generator[Beat | Epoch]:
        """Yield the events of a training that continues from ``state``.

        A state that the trainer cannot load is deleted, and nothing is yielded.
        """
        detecting = self._service.sweep.with_coco
        content = state.state if state.epoch else None  # None is the untrained model.
        try:
            yield from child.train(task.recipe, task.trace, start=state.epoch, state=content, detecting=detecting)
        except SnapshotCorrupt as error:
            if not state.epoch:
                raise
            logger.warning("trial %d: %s", task.slot.number, error)
            self._store.drop(task.keys[state.epoch], str(error))

    def put(self, task: Task, log: TrialLog, state: Snapshot) -> bool:
        """Store a state; return False if a different one is stored under its key.

        If the disk is full, the trial continues without this snapshot. If another worker holds the trial by now, the
        state is stored all the same, because that worker can continue from it, and then LeaseLost is raised.
        """
        lost, owner = None, task.slot.owner
        try:
            task.slot.renew()
        except LeaseLost as error:
            lost = error
        try:
            mismatch = self._store.put(
                task.keys[state.epoch],
                state,
                {**task.facts, "host": socket.gethostname()},
                branch=state.epoch in task.branches,
                owner=None if lost else owner,
            )
            if mismatch is not None and not mismatch.known:
                logger.warning("trial %d: %s", task.slot.number, mismatch)
        except StoreError as error:
            message = "trial %d goes on without the state after epoch %d: %s"
            logger.warning(message, task.slot.number, state.epoch, error)
            log.tags({names.UNSTORED: str(error)})
            mismatch = None
        if lost is not None:
            raise lost
        return mismatch is None

    def lease_next(self, task: Task, epoch: int) -> bool:
        """Lease the segment after ``epoch`` epochs; return False if its state is stored or another worker trains it."""
        return self._lease(task.keys[epoch + 1]) and self._store.deepest(task.keys) <= epoch

    @contextlib.contextmanager
    def renewing(self, slot: Slot) -> Iterator[None]:
        """Inside the block, a thread renews the leases of the trial and of its segment, however long an epoch takes."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self._seconds / 4):
                try:
                    slot.renew()
                    if (key := self._held) is not None:
                        # LeaseLost is ignored: the worker may just have released the segment. If instead the lease
                        # expired and another worker trained the segment, storing the state finds the other state.
                        with contextlib.suppress(LeaseLost):
                            self._store.renew(key, self._worker, self._seconds)
                except LeaseLost:
                    return  # The worker's next write to the trial raises it, too, and ends the attempt.
                except SweeperError as error:
                    logger.warning("trial %d: %s", slot.number, error)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def release(self) -> None:
        """End the lease of the segment that this worker holds, if it holds one."""
        if self._held is not None:
            self._store.release(self._held, self._worker)
        self._held = None

    def _lease(self, key: str) -> bool:
        """Lease the segment ``key`` instead of the one that is held; return False if another worker holds it."""
        before = self._held
        if not self._store.lease(key, self._worker, self._seconds):
            return False
        self._held = key
        if before is not None and before != key:
            # Released only now: a worker that waits for the old segment could otherwise lease the next one first.
            self._store.release(before, self._worker)
        return True


class OtherTrials:
    """What the other trials of a sweep mean for the trial that a worker holds."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._traces: tuple[int, set[Any]] | None = None  # A trial's number, and the digests of the traces on its seed.

    def awaits_trunk(self, slot: Slot) -> bool:
        """Whether a search trial should not be proposed yet, because its trunk is not finished on this seed.

        The trial would have to wait for the trunk's epochs anyway, and without this check the sampler would propose the
        whole search before it knows any result.
        """
        trunk = self._service.searched.trunk
        if trunk is None or slot.stage != "search" or slot.spec is not None:
            return False
        digest, trials = self._service.trace(trunk).digest, self._service.study.trials()
        baselines = [trial for trial in trials if trial.stage == "baseline" and trial.seed == slot.seed]
        schedules = [trial.schedule for trial in baselines if trial.state in ("WAITING", "RUNNING")]
        return any(schedule and self._service.trace(schedule).digest == digest for schedule in schedules)

    def trained(self, slot: Slot, schedule: Schedule) -> bool:
        """Whether another trial on this seed has the trace of ``schedule``, or the schedule has no valid trace."""
        try:
            digest = schedule.trace(self._service.time).digest
        except ScheduleError:
            return True
        if self._traces is None or self._traces[0] != slot.number:
            trials = self._service.study.trials()
            self._traces = slot.number, {trial.facts.trace for trial in trials if trial.seed == slot.seed}
        return digest in self._traces[1]

    def twin(self, task: Task) -> Snapshot | None:
        """Return the rows of a finished trial with the same trace, seed and recipe as a snapshot without state bytes.

        The trial's attribute ``duplicate_of`` is set to that trial's number. Returns None if there is no such trial.
        """
        slot, trace = task.slot, task.trace
        twin = self._service.study.find(trace.digest, slot.seed, task.digest)
        if twin is None or twin.number == slot.number or len(twin.curve) < trace.epochs:
            return None
        slot.set("duplicate_of", twin.number)
        owner, seconds = f"{self._service.study.id}/{twin.number}", twin.facts.epoch_seconds or 0.0
        row = {"time": round(time.time() * 1000), "by": owner, "seconds": seconds}
        rates, values = trace.lr[trace.steps_per_epoch - 1 :: trace.steps_per_epoch], twin.curve
        rows = [
            {**row, "epoch": epoch, names.LR: float(rate), self._service.sweep.metric: values[epoch]}
            for epoch, rate in enumerate(rates)
        ]
        return Snapshot(trace.epochs, b"", rows, twin.facts.state_digest or "")

    def verdict(self, slot: Slot, trace: Trace, curve: Sequence[float]) -> str | None:
        """Return the reason to prune a search trial after the epochs of ``curve`` (the objective by epoch), or None.

        A trial is judged once at the end of each cycle. Its attribute ``judged`` stores the number of epochs of the
        last time, so that an attempt that resumes the trial later does not judge the same epochs by newer results.
        """
        sweep = self._service.sweep
        if slot.stage != "search" or len(curve) >= trace.epochs:
            return None
        if (reason := rules.never_learned(curve, sweep.dead_after)) is not None:
            return reason
        ends = {jump.epoch for jump in trace.jumps()}
        if sweep.pruner.name == "none" or len(curve) not in ends or len(curve) <= slot.facts.judged:
            return None
        trials = [trial for trial in self._service.study.trials() if trial.seed == slot.seed and trial.state != "FAIL"]
        others = [trial.values for trial in trials if trial.number != slot.number]
        from_epoch = trace.epochs // 3 if sweep.pruner.from_epoch is None else sweep.pruner.from_epoch
        share, least = sweep.pruner.share, sweep.pruner.others
        reason = rules.cycle_end(curve, ends, others, from_epoch=from_epoch, share=share, least=least)
        if reason is None:
            slot.set("judged", len(curve))
        return reason


def landscape(service: Service, task: Task, child: TrainingProcess, beat: Callable[[], None]) -> dict[str, Any] | None:
    """Measure the barrier of a control trial; return None for all other trials.

    ``beat`` is called repeatedly and may raise an exception to stop the measurement.
    """
    control = task.slot.facts.control
    if control is None or control.kind != evidence.BARRIER or control.other is None:
        return None

    def states(recipe: Recipe) -> Callable[[int], bytes | None]:
        keys = prefix_keys(recipe.digest(service.facts(child.fingerprint(recipe))), task.trace)
        return evidence.states(service.store, child, recipe, task.trace, keys, beat)

    other, start, end = service.recipe(control.other), control.epoch, control.end
    measured = evidence.measure(
        *(child, task.recipe, task.trace, states(task.recipe), lambda: states(other)(end)),
        start=start,
        end=end,
        settings=service.sweep.escape,
        beat=beat,
    )
    return asdict(measured)
