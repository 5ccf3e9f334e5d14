"""Checking one parameter at a time: each check takes (what, value) and returns it in its one JSON-able form."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sweeper.errors import ScheduleError, shorten
from sweeper.schedules.decay import NEEDS_FLOOR, SHAPES, did_you_mean, shape
from sweeper.schedules.time import Duration

Check = Callable[[str, object], object]
REQUIRED = object()
IDLE = object()  # a parameter that is accepted and does nothing, and so is no part of the schedule
MAX_LIST = 1_000


@dataclass(frozen=True)
class Key:
    """A parameter: its check, and the default (already in its one form) if it may be left out."""

    check: Check
    default: object = REQUIRED

    @property
    def required(self) -> bool:
        """No default: the parameter must be given."""
        return self.default is REQUIRED


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False) -> Check:
    """A finite number from ``low`` to ``high``; ``above``/``below`` exclude the ends. A text such as 1e-3 counts.

    >>> number(0, 1, above=True)("floor", 0)
    Traceback (most recent call last):
        ...
    sweeper.errors.ScheduleError: floor: 0 is not allowed; expected a number > 0 and <= 1
    """
    ends = [f"{'>' if above else '>='} {low:g}"] if low > -math.inf else []
    ends += [f"{'<' if below else '<='} {high:g}"] if high < math.inf else []
    expected = f"a number {' and '.join(ends)}" if ends else "a finite number"

    def check(what: str, value: object) -> float:
        try:  # YAML reads 1e-3 as a text
            given = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            given = math.nan
        good = math.isfinite(given) and (low < given if above else low <= given)
        if not good or not (given < high if below else given <= high):
            raise ScheduleError(f"{what}: {shorten(value)} is not allowed; expected {expected}")
        return given + 0.0

    return check


def whole(low: int, high: int) -> Check:
    """A whole number from ``low`` to ``high``."""

    def check(what: str, value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ScheduleError(
                f"{what}: {shorten(value)} is not allowed; expected a whole number from {low} to {high}"
            )
        return value

    return check


def choice(*known: str) -> Check:
    """One of the words ``known``.

    >>> choice("step", "epoch")("granularity", "epochs")
    Traceback (most recent call last):
        ...
    sweeper.errors.ScheduleError: granularity: 'epochs' is not known; expected step or epoch (did you mean epoch?)
    """

    def check(what: str, value: object) -> str:
        if value not in known:
            raise ScheduleError(
                f"{what}: {shorten(value)} is not known; expected {' or '.join(known)}"
                + did_you_mean(value, list(known))
            )
        return str(value)

    return check


def flag(what: str, value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ScheduleError(f"{what}: {shorten(value)} is not allowed; expected true or false")
    return value


def duration(what: str, value: object) -> str:
    """A duration as text, ``3ep``."""
    return str(Duration.parse(value, what))


def length(what: str, value: object) -> str:
    """A duration above 0 as text."""
    parsed = Duration.parse(value, what)
    if parsed.value == 0:
        raise ScheduleError(f"{what}: {shorten(value)} is not allowed; expected a duration above 0")
    return str(parsed)


def point(what: str, value: object) -> float | int | str:
    """A duration in its short form: epochs as a plain number, the other units as text.

    >>> [point("steps", written) for written in (3.0, "3.5ep", "40it")]
    [3, 3.5, '40it']
    """
    parsed = Duration.parse(value, what)
    if parsed.unit != "ep":
        return str(parsed)
    return int(parsed.value) if parsed.value == int(parsed.value) else parsed.value


def horizon(what: str, value: object) -> float | int | str:
    """The length of a cycle's decay: a duration above 0, or ``end`` (of the run)."""
    if value == "end":
        return "end"
    length(what, value)
    return point(what, value)


def listed(check: Check, *, or_one: bool = False) -> Check:
    """A list whose entries pass ``check``; with ``or_one`` also a single value that does."""

    def checked(what: str, value: object) -> object:
        if or_one and not isinstance(value, list | tuple):
            return check(what, value)
        if not isinstance(value, list | tuple):
            raise ScheduleError(f"{what}: {shorten(value)} is not a list; expected for example [31, 81]")
        if len(value) > MAX_LIST:
            raise ScheduleError(f"{what}: {len(value)} entries are too many; expected at most {MAX_LIST}")
        return [check(f"{what}[{i}]", entry) for i, entry in enumerate(value)]

    return checked


def optional(check: Check) -> Check:
    """``null`` or what passes ``check``."""
    return lambda what, value: None if value is None else check(what, value)


def idle(what: str, value: object) -> object:
    """A finite number that does nothing, because the decay is an expression with its own (as in CAWB's code)."""
    number()(what, value)
    return IDLE


def decay(what: str, value: object) -> str:
    """A decay's name or an expression in x and y."""
    if not isinstance(value, str):
        raise ScheduleError(f"{what}: {shorten(value)} is not known; expected {', '.join(SHAPES)} or an expression")
    text = value.strip()
    shape(text, floor=1.0 if text in NEEDS_FLOOR else 0.0)
    return text
