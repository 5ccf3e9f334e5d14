"""The command that turns a ranking into evidence: fresh seeds for the best, and the battery on their restarts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper import names
from sweeper.cli import show
from sweeper.cli.options import Target, on_sweep
from sweeper.cli.sweeps import console, train_all
from sweeper.errors import ConfigError, TrackingError

if TYPE_CHECKING:
    from sweeper.service import Service
    from sweeper.study import Trial


@on_sweep
def confirm(
    target: Target,
    escape: Annotated[bool, typer.Option("--escape", help="Examine the restarts of a trial instead.")] = False,
    trial: Annotated[int | None, typer.Option(help="With --escape: which; by default the search's best one.")] = None,
) -> None:
    """Fresh, paired seeds for the best of a finished search and the baselines. Ctrl-C is safe, as with `run`.

    The first call fixes the design: which schedules, how many seeds, and the rule. Looking in between and calling
    again changes nothing. With --escape: the control runs and measures that tell whether a restart escaped.
    """
    if trial is not None and not escape:
        raise ConfigError(f"--trial {trial}: is for --escape; the confirmation takes the best of the search")
    from sweeper.service.run import slots

    service = target.more().service()
    where = slots(service.sweep)
    service.study  # noqa: B018  there is one, of this sweep
    service.check()
    if escape:
        _examine(service, trial, where, target.sweep)
        return
    chosen = service.confirm()
    if service.sweep.confirm.best > len(chosen):
        console.print(
            f"confirming {len(chosen)} schedules, not {service.sweep.confirm.best}: the search had no more "
            "when the confirmation began"
        )
    train_all(service, where)
    show.answer(service.pick(), service.sweep.objective)


def _examine(service: "Service", trial: int | None, where: list[str], sweep: Path) -> None:
    from sweeper import evidence, stats

    rows = service.study.trials()
    subject = evidence.subject(rows, trial)
    if len(evidence.seeds_of(rows, subject)) == 1:
        console.print(
            f"trial {subject.number} was not confirmed: one seed, no interval, and so no word on a gain. First: "
            f"sweeper confirm {sweep}"
        )
    for asked in service.examine(subject):
        if asked:
            train_all(service, where)
    found = service.verdicts(subject)
    _tell(service, subject, found)
    show.verdicts(subject.number, found)
    controls = evidence.controls_of(service.study.trials(), subject)
    show.failures(stats.failures([trial for trial, _ in controls]))


def _tell(service: "Service", subject: "Trial", found: list[dict[str, Any]]) -> None:
    """The verdicts onto the trial's run; without a server they still stand in the study."""
    tags = {names.VERDICT: "; ".join(f"epoch {one['epoch']}: {one['word']}" for one in found) or "no jump"}
    try:
        service.tracker.add(subject.number, tags, {names.VERDICTS: json.dumps(found, indent=1).encode()})
    except TrackingError as error:
        console.print(str(error))


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(confirm)
