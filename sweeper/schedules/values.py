"""The length of a run, durations such as ``3ep``, and a check for each kind of schedule parameter."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweeper.errors import ScheduleError, did_you_mean, shorten

FloatArray = NDArray[np.float64]
Params = Mapping[str, Any]
MAX_STEPS = 50_000_000
MAX_LIST = 1_000
_DURATION = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(ep|it|img|dur)\s*")


@dataclass(frozen=True)
class TimeBase:
    """The length of a run: ``epochs`` epochs of ``steps_per_epoch`` optimizer steps each.

    ``images`` is the number of training images per epoch; only durations that are written in images need it. Raises
    ScheduleError for a number that is not whole or is below 1.
    """

    epochs: int
    steps_per_epoch: int
    images: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "images"):
            if name != "images" or self.images is not None:
                COUNT(name, getattr(self, name))
        if self.steps > MAX_STEPS:
            raise ScheduleError(
                f"epochs: {self.epochs} x {self.steps_per_epoch} steps are too many; expected at most {MAX_STEPS} steps"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @classmethod
    def from_images(cls, images: int, batch: int, accumulate: int = 1, *, epochs: int) -> "TimeBase":
        """The time base of a run over ``images`` training images; ``batch`` is in images, ``accumulate`` in batches.

        Batches and steps per epoch are both rounded up, because an epoch's last accumulation window ends with it.

        >>> TimeBase.from_images(118_287, 64, epochs=3).steps_per_epoch
        1849
        """
        for name, value in (("images", images), ("batch", batch), ("accumulate", accumulate)):
            COUNT(name, value)
        return cls(epochs, math.ceil(math.ceil(images / batch) / accumulate), images)


def _number(value: object) -> float:
    """``value`` as a float, NaN if it is none. A text such as 1e-3, which a plain YAML reader leaves a text, is one."""
    try:
        return math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


@dataclass(frozen=True)
class Duration:
    """A length of time: ``value`` in the ``unit`` ep (epochs), it (steps), img (images) or dur (fraction of the run).

    >>> [Duration.parse(text).steps(TimeBase(epochs=150, steps_per_epoch=10)) for text in ("1.1ep", "7it", "0.02dur")]
    [11.0, 7.0, 30.0]
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, written: object, what: str = "duration") -> "Duration":
        """Read a number (epochs) or a text with a unit. Raises ScheduleError, whose message begins with ``what``."""
        value, unit = written, "ep"
        if isinstance(written, str) and (match := _DURATION.fullmatch(written)):
            value, unit = match.groups()
        number = _number(value)
        if not 0 <= number < 1e15:
            raise ScheduleError(
                f"{what}: {shorten(written)} is not a duration; expected a number of epochs or a text such as 3ep, "
                "4000it, 256000img or 0.02dur, not negative"
            )
        return cls(number, unit)

    def epochs(self, time: TimeBase) -> float:
        """The duration in epochs of ``time``, not rounded."""
        if self.unit == "dur":
            return self.value * time.epochs
        if self.unit == "img" and time.images is None:
            raise ScheduleError(f"{self}: images need a time base that knows the data set; write it in ep, it or dur")
        return self.value / {"ep": 1, "it": time.steps_per_epoch, "img": time.images or 1}[self.unit]

    def steps(self, time: TimeBase) -> float:
        """The duration in optimizer steps of ``time``. A value within 1e-6 of a whole number is rounded to it, because
        1.1 epochs of 10 steps are 11 steps and not 11.000000000000002."""
        steps = self.value if self.unit == "it" else self.epochs(time) * time.steps_per_epoch
        return float(round(steps)) if abs(steps - round(steps)) < 1e-6 else steps

    def __str__(self) -> str:
        return f"{int(self.value) if self.value == int(self.value) else self.value}{self.unit}"


Check = Callable[[str, object], object]
"""check(what, value) returns the value in canonical JSON form, so that equal parameters compare equal. It raises
ScheduleError, whose message begins with ``what`` and says what is allowed."""

