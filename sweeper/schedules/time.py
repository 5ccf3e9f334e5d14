"""Time: the optimizer step, from 0. Durations as people write them, and the time base that turns them into steps."""

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeper.errors import ScheduleError, shorten

FloatArray = NDArray[np.float64]
MAX_STEPS = 50_000_000
_WRITTEN = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(ep|it|img|dur)\s*")
_KNOWN = "a number of epochs or a text such as 3ep, 4000it, 256000img or 0.02dur"


@dataclass(frozen=True)
class TimeBase:
    """How long a run is: ``epochs`` of ``steps_per_epoch`` optimizer steps.

    ``images`` (per epoch) is needed only by durations written in images. Raises ScheduleError unless both
    numbers are whole and at least 1.

    >>> TimeBase(150, 4).steps
    600
    """

    epochs: int
    steps_per_epoch: int
    images: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("steps_per_epoch", self.steps_per_epoch)):
            _whole(name, value)
        if self.images is not None:
            _whole("images", self.images)
        if self.steps > MAX_STEPS:
            raise ScheduleError(
                f"epochs: {self.epochs} x {self.steps_per_epoch} steps are too many; expected at most {MAX_STEPS} steps"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @classmethod
    def from_images(
        cls,
        images: int,
        batch: int,
        accumulate: int = 1,
        *,
        epochs: int,
    ) -> "TimeBase":
        """The time base of a data set: images / batch batches, rounded up, and batches / accumulate steps, rounded up,
        because an accumulation window ends with its epoch.

        >>> TimeBase.from_images(118_287, 64, epochs=3).steps_per_epoch
        1849
        """
        for name, value in (("images", images), ("batch", batch), ("accumulate", accumulate)):
            _whole(name, value)
        return cls(epochs, math.ceil(math.ceil(images / batch) / accumulate), images)


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_STEPS:
        noun = "a length of a run" if name in ("epochs", "steps_per_epoch") else "a size"
        raise ScheduleError(f"{name}: {shorten(value)} is not {noun}; expected a whole number from 1 to {MAX_STEPS}")


@dataclass(frozen=True)
class Duration:
    """A length of time as written: ``value`` in ``unit``, one of ep (epochs), it (optimizer steps), img (images
    seen), dur (fraction of the run).

    Nothing is rounded except that a result within 1e-6 of a whole step is that step, so ``1.1ep`` of 10 steps
    is 11 steps and not 11.000000000000002.

    >>> time = TimeBase(epochs=150, steps_per_epoch=10)
    >>> [Duration.parse(text).steps(time) for text in (0, "1.1ep", "7it", "0.02dur")]
    [0.0, 11.0, 7.0, 30.0]
    >>> Duration.parse("3ep").epochs(time), str(Duration.parse(3.0))
    (3.0, '3ep')
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, written: object, what: str = "duration") -> "Duration":
        """Read a number (epochs) or a text with a unit; raises ScheduleError naming ``what``."""
        value, unit = written, "ep"
        if isinstance(written, str):
            match = _WRITTEN.fullmatch(written)
            value, unit = (match.group(1), match.group(2)) if match else (written, "ep")
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not 0 <= number < 1e15:
            raise ScheduleError(f"{what}: {shorten(written)} is not a duration; expected {_KNOWN}, not negative")
        return cls(number, unit)

    def epochs(self, time: TimeBase) -> float:
        """This duration in epochs of ``time``, not rounded."""
        if self.unit == "ep":
            return self.value
        if self.unit == "it":
            return self.value / time.steps_per_epoch
        if self.unit == "dur":
            return self.value * time.epochs
        if time.images is None:
            raise ScheduleError(f"{self}: images need a time base that knows the data set; write it in ep, it or dur")
        return self.value / time.images

    def steps(self, time: TimeBase) -> float:
        """This duration in optimizer steps of ``time``; whole if within 1e-6 of a whole number."""
        steps = self.value if self.unit == "it" else self.epochs(time) * time.steps_per_epoch
        return float(round(steps)) if abs(steps - round(steps)) < 1e-6 else steps

    def __str__(self) -> str:
        return f"{int(self.value) if self.value == int(self.value) else self.value}{self.unit}"


def epochs_from_iterations(iterations: float, images: int, batch: int) -> float:
    """iterations * batch / images: how often ``iterations`` batches of ``batch`` go over ``images`` images.

    A fraction, because a count of images is compared, not of batches (the last, smaller batch is not rounded up).

    >>> round(epochs_from_iterations(4000, 118_287, 64), 4)
    2.1642
    """
    _whole("images", images)
    _whole("batch", batch)
    return Duration.parse(iterations, "iterations").value * batch / images


def iterations_from_epochs(epochs: float, images: int, batch: int) -> float:
    """epochs * images / batch, the inverse of :func:`epochs_from_iterations`. Not rounded.

    >>> round(iterations_from_epochs(2.16, 22_720, 64), 1)
    766.8
    """
    _whole("images", images)
    _whole("batch", batch)
    return Duration.parse(epochs, "epochs").value * images / batch
