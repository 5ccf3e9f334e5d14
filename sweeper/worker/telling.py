"""What is said of a trial, and where: the study's attributes, MLflow's params, tags, metrics and files."""

import json
import logging
import time
from typing import Any

from sweeper import evidence, names, report
from sweeper.config import Recipe
from sweeper.data import Dataset
from sweeper.schedules import Trace, words
from sweeper.search import prune
from sweeper.service import Service
from sweeper.store import Snapshot
from sweeper.study import Slot
from sweeper.tracking import TrialLog
from sweeper.training import coco
from sweeper.training.process import Epoch, TrainingProcess

say = logging.getLogger("sweeper")

SHOWN = ("restarts", "drops", "peak", "final", "integral", "warmup_fraction")


def row_of(event: Epoch, by: str, dataset: Dataset) -> dict[str, Any]:
    """An epoch as the flat row that travels with its state; ``by`` names the trial that trained it.

    Beside ``epoch``, ``time`` (ms since the Unix epoch), ``by`` and ``seconds`` it holds numbers under names with a
    slash, which are the metrics in MLflow: ``curve/``, ``train/``, ``val/`` and, where detections were asked for,
    ``coco/``.
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


class Telling:
    """A worker's voice. Its trial's log is the caller's to close."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._metric = service.sweep.metric

    def describe(self, slot: Slot, spec: dict[str, Any], trace: Trace, digest: str) -> dict[str, Any]:
        """What the trial is, into the study; gives what belongs into MLflow's params."""
        facts = trace.facts() | {"final_ratio": trace.final / trace.peak if trace.peak else 0.0}
        # "facts" for programs; one by one they are columns and axes in optuna-dashboard
        shown = {key: facts[key] for key in SHOWN}
        for key, value in {"trace": trace.digest, "recipe": digest, "facts": facts, **shown}.items():
            if slot.attrs.get(key) != value:
                slot.set(key, value)
        return names.params(words(spec), facts, slot.seed)

    def log(self, slot: Slot, attrs: dict[str, Any] | None = None, trace: Trace | None = None) -> TrialLog:
        """The trial's run in MLflow; with ``attrs`` and ``trace``, its params and the table and picture of its LR."""
        schedule = slot.schedule or {}
        called = self._service.searched.label(schedule) if schedule else slot.attrs.get("name", "no schedule yet")
        log = self._service.tracker.trial(
            slot.number,
            slot.attempt,
            name=f"{slot.number:03d} {called}" + (f" seed={slot.seed}" if slot.stage == "confirm" else ""),
            tags={
                names.STAGE: slot.stage,
                names.FAMILY: schedule.get("family", "none"),
                names.ATTEMPT: slot.attempt,
                **({names.RECIPE: slot.attrs["recipe"]} if "recipe" in slot.attrs else {}),
            },
        )
        if attrs is not None:
            log.params(attrs)
        if trace is not None and not slot.values:  # once is enough: they are the same in every attempt
            log.artifact(names.TRACE_TABLE, report.trace_table(trace))
            log.artifact(names.TRACE_PLOT, report.plot_traces({f"trial {slot.number}": trace}))
        return log

    def record(self, slot: Slot, log: TrialLog, trace: Trace, row: dict[str, Any]) -> None:
        """One epoch into the journal and the study; what is there already stays."""
        numbers = {key: value for key, value in row.items() if "/" in key}
        numbers[names.LR_RELATIVE] = row[names.LR] / trace.peak if trace.peak else 0.0
        log.epoch(row["epoch"], numbers, row["time"])
        if row["epoch"] not in slot.values:
            slot.report(row["epoch"], row[self._metric])

    def finish(
        self,
        slot: Slot,
        log: TrialLog,
        child: TrainingProcess,
        recipe: Recipe,
        trace: Trace,
        end: Snapshot,
        pruned: str | None,
        landscape: dict[str, Any] | None,
        memory: float,
    ) -> None:
        """The end of a trial: into the journal, MLflow's files and the study, in this order.

        ``landscape``: what the battery measured, if it did; ``memory``: the share of the GPU's that was held at most.
        """
        trained = [row for row in end.rows if row["by"] == slot.owner]
        # a dip is no verdict: what is told of a pruned trial is the best that it had reached
        curve, name = [float(row[self._metric]) for row in end.rows], self._service.sweep.objective
        value = prune.best_so_far(curve) if pruned else prune.score(curve)
        best = max(end.rows, key=lambda row: float(row[self._metric]))
        counts = {"epochs_trained": len(trained), "epochs_reused": len(end.rows) - len(trained)}
        effects = self._effects(log, trace, end)
        if landscape is not None:
            log.artifact(names.LANDSCAPE, json.dumps(landscape, indent=1).encode())
        if self._service.sweep.weights != "none" and end.state and not pruned and slot.stage != "control":
            log.artifact(names.WEIGHTS, child.weights(recipe, end.state))
        last = end.rows[-1]
        if coco.AP in last or pruned or not end.state or slot.stage == "control":
            late = {}  # told with its row, if at all
        else:  # of a sweep that had not looked at this epoch
            late = coco.metrics(self._service.dataset, child.detections(recipe, end.state))
        summary = {
            f"{names.BEST}{name}": best[self._metric],
            names.BEST_EPOCH: best["epoch"],
            f"{names.FINAL}{name}": value,
        }
        log.epoch(last["epoch"], summary | late, last["time"])
        log.tags(
            {
                names.STATE_DIGEST: end.state_digest,
                names.EPOCHS_TRAINED: counts["epochs_trained"],
                names.EPOCHS_REUSED: counts["epochs_reused"],
            }
        )
        log.finish("PRUNED" if pruned else "FINISHED", last["time"], pruned)
        seconds = sorted(float(row["seconds"]) for row in end.rows)
        told = counts | {"epoch_seconds": seconds[len(seconds) // 2], "state_digest": end.state_digest}
        told |= {"effects": effects} | ({"landscape": landscape} if landscape else {})
        if not pruned and (ap := {**last, **late}.get(coco.AP)) is not None:
            told["AP"] = ap
        told |= {"gpu_memory": round(memory, 4)} if memory else {}
        for key, said in told.items():
            slot.set(key, said)
        if log.run_id is not None:  # else the server was away all the time; whoever wants it later asks there
            slot.set("run_id", log.run_id)
        if pruned:
            slot.set("pruned", pruned)
            slot.prune(value)
            say.info("trial %d: stopped, %s", slot.number, pruned)
            return
        slot.tell(value)
        say.info(
            "trial %d: %s %.4f (%d epochs trained, %d of other trials reused)",
            slot.number,
            name,
            value,
            *counts.values(),
        )

    def _effects(self, log: TrialLog, trace: Trace, end: Snapshot) -> list[dict[str, Any]]:
        """What the curve says about each jump, also as metrics at the jumps' epochs."""
        curve, within = [row[self._metric] for row in end.rows], self._service.sweep.escape.within
        found = [effect.to_dict() for effect in evidence.effects(curve, trace.jumps(), within=within)]
        for effect in found:
            log.epoch(effect["epoch"], evidence.jump_metrics(effect), end.rows[effect["epoch"]]["time"])
        if found and all(effect["kind"] == "drop" for effect in found):
            log.tags({names.VERDICT: evidence.NOT_A_RESTART})
        return found
