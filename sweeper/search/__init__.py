"""The search space as Optuna parameters, their values as one schedule, the checks of a space, the race and the pruner.

A proposal calls the ``suggest_*`` methods of an Optuna trial for the keys below ``search`` in a sweep file, and makes
one schedule from the values. Different values may give the same schedule, so a schedule is identified by its trace.
"""

from sweeper.search.check import Enqueued, check, corners, enqueued
from sweeper.search.propose import OfflineTrial, Suggest, branch_epochs, propose, restart_sections
from sweeper.search.rules import Entrant, promotions, rungs, search_seeds, seed_effects, shrunken_means

__all__ = [
    "Enqueued",
    "Entrant",
    "OfflineTrial",
    "Suggest",
    "branch_epochs",
    "check",
    "corners",
    "enqueued",
    "promotions",
    "propose",
    "restart_sections",
    "rungs",
    "search_seeds",
    "seed_effects",
    "shrunken_means",
]
