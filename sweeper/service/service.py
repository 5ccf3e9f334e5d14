"""One sweep at one place: its data set, study, store and MLflow experiment, opened when they are first used."""

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
from sweeper.training import evaluation
from sweeper.training.process import TrainingProcess

if TYPE_CHECKING:
    from sweeper.service.place import Place

#: Keys that a launch stores in the study beside the configuration, so that a later command needs no data set.
_NOTED = ("store", "train_images", "classes", "free", "overrides")


class Service:
    """One sweep at one place.

    ``overrides`` are those with which ``sweep`` was read from its file; ``launch`` stores them in the study. With
    ``looking`` nothing is created or written, neither a file nor a row. ``launched_as`` is the configuration that the
    study stores since its launch; its facts on the data set are then used instead of the data set itself.
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
        options: dict[str, Any] = {"invalid": self.sweep.invalid, "keep": not self.looking, **recipe.part}
        return data.open(recipe.data, folder=folder, **options)

    @property
    def data_digest(self) -> str:
        """The digest of the data set. For a launched sweep the data set is not opened."""
        return str(self.launched_as.get("data_digest") or self.dataset.digest)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the data set's classes. For a launched sweep the data set is not opened."""
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
        """The store of training states, by prefix key. Raises StoreError."""
        make, store_id = not self.looking, self.launched_as.get("store")
        reserve = self.place.reserve if make else 0
        store = Store(self.place.snapshots, self.database, None, reserve, id=store_id, make=make)
        store.max_bytes = self.place.limit(self.sweep.store_gb, store.usage().bytes)
        return store

    @cached_property
    def tracker(self) -> Tracker:
        """The MLflow experiment of the launched sweep, with the journals of its study. Raises what ``study`` raises."""
        return self._experiment.of(self.study.id)

    @cached_property
    def _experiment(self) -> Tracker:
        """The MLflow experiment by its name alone, before it is known whether it is that of this study."""
        return Tracker(self.place.tracking, self.sweep.name, self.place.folder / "journals")

    @cached_property
    def study(self) -> Study:
        """The launched study. DatabaseError if there is none, ConfigError if the sweep file was changed since."""
        if self.database_missing:
            raise DatabaseError(f"no study {self.sweep.name!r}: {self.place.database} is not there; launch it first")
        study = Study.open(self.database, self.sweep.name, **self._leases)
        if not self.launched_as:
            study.check(self._config, free_keys=self._free_keys(study.config))
        if self.agenda.adds_trials:
            study.agenda = self.agenda.now
        return study

    @cached_property
    def agenda(self) -> Agenda:
        """Which trials the study should contain by now."""
        return Agenda(self)

    def _free_keys(self, launched: Mapping[str, Any]) -> list[str]:
        """The keys that may differ from the ``launched`` configuration.

        Among them are keys that an older version did not know, if they have their default now.
        """
        now, defaults = self._config, Sweep.defaults()
        newer = [key for key in now if key not in launched and key in defaults and now[key] == defaults[key]]
        if launched.get("amp") is False and now["amp"] == "auto":  # an older version's default, see ``_amp``
            newer.append("amp")
        return [*Sweep.CHANGEABLE, *_NOTED, *newer]

    @property
    def _leases(self) -> dict[str, Any]:
        return {"lease_seconds": self.sweep.lease_s, "attempts": self.sweep.attempts}

    @cached_property
    def _config(self) -> dict[str, Any]:
        return {**self.sweep.identity(), "data_digest": self.dataset.digest}

    def _notes(self) -> dict[str, Any]:
        keys = self.sweep.to_dict()
        return {
            "store": self.store.id,
            "train_images": self.dataset.train_images,
            "classes": list(self.dataset.names),
            "free": {key: keys[key] for key in Sweep.CHANGEABLE},
            "overrides": list(self.overrides),
        }

    @property
    def database_missing(self) -> bool:
        """Whether the database is an SQLite file that does not exist; a command that only reads must not create it."""
        url = database.parse(self.place.database)
        return url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists()

    @property
    def done(self) -> bool:
        """Whether every trial has ended and the agenda adds none. False if the search cannot begin, too, because then
        the worker has to raise the reason."""
        try:
            return self.study.done
        except ConfigError:
            return False

    @property
    def launched(self) -> bool:
        """Whether the study exists; False if there is no database."""
        try:
            return bool(Study.all(self.database, [self.sweep.name]))
        except database.NothingThere:
            return False

    def check_store(self) -> None:
        """Raise StoreError unless this store is the one that the sweep was launched with.

        Another store (such as another folder of the same name on another machine) has none of the sweep's states.
        """
        launched = self.study.config.get("store")
        if launched not in (None, self.store.id):
            raise StoreError(
                f"store {self.store.url}: not the one that {self.sweep.name} was launched with (another folder under "
                "the same name, on another machine?); mount that one here or launch with a URL that all machines reach"
            )

    def baselines(self) -> dict[str, dict[str, Any]]:
        """Name -> spec of the baselines; the name is the family, with a number if the family occurs again."""
        return {name: schedule.spec for name, schedule in self.sweep.named_baselines.items()}

    def check(self) -> None:
        """Check sweep, data set, model, store and MLflow before anything is trained. Raises SweeperError."""
        self.check_sweep()
        self.store.check()
        self._experiment.check()

    def check_sweep(self) -> int:
        """Check the search space, the data set and whether the model can be built; needs neither store nor MLflow.

        Returns the expected size of a training state in bytes. Raises SweeperError.
        """
        for sweep in self.sweep.with_each_trunk():
            search.check(sweep)
            search.check(sweep, self.time)
        evaluation.check_objective(self.dataset, self.sweep)
        with (
            tempfile.TemporaryDirectory(prefix="sweeper-check-") as folder,
            self.training(device="cpu", folder=Path(folder), stall_s=120) as child,
        ):
            child.fingerprint(self.sweep.recipe)
            return child.state_bytes(self.sweep.recipe)

    def recipe(self, seed: int) -> Any:
        """The sweep's recipe with this seed, and with the path of the checked data set."""
        return self.sweep.recipe.model_copy(update={"seed": seed, "data": str(self.dataset.yaml), "amp": self._amp()})

    def _amp(self) -> bool | str:
        """Mixed precision. A study whose configuration has ``amp: false`` keeps it, although the default is ``auto``
        now, because the default was false in an older version.

        This is no ``cached_property``, because in Python 3.11 all threads would wait for the one that reads the
        database.
        """
        if self._precision is None:
            amp = self.sweep.recipe.amp
            older = amp == "auto" and self.launched and self.study.config.get("amp") is False
            self._precision = False if older else amp
        return self._precision

    def facts(self, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
        """The facts that determine a training beside the recipe's values, for ``Recipe.digest``."""
        # Only the loss of end-to-end heads depends on the length of the run.
        length = {"epochs": self.sweep.epochs} if fingerprint.get("end2end") else {}
        # A state that was trained for another objective lacks the COCO metrics of its epochs, so it cannot be reused.
        objective = {"objective": "coco"} if self.sweep.by_coco else {}
        return {**fingerprint, "data": self.dataset.digest, **length, **objective}

    def branches(self, trace: Trace) -> set[int]:
        """Epochs after which other schedules may branch off ``trace``, so that their states are removed last.

        These are the end of its warm-up, its jumps, the jumps that the search may propose, and its end.
        """
        own = {jump.epoch for jump in trace.jumps()} | {trace.epochs, round(trace.warmup_fraction * trace.epochs)}
        return own | search.branch_epochs(self.searched, self.time)

    def launch(self) -> None:
        """Create the study, its trials and the experiment, as far as they do not exist. Raises SweeperError."""
        self.check()
        # Read before the study, because a launch in another process creates its study first and its experiment then:
        # an experiment that exists now belongs to a study that exists now.
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
        params = {key: value for key, value in schedules.flatten(self.sweep.identity()) if value is not None}
        tags = {names.DATA: self.dataset.digest, names.STUDY: study.id}
        self.tracker.sweep(params=params, tags=tags)

    # -- results; the functions describe them

    plan = plan_of
    status = status_of
    answer = answer_of
    confirm = confirm_best
    examine = examine_restarts

    def trace(self, schedule: schedules.Schedule) -> Trace:
        """The LR trace of a schedule in this sweep."""
        return schedule.trace(self.time)

    @property
    def searched(self) -> Sweep:
        """The sweep with the chosen baseline in place of ``trunk: best``; until one is chosen, with the first."""
        if self._searched[0] != self.agenda.chosen_trunk:
            self._searched = self.agenda.chosen_trunk, self.sweep.with_trunk(self.agenda.chosen_trunk)
        return self._searched[1]

    def shared(self, spec: Mapping[str, Any]) -> int:
        """How many of its first epochs a schedule shares with another baseline; they are trained once on each seed."""
        text = json.dumps(spec, sort_keys=True)
        if text not in self._shared:
            schedule, baselines = schedules.parse(spec), self.sweep.named_baselines.values()
            keys = prefix_keys("", self.trace(schedule))
            others = [prefix_keys("", self.trace(other)) for other in baselines if other != schedule]
            counts = (sum(map(operator.eq, keys, other)) - 1 for other in others)
            self._shared[text] = max(counts, default=0)
        return self._shared[text]

    def departure(self, spec: Mapping[str, Any], trunk: str) -> stats.Departure | None:
        """Where and how far the learning rates of a schedule differ from the baseline ``trunk``; None if nowhere."""
        text = json.dumps([spec, trunk], sort_keys=True)
        if text not in self._departures:
            reference = self.trace(self.sweep.named_baselines[trunk])
            self._departures[text] = stats.Departure.of(self.trace(schedules.parse(spec)), reference)
        return self._departures[text]

    def leaders(self, trials: Sequence[Trial]) -> list[int]:
        """Numbers of the search's finished proposals, best first: in a race by ``Standing.worth``, else by score."""
        reference = self.agenda.reference(trials)
        if reference is not None:
            return [standing.trial for standing in evidence.standings(trials, reference)]
        finished = [p for p in evidence.proposals(trials) if p.state == "COMPLETE" and p.score is not None]
        return [proposal.number for proposal in sorted(finished, key=lambda p: (-(p.score or 0.0), p.number))]

    def pick(self) -> Answer:
        """The winner with its evidence, or why there is none. Raises DatabaseError if the sweep was never launched."""
        return self.answer(self.study.trials())

    def verdicts(self, trial: Trial, trials: Sequence[Trial] | None = None) -> list[evidence.Examined]:
        """The verdict on each jump of a trial, by the thresholds that the sweep file has now. ``trials``: those of the
        study (None: they are read from it)."""
        trials = self.study.trials() if trials is None else trials
        return evidence.verdicts(trials, trial, self.sweep.escape)

    def run_id(self, trial: Trial) -> str | None:
        """The id of the trial's run in MLflow, looked up there if the study does not have it; None if it is unknown."""
        run_id = trial.facts.run_id
        return run_id if run_id or trial.state not in ("COMPLETE", "PRUNED") else self._run_ids.get(trial.number)

    @cached_property
    def _run_ids(self) -> dict[int, str]:
        """Trial number -> run id, read from MLflow; empty if MLflow does not answer."""
        with contextlib.suppress(TrackingError):
            return self.tracker.run_ids()
        return {}

    def described(self, trial: Trial) -> Trial:
        """The trial with its label and its run id filled in."""
        label = self.searched.label(trial.spec) if trial.spec else ""
        return replace(trial, label=label, facts=replace(trial.facts, run_id=self.run_id(trial)))
