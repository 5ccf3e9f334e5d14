"""The commands that write, plan, launch or train a sweep: init, plan, run, launch, worker, confirm, ray."""

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

AUTO_LOADERS = 4  # loader processes of a worker on a cluster's GPU, because the cores of its machines are not known
LEAST_SHARE = 0.01  # the smallest share of a GPU


def init(
    file: Annotated[Path, typer.Argument(help="Write the sweep to this new file.")] = Path("sweep.yaml"),
    data: Annotated[
        str | None,
        typer.Option(
            help="Fit the sweep to this data set: a data.yaml, a folder in the layout of COCO or Pascal VOC, or digits."
        ),
    ] = None,
) -> None:
    """Write a commented sweep file; --data fits it to a data set.

    With --data the sweep fits this machine, too, and each choice has its reason beside it.
    """
    from sweeper.service.init import suggest, template

    if file.exists():
        raise ConfigError(f"{file}: is there already; expected a new file's name")
    with tempfile.TemporaryDirectory() as folder:
        text = template() if data is None else suggest(data, file, Path(folder))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}; expected a file in a folder that can be written") from None
    typer.echo(f"wrote {file}; {'' if data else 'set `data` in it, then: '}sweeper plan {file}")


@on_sweep
def plan(
    target: Target,
    as_json: JsonOption = False,
) -> None:
    """Print the planned schedules, their cost and detectable gain. Nothing is trained."""
    from sweeper.service.run import worker_devices

    service = target.service(looking=True)
    planned = service.plan()
    if as_json:
        typer.echo(json.dumps(planned.to_dict(), indent=1))
        return
    show.plan(planned)
    try:
        worker_devices(service.sweep)
    except DeviceError as error:  # A sweep may be planned on any machine; only training needs the device.
        typer.echo(f"device     {error}; `sweeper run` would be refused here")


