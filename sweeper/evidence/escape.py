"""The battery on the restarts of one trial: which control runs it needs, and the word that they come to.

Per restart and paired seed: the *counterfactual* branch (the same run without the restart; its beginning is in the
store) and the *matched peak* (one anneal from the restart's LR). Seeds are those of the confirmation where the trial
was confirmed, else its own, and then there is no interval. Once on the first of the seeds: the *barrier*, a trial that
is the run itself (nothing to train) with a landscape measured at its end; its scale is an independent seed of the run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from sweeper import stats
from sweeper.config import Escape
from sweeper.errors import ConfigError
from sweeper.evidence.landscape import Landscape, Movement, State
from sweeper.evidence.seeds import Design, fresh_seeds
from sweeper.schedules import CONTROLS, Trace
from sweeper.study import Control, Trial, Wanted

SEED, BARRIER = "seed", "barrier"  # kinds of control trials beside the families of control runs

ESCAPE = "escape"
LARGER_LR = "gain explained by a larger LR"
NOT_BETTER = "moved, not better"
SAME_BASIN = "progress in the same basin"
NO_EVIDENCE = "no evidence of an escape"
NOT_A_RESTART = "not a restart"
NOTHING_LEARNED = "nothing learned"
UNCLEAR = "unclear"


@dataclass(frozen=True)
class Gain:
    """A paired mean difference over ``n`` seeds whose interval is not known, because one pair has none or because the
    difference cannot be judged."""

    mean: float
    low: float = -math.inf
    high: float = math.inf
    n: int = 1

    @property
    def difference(self) -> str:
        """The mean, with its interval if there is one."""
        return stats.difference(self.mean, self.low, self.high)


Comparison = stats.Paired | Gain


@dataclass(frozen=True)
class Verdict:
    """``word`` is one of the module's constants; ``reason`` the measurements behind it; ``sentence`` both."""

    word: str
    reason: str
    moved: State | None
    better: bool | None
    movement: Movement | None
    thresholds: Escape = field(default_factory=Escape)

    @property
    def sentence(self) -> str:
        t = self.thresholds
        limits = (
            f"moved from {t.over_self:g}x self-barrier and beta {t.moved_beta:g}, same basin below beta "
            f"{t.same_beta:g}, gain beyond {t.practical:g}; {t.snapshots} snapshots, {t.points} "
            f"points a line and {t.piece_points} a piece"
        )
        return f"{self.word}: {self.reason} (thresholds: {limits})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the settings that decided under ``thresholds``."""
        data = asdict(self) | {"thresholds": self.thresholds.decides(), "sentence": self.sentence}
        if self.movement is not None:
            data["movement"]["beta"] = self.movement.beta
        return data


