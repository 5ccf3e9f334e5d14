"""How far a sweep is: as a table, live on a terminal, as lines in a log; and the sweeps of a place."""

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
from sweeper.schedules import short

if TYPE_CHECKING:
    from sweeper.service import SweepSummary
    from sweeper.service.racing import Race, Spending
    from sweeper.service.status import Row, Status

LINE_EVERY_S, LOOK_EVERY_S = 15.0, 2.0  # in a log, on a terminal
RACERS = 5  # proposals whose standing `status` shows
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
        at = f"trial {worker.trial}, epoch {worker.epoch}" if worker.trial is not None else "no trial"
        say(f"worker {worker.worker} on {worker.device}: {at}, heard of {worker.age_s:.0f} s ago")
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
    """How a race stands: which trunk, by which rule, and who leads."""
    yield race.sentence
    yield f"race: {race.rule}" + (f"; {race.order}" if race.standings and len(race.seeds) > 1 else "")
    for standing in race.standings[:RACERS]:
        seeds = f"{standing.n} search seed{'s' * (standing.n > 1)}"
        yield f"  {standing.name}: {standing.difference} over {standing.over} on {seeds}"
    if (more := len(race.standings) - RACERS) > 0:
        yield f"  and {more} more; sweeper pick has all"
    yield race.noise


def _spending(spending: Spending) -> str:
    """What is spent and left of the budget, in a line."""
    shown, on_search = spending.shown, spending.spent_on_search
    kept = f"; {shown(spending.kept)} kept back for the confirmation" if spending.kept else ""
    promised = f"; {shown(spending.promised)} promised to open trials" if spending.promised else ""
    return (
        f"budget: {shown(spending.spent)} of {shown(spending.budget.amount)} {spending.unit} spent, {shown(on_search)} "
        f"on baselines and search, {shown(spending.spent - on_search)} on the confirmation{promised}{kept}; "
        f"{shown(spending.left)} left"
    )


def counts(status: Status) -> str:
    """Trials by state and epochs, in a line."""
    by_state = Counter("begun and waiting" if row.waits else row.state for row in status.trials)
    order = ("waiting", "running", "begun and waiting", "complete", "pruned", "fail")
    states = ", ".join(f"{by_state[state]} {state}" for state in order if by_state[state])
    saved = f", {status.epochs.reused} reused" if status.epochs.reused else ""
    return f"{status.sweep}: {states} of {status.budget} trials; {status.epochs.trained} epochs trained{saved}"


def print_sweeps(launched: Sequence[SweepSummary]) -> None:
    """What ``sweeper list`` prints."""
    table = plain_table("sweep", "state", "trials", "best", "", "winner", "worker heard of", right=("trials", "best"))
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
    """
    >>> _time(4.6), _time(600), _time(7200), _time(3 * 86400)
    ('5 s', '10 min', '2 h', '3 days')
    """
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


# -- while it is worked on


