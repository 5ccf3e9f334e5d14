"""What the terminal shows: tables where a person looks, plain lines where a log is written."""

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeper.schedules import legend, short
from sweeper.search.prune import LAST

if TYPE_CHECKING:
    from sweeper.evidence import Examined
    from sweeper.service import SweepSummary
    from sweeper.service.plan import Evidence, Plan
    from sweeper.service.racing import Race, Spending
    from sweeper.service.status import Status
    from sweeper.stats import Answer, Excluded, Failures, Ranked
    from sweeper.store import Mismatch

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
say = functools.partial(console.print, soft_wrap=True)  # of a sentence, which the terminal breaks where it ends
ROWS_OF_KIND = 30  # schedules of a kind that `plan` shows; --json has all
RACERS = 5  # proposals whose standing `status` shows
JUMPS_OF = 5  # trials whose jumps `pick` describes; --json has all
NOT_EXAMINED = "not examined (sweeper confirm --escape)"


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table with these columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def plan(found: "Plan") -> None:
    """What ``sweeper plan`` prints."""
    shown = found.schedules
    right = ("restarts", "drops", "peak", "final")
    table = plain_table("", "schedule", *right, right=right)
    for kind in dict.fromkeys(item.kind for item in shown):
        mine = [item for item in shown if item.kind == kind]
        for item in mine[:ROWS_OF_KIND]:
            table.add_row(item.name, item.label, *(short(item.facts[key]) for key in right))
        if (more := len(mine) - ROWS_OF_KIND) > 0:
            table.add_row("...", f"{more} more (--json has all)")
    console.print(table)
    sampled, trials = found.sampled, found.trials
    by_budget = found.cost.budget is not None and found.cost.proposals == trials
    drawn = f"{found.drawn} proposals" + (" as a sample" if trials is None else "")
    if sampled is not None:
        drawn = f"{sampled} of {trials} proposals as a sample"
    elif trials is not None and found.drawn < trials:
        what = f"the {trials} that the budget buys" if by_budget else f"{trials} trials"
        drawn = f"{found.drawn} proposals for {what}: the space has no more, the others cost no epoch"
    on_one = " on one seed" if found.race is not None else ""
    most, least = ("", "") if sampled is None else ("at most about ", "at least about ")
    (train, val), confirm = found.images, found.confirm
    lines = [
        *_legend([item.label for item in shown], "labels     "),
        f"data       {train} training and {val} validation images, "
        f"{found.steps_per_epoch} steps an epoch, {found.epochs} epochs",
        f"drawn      {drawn}, {found.distinct} distinct schedules (at random; the sweep's sampler learns); "
        "corners are the ends of the space",
        f"epochs     {found.epochs_asked} asked for{on_one}, {most}{found.epochs_to_train} to train: "
        f"{least}{found.share_saved:.0%} shared",
        *_beside_baselines(found),
        *_race_planned(found),
        *_budget_planned(found),
        _time(found),
        *_disk(found),
        *_evidence_planned(confirm),
        *([f"           fewer than {confirm.least} seeds name no winner"] if confirm.seeds < confirm.least else []),
        *(f"data       {problem}" for problem in found.problems),
    ]
    for line in lines:
        say(line)


def _race_planned(found: "Plan") -> Iterator[str]:
    """What the race is."""
    if (race := found.race) is not None:
        yield f"trunk      {race.trunk}"
        yield f"race       {race.rule}"
        yield race.noise.replace("noise: ", "noise      ", 1)


def _budget_planned(found: "Plan") -> Iterator[str]:
    """What the search and what the confirmation train, and what a budget buys."""
    cost, confirm = found.cost, found.confirm
    proposal, seeds = cost.branch * cost.seeds_per_proposal, f"{cost.seeds_per_proposal:.3g}"
    if cost.budget is not None:
        buys = "what it buys is known after the first epochs"
        if cost.epochs is not None:
            buys = f"{max(cost.epochs - cost.confirmation, 0):,.0f} epochs for the search, {cost.confirmation:,.0f} "
            buys += "kept back for the confirmation, which follows by itself"
        yield f"budget     {cost.budget}: {buys}"
    if cost.budget is not None or found.race is not None:
        proposals = "proposals" if cost.proposals is None else f"about {cost.proposals} proposals"
        yield (
            f"search     {cost.baselines:,.0f} epochs for the baselines; {proposals} at {proposal:,.3g} each on "
            f"average ({cost.branch:.3g} on a seed, {seeds} seed{'s' * (seeds != '1')})"
        )
    by_itself = "" if cost.budget is not None else "; it is trained by sweeper confirm"
    yield (
        f"confirm    {cost.confirmation:,.0f} epochs: the best {confirm.best} and the baselines again on "
        f"{confirm.seeds} fresh seeds{by_itself}"
    )
    if cost.proposals == 0:
        yield "warning    nothing is left for the search: raise the budget, or lower confirm.seeds or search.seeds"


