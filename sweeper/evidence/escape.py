"""The escape examination of one trial: the control runs of its restarts, and the verdict that follows from them.

Each restart has two control runs on each seed: the *counterfactual* (the same run without the restart; its states
before the restart are in the store) and the *matched peak* (one anneal from the restart's learning rate). The seeds are
those of the confirmation where the trial was confirmed; otherwise the trial's own seed, and then there is no interval.
On the first seed each restart also has a *barrier* trial: the run itself, of which nothing is trained again, and the
landscape around the restart, measured when it ends. The barrier to the same run on an independent seed is its scale.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from sweeper import stats
from sweeper.config import Escape
from sweeper.errors import ConfigError
from sweeper.evidence.curve import restarts
from sweeper.evidence.landscape import Landscape, Moved, Movement
from sweeper.evidence.seeds import Design, fresh_seeds
from sweeper.schedules import CONTROLS, Trace
from sweeper.study import Control, Trial, Wanted

SEED, BARRIER = "seed", "barrier"  # The kinds of control trials that are no schedule family of CONTROLS.

# The verdicts.
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
    """A paired mean difference over ``n`` seeds; by default without an interval, which one pair does not have."""

    mean: float
    low: float = -math.inf
    high: float = math.inf
    n: int = 1

    @property
    def difference(self) -> str:
        """The mean in words, with its interval if there is one."""
        return stats.difference(self.mean, self.low, self.high)


Comparison = stats.Paired | Gain


@dataclass(frozen=True)
class Verdict:
    """The verdict on one jump of the learning rate.

    ``word``: the verdict, one of the module's constants. ``reason``: the measurements behind it. ``moved``: whether the
    weights left their basin; ``better``: whether the restart gained over its counterfactual (both None: not known).
    """

    word: str
    reason: str
    moved: Moved | None
    better: bool | None
    movement: Movement | None
    thresholds: Escape = field(default_factory=Escape)

    @property
    def sentence(self) -> str:
        """The verdict, its reason and the thresholds that decided, in one line."""
        t = self.thresholds
        limits = (
            f"moved from {t.over_self:g}x self-barrier and beta {t.moved_beta:g}, same basin below beta "
            f"{t.same_beta:g}, gain beyond {t.practical:g}; {t.snapshots} snapshots, {t.points} "
            f"points a line and {t.piece_points} a piece"
        )
        return f"{self.word}: {self.reason} (thresholds: {limits})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, the sentence, and as ``thresholds`` the settings on which a verdict depends."""
        data = asdict(self) | {"thresholds": self.thresholds.decides(), "sentence": self.sentence}
        if self.movement is not None:
            data["movement"]["beta"] = self.movement.beta
        return data


@dataclass(frozen=True)
class Examined:
    """A jump of the learning rate in ``epoch`` by ``ratio`` (None: from 0), with its verdict.

    The other fields are None for a drop. ``restart``: the restart's number, from 1. ``gain``: its difference to the
    counterfactual, ``over_peak``: to the matched peak (None: not run). ``landscape``: None where it was not measured
    with the present settings.
    """

    kind: Literal["restart", "drop"]
    epoch: int
    ratio: float | None
    verdict: Verdict
    restart: int | None = None
    gain: Comparison | None = None
    over_peak: Comparison | None = None
    landscape: Landscape | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the verdict's keys and the jump's, and for a restart its measurements."""
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

    ``kind``: "restart" or "drop"; a drop is never an escape. ``gain``: run with the restart minus counterfactual,
    paired over seeds. ``over_peak``: run with the restart minus matched peak. ``learned``: whether any of these runs
    has a score above 0; if none has, there is no verdict on a gain. Where the verdict depends on a measurement that was
    not made (None), it is "unclear".

    A gain counts if its mean is at least ``thresholds.practical`` and its interval above 0. ``stats.explains`` decides
    whether a larger learning rate explains it.

    >>> verdict("restart", movement=Movement(0.9, 0.01, 1.0), gain=Gain(0.02, 0.01, 0.03, 6),
    ...         over_peak=Gain(-0.07, -0.09, -0.05, 6)).word
    'gain explained by a larger LR'
    """
    t = thresholds or Escape()
    if kind != "restart":
        return Verdict(NOT_A_RESTART, "the learning rate jumped down", None, None, movement, t)
    if not learned:
        return Verdict(NOTHING_LEARNED, "the run and its controls all have the score 0.0000", None, None, movement, t)
    moved, why = movement.moved(t) if movement else (None, "path barrier not measured with these settings")
    reasons = [why, "counterfactual not run" if gain is None else _in_words("counterfactual gain", gain)]
    better = None  # It stays None without an interval, because one pair shows neither a gain nor its absence.
    if gain is not None and gain.low > -math.inf:
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
        reasons.append(_in_words("against the matched peak", over_peak))
        explained = stats.explains(over_peak.mean, over_peak.low, over_peak.high, t.practical)
        word = {True: LARGER_LR, False: ESCAPE, None: UNCLEAR}[explained]
    return Verdict(word, "; ".join(reasons), moved, better, movement, t)


