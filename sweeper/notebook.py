"""The commands as functions, for notebooks and scripts: they take a sweep and return an answer or a table.

``sweep`` is a :class:`Sweep` or the path of its file. ``store``, ``database_url`` and ``tracking_uri`` have the meaning
of the command line's options; its environment variables are not read. Other keywords are keys of the sweep file, for
instance ``trials=4``. All functions raise SweeperError.
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
REFRESH_S = 2.0  # The progress bar reads the status at most once in so many seconds.
AnySweep = Sweep | str | os.PathLike[str]
Url = str | None


def plan(sweep: AnySweep, *, store: str = STORE, **keys: Any) -> Plan:
    """Which schedules would be tried, how many epochs they share, and which gain the design could detect. Trains and
    changes nothing."""
    return Service(_changed(sweep, keys), Place(store), looking=True).plan()


def launch(
    sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None, **keys: Any
) -> None:
    """Create the study and the experiment, or what is missing of them. It may be called any number of times."""
    service = Service(_changed(sweep, keys), Place(store, database_url, tracking_uri))
    service.launch()
    service.tracker.close()


def work(
    sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None, **keys: Any
) -> None:
    """Train trials of a launched sweep on this machine until none is left, with a progress bar."""
    _train(Service(_changed(sweep, keys), Place(store, database_url, tracking_uri)))


def run(
    sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None, **keys: Any
) -> Answer:
    """Run the whole sweep on this machine: launch, train with a progress bar, pick.

    An interrupted call loses nothing: the same call goes on where it stopped. For a finished sweep it returns at once.
    """
    service = Service(_changed(sweep, keys), Place(store, database_url, tracking_uri))
    service.launch()
    _train(service)
    return service.pick()


def confirm(
    sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None, **keys: Any
) -> Answer:
    """Train the best of a finished search and the baselines again on the same fresh seeds, and pick."""
    service = Service(_changed(sweep, keys), Place(store, database_url, tracking_uri))
    service.study  # noqa: B018  raises unless the sweep was launched
    service.confirm()
    _train(service)
    return service.pick()


def pick(sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None) -> Answer:
    """The answer of a launched sweep: the ranking, and the winner or None."""
    return _launched(sweep, store, database_url, tracking_uri).pick()


def status(sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None) -> Status:
    """The progress of a launched sweep."""
    return _launched(sweep, store, database_url, tracking_uri).status()


def trials(
    sweep: AnySweep, *, store: str = STORE, database_url: Url = None, tracking_uri: Url = None
) -> "export.DataFrame":
    """The trials of a launched sweep as a table with a row for each, indexed by number.

    Columns: stage, state, seed, label, score (NaN: none yet), epochs (trained so far), curve (a list of the scores by
    epoch) and each key of the schedules (``family``, ``steps``, ``step_scale``, ...).
    """
    return export.trials(_launched(sweep, store, database_url, tracking_uri))


def _changed(sweep: AnySweep, keys: Mapping[str, Any]) -> Sweep:
    """The sweep with these values for keys of its file."""
    loaded = sweep if isinstance(sweep, Sweep) else Sweep.load(Path(sweep))
    return Sweep.build({**loaded.to_dict(), **keys}) if keys else loaded


def _launched(sweep: AnySweep, store: str, database_url: Url, tracking_uri: Url) -> Service:
    return launched(sweep, (), Place(store, database_url, tracking_uri))[0]


def _train(service: Service) -> None:
    """Train the open trials, with a progress bar that counts the epochs of all trials that need no more training."""
    with tqdm(desc=service.sweep.name, unit="epoch") as bar:
        refreshed_at = -REFRESH_S

        def refresh(interval: float = REFRESH_S) -> None:
            nonlocal refreshed_at
            if time.monotonic() - refreshed_at >= interval:
                refreshed_at = time.monotonic()
                bar.n, bar.total = service.status().settled
                bar.refresh()

        running.train(service, running.worker_devices(service.sweep), say=bar.write, tick=refresh)
        refresh(interval=0.0)
