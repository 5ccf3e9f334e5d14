"""Sweeps learning-rate schedules for detection models: Optuna proposes, YOLO trains the exact trace, MLflow shows.

What a notebook needs is here, see ``docs/python.md``. Names are imported when they are first used, so that
``import sweeper`` and ``from sweeper.schedules import ...`` take a fraction of the time that torch and MLflow take.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeper.config import Sweep
    from sweeper.errors import SweeperError
    from sweeper.notebook import confirm, launch, pick, plan, run, status, trials, work
    from sweeper.schedules import TimeBase, Trace, parse
    from sweeper.stats import Answer
    from sweeper.training.scheduler import ScheduleCallback, TraceLR

__version__ = "0.1.0"

_HOMES = {
    "Answer": "sweeper.stats",
    "ScheduleCallback": "sweeper.training.scheduler",
    "Sweep": "sweeper.config",
    "SweeperError": "sweeper.errors",
    "TimeBase": "sweeper.schedules",
    "Trace": "sweeper.schedules",
    "TraceLR": "sweeper.training.scheduler",
    "confirm": "sweeper.notebook",
    "launch": "sweeper.notebook",
    "parse": "sweeper.schedules",
    "pick": "sweeper.notebook",
    "plan": "sweeper.notebook",
    "run": "sweeper.notebook",
    "status": "sweeper.notebook",
    "trials": "sweeper.notebook",
    "work": "sweeper.notebook",
}

__all__ = [
    "Answer",
    "ScheduleCallback",
    "Sweep",
    "SweeperError",
    "TimeBase",
    "Trace",
    "TraceLR",
    "confirm",
    "launch",
    "parse",
    "pick",
    "plan",
    "run",
    "status",
    "trials",
    "work",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sweeper' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
