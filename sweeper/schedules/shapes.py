"""Decays as functions on [0, 1]: from 1 at the start of a cycle down to a floor at its end."""

import difflib
import math
from collections.abc import Callable

import numpy as np

from sweeper.errors import ScheduleError
from sweeper.schedules.expression import Expression
from sweeper.schedules.time import FloatArray

Shape = Callable[[FloatArray, FloatArray | float], FloatArray]
"""shape(x, y): the value at ``x`` of a decay of length ``y``, both in epochs."""

Unit = Callable[[FloatArray, float, float], FloatArray]
"""unit(u, floor, power): the same with u = x/y."""

SHAPES: dict[str, Unit] = {
    "constant": lambda u, floor, power: np.ones_like(u),
    "linear": lambda u, floor, power: (1 - u) * (1 - floor) + floor,
    "cosine": lambda u, floor, power: ((1 + np.cos(math.pi * u)) / 2) ** power * (1 - floor) + floor,
    "polynomial": lambda u, floor, power: (1 - u) ** power * (1 - floor) + floor,
    "exponential": lambda u, floor, power: floor**u,
    "1/sqrt": lambda u, floor, power: 1 / np.sqrt(1 + u * (floor**-2.0 - 1)),
    "1-sqrt": lambda u, floor, power: (1 - np.sqrt(u)) * (1 - floor) + floor,
}
NEEDS_FLOOR = ("exponential", "1/sqrt")  # they reach the floor by a ratio, so it cannot be 0


def shape(decay: str, floor: float = 0.0, power: float = 1.0) -> Shape:
    """The decay called ``decay``, or the expression that it spells, as a function of x and y.

    With u = x/y, f = floor (fraction of the start, 0 to 1) and p = power (> 0):

    - ``constant``: 1
    - ``linear``: (1-u)(1-f) + f
    - ``cosine``: ((1+cos(pi u))/2)^p (1-f) + f   (Loshchilov & Hutter, SGDR, 2017, eq. 5)
    - ``polynomial``: (1-u)^p (1-f) + f           (torch PolynomialLR)
    - ``exponential``: f^u, f > 0
    - ``1/sqrt``: 1/sqrt(1 + u(1/f^2 - 1)), f > 0
    - ``1-sqrt``: (1-sqrt(u))(1-f) + f            (Haegele et al., 2024)
    - an expression, see :class:`~sweeper.schedules.expression.Expression`, has its own floor and power: these are idle

    Nothing is clipped here. Raises ScheduleError for an unknown decay.

    >>> ends = np.array([0.0, 5.0, 10.0])
    >>> {name: shape(name, floor=0.25)(ends, 10.0).round(3).tolist() for name in ("linear", "cosine", "exponential")}
    {'linear': [1.0, 0.625, 0.25], 'cosine': [1.0, 0.625, 0.25], 'exponential': [1.0, 0.5, 0.25]}
    >>> shape("1/sqrt", floor=0.5)(ends, 10.0).round(3).tolist()
    [1.0, 0.632, 0.5]
    >>> shape("cosin")
    Traceback (most recent call last):
        ...
    sweeper.errors.ScheduleError: decay: 'cosin' is not known; expected constant, linear, cosine, polynomial, \
exponential, 1/sqrt, 1-sqrt or an expression in x and y (did you mean cosine?)
    """
    if decay not in SHAPES:
        if decay.isidentifier() and decay not in ("x", "y", "u", "pi", "e"):
            raise ScheduleError(
                f"decay: {decay!r} is not known; expected {', '.join(SHAPES)} or an expression in x and y"
                + did_you_mean(decay, list(SHAPES))
            )
        return Expression(decay)
    if decay in NEEDS_FLOOR and floor == 0:
        raise ScheduleError(f"floor: 0.0 cannot be reached by an {decay} decay; expected a floor above 0")
    unit = SHAPES[decay]

    def named(x: FloatArray, y: FloatArray | float) -> FloatArray:
        with np.errstate(all="ignore"):  # a value that is not real is NaN here and refused with its step later
            return unit(x / np.asarray(y, np.float64), floor, power)

    return named


def did_you_mean(word: object, known: list[str]) -> str:
    """`` (did you mean cosine?)`` if a known word is near ``word``, else nothing.

    >>> did_you_mean("warm_up", ["warmup", "steps"]), did_you_mean("zzz", ["warmup"])
    (' (did you mean warmup?)', '')
    """
    near = difflib.get_close_matches(str(word), known, 1)
    return f" (did you mean {near[0]}?)" if near else ""
