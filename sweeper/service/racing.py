"""What a race over seeds has come to, what a sweep costs, and what its budget has been spent on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from sweeper import evidence, search, stats
from sweeper.config import Budget
from sweeper.errors import ConfigError
from sweeper.study import Trial, Wanted

if TYPE_CHECKING:
    from sweeper.service.service import Service

MANY = 100_000  # proposals that a budget buys at most


@dataclass(frozen=True)
class Race:
    """How a race over seeds stands.

    ``trunk``: the baseline that proposals are compared with (None: not known yet), ``sentence``: why it. It goes over
    ``seeds``, ``begin`` at first; of each group the best 1/``race`` go on, as ``rule`` says in words. ``standings``:
    best first. ``noise``: what the sweep's own pairs say of it, in a sentence.
    """

    trunk: str | None
    sentence: str
    seeds: Sequence[int]
    begin: int
    race: float
    rule: str
    standings: Sequence[stats.Standing]
    noise: str

    @property
    def raced(self) -> dict[int, int]:
        """How many proposals have finished on so many seeds, by the number of seeds."""
        counts = Counter(standing.n for standing in self.standings)
        return dict(sorted(counts.items()))

    @property
    def order(self) -> str:
        """By what the standings are ordered, in words (``search.shrunk``)."""
        return "ranked by that difference, which is drawn towards the median on the first seed where seeds are few"

    @property
    def notes(self) -> list[str]:
        """What the answer says of it beside the ranking: which trunk, by which rule, and how noisy branches are."""
        lines = [self.sentence]
        if self.standings and len(self.seeds) > 1:
            counts = ", ".join(f"{count} on {n}" for n, count in self.raced.items())
            lines.append(f"race: {self.rule}; proposals by seeds: {counts}; {self.order}")
        return lines if self.noise == stats.UNKNOWN else [*lines, self.noise]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "raced": self.raced, "standings": [vars(standing) for standing in self.standings]}


@dataclass(frozen=True)
class RacePlan:
    """How a race will go: what becomes the ``trunk`` and by which ``rule``, in sentences, on which ``seeds``, and what
    is known of the ``noise``."""

    trunk: str
    rule: str
    seeds: Sequence[int]
    noise: str


def race(service: Service, rows: Sequence[Trial]) -> Race | None:
    """How the race stands; None for a sweep without a trunk and with one search seed."""
    settings, agenda = service.sweep.search, service.agenda
    if settings.seeds == 1 and settings.trunk is None:
        return None
    reference = _reference(service, rows)
    return Race(
        trunk=reference,
        sentence=_trunk(service, rows, reference),
        seeds=agenda.seeds,
        begin=settings.begin,
        race=settings.race,
        rule=_rule(service),
        standings=evidence.standings(rows, reference) if reference is not None else [],
        noise=_noise(service, rows, reference),
    )


def race_plan(service: Service, rows: Sequence[Trial]) -> RacePlan | None:
    """The race as it will be, with the noise as known from ``rows``, the trials so far; None as for :func:`race`."""
    settings, agenda = service.sweep.search, service.agenda
    if settings.seeds == 1 and settings.trunk is None:
        return None
    if agenda.waits:
        names = list(service.baselines())
        role = "the trunk" if settings.trunk is not None else "what proposals are compared with"
        sentence = f"the best of {', '.join(names)} on {len(agenda.seeds)} search seeds becomes {role}"
        if settings.trunk is not None:
            sentence += f"; shown here as branches of {names[0]}"
    else:
        sentence = f"every proposal is a branch of {agenda.against}: the same training up to its first jump"
    noise = _noise(service, rows, _reference(service, rows) if rows else None)
    return RacePlan(sentence, _rule(service), agenda.seeds, noise)


def _noise(service: Service, rows: Sequence[Trial], reference: str | None) -> str:
    """What the sweep's own pairs say of the noise of runs and branches, or that nobody knows yet; in a sentence."""
    if reference is None:
        return stats.UNKNOWN
    return stats.branches(rows, reference, lambda trial: service.departure(trial.spec or {}, reference)).sentence


def _rule(service: Service) -> str:
    """How the race goes, in a sentence."""
    settings = service.sweep.search
    if settings.seeds == 1:
        return "each proposal is trained on one seed and compared with the trunk there"
    first = "the first search seed" if settings.begin == 1 else f"the first {settings.begin} search seeds"
    return (
        f"each proposal begins on {first}; of those that have finished n seeds the best 1/{settings.race:g}, by their "
        f"mean difference to the trunk on the same seeds, go on to 2n, up to {settings.seeds}"
        f"{', while the budget lasts' if service.sweep.budget is not None else ''}"
    )


