"""Did a restart escape? The measures on a run and its controls, and the verdict with its thresholds.

* :func:`effects`: what the curve of a run says about each jump of its learning rate. Free, and not evidence of an
  escape: on landscapes with known basins the gain after a restart hardly tells an escape from none.
* :func:`path_barrier`: is there a hill between the weights before and after, along *quenched* snapshots of the path?
* :func:`counterfactual`, :func:`matched_peak`, :func:`quench`: the learning rates of the controls, as traces.
* :func:`verdict`: the table that turns those three into words, printed with its thresholds.

Weights are numpy arrays under their names; whoever owns the network hands in its loss as a function.
"""

from sweeper.schedules.controls import along, counterfactual, matched_peak, quench

from .barrier import Barrier, PathBarrier, Weights, barrier, disagreement, distance, interpolate, path_barrier
from .curve import Effect, curve_noise, effects
from .verdict import NOT_A_RESTART, Comparison, Gain, Movement, Thresholds, Verdict, verdict

__all__ = [
    "NOT_A_RESTART", "Barrier", "Comparison", "Effect", "Gain", "Movement", "PathBarrier", "Thresholds", "Verdict",
    "Weights", "along", "barrier", "counterfactual", "curve_noise", "disagreement", "distance", "effects",
    "interpolate", "matched_peak", "path_barrier", "quench", "verdict",
]  # fmt: skip
