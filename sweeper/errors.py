"""The exceptions. Each message is one line that names the thing, the value, what was expected and the next move."""

import difflib
import re
from collections.abc import Iterable


def without_password(address: str) -> str:
    """An address as it may be shown in a message, also one that is mistyped: without user, password and query.

    >>> without_password("postgresql:/me:secret@head/optuna"), without_password("http//me:p@ss@head?password=secret")
    ('postgresql:/***@head/optuna', 'http//***@head')
    """
    return re.sub(r"^([A-Za-z][\w+.-]*(?::/*|/+))?.*@", r"\1***@", address.partition("?")[0], flags=re.DOTALL)


def shorten(value: object, most: int = 80) -> str:
    """``repr(value)`` for a message, cut to ``most`` characters; never raises.

    >>> shorten([1, 2]), shorten("a" * 20, most=10), shorten(10**5000)
    ('[1, 2]', "'aaaaaa...", 'a huge number')
    """
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        text = "a huge number"
    except RecursionError:
        text = "a deeply nested value"
    return text if len(text) <= most else text[: most - 3] + "..."


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The nearest of ``known``, as a question to stand behind ``word``; empty where none is near.

    >>> did_you_mean("warm_up", ["warmup", "steps"]), did_you_mean("zzz", ["warmup"])
    (" (did you mean 'warmup'?)", '')
    """
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


class SweeperError(Exception):
    """Everything that this package raises on purpose; the command line prints it in one line and exits 1."""


class ConfigError(SweeperError):
    """A sweep file, an override or an argument says something that cannot be."""


class ScheduleError(ConfigError):
    """A schedule's parameter or value is outside what the family allows."""


class DataError(SweeperError):
    """A data set is missing, empty or contradicts itself."""


class DeviceError(SweeperError):
    """A device is not there, or does not have the room."""


class DatabaseError(SweeperError):
    """The study's database does not answer, or holds something else than expected."""


class TrackingError(SweeperError):
    """The MLflow server does not answer or refuses."""


class TrackingRefused(TrackingError):
    """The MLflow server does not let us in: waiting would not help."""


class StoreError(SweeperError):
    """The snapshot store cannot be read or written."""


class SnapshotCorrupt(StoreError):
    """A stored snapshot is truncated or altered; it was dropped from the index and is trained again."""


class LeaseLost(SweeperError):
    """Somebody else owns this trial or segment now: stop politely, write nothing."""


class TrainingError(SweeperError):
    """A training that cannot be compared with others. ``reason`` is a short stable word for tables and tags."""

    reason = "failed"


class OutOfMemory(TrainingError):
    """The device ran out of memory; the batch is never halved behind the user's back."""

    reason = "out of memory"


class NotFinite(TrainingError):
    """A loss or a weight is NaN or infinite; no older checkpoint is silently reloaded."""

    reason = "not finite"


class LRMismatch(TrainingError):
    """The learning rate that the optimizer used is not the one proposed; the message names the first step."""

    reason = "learning rate not as proposed"
