"""What a worker records of its trial: attributes in the study, and params, tags, metrics and artifacts in MLflow."""

import contextlib
import json
import logging
import time
from typing import Any

from sweeper import charts, evidence, names
from sweeper.data import Dataset
from sweeper.errors import TrackingError
from sweeper.schedules import text_params
from sweeper.search import rules
from sweeper.service import Service
from sweeper.store import Snapshot
from sweeper.study import Slot
from sweeper.tracking import TrialLog
from sweeper.training import evaluation
from sweeper.training.process import Epoch, TrainingProcess
from sweeper.worker.segments import Task

logger = logging.getLogger("sweeper")

LOGGED_STEPS = 300  # Steps whose learning rate goes to MLflow, which draws at most 320 points of a metric.
# Facts that are also stored as single attributes, because optuna-dashboard then shows them as columns and axes.
DASHBOARD_FACTS = ("restarts", "drops", "peak", "final", "integral", "warmup_fraction")


def row_of(event: Epoch, owner: str, dataset: Dataset) -> dict[str, Any]:
    """Return the row of an epoch that is stored with its state; ``owner`` is the trial that trained it.

    "time" is in ms since 1970. The keys that contain a slash are the names of metrics in MLflow.
    """
    metrics = dict(event.metrics)
    curve = {f"{names.CURVE}{key}": metrics.pop(key) for key in ("mAP50-95", "mAP50")}
    values = {key if "/" in key else f"{names.VAL}{key}": value for key, value in metrics.items()}
    return {
        "epoch": event.epoch,
        "time": round(time.time() * 1000),
        "by": owner,
        "seconds": event.seconds,
        names.LR: event.lr,
        **curve,
        **event.losses,
        **values,
        **(evaluation.coco_metrics(dataset, event.detections) if event.detections is not None else {}),
    }


