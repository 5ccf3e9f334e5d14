"""What changes while one looks: a sweep in progress, on a terminal and in a log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeper.cli.show import console, counts, plain_table
from sweeper.schedules import short

if TYPE_CHECKING:
    from sweeper.service.status import AtWork, Row, Status

LINE_EVERY_S, LOOK_EVERY_S = 15.0, 2.0  # in a log, on a terminal
BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], top: float, width: int = 16) -> str:
    """The values from 0 to ``top`` as bars; of more than ``width``, the last of each equal share.

    >>> sparkline([0.0, 0.1, 0.2, 0.4], 0.4), sparkline([1, 2, 3, 4], 4, width=2), sparkline([0.0], 0.0)
    ('▁▃▅█', '▅█', '▁')
    """
    count = min(len(values), width)
    chosen = [values[(index + 1) * len(values) // count - 1] for index in range(count)]
    return "".join(BARS[min(int(value / top * len(BARS)), len(BARS) - 1) if top > 0 else 0] for value in chosen)


class Pace:
    """How long it will take, from how it went since the first look; before that, from the median epoch."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left_s(self, found: Status) -> float | None:
        """Seconds to the end of all trials; None while nobody can say."""
        now, (done, total) = time.monotonic(), found.settled
        begun, at_first = self._first = self._first or (now, done)
        if done >= total:
            return None
        if done > at_first:
            return (total - done) * (now - begun) / (done - at_first)
        busy = sum(worker.trial is not None for worker in heard_of(found))
        return (total - done) * found.seconds_per_epoch / busy if found.seconds_per_epoch and busy else None


def heard_of(found: Status) -> list[AtWork]:
    """The workers that are alive."""
    return [worker for worker in found.workers if worker.alive]


def headline(found: Status, left_s: float | None) -> str:
    """Counts, epochs and time left in a line."""
    done, total = found.settled
    left = f", about {_duration(left_s)} left" if left_s is not None else ""
    return f"{counts(found)}; epoch {done} of {total}{left}"


def watch(status: Callable[[], Status], *, as_json: bool = False, every_s: float | None = None) -> Status | None:
    """Show the sweep until it is done or Ctrl-C: live on a terminal, else plain lines; as JSON one object a line.

    Returns the last status of a sweep that is done, None after Ctrl-C.
    """
    pace, terminal = Pace(), sys.stdout.isatty() and not as_json
    pause = every_s or (LOOK_EVERY_S if terminal else LINE_EVERY_S)
    live = Live(console=console, auto_refresh=False, screen=False) if terminal else None
    try:
        with live or _nothing():
            while True:
                found = status()
                if as_json:
                    print(json.dumps(found.to_dict()), flush=True)
                elif live:
                    live.update(screen(found, pace.left_s(found), console.height), refresh=True)
                else:
                    print("\n".join(lines(found, pace.left_s(found))), flush=True)
                if found.done:
                    return found
                time.sleep(pause)
    except KeyboardInterrupt:
        return None


def lines(found: Status, left_s: float | None) -> list[str]:
    """For a log: the headline, a line for each trial in training, the last errors."""
    trials = {row.trial: row for row in found.trials}
    said = [time.strftime("%H:%M:%S ") + headline(found, left_s)]
    for worker in heard_of(found):
        row = trials.get(-1 if worker.trial is None else worker.trial)
        if row is not None and row.state == "running":
            value = f"{row.score:.4f} {_curve(row, found)}" if row.score is not None else "-"
            said.append(
                f"  trial {row.trial} on {worker.device}: epoch {row.epochs_done} of "
                f"{found.epochs.per_trial}, LR {short(row.lr)}, {found.objective} {value}"
            )
    return said + [f"  {error}" for error in errors(found)]


