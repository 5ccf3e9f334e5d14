"""The commands that begin or train a sweep: init, plan, run, launch, worker, confirm, ray."""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeper import fleet, names
from sweeper.cli import live, look, show
from sweeper.cli.options import JsonOption, Target, messages, on_sweep, say
from sweeper.errors import ConfigError, DeviceError, TrackingError

if TYPE_CHECKING:
    from sweeper.evidence import Examined
    from sweeper.service import Service
    from sweeper.study import Trial

AUTO_LOADERS = 4  # loader processes of a worker on a GPU of a cluster, whose machines nobody has seen yet
LEAST_SHARE = 0.01  # of a GPU, as for `sweeper worker --share`


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("sweep.yaml"),
    data: Annotated[
        str | None,
        typer.Option(help="Fit it to this data set: a data.yaml, a folder as of COCO or Pascal VOC, or digits."),
    ] = None,
) -> None:
    """Write a commented sweep; with --data, one that fits the data.

    It then fits this machine, too, and each choice has its reason beside it.
    """
    from sweeper.service.init import suggest, template

    if file.exists():
        raise ConfigError(f"{file}: is there already; expected a new file's name")
    with tempfile.TemporaryDirectory() as folder:
        text = template() if data is None else suggest(data, file, Path(folder))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; expected a place to write to") from None
    typer.echo(f"wrote {file}; {'' if data else 'say where your data are, then: '}sweeper plan {file}")


