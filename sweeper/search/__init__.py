"""Search space <-> Optuna parameters <-> schedule, checked before anything is trained.

What a sweep file calls ``search`` becomes questions to anything that has Optuna's ``suggest_*`` methods, and their
answers become one schedule. Many answers mean one schedule; what identifies a schedule is its trace.
"""

from sweeper.search.check import check, corners, enqueued
from sweeper.search.near import Nearest, nearest, sketch
from sweeper.search.propose import Drawn, Suggest, propose, slots

__all__ = ["Drawn", "Nearest", "Suggest", "check", "corners", "enqueued", "nearest", "propose", "sketch", "slots"]
