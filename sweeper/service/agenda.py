"""What a sweep's study should hold by now, what is asked for beside that, and the answer that it all comes to.

Any number of workers ask any number of times, because it is a pure reading of the trials as they stand; ``Study.add``
makes what is missing. In this order: the baselines on the search seeds; with ``trunk: best`` nothing else until all of
them have finished, because proposals are branches of the best one; then proposals, and replicates of those that keep
up; with a budget then the confirmation.
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


NOTE = "trunk"  # what the study keeps of the choice
IN_VAIN = 3  # proposals in a row that were known schedules: the space has no more, and a budget would never be spent


class Agenda:
    """The agenda of one sweep."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sweep: Sweep = service.sweep
        self.seeds = search.search_seeds(self._sweep.recipe.seed, self._sweep.search.seeds)
        self.chosen: str | None = None  #: the trunk, once it was decided: it stays

    @property
    def grows(self) -> bool:
        """Whether trials come to it while it is worked on; else all are known from the beginning."""
        settings = self._sweep.search
        return settings.seeds > 1 or settings.trunk == BEST or self._sweep.budget is not None

    @property
    def waits(self) -> bool:
        """Whether the search cannot begin before the baselines have finished on all search seeds."""
        settings = self._sweep.search
        return settings.trunk == BEST or (settings.trunk is None and settings.seeds > 1)

    @property
    def against(self) -> str | None:
        """The baseline that proposals are compared with, as far as it is known; see :meth:`reference`."""
        return self.chosen if self.waits else self._sweep.trunk_name()

    def now(self) -> list[Wanted]:
        """The trials that there should be by now. Raises ConfigError if the search cannot begin."""
        study = self._service.study
        noted = study.notes.get(NOTE) if self.waits and self.chosen is None else None
        self.chosen = noted["name"] if noted else self.chosen
        known, rows = self.chosen, study.trials()
        wanted = self.wanted(rows)
        if self._sweep.budget is not None and self._over(rows, wanted):
            wanted += confirmation(self._service, rows)
        # every worker comes to the same choice, because the runs that it follows from are finished
        if self.chosen is not None and known is None and not self._service.looking:
            study.note(NOTE, {"name": self.chosen})
        return wanted

    def wanted(self, rows: Sequence[Trial]) -> list[Wanted]:
        """The same for these trials."""
        wanted = self.baselines()
        if self.waits and self.reference(rows) is None:
            return wanted
        if self._sweep.budget is not None and any(row.stage == "confirm" for row in rows):
            return wanted  # what was chosen from is closed
        raced = self.race(rows)
        budget = Spending.of(self._service, rows) if self._sweep.budget is not None else None
        if budget is None:
            return wanted + raced + self.proposals(self._sweep.trials or 0)
        existing = {(row.original, row.seed) for row in rows}
        affordable = budget.affordable([each for each in raced if (each.replicate_of, each.seed) not in existing])
        made = len(self._proposed(rows))
        return wanted + affordable + self.proposals(made + self._further(rows, budget, made, idle=not affordable))

    def reference(self, rows: Sequence[Trial]) -> str | None:
        """The baseline that proposals are compared with on the same seed; None while, or where, there is none."""
        if not self.waits:
            return self._sweep.trunk_name()
        if self.chosen is None:
            trunk = self.trunk(rows)
            self.chosen = trunk.name if trunk is not None else None
        return self.chosen

    def trunk(self, rows: Sequence[Trial]) -> evidence.Trunk | None:
        """The best baseline on the search seeds; None while one of them is not finished there."""
        return evidence.best_baseline(rows, list(self._service.baselines()), self.seeds)

    def baselines(self) -> list[Wanted]:
        """The baselines, seed by seed. Where the trunk is named, the others run on the first seed only."""
        trunk = None if self.waits else self._sweep.trunk_name()
        return [
            Wanted("baseline", seed, schedule=spec, name=name)
            for place, seed in enumerate(self.seeds)
            for name, spec in self._service.baselines().items()
            if place == 0 or trunk in (None, name)
        ]

    def proposals(self, count: int) -> list[Wanted]:
        """The first ``count`` proposals; those that the sweep file gives come first."""
        seed, sweep = self._sweep.recipe.seed, self._service.searched
        given = search.enqueued(sweep, self._service.time)
        wanted = [
            Wanted(
                "search",
                seed,
                schedule=None if start.schedule is None else start.schedule.spec,
                params=start.answers,
                name=f"enqueued {number}",
            )
            for number, start in enumerate(given, start=1)
        ]
        wanted += [Wanted("search", seed)] * (count - len(given))
        return wanted[:count]

    def race(self, rows: Sequence[Trial]) -> list[Wanted]:
        """The replicates that the race wants by now."""
        settings, reference = self._sweep.search, self.reference(rows)
        if settings.seeds == 1 or reference is None:
            return []
        entrants = evidence.entrants(rows, reference)
        return evidence.slots_of(rows, search.promotions(entrants, self.seeds, settings.race, settings.begin))

    def phase(self, rows: Sequence[Trial]) -> str:
        """What is being done now, and why what came before it ended; in sentences."""
        try:
            ended = self.ending(rows)
        except ConfigError as error:  # the search cannot begin, and the error says why
            return str(error)
        limit, confirmed = self._sweep.trials, [row for row in rows if row.stage == "confirm"]
        if ended is None:
            if self.waits and self.reference(rows) is None:
                return "now: the baselines on the search seeds; proposals come when the best of them is known"
            made = len(self._proposed(rows))
            more = "more come while the budget pays for them" if self._sweep.budget is not None else f"of {limit}"
            return f"now: the search; proposals so far: {made}, {more}"
        if any(row.open for row in confirmed):
            over = sum(not row.open for row in confirmed)
            return f"{ended}; now: the confirmation on fresh seeds, {over} of {len(confirmed)} runs have ended"
        if confirmed:
            return f"{ended}; the confirmation on fresh seeds has ended, too"
        budget = self._sweep.budget is not None
        return f"{ended}; {'there is nothing to confirm' if budget else 'next: sweeper confirm, on fresh seeds'}"

    def ending(self, rows: Sequence[Trial]) -> str | None:
        """Why the search ended, in a sentence; None while it goes on."""
        began = any(row.stage == "confirm" for row in rows)
        searched = [row for row in rows if row.stage in ("baseline", "search")]
        if not began and (any(row.open for row in searched) or not self._over(searched, self.wanted(searched))):
            return None
        limit, proposed = self._sweep.trials, self._proposed(searched)
        if self._sweep.budget is None or (limit is not None and len(proposed) >= limit):
            return f"the search ended with the {len(proposed)} proposals that `trials` asks for"
        if self._in_vain(searched):
            return f"the search ended as its last {IN_VAIN} proposals were known schedules: the space has no more"
        return Spending.of(self._service, searched).ending

    def _over(self, rows: Sequence[Trial], wanted: Sequence[Wanted]) -> bool:
        """Whether the search has ended: no trial of it is open, and none is to be added."""
        began = any(row.stage == "confirm" for row in rows)
        trained = [row for row in rows if row.stage in ("baseline", "search")]
        open_ones = any(row.open for row in trained)
        return began or not (open_ones or self._service.study.missing(wanted))

    @staticmethod
    def _proposed(rows: Sequence[Trial]) -> list[Trial]:
        """The proposals so far, without their replicates."""
        return [row for row in rows if row.stage == "search" and row.original is None]

    def _in_vain(self, rows: Sequence[Trial]) -> bool:
        """Whether the last proposals were all known schedules."""
        distinct = {row.number for row in evidence.proposals(rows)}
        latest = [row for row in self._proposed(rows) if row.facts.trace][-IN_VAIN:]
        return len(latest) == IN_VAIN and not any(row.number in distinct for row in latest)

    def _further(self, rows: Sequence[Trial], budget: Spending, made: int, *, idle: bool) -> int:
        """How many proposals may be made beyond those that there are: one at a time, while the budget buys it."""
        limit = self._sweep.trials
        if (limit is not None and made >= limit) or any(row.state == "WAITING" for row in self._proposed(rows)):
            return 0
        if self._in_vain(rows):
            return 0
        idle = idle and not any(row.open and row.stage == "search" for row in rows)
        return int(budget.another(len(evidence.proposals(rows)), idle=idle))


