"""Optuna's study behind slots and leases: exactly N trials are finished, whichever workers die.

Each trial is enqueued in Optuna as WAITING and has a row in a table of sweeper, its slot. A worker claims a slot,
renews its lease while it works, and finishes the trial. If the worker dies, its lease expires and another worker
continues the same trial. Optuna's own tools see a plain study.
"""

from sweeper.study.fence import check_optuna
from sweeper.study.queue import Slot, unfinished
from sweeper.study.study import Study, WorkerRow
from sweeper.study.trial import Control, Facts, Stage, State, Trial, Wanted

__all__ = [
    "Control", "Facts", "Slot", "Stage", "State", "Study", "Trial", "Wanted", "WorkerRow",
    "check_optuna", "unfinished",
]  # fmt: skip
