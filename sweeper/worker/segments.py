"""What trials of a sweep share: segments of trainings, an epoch each, and what the others have shown so far.

A segment is trained once, by the worker that holds its lease, and its state is stored for all.
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

say = logging.getLogger("sweeper")

UNTRAINED = Snapshot(0, b"", [], "")


class Elsewhere(Exception):
    """Another worker is training the segment that this trial needs next; there is other work."""


@dataclass(frozen=True)
class Task:
    """A claimed trial with all that determines its training.

    ``facts``: what determines it beside ``recipe``; ``digest`` is that of both. ``keys``: the prefix keys of the states
    after 0, 1, ... epochs. ``branches``: epochs after which other trials may part from it.
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
    """The stored states of a worker's trial, and the one segment whose lease the worker holds at a time."""

    def __init__(self, service: Service, worker: str) -> None:
        self._service, self._worker = service, worker
        self._store, self._seconds = service.store, service.sweep.lease_s
        self._held: str | None = None

    def deepest(self, task: Task, twin: Snapshot | None) -> Snapshot:
        """The deepest stored state of this trace, with the right to train on from it. Raises Elsewhere.

        A finished twin stands in where the last state is gone: its values are known, and there is nothing to train.
        """
        keys = task.keys
        while True:
            depth = self._store.deepest(keys, owner=task.slot.owner)
            if depth + 1 < len(keys):
                if twin is not None:
                    return twin
                if not self._lease(keys[depth + 1]):
                    raise Elsewhere
            if self._store.deepest(keys) != depth:  # another worker has stored it between the two questions
                continue
            if depth == 0:
                return UNTRAINED
            try:
                return self._store.get(keys[depth], branch=depth in task.branches)
            except SnapshotCorrupt as error:
                say.warning("trial %d: %s", task.slot.number, error)

    def train(self, task: Task, child: TrainingProcess, state: Snapshot) -> Generator[Beat | Epoch]:
        """The training from a stored state on. A state that the trainer cannot load is dropped, and no epoch comes."""
        detecting = self._service.sweep.with_coco
        content = state.state if state.epoch else None  # None is the untrained model
        try:
            yield from child.train(task.recipe, task.trace, start=state.epoch, state=content, detecting=detecting)
        except SnapshotCorrupt as error:
            if not state.epoch:
                raise
            say.warning("trial %d: %s", task.slot.number, error)
            self._store.drop(task.keys[state.epoch], str(error))

    def put(self, task: Task, log: TrialLog, state: Snapshot) -> bool:
        """Store a state; False if another one is there. A full disk costs the snapshot, not the trial.

        Raises LeaseLost if the trial is another worker's by now, which can use the state: it is stored all the same.
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
                say.warning("trial %d: %s", task.slot.number, mismatch)
        except StoreError as error:
            say.warning("trial %d goes on without the state after epoch %d: %s", task.slot.number, state.epoch, error)
            log.tags({names.UNSTORED: str(error)})
            mismatch = None
        if lost is not None:
            raise lost
        return mismatch is None

    def next_is_ours(self, task: Task, epoch: int) -> bool:
        """Whether to train on after ``epoch`` epochs; not where the next state is stored or trained elsewhere."""
        return self._lease(task.keys[epoch + 1]) and self._store.deepest(task.keys) <= epoch

    @contextlib.contextmanager
    def renewing(self, slot: Slot) -> Iterator[None]:
        """Renew the leases of the trial and of its segment from a thread, also while an epoch takes its time."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self._seconds / 4):
                try:
                    slot.renew()
                    if (key := self._held) is not None:
                        # The segment may have been released in this moment. If its lease ran out, storing shows it.
                        with contextlib.suppress(LeaseLost):
                            self._store.renew(key, self._worker, self._seconds)
                except LeaseLost:
                    return  # the worker's next write raises it, too, and ends the attempt
                except SweeperError as error:
                    say.warning("trial %d: %s", slot.number, error)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def release(self) -> None:
        """Let other workers train the segment."""
        if self._held is not None:
            self._store.release(self._held, self._worker)
        self._held = None

    def _lease(self, key: str) -> bool:
        before = self._held
        if not self._store.lease(key, self._worker, self._seconds):
            return False
        self._held = key
        if before is not None and before != key:  # only now, so that nobody can take the next one in between
            self._store.release(before, self._worker)
        return True


