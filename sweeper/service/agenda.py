"""The agenda of a sweep: which trials its study should contain by now, which come later, and the answer from them.

The agenda is a pure function of the trials as they are now, so any number of workers can query it at any time;
``Study.add`` creates the trials that are missing. The order is: baselines on the search seeds; proposals, together with
the replicates that the race promotes; with a budget, the confirmation. With ``trunk: best`` no proposal is made before
all baselines have finished, because every proposal is a branch of the best one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sweeper import evidence, search, stats
from sweeper.config import BEST, Sweep
from sweeper.errors import ConfigError
from sweeper.service.racing import Spending, race
from sweeper.stats import Answer, choose
from sweeper.study import Trial, Wanted

if TYPE_CHECKING:
    from sweeper.service.service import Service


TRUNK_NOTE = "trunk"  # The study stores the chosen trunk under this key, so that every worker uses the same trunk.
MAX_REPEATS = 3  # So many known schedules in a row end a search with a budget: they cost nothing, so it would not end.


class Agenda:
    """The agenda of one sweep."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sweep: Sweep = service.sweep
        self.seeds = search.search_seeds(self._sweep.recipe.seed, self._sweep.search.seeds)
        self.chosen_trunk: str | None = None  #: name of the best baseline; once set, it never changes

    @property
    def adds_trials(self) -> bool:
        """Whether the agenda adds trials while workers train; else the launch has created all of them."""
        settings = self._sweep.search
        return settings.seeds > 1 or settings.trunk == BEST or self._sweep.budget is not None

    @property
    def awaits_baselines(self) -> bool:
        """Whether the search cannot begin before the baselines have finished on all search seeds."""
        settings = self._sweep.search
        return settings.trunk == BEST or (settings.trunk is None and settings.seeds > 1)

    @property
    def known_reference(self) -> str | None:
        """The result of the latest :meth:`reference`, without reading trials."""
        return self.chosen_trunk if self.awaits_baselines else self._sweep.trunk_name()

    def now(self) -> list[Wanted]:
        """The trials that should exist by now, read from the study. Raises ConfigError if the search cannot begin."""
        study = self._service.study
        note = study.notes.get(TRUNK_NOTE) if self.awaits_baselines and self.chosen_trunk is None else None
        self.chosen_trunk = note["name"] if note else self.chosen_trunk
        previous, trials = self.chosen_trunk, study.trials()
        wanted = self.wanted(trials)
        if self._sweep.budget is not None and self._search_ended(trials, wanted):
            wanted += confirmation(self._service, trials)
        # Every worker makes the same choice, because it follows from runs that are finished.
        if self.chosen_trunk is not None and previous is None and not self._service.looking:
            study.note(TRUNK_NOTE, {"name": self.chosen_trunk})
        return wanted

    def wanted(self, trials: Sequence[Trial]) -> list[Wanted]:
        """The trials of baselines and search that should exist when ``trials`` are those of the study."""
        wanted = self.baselines()
        if self.awaits_baselines and self.reference(trials) is None:
            return wanted
        if self._sweep.budget is not None and any(trial.stage == "confirm" for trial in trials):
            return wanted  # The search has ended: the confirmation was chosen from its trials.
        replicates = self.race(trials)
        if self._sweep.budget is None:
            return wanted + replicates + self.proposals(self._sweep.trials or 0)
        spending = Spending.of(self._service, trials)
        existing = {(trial.original, trial.seed) for trial in trials}
        missing = [replicate for replicate in replicates if (replicate.replicate_of, replicate.seed) not in existing]
        affordable = spending.affordable(missing)
        idle = not affordable and not any(trial.open and trial.stage == "search" for trial in trials)
        count = len(self._proposed(trials)) + self._proposes_another(trials, spending, idle=idle)
        return wanted + affordable + self.proposals(count)

    def reference(self, trials: Sequence[Trial]) -> str | None:
        """The baseline that proposals are compared with on the same seed; None if there is none, or none is known yet.

        Raises ConfigError if the best baseline cannot be determined, because too many of its runs failed.
        """
        if not self.awaits_baselines:
            return self._sweep.trunk_name()
        if self.chosen_trunk is None:
            trunk = self.trunk(trials)
            self.chosen_trunk = trunk.name if trunk is not None else None
        return self.chosen_trunk

    def trunk(self, trials: Sequence[Trial]) -> evidence.Trunk | None:
        """The best baseline on the search seeds; None while a baseline is not finished on one of them."""
        return evidence.best_baseline(trials, list(self._service.baselines()), self.seeds)

    def baselines(self) -> list[Wanted]:
        """The baselines, seed by seed. If the sweep file names the trunk, the others run on the first seed only."""
        trunk = None if self.awaits_baselines else self._sweep.trunk_name()
        return [
            Wanted("baseline", seed, schedule=spec, name=name)
            for index, seed in enumerate(self.seeds)
            for name, spec in self._service.baselines().items()
            if index == 0 or trunk in (None, name)
        ]

    def proposals(self, count: int) -> list[Wanted]:
        """The first ``count`` proposals; those under ``enqueue`` in the sweep file come first."""
        seed, sweep = self._sweep.recipe.seed, self._service.searched
        enqueued = search.enqueued(sweep, self._service.time)
        wanted = [
            Wanted(
                "search",
                seed,
                schedule=None if start.schedule is None else start.schedule.spec,
                params=start.params,
                name=f"enqueued {number}",
            )
            for number, start in enumerate(enqueued, start=1)
        ]
        wanted += [Wanted("search", seed)] * (count - len(enqueued))
        return wanted[:count]

    def race(self, trials: Sequence[Trial]) -> list[Wanted]:
        """The replicates that the race has promoted so far, including those that exist already."""
        settings, reference = self._sweep.search, self.reference(trials)
        if settings.seeds == 1 or reference is None:
            return []
        entrants = evidence.entrants(trials, reference)
        promotions = search.promotions(entrants, self.seeds, settings.race, settings.begin)
        return evidence.wanted_replicates(trials, promotions)

    def phase(self, trials: Sequence[Trial]) -> str:
        """Sentences for the user: the current phase of the sweep, and why the phase before it ended."""
        try:
            ended = self.ending(trials)
        except ConfigError as error:  # the search cannot begin, and the error says why
            return str(error)
        budget, limit = self._sweep.budget is not None, self._sweep.trials
        confirmed = [trial for trial in trials if trial.stage == "confirm"]
        if ended is None:
            if self.awaits_baselines and self.reference(trials) is None:
                return "now: the baselines on the search seeds; proposals come when the best of them is known"
            outlook = "more come while the budget pays for them" if budget else f"of {limit}"
            return f"now: the search; proposals so far: {len(self._proposed(trials))}, {outlook}"
        if any(trial.open for trial in confirmed):
            finished = sum(not trial.open for trial in confirmed)
            return f"{ended}; now: the confirmation on fresh seeds, {finished} of {len(confirmed)} runs have ended"
        if confirmed:
            return f"{ended}; the confirmation on fresh seeds has ended, too"
        return f"{ended}; {'there is nothing to confirm' if budget else 'next: sweeper confirm, on fresh seeds'}"

    def ending(self, trials: Sequence[Trial]) -> str | None:
        """Why the search has ended, in a sentence; None while it goes on."""
        confirming = any(trial.stage == "confirm" for trial in trials)
        searched = [trial for trial in trials if trial.stage in ("baseline", "search")]
        searching = any(trial.open for trial in searched)
        if not confirming and (searching or self._service.study.missing(self.wanted(searched))):
            return None
        limit, proposed = self._sweep.trials, self._proposed(searched)
        if self._sweep.budget is None or (limit is not None and len(proposed) >= limit):
            return f"the search ended with the {len(proposed)} proposals that `trials` asks for"
        if self._space_exhausted(searched):
            return f"the search ended as its last {MAX_REPEATS} proposals were known schedules: the space has no more"
        return Spending.of(self._service, searched).ending

    def _search_ended(self, trials: Sequence[Trial], wanted: Sequence[Wanted]) -> bool:
        """Whether the search has ended: the confirmation has begun, or all of ``wanted`` exist and none is open."""
        if any(trial.stage == "confirm" for trial in trials):
            return True
        searching = any(trial.open for trial in trials if trial.stage in ("baseline", "search"))
        return not (searching or self._service.study.missing(wanted))

    @staticmethod
    def _proposed(trials: Sequence[Trial]) -> list[Trial]:
        """The proposals so far, without their replicates."""
        return [trial for trial in trials if trial.stage == "search" and trial.original is None]

    def _space_exhausted(self, trials: Sequence[Trial]) -> bool:
        """Whether the last ``MAX_REPEATS`` proposals were all schedules that were known before."""
        new = {trial.number for trial in evidence.proposals(trials)}
        latest = [trial for trial in self._proposed(trials) if trial.facts.trace][-MAX_REPEATS:]
        return len(latest) == MAX_REPEATS and not any(trial.number in new for trial in latest)

    def _proposes_another(self, trials: Sequence[Trial], spending: Spending, *, idle: bool) -> bool:
        """Whether another proposal is made: one at a time, while the budget pays for it; ``idle``: see ``Spending``."""
        limit, proposed = self._sweep.trials, self._proposed(trials)
        if (limit is not None and len(proposed) >= limit) or any(trial.state == "WAITING" for trial in proposed):
            return False
        if self._space_exhausted(trials):
            return False
        return spending.pays_for_another(len(evidence.proposals(trials)), idle=idle)


