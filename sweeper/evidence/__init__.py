"""What has to be trained, and measured, before anything is said: confirmation runs, control runs, the landscape.

Plain rows of trials in, slots of trials out; the same workers train them as everything else. Nothing here keeps state:
what was decided is read back from the slots that are there, so that any command can be interrupted and given again.
"""

from .battery import Restart, barrier_slots, control_slots, restarts, subject, verdicts
from .confirm import chosen, confirm_slots, fresh_seeds
from .landscape import Landscape, measure, states, thresholds

__all__ = [
    "Landscape", "Restart", "barrier_slots", "chosen", "confirm_slots", "control_slots", "fresh_seeds", "measure",
    "restarts", "states", "subject", "thresholds", "verdicts",
]  # fmt: skip