@dataclass(frozen=True)
class Examined:
    """A jump by ``ratio`` (None: from 0) in ``epoch`` with its verdict. A restart has its number (from 1), what it was
    compared with, and the landscape around it (None: not measured with these settings)."""

    kind: Literal["restart", "drop"]
    epoch: int
    ratio: float | None
    verdict: Verdict
    restart: int | None = None
    gain: Comparison | None = None
    over_peak: Comparison | None = None
    landscape: Landscape | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the verdict's keys and the jump's; a drop has no others."""
        data = {"kind": self.kind, "epoch": self.epoch, "ratio": self.ratio} | self.verdict.to_dict()
        if self.restart is None:
            return data
        return data | {
            "restart": self.restart,
            "gain": _plain(self.gain),
            "over_peak": _plain(self.over_peak),
            "landscape": asdict(self.landscape) if self.landscape else None,
        }


def verdict(
    kind: str,
    *,
    movement: Movement | None = None,
    gain: Comparison | None = None,
    over_peak: Comparison | None = None,
    thresholds: Escape | None = None,
    learned: bool = True,
) -> Verdict:
    """The verdict on one jump of the learning rate.

    ``kind``: "restart" or "drop"; a drop is never an escape. ``gain``: restarted minus counterfactual branch, paired
    over seeds. ``over_peak``: restarted minus matched-peak control. ``learned``: whether any of these runs has a score
    above 0; without that there is nothing to be said of a gain. A measurement that was not made (None) leads to
    "unclear" wherever the answer hangs on it.

    A gain counts if its mean is beyond the region of practical equivalence and its interval above 0. Whether a larger
    learning rate explains it, ``stats.explains`` says.

    >>> verdict("restart", movement=Movement(0.9, 0.01, 1.0), gain=Gain(0.02, 0.01, 0.03, 6),
    ...         over_peak=Gain(-0.07, -0.09, -0.05, 6)).word
    'gain explained by a larger LR'
    """
    t = thresholds or Escape()
    if kind != "restart":
        return Verdict(NOT_A_RESTART, "the learning rate jumped down", None, None, movement, t)
    if not learned:
        return Verdict(NOTHING_LEARNED, "the run and its controls all have the score 0.0000", None, None, movement, t)
    moved, why = movement.state(t) if movement else (None, "path barrier not measured with these settings")
    reasons = [why, "counterfactual not run" if gain is None else _words("counterfactual gain", gain)]
    better = None
    if gain is not None and gain.low > -math.inf:  # without an interval, as one pair, it tells neither
        better = gain.mean >= t.practical and gain.low > 0

    if better is None:
        word = NO_EVIDENCE if moved == "no" else UNCLEAR
    elif not better:
        word = NOT_BETTER if moved == "yes" else NO_EVIDENCE
    elif moved == "no":
        word = SAME_BASIN
    elif moved != "yes":
        word = UNCLEAR
    elif over_peak is None:
        word = UNCLEAR
        reasons.append("matched-peak control not run")
    else:
        reasons.append(_words("against the matched peak", over_peak))
        explained = stats.explains(over_peak.mean, over_peak.low, over_peak.high, t.practical)
        word = {True: LARGER_LR, False: ESCAPE, None: UNCLEAR}[explained]
    return Verdict(word, "; ".join(reasons), moved, better, movement, t)


def _words(what: str, c: Comparison) -> str:
    pairs = f"{c.n} pairs" if c.n > 1 else "one pair"
    interval = f"{c.low:+z.4f} to {c.high:+z.4f}, {pairs}" if c.low > -math.inf else f"{pairs}, no interval"
    return f"{what} {c.mean:+z.4f} ({interval})"


# -- which trial, and which controls


def restarts(trace: Trace) -> list[dict[str, Any]]:
    """The restarts of a run, as in :class:`Control`; drops are none.

    >>> restarts(Trace([0.1, 0.05, 0.1, 0.05, 0.02, 0.01], epochs=6, marks=(2, 4)))
    [{'restart': 1, 'epoch': 2, 'ratio': 2.0, 'end': 4}]
    """
    jumps, ups = trace.jumps(), [jump for jump in trace.jumps() if jump.kind == "restart"]
    return [
        {
            "restart": number,
            "epoch": jump.epoch,
            "ratio": round(jump.ratio, 6) if math.isfinite(jump.ratio) else None,
            "end": min((other.epoch for other in jumps if other.epoch > jump.epoch), default=trace.epochs),
        }
        for number, jump in enumerate(ups, 1)
    ]


def subject(trials: Sequence[Trial], number: int | None = None) -> Trial:
    """The trial to examine: ``number``, else the one with a restart that the search ranked best, of those confirmed.

    Its scores in the confirmation do not choose it: they are compared with the controls afterwards, and a trial that is
    chosen for being lucky there seems to gain. Without a restart among the confirmed trials it is one that was not
    confirmed, without any in the sweep one with a drop. ConfigError if there is none, or for a trial that is
    not finished, not comparable, or itself a confirmation or control run.
    """
    if number is None:
        if best := _best_of_the_search(trials):
            return best
        raise ConfigError("escape: no finished trial has a restart or a drop; there is nothing to examine")
    for trial in _examinable(trials):
        if trial.number == number:
            return trial
    raise ConfigError(
        f"trial {number}: not a finished, comparable baseline or search trial of this sweep; "
        "expected one that `sweeper pick` ranks"
    )


def _examinable(trials: Sequence[Trial]) -> list[Trial]:
    return [
        trial for trial in trials if trial.stage in ("baseline", "search") and trial.usable and trial.original is None
    ]


def _best_of_the_search(trials: Sequence[Trial]) -> Trial | None:
    """The trial to examine by what was known before the confirmation; None without a jump in the sweep."""
    design = Design.of(trials)
    planned = {name for name, _ in design.runs(trials)} if design else set()
    places = {number: -place for place, number in enumerate(design.candidates)} if design else {}
    for kind in ("restarts", "drops"):
        jumping = [trial for trial in _examinable(trials) if trial.facts.facts.get(kind)]
        if pool := [trial for trial in jumping if trial.name in planned] or jumping:
            return max(pool, key=lambda t: (places.get(t.number, -len(places)), t.score or 0.0, -t.number))
    return None


def seeds_of(trials: Sequence[Trial], trial: Trial) -> list[int]:
    """The seeds that the trial was, or is being, confirmed on, in their order; its own if fewer than two."""
    confirmed = [run.seed for run in _confirmed(trials, trial)]
    return list(dict.fromkeys(confirmed)) if len(confirmed) > 1 else [trial.seed]


def control_slots(trials: Sequence[Trial], trial: Trial, trace: Trace, seed: int) -> list[Wanted]:
    """The runs that the battery on ``trial`` (with this ``trace``) compares with; ``seed`` is the sweep's. None for a
    run without restarts."""
    seeds, spec = seeds_of(trials, trial), dict(trial.spec or {})
    slots = [
        _slot(trial, {"family": family, "of": spec, "restart": at["restart"]}, at_seed, family, at)
        for at_seed in seeds
        for at in restarts(trace)
        for family in CONTROLS
    ]
    if slots and len(seeds) == 1:
        slots.append(_slot(trial, spec, fresh_seeds(seed, 1)[0], SEED, {}))
    return slots


def barrier_slots(trials: Sequence[Trial], trial: Trial, trace: Trace, seed: int, settings: Escape) -> list[Wanted]:
    """The measuring trials of the battery, for after the control runs. Other ``settings`` measure anew."""
    first, *others = seeds_of(trials, trial)
    other = others[0] if others else fresh_seeds(seed, 1)[0]
    return [
        _slot(trial, dict(trial.spec or {}), first, BARRIER, {**at, "other": other, "settings": settings.cost()})
        for at in restarts(trace)
    ]


def _slot(trial: Trial, spec: dict[str, Any], seed: int, kind: str, at: Mapping[str, Any]) -> Wanted:
    """``at``: further values of :class:`Control`."""
    words = {"matched_peak": "matched peak", SEED: "another seed", BARRIER: "path barrier"}.get(kind, "no restart")
    name = f"{trial.name}: {words}" + (f" (epoch {at['epoch']})" if at else "")
    return Wanted("control", seed, schedule=spec, name=name, control={"trial": trial.number, "kind": kind, **at})


def controls_of(trials: Sequence[Trial], trial: Trial) -> list[tuple[Trial, Control]]:
    """The control trials of a trial, each with what it controls."""
    return [(run, at) for run in trials if (at := run.facts.control) is not None and at.trial == trial.number]


# -- what they say


def verdicts(trials: Sequence[Trial], trial: Trial, settings: Escape) -> list[Examined]:
    """What can be said of the jumps of ``trial``, in their order: every drop, and every restart with control runs.

    A landscape that was measured with other settings (``Escape.cost``) is not looked at.
    """
    examined = [
        Examined("drop", jump["epoch"], jump["ratio"], verdict("drop", thresholds=settings))
        for jump in trial.facts.effects
        if jump["kind"] == "drop"
    ]
    controls = controls_of(trials, trial)
    if not controls:
        return examined  # at once, because all of thousands of trials are asked
    confirmed = _confirmed(trials, trial)
    best, seeds = _best_of_the_search(trials), seeds_of(trials, trial)
    planned = {run.seed for run in trials if run.stage == "confirm" and run.name == trial.name}
    lost = len(planned - {run.seed for run in confirmed})
    for number in sorted({at.restart for _, at in controls if at.restart is not None}):
        runs = [(run, at) for run, at in controls if at.restart == number]
        gain, over_peak = (_compared([trial, *confirmed], runs, family, seeds) for family in CONTROLS)
        limits = []
        if gain is not None and lost:
            gain = Gain(gain.mean, n=gain.n)
            limits.append(
                f"the run itself failed on {lost} of {len(planned)} seeds, and on the others alone its gain would "
                "be flattered, so there is no interval"
            )
        if gain is not None and gain.low > -math.inf and best is not None and best.number != trial.number:
            limits.append(
                "the interval does not account for choosing this trial among several (the one that the search ranked "
                f"best is trial {best.number})"
            )
        measured = [run.facts.landscape for run, at in runs if run.facts.landscape and at.settings == settings.cost()]
        landscape = Landscape(**measured[-1]) if measured else None
        scores = [run.score for run in (trial, *confirmed, *(run for run, _ in runs)) if run.score is not None]
        word = verdict(
            "restart",
            movement=landscape.movement if landscape else None,
            gain=gain,
            over_peak=over_peak,
            thresholds=settings,
            learned=any(map(stats.learned, scores)) or not scores,
        )
        word = replace(word, reason="; ".join([word.reason, *limits]))
        at = runs[0][1]
        examined.append(Examined("restart", at.epoch, at.ratio, word, number, gain, over_peak, landscape))
    return sorted(examined, key=lambda jump: jump.epoch)


def _confirmed(trials: Sequence[Trial], trial: Trial) -> list[Trial]:
    """The confirmation runs of a trial's configuration that did not fail."""
    return [run for run in trials if run.stage == "confirm" and run.name == trial.name and run.confounder is None]


def _compared(
    runs: Sequence[Trial], controls: Sequence[tuple[Trial, Control]], kind: str, seeds: Sequence[int]
) -> Comparison | None:
    """The restarted runs minus their controls of this kind on the same seeds; None without a pair."""
    theirs = {run.seed: run.score for run, at in controls if at.kind == kind and run.state == "COMPLETE"}
    ours = {run.seed: run.score for run in runs}
    pairs = [(a, b) for seed in seeds if (a := ours.get(seed)) is not None and (b := theirs.get(seed)) is not None]
    if len(pairs) < 2:
        return Gain(pairs[0][0] - pairs[0][1]) if pairs else None
    return stats.paired(*zip(*pairs, strict=True))


def _plain(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    numbers = {name: getattr(comparison, name) for name in ("n", "mean", "low", "high")}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
