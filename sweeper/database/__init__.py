"""Access to SQLite and PostgreSQL for many workers, across outages, and the tables of sweeper.

Optuna's tables are in the same database. To avoid equal names, sweeper's tables are in the schema ``sweeper_tables`` on
PostgreSQL and have the prefix ``sweeper_`` on SQLite. The schema is not called ``sweeper``, because PostgreSQL creates
tables in the schema with the user's name if there is one: for a user ``sweeper``, Optuna's tables would come into it.
Every stored time is read from the database's clock, in seconds since the Unix epoch (UTC), so that workers whose clocks
differ agree on which leases have expired.

Only this package imports SQLAlchemy; the others build their statements with the names that it exports.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import tenacity
from sqlalchemy import Connection, column, delete, event, exists, func, or_, select, table, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sweeper.database import tables as our_tables
from sweeper.database.tables import Tables
from sweeper.errors import DatabaseError, without_password

__all__ = [
    "PATIENCE_S", "Connection", "Database", "IntegrityError", "NothingThere", "Session", "Tables", "column", "delete",
    "engine_kwargs", "event", "exists", "func", "is_transient", "open", "or_", "parse", "select", "table", "update",
]  # fmt: skip

T = TypeVar("T")

PATIENCE_S = 120.0  # How long an operation is repeated during an outage; a restart of PostgreSQL takes seconds.
_OPENING_S = 10.0  # The same while an SQLite file is opened, which other processes may just be creating.
_REPAIR = "correct --database-url or SWEEPER_DATABASE_URL"


class NothingThere(DatabaseError):
    """The database or its tables do not exist; raised where a command only reads, and so must not create them."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where}: contains no sweep; launch it first")
        self.where = where