def answer_of(service: Service, trials: Sequence[Trial]) -> Answer:
    """What these trials of the sweep come to: the winner with its evidence, or that there is none."""
    rows = [service.described(trial) for trial in trials]
    design, sweep = evidence.Design.of(rows), service.sweep
    rule = design or sweep.confirm

    runs: dict[str, list[Trial]] = {}  # by configuration, so that a branch is not looked for among thousands
    for row in rows:
        runs.setdefault("" if row.name in service.baselines() else row.name, []).append(row)

    def shown(trial: Trial) -> dict[str, Any]:
        more = {
            "jumps": evidence.jumps_of(trial, runs.get("", []) + runs.get(trial.name, []), sweep.escape.within),
            "verdicts": [jump.to_dict() for jump in service.verdicts(trial, rows)],
        }
        return trial.shown() | {key: value for key, value in more.items() if value}

    standing = race(service, rows)
    chosen = choose(
        rows,
        baselines=service.baselines(),
        planned=design.runs(rows) if design else (),
        raced=standing.standings if standing else (),
        alpha=rule.alpha,
        equivalence=rule.equivalence,
        objective=sweep.objective,
        shown=shown,
    )
    changes = design.changes(sweep.confirm) if design else []
    notes = [f"{change}; what it began with is what counts" for change in changes]
    if design and (ended := service.agenda.ending(rows)):
        notes.insert(0, ended)
    return replace(chosen, notes=(*(standing.notes if standing else ()), *notes))


