"""The battery on the restarts of one trial: which control runs it needs, and what they say together.

Per restart and paired seed: the *counterfactual* branch (the same run without the restart; its beginning is in the
store) and the *matched peak* (one anneal from the restart's LR). Seeds are those of the confirmation where the trial
was confirmed, else its own, and then there is no interval. Once on the first of the seeds: the *barrier*, a trial that
is the run itself (nothing to train) with a landscape measured at its end; its scale is an independent seed of the run.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sweeper import stats
from sweeper.config import Escape
from sweeper.errors import ConfigError
from sweeper.evidence.confirm import Design, fresh_seeds
from sweeper.evidence.landscape import Landscape
from sweeper.evidence.verdict import Comparison, Gain, verdict
from sweeper.schedules import CONTROLS, Trace
from sweeper.study import Control, Trial, Wanted

SEED, BARRIER = "seed", "barrier"  # kinds of control trials beside the families of control runs


@dataclass(frozen=True)
class Restart:
    """Restart ``number`` (from 1) of a run: the LR goes up by ``ratio`` (None: from 0) in ``epoch``; its cycle ends
    after ``end`` epochs."""

    number: int
    epoch: int
    ratio: float | None
    end: int


def restarts(trace: Trace) -> list[Restart]:
    """The restarts of a run; drops are none.

    >>> restarts(Trace([0.1, 0.05, 0.1, 0.05, 0.02, 0.01], epochs=6, marks=(2, 4)))
    [Restart(number=1, epoch=2, ratio=2.0, end=4)]
    """
    jumps = trace.jumps()
    found: list[Restart] = []
    for jump in jumps:
        if jump.kind == "restart":
            end = min((other.epoch for other in jumps if other.epoch > jump.epoch), default=trace.epochs)
            ratio = round(jump.ratio, 6) if math.isfinite(jump.ratio) else None
            found.append(Restart(len(found) + 1, jump.epoch, ratio, end))
    return found


def subject(rows: Sequence[Trial], trial: int | None = None) -> Trial:
    """The trial to examine: ``trial``, else the one with a restart that the search ranked best, of those confirmed.

    Its scores in the confirmation do not choose it: they are compared with the controls afterwards, and a trial that is
    chosen for being lucky there seems to gain. Without a restart among the confirmed trials it is one that was not
    confirmed, without any in the sweep one with a drop. ConfigError if there is none, or for a trial that is
    not finished, not comparable, or itself a confirmation or control run.
    """
    if trial is not None:
        for row in _examinable(rows):
            if row.number == trial:
                return row
        raise ConfigError(
            f"trial {trial}: not a finished, comparable baseline or search trial of this sweep; "
            "expected one that `sweeper pick` ranks"
        )
    best = _best_of_the_search(rows)
    if best is None:
        raise ConfigError("escape: no finished trial has a restart or a drop; there is nothing to examine")
    return best


def _examinable(rows: Sequence[Trial]) -> list[Trial]:
    return [row for row in rows if row.stage in ("baseline", "search") and row.usable and row.original is None]


def _best_of_the_search(rows: Sequence[Trial]) -> Trial | None:
    """The trial to examine by what was known before the confirmation; None without a jump in the sweep."""
    design = Design.of(rows)
    planned = {name for name, _ in design.runs(rows)} if design else set()
    places = {number: -place for place, number in enumerate(design.candidates)} if design else {}
    for kind in ("restarts", "drops"):
        jumping = [row for row in _examinable(rows) if row.facts.facts.get(kind)]
        if pool := [row for row in jumping if row.name in planned] or jumping:
            return max(pool, key=lambda row: (places.get(row.number, -len(places)), row.score or 0.0, -row.number))
    return None


def seeds_of(rows: Sequence[Trial], row: Trial) -> list[int]:
    """The seeds that the trial was, or is being, confirmed on, in their order; its own if fewer than two."""
    confirmed = [other.seed for other in _confirmed(rows, row)]
    return list(dict.fromkeys(confirmed)) if len(confirmed) > 1 else [row.seed]


def control_slots(rows: Sequence[Trial], row: Trial, trace: Trace, seed: int) -> list[Wanted]:
    """The runs that the battery on ``row`` (with this ``trace``) compares with; ``seed`` is the sweep's. None for a
    run without restarts."""
    seeds, found = seeds_of(rows, row), restarts(trace)
    slots = [
        _slot(row, {"family": family, "of": dict(row.spec or {}), "restart": at.number}, one, family, at)
        for one in seeds
        for at in found
        for family in CONTROLS
    ]
    if found and len(seeds) == 1:
        slots.append(_slot(row, dict(row.spec or {}), fresh_seeds(seed, 1)[0], SEED, None))
    return slots


def barrier_slots(rows: Sequence[Trial], row: Trial, trace: Trace, seed: int, settings: Escape) -> list[Wanted]:
    """The measuring trials of the battery, for after the control runs. Other ``settings`` measure anew."""
    first, *others = seeds_of(rows, row)
    other = others[0] if others else fresh_seeds(seed, 1)[0]
    return [
        _slot(row, dict(row.spec or {}), first, BARRIER, at, other=other, settings=settings.cost())
        for at in restarts(trace)
    ]


def verdicts(rows: Sequence[Trial], row: Trial, settings: Escape) -> list[dict[str, Any]]:
    """What can be said of the jumps of ``row``, in their order: every drop, and every restart with control runs.

    A landscape that was measured with other settings (``Escape.cost``) is not looked at.

    Each is a verdict's ``to_dict`` with the jump's ``epoch``, ``ratio`` and ``kind``, and for a restart its number, the
    comparisons ``gain`` and ``over_peak`` and the ``landscape`` (None: not there). JSON-able.
    """
    found = [
        {"kind": "drop", "epoch": at["epoch"], "ratio": at["ratio"]} | verdict("drop", thresholds=settings).to_dict()
        for at in row.facts.effects
        if at["kind"] == "drop"
    ]
    controls = controls_of(rows, row)
    numbers = {at.restart for _, at in controls if at.restart is not None}
    for number in sorted(numbers):
        own = [(other, at) for other, at in controls if at.restart == number]
        at, seeds = own[0][1], seeds_of(rows, row)
        gain, over_peak = (_compared(rows, row, own, family, seeds) for family in CONTROLS)
        limits = []
        lost, of = _lost(rows, row)
        if gain is not None and lost:
            gain = Gain(gain.mean, n=gain.n)
            limits.append(
                f"the run itself failed on {lost} of {of} seeds, and on the others alone its gain would "
                "be flattered, so there is no interval"
            )
        best = _best_of_the_search(rows)
        if gain is not None and gain.low > -math.inf and best is not None and best.number != row.number:
            limits.append(
                "the interval does not account for choosing this trial among several (the one that the search ranked "
                f"best is trial {best.number})"
            )
        measured = [
            other.facts.landscape for other, asked in own if other.facts.landscape and asked.settings == settings.cost()
        ]
        landscape = Landscape.of(measured[-1]) if measured else None
        said = verdict(
            "restart",
            movement=landscape.movement if landscape else None,
            gain=gain,
            over_peak=over_peak,
            thresholds=settings,
            learned=_learned((row, *_confirmed(rows, row), *(other for other, _ in own))),
        )
        said = replace(said, reason="; ".join([said.reason, *limits]))
        found.append(
            {"kind": "restart", "restart": number, "epoch": at.epoch, "ratio": at.ratio}
            | said.to_dict()
            | {"gain": _plain(gain), "over_peak": _plain(over_peak)}
            | {"landscape": landscape.to_dict() if landscape else None}
        )
    return sorted(found, key=lambda one: int(one["epoch"]))


def _slot(row: Trial, spec: dict[str, Any], seed: int, kind: str, at: Restart | None, **more: Any) -> Wanted:
    words = {"matched_peak": "matched peak", SEED: "another seed", BARRIER: "path barrier"}.get(kind, "no restart")
    place = {"restart": at.number, "epoch": at.epoch, "ratio": at.ratio, "end": at.end} if at else {}
    return Wanted(
        "control",
        seed,
        schedule=spec,
        name=f"{row.name}: {words}" + (f" (epoch {at.epoch})" if at else ""),
        control={"trial": row.number, "kind": kind, **place, **more},
    )


def controls_of(rows: Sequence[Trial], row: Trial) -> list[tuple[Trial, Control]]:
    """The control trials of a trial, each with what it controls."""
    asked = ((other, other.facts.control) for other in rows)
    return [(other, control) for other, control in asked if control is not None and control.trial == row.number]


def _confirmed(rows: Sequence[Trial], row: Trial) -> Iterator[Trial]:
    """The confirmation runs of a trial's configuration that did not fail."""
    for other in rows:
        ours = other.stage == "confirm" and other.name == row.name
        if ours and other.confounder is None:
            yield other


