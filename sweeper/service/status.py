"""How far a sweep is."""

from collections.abc import Mapping
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from sweeper.errors import ConfigError
from sweeper.service import racing
from sweeper.stats import failures
from sweeper.study import Trial

if TYPE_CHECKING:
    from sweeper.service.service import Service


def status(service: "Service") -> dict[str, Any]:
    """Counts by state, the budget, workers, epochs trained and reused; JSON-able."""
    rows = service.study.trials()
    counts = service.study.counts()
    reused = sum(row.reused for row in rows)
    trained = sum(len(row.curve) for row in rows) - reused
    seconds = [row.facts.epoch_seconds for row in rows if row.facts.epoch_seconds]
    told = [
        row for row in rows if row.stage == "search" and row.state in ("COMPLETE", "PRUNED") and row.original is None
    ]
    asked = sum(row.facts.proposals for row in told)
    return {
        "sweep": service.sweep.name,
        "objective": service.sweep.objective,
        "budget": counts["total"],
        "counts": counts,
        "done": _done(service),
        "epochs": {"per_trial": service.sweep.epochs, "trained": trained, "reused": reused},
        "proposals": {
            "asked": asked,
            "told": len(told),
            "distinct": len({row.facts.trace for row in told}),
            "per_trial": asked / len(told) if told else None,
            "duplicates": sum(row.facts.duplicate_of is not None for row in told),
        },
        "hours_saved": reused * median(seconds) / 3600 if seconds else 0.0,
        "seconds_per_epoch": median(seconds) if seconds else None,
        "store": {**asdict(service.store.usage()), "budget": service.store.max_bytes},
        "mismatches": service.mismatches(),
        "workers": [
            {
                "worker": worker.worker,
                "device": worker.device,
                "trial": worker.number,
                "epoch": worker.epoch,
                "age_s": round(worker.age_s, 1),
            }
            for worker in service.study.workers()
        ],
        "trials": [
            {
                "trial": row.number,
                "state": row.state.lower(),
                "stage": row.stage,
                "name": row.name,
                "label": service.searched.label(row.spec) if row.spec else "not proposed yet",
                "seed": row.seed,
                "epochs_done": len(row.curve),
                "score": row.score if row.score is not None else _latest(row.curve),
                "curve": row.values,
                "lr": _lr_now(service, row),
                "reasons": list(row.reasons),
            }
            for row in rows
        ],
        "race": racing.race(service, rows),
        "spending": racing.spending(service, rows),
        "failures": failures([row for row in rows if row.stage != "control"]).to_dict(),
        "tracking": service.place.tracking,
        "tracking_problem": service.tracker.problem,
    }


def _done(service: "Service") -> bool:
    try:
        return service.study.done
    except ConfigError:  # the search cannot begin, and whoever works on it says why
        return False


def _lr_now(service: "Service", row: Trial) -> float | None:
    """The LR that a trial in training has at the start of its next epoch."""
    if row.state != "RUNNING" or row.schedule is None:
        return None
    trace = service.trace(row.schedule)
    return float(trace.lr[min(len(row.curve), trace.epochs - 1) * trace.steps_per_epoch])


def _latest(values: Mapping[int, float]) -> float | None:
    return values[max(values)] if values else None
