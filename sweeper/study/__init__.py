"""Optuna behind slots and leases: exactly N trials, whatever happens to the workers.

The budget is N trials enqueued as WAITING, each with a slot of our own. A worker claims a slot, holds its lease by
renewing it, and finishes the trial; when it dies the next one adopts the same trial. To Optuna's own tools the study
stays a plain study.
"""

from sweeper.study.fence import check_optuna
from sweeper.study.queue import Slot, unfinished
from sweeper.study.study import Study, WorkerRow
from sweeper.study.trial import Control, Facts, Stage, State, Trial, Wanted

__all__ = [
    "Control", "Facts", "Slot", "Stage", "State", "Study", "Trial", "Wanted", "WorkerRow",
    "check_optuna", "unfinished",
]  # fmt: skip