def answer_of(service: Service, trials: Sequence[Trial]) -> Answer:
    """The answer that these trials of the sweep give: the winner with its evidence, or why there is none."""
    trials = [service.described(trial) for trial in trials]
    design, sweep = evidence.Design.of(trials), service.sweep
    rule = design or sweep.confirm

    # Runs by configuration, "" for the baselines: a search through all runs for each branch would be slow.
    runs: dict[str, list[Trial]] = {}
    for trial in trials:
        runs.setdefault("" if trial.name in service.baselines() else trial.name, []).append(trial)

    def shown(trial: Trial) -> dict[str, Any]:
        details = {
            "jumps": evidence.jumps_of(trial, runs.get("", []) + runs.get(trial.name, []), sweep.escape.within),
            "verdicts": [jump.to_dict() for jump in service.verdicts(trial, trials)],
        }
        return trial.shown() | {key: value for key, value in details.items() if value}

    race_state = race(service, trials)
    answer = choose(
        trials,
        baselines=service.baselines(),
        planned=design.runs(trials) if design else (),
        raced=race_state.standings if race_state else (),
        alpha=rule.alpha,
        equivalence=rule.equivalence,
        objective=sweep.objective,
        shown=shown,
    )
    changes = design.changes(sweep.confirm) if design else []
    notes = [f"{change}; the design that it began with counts" for change in changes]
    if design and (ended := service.agenda.ending(trials)):
        notes.insert(0, ended)
    return replace(answer, notes=(*(race_state.notes if race_state else ()), *notes))


