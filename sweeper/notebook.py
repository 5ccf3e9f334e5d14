"""The commands as functions, for notebooks and scripts: a sweep in, an answer or a table out.

Every function takes a sweep (a :class:`Sweep`, or the path of its file) and where its things are, as the options of the
command line say it; its environment variables are not read. Further keywords are keys of the sweep file, for instance
``trials=4``. All raise SweeperError.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sweeper import export
from sweeper.config import Sweep
from sweeper.service import Place, Plan, Service, Status, launched
from sweeper.service import run as running
from sweeper.stats import Answer

STORE = "sweeper_store"
LOOK_EVERY_S = 2.0
AnySweep = Sweep | str | os.PathLike[str]
Url = str | None


def plan(sweep: AnySweep, *, store: str = STORE, **keys: Any) -> Plan:
    """What would be tried, how much of it is shared and what it could detect. Trains and changes nothing."""
    return Service(_changed(sweep, keys), Place(store), looking=True).plan()


def launch(
    sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None, **keys: Any
) -> None:
    """Create the study and the experiment, or what is missing of them. Any number of times."""
    service = Service(_changed(sweep, keys), Place(store, database_url, tracking_uri))
    service.launch()
    service.tracker.close()


def work(
    sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None, **keys: Any
) -> None:
    """Train trials of a launched sweep on this machine until it is done, with a bar that shows how it comes along."""
    _train(Service(_changed(sweep, keys), Place(store, database_url, tracking_uri)))


def run(
    sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None, **keys: Any
) -> Answer:
    """All of it on this machine: launch, train with a progress bar, pick.

    Interrupting it is safe: the same call goes on where it stopped, and a finished sweep answers at once.
    """
    service = Service(_changed(sweep, keys), Place(store, database_url, tracking_uri))
    service.launch()
    _train(service)
    return service.pick()


def confirm(
    sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None, **keys: Any
) -> Answer:
    """Train the best of a finished search and the baselines again on fresh seeds that they share, and pick."""
    service = Service(_changed(sweep, keys), Place(store, database_url, tracking_uri))
    service.study  # noqa: B018  raises unless the sweep was launched
    service.confirm()
    _train(service)
    return service.pick()


def pick(sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None) -> Answer:
    """The ranking and the winner, or that there is none, of a launched sweep."""
    return _launched(sweep, store, database_url, tracking_uri).pick()


def status(sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None) -> Status:
    """How far a launched sweep is."""
    return _launched(sweep, store, database_url, tracking_uri).status()


def trials(
    sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None
) -> "export.DataFrame":
    """The trials of a launched sweep as a table, a row each, indexed by number.

    Columns: stage, state, seed, label, score (NaN: none yet), epochs (trained so far), curve (scores by epoch, a list)
    and each word of the schedules (``family``, ``steps``, ``step_scale``, ...).
    """
    return export.trials(_launched(sweep, store, database_url, tracking_uri))


def _changed(sweep: AnySweep, keys: Mapping[str, Any]) -> Sweep:
    """The sweep with other values for these keys of its file."""
    loaded = sweep if isinstance(sweep, Sweep) else Sweep.load(Path(sweep))
    return Sweep.build({**loaded.flat(), **keys}) if keys else loaded


def _launched(sweep: AnySweep, store: str, database_url: Url, tracking_uri: Url) -> Service:
    return launched(sweep, (), Place(store, database_url, tracking_uri))[0]


def _train(service: Service) -> None:
    """Train what is open, with a bar of the epochs that are settled, of those of all trials."""
    with tqdm(desc=service.sweep.name, unit="epoch") as bar:
        looked = -LOOK_EVERY_S

        def tick(every: float = LOOK_EVERY_S) -> None:
            nonlocal looked
            if time.monotonic() - looked >= every:
                looked = time.monotonic()
                bar.n, bar.total = service.status().settled
                bar.refresh()

        running.train(service, running.slots(service.sweep), say=bar.write, tick=tick)
        tick(every=0.0)
