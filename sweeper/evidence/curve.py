"""What curves say about each jump of a learning rate: dip, recovery, gain, noise. No training needed.

A bad epoch of the trunk is a bad epoch of its branches too, so a branch is measured by its difference to the trunk's
curve on the same seeds. A schedule without a trunk has only its own curve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sweeper import names
from sweeper.errors import ConfigError
from sweeper.schedules import Jump
from sweeper.study import Trial

LAST = 3  # epochs averaged at the end of a cycle, and epochs in a row that make a recovery
LEVEL = 0.05  # of its own value; a curve that rises by more than this in LAST epochs has not levelled off


@dataclass(frozen=True)
class Effect:
    """One jump in one curve, or in its difference to another. All values in the curve's unit (mAP); ``epoch`` is the
    first one at the new LR.

    ``ratio``: LR after / before. ``before``: mean of the last 3 epochs before. ``dip``: before minus the minimum after
    (negative: it never fell below). ``recovery``: epochs until the first of 3 in a row that are back within noise, None
    if that did not happen in the ``watched`` epochs up to the next jump (censored, not "never"). ``gain``: mean of the
    last 3 epochs of the cycle minus the best *annealed* value before, the mean of the last 3 epochs of any earlier
    cycle; the best of all epochs would count lucky noise. A positive gain is given only where ordinary learning does
    not explain it: before the jump the curve had levelled off (it rose by at most 5 % of its value in 3 epochs), and
    the gain is more than its slope, continued over the watched epochs, would give. Else, and with fewer than 6 epochs
    in the cycle before the jump, it is None. ``noise``: sigma of one epoch's value, see :func:`curve_noise`.

    Of a difference to the trunk every value is one of the difference, ``noise`` is that after the first jump, and
    ``gain`` is what was gained since ``before``, whatever it is: the trunk shows what more epochs give.
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
        """For JSON; a ratio from a learning rate of 0, which is infinite, is None."""
        return asdict(self) | {"ratio": self.ratio if math.isfinite(self.ratio) else None}


