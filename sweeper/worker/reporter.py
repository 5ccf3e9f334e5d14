"""What a worker writes about its trial: the study's attributes, and MLflow's params, tags, metrics and files."""

import contextlib
import json
import logging
import time
from typing import Any

from sweeper import charts, evidence, names
from sweeper.data import Dataset
from sweeper.errors import TrackingError
from sweeper.schedules import words
from sweeper.search import rules
from sweeper.service import Service
from sweeper.store import Snapshot
from sweeper.study import Slot
from sweeper.tracking import TrialLog
from sweeper.training import coco
from sweeper.training.process import Epoch, TrainingProcess
from sweeper.worker.segments import Task

say = logging.getLogger("sweeper")

SHOWN_STEPS = 300  # of the learning rate in MLflow, which draws at most 320 points of a metric
SHOWN = ("restarts", "drops", "peak", "final", "integral", "warmup_fraction")


def row_of(event: Epoch, by: str, dataset: Dataset) -> dict[str, Any]:
    """An epoch as the row that travels with its state; ``by`` names the trial that trained it.

    ``time`` is in ms since 1970. Values under names with a slash are the metrics in MLflow.
    """
    metrics = dict(event.metrics)
    curve = {f"{names.CURVE}{key}": metrics.pop(key) for key in ("mAP50-95", "mAP50")}
    values = {key if "/" in key else f"{names.VAL}{key}": value for key, value in metrics.items()}
    return {
        "epoch": event.epoch,
        "time": round(time.time() * 1000),
        "by": by,
        "seconds": event.seconds,
        names.LR: event.lr,
        **curve,
        **event.losses,
        **values,
        **(coco.metrics(dataset, event.detections) if event.detections is not None else {}),
    }