def _evidence_planned(confirm: "Evidence") -> Iterator[str]:
    """Which gain the confirmation shows, and how many seeds a gain of 0.004 takes."""
    begin = f"evidence   in 4 of 5 cases {confirm.seeds} paired seeds for the best {confirm.best} show a gain of"
    if confirm.detectable is not None:
        low, high = confirm.detectable_range
        yield f"{begin} about {confirm.detectable:+z.4f} ({low:+z.4f} to {high:+z.4f}), a smaller one less often"
        yield f"           to show +0.004 in one comparison takes {confirm.noise.needs}"
        return
    yield begin
    for data, example in zip(("a quiet", "a usual", "a noisy"), confirm.elsewhere, strict=True):
        yield (
            f"             {example.detectable:+z.4f} on {data} data set, where the difference to a baseline varies by "
            f"{example.s_d:.4f} over seeds ({example.where}); +0.004 takes {example.needed:,} pairs there"
        )
    yield "           how much it varies here is known after two seeds; plan then says so"


def _legend(labels: Iterable[str], begin: str = "labels: ") -> list[str]:
    """What the words in labels of schedules mean, as a line; none where none needs a word."""
    text = legend(labels)
    return [f"{begin}{text}"] if text else []


def _time(found: "Plan") -> str:
    """How long it takes, as far as epochs were timed."""
    took = found.duration
    if took is None or found.seconds_per_epoch is None:
        return "time       known after the first epochs: run plan again then"
    line = (
        f"time       {took.epochs:,} epochs at {found.seconds_per_epoch:.2g} s: {took.worker_hours:.2g} hours of one "
        "worker"
    )
    if took.wall_hours is None:
        return line
    devices = f"{took.devices} device{'s' * (took.devices > 1)}"
    return (
        f"{line}; with {took.workers} on {devices} here about {took.wall_hours:.2g} hours, "
        f"{took.device_hours:.2g} device hours"
    )


def _disk(found: "Plan") -> Iterator[str]:
    """What the states take, and how many of them are kept."""
    disk, limit = found.disk, f"{found.disk.limit / 1e9:.3g} GB"
    size = f"{'' if disk.measured else 'about '}{disk.state_bytes / 1e6:.3g} MB"
    free = f"; {disk.free / 1e9:.3g} GB are free" if disk.free is not None else ""
    if disk.needed is None:
        yield f"disk       a state of each epoch, {size}; up to {limit} of them are kept (store_gb){free}"
        return
    kept = "all are kept" if disk.needed <= disk.limit else f"the last used {limit} are kept"
    allowed = f"store_gb: {disk.limit / 1e9:.3g}"
    yield f"disk       {disk.states:,} states of {size}, {disk.needed / 1e9:.3g} GB: {kept} ({allowed}){free}"
    if disk.free is not None and not disk.measured and min(disk.needed, disk.limit) > disk.free:
        yield "warning    that is more than is free: lower store_gb, or choose another --store"


def _beside_baselines(found: "Plan") -> Iterator[str]:
    """How much of the proposals is the baselines' own training, and whether pairing them on seeds tells anything."""
    if not found.drawn or not found.begin_otherwise:
        return
    yield f"           {found.share_of_baselines:.0%} of the proposals' epochs are the baselines' own, bit for bit"
    for count in sorted({count for count in found.begin_otherwise.values() if count}, reverse=True):
        names = ", ".join(name for name, other in found.begin_otherwise.items() if other == count)
        yield (
            f"warning    of {found.drawn} proposals {count} begin{'s' * (count == 1)} otherwise than {names} "
            "(warm-up of LR, bias or momentum): pairing them on the same seeds buys nothing"
        )
    otherwise = [name for name, count in found.begin_otherwise.items() if count]
    if found.trunk is None and len(otherwise) == len(found.begin_otherwise):
        yield (
            f"           search.trunk: {otherwise[0]} makes the proposals branches of it; warmup_kind: trainer gives "
            "CAWB the warm-up of yolo_*"
        )