@dataclass(frozen=True)
class Database:
    """An open database: its engine, sweeper's tables in it, and transactions that are repeated after an outage.

    ``str()`` gives its URL without the password.
    """

    url: URL
    engine: sa.Engine
    tables: Tables = field(repr=False)
    now: sa.ColumnElement[float] = field(repr=False)  # The database's clock, in seconds since the Unix epoch.
    patience_s: float = PATIENCE_S

    def __str__(self) -> str:
        return self.url.set(query={}).render_as_string(hide_password=True)  # The query part may have a password, too.

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)`` of one transaction, which is repeated from its start after a transient error.

        If the connection breaks during a commit, it is unknown whether the database has committed. ``work`` must
        therefore give the right result also when it is committed twice.
        """

        def once() -> T:
            with self.engine.begin() as connection:
                return work(connection)

        return self.retry(once)

    def retry(self, work: Callable[[], T]) -> T:
        """Return ``work()``, which is repeated after transient errors for at most ``patience_s`` seconds.

        Raises DatabaseError after that time, and at once for an error that a repetition cannot mend. IntegrityError is
        raised as it is, because a caller may insert a row to learn whether it exists.
        """
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            stop=tenacity.stop_after_delay(self.patience_s),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=3.0),
            reraise=True,
        )
        try:
            return tries(work)
        except IntegrityError:
            raise
        except Exception as error:
            cause = _cause_of(error)
            if cause is None:
                raise
            tried = f" for {self.patience_s:.0f} s" if self.patience_s and is_transient(error) else ""
            raise DatabaseError(f"{self}: the database failed{tried}: {_explained(cause)}") from error

    def upsert(self, into: sa.Table) -> Any:
        """Return an insert that has ``on_conflict_do_nothing`` and ``on_conflict_do_update``, for either database."""
        return (postgresql.insert if self.engine.name == "postgresql" else sqlite.insert)(into)

    def sessions(self) -> scoped_session[Session]:
        """Return a registry of sessions on this engine, one session per thread."""
        return scoped_session(sessionmaker(bind=self.engine))

    def version(self) -> str:
        """Query the database for its product and version, for instance "SQLite 3.45.1"."""
        server = self.engine.name == "postgresql"
        query = sa.text("SHOW server_version" if server else "SELECT sqlite_version()")
        version = self.transaction(lambda connection: connection.scalar(query))
        return f"{'PostgreSQL' if server else 'SQLite'} {version}"


def open(url: str | Path, *, patience_s: float = PATIENCE_S, create: bool = True) -> Database:
    """Open the database at ``url``, create sweeper's tables where they are missing, and return it.

    ``url`` is a ``Path`` or ``sqlite:///path`` (a file that is created, with its folder, if it is missing) or
    ``postgresql://user@host/name``. Any other text is refused, because a mistyped URL must not become a file of that
    name. SQLite is for one machine, because its file locks are unreliable on network file systems. Without ``create``
    nothing is created, and NothingThere is raised where sweeper's tables are missing.

    Raises DatabaseError for an invalid URL, an unreachable host, a refused password, a folder that cannot be written, a
    file that is no SQLite database, and tables of another version. It does not wait for a server that does not answer;
    only the later operations outlast an outage.
    """
    parsed = parse(url)
    tables = our_tables.TABLES[parsed.get_backend_name()]
    if parsed.get_backend_name() == "sqlite":
        if not create and not Path(str(parsed.database)).is_file():
            raise NothingThere(str(parsed.database))
        engine = _sqlite(parsed)
        now = sa.literal_column("(julianday('now') - 2440587.5) * 86400.0", sa.Double)
    else:
        engine = sa.create_engine(parsed, **engine_kwargs(parsed))
        now = sa.literal_column("CAST(extract(epoch FROM clock_timestamp()) AS double precision)", sa.Double)
    database = Database(parsed, engine, tables, now, patience_s)

    def prepare() -> None:
        with engine.begin() as connection:
            if not create and not our_tables.version(connection, tables):
                raise NothingThere(str(database))
            our_tables.create(connection, tables)

    try:
        # An unreachable server is reported at once. SQLite is repeated for some seconds, because other processes that
        # open the same new file may hold its lock.
        replace(database, patience_s=_OPENING_S if engine.name == "sqlite" else 0.0).retry(prepare)
    except BaseException:
        engine.dispose()
        raise
    return database


def parse(url: str | Path) -> URL:
    """Return SQLAlchemy's URL of the database ``url``, see :func:`open`, without connecting; raises DatabaseError."""
    if isinstance(url, Path):
        return URL.create("sqlite", database=str(url.expanduser().absolute()))
    try:
        parsed = make_url(url if "://" in url else "")
        is_file = parsed.drivername == "sqlite"
        if (parsed.host or parsed.username) if is_file else (not parsed.database or set("/@") & set(parsed.database)):
            raise ValueError
    except (ArgumentError, ValueError):
        raise DatabaseError(
            f"{without_password(url)!r}: not a database URL; expected postgresql://USER@HOST:PORT/NAME or "
            f"sqlite:///FILE; {_REPAIR}"
        ) from None
    if is_file and parsed.database in (None, "", ":memory:"):
        raise DatabaseError(
            f"{url!r}: a database in memory cannot be shared by workers; expected sqlite:///FILE; {_REPAIR}"
        )
    if is_file:
        return parsed.set(database=str(Path(str(parsed.database)).expanduser()))
    if parsed.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise DatabaseError(f"{parsed.drivername}: not a supported database; expected sqlite or postgresql; {_REPAIR}")
    return parsed.set(drivername="postgresql+psycopg")


