"""Decays: functions that fall from 1 at the start of a cycle to a floor at its end, by name or written as arithmetic.

Arithmetic may come from a stranger. It is read as a syntax tree and never run as code.
"""

import ast
import difflib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sweeper.errors import ScheduleError, shorten
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
    - an expression, see :class:`~sweeper.schedules.decay.Expression`, has its own floor and power: these are idle

    Nothing is clipped here. Raises ScheduleError for an unknown decay.

    >>> ends = np.array([0.0, 5.0, 10.0])
    >>> {name: shape(name, floor=0.25)(ends, 10.0).round(3).tolist() for name in ("linear", "cosine", "exponential")}
    {'linear': [1.0, 0.625, 0.25], 'cosine': [1.0, 0.625, 0.25], 'exponential': [1.0, 0.5, 0.25]}
    >>> shape("1/sqrt", floor=0.5)(ends, 10.0).round(3).tolist()
    [1.0, 0.632, 0.5]
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


MAX_LENGTH = 400  # characters
MAX_NODES = 150  # each costs one pass over the trace
MAX_POWER = 100.0

_VARIABLES = ("x", "y", "u")
_CONSTANTS = {"pi": math.pi, "e": math.e}
_FUNCTIONS: dict[str, tuple[int, Callable[..., FloatArray]]] = {
    "cos": (1, np.cos),
    "sin": (1, np.sin),
    "tan": (1, np.tan),
    "tanh": (1, np.tanh),
    "exp": (1, np.exp),
    "log": (1, np.log),
    "sqrt": (1, np.sqrt),
    "abs": (1, np.abs),
    "floor": (1, np.floor),
    "ceil": (1, np.ceil),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
}
_BINARY: dict[type[ast.operator], Callable[[FloatArray, FloatArray], FloatArray]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
}
_ALLOWED = f"+ - * / ** with {', '.join((*_VARIABLES, *_CONSTANTS, *_FUNCTIONS))} and numbers"


@dataclass(frozen=True)
class Expression:
    """Arithmetic in x (epochs since the cycle began), y (length of its decay in epochs) and u = x/y.

    Allowed are numbers, + - * / **, the names x, y, u, pi, e and the functions cos, sin, tan, tanh, exp, log, sqrt,
    abs, floor, ceil, min, max; at most 400 characters, 150 parts and a constant power of 100. Everything else
    raises ScheduleError when it is read. Where any part of it is complex, undefined or infinite the value is NaN,
    which a schedule refuses with the step.

    >>> half = Expression("0.65*((1+cos(pi*x/y))/2)**1.0+0.35")
    >>> [round(float(v), 3) for v in half(np.array([0.0, 15.0, 30.0]), 30.0)]
    [1.0, 0.675, 0.35]
    """

    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MAX_LENGTH:
            raise ScheduleError(
                f"decay: an expression of {len(self.text)} characters is too long; expected at most {MAX_LENGTH}"
            )
        tree = self._tree()
        count = sum(1 for _ in ast.walk(tree))
        if count > MAX_NODES:
            raise ScheduleError(f"decay: {self.text!r} has {count} parts; expected at most {MAX_NODES}")
        self._check(tree)

    def __call__(self, x: FloatArray, y: FloatArray | float) -> FloatArray:
        """Values at ``x`` (any shape) for a length ``y`` (a number or as ``x``); NaN where it is not a finite real."""
        run = _Run(x, np.asarray(y, np.float64))
        with np.errstate(all="ignore"):
            result = run.value(self._tree())
        return np.where(run.bad, np.nan, np.broadcast_to(result, np.shape(run.bad)))

    def _tree(self) -> ast.expr:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "1(x)" warns; the tree refuses it anyway
                return ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._refuse("it") from None

    def _refuse(self, part: str) -> ScheduleError:
        return ScheduleError(f"decay: {self.text!r}: {part} is not arithmetic; expected {_ALLOWED}")

    def _check(self, node: ast.expr) -> bool:
        """Refuse what is not on the list; True if the part is a constant."""
        match node:
            case ast.Constant(value=bool() | complex() | str() | bytes() | None):
                pass
            case ast.Constant(value=int() | float() as number):
                if not math.isfinite(_number(number)):
                    raise ScheduleError(f"decay: {self.text!r}: a number in it is not finite; expected finite numbers")
                return True
            case ast.Name(id=name) if name in _VARIABLES:
                return False
            case ast.Name(id=name) if name in _CONSTANTS:
                return True
            case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
                return self._check(operand)
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _BINARY:
                constant = [self._check(left), self._check(right)]
                if isinstance(op, ast.Pow) and constant[1]:
                    self._check_power(right)
                return all(constant)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                if len(args) != _FUNCTIONS[name][0]:
                    raise ScheduleError(
                        f"decay: {self.text!r}: {name} has {len(args)} arguments; expected {_FUNCTIONS[name][0]}"
                    )
                constants = [self._check(argument) for argument in args]
                return all(constants)
            case ast.Call(func=func):
                raise self._refuse(_source(func))
        raise self._refuse(_source(node))

    def _check_power(self, exponent: ast.expr) -> None:
        ones = np.ones(1)
        with np.errstate(all="ignore"):
            power = float(np.asarray(_Run(ones, ones).value(exponent)).flat[0])
        if not abs(power) <= MAX_POWER:
            raise ScheduleError(
                f"decay: {self.text!r}: a power of {power:g} is too large; expected at most {MAX_POWER:g}"
            )


