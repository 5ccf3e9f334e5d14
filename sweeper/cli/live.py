"""Prints the status of a sweep: once, live on a terminal, or as lines of a log; and the list of sweeps."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeper.cli.show import capital, console, exactness, failures, legend_of, plain_table, say
from sweeper.schedules import format_value

if TYPE_CHECKING:
    from sweeper.service import SweepSummary
    from sweeper.service.racing import Race, Spending
    from sweeper.service.status import Row, Status

LOG_EVERY_S, UPDATE_EVERY_S = 15.0, 2.0  # the interval of lines in a log, and of updates on a terminal
LEADERS = 5  # `status` shows so many proposals of a race
MAX_ERRORS = 3  # `status --watch` shows the errors of so many trials
BARS = "▁▂▃▄▅▆▇█"


def print_status(status: Status) -> None:
    """What ``sweeper status`` prints."""
    say(counts(status))
    say(capital(status.phase))
    failures(status.failures)
    objective = status.objective
    table = plain_table(
        "trial", "stage", "schedule", "seed", "state", "epochs", objective, right=("trial", "seed", "epochs", objective)
    )
    for row in status.trials:
        state = _state(row) + (f" ({row.reasons[-1].splitlines()[0][:60]})" if row.reasons else "")
        done, score = f"{row.epochs_done}/{status.epochs.per_trial}", _score(row)
        table.add_row(str(row.trial), row.stage, row.label, str(row.seed), state, done, score)
    console.print(table)
    for line in legend_of(row.label for row in status.trials):
        say(line)
    if status.waits:
        say("begun, waits: no worker has it now; another trial trains an epoch that it can use, or its worker is gone")
    for worker in status.at_work:
        task = f"trial {worker.trial}, epoch {worker.epoch}" if worker.trial is not None else "no trial"
        say(f"worker {worker.worker} on {worker.device}: {task}, reported {worker.age_s:.0f} s ago")
    for line in _race(status.race) if status.race is not None else ():
        say(line)
    if status.spending is not None:
        say(_spending(status.spending))
    proposals, store, epochs = status.proposals, status.store, status.epochs
    if proposals.told:
        say(
            f"proposals: {proposals.told} finished, {proposals.distinct} distinct schedules; the sampler was asked "
            f"{proposals.asked} times"
        )
    free = f", {store.free / 1e9:.0f} GB free" if store.free is not None else ""
    say(
        f"store: {store.count} states, {store.bytes / 1e9:.2f} GB of {store.budget / 1e9:.3g}{free}; "
        f"read {store.reads} times"
    )
    if total := epochs.trained + epochs.reused:
        say(
            f"reuse: {epochs.reused} of {total} epochs were there already ({epochs.reused / total:.0%}), "
            f"{status.hours_saved:.2g} hours saved"
        )
    exactness(status.mismatches)
    if status.tracking_problem:
        say(f"tracking: {status.tracking_problem}")


def _race(race: Race) -> Iterator[str]:
    """Lines on the race: the trunk, the rule, and the leading proposals."""
    yield race.sentence
    yield f"race: {race.rule}" + (f"; {race.order}" if race.standings and len(race.seeds) > 1 else "")
    for standing in race.standings[:LEADERS]:
        seeds = f"{standing.n} search seed{'s' * (standing.n > 1)}"
        yield f"  {standing.name}: {standing.difference} over {standing.over} on {seeds}"
    if (more := len(race.standings) - LEADERS) > 0:
        yield f"  and {more} more; sweeper pick shows all"
    yield race.noise


def _spending(spending: Spending) -> str:
    """A line on the budget: what is spent and what is left."""
    shown, on_search = spending.shown, spending.spent_on_search
    kept = f"; {shown(spending.kept)} kept back for the confirmation" if spending.kept else ""
    promised = f"; {shown(spending.promised)} promised to open trials" if spending.promised else ""
    return (
        f"budget: {shown(spending.spent)} of {shown(spending.budget.amount)} {spending.unit} spent, {shown(on_search)} "
        f"on baselines and search, {shown(spending.spent - on_search)} on the confirmation{promised}{kept}; "
        f"{shown(spending.left)} left"
    )


def counts(status: Status) -> str:
    """A line with the number of trials in each state and the epochs."""
    by_state = Counter("begun and waiting" if row.waits else row.state for row in status.trials)
    order = ("waiting", "running", "begun and waiting", "complete", "pruned", "fail")
    states = ", ".join(f"{by_state[state]} {state}" for state in order if by_state[state])
    saved = f", {status.epochs.reused} reused" if status.epochs.reused else ""
    return f"{status.sweep}: {states} of {status.budget} trials; {status.epochs.trained} epochs trained{saved}"


def print_sweeps(launched: Sequence[SweepSummary]) -> None:
    """What ``sweeper list`` prints."""
    table = plain_table("sweep", "state", "trials", "best", "", "winner", "last report", right=("trials", "best"))
    for sweep in launched:
        ended = sum(sweep.counts.get(state, 0) for state in ("complete", "pruned", "fail"))
        best = f"{sweep.best:.4f}" if sweep.best is not None else "-"
        heard = f"{_time(sweep.heard_s)} ago" if sweep.heard_s is not None else "-"
        trials = f"{ended} of {sweep.counts['total']}"
        table.add_row(sweep.name, sweep.state, trials, best, sweep.objective, sweep.winner or "-", heard)
    console.print(table)
    for sweep in launched:
        if sweep.problem:
            say(f"{sweep.name}: {sweep.problem}")


def _time(seconds: float) -> str:
    """A duration in the largest unit of which there are at least two.

    >>> _time(4.6), _time(600), _time(7200), _time(3 * 86400)
    ('5 s', '10 min', '2 h', '3 days')
    """
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


# -- while workers train


class Pace:
    """Estimates the time left from the epochs settled since the first call, before that from the median epoch."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None  # time and settled epochs of the first call

    def left_s(self, status: Status) -> float | None:
        """Seconds until all trials have ended; None if there is nothing to estimate it from."""
        now, (settled, total) = time.monotonic(), status.settled
        first_time, first_settled = self._first = self._first or (now, settled)
        if settled >= total:
            return None
        if settled > first_settled:
            return (total - settled) * (now - first_time) / (settled - first_settled)
        busy = sum(worker.trial is not None for worker in status.at_work)
        return (total - settled) * status.seconds_per_epoch / busy if status.seconds_per_epoch and busy else None