class Reporter:
    """Writes down what happens to the trials of one worker. A log that it gives is the caller's to close."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._metric = service.sweep.metric

    def log(self, slot: Slot) -> TrialLog:
        """The trial's run in MLflow, for this attempt."""
        schedule = slot.spec or {}
        label = self._service.searched.label(schedule) if schedule else slot.facts.name
        return self._service.tracker.trial(
            slot.number,
            slot.attempt,
            name=f"{slot.number:03d} {label}" + (f" seed={slot.seed}" if slot.stage == "confirm" else ""),
            tags={
                names.STAGE: slot.stage,
                names.FAMILY: schedule.get("family", "none"),
                names.ATTEMPT: slot.attempt,
                **({names.RECIPE: slot.facts.recipe} if slot.facts.recipe is not None else {}),
            },
        )

    def begin(self, task: Task, reused: int) -> TrialLog:
        """Describe the trial in the study and in MLflow; ``reused``: epochs that are stored already. Gives the log."""
        slot, trace = task.slot, task.trace
        jumps = ", ".join(f"{jump.kind} at epoch {jump.epoch} x{jump.ratio:.2g}" for jump in trace.jumps())
        shared = f"; {reused} of {trace.epochs} epochs are there already" if reused else ""
        say.info("trial %d: %s, %s%s", slot.number, task.schedule.family, jumps or "no jump", shared)
        facts = trace.facts() | {"final_ratio": trace.final / trace.peak if trace.peak else 0.0}
        # "facts" for programs; one by one they are columns and axes in optuna-dashboard
        shown = {key: facts[key] for key in SHOWN}
        for key, value in {"trace": trace.digest, "recipe": task.digest, "facts": facts, **shown}.items():
            if getattr(slot.facts, key) != value:
                slot.set(key, value)
        if slot.facts.epochs_reused is None:
            slot.set("epochs_reused", reused)
        log = self.log(slot)
        log.params(names.params(words(task.schedule.spec), facts, slot.seed))
        if not slot.curve:  # the pictures are the same in every attempt
            steps = charts.steps_shown(trace, SHOWN_STEPS)
            log.series(names.TRACE, {int(step): float(trace.lr[step]) for step in steps})
            log.artifact(names.TRACE_TABLE, charts.trace_table(trace))
            log.artifact(names.TRACE_PLOT, charts.plot_traces({f"trial {slot.number}": trace}))
        if self._service.sweep.system_metrics:
            log.system_metrics()
        return log

    def epoch(self, task: Task, log: TrialLog, row: dict[str, Any]) -> None:
        """One epoch into the journal and the study; what is there already stays."""
        slot, trace = task.slot, task.trace
        numbers = {key: value for key, value in row.items() if "/" in key}
        numbers[names.LR_RELATIVE] = row[names.LR] / trace.peak if trace.peak else 0.0
        log.epoch(row["epoch"], numbers, row["time"])
        if row["epoch"] not in slot.curve:
            slot.report(row["epoch"], row[self._metric])
            if len(slot.curve) == 2:  # what the first one took says little; from now on plan can say hours
                slot.set("epoch_seconds", row["seconds"])

    def finish(
        self,
        task: Task,
        log: TrialLog,
        child: TrainingProcess,
        end: Snapshot,
        pruned: str | None,
        landscape: dict[str, Any] | None,
        memory: float,
    ) -> None:
        """The end of a trial, first in MLflow and then in the study.

        ``pruned``: why it was stopped early. ``landscape``: what the battery measured. ``memory``: the largest share of
        the GPU's memory that was held.
        """
        slot, sweep, last = task.slot, self._service.sweep, end.rows[-1]
        with_model = bool(end.state) and not pruned and slot.stage != "control"
        curve = [float(row[self._metric]) for row in end.rows]
        # A pruned trial may stop in the dip after a restart, so its best value counts.
        value = rules.best_so_far(curve) if pruned else rules.score(curve)
        trained = sum(row["by"] == slot.owner for row in end.rows)
        reused = len(end.rows) - trained
        effects = self._effects(task, log, end, curve)
        if landscape is not None:
            log.artifact(names.LANDSCAPE, json.dumps(landscape, indent=1).encode())
        if sweep.weights != "none" and with_model:
            log.artifact(names.WEIGHTS, child.weights(task.recipe, end.state))
        late: dict[str, float] = {}
        if coco.AP not in last and with_model:  # the last epoch comes from a sweep that did not ask for its detections
            late = coco.metrics(self._service.dataset, child.detections(task.recipe, end.state))
        best, name = max(curve), sweep.objective
        summary = {f"{names.BEST}{name}": best, f"{names.FINAL}{name}": value}
        summary[names.BEST_EPOCH] = end.rows[curve.index(best)]["epoch"]
        log.epoch(last["epoch"], summary | late, last["time"])
        counts = {names.EPOCHS_TRAINED: trained, names.EPOCHS_REUSED: reused}
        log.tags({names.STATE_DIGEST: end.state_digest, **counts})
        log.finish("PRUNED" if pruned else "FINISHED", last["time"], pruned)
        seconds = sorted(float(row["seconds"]) for row in end.rows)
        attrs = {
            "epochs_trained": trained,
            "epochs_reused": reused,
            "epoch_seconds": seconds[len(seconds) // 2],
            "state_digest": end.state_digest,
            "effects": effects,
            "landscape": landscape,
            "AP": None if pruned else {**last, **late}.get(coco.AP),
            "gpu_memory": round(memory, 4) or None,
            "run_id": log.run_id,  # None while the server has not answered; the service then asks for it when needed
            "pruned": pruned,
        }
        for key, attr in attrs.items():
            if attr is not None:
                slot.set(key, attr)
        if pruned:
            slot.prune(value)
            say.info("trial %d: stopped, %s", slot.number, pruned)
        else:
            slot.tell(value)
            line = "trial %d: %s %.4f (%d epochs trained, %d of other trials reused)"
            say.info(line, slot.number, name, value, trained, reused)

    def bad_attempt(self, slot: Slot, reason: str) -> None:
        """Give the trial back with a strike against it, or let it fail if it has had its attempts."""
        if slot.last_attempt:
            self.fail(slot, reason)
            return
        with contextlib.closing(self.log(slot)) as log:
            log.tags({f"{names.REASON}.{slot.attempt}": reason})
        slot.release(reason)

    def fail(self, slot: Slot, reason: str) -> None:
        """The end of a trial, in MLflow first: if this worker dies in between, the next one does it again."""
        self._end_run(slot, reason)
        slot.fail(reason)
        self._service.store.unpin(slot.owner)

    def give_up(self, slot: Slot) -> None:
        """The end of a trial whose workers died too often; the study closes it."""
        say.warning("trial %d has had its attempts: %s", slot.number, "; ".join(slot.reasons))
        try:
            self._end_run(slot, slot.reasons[-1])
        except TrackingError as error:  # the study must not wait for it
            say.warning("trial %d: %s", slot.number, error)
        self._service.store.unpin(slot.owner)

    def _end_run(self, slot: Slot, reason: str) -> None:
        with contextlib.closing(self.log(slot)) as log:
            log.finish("FAILED", reason=reason)

    def _effects(self, task: Task, log: TrialLog, end: Snapshot, curve: list[float]) -> list[dict[str, Any]]:
        """What the curve says about each jump. In MLflow it stands as metrics at the jumps' epochs, of a branch by its
        difference to the trunk on this seed, and without such a run only the jump itself."""
        within, jumps, spec = self._service.sweep.escape.within, task.trace.jumps(), task.schedule.spec
        effects = [effect.to_dict() for effect in evidence.effects(curve, jumps, within=within)]
        shown = effects
        if effects and spec.get("trunk") is not None:
            trunk = evidence.trunk_runs(self._service.study.trials(), spec).get(task.slot.seed)
            values = trunk.values[: len(curve)] if trunk is not None else curve
            shown = [effect.to_dict() for effect in evidence.effects(curve, jumps, within=within, trunk=values)]
            if trunk is None:
                shown = [dict.fromkeys(effect) | {key: effect[key] for key in ("epoch", "ratio")} for effect in shown]
        for effect in shown:
            log.epoch(effect["epoch"], evidence.jump_metrics(effect), end.rows[effect["epoch"]]["time"])
        if effects and all(effect["kind"] == "drop" for effect in effects):
            log.tags({names.VERDICT: evidence.NOT_A_RESTART})
        return effects
