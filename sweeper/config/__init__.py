"""What the YAML says, checked: ``Recipe`` (everything but the learning rate), ``Search``, ``Sweep``.

A sweep file is flat where Ultralytics is (``data``, ``model``, ``epochs``, ``imgsz``, ``batch`` ...) and nested only
for what this project adds (``search``, ``baselines``, ``confirm``, ``escape``). ``key=value`` after the file overrides
it, dots go deeper.
"""

from sweeper.config.parts import Budget, Confirm, Escape, Pruner, Recipe
from sweeper.config.space import Parameter, Range, Restarts, Search
from sweeper.config.sweep import BEST, Sweep, built_in, file_of

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
    "file_of",
]
