"""The exceptions of the package. Each message is one line: what is wrong, its value, what was expected, what to do."""

import difflib
import re
from collections.abc import Iterable


def without_password(address: str) -> str:
    """``address`` without user, password and query, for a message. A mistyped address is cleaned, too.

    >>> without_password("postgresql:/me:secret@head/optuna"), without_password("http//me:p@ss@head?password=secret")
    ('postgresql:/***@head/optuna', 'http//***@head')
    """
    return re.sub(r"^([A-Za-z][\w+.-]*(?::/*|/+))?.*@", r"\1***@", address.partition("?")[0], flags=re.DOTALL)


def shorten(value: object, limit: int = 80) -> str:
    """``repr(value)`` for a message, cut to ``limit`` characters. Never raises an exception.

    >>> shorten([1, 2]), shorten("a" * 20, limit=10), shorten(10**5000)
    ('[1, 2]', "'aaaaaa...", 'a huge number')
    """
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print an int of more than 4,300 digits
        text = "a huge number"
    except RecursionError:
        text = "a deeply nested value"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A question that suggests the element of ``known`` most similar to ``name``; '' if none is similar.

    >>> did_you_mean("warm_up", ["warmup", "steps"]), did_you_mean("zzz", ["warmup"])
    (" (did you mean 'warmup'?)", '')
    """
    similar = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {similar[0]!r}?)" if similar else ""


class SweeperError(Exception):
    """The base of all exceptions of this package. The command line prints the message in one line and exits with 1."""


class ConfigError(SweeperError):
    """A sweep file, an override or an argument is not valid."""


class ScheduleError(ConfigError):
    """The family of a schedule does not allow one of its parameters or values."""


class DataError(SweeperError):
    """A data set is missing, empty or inconsistent."""


class DeviceError(SweeperError):
    """A device does not exist here, or is too small for the workers."""


class DatabaseError(SweeperError):
    """The study's database cannot be reached, or its content is not what was expected."""


class TrackingError(SweeperError):
    """The MLflow server does not answer, or it refuses a request."""


class TrackingRefused(TrackingError):
    """The MLflow server rejects the credentials, so that a retry would fail, too."""


class StoreError(SweeperError):
    """The store of training states cannot be read or written."""


class SnapshotCorrupt(StoreError):
    """A stored state is truncated or altered. The store has dropped it, so a worker trains its epoch again."""


class LeaseLost(SweeperError):
    """Another worker holds the lease of this trial or segment now. Whoever catches this stops and writes nothing."""


class TrainingError(SweeperError):
    """A training failed, or cannot be compared with others. ``reason`` is a short, stable text for tables and tags."""

    reason = "failed"


class OutOfMemory(TrainingError):
    """The device ran out of memory. The batch is not halved, as that would be the training of another recipe."""

    reason = "out of memory"


class NotFinite(TrainingError):
    """A loss or a weight is NaN or infinite. No older checkpoint is loaded instead: the trial has failed."""

    reason = "not finite"


class LRMismatch(TrainingError):
    """The optimizer used another learning rate than the trial's LR trace. The message names the first such step."""

    reason = "learning rate not as proposed"
