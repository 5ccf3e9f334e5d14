"""What samplers learn from: the trials that have begun, and of raced ones their differences to the trunk.

Optuna's values stay the raw scores. A score mixes what the schedule is worth with the luck of its seed, which is
several times larger; the trunk on the same seed had the same luck, so the difference is what there is to learn from.
"""

from __future__ import annotations

import copy
import itertools
import threading
import warnings
from collections.abc import Container, Mapping, Sequence
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweeper.database import Connection, Database, column, func, literal_column, select, table
from sweeper.study.fence import FencedStorage
from sweeper.study.trial import REPLICATE

# Optuna's own table, as far as we look into it.
TRIALS = table("trials", column("trial_id"), column("study_id"), column("number"), column("state"))
_AT_ONCE = 5000  # databases limit the parameters of a statement
FEWEST = 8  # trials below which a share is a coin toss


class History:
    """The trials of one study that have begun. Finished ones are read once, running ones every time.

    Optuna's cache would read all waiting trials again with every look.
    """

    def __init__(self, database: Database, storage: FencedStorage, study_id: int) -> None:
        self.database = database
        self.storage = storage
        self.study_id = study_id
        self.distributions: dict[str, BaseDistribution] = {}  # of every parameter that was ever proposed
        self._finished: dict[int, FrozenTrial] = {}
        self._settled: list[FrozenTrial] = []  # up to the first one that still runs: not even asked for again
        self._lock = threading.Lock()

    def read(self) -> list[FrozenTrial]:
        """All trials that have begun, by number. Not to be changed: they are kept."""
        with self._lock:
            ids = self._begun()
            known = {trial_id: trial for trial_id in ids if (trial := self._finished.get(trial_id)) is not None}
            wanted = [trial_id for trial_id in ids if trial_id not in known]
            for start in range(0, len(wanted), _AT_ONCE):
                some = set(wanted[start : start + _AT_ONCE])
                for trial in self.database.retry(lambda some=some: self.storage.trials(self.study_id, some)):  # type: ignore[misc]
                    known[trial._trial_id] = trial
                    self.distributions.update(trial.distributions)
            newer = sorted(known.values(), key=lambda trial: trial.number)
            begun = self._settled + newer
            settled = list(itertools.takewhile(lambda trial: trial.state.is_finished(), newer))
            self._settled = self._settled + settled
            self._finished = {trial._trial_id: trial for trial in newer[len(settled) :] if trial.state.is_finished()}
        return begun

    def _begun(self) -> list[int]:
        """The ids of the trials that have begun and are not settled. If a trial before those has begun since, nothing
        counts as settled any more."""
        waiting: Any = literal_column("'WAITING'")  # a bound string cannot be compared with PostgreSQL's enumeration
        begun = [TRIALS.c.study_id == self.study_id, TRIALS.c.state != waiting]
        last = self._settled[-1]._trial_id if self._settled else -1
        before = select(func.count()).select_from(TRIALS).where(*begun, TRIALS.c.trial_id <= last)
        after = select(TRIALS.c.trial_id).where(*begun, TRIALS.c.trial_id > last).order_by(TRIALS.c.trial_id)

        def ask(connection: Connection) -> tuple[int, list[int]]:
            return connection.execute(before).scalar_one(), list(connection.execute(after).scalars())

        count, ids = self.database.transaction(ask)
        if count == len(self._settled):
            return ids
        self._finished |= {trial._trial_id: trial for trial in self._settled}
        self._settled = []
        return self._begun()


