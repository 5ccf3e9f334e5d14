"""Measures of each jump of the learning rate, from curves alone: dip, recovery, gain, noise.

A branch is measured by its difference to the trunk's curve on the same seeds, because a bad epoch of the trunk is a bad
epoch of its branches, too. A schedule without a trunk is measured by its own curve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sweeper import names
from sweeper.errors import ConfigError
from sweeper.schedules import Jump, Trace
from sweeper.study import Trial

LAST = 3  # So many epochs are averaged at the end of a cycle, and so many in a row make a recovery.
LEVEL = 0.05  # A curve that rises by more than this share of its value in LAST epochs has not levelled off.


@dataclass(frozen=True)
class Effect:
    """The measures of one jump, in one curve or in the difference of two. Values are in the curve's unit (mAP).

    ``epoch``: the first epoch at the new learning rate. ``ratio``: the learning rate after / before. ``before``: the
    mean of the last 3 epochs before the jump. ``dip``: ``before`` minus the minimum after it (negative: the curve never
    fell below). ``recovery``: the epochs until the first of 3 in a row that are back within noise; None if that did not
    happen in the ``watched`` epochs up to the next jump. ``gain``: the mean of the last 3 epochs of the cycle minus the
    best annealed value before the jump, which is the highest mean of the last 3 epochs of an earlier cycle (the best
    single epoch would count lucky noise). ``noise``: the standard deviation of one epoch's value, see
    :func:`curve_noise`.

    A positive gain counts only where ordinary learning does not explain it: the curve had levelled off before the jump
    (it rose by at most 5 % of its value in 3 epochs), and the gain is more than its slope would give if it continued
    over the watched epochs. Otherwise, and with fewer than 6 epochs in the cycle before the jump, ``gain`` is None.

    In a difference to the trunk, ``noise`` is measured after the first jump, and ``gain`` is the gain since ``before``
    without that condition, because the trunk shows what more epochs give.
    """

    epoch: int
    kind: str
    ratio: float
    before: float
    dip: float
    recovery: int | None
    watched: int
    gain: float | None
    noise: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the infinite ratio of a jump from a learning rate of 0 becomes None."""
        return asdict(self) | {"ratio": self.ratio if math.isfinite(self.ratio) else None}