def _in_words(name: str, c: Comparison) -> str:
    pairs = f"{c.n} pairs" if c.n > 1 else "one pair"
    interval = f"{c.low:+z.4f} to {c.high:+z.4f}, {pairs}" if c.low > -math.inf else f"{pairs}, no interval"
    return f"{name} {c.mean:+z.4f} ({interval})"


# -- The trial that is examined, and its control trials


def subject(trials: Sequence[Trial], number: int | None = None) -> Trial:
    """The trial to examine: trial ``number``; without a number the confirmed trial that the search ranked best among
    those with a restart.

    The scores of the confirmation do not choose it, because they are compared with the control runs afterwards, and a
    trial that was chosen for luck would seem to gain. If no confirmed trial has a restart, one that was not confirmed
    is taken, and if no trial of the sweep has a restart, one with a drop. ConfigError if there is none, or if
    ``number`` is not finished, not comparable, or a confirmation or control run.
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
    return [t for t in trials if t.stage in ("baseline", "search") and t.usable and t.original is None]


def _best_of_the_search(trials: Sequence[Trial]) -> Trial | None:
    """The trial to examine, as :func:`subject` chooses it; None if no trial of the sweep jumps."""
    design = Design.of(trials)
    planned = {name for name, _ in design.runs(trials)} if design else set()
    ranks = {number: -rank for rank, number in enumerate(design.candidates)} if design else {}
    for kind in ("restarts", "drops"):
        jumping = [trial for trial in _examinable(trials) if trial.facts.facts.get(kind)]
        if pool := [trial for trial in jumping if trial.name in planned] or jumping:
            return max(pool, key=lambda t: (ranks.get(t.number, -len(ranks)), t.score or 0.0, -t.number))
    return None


def seeds_of(trials: Sequence[Trial], trial: Trial) -> list[int]:
    """The seeds on which the trial was, or is being, confirmed, in their order; its own seed if these are fewer than
    two."""
    confirmed = [run.seed for run in _confirmed(trials, trial)]
    return list(dict.fromkeys(confirmed)) if len(confirmed) > 1 else [trial.seed]


def wanted_controls(trials: Sequence[Trial], trial: Trial, trace: Trace, seed: int) -> list[Wanted]:
    """The control runs for ``trial``, which has this ``trace``; [] without restarts. ``seed`` is the sweep's.

    A trial that was not confirmed is also wanted on a second seed, because the barrier between seeds is the scale.
    """
    seeds, spec = seeds_of(trials, trial), dict(trial.spec or {})
    wanted = [
        _wanted(trial, {"family": family, "of": spec, "restart": restart["restart"]}, run_seed, family, restart)
        for run_seed in seeds
        for restart in restarts(trace)
        for family in CONTROLS
    ]
    if wanted and len(seeds) == 1:
        wanted.append(_wanted(trial, spec, fresh_seeds(seed, 1)[0], SEED, {}))
    return wanted


def wanted_barriers(trials: Sequence[Trial], trial: Trial, trace: Trace, seed: int, settings: Escape) -> list[Wanted]:
    """The trials that measure the landscape around each restart, to be added when the control runs have ended, because
    the run on another seed, whose state they need, may be one of those.

    The ``settings`` are part of a trial's identity, so that other settings measure again.
    """
    first, *others = seeds_of(trials, trial)
    other = others[0] if others else fresh_seeds(seed, 1)[0]
    measured = {"other": other, "settings": settings.cost()}
    spec = dict(trial.spec or {})
    return [_wanted(trial, spec, first, BARRIER, {**restart, **measured}) for restart in restarts(trace)]


def _wanted(trial: Trial, spec: dict[str, Any], seed: int, kind: str, details: Mapping[str, Any]) -> Wanted:
    """A control trial; ``details`` are further values of its :class:`Control`."""
    words = {"matched_peak": "matched peak", SEED: "another seed", BARRIER: "path barrier"}.get(kind, "no restart")
    name = f"{trial.name}: {words}" + (f" (epoch {details['epoch']})" if details else "")
    return Wanted("control", seed, schedule=spec, name=name, control={"trial": trial.number, "kind": kind, **details})


def controls_of(trials: Sequence[Trial], trial: Trial) -> list[tuple[Trial, Control]]:
    """The control trials of ``trial``, each with its :class:`Control`."""
    return [
        (run, control) for run in trials if (control := run.facts.control) is not None and control.trial == trial.number
    ]


# -- The verdicts


def verdicts(trials: Sequence[Trial], trial: Trial, settings: Escape) -> list[Examined]:
    """The verdicts on the jumps of ``trial``, by epoch: on every drop, and on every restart that has control runs.

    A landscape that was measured with other settings (``Escape.cost``) is ignored.
    """
    examined = [
        Examined("drop", jump["epoch"], jump["ratio"], verdict("drop", thresholds=settings))
        for jump in trial.facts.effects
        if jump["kind"] == "drop"
    ]
    controls = controls_of(trials, trial)
    if not controls:
        return examined  # This comes first, because a sweep asks for the verdicts on thousands of trials.
    confirmed = _confirmed(trials, trial)
    best, seeds = _best_of_the_search(trials), seeds_of(trials, trial)
    planned = {run.seed for run in trials if run.stage == "confirm" and run.name == trial.name}
    failed = len(planned - {run.seed for run in confirmed})
    for number in sorted({control.restart for _, control in controls if control.restart is not None}):
        runs = [(run, control) for run, control in controls if control.restart == number]
        gain, over_peak = (_compared([trial, *confirmed], runs, family, seeds) for family in CONTROLS)
        limits = []
        if gain is not None and failed:
            gain = Gain(gain.mean, n=gain.n)
            limits.append(
                f"the run itself failed on {failed} of {len(planned)} seeds, and on the others alone its gain would "
                "be flattered, so there is no interval"
            )
        if gain is not None and gain.low > -math.inf and best is not None and best.number != trial.number:
            limits.append(
                "the interval does not account for choosing this trial among several (the one that the search ranked "
                f"best is trial {best.number})"
            )
        measured = [
            run.facts.landscape for run, control in runs if run.facts.landscape and control.settings == settings.cost()
        ]
        landscape = Landscape(**measured[-1]) if measured else None
        scores = [run.score for run in (trial, *confirmed, *(run for run, _ in runs)) if run.score is not None]
        conclusion = verdict(
            "restart",
            movement=landscape.movement if landscape else None,
            gain=gain,
            over_peak=over_peak,
            thresholds=settings,
            learned=any(map(stats.learned, scores)) or not scores,
        )
        conclusion = replace(conclusion, reason="; ".join([conclusion.reason, *limits]))
        first = runs[0][1]
        examined.append(Examined("restart", first.epoch, first.ratio, conclusion, number, gain, over_peak, landscape))
    return sorted(examined, key=lambda jump: jump.epoch)


def _confirmed(trials: Sequence[Trial], trial: Trial) -> list[Trial]:
    """The confirmation runs of a trial's configuration that did not fail, unfinished ones included."""
    return [run for run in trials if run.stage == "confirm" and run.name == trial.name and run.confounder is None]


def _compared(
    runs: Sequence[Trial], controls: Sequence[tuple[Trial, Control]], kind: str, seeds: Sequence[int]
) -> Comparison | None:
    """The scores of ``runs`` minus those of their control runs of this kind on the same seeds; None without a pair."""
    control_scores = {
        run.seed: run.score for run, control in controls if control.kind == kind and run.state == "COMPLETE"
    }
    scores = {run.seed: run.score for run in runs}
    pairs = [
        (a, b) for seed in seeds if (a := scores.get(seed)) is not None and (b := control_scores.get(seed)) is not None
    ]
    if len(pairs) < 2:
        return Gain(pairs[0][0] - pairs[0][1]) if pairs else None
    return stats.paired(*zip(*pairs, strict=True))


def _plain(comparison: Comparison | None) -> dict[str, Any] | None:
    """For JSON; infinite ends of an interval become None."""
    if comparison is None:
        return None
    numbers = {name: getattr(comparison, name) for name in ("n", "mean", "low", "high")}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
