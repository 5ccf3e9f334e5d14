"""The addresses of a sweep's store, database and MLflow, and the sweeps that were launched there."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import database
from sweeper.config import Sweep, built_in
from sweeper.config.written import override
from sweeper.errors import ConfigError, StoreError, SweeperError
from sweeper.service.service import Service
from sweeper.service.status import ALIVE_S
from sweeper.store import check_url
from sweeper.study import Study
from sweeper.tracking import check_uri

RESERVE = 500_000_000  # bytes that the store leaves free for the study and the journals on the same disk
MAX_LOCAL, MAX_REMOTE = 100_000_000_000, 20_000_000_000  # limits of the store in bytes, if the sweep has no `store_gb`

AnySweep = Sweep | str | os.PathLike[str]


@dataclass(frozen=True)
class Place:
    """The addresses of a sweep. ``store`` is a folder or an fsspec URL. Database and MLflow are in it by default.

    Nothing is opened or created. Raises StoreError, DatabaseError or TrackingError for an invalid address, because a
    mistyped one would otherwise become a folder or a file of that name.
    """

    store: str = "sweeper_store"
    database_url: str | None = None
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        check_url(self.store)
        if self.store.startswith("memory://"):
            raise StoreError(f"store {self.store!r}: the memory of a process is not shared by workers; name a folder")
        database.parse(self.database)
        check_uri(self.tracking)

    @property
    def folder(self) -> Path:
        """This machine's folder for prepared data sets, journals, logs, and the SQLite databases."""
        return Path("sweeper_store" if "://" in self.store else self.store).expanduser().absolute()

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the study's database."""
        return f"sqlite:///{self.folder / 'sweeper.db'}" if self.database_url is None else self.database_url

    @property
    def tracking(self) -> str:
        """The MLflow tracking URI."""
        return f"sqlite:///{self.folder / 'mlflow.db'}" if self.tracking_uri is None else self.tracking_uri

    @property
    def reserve(self) -> int:
        """Bytes that the store leaves free for the study and the journals; 0 if they are on another disk."""
        states = Path(self.snapshots)
        shared = "://" not in self.store and (not states.exists() or states.stat().st_dev == self.folder.stat().st_dev)
        return RESERVE if shared else 0

    @property
    def snapshots(self) -> str:
        """The folder or fsspec URL of the training states."""
        return self.store if "://" in self.store else str(self.folder / "snapshots")

    @property
    def free(self) -> int | None:
        """Free bytes on the disk of the training states; None if they are not on a disk of this machine."""
        if "://" in self.snapshots:
            return None
        states = Path(self.snapshots)
        return shutil.disk_usage(next(folder for folder in (states, *states.parents) if folder.exists())).free

    def limit(self, store_gb: float | None, used: int) -> int:
        """The size limit of the store in bytes: ``store_gb`` of the sweep file, by default half of what its disk has
        for it, which is its free bytes and the ``used`` bytes of the states there."""
        if store_gb is not None:
            return int(store_gb * 1e9)
        return MAX_REMOTE if self.free is None else min((used + self.free) // 2, MAX_LOCAL)


def launched(sweep: AnySweep, overrides: Sequence[str], place: Place) -> tuple[Service, list[str]]:
    """A launched sweep for commands that only read, and a note for the user on each difference to its file.

    ``sweep`` (an object, a file or a name) only identifies the sweep: the configuration and the overrides of its launch
    count, except for the keys in ``Sweep.CHANGEABLE``, whose values are those of now. A name counts if there is no such
    file, and a launched sweep takes precedence over a built-in one. Nothing is created. Raises DatabaseError if no such
    sweep was launched, ConfigError for a file without a name and for an invalid override.
    """
    by_name = not isinstance(sweep, Sweep) and _is_name(sweep)
    name = sweep.name if isinstance(sweep, Sweep) else str(sweep) if by_name else Sweep.read_name(sweep, overrides)
    study = Study.open(database.open(place.database, create=False), name)
    frozen, free = _launched_with(study)
    notes, shown = list[str](), f"sweep {name} is shown as it was launched"
    if by_name and name in built_in() and not _is_built_in(study):
        notes.append(f"sweep {name} is the one that was launched here, not the built-in one of that name")
    try:
        if isinstance(sweep, Sweep):
            now = sweep.to_dict()
        elif by_name:
            keys = {**frozen, **free}
            override(keys, overrides)
            now = Sweep.build(keys, name).to_dict()
        else:
            now = Sweep.load(sweep, [*study.config.get("overrides", ()), *overrides]).to_dict()
    except ConfigError as error:
        if overrides or not free:
            raise
        notes.append(f"{shown}, because its file cannot be read as a sweep now: {error}")
    else:
        free = {key: now[key] for key in Sweep.CHANGEABLE}
        comparable = {key: value for key, value in now.items() if key in frozen}
        # The default of `amp` was false in an older version.
        older = ["amp"] if (frozen.get("amp"), now["amp"]) == (False, "auto") else []
        if changed := study.changes(comparable, [*Sweep.CHANGEABLE, *older, *(study.config.keys() - now.keys())]):
            notes.append(f"{shown}; what is said now does not count: {', '.join(changed)}")
    as_launched = Sweep.build({**frozen, **free}, name)
    return Service(as_launched, place, overrides=overrides, looking=True, launched_as=study.config), notes


def _launched_with(study: Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of the sweep file at the launch with their values: those that are fixed, and those that may change."""
    fixed = Sweep.keys() - set(Sweep.CHANGEABLE)
    frozen = {key: value for key, value in study.config.items() if key in fixed}
    return frozen, dict(study.config.get("free") or {})


def _is_name(sweep: str | os.PathLike[str]) -> bool:
    """Whether ``sweep`` is the name of a sweep: no file has this path, and it does not look like a path."""
    return not os.path.isfile(sweep) and not {"/", ".", os.sep} & set(str(sweep))


def _is_built_in(study: Study) -> bool:
    """Whether the launched sweep is the built-in one of its name, with the overrides of the launch."""
    try:
        now = Sweep.load(study.name, study.config.get("overrides", ())).identity()
    except ConfigError:
        return False
    comparable = {key: value for key, value in now.items() if key in study.config}
    return not study.changes(comparable, [*(study.config.keys() - now.keys())])


@dataclass(frozen=True)
class SweepSummary:
    """A launched sweep in the list of ``sweeper list``.

    ``state``: done, running (a worker reported within the last two minutes), waiting (for workers), or unreadable;
    ``problem`` is the reason for the last. ``counts``: trials by state in small letters, and their "total". ``best``:
    the highest score of a finished trial that is no control run. ``winner``: the schedule that won a finished
    confirmation. ``heard_s``: seconds since a worker last reported (None: never).
    """

    name: str
    state: str
    counts: Mapping[str, int]
    objective: str
    best: float | None = None
    winner: str | None = None
    heard_s: float | None = None
    problem: str | None = None


def sweeps(place: Place) -> list[SweepSummary]:
    """The sweeps that were launched at ``place``, by name; [] where there is no database yet. Nothing is created."""
    try:
        studies = Study.all(database.open(place.database, create=False))
    except database.NothingThere:
        return []
    return [_summary(study, place) for study in studies]


def _summary(study: Study, place: Place) -> SweepSummary:
    trials, counts, workers = study.trials(), study.counts(), study.workers()
    try:
        frozen, free = _launched_with(study)
        sweep = Sweep.build({**frozen, **free}, study.name)
        service = Service(sweep, place, looking=True, launched_as=study.config)
        heard = workers[0].age_s if workers else None  # the worker that reported last comes first
        state = "done" if service.done else "running" if heard is not None and heard < ALIVE_S else "waiting"
        confirmed = [trial for trial in trials if trial.stage == "confirm"]
        answer = service.answer(trials) if confirmed and not any(trial.open for trial in confirmed) else None
        scores = [trial.score for trial in trials if trial.state == "COMPLETE" and trial.stage != "control"]
        return SweepSummary(
            name=study.name,
            state=state,
            counts=counts,
            objective=service.sweep.objective,
            best=max((score for score in scores if score is not None), default=None),
            winner=answer.winner.title if answer is not None and answer.winner is not None else None,
            heard_s=heard,
        )
    except SweeperError as error:
        return SweepSummary(study.name, "unreadable", counts, objective="", problem=str(error))
