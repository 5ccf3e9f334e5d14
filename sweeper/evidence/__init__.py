"""Which runs have to be trained before a claim about schedules can be made, and what the finished runs show.

* ``seeds``: the race of the search over seeds, the choice of the trunk, and the confirmation on fresh seeds.
* ``curve``: measures of each jump of the learning rate, from the curve of a run or its difference to the trunk's curve.
  They need no training, and they are no evidence of an escape: on landscapes with known basins the gain after a restart
  is nearly the same with an escape and without.
* ``escape``: the control runs for a trial's restarts (``schedules.trace`` computes their learning rates), and the
  verdict that follows from the measurements and the thresholds.
* ``landscape``: measures whether the loss has a barrier between the weights before and after a restart.

The functions take trials and return the trials that are wanted (``study.Wanted``), which workers train like all others.
They keep no state: each decision is read back from the trials that exist, so that any command can be interrupted and
repeated.
"""

from sweeper.evidence.curve import Effect, curve_noise, effect_in_words, effects, jump_metrics, jumps_of, trunk_runs
from sweeper.evidence.escape import (
    BARRIER,
    NOT_A_RESTART,
    Examined,
    Gain,
    Verdict,
    controls_of,
    seeds_of,
    subject,
    verdict,
    verdicts,
    wanted_barriers,
    wanted_controls,
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
    entrants,
    fresh_seeds,
    proposals,
    standings,
    wanted_confirmation,
    wanted_replicates,
)

__all__ = [
    "BARRIER", "NOT_A_RESTART", "Design", "Effect", "Examined", "Gain", "Landscape", "Movement", "Trunk", "Verdict",
    "barrier", "best_baseline", "chosen", "controls_of", "curve_noise", "distance", "effect_in_words", "effects",
    "entrants", "fresh_seeds", "interpolate", "jump_metrics", "jumps_of", "measure", "path_barrier", "proposals",
    "seeds_of", "standings", "states", "subject", "trunk_runs", "verdict", "verdicts",
    "wanted_barriers", "wanted_confirmation", "wanted_controls", "wanted_replicates",
]  # fmt: skip