@on_sweep
def plan(
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """What would be tried, its cost, and which gain would show. Nothing is trained."""
    from sweeper.service.run import slots

    service = target.service(looking=True)
    planned = service.plan()
    if as_json:
        typer.echo(json.dumps(planned.to_dict(), indent=1))
        return
    show.plan(planned)
    try:
        slots(service.sweep)
    except DeviceError as error:  # plan and launch where you like; only who trains needs the device
        typer.echo(f"device     {error}; `sweeper run` would be refused here")


@on_sweep
def launch(
    target: Target,
) -> None:
    """Create study and experiment, and print where they are. `worker` trains, here or elsewhere."""
    service = target.service()
    service.launch()
    service.tracker.close()
    typer.echo(f"study {service.sweep.name}: {service.study.counts()['total']} trials in {service.database}")
    typer.echo(f"experiment {service.sweep.name} in {service.place.tracking}")
    sweep = target.sweep
    typer.echo(f"train:  sweeper worker {sweep}        look:  sweeper status {sweep}   sweeper ui {sweep}")


@on_sweep
def worker(
    target: Target,
    devices: Annotated[
        str, typer.Option("--devices", help="auto (all visible GPUs, else the CPU), cpu, or GPU numbers: 0,2.")
    ] = "auto",
    per_device: Annotated[int, typer.Option(min=1, help="Workers on each device.")] = 1,
    share: Annotated[
        float, typer.Option(min=0.01, max=1, help="Of its GPU's memory, for a worker that shares it with others.")
    ] = 1.0,
    launch_it: Annotated[bool, typer.Option("--launch", help="Launch the sweep first, if nobody has.")] = False,
) -> None:
    """Train trials of a launched sweep until it is done. One process per device slot.

    Exit status 0: it is done; 130: told to stop before (SIGTERM, Ctrl-C), after the epoch in progress.
    """
    from sweeper.service.run import crew
    from sweeper.worker import Worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("alembic", "mlflow", "optuna"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    service = target.service()
    slots = fleet.slots(devices, per_device)
    if launch_it and not service.launched:
        service.launch()
    stop = stop_on_signals(signal.SIGTERM, signal.SIGINT)
    if len(slots) > 1:
        crew(service, slots, say, logs=None).run(lambda: service.study.done, stop=stop, say=say)
    else:
        try:
            Worker(
                service, device=slots[0] if slots[0] == fleet.CPU else f"cuda:{slots[0]}", stop=stop, share=share
            ).run()
        finally:
            service.tracker.close(10)
    if stop.is_set() and not service.study.done:  # whoever started us must not take it for finished
        raise KeyboardInterrupt


@on_sweep
def run(
    target: Target,
) -> None:
    """All of it on this machine: study, workers, answer. Ctrl-C is safe: the same command goes on where it stopped."""
    from sweeper.service.run import slots

    service = target.service()
    where = slots(service.sweep)
    for problem in service.dataset.problems:
        say(f"data: {problem}")
    service.launch()
    train_all(service, where)
    answer(service, target.name)


def train_all(service: "Service", where: list[str]) -> None:
    """Train every open trial in these slots, with a line that shows how it comes along; KeyboardInterrupt if told to
    stop before the end."""
    from sweeper.service.run import train

    stop = stop_on_signals(signal.SIGTERM)
    with live.progress(messages) as update:
        train(service, where, stop=stop, say=say, tick=lambda: update(service.status))


def answer(service: "Service", again: str) -> None:
    """Print who won and write the page; ``again``: the sweep as it was named on the command line.

    Exit status 1 if every trial failed.
    """
    picked = service.pick()
    show.answer(picked, service.sweep.objective)
    page = service.place.folder / "reports" / f"{service.sweep.name}.html"
    look.write_report(service, page)
    typer.echo(f"\nall of it on one page:      {os.path.relpath(page)}\nlearning rate beside mAP:   sweeper ui {again}")
    look.leave(picked.failures.every)


def stop_on_signals(*signals: signal.Signals) -> threading.Event:
    """An event that these signals set: stop after this epoch. A second SIGINT is KeyboardInterrupt: now."""
    stop = threading.Event()

    def leave(number: int, _: Any) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say(f"{signal.Signals(number).name}: stopping after this epoch; SIGINT (Ctrl-C) once more: now")

    for number in signals:
        signal.signal(number, leave)
    return stop


@on_sweep
def confirm(
    target: Target,
    escape: Annotated[bool, typer.Option("--escape", help="Examine the restarts of a trial instead.")] = False,
    trial: Annotated[int | None, typer.Option(help="With --escape: which; by default the search's best one.")] = None,
) -> None:
    """Train the best of a finished search on fresh, paired seeds. The baselines, too; Ctrl-C is safe, as with `run`.

    The first call fixes the design: which schedules, how many seeds, and the rule. Looking in between and calling
    again changes nothing. With --escape: the control runs and measures that tell whether a restart escaped.
    """
    if trial is not None and not escape:
        raise ConfigError(f"--trial {trial}: is for --escape; the confirmation takes the best of the search")
    from sweeper.service.run import slots

    service = target.more()
    where = slots(service.sweep)
    service.study  # noqa: B018  there is one, of this sweep
    service.check()
    if escape:
        _examine(service, trial, where, target.sweep)
        return
    chosen = service.confirm()
    if service.sweep.confirm.best > len(chosen):
        say(
            f"confirming {len(chosen)} schedules, not {service.sweep.confirm.best}: the search had no more "
            "when the confirmation began"
        )
    train_all(service, where)
    answer(service, target.name)


def _examine(service: "Service", trial: int | None, where: list[str], sweep: Path) -> None:
    from sweeper import evidence, stats

    rows = service.study.trials()
    subject = evidence.subject(rows, trial)
    if len(evidence.seeds_of(rows, subject)) == 1:
        say(
            f"trial {subject.number} was not confirmed: one seed, no interval, and so no word on a gain. First: "
            f"sweeper confirm {sweep}"
        )
    for controls in service.examine(subject):
        if controls:
            train_all(service, where)
    examined = service.verdicts(subject)
    _tell(service, subject, examined)
    show.verdicts(subject.number, examined)
    show.failures(stats.failures([trial for trial, _ in evidence.controls_of(service.study.trials(), subject)]))


def _tell(service: "Service", subject: "Trial", examined: "list[Examined]") -> None:
    """The verdicts onto the trial's run, and what they make of the answer; without a server they stand in the study."""
    from sweeper import report

    tags = {names.VERDICT: "; ".join(f"epoch {jump.epoch}: {jump.verdict.word}" for jump in examined) or "no jump"}
    try:
        written = json.dumps([jump.to_dict() for jump in examined], indent=1).encode()
        service.tracker.add(subject.number, tags, {names.VERDICTS: written})
        report.tell(service, service.pick())
    except TrackingError as error:
        say(str(error))


@on_sweep
def ray(
    target: Target,
    workers: Annotated[
        int | None, typer.Option(min=1, help="By default one for each free share, now and as the cluster changes.")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, max=1, help="GPU for each: 1, 0.5, ...; 0: CPU. By default 1 if there are.")
    ] = None,
    cpus: Annotated[
        float | None,
        typer.Option(min=0.001, help="CPUs; by default `threads`, on a GPU 1 + loader_workers (auto: 4)."),
    ] = None,
    address: Annotated[str, typer.Option(help="The cluster; auto: RAY_ADDRESS, or the one of this machine.")] = "auto",
) -> None:
    """All of it, with the workers on a Ray cluster. Ctrl-C is safe: the same command goes on where it stopped."""
    if gpus and gpus < LEAST_SHARE:
        raise ConfigError(f"--gpus {gpus:g}: is too little for a worker; expected 0 (CPU), or {LEAST_SHARE:g} to 1")
    try:
        from sweeper import on_ray
        from sweeper.service.run import open_trials, settle
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name}: not installed; expected Ray: pip install 'ray>=2.40,<3'") from None
    service = target.service()
    recipe, on_cpu = service.sweep.recipe, service.sweep.device == fleet.CPU
    on_ray.connect(address)
    on_ray.check(service.place.database, service.place.tracking)
    if gpus is None:
        gpus = 1.0 if on_ray.has_gpus() and not on_cpu else 0.0
    on_cpu = on_cpu or not gpus
    automatic = 0 if on_cpu else AUTO_LOADERS if cpus is None else max(int(cpus) - 1, 0)
    loaders = automatic if recipe.loader_workers == "auto" else recipe.loader_workers
    if cpus is None:
        cpus = recipe.threads if on_cpu else 1 + loaders
    service.launch()
    stop = stop_on_signals(signal.SIGTERM, signal.SIGINT)
    if left := open_trials(service):
        arguments = target.arguments(target.store if "://" in target.store else str(service.place.folder))
        device = (
            ["--devices", fleet.CPU] if on_cpu else ["--devices", "0", "--share", f"{gpus:g}"]
        )  # the only one it sees
        crew = on_ray.RayFleet(
            ["-m", "sweeper", "worker", *arguments, f"loader_workers={loaders}", *device],
            workers=workers and min(workers, left),
            gpus=gpus,
            cpus=cpus,
            threads=recipe.threads if on_cpu else 0,
            wanted=lambda: open_trials(service),
        )
        crew.run(lambda: service.study.done, stop=stop, say=say)
    settle(service, stop, say)
    answer(service, target.name)
