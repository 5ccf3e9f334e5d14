"""What has to be trained, and measured, before anything is said: confirmation runs, control runs, the landscape.

Plain rows of trials in, slots of trials out; the same workers train them as everything else. Nothing here keeps state:
what was decided is read back from the slots that are there, so that any command can be interrupted and given again.
"""

from .battery import BARRIER, Restart, barrier_slots, control_slots, restarts, seeds_of, subject, verdicts
from .confirm import OPEN, Design, chosen, confirm_slots, fresh_seeds, name_of
from .jumps import jump_effects, jump_metrics
from .landscape import Landscape, measure, states, thresholds
from .race import Standing, Trunk, best_baseline, entrants, proposals, replicates, slots_of, standings

__all__ = [
    "BARRIER", "OPEN", "Design", "Landscape", "Restart", "Standing", "Trunk", "barrier_slots", "best_baseline",
    "chosen", "confirm_slots", "control_slots", "entrants", "fresh_seeds", "jump_effects", "jump_metrics", "measure",
    "name_of", "proposals", "replicates", "restarts", "seeds_of", "slots_of", "standings", "states",
    "subject", "thresholds", "verdicts",
]  # fmt: skip