def headline(status: Status, left_s: float | None) -> str:
    """A line with trials by state, epochs, and the seconds left (None: unknown)."""
    settled, total = status.settled
    left = f", about {_time(left_s)} left" if left_s is not None else ""
    return f"{counts(status)}; epoch {settled} of {total}{left}"


def watch(read_status: Callable[[], Status], *, as_json: bool = False, every_s: float | None = None) -> Status | None:
    """Show the status until the sweep is done or Ctrl-C: live on a terminal, else as lines; as JSON an object a line.

    Returns the last status of a sweep that is done, None after Ctrl-C.
    """
    pace, terminal = Pace(), sys.stdout.isatty() and not as_json
    pause = every_s or (UPDATE_EVERY_S if terminal else LOG_EVERY_S)
    live = Live(console=console, auto_refresh=False, screen=False) if terminal else None
    try:
        with live or nullcontext():
            while True:
                status = read_status()
                if as_json:
                    print(json.dumps(status.to_dict()), flush=True)
                elif live:
                    live.update(screen(status, pace.left_s(status), console.height), refresh=True)
                else:
                    print("\n".join(lines(status, pace.left_s(status))), flush=True)
                if status.done:
                    return status
                until = time.monotonic() + pause
                while (left := until - time.monotonic()) > 0:
                    time.sleep(min(left, 0.2))  # Ctrl-C may reach another thread, which would not end a long sleep.
    except KeyboardInterrupt:
        return None


def lines(status: Status, left_s: float | None) -> list[str]:
    """The lines of a log: the headline, a line for each running trial, the last errors."""
    trials = {row.trial: row for row in status.trials}
    texts = [time.strftime("%H:%M:%S ") + headline(status, left_s)]
    for worker in status.at_work:
        row = trials.get(-1 if worker.trial is None else worker.trial)
        if row is not None and row.state == "running":
            _, rate, score, curve = _progress(row, status)
            texts.append(
                f"  trial {row.trial} on {worker.device}: epoch {row.epochs_done} of "
                f"{status.epochs.per_trial}, LR {rate}, {status.objective} {score} {curve}".rstrip()
            )
    return texts + [f"  {error}" for error in errors(status)]


def errors(status: Status) -> list[str]:
    """Why the last attempts of at most ``MAX_ERRORS`` trials ended, and what is wrong with MLflow."""
    reasons = [f"trial {row.trial}: {row.reasons[-1].splitlines()[0]}" for row in status.trials if row.reasons]
    failed = status.failures
    shown = [failed.sentence, *failed.further] if failed.every else reasons[-MAX_ERRORS:]
    return shown + ([f"tracking: {status.tracking_problem}"] if status.tracking_problem else [])


