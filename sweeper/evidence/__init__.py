"""What has to be trained, and measured, before anything is said: confirmation runs, control runs, the landscape.

* ``race``: the seeds that proposals are searched on, and which baseline is the trunk.
* ``confirm``: the design of a confirmation, and its runs.
* ``curve``: what the curve of a run says about each jump of its learning rate. It costs nothing and is no evidence of
  an escape: on landscapes with known basins the gain after a restart hardly tells an escape from none.
* ``battery``: the control runs of a trial's restarts (their learning rates come from ``schedules.trace``).
* ``landscape`` and ``barrier``: whether there is a hill between the weights before and after a restart.
* ``verdict``: the table that turns those measurements into words, printed with its thresholds.

Trials in, slots of trials out; the same workers train them as everything else. Nothing here keeps state: what was
decided is read back from the slots that are there, so that any command can be interrupted and given again.
"""

from sweeper.evidence.barrier import Weights, barrier, disagreement, distance, interpolate, path_barrier
from sweeper.evidence.battery import (
    BARRIER,
    Restart,
    barrier_slots,
    control_slots,
    controls_of,
    restarts,
    seeds_of,
    subject,
    verdicts,
)
from sweeper.evidence.confirm import Design, chosen, confirm_slots, fresh_seeds
from sweeper.evidence.curve import Effect, curve_noise, effects, jump_metrics
from sweeper.evidence.landscape import Landscape, measure, states
from sweeper.evidence.race import Standing, Trunk, best_baseline, entrants, proposals, replicates, slots_of, standings
from sweeper.evidence.verdict import NOT_A_RESTART, Gain, Movement, Verdict, verdict

__all__ = [
    "BARRIER", "NOT_A_RESTART", "Design", "Effect", "Gain", "Landscape", "Movement", "Restart", "Standing", "Trunk",
    "Verdict", "Weights", "barrier", "barrier_slots", "best_baseline", "chosen", "confirm_slots", "control_slots",
    "controls_of", "curve_noise", "disagreement", "distance", "effects", "entrants", "fresh_seeds", "interpolate",
    "jump_metrics", "measure", "path_barrier", "proposals", "replicates", "restarts", "seeds_of", "slots_of",
    "standings", "states", "subject", "verdict", "verdicts",
]  # fmt: skip