def engine_kwargs(url: URL) -> dict[str, Any]:
    """Return the keyword arguments of SQLAlchemy's ``create_engine`` for the database ``url``."""
    if url.get_backend_name() == "sqlite":
        # isolation_level None keeps Python's driver from beginning transactions; begin() in _sqlite does it instead.
        return {"connect_args": {"timeout": 60.0, "isolation_level": None}}
    # The pool is small, because a server limits its connections: a worker uses one, and one for the thread that renews
    # its leases. The timeouts in "options" end the session of a worker that is suspended inside a transaction, so that
    # its locks do not stop the other workers.
    return {
        "pool_pre_ping": True,
        "pool_size": 1,
        "max_overflow": 3,
        "connect_args": {
            "connect_timeout": 5,
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "application_name": "sweeper",
            "options": "-c idle_in_transaction_session_timeout=30000 -c lock_timeout=20000",
        },
    }


def _sqlite(url: URL) -> sa.Engine:
    path = Path(str(url.database))
    with contextlib.suppress(OSError):  # SQLite then reports that it cannot open the file.
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, **engine_kwargs(url))

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: Any) -> None:
        # A commit appends to the write-ahead log without waiting for the disk. The death of a process loses no commit.
        # After a power failure the last commits may be missing, but the database is intact, and trials continue from
        # their last snapshot.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Every transaction takes the write lock when it begins. Otherwise a transaction that reads and then writes
        # would fail with "database is locked" if another process wrote in between.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


# Classification of errors.

# SQLSTATE codes, or their beginnings, of transient errors: lost connection (08), serialization failure and deadlock
# (40), insufficient resources (53), shutdown and ended sessions (57P), lock timeout (55P03), idle transaction (25P03).
_TRANSIENT_STATES = ("08", "40", "53", "57P01", "57P02", "57P03", "57P05", "55P03", "25P03")
# Parts of the message of a connection that is refused permanently; a failed connection has no SQLSTATE.
_PERMANENT = ("password", "authentication", "pg_hba.conf", "does not exist", "SSL", "certificate", "permission denied")


def is_transient(error: BaseException) -> bool:
    """Whether a repetition may succeed, judged by the driver's error, which SQLAlchemy and Optuna wrap in theirs."""
    cause = _cause_of(error)
    if cause is None:
        return False
    if isinstance(cause, PoolTimeout):
        return True
    if isinstance(cause, sqlite3.Error):
        return isinstance(cause, sqlite3.OperationalError) and any(
            part in str(cause) for part in ("locked", "busy", "full")
        )
    state = getattr(cause, "sqlstate", None)
    if state:
        return str(state).startswith(_TRANSIENT_STATES)
    # psycopg raises an OperationalError, or a subclass of it, without SQLSTATE if a connection fails or breaks.
    operational = any(kind.__name__ == "OperationalError" for kind in type(cause).__mro__)
    return operational and not any(part in str(cause) for part in _PERMANENT)


def _cause_of(error: BaseException) -> BaseException | None:
    """Return the error of the driver or pool that caused ``error``; None if it does not come from a database."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, DBAPIError) and inner.orig is not None:
            return inner.orig
        if isinstance(inner, (PoolTimeout, sqlite3.Error)) or type(inner).__module__.startswith("psycopg"):
            return inner
        if isinstance(inner, SQLAlchemyError) and inner.__cause__ is None:
            return inner
        inner = inner.__cause__
    return None


_ADVICE = (
    (("password", "authentication", "pg_hba"), "check the user and the password in the database URL"),
    (("resolve host", "refused", "timeout", "timed out", "unreachable"), "check the host, and that it is running"),
    (("not a database",), "choose another path, or remove the file"),
    (("unable to open", "readonly", "read-only"), "choose a path that this user can write"),
    (("full",), "free some disk space"),
    (("does not exist",), "create the database first, or correct its name"),
    (("permission denied",), "grant the user CREATE on the database"),
    (("",), "see `sweeper doctor`"),
)


def _explained(error: BaseException) -> str:
    """Return the first line of the error's message, followed by advice."""
    text = str(error).strip() or type(error).__name__
    advice = next(advice for parts, advice in _ADVICE if any(part in text for part in parts))
    return f"{text.splitlines()[0].strip()}; {advice}"
