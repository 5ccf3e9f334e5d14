"""The state of a race over seeds, the planned cost of a sweep, and the spending of its budget."""

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

MAX_PROPOSALS = 100_000  # A budget buys at most so many proposals, because a proposal may cost no epoch at all.


@dataclass(frozen=True)
class Race:
    """The state of a race over seeds.

    ``trunk`` is the baseline that proposals are compared with (None: not known yet), ``sentence`` the reason. Each
    proposal begins on ``begin`` of the search ``seeds``, and the best 1/``race`` of them go on to twice as many;
    ``rule`` says so for the user. ``standings``: the proposals, best first. ``noise``: a sentence with the standard
    deviations that were estimated from the sweep's own pairs.
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
        """Number of seeds -> how many proposals have finished on so many."""
        counts = Counter(standing.n for standing in self.standings)
        return dict(sorted(counts.items()))

    @property
    def order(self) -> str:
        """How the standings are ordered, for the user; see ``search.shrunken_means``."""
        return "ranked by that difference less the effect of each seed; few seeds draw it towards the median"

    @property
    def notes(self) -> list[str]:
        """Sentences for the answer: the trunk, the rule of the race, and the noise of branches."""
        sentences = [self.sentence]
        if self.standings and len(self.seeds) > 1:
            counts = ", ".join(f"{count} on {n}" for n, count in self.raced.items())
            sentences.append(f"race: {self.rule}; proposals by seeds: {counts}; {self.order}")
        return sentences if self.noise == stats.UNKNOWN else [*sentences, self.noise]

    def to_dict(self) -> dict[str, Any]:
        """The race under the keys of ``status --json``."""
        return {**vars(self), "raced": self.raced, "standings": [vars(standing) for standing in self.standings]}


@dataclass(frozen=True)
class RacePlan:
    """The race as planned. ``trunk``, ``rule`` and ``noise`` are sentences: which baseline is the trunk, by which rule
    proposals go on to more seeds, and how far scores vary over seeds. ``seeds`` are the search seeds."""

    trunk: str
    rule: str
    seeds: Sequence[int]
    noise: str


def race(service: Service, trials: Sequence[Trial]) -> Race | None:
    """The state of the race; None for a sweep without a trunk and with one search seed, which has no race."""
    settings, agenda = service.sweep.search, service.agenda
    if settings.seeds == 1 and settings.trunk is None:
        return None
    reference = _reference(service, trials)
    return Race(
        trunk=reference,
        sentence=_trunk(service, trials, reference),
        seeds=agenda.seeds,
        begin=settings.begin,
        race=settings.race,
        rule=_rule(service),
        standings=evidence.standings(trials, reference) if reference is not None else [],
        noise=_noise(service, trials, reference),
    )


def race_plan(service: Service, trials: Sequence[Trial]) -> RacePlan | None:
    """The race as planned, with the noise of ``trials``, those that exist so far; None for a sweep without a race."""
    settings, agenda = service.sweep.search, service.agenda
    if settings.seeds == 1 and settings.trunk is None:
        return None
    if agenda.awaits_baselines:
        names = list(service.baselines())
        role = "the trunk" if settings.trunk is not None else "what proposals are compared with"
        sentence = f"the best of {', '.join(names)} on {len(agenda.seeds)} search seeds becomes {role}"
        if settings.trunk is not None:
            sentence += f"; shown here as branches of {names[0]}"
    else:
        sentence = f"every proposal is a branch of {agenda.known_reference}: the same training up to its first jump"
    noise = _noise(service, trials, _reference(service, trials) if trials else None)
    return RacePlan(sentence, _rule(service), agenda.seeds, noise)


def _noise(service: Service, trials: Sequence[Trial], reference: str | None) -> str:
    """A sentence: how far runs and branches vary over seeds in this sweep, or that this is not known yet."""
    if reference is None:
        return stats.UNKNOWN
    return stats.branches(trials, reference, lambda trial: service.departure(trial.spec or {}, reference)).sentence


def _rule(service: Service) -> str:
    """The rule of the race, in a sentence."""
    settings = service.sweep.search
    if settings.seeds == 1:
        return "each proposal is trained on one seed and compared with the trunk there"
    first = "the first search seed" if settings.begin == 1 else f"the first {settings.begin} search seeds"
    return (
        f"each proposal begins on {first}; of those that have finished n seeds the best 1/{settings.race:g}, by their "
        f"mean difference to the trunk on the same seeds, go on to 2n, up to {settings.seeds}"
        f"{', while the budget lasts' if service.sweep.budget is not None else ''}"
    )


def _reference(service: Service, trials: Sequence[Trial]) -> str | None:
    """The baseline that proposals are compared with; None if it is not known yet, or never will be."""
    try:
        return service.agenda.reference(trials)
    except ConfigError:  # `status` shows the failed baselines anyway, and `Agenda.phase` gives this message
        return None


def _trunk(service: Service, trials: Sequence[Trial], reference: str | None) -> str:
    """A sentence: which baseline is the trunk, and why."""
    agenda, settings = service.agenda, service.sweep.search
    role = "trunk" if settings.trunk is not None else "compared with"
    if not agenda.awaits_baselines:
        return f"{role}: {reference}, as the sweep file says; proposals are branches of it"
    if reference is None:
        runs = [trial for trial in trials if trial.stage == "baseline"]
        ended = sum(not run.open for run in runs)
        return (
            f"{role}: the best baseline, not known yet: {ended} of {len(runs)} runs of baselines on "
            f"{len(agenda.seeds)} search seeds have ended, and proposals come after the last"
        )
    trunk = agenda.trunk(trials)
    return trunk.sentence.replace("trunk", role, 1) if trunk is not None else f"{role}: {reference}"


@dataclass(frozen=True)
class Cost:
    """The planned cost of a sweep, in trained epochs.

    ``baselines`` are those of the search. ``branch`` is the cost of an average proposal on one seed; on average it is
    trained on ``seeds_per_proposal`` seeds. ``budget`` is the text in the sweep file, ``epochs`` the same in epochs,
    and ``proposals`` how many proposals it pays for beside the baselines and the confirmation. The three are None
    without a budget; the last two also for a budget in hours before any epoch was timed.
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
        """``draws``: specs of randomly drawn proposals; ``seconds``: duration of an epoch (None: not timed yet)."""
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
        bought = int(left / (branch * cost.seeds_per_proposal)) if branch else MAX_PROPOSALS
        limit = MAX_PROPOSALS if sweep.trials is None else sweep.trials
        return replace(cost, epochs=amount, proposals=min(bought, limit))

    def total(self, proposals: int) -> float:
        """Epochs of the search with so many proposals; with a budget also of the confirmation, at most the budget."""
        search = self.baselines + proposals * self.branch * self.seeds_per_proposal
        return search if self.epochs is None else min(search + self.confirmation, self.epochs)


