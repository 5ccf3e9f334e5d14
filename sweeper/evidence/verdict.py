"""From three measurements to one word, with the thresholds beside it."""

from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, Literal

from sweeper.config import Escape
from sweeper.stats import Paired, explains

State = Literal["yes", "no", "unclear"]

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
    low: float = -inf
    high: float = inf
    n: int = 1


Comparison = Paired | Gain


@dataclass(frozen=True)
class Movement:
    """Barriers in units of the loss. ``path``: along quenched snapshots. ``self_barrier``: between two quenches of one
    snapshot with other data orders, the noise. ``seeds``: between independent seeds, what "unrelated" means.
    ``disagreement`` and ``self_disagreement``: share of decisions that differ between before and after, and between the
    two quenches; None where not measured."""

    path: float
    self_barrier: float
    seeds: float
    disagreement: float | None = None
    self_disagreement: float = 0.0

    @property
    def beta(self) -> float | None:
        """Path barrier as a share of the barrier between seeds; None where seeds are not separated at all."""
        return self.path / self.seeds if self.seeds > 0 else None

    def state(self, thresholds: Escape) -> tuple[State, str]:
        """Has it moved, and why one says so."""
        beta = self.beta
        facts = f"path barrier {self.path:.3g}, self-barrier {self.self_barrier:.3g}"
        facts += f", beta {beta:.3g}" if beta is not None else ", no barrier between seeds"
        if self.disagreement is not None and self.disagreement <= self.self_disagreement:
            return "no", f"{facts}, but the same decisions: the same function in other weights"
        if self.path <= self.self_barrier or (beta is not None and beta < thresholds.same_beta):
            return "no", facts
        if beta is not None and beta >= thresholds.moved_beta and self.path >= thresholds.over_self * self.self_barrier:
            return "yes", facts
        return "unclear", facts


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

    A gain counts if its mean is beyond the region of practical equivalence and its interval above 0. The control beats
    the restart if the same holds the other way round; it does not if the interval excludes a relevant loss; in between
    the verdict is unclear.

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
    reasons = [why]
    better = None
    if gain is None:
        reasons.append("counterfactual not run")
    else:
        if gain.low > -inf:  # without an interval, as one pair, it tells neither
            better = gain.mean >= t.practical and gain.low > 0
        reasons.append(_says("counterfactual gain", gain))

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
        reasons.append(_says("against the matched peak", over_peak))
        explained = explains(over_peak.mean, over_peak.low, over_peak.high, t.practical)
        word = {True: LARGER_LR, False: ESCAPE, None: UNCLEAR}[explained]
    return Verdict(word, "; ".join(reasons), moved, better, movement, t)


def _says(what: str, c: Comparison) -> str:
    pairs = f"{c.n} pairs" if c.n > 1 else "one pair"
    interval = f"{c.low:+z.4f} to {c.high:+z.4f}, {pairs}" if c.low > -inf else f"{pairs}, no interval"
    return f"{what} {c.mean:+z.4f} ({interval})"
