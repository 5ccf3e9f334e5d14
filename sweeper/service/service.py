"""The service itself."""

import contextlib
import json
import operator
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper import data, database, evidence, names, schedules, search, stats
from sweeper.config import Sweep
from sweeper.errors import ConfigError, DatabaseError, StoreError, TrackingError
from sweeper.schedules import TimeBase, Trace, prefix_keys
from sweeper.service.agenda import Agenda, answer_of, confirm_best, examine_restarts
from sweeper.service.plan import plan_of
from sweeper.service.status import status_of
from sweeper.stats import Answer
from sweeper.store import Store
from sweeper.study import Study, Trial
from sweeper.tracking import Tracker
from sweeper.training import coco
from sweeper.training.process import TrainingProcess

if TYPE_CHECKING:
    from sweeper.service.place import Place

#: What a launch notes in the study beside the configuration, for those who look without the data and the command line.
_NOTED = ("store", "train_images", "classes", "free", "overrides")


class Service:
    """One sweep at one place. Parts are opened when first used.

    ``overrides``: those of the sweep file that ``sweep`` was made with; ``launch`` notes them for those who look.
    ``looking``: nothing is created or written, in no folder and no database, whatever is asked. ``launched_as``: the
    configuration that the study has kept since its launch; it then stands for the data set, too.
    """

    def __init__(
        self,
        sweep: Sweep,
        place: "Place",
        *,
        training: Callable[..., TrainingProcess] = TrainingProcess,
        overrides: Sequence[str] = (),
        looking: bool = False,
        launched_as: Mapping[str, Any] | None = None,
    ) -> None:
        self.sweep = sweep
        self.place = place
        self.training = training
        self.overrides = tuple(overrides)
        self.looking = looking
        self.launched_as = launched_as or {}
        self._precision: bool | str | None = None
        self._shared: dict[str, int] = {}
        self._departures: dict[str, stats.Departure | None] = {}
        self._searched: tuple[str | None, Sweep] = None, sweep.with_trunk(None)

    @cached_property
    def dataset(self) -> data.Dataset:
        """The data set, checked. Raises DataError."""
        recipe, folder = self.sweep.recipe, self.place.folder / "data"
        how: dict[str, Any] = {"invalid": self.sweep.invalid, "keep": not self.looking, **recipe.part}
        return data.open(recipe.data, folder=folder, **how)

    @property
    def data_digest(self) -> str:
        """The data set's digest; of a launched sweep without opening the data set."""
        return str(self.launched_as.get("data_digest") or self.dataset.digest)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the data set's classes; of a launched sweep without opening the data set."""
        return tuple(self.launched_as.get("classes") or self.dataset.names)

    @cached_property
    def time(self) -> TimeBase:
        """Epochs and optimizer steps of every trial of the sweep."""
        recipe, images = self.sweep.recipe, self.launched_as.get("train_images")
        images = int(images or self.dataset.train_images)
        return TimeBase.from_images(images, recipe.batch, accumulate=recipe.accumulate, epochs=self.sweep.epochs)

    @cached_property
    def database(self) -> database.Database:
        """The study's database. Raises DatabaseError."""
        return database.open(self.place.database, create=not self.looking)

    @cached_property
    def store(self) -> Store:
        """Training states under their prefix keys. Raises StoreError."""
        make, store_id = not self.looking, self.launched_as.get("store")
        reserve = self.place.reserve if make else 0
        store = Store(self.place.snapshots, self.database, None, reserve, id=store_id, make=make)
        store.max_bytes = self.place.limit(self.sweep.store_gb, store.usage().bytes)
        return store

    @cached_property
    def tracker(self) -> Tracker:
        """The MLflow experiment of the launched sweep, with the journals of its study. Raises as ``study``."""
        return self._experiment.of(self.study.id)

    @cached_property
    def _experiment(self) -> Tracker:
        """The MLflow experiment, while nobody knows which study's it is."""
        return Tracker(self.place.tracking, self.sweep.name, self.place.folder / "journals")

    @cached_property
    def study(self) -> Study:
        """The launched study. DatabaseError if there is none, ConfigError if the sweep file was changed since."""
        if self.unborn:
            raise DatabaseError(f"no study {self.sweep.name!r}: {self.place.database} is not there; launch it first")
        study = Study.open(self.database, self.sweep.name, **self._leases)
        if not self.launched_as:
            study.check(self._config, free_keys=self._free_keys(study.config))
        if self.agenda.grows:
            study.agenda = self.agenda.now
        return study

    @cached_property
    def agenda(self) -> Agenda:
        """What the study should hold by now."""
        return Agenda(self)

    def _free_keys(self, launched: Mapping[str, Any]) -> list[str]:
        """What may differ from the launched configuration: also a key that it is too old to have, at its default."""
        now, defaults = self._config, Sweep.defaults()
        newer = [key for key in now if key not in launched and key in defaults and now[key] == defaults[key]]
        if launched.get("amp") is False and now["amp"] == "auto":  # the default before there was auto: see ``recipe``
            newer.append("amp")
        return [*Sweep.FREE, *_NOTED, *newer]

    @property
    def _leases(self) -> dict[str, Any]:
        return {"lease_seconds": self.sweep.lease_s, "attempts": self.sweep.attempts}

    @cached_property
    def _config(self) -> dict[str, Any]:
        return {**self.sweep.identity(), "data_digest": self.dataset.digest}

    def _notes(self) -> dict[str, Any]:
        keys = self.sweep.flat()
        return {
            "store": self.store.id,
            "train_images": self.dataset.train_images,
            "classes": list(self.dataset.names),
            "free": {key: keys[key] for key in Sweep.FREE},
            "overrides": list(self.overrides),
        }

    @property
    def unborn(self) -> bool:
        """Whether the database is a file that is not there: looking must not make it."""
        url = database.parse(self.place.database)
        return url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists()

    @property
    def done(self) -> bool:
        """Whether every trial has ended and none is to come. False, too, where the search cannot begin: whoever works
        on it says why."""
        try:
            return self.study.done
        except ConfigError:
            return False

    @property
    def launched(self) -> bool:
        """Whether the study is there already. Who looks hears False also where there is no database to ask."""
        try:
            return bool(Study.all(self.database, [self.sweep.name]))
        except database.NothingThere:
            return False

    def check_store(self) -> None:
        """StoreError unless the snapshots are where the sweep's launch saw them: workers there find none of ours."""
        launched = self.study.config.get("store")
        if launched not in (None, self.store.id):
            raise StoreError(
                f"store {self.store.url}: not the one that {self.sweep.name} was launched with (another folder under "
                "the same name, on another machine?); mount that one here or launch with a URL that all machines reach"
            )

    def baselines(self) -> dict[str, dict[str, Any]]:
        """name -> spec of the sweep's baselines, by family; a second one of a family gets a number."""
        return {name: schedule.spec for name, schedule in self.sweep.named_baselines.items()}

    def check(self) -> None:
        """Everything that can be wrong, before anything is trained or changed; raises a SweeperError in one line."""
        self.check_sweep()
        self.store.check()
        self._experiment.check()

    def check_sweep(self) -> int:
        """Of that what needs no store and no server: the space, the data, and whether the model can be built.

        Gives about how many bytes a state will take.
        """
        for sweep in self.sweep.with_each_trunk():
            search.check(sweep)
            search.check(sweep, self.time)
        coco.check_objective(self.dataset, self.sweep)
        with (
            tempfile.TemporaryDirectory(prefix="sweeper-check-") as aside,
            self.training(device="cpu", folder=Path(aside), stall_s=120) as child,
        ):
            child.fingerprint(self.sweep.recipe)
            return child.state_bytes(self.sweep.recipe)

    def recipe(self, seed: int) -> Any:
        """The sweep's recipe with this seed, its data where the trainer finds them."""
        return self.sweep.recipe.model_copy(update={"seed": seed, "data": str(self.dataset.yaml), "amp": self._amp()})

    def _amp(self) -> bool | str:
        """Mixed precision; a study that was launched before there was ``auto`` goes on without.

        No ``cached_property``: in Python 3.11 all threads would wait for the one that reads the database.
        """
        if self._precision is None:
            written = self.sweep.recipe.amp
            without = written == "auto" and self.launched and self.study.config.get("amp") is False
            self._precision = False if without else written
        return self._precision

    def facts(self, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
        """What, beside the recipe's values, determines a training: for ``Recipe.digest``."""
        # the loss of end-to-end heads depends on how long the run is; nothing else does
        length = {"epochs": self.sweep.epochs} if fingerprint.get("end2end") else {}
        # a state whose epochs have no value of the objective is of no use here
        judged = {"objective": "coco"} if self.sweep.by_coco else {}
        return {**fingerprint, "data": self.dataset.digest, **length, **judged}

    def branches(self, trace: Trace) -> set[int]:
        """Epochs after which others may part from ``trace``: warm-up's end, its jumps, those of the search, the end."""
        jumps = {jump.epoch for jump in trace.jumps()}
        return (
            jumps | {trace.epochs, round(trace.warmup_fraction * trace.epochs)} | search.parts(self.searched, self.time)
        )

    def launch(self) -> None:
        """Create the study, its trials and the experiment, or what is missing of them. Any number of times."""
        self.check()
        # Asked before the study is looked at: a launch beside ours makes its study first and its experiment then, so an
        # experiment that is there now has its study there, too.
        holder = self._experiment.holder()
        launched = Study.open(self.database, self.sweep.name) if self.launched else None
        if holder is not None and (launched is None or holder != launched.id):
            raise TrackingError(
                f"tracking {self._experiment.server}: experiment {self.sweep.name!r} holds the runs of another study "
                "(of another database, or one that was deleted since); expected a new name for the sweep"
            )
        study = Study.create(
            self.database,
            self.sweep.name,
            config={**self._config, "amp": self._amp(), **self._notes()},
            trials=self.agenda.wanted([]),
            sampler=self.sweep.sampler,
            seed=self.sweep.sampling_seed,
            free_keys=self._free_keys(launched.config if launched is not None else {}),
            **self._leases,
        )
        params = {key: value for key, value in schedules.flat(self.sweep.identity()) if value is not None}
        tags = {names.DATA: self.dataset.digest, names.STUDY: study.id}
        self.tracker.sweep(params=params, tags=tags)

    # -- what can be said of it; each is described there

    plan = plan_of
    status = status_of
    answer = answer_of
    confirm = confirm_best
    examine = examine_restarts

    def trace(self, schedule: schedules.Schedule) -> Trace:
        """The LR trace that this sweep's trials get from a schedule."""
        return schedule.trace(self.time)

    @property
    def searched(self) -> Sweep:
        """The sweep with its trunk by name: the baseline that was chosen, until then the first one."""
        if self._searched[0] != self.agenda.chosen:
            self._searched = self.agenda.chosen, self.sweep.with_trunk(self.agenda.chosen)
        return self._searched[1]

    def shared(self, spec: Mapping[str, Any]) -> int:
        """Epochs that a schedule shares with a baseline from the first on: on any seed they are trained only once."""
        text = json.dumps(spec, sort_keys=True)
        if text not in self._shared:
            schedule, baselines = schedules.parse(spec), self.sweep.named_baselines.values()
            keys = prefix_keys("", self.trace(schedule))
            others = [prefix_keys("", self.trace(other)) for other in baselines if other != schedule]
            alike = (sum(map(operator.eq, keys, other)) - 1 for other in others)
            self._shared[text] = max(alike, default=0)
        return self._shared[text]

    def departure(self, spec: Mapping[str, Any], trunk: str) -> stats.Departure | None:
        """How a schedule departs from the baseline ``trunk``; None if it does not."""
        text = json.dumps([spec, trunk], sort_keys=True)
        if text not in self._departures:
            reference = self.trace(self.sweep.named_baselines[trunk])
            self._departures[text] = stats.Departure.of(self.trace(schedules.parse(spec)), reference)
        return self._departures[text]

    def leaders(self, rows: Sequence[Trial]) -> list[int]:
        """The search's finished trials, best first: those of a race by what their mean is worth, else by score."""
        reference = self.agenda.reference(rows)
        if reference is not None:
            return [standing.trial for standing in evidence.standings(rows, reference)]
        finished = [row for row in evidence.proposals(rows) if row.state == "COMPLETE" and row.score is not None]
        return [row.number for row in sorted(finished, key=lambda row: (-(row.score or 0.0), row.number))]

    def pick(self) -> Answer:
        """The winner with its evidence, or that there is none. Raises DatabaseError if the sweep was never launched."""
        return self.answer(self.study.trials())

    def verdicts(self, trial: Trial, rows: Sequence[Trial] | None = None) -> list[evidence.Examined]:
        """What can be said of each jump of a trial, with the thresholds as they are now; see ``evidence.verdicts``."""
        rows = self.study.trials() if rows is None else rows
        return evidence.verdicts(rows, trial, self.sweep.escape)

    def run_id(self, row: Trial) -> str | None:
        """The trial's run in MLflow; asks there where its worker was never told. None if there is none, or nobody."""
        run_id = row.facts.run_id
        return run_id if run_id or row.state not in ("COMPLETE", "PRUNED") else self._run_ids.get(row.number)

    @cached_property
    def _run_ids(self) -> dict[int, str]:
        with contextlib.suppress(TrackingError):
            return self.tracker.run_ids()
        return {}

    def described(self, trial: Trial) -> Trial:
        """With what the sweep and MLflow know of it: its label, and its run."""
        label = self.searched.label(trial.spec) if trial.spec else ""
        return replace(trial, label=label, facts=replace(trial.facts, run_id=self.run_id(trial)))