def confirm_best(service: Service) -> list[int]:
    """Ask for what is missing of the confirmation; gives the trials that are confirmed. Any number of times.

    The first call fixes the design: which trials and baselines, on which seeds, judged by which rule. Raises
    ConfigError while the search goes on, if nothing was learned in it, or if the sweep file now asks for another
    design than that.
    """
    rows, baselines = service.study.trials(), service.baselines()
    settings, seed = service.sweep.confirm, service.sweep.recipe.seed
    design = evidence.Design.of(rows)
    if design is None:
        if service.study.grows:
            raise ConfigError("confirm: the search goes on, so the best are not known yet; finish it: sweeper run")
        design = evidence.Design.begin(rows, list(baselines), settings, seed, service.leaders(rows))
    _refuse_unlearned(service, "confirm")
    service.study.add(evidence.confirm_slots(rows, baselines, design)[:1])
    rows = service.study.trials()
    design = evidence.Design.of(rows) or design  # another process's, if its first trial was made before ours
    if changes := design.changes(settings):
        raise ConfigError(
            f"confirm: {'; '.join(changes)}; its design is fixed from then on, because seeds or rules that are "
            "changed after a look crown equal schedules too often; undo the change, or start a new sweep with "
            "another name and another seed"
        )
    service.study.add(evidence.confirm_slots(rows, baselines, design))
    return list(design.candidates)


def confirmation(service: Service, rows: Sequence[Trial]) -> list[Wanted]:
    """The trials of the confirmation of a search that has ended; [] if it left nothing to confirm.

    Every worker that asks comes to the same ones, because the search's trials are finished.
    """
    names, settings = list(service.baselines()), service.sweep.confirm
    design = evidence.Design.of(rows)
    if design is None:
        if not any(stats.learned(row.score) for row in rows):
            return []
        with contextlib.suppress(ConfigError):
            seed = service.sweep.recipe.seed
            design = evidence.Design.begin(rows, names, settings, seed, service.leaders(rows))
    return evidence.confirm_slots(rows, service.baselines(), design) if design is not None else []


def examine_restarts(service: Service, trial: Trial) -> Iterator[int]:
    """Ask for the battery on a finished trial in two steps, the control runs and what is measured with them; gives
    how many trials each step has. What was asked for must be trained before the next. Any number of times.

    Raises ConfigError if the trial learned nothing."""
    _refuse_unlearned(service, "escape")
    if not stats.learned(trial.score):
        raise ConfigError(
            f"escape: trial {trial.number} learned nothing, its {service.sweep.objective} is 0.0000, so there is "
            "nothing to examine; expected a trial with a higher score: --trial N"
        )
    assert trial.schedule is not None  # it was trained
    trace, seed = service.trace(trial.schedule), service.sweep.recipe.seed
    controls = evidence.control_slots(service.study.trials(), trial, trace, seed)
    service.study.add(controls)
    yield len(controls)
    measured = evidence.barrier_slots(service.study.trials(), trial, trace, seed, service.sweep.escape)
    service.study.add(measured)
    yield len(measured)


def _refuse_unlearned(service: Service, command: str) -> None:
    if not (answer := service.pick()).learned:
        raise ConfigError(f"{command}: {answer.sentence}")