@on_sweep
def launch(
    target: Target,
) -> None:
    """Create the study and the experiment of a sweep. `sweeper worker` then trains it, here or on other machines."""
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
        str,
        typer.Option(
            "--devices", help="Train on these devices: auto (all visible GPUs, else the CPU), cpu, or GPU numbers: 0,2."
        ),
    ] = "auto",
    per_device: Annotated[int, typer.Option(min=1, help="Start this many workers on each device.")] = 1,
    share: Annotated[
        float,
        typer.Option(
            min=LEAST_SHARE,
            max=1,
            help="Use at most this share of the GPU's memory, if other workers use the GPU, too.",
        ),
    ] = 1.0,
    launch_it: Annotated[bool, typer.Option("--launch", help="Launch the sweep first, if nobody has.")] = False,
) -> None:
    """Train trials of a launched sweep until it is done.

    Several workers are a process each. Exit status 0: the sweep is done; 130: SIGTERM or Ctrl-C ended the worker, after
    the epoch in progress.
    """
    from sweeper.service.run import crew
    from sweeper.worker import Worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("alembic", "mlflow", "optuna"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    service = target.service()
    assigned = fleet.worker_devices(devices, per_device)
    if launch_it and not service.launched:
        service.launch()
    stop = stop_on_signals(signal.SIGTERM, signal.SIGINT)
    if len(assigned) > 1:
        crew(service, assigned, say, logs=None).run(lambda: service.study.done, stop=stop, say=say)
    else:
        device = assigned[0] if assigned[0] == fleet.CPU else f"cuda:{assigned[0]}"
        try:
            Worker(service, device=device, stop=stop, share=share).run()
        finally:
            service.tracker.close(10)
    if stop.is_set() and not service.study.done:  # The exit status has to say that the sweep is not done.
        raise KeyboardInterrupt


@on_sweep
def run(
    target: Target,
) -> None:
    """Launch a sweep, train it on this machine, and print the answer.

    Ctrl-C is safe: the same command goes on where it stopped.
    """
    from sweeper.service.run import worker_devices

    service = target.service()
    devices = worker_devices(service.sweep)
    for problem in service.dataset.problems:
        say(f"data: {problem}")
    service.launch()
    train_all(service, devices)
    print_answer(service, target.name)


def train_all(service: "Service", devices: list[str]) -> None:
    """Train every open trial with a worker for each entry of ``devices``, with a progress line.

    Raises KeyboardInterrupt if SIGTERM stops it.
    """
    from sweeper.service.run import train

    stop = stop_on_signals(signal.SIGTERM)
    with live.progress(messages) as update:
        train(service, devices, stop=stop, say=say, tick=lambda: update(service.status))


def print_answer(service: "Service", name: str) -> None:
    """Print the answer and write the report; ``name``: the sweep's arguments for the next command.

    Exit status 1 if every trial failed.
    """
    answer = service.pick()
    show.answer(answer, service.sweep.objective)
    page = service.place.folder / "reports" / f"{service.sweep.name}.html"
    look.write_report(service, page)
    typer.echo(f"\nall of it on one page:      {os.path.relpath(page)}\nlearning rate beside mAP:   sweeper ui {name}")
    look.exit_if_failed(answer.failures)


def stop_on_signals(*signals: signal.Signals) -> threading.Event:
    """An event that is set by one of these signals, for a stop after this epoch. A second SIGINT stops at once, by
    KeyboardInterrupt."""
    stop = threading.Event()

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say(f"{signal.Signals(number).name}: stopping after this epoch; SIGINT (Ctrl-C) once more: now")

    for number in signals:
        signal.signal(number, handle)
    return stop


@on_sweep
def confirm(
    target: Target,
    escape: Annotated[bool, typer.Option("--escape", help="Examine instead whether restarts escaped.")] = False,
    trial: Annotated[int | None, typer.Option(help="With --escape: examine this trial, not the best.")] = None,
) -> None:
    """Train best schedules and baselines again on fresh paired seeds.

    The first call fixes the design: which schedules, how many seeds, and the rule. Looking at results in between and
    calling the command again change nothing. With --escape it trains control runs and measures barriers in the loss,
    which tell whether a restart escaped. Ctrl-C is safe: the same command goes on where it stopped.
    """
    if trial is not None and not escape:
        raise ConfigError(f"--trial {trial}: is for --escape; the confirmation takes the best of the search")
    from sweeper.service.run import worker_devices

    service = target.resumed()
    devices = worker_devices(service.sweep)
    service.study  # noqa: B018  It raises an error unless the sweep is launched and its file unchanged.
    service.check()
    if escape:
        _examine(service, trial, devices, target.sweep)
        return
    chosen = service.confirm()
    if service.sweep.confirm.best > len(chosen):
        say(
            f"confirming {len(chosen)} schedules, not {service.sweep.confirm.best}: the search had no more "
            "when the confirmation began"
        )
    train_all(service, devices)
    print_answer(service, target.name)


def _examine(service: "Service", number: int | None, devices: list[str], sweep: Path) -> None:
    """Train the control runs of a trial (None: the best one) and print the verdict on each of its jumps."""
    from sweeper import evidence, stats

    trials = service.study.trials()
    subject = evidence.subject(trials, number)
    if len(evidence.seeds_of(trials, subject)) == 1:
        say(
            f"trial {subject.number} was not confirmed: with one seed its gain has no interval, so no verdict says "
            f"whether it gained. First: sweeper confirm {sweep}"
        )
    for count in service.examine(subject):
        if count:
            train_all(service, devices)
    examined = service.verdicts(subject)
    _log_verdicts(service, subject, examined)
    show.verdicts(subject.number, examined)
    show.failures(stats.failures([trial for trial, _ in evidence.controls_of(service.study.trials(), subject)]))


def _log_verdicts(service: "Service", subject: "Trial", examined: "list[Examined]") -> None:
    """Log the verdicts to the trial's run in MLflow, and the answer that follows from them. Without MLflow nothing is
    lost, because both can be computed from the study."""
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
        int | None,
        typer.Option(
            min=1, help="Start this many workers; by default as many as the cluster has room for, now or later."
        ),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Give each worker this share of a GPU: 1, 0.5, ...; 0: CPU. By default 1 if the cluster has GPUs.",
        ),
    ] = None,
    cpus: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Give each worker this many CPUs; by default `threads`, on a GPU 1 + loader_workers (auto: 4).",
        ),
    ] = None,
    address: Annotated[
        str, typer.Option(help="Connect to this Ray cluster; auto: RAY_ADDRESS, or the cluster of this machine.")
    ] = "auto",
) -> None:
    """Launch a sweep, train it on a Ray cluster, and print the answer.

    Ctrl-C is safe: the same command goes on where it stopped.
    """
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
        # Ray lets a worker see one GPU only, which is number 0 then.
        device = ["--devices", fleet.CPU] if on_cpu else ["--devices", "0", "--share", f"{gpus:g}"]
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
    print_answer(service, target.name)