def errors(found: Status, most: int = 3) -> list[str]:
    """Why the last trials failed or were given back, and what is wrong with tracking."""
    reasons = [f"trial {row.trial}: {row.reasons[-1].splitlines()[0]}" for row in found.trials if row.reasons]
    failures = found.failures
    last = [failures.sentence, *failures.further] if failures.every else reasons[-most:]
    return last + ([f"tracking: {found.tracking_problem}"] if found.tracking_problem else [])


def screen(found: Status, left_s: float | None, height: int) -> Group:
    """For a terminal of so many lines: workers, the trials that fit (in training first, then the best), errors."""
    trials = {row.trial: row for row in found.trials}
    workers = plain_table(
        "worker", "device", "trial", "epoch", "LR", found.objective, "", "heard of", right=("LR", "epoch")
    )
    for worker in heard_of(found):
        row = trials.get(-1 if worker.trial is None else worker.trial)
        at = [str(row.trial), *_progress(row, found)] if row else ["-"] * 5
        workers.add_row(worker.worker, worker.device, *at, f"{worker.age_s:.0f} s ago")
    problems = [Text(error, style="red", no_wrap=True, overflow="ellipsis") for error in errors(found)]
    room = max(height - 13 - workers.row_count - len(problems), 5)
    order = {"running": 0, "complete": 1, "pruned": 2, "fail": 3, "waiting": 4}
    rows = sorted(trials.values(), key=lambda row: (order.get(row.state, 5), -(row.score or 0.0)))
    parts: list[Any] = [Text(headline(found, left_s), style="bold"), Text(found.phase), Text()]
    idle = "all trials are finished" if found.done else "no worker is alive: sweeper run or sweeper worker"
    parts += [workers] if workers.row_count else [Text(idle)]
    parts.append(_trials(rows[:room], found))
    if len(rows) > room:
        parts.append(Text(f"and {len(rows) - room} more"))
    return Group(*parts, *problems)


def _trials(rows: Sequence[Row], found: Status) -> Table:
    table = plain_table(
        "trial", "schedule", "state", "epoch", "LR", found.objective, "", right=("trial", "epoch", "LR")
    )
    for column in table.columns:  # where room is short, the schedule gives way, and each trial keeps to one line
        column.no_wrap = column.header != "schedule"
    for row in rows:
        schedule = Text(row.label, no_wrap=True, overflow="ellipsis")
        table.add_row(str(row.trial), schedule, "begun, waits" if row.waits else row.state, *_progress(row, found))
    return table


def _progress(row: Row, found: Status) -> list[str]:
    value = f"{row.score:.4f}" if row.score is not None else "-"
    done = f"{row.epochs_done}/{found.epochs.per_trial}"
    return [done, short(row.lr), value, _curve(row, found)]


def _curve(row: Row, found: Status) -> str:
    top = max((value for other in found.trials for value in other.curve), default=0.0)
    return sparkline(row.curve, top) if row.curve else ""


def _duration(seconds: float) -> str:
    """
    >>> _duration(40), _duration(600), _duration(7 * 3600)
    ('1 min', '10 min', '7.0 h')
    """
    return f"{max(round(seconds / 60), 1)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def progress(messages: Console) -> Iterator[Callable[[Callable[[], Status]], None]]:
    """Show in a line how a sweep comes along: live on a terminal, now and then elsewhere.

    ``messages``: the console, on stderr, on which others speak meanwhile. The live line is drawn on the same one,
    because only then what they say comes to stand above the line instead of in it.
    """
    pace, last = Pace(), -LINE_EVERY_S
    live = Live(console=messages, refresh_per_second=2, transient=True) if messages.is_terminal else None

    def update(status: Callable[[], Status]) -> None:
        nonlocal last
        if time.monotonic() - last < (LOOK_EVERY_S if live else LINE_EVERY_S):
            return
        last = time.monotonic()
        found = status()
        line = headline(found, pace.left_s(found))
        if live:
            live.update(Text(line))
        else:
            print(line, flush=True)

    with live or _nothing():
        yield update
