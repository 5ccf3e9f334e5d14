"""Sweeps whose scores are drawn instead of trained, to count how often the product names a winner or a gain.

Everything but the scores is the product's: the choice of the best of the search, the design and the slots of the
confirmation, the rule, the choice of the trial that is examined, its verdicts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from trials import trial

from sweeper import evidence
from sweeper.config import Escape, Sweep
from sweeper.schedules import CONTROLS
from sweeper.service import Place, Service
from sweeper.stats import Answer
from sweeper.study import Trial

Noise = Callable[[np.random.Generator, int], np.ndarray]

#: Scores of runs around their mean, in standard deviations (about one each).
NOISES: dict[str, Noise] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails": lambda rng, size: rng.standard_t(3, size) / 3**0.5,
    "two basins": lambda rng, size: rng.choice([-1.0, 1.0], size) + rng.normal(0, 0.05, size),
    "rare collapse": lambda rng, size: rng.normal(size=size) - 7 * (rng.random(size) < 0.1),
    "skewed": lambda rng, size: -rng.exponential(1.0, size),
}


@dataclass(frozen=True)
class Kind:
    """A kind of sweep. Configurations are equal but for ``effects`` (name -> difference in mAP).

    ``sd``: of one run over seeds; ``shared``: the share of its variance that all runs of a seed have in common;
    ``digits``: decimals that scores are rounded to (ties). ``failing``: the share of confirmation runs, those with the
    lowest scores, that fail, as a schedule's runs do where it diverges; ``baselines_fail``: those of baselines, too.
    """

    tried: int = 12
    best: int = 5
    seeds: int = 6
    baselines: int = 2
    noise: str = "normal"
    sd: float = 0.003
    shared: float = 0.0
    digits: int = 9
    failing: float = 0.0
    baselines_fail: bool = True
    effects: Mapping[str, float] = field(default_factory=dict)

    def service(self) -> Service:
        """A sweep file of this kind. Its study and its store are never opened."""
        written = {
            "name": "null", "data": "nowhere.yaml", "model": "yolo11n.yaml", "epochs": 10, "lr0": 0.02,
            "trials": self.tried, "search": {"family": "cawb", "steps": [5]},
            "baselines": [{"family": "cawb", "steps": [5 + number]} for number in range(self.baselines)],
            "confirm": {"best": self.best, "seeds": self.seeds},
        }  # fmt: skip
        return Service(Sweep.build(written), Place())


class NullSweep:
    """One sweep of a kind: ``rows`` are its trials, first those of the search, all finished."""

    def __init__(self, kind: Kind, service: Service, rng: np.random.Generator) -> None:
        self.kind, self.service, self.rng = kind, service, rng
        self.rows: list[Trial] = []
        self._noise: dict[int, float] = {}
        for name in service.baselines():
            self._add("baseline", 0, name=name)
        for _ in range(kind.tried):
            self._add("search", 0, facts={"restarts": 1})

    def confirm(self, looks: bool = True) -> Iterator[Answer]:
        """The confirmation, and the answer of someone who looks at it before each seed (``looks``) and at the end."""
        baselines = self.service.baselines()
        design = evidence.Design.begin(self.rows, list(baselines), self.service.sweep.confirm, 0)
        first = len(self.rows)
        for wanted in evidence.wanted_confirmation(self.rows, baselines, design):
            self._add(wanted.stage, wanted.seed, name=wanted.name, design=wanted.design)
        finished = self.rows
        step = len(design.baselines) + len(design.candidates)
        for end in range(first if looks else len(finished), len(finished) + 1, step):
            waiting = [replace(row, state="WAITING", score=None, reasons=()) for row in finished[end:]]
            self.rows = [*finished[:end], *waiting]
            yield self.service.answer(self.rows)

    def examine(self, row: Trial) -> Mapping[str, Any]:
        """The verdict on a trial with one restart that gains nothing over either of its controls."""
        at = {"trial": row.number, "restart": 1, "epoch": 5, "ratio": 2.0, "end": 10}
        for seed in evidence.seeds_of(self.rows, row):
            for family in CONTROLS:
                self._add("control", seed, name=family, control={**at, "kind": family})
        [examined] = evidence.verdicts(self.rows, row, Escape())
        return examined.to_dict()

    def _add(self, stage: str, seed: int, **attrs: Any) -> None:
        kind, number = self.kind, len(self.rows)
        draw = NOISES[kind.noise]
        if seed not in self._noise:
            self._noise[seed] = float(draw(self.rng, 1)[0])
        own = float(draw(self.rng, 1)[0])
        name = attrs.get("name", f"trial {number}")
        noise = kind.sd * (kind.shared**0.5 * self._noise[seed] + (1 - kind.shared) ** 0.5 * own)
        value: float | None = round(0.3 + noise + kind.effects.get(name, 0.0), kind.digits)
        may_fail = stage == "confirm" and (kind.baselines_fail or name.startswith("trial"))
        failed = kind.failing > 0 and may_fail and own < np.quantile(draw(self.rng, 200), kind.failing)
        attrs |= {"trace": f"trace {number}", "run_id": f"run {number}"}
        state, reasons = ("FAIL", ("the loss is nan",)) if failed else ("COMPLETE", ())
        value = None if failed else value
        self.rows.append(trial(number, stage, seed, value, state=state, reasons=reasons, **attrs))


def winners(kind: Kind, *, sweeps: int, seed: int, looks: bool = True) -> list[str | None]:
    """The name of each sweep's winner, if somebody who looks after every seed (``looks``) is ever told one."""
    service, rng = kind.service(), np.random.default_rng(seed)
    found = []
    for _ in range(sweeps):
        answers = list(NullSweep(kind, service, rng).confirm(looks))
        found.append(next((answer.winner.name for answer in answers if answer.winner), None))
    return found


def false_gains(kind: Kind, choose: Callable[[Sequence[Trial]], Trial], *, sweeps: int, seed: int) -> float:
    """The share of sweeps in which the restart of the trial that ``choose`` takes is said to gain, though none does."""
    service, rng = kind.service(), np.random.default_rng(seed)
    count = 0
    for _ in range(sweeps):
        sweep = NullSweep(kind, service, rng)
        list(sweep.confirm(looks=False))
        count += bool(sweep.examine(choose(sweep.rows))["better"])
    return count / sweeps
