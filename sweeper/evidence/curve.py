"""What a run's curve says about each jump of its learning rate: dip, recovery, gain, noise. No training needed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sweeper import names
from sweeper.errors import ConfigError
from sweeper.schedules import Jump

LAST = 3  # epochs averaged at the end of a cycle, and epochs in a row that make a recovery
LEVEL = 0.05  # of its own value; a curve that rises by more than this in LAST epochs has not levelled off


@dataclass(frozen=True)
class Effect:
    """One jump in one curve. All values in the curve's unit (mAP); ``epoch`` is the first one at the new LR.

    ``ratio``: LR after / before. ``before``: mean of the last 3 epochs before. ``dip``: before minus the minimum after
    (negative: it never fell below). ``recovery``: epochs until the first of 3 in a row that are back within noise, None
    if that did not happen in the ``watched`` epochs up to the next jump (censored, not "never"). ``gain``: mean of the
    last 3 epochs of the cycle minus the best *annealed* value before, the mean of the last 3 epochs of any earlier
    cycle; the best of all epochs would count lucky noise. A positive gain is given only where ordinary learning does
    not explain it: before the jump the curve had levelled off (it rose by at most 5 % of its value in 3 epochs), and
    the gain is more than its slope, continued over the watched epochs, would give. Else, and with fewer than 6 epochs
    in the cycle before the jump, it is None. ``noise``: sigma of one epoch's value, see
    :func:`curve_noise`.
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
    """One jump (an ``Effect.to_dict()``) and what the curve did after it, in a line.

    >>> effect_in_words({"epoch": 30, "kind": "restart", "ratio": 2.0, "dip": 0.021, "recovery": 4, "watched": 20,
    ...                  "gain": 0.012, "noise": 0.002})
    'restart x2 at epoch 30: dip 0.0210, back after 4 epochs, gain +0.0120 (an epoch varies by 0.0020)'
    """
    ratio = "from 0" if effect["ratio"] is None else f"x{effect['ratio']:.3g}"
    recovery = effect["recovery"]
    back = "back at once" if recovery == 0 else f"back after {recovery} epoch{'s' * (recovery != 1)}"
    if recovery is None:
        back = f"not back in {effect['watched']} epochs"
    dip = f"dip {effect['dip']:.4f}, {back}" if effect["dip"] > 2 * effect["noise"] else "no dip beyond the noise"
    gain = "no gain beyond what more epochs may give" if effect["gain"] is None else f"gain {effect['gain']:+z.4f}"
    noise = f"an epoch varies by {effect['noise']:.4f}"
    return f"{effect['kind']} {ratio} at epoch {effect['epoch']}: {dip}, {gain} ({noise})"


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


def effects(curve: ArrayLike, jumps: Sequence[Jump], *, within: float = 2.0) -> list[Effect]:
    """Measure every jump that the curve has reached; one value per epoch from epoch 0, shape (epochs,).

    ``within``: how many sigma of noise below ``before`` still count as recovered. Works for drops as for restarts. A
    cycle ends at the next jump of either kind. Jumps before any value or beyond the curve are left out; ConfigError
    for a curve with values that are not finite.

    >>> curve = [0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4]
    >>> [effect] = effects(curve, [Jump(step=60, epoch=6, ratio=7.0, kind="restart")])
    >>> round(effect.dip, 3), effect.recovery, round(effect.gain, 3)
    (0.2, 2, 0.1)
    """
    values = np.asarray(curve, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ConfigError(f"curve of shape {values.shape}: expected one finite value per epoch")
    noise = curve_noise(values)
    starts = sorted({jump.epoch for jump in jumps if 0 < jump.epoch < len(values)})
    if not starts:
        return []
    ends = [*starts[1:], len(values)]
    begins = [0, *starts[:-1]]
    annealed = [float(values[max(s - LAST, b) : s].mean()) for b, s in zip(begins, starts, strict=True)]
    measured = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        jump = max((j for j in jumps if j.epoch == start), key=lambda j: abs(np.log(j.ratio)))
        after = values[start:end]
        back = after >= annealed[i] - within * noise
        runs = [e for e in range(len(after) - LAST + 1) if back[e : e + LAST].all()]
        measured.append(
            Effect(
                epoch=start,
                kind=jump.kind,
                ratio=jump.ratio,
                before=annealed[i],
                dip=annealed[i] - float(after.min()),
                recovery=runs[0] if runs else None,
                watched=len(after),
                gain=_gain(values, begins[i], start, end, max(annealed[: i + 1]), within * noise),
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
