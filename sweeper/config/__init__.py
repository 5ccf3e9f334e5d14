"""A sweep file as checked objects: ``Sweep`` with its ``Recipe`` (all but the learning rate) and its ``Search``.

In a sweep file the keys of ``yolo train`` (``data``, ``model``, ``epochs``, ``imgsz``, ``batch`` ...) stand at the top.
Only this project's own keys are nested (``search``, ``baselines``, ``confirm``, ``escape``). ``key=value`` overrides a
key; dots separate the keys of nested mappings.
"""

from sweeper.config.parts import Budget, Confirm, Escape, Pruner, Recipe
from sweeper.config.space import Parameter, Range, Restarts, Search
from sweeper.config.sweep import BEST, Sweep, built_in, find_file

__all__ = [
    "BEST",
    "Budget",
    "Confirm",
    "Escape",
    "Parameter",
    "Pruner",
    "Range",
    "Recipe",
    "Restarts",
    "Search",
    "Sweep",
    "built_in",
    "find_file",
]