def answer(found: "Answer", objective: str) -> None:
    """What ``sweeper pick`` prints: the answer first, then what it stands on."""
    say(Text(_capital(found.sentence), style="bold"))
    failures(found.failures, said=found.failures.every)
    judged = [row for row in found.ranking if row.stage != "search"]
    rows = sorted([*judged, *found.baselines], key=lambda row: -(row.score or 0))
    rows += [row for row in found.ranking if row.stage == "search"]  # in the order of the ranking
    if not rows:
        return
    trunk = next((row.raced.over for row in found.ranking if row.raced is not None), None)
    columns = ("trial", "schedule", objective, "seeds", "restarts", "drops", *([f"over {trunk}"] if trunk else []))
    table = plain_table(*columns, right=(*columns[:1], *columns[2:]))
    raced = {row.name: row.raced for row in found.ranking}
    fresh = {candidate.name: candidate.over.get(trunk or "") for candidate in found.candidates if candidate.pairs}
    for row in rows:
        baseline = row in found.baselines
        difference = fresh.get(row.name) or raced.get(row.name)
        table.add_row(
            str(row.trial),
            row.label + (" (baseline)" if baseline else ""),
            f"{row.score:.4f}" if row.score is not None else "-",
            f"{row.n} {'fresh' if row.name in fresh or (baseline and fresh) else 'search'}",
            short(row.facts.get("restarts")),
            short(row.facts.get("drops")),
            *([difference.difference if difference else ""] if trunk else []),
        )
    console.print(table)
    for line in _legend([row.label for row in rows]):
        say(line)
    say(f"{objective}: the mean of a run's last {LAST} epochs, over so many seeds; compare rows of the same seeds only")
    if trunk:
        say(f"over {trunk}: the mean difference on the same seeds; search seeds chose the best, so theirs are too high")
    for candidate in found.candidates:
        if candidate.over:
            say(f"{candidate.title}: {candidate.differences}")
    for row in found.ranking[:JUMPS_OF]:
        for line in _jumps(row):
            say(line)
    for note in found.notes:
        say(note)
    failed = {trial for reason in found.failures.reasons for trial in reason.trials}  # named above, by reason
    for excluded in (run for run in found.excluded if run.trial not in failed):
        say(f"not compared: {_run(excluded)}: {excluded.reason}")


def failures(found: "Failures", *, said: bool = False) -> None:
    """How many trials failed and why; ``said``: the sentence with the commonest reason stands there already."""
    for line in [*([] if said or not found.failed else [found.sentence]), *found.further]:
        say(_capital(line))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def race(found: "Race") -> Iterator[str]:
    """How a race stands: which trunk, by which rule, and who leads."""
    yield found.sentence
    yield f"race: {found.rule}"
    for standing in found.standings[:RACERS]:
        seeds = f"{standing.n} search seed{'s' * (standing.n > 1)}"
        yield f"  {standing.name}: {standing.difference} over {standing.over} on {seeds}"
    if (more := len(found.standings) - RACERS) > 0:
        yield f"  and {more} more; sweeper pick has all"
    yield found.noise


def spending(found: "Spending") -> str:
    """What is spent and left of the budget, in a line."""
    words, whole = found.words, found.budget.amount
    kept = f"; {words(found.kept)} kept back for the confirmation" if found.kept else ""
    promised = f"; {words(found.promised)} promised to open trials" if found.promised else ""
    return (
        f"budget: {words(found.spent)} of {words(whole)} {found.unit} spent, {words(found.searched)} on baselines and "
        f"search, {words(found.spent - found.searched)} on the confirmation{promised}{kept}; "
        f"{words(whole - found.spent - found.promised - found.kept)} left"
    )


def verdicts(trial: int, examined: "Sequence[Examined]") -> None:
    """What ``sweeper confirm --escape`` prints: a row per jump, then the reasons with the thresholds."""
    table = plain_table("epoch", "jump", "path", "self", "seeds", "gain", "over peak", "verdict", right=("epoch",))
    for jump in examined:
        at = jump.landscape
        barriers = [short(value) for value in ((at.path, at.self_barrier, at.seeds) if at else (None,) * 3)]
        gains = [f"{c.difference} n={c.n}" if c else "-" for c in (jump.gain, jump.over_peak)]
        table.add_row(str(jump.epoch), _jump(jump.kind, jump.ratio), *barriers, *gains, jump.verdict.word)
    say(f"trial {trial}" if examined else f"trial {trial}: no restart and no drop, so nothing to examine")
    if examined:
        console.print(table)
    for jump in examined:
        say(f"epoch {jump.epoch}: {jump.verdict.sentence}")


def _run(excluded: "Excluded") -> str:
    """Which run it was that is not compared."""
    schedule = excluded.label or excluded.name
    return f"trial {excluded.trial} ({schedule}, {excluded.stage}, seed {excluded.seed})"


def _jump(kind: str, ratio: float | None) -> str:
    return f"{kind} x{ratio:.3g}" if ratio else kind