def jump_metrics(effect: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one jump (an ``Effect.to_dict()``) under their names in MLflow; what is not known is left out.

    >>> jump_metrics({"ratio": None, "dip": 0.1, "recovery": None, "gain": 0.02, "noise": 0.0})
    {'jump/dip': 0.1, 'jump/gain': 0.02, 'jump/noise': 0.0}
    """
    return {
        f"{names.JUMP}{key}": effect[key]
        for key in ("ratio", "dip", "recovery", "gain", "noise")
        if effect[key] is not None
    }


def effect_in_words(effect: Mapping[str, Any]) -> str:
    """One jump (``Effect.to_dict()``, or one of :func:`jumps_of`) in a line.

    >>> effect = {"epoch": 30, "kind": "restart", "ratio": 2.0, "dip": 0.021, "recovery": 4, "watched": 20, "gain": None,
    ...           "noise": 0.002}
    >>> effect_in_words(effect)
    'restart x2 at epoch 30: dip 0.0210, back after 4 epochs, no gain beyond what more epochs may give (an epoch varies by 0.0020)'
    >>> effect_in_words({**effect, "gain": 0.01, "dip": 0.0, "over": "yolo_linear", "seeds": 8, "fresh": True})
    'restart x2 at epoch 30, by the difference to yolo_linear on 8 fresh seeds: no dip beyond the noise, gain +0.0100 (the difference varies by 0.0020 from epoch to epoch)'
    """  # noqa: E501  # what a line says is one line
    ratio = f" x{effect['ratio']:.3g}" if effect["ratio"] is not None and math.isfinite(effect["ratio"]) else " from 0"
    what, noise = f"{effect['kind']}{ratio} at epoch {effect['epoch']}", f"an epoch varies by {effect['noise']:.4f}"
    if over := effect.get("over"):
        seeds = f"{effect['seeds']} {'fresh' if effect['fresh'] else 'search'} seed{'s' * (effect['seeds'] > 1)}"
        what += f", by the difference to {over} on {seeds}"
        noise = f"the difference varies by {effect['noise']:.4f} from epoch to epoch"
    dip, recovery = f"dip {effect['dip']:.4f}", effect["recovery"]
    if effect["dip"] <= 2 * effect["noise"]:
        dip = "no dip beyond the noise"
    elif recovery is None:
        dip += f", not back in {effect['watched']} epochs"
    else:
        dip += f", back after {recovery} epoch{'s' * (recovery > 1)}" if recovery else ", back at once"
    gain = "no gain beyond what more epochs may give" if effect["gain"] is None else f"gain {effect['gain']:+z.4f}"
    return f"{what}: {dip}, {gain} ({noise})"


def curve_noise(curve: ArrayLike) -> float:
    """Sigma of one epoch's value: ``1.4826 * MAD(first differences) / sqrt(2)``; 0.0 below 3 values.

    The median removes a steady trend and does not see the few large differences that jumps make.

    >>> curve_noise([0.1, 0.2, 0.3, 0.4, 0.2, 0.3]) < 1e-9
    True
    """
    steps = np.diff(np.asarray(curve, dtype=np.float64))
    if len(steps) < 2:
        return 0.0
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / np.sqrt(2))


def effects(
    curve: ArrayLike, jumps: Sequence[Jump], *, within: float = 2.0, trunk: ArrayLike | None = None
) -> list[Effect]:
    """Measure every jump that the curve has reached; one value per epoch from epoch 0, shape (epochs,).

    ``within``: how many sigma of noise below ``before`` still count as recovered. ``trunk``: the curve that is
    subtracted, of the same shape. Works for drops as for restarts. A cycle ends at the next jump of either kind. Jumps
    before any value or beyond the curve are left out; ConfigError for a curve with values that are not finite.

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
    """The gain of the cycle from ``start`` to ``end`` over the best ``annealed`` value; None if learning on explains
    it. ``begin``: of the cycle before; ``noise``: how far a value may lie from the true one."""
    before, watched = values[:start], end - start
    gain = float(values[start:end][-LAST:].mean()) - annealed
    if gain <= 0:
        return gain
    if start - begin < 2 * LAST:
        return None
    level = float(before[-LAST:].mean())
    back = min(watched, start - LAST)  # epochs between the last ones and as many earlier ones
    long = (level - float(before[start - LAST - back : start - back].mean()) + noise * (2 / LAST) ** 0.5) / back
    recent = before[-max(2 * LAST, (start - begin) // 2) :]
    epochs = np.arange(len(recent)) - (len(recent) - 1) / 2
    short = float(epochs @ recent / (epochs @ epochs)) + noise / float(np.sqrt(epochs @ epochs))
    slope = min(short, long)  # learning slows down, so each is more than is to come
    learned = level > noise and LAST * short <= LEVEL * level
    return gain if learned and gain > slope * watched else None


# -- of the trials of a sweep


def trunk_runs(trials: Sequence[Trial], spec: Mapping[str, Any]) -> dict[int, Trial]:
    """The usable runs of the trunk that the schedule ``spec`` is a branch of, by seed; {} for one without a trunk."""
    trunk = spec.get("trunk")
    return {run.seed: run for run in trials if run.usable and run.spec == trunk and trunk is not None}


def jumps_of(trial: Trial, trials: Sequence[Trial], within: float = 2.0) -> list[dict[str, Any]]:
    """What the jumps of a finished trial's schedule did, ``Effect`` as dicts, as it was measured on the trial's curve.

    Of a branch it is measured by the mean difference to its trunk over the seeds of the confirmation on which both runs
    are usable, without such over those of the search. Its dicts also have ``over`` (the trunk's name), ``seeds`` (how
    many) and ``fresh`` (whether they are the confirmation's). [] while there is no such seed. Jumps that the trunk
    makes too are left out.
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
    ours, theirs = (np.mean([run.values for run in side], axis=0) for side in zip(*pairs, strict=True))
    shared = {effect["epoch"] for effect in pairs[0][1].facts.effects}
    jumps = [
        Jump(0, effect["epoch"], math.inf if effect["ratio"] is None else effect["ratio"], effect["kind"])
        for effect in trial.facts.effects
        if effect["epoch"] not in shared
    ]
    compared = {"over": pairs[0][1].name, "seeds": len(pairs), "fresh": bool(confirmed)}
    return [effect.to_dict() | compared for effect in effects(ours, jumps, within=within, trunk=theirs)]