REQUIRED = object()  # The default of a parameter that must be given.
NO_EFFECT = object()  # A check returns it for a parameter without effect, which is then left out of the schedule.


@dataclass(frozen=True)
class Key:
    """A parameter of a family: its check, and its default in canonical form, or REQUIRED."""

    check: Check
    default: object = REQUIRED

    @property
    def required(self) -> bool:
        """Whether the parameter must be given."""
        return self.default is REQUIRED


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Check:
    """A check for a number from ``low`` to ``high``; ``above`` excludes ``low`` and ``below`` excludes ``high``."""
    expected = f"a number {'>' if above else '>='} {low:g} and {'<' if below else '<='} {high:g}"

    def check(what: str, value: object) -> float:
        given = _number(value)
        if not ((low < given if above else low <= given) and (given < high if below else given <= high)):
            raise ScheduleError(f"{what}: {shorten(value)} is not allowed; expected {expected}")
        return given + 0.0  # -0.0 becomes 0.0.

    return check


def whole(low: int, high: int) -> Check:
    """A check for a whole number from ``low`` to ``high``."""

    def check(what: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ScheduleError(
                f"{what}: {shorten(value)} is not allowed; expected a whole number from {low} to {high}"
            )
        return value

    return check


COUNT = whole(1, MAX_STEPS)


def choice(*options: str) -> Check:
    """A check for one of ``options``."""

    def check(what: str, value: object) -> str:
        if value not in options:
            hint = did_you_mean(value, options)
            raise ScheduleError(f"{what}: {shorten(value)} is not known; expected {' or '.join(options)}{hint}")
        return str(value)

    return check


def flag(what: str, value: object) -> bool:
    """The check for true or false."""
    if not isinstance(value, bool):
        raise ScheduleError(f"{what}: {shorten(value)} is not allowed; expected true or false")
    return value


def duration(what: str, value: object) -> str:
    """The check for a duration; returns it as text with its unit, ``3ep``."""
    return str(Duration.parse(value, what))


def positive_duration(what: str, value: object) -> str:
    """The check for a duration above 0; returns it as text with its unit."""
    text = duration(what, value)
    if Duration.parse(text).value == 0:
        raise ScheduleError(f"{what}: {shorten(value)} is not allowed; expected a duration above 0")
    return text


def position(what: str, value: object) -> float | int | str:
    """The check for a position in the run, which is a duration from its start; epochs become a plain number."""
    parsed = Duration.parse(value, what)
    if parsed.unit != "ep":
        return str(parsed)
    return int(parsed.value) if parsed.value == int(parsed.value) else parsed.value


def horizon(what: str, value: object) -> float | int | str:
    """The check for the length of a cycle's decay: a duration above 0, or ``end``, which is the end of the run."""
    return "end" if value == "end" else position(what, positive_duration(what, value))


def list_of(check: Check, *, or_single: bool = False) -> Check:
    """A check for a list whose entries pass ``check``; with ``or_single`` a single value that passes is allowed too."""

    def check_list(what: str, value: object) -> object:
        if not isinstance(value, list | tuple):
            if or_single:
                return check(what, value)
            raise ScheduleError(f"{what}: {shorten(value)} is not a list; expected for example [31, 81]")
        if len(value) > MAX_LIST:
            raise ScheduleError(f"{what}: {len(value)} entries are too many; expected at most {MAX_LIST}")
        return [check(f"{what}[{i}]", entry) for i, entry in enumerate(value)]

    return check_list


def optional(check: Check) -> Check:
    """A check for ``null`` or a value that passes ``check``."""
    return lambda what, value: None if value is None else check(what, value)


def without_effect(what: str, value: object) -> object:
    """The check for a finite number that has no effect: floor and power beside a decay that is an expression, because
    CAWB's published code ignores them there, too."""
    if not math.isfinite(_number(value)):
        raise ScheduleError(f"{what}: {shorten(value)} is not allowed; expected a finite number")
    return NO_EFFECT
