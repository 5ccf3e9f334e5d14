"""One way to SQLite and PostgreSQL: engines that survive many workers and outages, and our own tables.

Optuna's tables live in the same database. Ours keep out of their way: schema ``sweeper_tables`` on PostgreSQL (not
``sweeper``: a user of that name would meet it first in the search path), the prefix ``sweeper_`` on SQLite. Every time
in them is the database's clock, in seconds since the Unix epoch (UTC), so that workers whose clocks disagree still
agree on whose lease has run out.

This package is the home of SQLAlchemy; the others build their statements with the names it offers.
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

PATIENCE_S = 120.0  # how long an operation is tried again while the database is away; a restart takes seconds
_OPENING_S = 10.0
_REPAIR = "correct --database-url or SWEEPER_DATABASE_URL"


class NothingThere(DatabaseError):
    """There is no database, or no sweep was launched in it; raised where a command only reads."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where}: no sweep is there; launch it first")
        self.where = where


@dataclass(frozen=True)
class Database:
    """An open database: its engine, our tables in it, and work done in transactions that outlast an outage.

    Printed, it is its URL without the password.
    """

    url: URL
    engine: sa.Engine
    tables: Tables = field(repr=False)
    now: sa.ColumnElement[float] = field(repr=False)  # the database's clock, in seconds since the Unix epoch
    patience_s: float = PATIENCE_S

    def __str__(self) -> str:
        return self.url.set(query={}).render_as_string(hide_password=True)  # a query can hold a password, too

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """Do ``work`` in one transaction, again from its start after a transient error.

        Whether a commit whose answer got lost took place is unknown, so ``work`` must bear being done twice.
        """

        def once() -> T:
            with self.engine.begin() as connection:
                return work(connection)

        return self.retry(once)

    def retry(self, work: Callable[[], T]) -> T:
        """Call ``work`` until no transient error comes out of it, for ``patience_s`` seconds.

        Raises DatabaseError when they are over, or at once when trying again is of no use. IntegrityError passes:
        that a row is there already may be just the answer.
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
        """An insert into ``into`` that knows ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
        return (postgresql.insert if self.engine.name == "postgresql" else sqlite.insert)(into)

    def sessions(self) -> scoped_session[Session]:
        """Sessions, one per thread, on this engine."""
        return scoped_session(sessionmaker(bind=self.engine))

    def version(self) -> str:
        """The database's name and version, asked of it."""
        server = self.engine.name == "postgresql"
        question = sa.text("SHOW server_version" if server else "SELECT sqlite_version()")
        answer = self.transaction(lambda connection: connection.scalar(question))
        return f"{'PostgreSQL' if server else 'SQLite'} {answer}"


