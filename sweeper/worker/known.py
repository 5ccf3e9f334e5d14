"""What the other trials of a study tell about a trial: its trunk, a twin, and whether it is worth its epochs."""

import time
from collections.abc import Sequence
from typing import Any

from sweeper import names
from sweeper.errors import ScheduleError
from sweeper.schedules import Schedule, Trace
from sweeper.search import prune
from sweeper.service import Service
from sweeper.store import Snapshot
from sweeper.study import Slot
from sweeper.worker.segments import Task


class Known:
    """The other trials of one sweep, seen from the trial that a worker holds."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._traces: tuple[int, set[Any]] | None = None  # a trial, and the traces of all others when it was proposed

    def awaits_trunk(self, slot: Slot) -> bool:
        """Whether a search trial is not to be proposed yet, because its trunk is still being trained with this seed.

        It would wait for the trunk's epochs anyway, and a worker that waits looks at the next trial: all of the search
        would be proposed before anything is known.
        """
        trunk = self._service.searched.trunk
        if trunk is None or slot.stage != "search" or slot.spec is not None:
            return False
        open_rows = [row for row in self._service.study.trials() if row.state in ("WAITING", "RUNNING")]
        digest = self._service.trace(trunk).digest
        return any(
            row.stage == "baseline"
            and row.seed == slot.seed
            and row.schedule is not None
            and self._service.trace(row.schedule).digest == digest
            for row in open_rows
        )

    def trained(self, slot: Slot, schedule: Schedule) -> bool:
        """Whether another trial of this seed has the trace of ``schedule``, or no run of it can have one."""
        try:
            digest = schedule.trace(self._service.time).digest
        except ScheduleError:
            return True
        if self._traces is None or self._traces[0] != slot.number:
            rows = self._service.study.trials()
            self._traces = slot.number, {row.facts.trace for row in rows if row.seed == slot.seed}
        return digest in self._traces[1]

    def twin(self, task: Task) -> Snapshot | None:
        """The end of a finished trial with the same trace, seed and recipe, without its state; None if there is none.

        The trial's attribute ``duplicate_of`` then says which one.
        """
        slot, trace = task.slot, task.trace
        row = self._service.study.find(trace.digest, slot.seed, task.digest)
        if row is None or row.number == slot.number or len(row.curve) < trace.epochs:
            return None
        slot.set("duplicate_of", row.number)
        now, steps = round(time.time() * 1000), trace.steps_per_epoch
        rows = [
            {
                "epoch": epoch,
                "time": now,
                "by": f"{self._service.study.id}/{row.number}",
                "seconds": row.facts.epoch_seconds or 0.0,
                names.LR: float(trace.lr[(epoch + 1) * steps - 1]),
                self._service.sweep.metric: row.curve[epoch],
            }
            for epoch in range(trace.epochs)
        ]
        return Snapshot(trace.epochs, b"", rows, row.facts.state_digest or "")

    def verdict(self, slot: Slot, trace: Trace, curve: Sequence[float]) -> str | None:
        """The reason to stop a search trial after ``curve`` (objective by epoch), or None. Nothing else ever is.

        Where a cycle ends a trial is judged once. Its attribute ``judged`` says after how many epochs that was last: a
        trial that is resumed, perhaps much later, is not held against what others have reached since.
        """
        sweep = self._service.sweep
        if slot.stage != "search" or len(curve) >= trace.epochs:
            return None
        if (reason := prune.dead(curve, sweep.dead_after)) is not None:
            return reason
        ends = {jump.epoch for jump in trace.jumps()}
        if sweep.pruner.name == "none" or len(curve) not in ends or len(curve) <= slot.facts.judged:
            return None
        others = [
            row.values
            for row in self._service.study.trials()
            if row.number != slot.number and row.seed == slot.seed and row.state != "FAIL"
        ]
        from_epoch = sweep.pruner.from_epoch
        reason = prune.cycle_end(
            curve,
            ends,
            others,
            from_epoch=trace.epochs // 3 if from_epoch is None else from_epoch,
            share=sweep.pruner.share,
            least=sweep.pruner.others,
        )
        if reason is None:
            slot.set("judged", len(curve))
        return reason
