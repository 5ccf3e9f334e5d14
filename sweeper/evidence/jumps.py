"""What a trial's own curve says about each jump of its learning rate: free, and no evidence of an escape."""

import math
from collections.abc import Sequence
from typing import Any

from sweeper import escape
from sweeper.schedules import Trace


def jump_effects(curve: Sequence[float], trace: Trace, within: float) -> list[dict[str, Any]]:
    """``escape.effects`` as plain dicts for JSON; a ratio from an LR of 0, which is infinite, is None."""
    found = [effect.to_dict() for effect in escape.effects(curve, trace.jumps(), within=within)]
    return [{**one, "ratio": one["ratio"] if math.isfinite(one["ratio"]) else None} for one in found]


def jump_metrics(effect: dict[str, Any]) -> dict[str, float]:
    """One jump's numbers under their names in MLflow, to be logged at the jump's epoch; what is not known is left out.

    >>> jump_metrics({"ratio": None, "dip": 0.1, "recovery": None, "gain": 0.02, "noise": 0.0})
    {'jump/dip': 0.1, 'jump/gain': 0.02, 'jump/noise': 0.0}
    >>> jump_metrics({"ratio": 1.1, "dip": -0.1, "recovery": 0, "gain": None, "noise": 0.0}).get("jump/gain") is None
    True
    """
    return {
        f"jump/{key}": effect[key] for key in ("ratio", "dip", "recovery", "gain", "noise") if effect[key] is not None
    }
