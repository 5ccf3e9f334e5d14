"""How far a sweep is."""

from collections.abc import Mapping
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from sweeper import evidence
from sweeper.errors import ConfigError
from sweeper.service import racing
from sweeper.service.failed import failures
from sweeper.study import REPLICATE, TrialRow

if TYPE_CHECKING:
    from sweeper.service.service import Service


def status(service: "Service") -> dict[str, Any]:
    """Counts by state, the budget, workers, epochs trained and reused; JSON-able."""
    rows = service.study.rows()
    counts = service.study.counts()
    reused = sum(int(row.attrs.get("epochs_reused", 0)) for row in rows)
    trained = sum(len(row.values) for row in rows) - reused
    seconds = [float(row.attrs["epoch_seconds"]) for row in rows if row.attrs.get("epoch_seconds")]
    told = [
        row
        for row in rows
        if row.stage == "search" and row.state in ("COMPLETE", "PRUNED") and REPLICATE not in row.attrs
    ]
    asked = sum(int(row.attrs.get("proposals", 1)) for row in told)
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
            "distinct": len({row.attrs.get("trace") for row in told}),
            "per_trial": asked / len(told) if told else None,
            "duplicates": sum("duplicate_of" in row.attrs for row in told),
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
                "name": evidence.name_of(row),
                "label": service.searched.label(row.schedule) if row.schedule else "not proposed yet",
                "seed": row.seed,
                "epochs_done": len(row.values),
                "score": row.value if row.value is not None else _latest(row.values),
                "curve": [row.values[epoch] for epoch in sorted(row.values)],
                "lr": _lr_now(service, row),
                "reasons": list(row.reasons),
            }
            for row in rows
        ],
        "race": racing.race(service, rows),
        "spending": racing.spending(service, rows),
        "failures": failures([row for row in rows if row.stage not in ("control", "foreign")]).to_dict(),
        "tracking": service.place.tracking,
        "tracking_problem": service.tracker.problem,
    }


def _done(service: "Service") -> bool:
    try:
        return service.study.done
    except ConfigError:  # the search cannot begin, and whoever works on it says why
        return False


def _lr_now(service: "Service", row: TrialRow) -> float | None:
    """The LR that a trial in training has at the start of its next epoch."""
    if row.state != "RUNNING" or not row.schedule:
        return None
    trace = service.trace(row.schedule)
    return float(trace.lr[min(len(row.values), trace.epochs - 1) * trace.steps_per_epoch])


def _latest(values: Mapping[int, float]) -> float | None:
    return values[max(values)] if values else None