def open(url: str | Path, *, patience_s: float = PATIENCE_S, create: bool = True) -> Database:
    """Open the database at ``url``, make our tables where they are missing, and return it.

    ``url`` is a ``Path`` or the text ``sqlite:///path`` (made with its folder when missing), or the text
    ``postgresql://user@host/name``. Any other text is refused: a mistyped URL must not become a file of that name.
    SQLite is for one machine: its file locks cannot be trusted over a network. Without ``create`` nothing is made or
    migrated: DatabaseError where our tables are not there.

    Raises DatabaseError at once (an outage is only waited out later): a text that is no URL, unreachable host, refused
    password, a folder that cannot be written, a file that is something else, tables made by a newer version.
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
        # A server that is away is said at once. SQLite may be locked by others who open a new file, too.
        replace(database, patience_s=_OPENING_S if engine.name == "sqlite" else 0.0).retry(prepare)
    except BaseException:
        engine.dispose()
        raise
    return database


def parse(url: str | Path) -> URL:
    """The database that ``url`` names, as in :func:`open`; touches nothing. Raises DatabaseError in one line."""
    if isinstance(url, Path):
        return URL.create("sqlite", database=str(url.expanduser().absolute()))
    try:
        parsed = make_url(url if "://" in url else "")
        a_file = parsed.drivername == "sqlite"
        if (parsed.host or parsed.username) if a_file else (not parsed.database or set("/@") & set(parsed.database)):
            raise ValueError
    except (ArgumentError, ValueError):
        raise DatabaseError(
            f"{without_password(url)!r}: not a database URL; expected postgresql://USER@HOST:PORT/NAME or "
            f"sqlite:///FILE; {_REPAIR}"
        ) from None
    if a_file and parsed.database in (None, "", ":memory:"):
        raise DatabaseError(
            f"{url!r}: a database in memory cannot be shared by workers; expected sqlite:///FILE; {_REPAIR}"
        )
    if a_file:
        return parsed.set(database=str(Path(str(parsed.database)).expanduser()))
    if parsed.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise DatabaseError(f"{parsed.drivername}: not a supported database; expected sqlite or postgresql; {_REPAIR}")
    return parsed.set(drivername="postgresql+psycopg")


def engine_kwargs(url: URL) -> dict[str, Any]:
    """What SQLAlchemy's ``create_engine`` gets beside the URL."""
    if url.get_backend_name() == "sqlite":
        # Python's driver begins no transaction of its own; begin() below does.
        return {"connect_args": {"timeout": 60.0, "isolation_level": None}}
    # A worker needs one connection and its heartbeat another; more would exhaust the server, which has a limit on
    # connections. The timeouts end a session that is frozen inside a transaction and holds locks.
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
    with contextlib.suppress(OSError):  # SQLite says that it cannot open the file
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, **engine_kwargs(url))

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: Any) -> None:
        # A commit appends to the log without waiting for the disk. A killed process loses nothing. After a power cut
        # the last commits may be missing but the database is intact, and trials go on from their last snapshot.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # The write lock is taken at the start. Otherwise a transaction that reads and then writes would fail, or act
        # on outdated rows, when another writes in between.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


# What went wrong, and whether trying again may help.

# SQLSTATE classes and codes that pass: connection lost, resources short, serialization and deadlock, shutting down.
_PASSING = ("08", "40", "53", "57P01", "57P02", "57P03", "57P05", "55P03", "25P03")
# What the server says when a connection is refused for good; there is no SQLSTATE on a failed connection.
_FINAL = ("password", "authentication", "pg_hba.conf", "does not exist", "SSL", "certificate", "permission denied")


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help. Looks at the driver's own error, which other libraries wrap in theirs."""
    cause = _cause_of(error)
    if cause is None:
        return False
    if isinstance(cause, PoolTimeout):
        return True
    if isinstance(cause, sqlite3.Error):
        return isinstance(cause, sqlite3.OperationalError) and any(
            word in str(cause) for word in ("locked", "busy", "full")
        )
    state = getattr(cause, "sqlstate", None)
    if state:
        return str(state).startswith(_PASSING)
    # psycopg's OperationalError without a state: no connection, or it broke.
    operational = any(kind.__name__ == "OperationalError" for kind in type(cause).__mro__)  # ConnectionTimeout is one
    return operational and not any(word in str(cause) for word in _FINAL)


def _cause_of(error: BaseException) -> BaseException | None:
    """The driver's or pool's error at the bottom of ``error``; None if no database is to blame."""
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
    (("unable to open", "readonly", "read-only"), "choose a place that this user can write"),
    (("full",), "free some disk space"),
    (("does not exist",), "create the database first, or correct its name"),
    (("permission denied",), "grant the user CREATE on the database"),
    (("",), "see `sweeper doctor`"),
)


def _explained(error: BaseException) -> str:
    """The error's first line, and what to do about it."""
    text = str(error).strip() or type(error).__name__
    advice = next(advice for words, advice in _ADVICE if any(word in text for word in words))
    return f"{text.splitlines()[0].strip()}; {advice}"
