"""Optuna's storage in which a worker that has lost a trial's lease cannot commit a write to that trial.

The operating system can suspend a worker between its check of the lease and its write, for so long that another worker
adopts the trial. The lease is therefore checked inside the writing transaction: a hook before its commit raises
LeaseLost, which rolls the transaction back. Within :meth:`FencedStorage.fenced` the hook runs before every commit of
Optuna's storage, including the transactions that Optuna itself repeats.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from optuna import __version__ as optuna_version
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from sweeper.database import Database, IntegrityError, Session, engine_kwargs, event
from sweeper.errors import DatabaseError


def check_optuna(storage: RDBStorage | None = None) -> None:
    """Raise DatabaseError, naming the missing attributes, unless Optuna has the private ones that the fence relies on.

    Without this check, an Optuna that keeps its sessions in another attribute would silently write past the fence.
    """
    needed = [(RDBStorage, "check_trial_is_updatable"), (storage, "engine"), (storage, "scoped_session")]
    if missing := [name for holder, name in needed if holder is not None and not hasattr(holder, name)]:
        raise DatabaseError(
            f"Optuna {optuna_version}: RDBStorage.{' and '.join(missing)} is missing; expected the Optuna that sweeper "
            "was written for: pip install 'optuna>=5.0,<5.1'"
        )


class FencedStorage(RDBStorage):
    """Optuna's storage on the engine of ``database``; the module's docstring explains the fence."""

    def __init__(self, database: Database) -> None:
        url = database.url.render_as_string(hide_password=False)
        # Optuna calls url.format(SCHEMA_VERSION=...), so the braces of a password have to be doubled.
        super().__init__(url.replace("{", "{{").replace("}", "}}"), engine_kwargs(database.url))
        check_optuna(self)
        self.engine.dispose()
        self.engine = database.engine
        self.scoped_session = database.sessions()
        self._guards = threading.local()
        event.listen(self.scoped_session, "before_commit", self._before_commit)

    @contextmanager
    def fenced(self, guard: Callable[[Session], None]) -> Iterator[None]:
        """Inside the block, a transaction of this thread commits only if ``guard(session)`` does not raise."""
        self._guards.active = guard
        try:
            yield
        finally:
            self._guards.active = None

    def _before_commit(self, session: Session) -> None:
        if (guard := getattr(self._guards, "active", None)) is not None:
            guard(session)

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """Raise UpdateFinishedTrialError for a finished trial.

        Optuna's own method also reads the trial for its message, which commits the caller's unfinished transaction.
        """
        if trial_state.is_finished():
            raise UpdateFinishedTrialError(f"Trial {trial_id} has finished and cannot be updated.")


def open_storage(database: Database, tries: int = 10) -> FencedStorage:
    """Return the storage, with Optuna's tables created where they are missing.

    Optuna creates them in several steps without a lock, so if two workers do so at once, one of them fails. It tries
    again, up to ``tries`` times, until the other has completed the tables. Raises DatabaseError also for tables of
    another version of Optuna and for an installed Optuna without the attributes of :func:`check_optuna`.
    """
    try:
        return database.retry(lambda: FencedStorage(database))
    except (DatabaseError, IntegrityError) as error:
        if tries == 1 or not (isinstance(error, IntegrityError) or "exist" in str(error)):
            raise
    except RuntimeError as error:
        raise DatabaseError(f"{database}: {' '.join(str(error).split())}") from error
    time.sleep(random.uniform(0.05, 0.5))
    return open_storage(database, tries - 1)
