"""Decays, by name or as an arithmetic expression, and the functions that build curves from other curves.

A decay falls from 1 at the start of a cycle to a floor at its end. A curve maps optimizer steps to values. An
expression is parsed into a syntax tree and evaluated node by node, never run as code, because a sweep file may come
from a stranger.
"""

import ast
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sweeper.errors import ScheduleError, did_you_mean, shorten
from sweeper.schedules.values import FloatArray

Shape = Callable[[FloatArray, FloatArray | float], FloatArray]
"""shape(x, y): the values of a decay of length ``y`` at ``x``, both in epochs."""

Curve = Callable[[FloatArray], FloatArray]
"""curve(k): the values at the steps ``k``, which are float64, ascending and not negative."""

SHAPES: dict[str, Callable[[FloatArray, float, float], FloatArray]] = {
    "constant": lambda u, floor, power: np.ones_like(u),
    "linear": lambda u, floor, power: (1 - u) * (1 - floor) + floor,
    "cosine": lambda u, floor, power: ((1 + np.cos(math.pi * u)) / 2) ** power * (1 - floor) + floor,
    "polynomial": lambda u, floor, power: (1 - u) ** power * (1 - floor) + floor,
    "exponential": lambda u, floor, power: floor**u,
    "1/sqrt": lambda u, floor, power: 1 / np.sqrt(1 + u * (floor**-2.0 - 1)),
    "1-sqrt": lambda u, floor, power: (1 - np.sqrt(u)) * (1 - floor) + floor,
}
NEEDS_FLOOR = ("exponential", "1/sqrt")  # Their formulas are of use for a floor above 0 only.


def shape(decay: str, floor: float = 0.0, power: float = 1.0) -> Shape:
    """The decay of that name, or that expression, as a function of x and y in epochs.

    With u = x/y, f = floor (fraction of the start, 0 to 1) and p = power (> 0):

    - ``constant``: 1
    - ``linear``: (1-u)(1-f) + f
    - ``cosine``: ((1+cos(pi u))/2)^p (1-f) + f   (Loshchilov & Hutter, SGDR, 2017, eq. 5)
    - ``polynomial``: (1-u)^p (1-f) + f           (torch PolynomialLR)
    - ``exponential``: f^u, f > 0
    - ``1/sqrt``: 1/sqrt(1 + u(1/f^2 - 1)), f > 0
    - ``1-sqrt``: (1-sqrt(u))(1-f) + f            (Haegele et al., 2024)
    - an expression, see :func:`expression`, which ``floor`` and ``power`` do not change

    x is not clipped to y. Raises ScheduleError for an unknown decay.

    >>> shape("1/sqrt", floor=0.5)(np.array([0.0, 5.0, 10.0]), 10.0).round(3).tolist()
    [1.0, 0.632, 0.5]
    """
    if decay not in SHAPES:
        if decay.isidentifier() and decay not in _NAMES:
            raise ScheduleError(
                f"decay: {decay!r} is not known; expected {', '.join(SHAPES)} or an expression in x and y"
                + did_you_mean(decay, SHAPES)
            )
        return expression(decay)
    if decay in NEEDS_FLOOR and floor == 0:
        raise ScheduleError(f"floor: 0.0 cannot be reached by an {decay} decay; expected a floor above 0")

    def named(x: FloatArray, y: FloatArray | float) -> FloatArray:
        with np.errstate(all="ignore"):  # A value that is not real is NaN, which Schedule.values refuses.
            return SHAPES[decay](x / np.asarray(y, np.float64), floor, power)

    return named


MAX_LENGTH = 400  # Characters of an expression.
MAX_NODES = 150  # Nodes of its syntax tree; each costs one pass over the trace.
MAX_POWER = 100.0

_NAMES = ("x", "y", "u", "pi", "e")
_FUNCTIONS: dict[str, Callable[..., FloatArray]] = {
    "cos": np.cos,
    "sin": np.sin,
    "tan": np.tan,
    "tanh": np.tanh,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "min": np.minimum,
    "max": np.maximum,
}
_BINARY: dict[type[ast.operator], Callable[[FloatArray, FloatArray], FloatArray]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    # np.power alone would turn NaN into a number, because NaN to the power of 0 is 1.
    ast.Pow: lambda base, power: np.where(np.isnan(base) | np.isnan(power), np.nan, np.power(base, power)),
}