def confirm_best(service: Service) -> list[int]:
    """Create the missing trials of the confirmation; returns the numbers of the search's trials that are confirmed.

    The first call fixes the design: which trials and baselines, on which seeds, and the rule that judges them. A later
    call changes nothing. Raises ConfigError while the search goes on, if nothing was learned in it, or if the sweep
    file now describes another design.
    """
    trials, baselines = service.study.trials(), service.baselines()
    settings, seed = service.sweep.confirm, service.sweep.recipe.seed
    design = evidence.Design.of(trials)
    if design is None:
        if service.study.grows:
            raise ConfigError("confirm: the search goes on, so the best are not known yet; finish it: sweeper run")
        design = evidence.Design.begin(trials, list(baselines), settings, seed, service.leaders(trials))
    _check_learned(service, "confirm")
    service.study.add(evidence.wanted_confirmation(trials, baselines, design)[:1])
    trials = service.study.trials()
    design = evidence.Design.of(trials) or design  # Another process may have created the first trial before this one.
    if changes := design.changes(settings):
        raise ConfigError(
            f"confirm: {'; '.join(changes)}; its design is fixed from then on, because seeds or rules that are "
            "changed after a look crown equal schedules too often; undo the change, or start a new sweep with "
            "another name and another seed"
        )
    service.study.add(evidence.wanted_confirmation(trials, baselines, design))
    return list(design.candidates)


def confirmation(service: Service, trials: Sequence[Trial]) -> list[Wanted]:
    """The trials of the confirmation of a search that has ended; [] if there is nothing to confirm.

    Every worker gets the same ones, because the search's trials are finished.
    """
    names, settings = list(service.baselines()), service.sweep.confirm
    design = evidence.Design.of(trials)
    if design is None:
        if not any(stats.learned(trial.score) for trial in trials):
            return []
        with contextlib.suppress(ConfigError):
            seed = service.sweep.recipe.seed
            design = evidence.Design.begin(trials, names, settings, seed, service.leaders(trials))
    return evidence.wanted_confirmation(trials, service.baselines(), design) if design is not None else []


def examine_restarts(service: Service, trial: Trial) -> Iterator[int]:
    """Create the trials that tell whether the restarts of a finished trial escaped: control runs, then measurements.

    Yields the number of trials of each of the two steps; the caller trains them before it asks for the next step.
    Existing trials are not created again. Raises ConfigError if the trial learned nothing.
    """
    _check_learned(service, "escape")
    if not stats.learned(trial.score):
        raise ConfigError(
            f"escape: trial {trial.number} learned nothing, its {service.sweep.objective} is 0.0000, so there is "
            "nothing to examine; expected a trial with a higher score: --trial N"
        )
    assert trial.schedule is not None  # A trial with a score was trained.
    trace, seed = service.trace(trial.schedule), service.sweep.recipe.seed
    controls = evidence.wanted_controls(service.study.trials(), trial, trace, seed)
    service.study.add(controls)
    yield len(controls)
    measurements = evidence.wanted_barriers(service.study.trials(), trial, trace, seed, service.sweep.escape)
    service.study.add(measurements)
    yield len(measurements)


def _check_learned(service: Service, command: str) -> None:
    """Raise ConfigError if no trial of the sweep learned anything."""
    if not (answer := service.pick()).learned:
        raise ConfigError(f"{command}: {answer.sentence}")
