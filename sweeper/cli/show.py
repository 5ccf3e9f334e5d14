"""Prints plans, answers and verdicts, as tables and sentences."""

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeper.schedules import format_value, legend
from sweeper.search.rules import LAST

if TYPE_CHECKING:
    from sweeper.evidence import Examined
    from sweeper.service.plan import Evidence, Plan
    from sweeper.stats import Answer, Excluded, Failures, Ranked
    from sweeper.store import Mismatch

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
say = functools.partial(console.print, soft_wrap=True)  # for sentences, whose lines the terminal breaks itself
ROWS_OF_KIND = 30  # `plan` shows so many schedules of a kind; --json has all
JUMPS_OF = 5  # `pick` describes the jumps of so many schedules; --json has all
NOT_EXAMINED = "escape not examined (sweeper confirm --escape)"


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table with these columns; those in ``right`` are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def plan(plan: "Plan") -> None:
    """What ``sweeper plan`` prints."""
    shown = plan.schedules
    right = ("restarts", "drops", "peak", "final")
    table = plain_table("", "schedule", *right, right=right)
    for kind in dict.fromkeys(item.kind for item in shown):
        of_kind = [item for item in shown if item.kind == kind]
        for item in of_kind[:ROWS_OF_KIND]:
            table.add_row(item.name, item.label, *(format_value(item.facts[key]) for key in right))
        if (more := len(of_kind) - ROWS_OF_KIND) > 0:
            table.add_row("...", f"{more} more (--json has all)")
    console.print(table)
    sampled, trials = plan.sampled, plan.trials
    by_budget = plan.cost.budget is not None and plan.cost.proposals == trials
    drawn = f"{plan.drawn} proposals" + (" as a sample" if trials is None else "")
    if sampled is not None:
        drawn = f"{sampled} of {trials} proposals as a sample"
    elif trials is not None and plan.drawn < trials:
        what = f"the {trials} that the budget buys" if by_budget else f"{trials} trials"
        drawn = f"{plan.drawn} proposals for {what}: the space has no more, the others cost no epoch"
    on_one = " on one seed" if plan.race is not None else ""
    upper, lower = ("", "") if sampled is None else ("at most about ", "at least about ")
    (train, val), confirm = plan.images, plan.confirm
    lines = [
        *legend_of([item.label for item in shown], "labels     "),
        f"data       {train} training and {val} validation images, "
        f"{plan.steps_per_epoch} steps an epoch, {plan.epochs} epochs",
        f"drawn      {drawn}, {plan.distinct} distinct schedules (at random; the sweep's sampler learns); "
        "corners are the extremes of the space",
        f"epochs     {plan.epochs_asked} in all{on_one}, {upper}{plan.epochs_to_train} to train: "
        f"{lower}{plan.share_saved:.0%} shared",
        *_beside_baselines(plan),
        *_race_planned(plan),
        *_budget_planned(plan),
        _time(plan),
        *_disk(plan),
        *_evidence_planned(confirm),
        *([f"           fewer than {confirm.least} seeds name no winner"] if confirm.seeds < confirm.least else []),
        *(f"data       {problem}" for problem in plan.problems),
    ]
    for line in lines:
        say(line)


def _race_planned(plan: "Plan") -> Iterator[str]:
    """Lines on the race, for a sweep with a race."""
    if (race := plan.race) is not None:
        yield f"trunk      {race.trunk}"
        yield f"race       {race.rule}"
        yield race.noise.replace("noise: ", "noise      ", 1)


def _budget_planned(plan: "Plan") -> Iterator[str]:
    """Lines on the epochs of search and confirmation, and on what the budget pays for."""
    cost, confirm = plan.cost, plan.confirm
    proposal, seeds = cost.branch * cost.seeds_per_proposal, f"{cost.seeds_per_proposal:.3g}"
    if cost.budget is not None:
        buys = "what it buys is known after the first epochs"
        if cost.epochs is not None:
            searched = max(cost.epochs - cost.confirmation, 0)
            buys = f"about {searched:,.0f} epochs for the search, {cost.confirmation:,.0f} "
            buys += "kept back for the confirmation, which the same workers train after the search"
        yield f"budget     {cost.budget}: {buys}"
    if cost.budget is not None or plan.race is not None:
        count = plan.trials if cost.proposals is None else f"about {cost.proposals}"
        proposals = "proposals" if count is None else f"{count} proposals"
        yield (
            f"search     {cost.baselines:,.0f} epochs for the baselines; {proposals} at {proposal:,.3g} each on "
            f"average ({cost.branch:.3g} on a seed, {seeds} seed{'s' * (seeds != '1')})"
        )
    command = "" if cost.budget is not None else "; `sweeper confirm` trains it"
    yield (
        f"confirm    {cost.confirmation:,.0f} epochs: the best {confirm.best} and the baselines again on "
        f"{confirm.seeds} fresh seeds{command}"
    )
    if cost.proposals == 0:
        yield "warning    nothing is left for the search: raise the budget, or lower confirm.seeds or search.seeds"


