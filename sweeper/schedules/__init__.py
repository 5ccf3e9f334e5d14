"""Learning-rate schedules as pure functions of the optimizer step: families, LR trace, prefix keys. numpy only."""

from sweeper.schedules.apart import differing_by_family, short, told_apart
from sweeper.schedules.families import FAMILIES
from sweeper.schedules.parameters import MAIN
from sweeper.schedules.schedule import Schedule, parse
from sweeper.schedules.time import Duration, TimeBase, epochs_from_iterations, iterations_from_epochs
from sweeper.schedules.trace import Jump, Trace, find_jumps, prefix_keys

__all__ = [
    "FAMILIES",
    "MAIN",
    "Duration",
    "Jump",
    "Schedule",
    "TimeBase",
    "Trace",
    "differing_by_family",
    "epochs_from_iterations",
    "find_jumps",
    "iterations_from_epochs",
    "parse",
    "prefix_keys",
    "short",
    "told_apart",
]
