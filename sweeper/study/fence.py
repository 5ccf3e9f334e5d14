"""Optuna's storage in which a trial's writes carry the proof, in their own transaction, that the writer still owns it.

Between asking "is the lease mine?" and writing, a worker can be stopped for any time. So the question is asked inside
the transaction that writes: a hook on its commit, which raises LeaseLost and thereby rolls everything back. It belongs
to every write that Optuna makes for us, also those of its samplers, and to each of its own repetitions.

Relied upon in Optuna: what :func:`check_optuna` looks for whenever a storage is opened; and, held by tests alone, that
each of the methods below is one transaction. Part of it is private, so the next minor version may change it.
"""

from __future__ import annotations

import inspect
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna import __version__ as optuna_version
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from sweeper.database import Database, IntegrityError, Session, event
from sweeper.errors import DatabaseError

Guard = Callable[[Session], None]

#: What is overridden or called here, in ``history`` and in ``slot``, with the names of its parameters.
_RELIED_UPON: dict[tuple[type, str], tuple[str, ...]] = {
    (RDBStorage, "_get_trials"): ("study_id", "states", "included_trial_ids", "trial_id_greater_than"),
    (RDBStorage, "check_trial_is_updatable"): ("trial_id", "trial_state"),
    (RDBStorage, "_create_new_trial"): ("study_id", "template_trial"),
    (RDBStorage, "_set_trial_param"): (
        *("trial_id", "param_name", "param_value_internal", "distribution", "previous_distribution"),
    ),
    (RDBStorage, "set_trial_param"): ("trial_id", "param_name", "param_value_internal", "distribution"),
    (RDBStorage, "set_trial_state_values"): ("trial_id", "state", "values"),
    (RDBStorage, "set_trial_intermediate_value"): ("trial_id", "step", "intermediate_value"),
    (RDBStorage, "set_trial_user_attr"): ("trial_id", "key", "value"),
    (RDBStorage, "set_trial_system_attr"): ("trial_id", "key", "value"),
    (RDBStorage, "get_trial"): ("trial_id",),
    (RDBStorage, "get_all_trials"): ("study_id", "deepcopy", "states"),
    (RDBStorage, "get_study_id_from_name"): ("study_name",),
    (RDBStorage, "get_study_directions"): ("study_id",),
    (Trial, "__init__"): ("study", "trial_id"),
}


def check_optuna() -> None:
    """DatabaseError, naming what differs, unless the installed Optuna has what this package overrides and calls.

    An override that Optuna no longer calls would fence nothing, and nobody would notice.
    """
    wrong = []
    for (kind, name), expected in _RELIED_UPON.items():
        method = getattr(kind, name, None)
        there = None if method is None else tuple(inspect.signature(method).parameters)[1:]
        if there != expected:
            has = "is missing" if there is None else f"takes ({', '.join(there)}), not ({', '.join(expected)})"
            wrong.append(f"{kind.__name__}.{name} {has}")
    if not hasattr(create_trial(value=0.0), "_trial_id"):
        wrong.append("FrozenTrial._trial_id is missing")
    if wrong:
        raise _other_optuna(wrong)


def _other_optuna(wrong: Sequence[str]) -> DatabaseError:
    return DatabaseError(
        f"Optuna {optuna_version}: {'; '.join(wrong)}; expected the Optuna that sweeper was written for: "
        "pip install 'optuna>=5.0,<5.1'"
    )


class FencedStorage(RDBStorage):
    """Optuna's tables in our database, through our engine; see the module for what a fence is."""

    def __init__(self, database: Database) -> None:
        url = database.url.render_as_string(hide_password=False)
        # Optuna fills in {SCHEMA_VERSION}; a password may hold braces.
        super().__init__(url.replace("{", "{{").replace("}", "}}"), database.storage_engine_kwargs())
        if missing := [
            f"RDBStorage.{name} is missing" for name in ("engine", "scoped_session") if name not in vars(self)
        ]:
            raise _other_optuna(missing)
        self.engine.dispose()
        self.engine = database.engine
        self.scoped_session = database.sessions()
        self._here = threading.local()

    def trials(self, study_id: int, trial_ids: set[int]) -> list[FrozenTrial]:
        """These trials in a handful of statements, as Optuna's cache reads them."""
        return self._get_trials(study_id, None, trial_ids, 2**31 - 1)

    @contextmanager
    def fenced(self, guard: Guard) -> Iterator[None]:
        """Every write of this thread inside the block commits only if ``guard(session)`` does not raise."""
        self._here.guard = guard
        try:
            yield
        finally:
            self._here.guard = None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        guard: Guard | None = getattr(self._here, "guard", None)
        if guard is None:
            yield
            return
        session = self.scoped_session()  # the one that the method inside is going to use
        event.listen(session, "before_commit", guard)
        try:
            yield
        finally:
            event.remove(session, "before_commit", guard)

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """Optuna's own reads the trial for its message, in the same session, and thereby commits in mid-transaction."""
        if trial_state.is_finished():
            raise UpdateFinishedTrialError(f"Trial {trial_id} has finished and cannot be updated.")

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        with self._transaction():
            return super()._create_new_trial(study_id, template_trial)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        with self._transaction():
            super()._set_trial_param(trial_id, param_name, param_value_internal, distribution, previous_distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        with self._transaction():
            return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        with self._transaction():
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        with self._transaction():
            super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        with self._transaction():
            super().set_trial_system_attr(trial_id, key, value)


def open_storage(database: Database) -> FencedStorage:
    """The storage, its tables made when missing.

    Optuna makes them in several steps without a lock; of two workers that do so at once one fails, and finds them
    complete when it looks again. Raises DatabaseError also for tables of another version of Optuna, and where the
    installed Optuna is not the one that this package was written for.
    """
    check_optuna()
    for last in (False,) * 9 + (True,):
        try:
            return database.retry(lambda: FencedStorage(database))
        except (DatabaseError, IntegrityError) as error:
            if last or not (isinstance(error, IntegrityError) or "exist" in str(error)):
                raise
            time.sleep(random.uniform(0.05, 0.5))
        except RuntimeError as error:
            raise DatabaseError(f"{database}: {' '.join(str(error).split())}") from error
    raise AssertionError("unreachable")
