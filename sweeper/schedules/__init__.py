"""Learning-rate schedules as pure functions of the optimizer step: families, LR trace, prefix keys. numpy only."""

from sweeper.schedules.families import FAMILIES
from sweeper.schedules.label import AT_RESTARTS, MEANINGS, flatten, format_value, label, legend, text_params
from sweeper.schedules.schedule import MAIN, Schedule, parse
from sweeper.schedules.trace import (
    CONTROLS,
    Jump,
    Trace,
    begin_alike,
    counterfactual,
    matched_peak,
    prefix_keys,
    quench,
    snapshot_epochs,
)
from sweeper.schedules.values import Duration, TimeBase

__all__ = [
    "AT_RESTARTS",
    "CONTROLS",
    "FAMILIES",
    "MAIN",
    "MEANINGS",
    "Duration",
    "Jump",
    "Schedule",
    "TimeBase",
    "Trace",
    "begin_alike",
    "counterfactual",
    "flatten",
    "format_value",
    "label",
    "legend",
    "matched_peak",
    "parse",
    "prefix_keys",
    "quench",
    "snapshot_epochs",
    "text_params",
]