def _evidence_planned(confirm: "Evidence") -> Iterator[str]:
    """Lines on the gain that the confirmation would detect, and on the seeds that a gain of 0.004 takes."""
    seeds = f"{confirm.seeds} paired seeds for the best {confirm.best}"
    begin = f"evidence   with {seeds}, 4 of 5 sweeps would detect a gain of"
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
    yield "           how much it varies in this sweep is known after two seeds: run plan again then"


def legend_of(labels: Iterable[str], begin: str = "labels: ") -> list[str]:
    """A line that explains the parameters in labels of schedules; [] if there is nothing to explain."""
    text = legend(labels)
    return [f"{begin}{text}"] if text else []


def _time(plan: "Plan") -> str:
    """A line on the duration of the training; it is known once epochs were timed."""
    duration = plan.duration
    if duration is None or plan.seconds_per_epoch is None:
        return "time       known after the first epochs: run plan again then, or `sweeper doctor`, which times some now"
    line = (
        f"time       {duration.epochs:,} epochs at {plan.seconds_per_epoch:.2g} s: {duration.worker_hours:.2g} hours "
        f"of one worker{_scope(plan)}"
    )
    if duration.wall_hours is None:
        return line
    devices = f"{duration.devices} device{'s' * (duration.devices > 1)}"
    return (
        f"{line}; with {duration.workers} workers on {devices} here about {duration.wall_hours:.2g} hours, "
        f"{duration.device_hours:.2g} device hours"
    )


def _scope(plan: "Plan") -> str:
    """The part of the sweep that time and disk are for: the search, or with a budget the whole sweep ('')."""
    return " for the search" if plan.cost.budget is None else ""


def _disk(plan: "Plan") -> Iterator[str]:
    """Lines on the size of the training states, and on how many of them are kept."""
    disk, limit = plan.disk, f"{plan.disk.limit / 1e9:.3g} GB"
    size = f"{'' if disk.measured else 'about '}{disk.state_bytes / 1e6:.3g} MB"
    free = f"; {disk.free / 1e9:.3g} GB are free" if disk.free is not None else ""
    if disk.needed is None:
        yield f"disk       a state of each epoch, {size}; up to {limit} of them are kept (store_gb){free}"
        return
    kept = "all are kept" if disk.needed <= disk.limit else f"the last used {limit} are kept"
    allowed = f"store_gb: {disk.limit / 1e9:.3g}"
    needed = f"{disk.needed / 1e9:.3g} GB{_scope(plan)}"
    yield f"disk       {disk.states:,} states of {size}, {needed}: {kept} ({allowed}){free}"
    if disk.free is not None and not disk.measured and min(disk.needed, disk.limit) > disk.free:
        yield "warning    that is more than is free: lower store_gb, or choose another --store"


def _beside_baselines(plan: "Plan") -> Iterator[str]:
    """Lines on the share of epochs that proposals have in common with baselines, and a warning if pairing them on the
    same seeds does not reduce the noise, because they begin differently."""
    if not plan.drawn or not plan.begin_otherwise:
        return
    yield f"           {plan.share_of_baselines:.0%} of the proposals' epochs are shared with a baseline, bit for bit"
    for count in sorted({count for count in plan.begin_otherwise.values() if count}, reverse=True):
        names = ", ".join(name for name, other in plan.begin_otherwise.items() if other == count)
        yield (
            f"warning    of {plan.drawn} proposals {count} begin{'s' * (count == 1)} otherwise than {names} "
            "(warm-up of LR, bias or momentum): pairing them on the same seeds does not reduce the noise"
        )
    otherwise = [name for name, count in plan.begin_otherwise.items() if count]
    if plan.trunk is None and len(otherwise) == len(plan.begin_otherwise):
        yield (
            f"           search.trunk: {otherwise[0]} makes the proposals branches of it; warmup_kind: trainer gives "
            "CAWB the warm-up of yolo_*"
        )