@dataclass(frozen=True)
class Spending:
    """The spending of a sweep's budget. All amounts are in the unit of ``budget``: trained epochs, or worker hours.

    ``spent`` is the training so far, ``spent_on_search`` the part of baselines and search. ``promised`` is what the
    open trials still need. ``kept`` is the cost of the confirmation, reserved until it begins. ``typical`` is the cost
    of an average proposal on one seed, and ``seeds`` on how many seeds such a proposal is trained. ``baselines`` is the
    cost of all baselines; ``costs`` is trial number -> cost. A branch costs only the epochs that no baseline trains.
    """

    budget: Budget
    spent: float
    spent_on_search: float
    promised: float
    kept: float
    typical: float
    seeds: float
    baselines: float
    costs: Mapping[int, float]

    @classmethod
    def of(cls, service: Service, trials: Sequence[Trial]) -> Spending:
        """The spending of a sweep with a budget that has these trials."""
        budget = service.sweep.budget
        assert budget is not None
        epochs, settings = service.sweep.epochs, service.sweep.search
        counted = [trial for trial in trials if trial.stage in ("baseline", "search", "confirm")]
        seconds = [float(trial.facts.epoch_seconds) for trial in trials if trial.facts.epoch_seconds]
        # Until an epoch was timed, the cost in hours is not known. It counts as 0, so that the workers can begin.
        unit = 1.0 if budget.unit == "ep" else median(seconds) / 3600 if seconds else 0.0
        own = {trial.number: float(epochs - service.shared(trial.spec)) for trial in counted if trial.spec}
        branches = [own[proposal.number] for proposal in evidence.proposals(trials) if proposal.number in own]
        typical = fmean(branches) if branches else float(epochs)
        costs = {trial.number: own.get(trial.number, typical) for trial in counted}
        spent = spent_on_search = promised = 0.0
        for trial in counted:
            trained = max(len(trial.curve) - trial.reused, 0)
            per_epoch = 1.0 if budget.unit == "ep" else float(trial.facts.epoch_seconds or unit * 3600) / 3600
            spent += trained * per_epoch
            spent_on_search += trained * per_epoch if trial.stage != "confirm" else 0.0
            if trial.open:
                full_cost = float(epochs) if trial.stage == "baseline" else costs[trial.number]
                left = full_cost if not trial.curve else min(float(epochs - len(trial.curve)), full_cost)
                promised += unit * left
        runs = {(trial.facts.name, trial.seed) for trial in trials if trial.stage == "baseline"}
        return cls(
            budget,
            spent,
            spent_on_search,
            promised,
            kept=unit * _confirmation(service, trials, costs, typical),
            typical=unit * typical,
            seeds=expected_seeds(settings.seeds, settings.race, settings.begin),
            baselines=unit * epochs * len(runs),
            costs={number: unit * cost for number, cost in costs.items()},
        )

    @property
    def unit(self) -> str:
        """The unit of the amounts: "epochs" or "hours"."""
        return "epochs" if self.budget.unit == "ep" else "hours"

    @property
    def left(self) -> float:
        """The amount that the search may still spend: neither spent, nor promised, nor kept for the confirmation."""
        return self.budget.amount - self.spent - self.promised - self.kept

    @property
    def ending(self) -> str:
        """Why no further proposal is made, in a sentence."""
        shown = self.shown
        return (
            f"the search ended with its budget: it trained {shown(self.spent_on_search)} of "
            f"{shown(self.budget.amount)} {self.unit}, up to {shown(self.kept)} were kept for the confirmation, and "
            f"what was left ({shown(self.left)}) does not pay for another proposal: about "
            f"{shown(self.typical * self.seeds)} ({shown(self.typical)} on a seed, {self.seeds:.3g} "
            f"seed{'s' * (self.seeds > 1)} on average)"
        )

    def shown(self, amount: float) -> str:
        """An amount as text, without its unit; a negative one is shown as 0."""
        return f"{max(amount, 0.0):,.{0 if self.budget.unit == 'ep' else 2}f}"

    def affordable(self, replicates: Sequence[Wanted]) -> list[Wanted]:
        """The first of these replicates, as many as the rest of the budget pays for."""
        left, affordable = self.left, []
        for replicate in replicates:
            left -= self.costs.get(replicate.replicate_of or 0, self.typical)
            if left < 0:
                break
            affordable.append(replicate)
        return affordable

    def pays_for_another(self, count: int, *, idle: bool) -> bool:
        """Whether the budget pays for another proposal, when there are ``count`` of them.

        Unless ``idle`` (no trial of the search is open, and no replicate is affordable), the budget also has to pay for
        the replicates that the race may still promote of the proposals so far.
        """
        if self.left < self.typical * (self.seeds if self.seeds < 2 or idle else 1):
            return False
        planned = self.baselines + (count + 1) * self.typical * self.seeds
        return idle or planned <= self.budget.amount - self.kept

    def to_dict(self) -> dict[str, Any]:
        """The spending under the keys of ``status --json``."""
        return {
            "budget": str(self.budget),
            "unit": self.unit,
            "amount": self.budget.amount,
            "spent": self.spent,
            "spent_on_search": self.spent_on_search,
            "spent_on_confirmation": self.spent - self.spent_on_search,
            "promised": self.promised,
            "kept": self.kept,
            "left": self.budget.amount - self.spent,
            "left_for_search": max(self.left, 0.0),
        }


def expected_seeds(seeds: int, race: float, begin: int) -> float:
    """On how many seeds an average proposal of a race is trained.

    >>> expected_seeds(8, 2, 1), expected_seeds(1, 2, 1), expected_seeds(16, 2, 4)
    (2.5, 1.0, 8.0)
    """
    rungs, share = search.rungs(seeds, begin), 1.0
    total = float(rungs[0])
    for rung, next_rung in pairwise(rungs):
        share /= race
        total += share * (next_rung - rung)
    return total


def _confirmation(service: Service, trials: Sequence[Trial], costs: Mapping[int, float], typical: float) -> float:
    """Epochs that the confirmation will train; 0 once it has begun, because then its open trials are ``promised``."""
    if any(trial.stage == "confirm" for trial in trials):
        return 0.0
    best, leaders = service.sweep.confirm.best, service.leaders(trials)
    branches = [costs.get(number, typical) for number in leaders[:best]]
    branches += [typical] * (best - len(branches))
    trunks = service.sweep.epochs * len(service.baselines())
    return service.sweep.confirm.seeds * (trunks + sum(branches))