class Known:
    """The other trials of one sweep, seen from the trial that a worker holds."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._traces: tuple[int, set[Any]] | None = None  # a trial, and the traces of all others when it was proposed

    def awaits_trunk(self, slot: Slot) -> bool:
        """Whether a search trial is not proposed yet, because its trunk is still being trained with this seed.

        It would wait for the trunk's epochs anyway, and all of the search would be proposed before anything is known.
        """
        trunk = self._service.searched.trunk
        if trunk is None or slot.stage != "search" or slot.spec is not None:
            return False
        digest, trials = self._service.trace(trunk).digest, self._service.study.trials()
        baselines = [trial for trial in trials if trial.stage == "baseline" and trial.seed == slot.seed]
        schedules = [trial.schedule for trial in baselines if trial.state in ("WAITING", "RUNNING")]
        return any(schedule and self._service.trace(schedule).digest == digest for schedule in schedules)

    def trained(self, slot: Slot, schedule: Schedule) -> bool:
        """Whether another trial of this seed has the trace of ``schedule``, or no run of it can have one."""
        try:
            digest = schedule.trace(self._service.time).digest
        except ScheduleError:
            return True
        if self._traces is None or self._traces[0] != slot.number:
            trials = self._service.study.trials()
            self._traces = slot.number, {trial.facts.trace for trial in trials if trial.seed == slot.seed}
        return digest in self._traces[1]

    def twin(self, task: Task) -> Snapshot | None:
        """The end of a finished trial with the same trace, seed and recipe, without its state; None if there is none.

        The trial's attribute ``duplicate_of`` then says which one.
        """
        slot, trace = task.slot, task.trace
        twin = self._service.study.find(trace.digest, slot.seed, task.digest)
        if twin is None or twin.number == slot.number or len(twin.curve) < trace.epochs:
            return None
        slot.set("duplicate_of", twin.number)
        by, seconds = f"{self._service.study.id}/{twin.number}", twin.facts.epoch_seconds or 0.0
        row = {"time": round(time.time() * 1000), "by": by, "seconds": seconds}
        rates, values = trace.lr[trace.steps_per_epoch - 1 :: trace.steps_per_epoch], twin.curve
        rows = [
            {**row, "epoch": epoch, names.LR: float(rate), self._service.sweep.metric: values[epoch]}
            for epoch, rate in enumerate(rates)
        ]
        return Snapshot(trace.epochs, b"", rows, twin.facts.state_digest or "")

    def verdict(self, slot: Slot, trace: Trace, curve: Sequence[float]) -> str | None:
        """The reason to stop a search trial after ``curve`` (objective by epoch), or None.

        At the end of a cycle a trial is judged once; its attribute ``judged`` says after how many epochs that was last.
        So a trial that is resumed later is not compared with what others have reached since.
        """
        sweep = self._service.sweep
        if slot.stage != "search" or len(curve) >= trace.epochs:
            return None
        if (reason := rules.dead(curve, sweep.dead_after)) is not None:
            return reason
        ends = {jump.epoch for jump in trace.jumps()}
        if sweep.pruner.name == "none" or len(curve) not in ends or len(curve) <= slot.facts.judged:
            return None
        trials = [trial for trial in self._service.study.trials() if trial.seed == slot.seed and trial.state != "FAIL"]
        others = [trial.values for trial in trials if trial.number != slot.number]
        first = trace.epochs // 3 if sweep.pruner.from_epoch is None else sweep.pruner.from_epoch
        share, least = sweep.pruner.share, sweep.pruner.others
        reason = rules.cycle_end(curve, ends, others, from_epoch=first, share=share, least=least)
        if reason is None:
            slot.set("judged", len(curve))
        return reason


def landscape(service: Service, task: Task, child: TrainingProcess, beat: Callable[[], None]) -> dict[str, Any] | None:
    """What a control trial of the battery measures, None for all other trials. ``beat`` may raise to stop."""
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