def _source(node: ast.expr) -> str:
    """A part of an expression as it is written, quoted."""
    try:
        return repr(ast.unparse(node))
    except RecursionError:
        return "it"


def free_names(text: str) -> set[str]:
    """The names in an expression that are not its variables, pi, e or a function: constants left open.

    >>> sorted(free_names("a*((1+cos(pi*x/y))/2)**b+(1-a)"))
    ['a', 'b']
    """
    if len(text) > MAX_LENGTH:
        return set()  # reading it as a decay raises the error
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()  # not arithmetic; reading it as a decay raises the error
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names - {*_VARIABLES, *_CONSTANTS, *_FUNCTIONS}


def filled(text: str, constants: Mapping[str, float]) -> str:
    """The expression with numbers in place of the names in ``constants``. Raises ScheduleError if it is too deep.

    >>> filled("a*((1+cos(pi*x/y))/2)**b+(1-a)", {"a": 0.65, "b": -1})
    '0.65 * ((1 + cos(pi * x / y)) / 2) ** (-1.0) + (1 - 0.65)'
    """

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:  # the name that ast looks for
            if node.id not in constants:
                return node
            number = float(constants[node.id])
            return ast.Constant(number) if number >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-number))

    if not constants:
        return text
    try:
        return ast.unparse(Fill().visit(ast.parse(text.strip(), mode="eval")))
    except RecursionError:
        raise ScheduleError(
            f"decay: {shorten(text)}: is nested too deeply; expected fewer parts in each other"
        ) from None


class _Run:
    """One evaluation; ``bad`` marks where any part was not a finite real number."""

    def __init__(self, x: FloatArray, y: FloatArray) -> None:
        self.bad = np.zeros(np.broadcast_shapes(np.shape(x), np.shape(y)), bool)
        self.names = {"x": np.asarray(x, np.float64), "y": y, **{k: np.asarray(v) for k, v in _CONSTANTS.items()}}

    def value(self, node: ast.expr) -> FloatArray:
        match node:
            case ast.Constant(value=number):
                result = np.asarray(_number(number))
            case ast.Name(id="u"):
                result = self.names["x"] / self.names["y"]
            case ast.Name(id=name):
                result = self.names[name]
            case ast.UnaryOp(op=op, operand=operand):
                inner = self.value(operand)
                result = -inner if isinstance(op, ast.USub) else inner
            case ast.BinOp(op=op, left=left, right=right):
                result = _BINARY[type(op)](self.value(left), self.value(right))
            case ast.Call(func=ast.Name(id=name), args=args):
                result = _FUNCTIONS[name][1](*[self.value(argument) for argument in args])
            case _:  # the check at construction let nothing else through
                raise ScheduleError(f"decay: {ast.unparse(node)!r} is not arithmetic; expected {_ALLOWED}")
        if not np.all(np.isfinite(result)):
            self.bad |= ~np.isfinite(result)
        return result


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        return math.inf