def _reference(service: Service, rows: Sequence[Trial]) -> str | None:
    try:
        return service.agenda.reference(rows)
    except ConfigError:  # the worker that asks says it; who looks sees the failed baselines
        return None


def _trunk(service: Service, rows: Sequence[Trial], reference: str | None) -> str:
    """Which trunk, and why it."""
    agenda, settings = service.agenda, service.sweep.search
    role = "trunk" if settings.trunk is not None else "compared with"
    if not agenda.waits:
        return f"{role}: {reference}, as the sweep file says; proposals are branches of it"
    if reference is None:
        runs = [row for row in rows if row.stage == "baseline"]
        done = sum(not row.open for row in runs)
        return (
            f"{role}: the best baseline, not known yet: {done} of {len(runs)} runs of baselines on {len(agenda.seeds)} "
            "search seeds have ended, and proposals come after the last"
        )
    trunk = agenda.trunk(rows)
    return trunk.sentence.replace("trunk", role, 1) if trunk is not None else f"{role}: {reference}"


@dataclass(frozen=True)
class Cost:
    """What a sweep costs, in trained epochs, before anything is trained.

    ``baselines`` of the search and the ``confirmation``; ``branch``: an average proposal on one seed, of which it is
    trained on ``seeds_per_proposal``. ``budget`` as the sweep file says it, ``epochs``: the same in epochs,
    ``proposals``: how many it buys beside the baselines and the confirmation; None without a budget, and the last two
    also where an epoch was not timed yet.
    """

    budget: str | None
    baselines: float
    confirmation: float
    branch: float
    seeds_per_proposal: float
    epochs: float | None = None
    proposals: int | None = None

    @classmethod
    def of(cls, service: Service, draws: Sequence[Mapping[str, Any]], seconds: float | None) -> Cost:
        """``draws``: the specs of proposals as they may come; ``seconds``: of an epoch, None where none was timed."""
        sweep, epochs = service.sweep, service.sweep.epochs
        settings, confirm, budget = sweep.search, sweep.confirm, sweep.budget
        branch = fmean([epochs - service.shared(spec) for spec in draws]) if draws else float(epochs)
        cost = cls(
            budget=str(budget) if budget is not None else None,
            baselines=float(epochs * len(service.agenda.baselines())),
            confirmation=confirm.seeds * (epochs * len(service.baselines()) + confirm.best * branch),
            branch=branch,
            seeds_per_proposal=expected_seeds(settings.seeds, settings.race, settings.begin),
        )
        if budget is None or (budget.unit != "ep" and not seconds):
            return cost
        amount = budget.amount if budget.unit == "ep" or not seconds else budget.amount * 3600 / seconds
        left = max(amount - cost.baselines - cost.confirmation, 0.0)
        bought = int(left / (branch * cost.seeds_per_proposal)) if branch else MANY
        return replace(cost, epochs=amount, proposals=min(bought, MANY if sweep.trials is None else sweep.trials))

    def total(self, proposals: int) -> float:
        """Epochs of the search with so many proposals; with a budget those that it has, the confirmation included."""
        search = self.baselines + proposals * self.branch * self.seeds_per_proposal
        return search if self.epochs is None else min(search + self.confirmation, self.epochs)