def expression(text: str) -> Shape:
    """Arithmetic in x (epochs since the cycle began), y (length of its decay in epochs) and u = x/y.

    Allowed are numbers, + - * / **, the names x, y, u, pi, e and the functions cos, sin, tan, tanh, exp, log, sqrt,
    abs, floor, ceil, min, max; at most 400 characters, 150 parts and a constant power of 100. Everything else raises
    ScheduleError. Where a part of the expression is complex, undefined or infinite the value is NaN, which
    ``Schedule.values`` refuses.

    >>> half = expression("0.65*((1+cos(pi*x/y))/2)**1.0+0.35")
    >>> [round(float(v), 3) for v in half(np.array([0.0, 15.0, 30.0]), 30.0)]
    [1.0, 0.675, 0.35]
    """
    if len(text) > MAX_LENGTH:
        raise ScheduleError(
            f"decay: an expression of {len(text)} characters is too long; expected at most {MAX_LENGTH}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about "1(x)", which is refused below.
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _not_arithmetic(text) from None
    if (count := sum(1 for _ in ast.walk(tree))) > MAX_NODES:
        raise ScheduleError(f"decay: {text!r} has {count} parts; expected at most {MAX_NODES}")

    def evaluate(x: FloatArray, y: FloatArray | float) -> FloatArray:
        x, y = np.asarray(x, np.float64), np.atleast_1d(np.asarray(y, np.float64))
        with np.errstate(all="ignore"):
            values = (x, y, x / y, np.asarray(math.pi), np.asarray(math.e))
            value = _value(text, tree, dict(zip(_NAMES, values, strict=True)))
        return np.broadcast_to(value, np.broadcast_shapes(x.shape, y.shape)) + 0.0

    evaluate(np.ones(1), 1.0)  # A first evaluation raises ScheduleError for whatever is not arithmetic.
    return evaluate


def _not_arithmetic(text: str, part: str = "") -> ScheduleError:
    names = ", ".join((*_NAMES, *_FUNCTIONS))
    where = f": {part}" if part else ""
    return ScheduleError(f"decay: {text!r}{where} is not arithmetic; expected + - * / ** with {names} and numbers")


def _value(text: str, node: ast.expr, names: Mapping[str, FloatArray]) -> FloatArray:
    """The value of a node of the expression, NaN where it is not finite. The value of a constant has no dimension."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            if not abs(number) <= sys.float_info.max:
                raise ScheduleError(f"decay: {text!r}: a number in it is not finite; expected finite numbers")
            return np.asarray(float(number))
        case ast.Name(id=name) if name in names:
            return _finite(names[name])
        case ast.Name(id=name) if name not in _FUNCTIONS:
            raise ScheduleError(
                f"decay: {text!r}: {name} is not known; expected {', '.join(_NAMES)}, a function or a number; a search "
                f"takes the values of a constant beside its text: {{{name}: {{low: 0.5, high: 2}}}}"
            )
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as op, operand=operand):
            inner = _value(text, operand, names)
            return -inner if isinstance(op, ast.USub) else inner
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _BINARY:
            operands = _value(text, left, names), _value(text, right, names)
            if isinstance(op, ast.Pow) and np.ndim(operands[1]) == 0 and not abs(operands[1]) <= MAX_POWER:
                raise ScheduleError(
                    f"decay: {text!r}: a power of {operands[1]:g} is too large; expected at most {MAX_POWER:g}"
                )
            return _finite(_BINARY[type(op)](*operands))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            if len(args) != (count := 2 if name in ("min", "max") else 1):
                raise ScheduleError(f"decay: {text!r}: {name} has {len(args)} arguments; expected {count}")
            return _finite(_FUNCTIONS[name](*(_value(text, argument, names) for argument in args)))
    raise _not_arithmetic(text, repr(ast.unparse(node.func if isinstance(node, ast.Call) else node)))


def _finite(values: FloatArray) -> FloatArray:
    """``values`` with NaN in place of infinity, because a later operation could make infinity finite."""
    return np.where(np.isfinite(values), values, np.nan)


_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


def free_names(text: str) -> set[str]:
    """The constants that an expression leaves open: its names that are no variable, no function and not pi or e.

    >>> sorted(free_names("a*((1+cos(pi*x/y))/2)**b+(1-a)"))
    ['a', 'b']
    """
    return {*_NAME.findall(text)} - {*_NAMES, *_FUNCTIONS}


def substitute(text: str, constants: Mapping[str, Any]) -> str:
    """The expression ``text`` with numbers in place of the names in ``constants``.

    Raises ScheduleError for a constant that is not a number.
    """

    def number(match: re.Match[str]) -> str:
        name = match[0]
        try:
            value = repr(float(constants[name])) if name in constants else name
        except (TypeError, ValueError):
            wrong = shorten(constants[name])
            raise ScheduleError(f"decay: {name}: {wrong} is not allowed; expected a number") from None
        return f"({value})" if value.startswith("-") else value

    return _NAME.sub(number, text)


def segment(shape: Shape, length: float, period: float | None = None, unit: float = 1.0) -> Curve:
    """A curve that follows ``shape`` over ``period`` steps (default: ``length``) and keeps the value that it has after
    ``length`` steps, or after ``period`` steps if that is less. ``unit``: steps per unit of the shape's x and y.
    """
    decay_steps = length if period is None else period
    return lambda k: shape(np.clip(k, 0.0, min(length, decay_steps)) / unit, decay_steps / unit)


def sequence(curves: Sequence[Curve], starts: Sequence[float]) -> Curve:
    """The curves one after the other: ``curves[i]`` from step ``starts[i]`` on, counting from there. ``starts`` ascend.
    Steps before the first start have the first curve's value at 0.
    """

    def pieces(k: FloatArray) -> FloatArray:
        out = np.empty_like(k)
        edges = [0, *np.searchsorted(k, starts[1:]), len(k)]
        for curve, start, (first, last) in zip(curves, starts, pairwise(edges), strict=True):
            out[first:last] = curve(np.maximum(k[first:last] - start, 0.0))
        return out

    return pieces


def warmup_lerp(curve: Curve, length: float, start: float, target: float | None = None) -> Curve:
    """A line from ``start`` to ``target`` over ``length`` steps, and then ``curve``. Without ``target`` the line is
    interpolated, at each step, towards the curve's value at that step, as Ultralytics does.
    """
    if length <= 0:
        return curve

    def warmed_up(k: FloatArray) -> FloatArray:
        out = np.array(curve(k))
        rising = k < length
        out[rising] = start + ((out[rising] if target is None else target) - start) * (k[rising] / length)
        return out

    return warmed_up


def hold(curve: Curve, every: float) -> Curve:
    """``curve`` as stairs: each ``every`` steps have the value of the first of them."""
    return lambda k: curve(np.floor(k / every) * every)