def answer(answer: "Answer", objective: str) -> None:
    """Print what ``sweeper pick`` shows: the answer, the next step, then what the answer rests on."""
    say(Text(capital(answer.sentence), style="bold"))
    if answer.next_step:
        say(f"Next: {answer.next_step}")
    failures(answer.failures, headed=answer.failures.every)
    judged = [row for row in answer.ranking if row.stage != "search"]
    rows = sorted([*judged, *answer.baselines], key=lambda row: -(row.score or 0))
    rows += [row for row in answer.ranking if row.stage == "search"]
    if not rows:
        return
    trunk = next((row.raced.over for row in answer.ranking if row.raced is not None), None)
    columns = ("trial", "schedule", objective, "seeds", "restarts", "drops", *([f"over {trunk}"] if trunk else []))
    table = plain_table(*columns, right=(*columns[:1], *columns[2:]))
    raced = {row.name: row.raced for row in answer.ranking}
    fresh = {candidate.name: candidate.over.get(trunk or "") for candidate in answer.candidates if candidate.pairs}
    for row in rows:
        baseline = row in answer.baselines
        difference = fresh.get(row.name) or raced.get(row.name)
        table.add_row(
            str(row.trial),
            row.label + (" (baseline)" if baseline else ""),
            f"{row.score:.4f}" if row.score is not None else "-",
            f"{row.n} {'fresh' if row.name in fresh or (baseline and fresh) else 'search'}",
            format_value(row.facts.get("restarts")),
            format_value(row.facts.get("drops")),
            *([difference.difference if difference else ""] if trunk else []),
        )
    console.print(table)
    for line in legend_of([row.label for row in rows]):
        say(line)
    say(
        f"{objective}: the mean of a run's last {LAST} epochs, averaged over the seeds; compare only rows with the "
        "same seeds; each seed is a trial, and a schedule has the number of its first one"
    )
    if trunk:
        say(
            f"over {trunk}: the mean difference on the same seeds; on search seeds those of the best are too high, "
            "because these seeds selected them"
        )
    for candidate in answer.candidates:
        if candidate.over:
            say(f"{candidate.title}: {candidate.differences}")
    jumping = [row for row in answer.ranking if row.facts.get("jumps")]
    for row in jumping[:JUMPS_OF]:
        for line in _jumps(row):
            say(line)
    if len(jumping) > JUMPS_OF:
        say(
            f"jumps: shown for the first {JUMPS_OF} of {len(jumping)} ranked schedules that jump; `sweeper report` and "
            "`sweeper pick --json` have all"
        )
    for note in answer.notes:
        say(note)
    # Failed trials are left out here, because they are named above with their reasons.
    failed = {trial for reason in answer.failures.reasons for trial in reason.trials}
    for excluded in (run for run in answer.excluded if run.trial not in failed):
        say(f"not compared: {_run(excluded)}: {excluded.reason}")


def failures(failures: "Failures", *, headed: bool = False) -> None:
    """Print how many trials failed, and why; with ``headed`` without the first sentence, which is printed already."""
    for line in [*([] if headed or not failures.failed else [failures.sentence]), *failures.further]:
        say(capital(line))


def capital(sentence: str) -> str:
    """The sentence with a capital letter at its start."""
    return sentence[:1].upper() + sentence[1:]


def verdicts(trial: int, examined: "Sequence[Examined]") -> None:
    """What ``sweeper confirm --escape`` prints: a row for each jump of the trial, then a sentence for each verdict."""
    table = plain_table("epoch", "jump", "path", "self", "seeds", "gain", "over peak", "verdict", right=("epoch",))
    for jump in examined:
        landscape = jump.landscape
        measured = (landscape.path, landscape.self_barrier, landscape.seeds) if landscape else (None,) * 3
        barriers = [format_value(value) for value in measured]
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


def exactness(mismatches: "Sequence[Mismatch]") -> None:
    """Print the repeated trainings of an epoch that gave different states, which shows how exact the hardware is."""
    for mismatch in mismatches[:3]:
        say(f"not exact: {mismatch}")
    if len(mismatches) > 3:
        say(f"not exact: {len(mismatches) - 3} more (--json)")
    if not mismatches:
        say("exactness: no two trainings of the same epochs have differed")