def _jumps(row: "Ranked") -> Iterator[str]:
    """What curves say about each jump of a trial, and the verdict where there is one."""
    from sweeper.evidence import effect_in_words  # with scipy, which takes long to import

    words = {verdict["epoch"]: verdict["word"] for verdict in row.facts.get("verdicts") or ()}
    for jump in row.facts.get("jumps") or ():
        yield f"trial {row.trial}, {effect_in_words(jump)}; {words.get(jump['epoch'], NOT_EXAMINED)}"


def status(found: "Status") -> None:
    """What ``sweeper status`` prints."""
    say(counts(found))
    say(_capital(found.phase))
    failures(found.failures)
    objective = found.objective
    table = plain_table(
        "trial", "stage", "schedule", "seed", "state", "epochs", objective, right=("trial", "seed", "epochs", objective)
    )
    for row in found.trials:
        value = row.score
        done = f"{row.epochs_done}/{found.epochs.per_trial}"
        state = "begun, waits" if row.waits else row.state
        state += f" ({row.reasons[-1].splitlines()[0][:60]})" if row.reasons else ""
        score = f"{value:.4f}" if value is not None else "-"
        table.add_row(str(row.trial), row.stage, row.label, str(row.seed), state, done, score)
    console.print(table)
    for line in _legend(row.label for row in found.trials):
        say(line)
    if found.waits:
        say("begun, waits: no worker has it now; another trial trains an epoch that it can use, or its worker is gone")
    for worker in found.workers:
        if worker.alive:
            at = f"trial {worker.trial}, epoch {worker.epoch}" if worker.trial is not None else "no trial"
            say(f"worker {worker.worker} on {worker.device}: {at}, heard of {worker.age_s:.0f} s ago")
    for line in race(found.race) if found.race is not None else ():
        say(line)
    if found.spending is not None:
        say(spending(found.spending))
    told = found.proposals
    if told.told:
        say(
            f"proposals: {told.asked} drawn for {told.told} trials ({told.per_trial:.2f} each), "
            f"{told.distinct} distinct schedules"
        )
    store, epochs = found.store, found.epochs
    free = f", {store.free / 1e9:.0f} GB free" if store.free is not None else ""
    say(
        f"store: {store.count} states, {store.bytes / 1e9:.2f} GB of {store.budget / 1e9:.3g}{free}; "
        f"read {store.reads} times"
    )
    if total := epochs.trained + epochs.reused:
        say(
            f"reuse: {epochs.reused} of {total} epochs were there already ({epochs.reused / total:.0%}), "
            f"{found.hours_saved:.2g} hours saved"
        )
    exactness(found.mismatches)
    if found.tracking_problem:
        say(f"tracking: {found.tracking_problem}")


def sweeps(launched: "Sequence[SweepSummary]") -> None:
    """What ``sweeper list`` prints."""
    table = plain_table("sweep", "state", "trials", "best", "", "winner", "worker heard of", right=("trials", "best"))
    for sweep in launched:
        ended = sum(sweep.counts.get(state, 0) for state in ("complete", "pruned", "fail"))
        best = f"{sweep.best:.4f}" if sweep.best is not None else "-"
        heard = f"{_ago(sweep.heard_s)} ago" if sweep.heard_s is not None else "-"
        trials = f"{ended} of {sweep.counts['total']}"
        table.add_row(sweep.name, sweep.state, trials, best, sweep.objective, sweep.winner or "-", heard)
    console.print(table)
    for sweep in launched:
        if sweep.problem:
            say(f"{sweep.name}: {sweep.problem}")


def _ago(seconds: float) -> str:
    """
    >>> _ago(4.6), _ago(600), _ago(7200), _ago(3 * 86400)
    ('5 s', '10 min', '2 h', '3 days')
    """
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def exactness(mismatches: "Sequence[Mismatch]") -> None:
    """How exact this hardware is, as far as it is known: two trainings of one segment that differ, if any did."""
    for mismatch in mismatches[:3]:
        say(f"not exact: {mismatch}")
    if len(mismatches) > 3:
        say(f"not exact: {len(mismatches) - 3} more (--json)")
    if not mismatches:
        say("exactness: no two trainings of one segment have differed")


def counts(found: "Status") -> str:
    """Trials by state and epochs, in a line."""
    number, epochs = {state: count for state, count in found.counts.items() if state != "total"}, found.epochs
    number["running"] -= found.waits
    number["begun and waiting"] = found.waits
    states = ", ".join(f"{count} {state}" for state, count in number.items() if count)
    saved = f", {epochs.reused} reused" if epochs.reused else ""
    return f"{found.sweep}: {states} of {found.budget} trials; {epochs.trained} epochs trained{saved}"