class Reporter:
    """Records the trials of one worker in the study and in MLflow."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._metric = service.sweep.metric

    def log(self, slot: Slot) -> TrialLog:
        """Return the log of this attempt in the trial's MLflow run; the caller closes it."""
        schedule = slot.spec or {}
        label = self._service.searched.label(schedule) if schedule else slot.facts.name
        return self._service.tracker.trial(
            slot.number,
            slot.attempt,
            name=f"{slot.number:03d} {label}" + (f" seed={slot.seed}" if slot.stage == "confirm" else ""),
            tags={
                names.STAGE: slot.stage,
                names.FAMILY: schedule.get("family", "none"),
                **({names.RECIPE: slot.facts.recipe} if slot.facts.recipe is not None else {}),
            },
        )

    def begin(self, task: Task, reused: int) -> TrialLog:
        """Describe the trial in the study and in MLflow, and return its log, which the caller closes.

        ``reused`` is the number of epochs that are stored already.
        """
        slot, trace = task.slot, task.trace
        jumps = ", ".join(f"{jump.kind} at epoch {jump.epoch} x{jump.ratio:.2g}" for jump in trace.jumps())
        shared = f"; {reused} of {trace.epochs} epochs are stored already" if reused else ""
        logger.info("trial %d: %s, %s%s", slot.number, task.schedule.family, jumps or "no jump", shared)
        facts = trace.facts() | {"final_ratio": trace.final / trace.peak if trace.peak else 0.0}
        single = {key: facts[key] for key in DASHBOARD_FACTS}
        for key, value in {"trace": trace.digest, "recipe": task.digest, "facts": facts, **single}.items():
            if getattr(slot.facts, key) != value:
                slot.set(key, value)
        if slot.facts.epochs_reused is None:
            slot.set("epochs_reused", reused)
        log = self.log(slot)
        log.params(names.params(text_params(task.schedule.spec), facts, slot.seed))
        if not slot.curve:  # An earlier attempt that stored an epoch has logged the same trace already.
            steps = charts.steps_shown(trace, LOGGED_STEPS)
            log.series(names.TRACE, {int(step): float(trace.lr[step]) for step in steps})
            log.artifact(names.TRACE_TABLE, charts.trace_table(trace))
            log.artifact(names.TRACE_PLOT, charts.plot_traces({f"trial {slot.number}": trace}))
        if self._service.sweep.system_metrics:
            log.system_metrics()
        return log

    def epoch(self, task: Task, log: TrialLog, row: dict[str, Any]) -> None:
        """Record an epoch in the journal for MLflow and in the study; values that are stored already stay."""
        slot, trace = task.slot, task.trace
        numbers = {key: value for key, value in row.items() if "/" in key}
        numbers[names.LR_RELATIVE] = row[names.LR] / trace.peak if trace.peak else 0.0
        log.epoch(row["epoch"], numbers, row["time"])
        if row["epoch"] not in slot.curve:
            slot.report(row["epoch"], row[self._metric])
            if len(slot.curve) == 2:  # Enough for `plan` to estimate hours; the first epoch includes the start-up.
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
        """Record the end of a trial in MLflow's journal and then in the study.

        In this order, because the trial is final once the study has it: if the worker dies in between, the next worker
        repeats both. ``pruned`` says why the trial was stopped early. ``landscape`` is the measurement of a control
        trial. ``memory`` is the largest share of the GPU's memory that was held.
        """
        slot, sweep, last = task.slot, self._service.sweep, end.rows[-1]
        with_model = bool(end.state) and not pruned and slot.stage != "control"
        curve = [float(row[self._metric]) for row in end.rows]
        # A pruned trial may end in the dip after a restart, so its best value is its score.
        value = rules.best_so_far(curve) if pruned else rules.score(curve)
        trained = sum(row["by"] == slot.owner for row in end.rows)
        reused = len(end.rows) - trained
        effects = self._effects(task, log, end, curve)
        if landscape is not None:
            log.artifact(names.LANDSCAPE, json.dumps(landscape, indent=1).encode())
        if sweep.weights != "none" and with_model:
            log.artifact(names.WEIGHTS, child.weights(task.recipe, end.state))
        late: dict[str, float] = {}
        # The stored last epoch may come from a sweep that did not compute COCO's metrics for it.
        if evaluation.AP not in last and with_model:
            late = evaluation.coco_metrics(self._service.dataset, child.detections(task.recipe, end.state))
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
            "AP": None if pruned else {**last, **late}.get(evaluation.AP),
            "gpu_memory": round(memory, 4) or None,
            "run_id": log.run_id,  # None until the MLflow server has answered; the service then looks it up later.
            "pruned": pruned,
        }
        for key, attr in attrs.items():
            if attr is not None:
                slot.set(key, attr)
        if pruned:
            slot.prune(value)
            logger.info("trial %d: stopped, %s", slot.number, pruned)
        else:
            slot.tell(value)
            line = "trial %d: %s %.4f (%d epochs trained, %d of other trials reused)"
            logger.info(line, slot.number, name, value, trained, reused)

    def bad_attempt(self, slot: Slot, reason: str) -> None:
        """Release the trial and count a bad attempt, or fail it if this was the last attempt allowed."""
        if slot.last_attempt:
            self.fail(slot, reason)
            return
        with contextlib.closing(self.log(slot)) as log:
            log.tags({f"{names.REASON}.{slot.attempt}": reason})
        slot.release(reason)

    def fail(self, slot: Slot, reason: str) -> None:
        """Fail a trial in MLflow and then in the study; if this worker dies in between, the next one repeats both."""
        self._end_run(slot, reason)
        slot.fail(reason)
        self._service.store.unpin(slot.owner)

    def give_up(self, slot: Slot) -> None:
        """End the MLflow run of a trial whose workers died too often; the study then closes the trial."""
        logger.warning("trial %d has used up its attempts: %s", slot.number, "; ".join(slot.reasons))
        try:
            self._end_run(slot, slot.reasons[-1])
        except TrackingError as error:  # The journal cannot be written, but the study must close the trial.
            logger.warning("trial %d: %s", slot.number, error)
        self._service.store.unpin(slot.owner)

    def _end_run(self, slot: Slot, reason: str) -> None:
        with contextlib.closing(self.log(slot)) as log:
            log.finish("FAILED", reason=reason)

    def _effects(self, task: Task, log: TrialLog, end: Snapshot, curve: list[float]) -> list[dict[str, Any]]:
        """Return the effect of each jump on the trial's own curve, and log metrics of it at the jump's epoch.

        For a branch, the logged effect is that on its difference to the trunk on the same seed; while no run of the
        trunk has finished on that seed, only the jump's epoch and ratio are logged.
        """
        within, jumps, spec = self._service.sweep.escape.within, task.trace.jumps(), task.schedule.spec
        effects = [effect.to_dict() for effect in evidence.effects(curve, jumps, within=within)]
        logged = effects
        if effects and spec.get("trunk") is not None:
            trunk = evidence.trunk_runs(self._service.study.trials(), spec).get(task.slot.seed)
            if trunk is None:
                jump_only = ("epoch", "ratio")
                logged = [dict.fromkeys(effect) | {key: effect[key] for key in jump_only} for effect in effects]
            else:
                values = trunk.values[: len(curve)]
                logged = [effect.to_dict() for effect in evidence.effects(curve, jumps, within=within, trunk=values)]
        for effect in logged:
            log.epoch(effect["epoch"], evidence.jump_metrics(effect), end.rows[effect["epoch"]]["time"])
        if effects and all(effect["kind"] == "drop" for effect in effects):
            log.tags({names.VERDICT: evidence.NOT_A_RESTART})
        return effects
