"""What a sweep comes to, and what is asked for to know it: the answer, its confirmation, the battery on a restart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sweeper import evidence, stats
from sweeper.errors import ConfigError
from sweeper.service import racing
from sweeper.stats import Answer, choose
from sweeper.study import Trial, Wanted

if TYPE_CHECKING:
    from sweeper.service.service import Service


def answer(service: Service, trials: Sequence[Trial]) -> Answer:
    """What these trials of the sweep come to."""
    rows = [service.described(trial) for trial in trials]
    design, sweep = evidence.Design.of(rows), service.sweep
    rule = design or sweep.confirm

    def shown(trial: Trial) -> dict[str, Any]:
        more = {
            "jumps": evidence.jumps_of(trial, rows, sweep.escape.within),
            "verdicts": [jump.to_dict() for jump in service.verdicts(trial, rows)],
        }
        return trial.shown() | {key: value for key, value in more.items() if value}

    race = racing.race(service, rows)
    chosen = choose(
        rows,
        baselines=service.baselines(),
        planned=design.runs(rows) if design else (),
        raced=race.standings if race else (),
        alpha=rule.alpha,
        equivalence=rule.equivalence,
        objective=sweep.objective,
        shown=shown,
    )
    changes = design.changes(sweep.confirm) if design else []
    notes = [f"{change}; what it began with is what counts" for change in changes]
    if design and (ended := service.agenda.ending(rows)):
        notes.insert(0, ended)
    return replace(chosen, notes=(*(race.notes if race else ()), *notes))


def confirm(service: Service) -> list[int]:
    """Ask for what is missing of the confirmation; gives the trials that are confirmed. Any number of times.

    The first call fixes the design: which trials and baselines, on which seeds, judged by which rule. Raises
    ConfigError while the search goes on, if nothing was learned in it, or if the sweep file now asks for another
    design than that.
    """
    rows, baselines = service.study.trials(), service.baselines()
    asked, seed = service.sweep.confirm, service.sweep.recipe.seed
    design = evidence.Design.of(rows)
    if design is None:
        if service.study.grows:
            raise ConfigError("confirm: the search goes on, so the best are not known yet; finish it: sweeper run")
        design = evidence.Design.begin(rows, list(baselines), asked, seed, service.leaders(rows))
    _refuse_unlearned(service, "confirm")
    service.study.add(evidence.confirm_slots(rows, baselines, design)[:1])
    rows = service.study.trials()
    design = evidence.Design.of(rows) or design  # another process's, if its first trial was made before ours
    if changes := design.changes(asked):
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
    names, asked = list(service.baselines()), service.sweep.confirm
    design = evidence.Design.of(rows)
    if design is None:
        if not any(stats.learned(row.score) for row in rows):
            return []
        with contextlib.suppress(ConfigError):
            seed = service.sweep.recipe.seed
            design = evidence.Design.begin(rows, names, asked, seed, service.leaders(rows))
    return evidence.confirm_slots(rows, service.baselines(), design) if design is not None else []


def examine(service: Service, trial: Trial) -> Iterator[int]:
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


def _refuse_unlearned(service: Service, asked: str) -> None:
    if not (answer := service.pick()).learned:
        raise ConfigError(f"{asked}: {answer.sentence}")
