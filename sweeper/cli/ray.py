"""The command that puts the workers on a Ray cluster."""

import signal
from typing import Annotated

import typer

from sweeper.cli.options import Target, on_sweep
from sweeper.cli.sweeps import answer, say, stop_on_signals
from sweeper.errors import ConfigError
from sweeper.fleet import CPU

AUTO_LOADERS = 4  # loader processes of a worker on a GPU of a cluster, whose machines nobody has seen yet
LEAST_SHARE = 0.01  # of a GPU, as for `sweeper worker --share`


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
        from sweeper.service.run import open_trials, settle, tend
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name}: not installed; expected Ray: pip install 'ray>=2.40,<3'") from None
    service = target.service()
    recipe, on_cpu = service.sweep.recipe, service.sweep.device == CPU
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
        device = ["--devices", CPU] if on_cpu else ["--devices", "0", "--share", f"{gpus:g}"]  # the only one it sees
        crew = on_ray.RayFleet(
            ["-m", "sweeper", "worker", *arguments, f"loader_workers={loaders}", *device],
            workers=workers and min(workers, left),
            gpus=gpus,
            cpus=cpus,
            threads=recipe.threads if on_cpu else 0,
            wanted=lambda: open_trials(service),
        )
        tend(service, crew, stop=stop, say=say)
    settle(service, stop, say)
    answer(service, target.name)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(ray)