class SearchStorage:
    """The storage as a sampler sees it for one proposal: the history as it was then, of what there is to learn from.

    Baselines, confirmations and controls have no parameters. Shown to a sampler they would count as start-up trials,
    take places among TPE's good ones, empty the GP's common search space and close the grid at its root. All else,
    the writing above all, is passed on. With a ``reference``, the name of a baseline, finished trials have the value of
    their difference to it on the same seed; see :func:`learned`.
    """

    def __init__(self, history: History, number: int, reference: str | None = None) -> None:
        self._storage = history.storage
        self._study_id = history.study_id
        begun = history.read()
        self._trials = [_annealed(trial) for trial in begun if trial.distributions or trial.number == number]
        if reference is not None:
            self._trials = learned(self._trials, reference_scores(begun, reference))
        self._distributions = dict(history.distributions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Known without asking."""
        return self._study_id

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Known without asking."""
        return [StudyDirection.MAXIMIZE]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """The proposed one is at hand; Optuna changes what it gets."""
        known = next((trial for trial in self._trials if trial._trial_id == trial_id), None)
        return copy.deepcopy(known) if known is not None else self._storage.get_trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials with parameters, and the one that is being proposed, as they were when the proposal began."""
        trials = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """As the storage does, without its search for an earlier distribution to compare with."""
        known = self._distributions.get(param_name)
        self._storage._set_trial_param(trial_id, param_name, param_value_internal, distribution, known)


class Rehearsal:
    """The same storage for a proposal that may be turned down: what is written of it stays here."""

    def __init__(self, storage: SearchStorage, trial_id: int) -> None:
        self._storage = storage
        self.trial = storage.get_trial(trial_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """The proposed one as it is here; Optuna changes what it gets."""
        return copy.deepcopy(self.trial) if trial_id == self.trial._trial_id else self._storage.get_trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As the storage's, with the proposed one as it is here."""
        trials = self._storage.get_all_trials(study_id, deepcopy, states)
        return [self.trial if trial._trial_id == self.trial._trial_id else trial for trial in trials]

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Kept here."""
        self.trial.params[param_name] = distribution.to_external_repr(param_value_internal)
        self.trial.distributions[param_name] = distribution

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Kept here."""
        self.trial.system_attrs[key] = value


def _annealed(trial: FrozenTrial) -> FrozenTrial:
    """A pruned trial as judged by the value it was told: TPE would take its last epoch, which may lie in a dip."""
    if trial.state is not TrialState.PRUNED or not trial.intermediate_values or trial.values is None:
        return trial
    seen = copy.copy(trial)
    seen.intermediate_values = {max(trial.intermediate_values): trial.values[0]}
    return seen


def reference_scores(trials: Sequence[FrozenTrial], reference: str) -> dict[int, float]:
    """seed -> score of the baseline called ``reference``, where it has finished."""
    return {
        int(trial.user_attrs["seed"]): trial.values[0]
        for trial in reversed(trials)
        if trial.state is TrialState.COMPLETE
        and trial.user_attrs.get("stage") == "baseline"
        and trial.user_attrs.get("name") == reference
    }


def learned(trials: Sequence[FrozenTrial], reference: Mapping[int, float]) -> list[FrozenTrial]:
    """``trials`` (those with parameters, by number) as a sampler should see them, none of the given ones changed.

    ``reference``: seed -> score of the trunk. A schedule is one trial, with the mean difference of its replicates. A
    finished trial whose seed the trunk has not finished yet appears as running: its difference is not known.
    """
    differences: dict[int, list[float]] = {}
    for trial in trials:
        if trial.state is TrialState.COMPLETE and (difference := _difference(trial, reference)) is not None:
            differences.setdefault(int(trial.user_attrs.get(REPLICATE, trial.number)), []).append(difference)
    means = {number: fmean(each) for number, each in differences.items()}
    return [
        _seen(trial, means.get(trial.number, _difference(trial, reference)))
        for trial in trials
        if REPLICATE not in trial.user_attrs
    ]


def _difference(trial: FrozenTrial, reference: Mapping[int, float]) -> float | None:
    against = reference.get(trial.user_attrs.get("seed", -1))
    return None if against is None or trial.values is None else trial.values[0] - against


def _seen(trial: FrozenTrial, value: float | None) -> FrozenTrial:
    if trial.values is None:
        return trial
    seen = copy.copy(trial)
    if value is None:
        seen.state, seen.values, seen.datetime_complete = TrialState.RUNNING, None, None
        return seen
    seen.values = [value]
    if trial.state is TrialState.PRUNED and trial.intermediate_values:
        seen.intermediate_values = {max(trial.intermediate_values): value}
    return seen


def importance(everything: Sequence[FrozenTrial]) -> tuple[dict[str, float], int]:
    """Parameter -> share of 1 in getting among the best, largest first, and of how many finished search trials.

    PED-ANOVA, which knows parameters that only some trials have (the place of a restart that is off). Empty for fewer
    than 8 trials, or where nothing varies.
    """
    trials = [
        trial
        for trial in everything
        if trial.state is TrialState.COMPLETE
        and trial.user_attrs.get("stage") == "search"
        and trial.params
        and REPLICATE not in trial.user_attrs  # all on the same seed
    ]
    if len(trials) < FEWEST or len({trial.values[0] for trial in trials}) < 2:
        return {}, len(trials)
    searched = optuna.create_study(direction="maximize")
    searched.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental in Optuna; what it is worth stands in the report
        shares = optuna.importance.get_param_importances(searched)
    return {name: float(share) for name, share in shares.items()}, len(trials)
