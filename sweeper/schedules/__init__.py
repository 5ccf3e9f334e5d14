"""Learning-rate schedules as pure functions of the optimizer step: families, LR trace, prefix keys. numpy only."""

from sweeper.schedules.families import FAMILIES
from sweeper.schedules.schedule import Schedule, begin_alike, parse
from sweeper.schedules.spec import AT_RESTARTS, MAIN, flat, label, short, words
from sweeper.schedules.time import Duration, TimeBase, epochs_from_iterations, iterations_from_epochs
from sweeper.schedules.trace import Jump, Trace, prefix_keys

__all__ = [
    "AT_RESTARTS",
    "FAMILIES",
    "MAIN",
    "Duration",
    "Jump",
    "Schedule",
    "TimeBase",
    "Trace",
    "begin_alike",
    "epochs_from_iterations",
    "flat",
    "iterations_from_epochs",
    "label",
    "parse",
    "prefix_keys",
    "short",
    "words",
]