def screen(status: Status, left_s: float | None, height: int) -> Group:
    """The view for a terminal of ``height`` lines: workers, errors, and the trials that fit, running ones first, then
    the best."""
    trials = {row.trial: row for row in status.trials}
    workers = plain_table(
        "worker", "device", "trial", "epoch", "LR", status.objective, "", "reported", right=("LR", "epoch")
    )
    for worker in status.at_work:
        row = trials.get(-1 if worker.trial is None else worker.trial)
        cells = [str(row.trial), *_progress(row, status)] if row else ["-"] * 5
        workers.add_row(worker.worker, worker.device, *cells, f"{worker.age_s:.0f} s ago")
    problems = [Text(error, style="red", no_wrap=True, overflow="ellipsis") for error in errors(status)]
    room = max(height - 13 - workers.row_count - len(problems), 5)
    order = {"running": 0, "complete": 1, "pruned": 2, "fail": 3, "waiting": 4}
    rows = sorted(trials.values(), key=lambda row: (order.get(row.state, 5), -(row.score or 0.0)))
    phase = Text(status.phase, no_wrap=True, overflow="ellipsis")
    parts: list[Any] = [Text(headline(status, left_s), style="bold"), phase, Text()]
    no_workers = "all trials are finished" if status.done else "no worker is alive: sweeper run or sweeper worker"
    parts += [workers] if workers.row_count else [Text(no_workers)]
    parts.append(_trials(rows[:room], status))
    if len(rows) > room:
        parts.append(Text(f"and {len(rows) - room} more"))
    return Group(*parts, *problems)


def _trials(rows: Sequence[Row], status: Status) -> Table:
    table = plain_table(
        "trial", "schedule", "state", "epoch", "LR", status.objective, "", right=("trial", "epoch", "LR")
    )
    for column in table.columns:  # On a narrow terminal only the schedule is cut, so that a trial stays on one line.
        column.no_wrap = column.header != "schedule"
    for row in rows:
        schedule = Text(row.label, no_wrap=True, overflow="ellipsis")
        table.add_row(str(row.trial), schedule, _state(row), *_progress(row, status))
    return table


def _state(row: Row) -> str:
    return "begun, waits" if row.waits else row.state


def _score(row: Row) -> str:
    return f"{row.score:.4f}" if row.score is not None else "-"


def _progress(row: Row, status: Status) -> list[str]:
    """The cells of a trial: epochs, learning rate, score, and the curve as bars."""
    top = max((value for other in status.trials for value in other.curve), default=0.0)
    return [
        f"{row.epochs_done}/{status.epochs.per_trial}",
        format_value(row.lr),
        _score(row),
        sparkline(row.curve, top),
    ]


def sparkline(values: Sequence[float], top: float, width: int = 16) -> str:
    """The values as bars, where ``top`` is a full bar. More than ``width`` values are reduced to ``width`` of them.

    >>> sparkline([0.0, 0.1, 0.2, 0.4], 0.4), sparkline([1, 2, 3, 4], 4, width=2), sparkline([0.0], 0.0)
    ('▁▃▅█', '▅█', '▁')
    """
    count = min(len(values), width)
    chosen = [values[(index + 1) * len(values) // count - 1] for index in range(count)]
    return "".join(BARS[min(int(value / top * len(BARS)), len(BARS) - 1) if top > 0 else 0] for value in chosen)


@contextmanager
def progress(messages: Console) -> Iterator[Callable[[Callable[[], Status]], None]]:
    """Show the progress of a sweep: as a live line on a terminal, else as a line now and then.

    Yields a function that updates it from a function that reads the status. ``messages`` is the console, on stderr, for
    other messages; the live line is drawn on it, too, because only then the messages appear above the line.
    """
    pace, last = Pace(), -LOG_EVERY_S
    live = Live(console=messages, refresh_per_second=2, transient=True) if messages.is_terminal else None

    def update(read_status: Callable[[], Status]) -> None:
        nonlocal last
        if time.monotonic() - last < (UPDATE_EVERY_S if live else LOG_EVERY_S):
            return
        last = time.monotonic()
        status = read_status()
        line = headline(status, pace.left_s(status))
        if live:
            live.update(Text(line))
        else:
            print(line, flush=True)

    with live or nullcontext():
        yield update
