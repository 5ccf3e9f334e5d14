"""Optuna's storage in which a trial's writes carry the proof, in their own transaction, that the writer still owns it.

Between asking "is the lease mine?" and writing, a worker can be stopped for any time. So the question is asked inside
the transaction that writes: a hook on its commit, which raises LeaseLost and thereby rolls everything back. It belongs
to every commit of Optuna's while :meth:`FencedStorage.fenced` is active, also to each of its own repetitions.
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
    """DatabaseError, naming what is missing, unless the installed Optuna has what this package relies upon in private.

    A storage that keeps its sessions elsewhere would be written past the fence, and nobody would notice.
    """
    needed = [(RDBStorage, "check_trial_is_updatable"), (storage, "engine"), (storage, "scoped_session")]
    if missing := [name for holder, name in needed if holder is not None and not hasattr(holder, name)]:
        raise DatabaseError(
            f"Optuna {optuna_version}: RDBStorage.{' and '.join(missing)} is missing; expected the Optuna that sweeper "
            "was written for: pip install 'optuna>=5.0,<5.1'"
        )


class FencedStorage(RDBStorage):
    """Optuna's tables in our database, through our engine; see the module for what a fence is."""

    def __init__(self, database: Database) -> None:
        url = database.url.render_as_string(hide_password=False)
        # Optuna fills in {SCHEMA_VERSION}; a password may hold braces.
        super().__init__(url.replace("{", "{{").replace("}", "}}"), engine_kwargs(database.url))
        check_optuna(self)
        self.engine.dispose()
        self.engine = database.engine
        self.scoped_session = database.sessions()
        self._guards = threading.local()
        event.listen(self.scoped_session, "before_commit", self._before_commit)

    @contextmanager
    def fenced(self, guard: Callable[[Session], None]) -> Iterator[None]:
        """Every transaction of this thread inside the block commits only if ``guard(session)`` does not raise."""
        self._guards.active = guard
        try:
            yield
        finally:
            self._guards.active = None

    def _before_commit(self, session: Session) -> None:
        if (guard := getattr(self._guards, "active", None)) is not None:
            guard(session)

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """Optuna's own reads the trial for its message, in the same session, and thereby commits in mid-transaction."""
        if trial_state.is_finished():
            raise UpdateFinishedTrialError(f"Trial {trial_id} has finished and cannot be updated.")


def open_storage(database: Database, tries: int = 10) -> FencedStorage:
    """The storage, its tables made when missing.

    Optuna makes them in several steps without a lock; of two workers that do so at once one fails, and finds them
    complete when it looks again. Raises DatabaseError also for tables of another version of Optuna, and where the
    installed Optuna is not the one that this package was written for.
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