def jump_metrics(effect: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one jump (an ``Effect.to_dict()``) under their names in MLflow, without those that are None.

    >>> jump_metrics({"ratio": None, "dip": 0.1, "recovery": None, "gain": 0.02, "noise": 0.0})
    {'jump/dip': 0.1, 'jump/gain': 0.02, 'jump/noise': 0.0}
    """
    return {
        f"{names.JUMP}{key}": effect[key]
        for key in ("ratio", "dip", "recovery", "gain", "noise")
        if effect[key] is not None
    }


def effect_in_words(effect: Mapping[str, Any]) -> str:
    """One jump (an ``Effect.to_dict()``, or an element of :func:`jumps_of`) in a line of text.

    >>> effect = {"epoch": 30, "kind": "restart", "ratio": 2.0, "dip": 0.021, "recovery": 4, "watched": 20, "gain": None,
    ...           "noise": 0.002}
    >>> effect_in_words(effect)
    'restart x2 at epoch 30: dip 0.0210, back after 4 epochs, no gain beyond what more epochs may give (an epoch varies by 0.0020)'
    >>> effect_in_words({**effect, "gain": 0.01, "dip": 0.0, "over": "yolo_linear", "seeds": 8, "fresh": True})
    'restart x2 at epoch 30, by the difference to yolo_linear on 8 fresh seeds: no dip beyond the noise, gain +0.0100 (the difference varies by 0.0020 from epoch to epoch)'
    """  # noqa: E501  # The text is one line.
    ratio = f" x{effect['ratio']:.3g}" if effect["ratio"] is not None and math.isfinite(effect["ratio"]) else " from 0"
    jump, noise = f"{effect['kind']}{ratio} at epoch {effect['epoch']}", f"an epoch varies by {effect['noise']:.4f}"
    if over := effect.get("over"):
        seeds = f"{effect['seeds']} {'fresh' if effect['fresh'] else 'search'} seed{'s' * (effect['seeds'] > 1)}"
        jump += f", by the difference to {over} on {seeds}"
        noise = f"the difference varies by {effect['noise']:.4f} from epoch to epoch"
    dip, recovery = f"dip {effect['dip']:.4f}", effect["recovery"]
    if effect["dip"] <= 2 * effect["noise"]:
        dip = "no dip beyond the noise"
    elif recovery is None:
        dip += f", not back in {effect['watched']} epochs"
    else:
        dip += f", back after {recovery} epoch{'s' * (recovery > 1)}" if recovery else ", back at once"
    gain = "no gain beyond what more epochs may give" if effect["gain"] is None else f"gain {effect['gain']:+z.4f}"
    return f"{jump}: {dip}, {gain} ({noise})"


def curve_noise(curve: ArrayLike) -> float:
    """The standard deviation of one epoch's value: ``1.4826 * MAD(first differences) / sqrt(2)``; 0.0 below 3 values.

    The median absolute deviation removes a steady trend and ignores the few large differences that jumps make.

    >>> curve_noise([0.1, 0.2, 0.3, 0.4, 0.2, 0.3]) < 1e-9
    True
    """
    steps = np.diff(np.asarray(curve, dtype=np.float64))
    if len(steps) < 2:
        return 0.0
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / np.sqrt(2))


def restarts(trace: Trace) -> list[dict[str, Any]]:
    """The restarts of a run, each with the keys ``restart``, ``epoch``, ``ratio`` and ``end`` of :class:`Control`.

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


def effects(
    curve: ArrayLike, jumps: Sequence[Jump], *, within: float = 2.0, trunk: ArrayLike | None = None
) -> list[Effect]:
    """Measure every jump, restart or drop, that the curve has reached.

    ``curve``: one value per epoch from epoch 0, shape (epochs,). ``within``: a curve at most so many standard
    deviations of noise below ``before`` counts as recovered. ``trunk``: a curve of the same shape, which is subtracted.
    A cycle ends at the next jump of either kind. Jumps in epoch 0 or beyond the curve are left out. ConfigError for a
    curve with values that are not finite.

    >>> curve = [0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4]
    >>> [effect] = effects(curve, [Jump(step=60, epoch=6, ratio=7.0, kind="restart")])
    >>> round(effect.dip, 3), effect.recovery, round(effect.gain, 3)
    (0.2, 2, 0.1)
    """
    values = np.asarray(curve, dtype=np.float64)
    if trunk is not None:
        values = values - np.asarray(trunk, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ConfigError(f"curve of shape {values.shape}: expected one finite value per epoch")
    starts = sorted({jump.epoch for jump in jumps if 0 < jump.epoch < len(values)})
    if not starts:
        return []
    noise = curve_noise(values if trunk is None else values[starts[0] :])
    ends = [*starts[1:], len(values)]
    begins = [0, *starts[:-1]]
    annealed = [float(values[max(s - LAST, b) : s].mean()) for b, s in zip(begins, starts, strict=True)]
    measured = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        jump = max((j for j in jumps if j.epoch == start), key=lambda j: abs(np.log(j.ratio)))
        after = values[start:end]
        back = after >= annealed[i] - within * noise
        runs = [e for e in range(len(after) - LAST + 1) if back[e : e + LAST].all()]
        if trunk is None:
            gain = _gain(values, begins[i], start, end, max(annealed[: i + 1]), within * noise)
        else:
            gain = float(after[-LAST:].mean()) - annealed[i]
        measured.append(
            Effect(
                epoch=start,
                kind=jump.kind,
                ratio=jump.ratio,
                before=annealed[i],
                dip=annealed[i] - float(after.min()),
                recovery=runs[0] if runs else None,
                watched=len(after),
                gain=gain,
                noise=noise,
            )
        )
    return measured


def _gain(values: np.ndarray, begin: int, start: int, end: int, annealed: float, noise: float) -> float | None:
    """The gain of the cycle of epochs ``start`` to ``end`` over the best ``annealed`` value; None where ordinary
    learning explains it. ``begin``: the first epoch of the cycle before; ``noise``: the tolerance of a value."""
    before, watched = values[:start], end - start
    gain = float(values[start:end][-LAST:].mean()) - annealed
    if gain <= 0:
        return gain
    if start - begin < 2 * LAST:
        return None
    level = float(before[-LAST:].mean())
    # Two upper bounds of the slope, each with its noise added: over a long window of ``back`` epochs, and a line fitted
    # to the recent epochs. The smaller one counts, because learning slows down, so that both exceed what is to come.
    back = min(watched, start - LAST)
    long = (level - float(before[start - LAST - back : start - back].mean()) + noise * (2 / LAST) ** 0.5) / back
    recent = before[-max(2 * LAST, (start - begin) // 2) :]
    epochs = np.arange(len(recent)) - (len(recent) - 1) / 2
    short = float(epochs @ recent / (epochs @ epochs)) + noise / float(np.sqrt(epochs @ epochs))
    slope = min(short, long)
    levelled_off = level > noise and LAST * short <= LEVEL * level
    return gain if levelled_off and gain > slope * watched else None


# -- Measures over the trials of a sweep


def trunk_runs(trials: Sequence[Trial], spec: Mapping[str, Any]) -> dict[int, Trial]:
    """The usable runs of the trunk of the schedule ``spec``, by seed; {} for a schedule without a trunk."""
    trunk = spec.get("trunk")
    return {run.seed: run for run in trials if run.usable and run.spec == trunk and trunk is not None}


def jumps_of(trial: Trial, trials: Sequence[Trial], within: float = 2.0) -> list[dict[str, Any]]:
    """The measures of the jumps of a finished trial's schedule, each an ``Effect.to_dict()``.

    Without a trunk they are those of the trial's own curve. With a trunk they are measured on the mean difference to it
    over the confirmation's seeds on which both runs are usable, or over such seeds of the search where the confirmation
    has none; [] without any such seed. These dicts also have ``over`` (the trunk's name), ``seeds`` (how many) and
    ``fresh`` (whether the seeds are the confirmation's), and jumps that the trunk makes, too, are left out.
    """
    spec = trial.spec or {}
    if spec.get("trunk") is None:
        return [dict(effect) for effect in trial.facts.effects]
    trunk = trunk_runs(trials, spec)
    runs = [run for run in trials if run.name == trial.name and run.usable and run.seed in trunk]
    confirmed = [run for run in runs if run.stage == "confirm"]
    pairs = [(run, trunk[run.seed]) for run in confirmed or runs]
    if not pairs:
        return []
    branch_mean, trunk_mean = (np.mean([run.values for run in side], axis=0) for side in zip(*pairs, strict=True))
    shared = {effect["epoch"] for effect in pairs[0][1].facts.effects}
    jumps = [
        Jump(0, effect["epoch"], math.inf if effect["ratio"] is None else effect["ratio"], effect["kind"])
        for effect in trial.facts.effects
        if effect["epoch"] not in shared
    ]
    comparison = {"over": pairs[0][1].name, "seeds": len(pairs), "fresh": bool(confirmed)}
    return [effect.to_dict() | comparison for effect in effects(branch_mean, jumps, within=within, trunk=trunk_mean)]
