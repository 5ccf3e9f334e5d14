"""Sweeps learning-rate schedules for detection models: Optuna proposes schedules, YOLO trains them, MLflow shows them.

The functions and classes for notebooks and scripts are imported here, see ``docs/python.md``. Each is loaded at its
first use, so that ``import sweeper`` and ``from sweeper.schedules import ...`` do not wait for torch and MLflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeper.config import Sweep as Sweep
    from sweeper.errors import SweeperError as SweeperError
    from sweeper.notebook import confirm as confirm
    from sweeper.notebook import launch as launch
    from sweeper.notebook import pick as pick
    from sweeper.notebook import plan as plan
    from sweeper.notebook import run as run
    from sweeper.notebook import status as status
    from sweeper.notebook import trials as trials
    from sweeper.notebook import work as work
    from sweeper.schedules import TimeBase as TimeBase
    from sweeper.schedules import Trace as Trace
    from sweeper.schedules import parse as parse
    from sweeper.stats import Answer as Answer
    from sweeper.training.scheduler import ScheduleCallback as ScheduleCallback
    from sweeper.training.scheduler import TraceLR as TraceLR

__version__ = "0.1.0"

_EXPORTS = {
    "sweeper.config": ("Sweep",),
    "sweeper.errors": ("SweeperError",),
    "sweeper.notebook": ("confirm", "launch", "pick", "plan", "run", "status", "trials", "work"),
    "sweeper.schedules": ("TimeBase", "Trace", "parse"),
    "sweeper.stats": ("Answer",),
    "sweeper.training.scheduler": ("ScheduleCallback", "TraceLR"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sweeper' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