def _learned(runs: Iterable[Trial]) -> bool:
    """Whether any of the finished runs has a score above 0; True while none is finished."""
    scores = [run.score for run in runs if run.score is not None]
    return not scores or any(map(stats.learned, scores))


def _lost(rows: Sequence[Trial], row: Trial) -> tuple[int, int]:
    """On how many seeds of its confirmation a trial's configuration has no score that can be compared, and of how
    many."""
    own = [other for other in rows if other.stage == "confirm" and other.name == row.name]
    seeds = {other.seed for other in own}
    return len(seeds - {other.seed for other in _confirmed(rows, row)}), len(seeds)


def _compared(
    rows: Sequence[Trial], row: Trial, controls: Sequence[tuple[Trial, Control]], kind: str, seeds: Sequence[int]
) -> Comparison | None:
    """The restarted runs minus their controls of this kind on the same seeds; None without a pair."""
    theirs = {
        other.seed: other.score
        for other, at in controls
        if at.kind == kind and other.state == "COMPLETE" and other.score is not None
    }
    runs = {other.seed: other.score for other in (row, *_confirmed(rows, row)) if other.score is not None}
    pairs = [(runs[seed], theirs[seed]) for seed in seeds if seed in runs and seed in theirs]
    if len(pairs) < 2:
        return Gain(pairs[0][0] - pairs[0][1]) if pairs else None
    return stats.paired([mine for mine, _ in pairs], [other for _, other in pairs])


def _plain(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    numbers = {name: getattr(comparison, name) for name in ("n", "mean", "low", "high")}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
