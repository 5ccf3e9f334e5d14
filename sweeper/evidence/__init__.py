"""What has to be trained, and measured, before anything is said: a race, a confirmation, control runs, the landscape.

* ``seeds``: the race of the search over seeds, which baseline is its trunk, and the confirmation on fresh seeds.
* ``curve``: what the curve of a run, or its difference to the trunk's, says about each jump of its learning rate. It
  costs nothing and is no evidence of an escape: on landscapes with known basins the gain after a restart hardly tells
  an escape from none.
* ``escape``: the control runs of a trial's restarts (their learning rates come from ``schedules.trace``), and the
  table that turns measurements into words, printed with its thresholds.
* ``landscape``: whether there is a hill between the weights before and after a restart.

Trials in, slots of trials out; the same workers train them as everything else. Nothing here keeps state: what was
decided is read back from the slots that are there, so that any command can be interrupted and given again.
"""

from sweeper.evidence.curve import Effect, curve_noise, effect_in_words, effects, jump_metrics, jumps_of, trunk_runs
from sweeper.evidence.escape import (
    BARRIER,
    NOT_A_RESTART,
    Examined,
    Gain,
    Verdict,
    barrier_slots,
    control_slots,
    controls_of,
    seeds_of,
    subject,
    verdict,
    verdicts,
)
from sweeper.evidence.landscape import (
    Landscape,
    Movement,
    barrier,
    distance,
    interpolate,
    measure,
    path_barrier,
    states,
)
from sweeper.evidence.seeds import (
    Design,
    Trunk,
    best_baseline,
    chosen,
    confirm_slots,
    entrants,
    fresh_seeds,
    proposals,
    slots_of,
    standings,
)

__all__ = [
    "BARRIER", "NOT_A_RESTART", "Design", "Effect", "Examined", "Gain", "Landscape", "Movement", "Trunk", "Verdict",
    "barrier", "barrier_slots", "best_baseline", "chosen", "confirm_slots", "control_slots", "controls_of",
    "curve_noise", "distance", "effect_in_words", "effects", "entrants", "fresh_seeds", "interpolate", "jump_metrics",
    "jumps_of", "measure", "path_barrier", "proposals", "seeds_of", "slots_of", "standings", "states",
    "subject", "trunk_runs", "verdict", "verdicts",
]  # fmt: skip
