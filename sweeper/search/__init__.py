"""Search space <-> Optuna parameters <-> schedule, checked before anything is trained; the race and the pruning rule.

What a sweep file calls ``search`` becomes questions to anything that has Optuna's ``suggest_*`` methods, and their
answers become one schedule. Many answers mean one schedule; what identifies a schedule is its trace.
"""

from sweeper.search.check import Enqueued, check, corners, enqueued
from sweeper.search.propose import Drawn, Suggest, parts, propose, slots
from sweeper.search.rules import Entrant, promotions, rungs, search_seeds, shrunk

__all__ = [
    "Drawn",
    "Enqueued",
    "Entrant",
    "Suggest",
    "check",
    "corners",
    "enqueued",
    "parts",
    "promotions",
    "propose",
    "rungs",
    "search_seeds",
    "shrunk",
    "slots",
]