class Pace:
    """How long it will take, from how it went since the first look; before that, from the median epoch."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left_s(self, status: Status) -> float | None:
        """Seconds to the end of all trials; None while nobody can say."""
        now, (done, total) = time.monotonic(), status.settled
        begun, at_first = self._first = self._first or (now, done)
        if done >= total:
            return None
        if done > at_first:
            return (total - done) * (now - begun) / (done - at_first)
        busy = sum(worker.trial is not None for worker in status.at_work)
        return (total - done) * status.seconds_per_epoch / busy if status.seconds_per_epoch and busy else None


def headline(status: Status, left_s: float | None) -> str:
    """Counts, epochs and time left in a line."""
    done, total = status.settled
    left = f", about {_time(left_s)} left" if left_s is not None else ""
    return f"{counts(status)}; epoch {done} of {total}{left}"


def watch(look: Callable[[], Status], *, as_json: bool = False, every_s: float | None = None) -> Status | None:
    """Show the sweep until it is done or Ctrl-C: live on a terminal, else plain lines; as JSON one object a line.

    Returns the last status of a sweep that is done, None after Ctrl-C.
    """
    pace, terminal = Pace(), sys.stdout.isatty() and not as_json
    pause = every_s or (LOOK_EVERY_S if terminal else LINE_EVERY_S)
    live = Live(console=console, auto_refresh=False, screen=False) if terminal else None
    try:
        with live or nullcontext():
            while True:
                status = look()
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
                    time.sleep(min(left, 0.2))  # one long wait would go on if a library's thread gets the Ctrl-C
    except KeyboardInterrupt:
        return None


def lines(status: Status, left_s: float | None) -> list[str]:
    """For a log: the headline, a line for each trial in training, the last errors."""
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


def errors(status: Status, most: int = 3) -> list[str]:
    """Why the last trials failed or were given back, and what is wrong with tracking."""
    reasons = [f"trial {row.trial}: {row.reasons[-1].splitlines()[0]}" for row in status.trials if row.reasons]
    failed = status.failures
    last = [failed.sentence, *failed.further] if failed.every else reasons[-most:]
    return last + ([f"tracking: {status.tracking_problem}"] if status.tracking_problem else [])


def screen(status: Status, left_s: float | None, height: int) -> Group:
    """For a terminal of so many lines: workers, the trials that fit (in training first, then the best), errors."""
    trials = {row.trial: row for row in status.trials}
    workers = plain_table(
        "worker", "device", "trial", "epoch", "LR", status.objective, "", "heard of", right=("LR", "epoch")
    )
    for worker in status.at_work:
        row = trials.get(-1 if worker.trial is None else worker.trial)
        at = [str(row.trial), *_progress(row, status)] if row else ["-"] * 5
        workers.add_row(worker.worker, worker.device, *at, f"{worker.age_s:.0f} s ago")
    problems = [Text(error, style="red", no_wrap=True, overflow="ellipsis") for error in errors(status)]
    room = max(height - 13 - workers.row_count - len(problems), 5)
    order = {"running": 0, "complete": 1, "pruned": 2, "fail": 3, "waiting": 4}
    rows = sorted(trials.values(), key=lambda row: (order.get(row.state, 5), -(row.score or 0.0)))
    phase = Text(status.phase, no_wrap=True, overflow="ellipsis")
    parts: list[Any] = [Text(headline(status, left_s), style="bold"), phase, Text()]
    idle = "all trials are finished" if status.done else "no worker is alive: sweeper run or sweeper worker"
    parts += [workers] if workers.row_count else [Text(idle)]
    parts.append(_trials(rows[:room], status))
    if len(rows) > room:
        parts.append(Text(f"and {len(rows) - room} more"))
    return Group(*parts, *problems)


def _trials(rows: Sequence[Row], status: Status) -> Table:
    table = plain_table(
        "trial", "schedule", "state", "epoch", "LR", status.objective, "", right=("trial", "epoch", "LR")
    )
    for column in table.columns:  # where room is short, the schedule gives way, and each trial keeps to one line
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
    """Epochs, learning rate, score, and the curve as bars."""
    top = max((value for other in status.trials for value in other.curve), default=0.0)
    return [f"{row.epochs_done}/{status.epochs.per_trial}", short(row.lr), _score(row), sparkline(row.curve, top)]


def sparkline(values: Sequence[float], top: float, width: int = 16) -> str:
    """The values from 0 to ``top`` as bars; of more than ``width``, the last of each equal share.

    >>> sparkline([0.0, 0.1, 0.2, 0.4], 0.4), sparkline([1, 2, 3, 4], 4, width=2), sparkline([0.0], 0.0)
    ('▁▃▅█', '▅█', '▁')
    """
    count = min(len(values), width)
    chosen = [values[(index + 1) * len(values) // count - 1] for index in range(count)]
    return "".join(BARS[min(int(value / top * len(BARS)), len(BARS) - 1) if top > 0 else 0] for value in chosen)


@contextmanager
def progress(messages: Console) -> Iterator[Callable[[Callable[[], Status]], None]]:
    """Show in a line how a sweep comes along: live on a terminal, now and then elsewhere.

    ``messages``: the console, on stderr, on which others speak meanwhile. The live line is drawn on the same one,
    because only then what they say comes to stand above the line instead of in it.
    """
    pace, last = Pace(), -LINE_EVERY_S
    live = Live(console=messages, refresh_per_second=2, transient=True) if messages.is_terminal else None

    def update(look: Callable[[], Status]) -> None:
        nonlocal last
        if time.monotonic() - last < (LOOK_EVERY_S if live else LINE_EVERY_S):
            return
        last = time.monotonic()
        status = look()
        line = headline(status, pace.left_s(status))
        if live:
            live.update(Text(line))
        else:
            print(line, flush=True)

    with live or nullcontext():
        yield update