@dataclass(frozen=True)
class Spending:
    """All amounts in the unit of ``budget``: trained epochs, or hours of one worker.

    ``spent``: trained so far, ``searched`` of it in baselines and search; ``promised``: what the trials that are open
    still need; ``kept``: the confirmation, kept back until it has begun; ``typical``: training an average proposal on
    one seed; ``seeds``: on how many seeds an average proposal is trained. A branch costs what it does not share with
    the baselines.
    """

    budget: Budget
    spent: float
    searched: float
    promised: float
    kept: float
    typical: float
    seeds: float
    baselines: float
    cost: Mapping[int, float]

    @classmethod
    def of(cls, service: Service, rows: Sequence[Trial]) -> Spending:
        """The spending of a sweep with these trials."""
        budget = service.sweep.budget
        assert budget is not None
        epochs, settings = service.sweep.epochs, service.sweep.search
        counted = [row for row in rows if row.stage in ("baseline", "search", "confirm")]
        seconds = [float(row.facts.epoch_seconds) for row in rows if row.facts.epoch_seconds]
        # before an epoch was timed nobody knows what an hour buys: nothing counts, and the work begins
        unit = 1.0 if budget.unit == "ep" else median(seconds) / 3600 if seconds else 0.0
        shares = {row.number: service.shared(row.spec) for row in counted if row.spec}
        branches = [epochs - shares[row.number] for row in evidence.proposals(rows) if row.number in shares]
        typical = fmean(branches) if branches else float(epochs)
        cost = {row.number: float(epochs - shares[row.number]) if row.number in shares else typical for row in counted}
        spent = searched = promised = 0.0
        for row in counted:
            trained = max(len(row.curve) - row.reused, 0)
            each = 1.0 if budget.unit == "ep" else float(row.facts.epoch_seconds or unit * 3600) / 3600
            spent += trained * each
            searched += trained * each if row.stage != "confirm" else 0.0
            if row.open:
                whole = float(epochs) if row.stage == "baseline" else cost[row.number]
                left = whole if not row.curve else min(float(epochs - len(row.curve)), whole)
                promised += unit * left
        return cls(
            budget,
            spent,
            searched,
            promised,
            kept=unit * _confirmation(service, rows, cost, typical),
            typical=unit * typical,
            seeds=expected_seeds(settings.seeds, settings.race, settings.begin),
            baselines=unit * epochs * len({(row.facts.name, row.seed) for row in rows if row.stage == "baseline"}),
            cost={number: unit * each for number, each in cost.items()},
        )

    @property
    def unit(self) -> str:
        """Of the amounts, in words."""
        return "epochs" if self.budget.unit == "ep" else "hours"

    @property
    def left(self) -> float:
        """What the search may still spend: without what is promised and the confirmation."""
        return self.budget.amount - self.spent - self.promised - self.kept

    @property
    def ending(self) -> str:
        """Why no further proposal is made, in a sentence."""
        words = self.words
        return (
            f"the search ended with its budget: it trained {words(self.searched)} of {words(self.budget.amount)} "
            f"{self.unit}, up to {words(self.kept)} were kept for the confirmation, and what was left "
            f"({words(self.left)}) does not pay for another proposal: about {words(self.typical * self.seeds)} "
            f"({words(self.typical)} on a seed, {self.seeds:.3g} seed{'s' * (self.seeds > 1)} on average)"
        )

    def words(self, amount: float) -> str:
        """An amount as it is shown, nothing below 0."""
        return f"{max(amount, 0.0):,.{0 if self.budget.unit == 'ep' else 2}f}"

    def affordable(self, replicates: Sequence[Wanted]) -> list[Wanted]:
        """As many of these replicates, in their order, as there is something left for."""
        left, affordable = self.left, []
        for replicate in replicates:
            left -= self.cost.get(replicate.replicate_of or 0, self.typical)
            if left < 0:
                break
            affordable.append(replicate)
        return affordable

    def another(self, made: int, *, idle: bool) -> bool:
        """Whether another proposal may be made, after ``made`` of them; ``idle``: there is nothing else to do.

        Room is kept for the replicates that those made already will ask for, until it turns out that they ask for none.
        """
        if self.left < self.typical * (self.seeds if self.seeds < 2 or idle else 1):
            return False
        planned = self.baselines + (made + 1) * self.typical * self.seeds
        return idle or planned <= self.budget.amount - self.kept

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "budget": str(self.budget),
            "unit": self.unit,
            "amount": self.budget.amount,
            "spent": self.spent,
            "spent_on_search": self.searched,
            "spent_on_confirmation": self.spent - self.searched,
            "promised": self.promised,
            "kept": self.kept,
            "left": self.budget.amount - self.spent,
            "left_for_search": max(self.left, 0.0),
        }


def expected_seeds(seeds: int, race: float, begin: int) -> float:
    """On how many seeds an average proposal is trained.

    >>> expected_seeds(8, 2, 1), expected_seeds(1, 2, 1), expected_seeds(16, 2, 4)
    (2.5, 1.0, 8.0)
    """
    steps, share = search.rungs(seeds, begin), 1.0
    total = float(steps[0])
    for now, further in pairwise(steps):
        share /= race
        total += share * (further - now)
    return total


def _confirmation(service: Service, rows: Sequence[Trial], cost: Mapping[int, float], typical: float) -> float:
    """Trained epochs of the announced confirmation; 0 once it has begun: its trials then count themselves."""
    if any(row.stage == "confirm" for row in rows):
        return 0.0
    best, leaders = service.sweep.confirm.best, service.leaders(rows)
    branches = [cost.get(number, typical) for number in leaders[:best]]
    branches += [typical] * (best - len(branches))
    trunks = service.sweep.epochs * len(service.baselines())
    return service.sweep.confirm.seeds * (trunks + sum(branches))
