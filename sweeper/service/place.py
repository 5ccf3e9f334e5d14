"""Where sweeps' things are, and which sweeps were launched there."""

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

RESERVE = 500_000_000
MOST, REMOTE = 100_000_000_000, 20_000_000_000  # bytes of states that are kept at most, where the sweep does not say

AnySweep = Sweep | str | os.PathLike[str]


@dataclass(frozen=True)
class Place:
    """Where a sweep's things are. ``store`` is a folder or an fsspec URL; the rest lies inside it unless said.

    Nothing is touched. Raises StoreError, DatabaseError or TrackingError, in one line, for an address that cannot be
    meant: a mistyped one must not become a folder or a file of that name.
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
        """This machine's own folder: data sets laid out, journals, logs, and the embedded databases."""
        return Path("sweeper_store" if "://" in self.store else self.store).expanduser().absolute()

    @property
    def database(self) -> str:
        """The study's database, SQLAlchemy's way."""
        return f"sqlite:///{self.folder / 'sweeper.db'}" if self.database_url is None else self.database_url

    @property
    def tracking(self) -> str:
        """The MLflow tracking URI."""
        return f"sqlite:///{self.folder / 'mlflow.db'}" if self.tracking_uri is None else self.tracking_uri

    @property
    def reserve(self) -> int:
        """Bytes of its disk that the store of states leaves to the study and the journals, where they share it."""
        states = Path(self.snapshots)
        shared = "://" not in self.store and (not states.exists() or states.stat().st_dev == self.folder.stat().st_dev)
        return RESERVE if shared else 0

    @property
    def snapshots(self) -> str:
        """Where training states are stored."""
        return self.store if "://" in self.store else str(self.folder / "snapshots")

    @property
    def free(self) -> int | None:
        """Bytes that the disk of the states has free; None where that is not known."""
        if "://" in self.snapshots:
            return None
        states = Path(self.snapshots)
        return shutil.disk_usage(next(folder for folder in (states, *states.parents) if folder.exists())).free

    def limit(self, store_gb: float | None, held: int) -> int:
        """How many bytes of states are kept here, where ``held`` are there already; ``store_gb`` as in a sweep file."""
        if store_gb is not None:
            return int(store_gb * 1e9)
        return REMOTE if self.free is None else min((held + self.free) // 2, MOST)


def launched(sweep: AnySweep, overrides: Sequence[str], place: Place) -> tuple[Service, list[str]]:
    """A launched sweep, for looking, and a line for each thing that ``sweep`` (or its file) says otherwise now.

    What it was launched with counts; ``sweep`` or its file only names it. It may also be the name of a launched sweep,
    where there is no file of that name; a launched one goes before a built-in one. Overrides that the launch was given
    count again, and those of what may change (``Sweep.FREE``) can be given anew. Nothing is created. Raises
    DatabaseError if no such sweep was launched, ConfigError for a file without a name and for an override that cannot
    be.
    """
    by_name = not isinstance(sweep, Sweep) and _is_name(sweep)
    name = sweep.name if isinstance(sweep, Sweep) else str(sweep) if by_name else Sweep.name_in(sweep, overrides)
    study = Study.open(database.open(place.database, create=False), name)
    frozen, free = _launched_with(study)
    notes, shown = list[str](), f"sweep {name} is shown as it was launched"
    if by_name and name in built_in() and not _is_built_in(study):
        notes.append(f"sweep {name} is the one that was launched here, not the built-in one of that name")
    try:
        if isinstance(sweep, Sweep):
            now = sweep.flat()
        elif by_name:
            keys = {**frozen, **free}
            override(keys, overrides)
            now = Sweep.build(keys, name).flat()
        else:
            now = Sweep.load(sweep, [*study.config.get("overrides", ()), *overrides]).flat()
    except ConfigError as error:
        if overrides or not free:
            raise
        notes.append(f"{shown}, because its file cannot be read as a sweep now: {error}")
    else:
        free = {key: now[key] for key in Sweep.FREE}
        comparable = {key: value for key, value in now.items() if key in frozen}
        older = (
            ["amp"] if (frozen.get("amp"), now["amp"]) == (False, "auto") else []
        )  # the default before there was auto
        if changed := study.changes(comparable, [*Sweep.FREE, *older, *(study.config.keys() - now.keys())]):
            notes.append(f"{shown}; what is said now does not count: {', '.join(changed)}")
    then = Sweep.build({**frozen, **free}, name)
    return Service(then, place, overrides=overrides, looking=True, launched_as=study.config), notes


def _launched_with(study: Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of the sweep file that the launch fixed, and those that may change since, with their values then."""
    fixed = Sweep.keys() - set(Sweep.FREE)
    frozen = {key: value for key, value in study.config.items() if key in fixed}
    return frozen, dict(study.config.get("free") or {})


def _is_name(sweep: str | os.PathLike[str]) -> bool:
    """Whether this can only be meant as the name of a sweep: there is no such file, and it is no path of one."""
    return not os.path.isfile(sweep) and not {"/", ".", os.sep} & set(str(sweep))


def _is_built_in(study: Study) -> bool:
    """Whether the built-in sweep of this name was launched, with the overrides of the launch."""
    try:
        now = Sweep.load(study.name, study.config.get("overrides", ())).identity()
    except ConfigError:
        return False
    comparable = {key: value for key, value in now.items() if key in study.config}
    return not study.changes(comparable, [*(study.config.keys() - now.keys())])


@dataclass(frozen=True)
class SweepSummary:
    """A launched sweep in a list.

    ``state``: done, running (a worker reported within the last two minutes), waiting (for workers), or unreadable, and
    then ``problem`` says why. ``counts``: trials by state in small letters, with their "total". ``best``: the highest
    ``objective`` of any finished trial but control runs. ``winner``: the schedule that a finished confirmation crowned.
    ``heard_s``: seconds since a worker last reported. None where there is none.
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
    trials, counts, ages = study.trials(), study.counts(), study.workers()
    try:
        frozen, free = _launched_with(study)
        sweep = Sweep.build({**frozen, **free}, study.name)
        service = Service(sweep, place, looking=True, launched_as=study.config)
        heard = ages[0].age_s if ages else None
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
