"""One way to SQLite and PostgreSQL: engines that survive many workers and outages, and our own tables.

Optuna's tables live in the same database. Ours keep out of their way: schema ``sweeper_tables`` on PostgreSQL (not
``sweeper``: a user of that name would meet it first in the search path), the prefix ``sweeper_`` on SQLite. Every time in them is the database's clock, in seconds since the Unix epoch (UTC), so that
workers whose clocks disagree still agree on whose lease has run out.

This module is the home of SQLAlchemy; the others build their statements with the names it offers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import tenacity
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    UniqueConstraint,
    case,
    column,
    create_engine,
    delete,
    event,
    exists,
    func,
    literal_column,
    or_,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sweeper.errors import DatabaseError

__all__ = [
    "Connection",
    "Database",
    "IntegrityError",
    "Select",
    "Session",
    "Tables",
    "case",
    "column",
    "delete",
    "event",
    "exists",
    "func",
    "open",
    "or_",
    "select",
    "table",
    "update",
]

T = TypeVar("T")

PATIENCE_S = 120.0  # how long an operation is tried again while the database is away; a restart takes seconds


@dataclass(frozen=True)
class Tables:
    """Our tables, named for one kind of database."""

    version: Table
    studies: Table
    slots: Table
    workers: Table
    stores: Table
    snapshots: Table
    segments: Table
    pins: Table
    mismatches: Table
    metadata: MetaData


def _tables(schema: str | None, prefix: str) -> Tables:
    metadata = MetaData(schema=schema)

    def make(name: str, *columns: Any) -> Table:
        return Table(prefix + name, metadata, *columns)

    def key(name: str, kind: Any = String) -> Column[Any]:
        return Column(name, kind, primary_key=True, autoincrement=False)

    def must(name: str, kind: Any, default: str | None = None) -> Column[Any]:
        return Column(name, kind, nullable=False, server_default=default)

    version = make("version", key("version", Integer))
    studies = make(
        "studies",
        key("id"),  # our own random name: SQLite gives a deleted study's number to the next one
        Column("name", String, nullable=False, unique=True),
        must("study_id", Integer),  # Optuna's
        must("config", Text),  # JSON
        must("sampler", String),
        must("seed", BigInteger),
    )
    slots = make(
        "slots",
        key("study"),
        key("number", Integer),  # the trial's
        must("trial_id", Integer),  # Optuna's
        Column("item", String),  # the slot's name in the launched list; null once a replacement has taken it over
        must("spec", Text),  # JSON: the slot as launched
        must("first", Boolean),  # baselines are claimed before all others
        must("state", String, "open"),  # open, closed, or foreign: somebody else's `optuna ask` took the trial
        must("started", Boolean, "0" if schema is None else "false"),  # it was us who set the trial to RUNNING
        must("attempt", Integer, "0"),  # the fencing token: grows with every claim
        must("strikes", Integer, "0"),  # attempts that ended badly
        must("reasons", Text, "[]"),  # JSON: why
        Column("worker", String),  # null: nobody
        Column("claim", String),  # one claim's random name, so that a claim whose answer got lost is found again
        Column("expires", Double),
        UniqueConstraint("study", "item"),
        Index(f"{prefix}slots_claim", "study", "state", "first", "number"),
    )
    workers = make(
        "workers",
        key("study"),
        key("worker"),
        must("host", String),
        must("pid", Integer),
        must("device", String),
        Column("number", Integer),
        Column("epoch", Integer),
        must("beat", Double),
    )
    stores = make("stores", key("store"), must("reads", BigInteger, "0"), must("read_bytes", BigInteger, "0"))
    snapshots = make(
        "snapshots",
        key("store"),
        key("key"),
        must("file", String),  # below the store's folder; holds the content's digest, so two writers never meet in it
        must("sha256", String),
        must("state_digest", String),
        must("bytes", BigInteger),
        must("epoch", Integer),
        must("branch", Boolean),
        must("profile", Text),  # JSON
        must("used", Double),
        must("reads", Integer, "0"),
    )
    segments = make("segments", key("store"), key("key"), must("owner", String), must("expires", Double))
    pins = make("pins", key("store"), key("key"), key("owner"))
    mismatches = make(
        "mismatches",
        key("store"),
        key("key"),
        key("digest"),
        must("epoch", Integer),
        must("first_digest", String),
        must("first_profile", Text),  # JSON
        must("profile", Text),  # JSON
        must("seen", Double),
    )
    return Tables(version, studies, slots, workers, stores, snapshots, segments, pins, mismatches, metadata)


_TABLES = {"sqlite": _tables(None, "sweeper_"), "postgresql": _tables("sweeper_tables", "")}

# Schema version n is what the first n of these make; add to the end, never change one that was released.
_MIGRATIONS: Sequence[Callable[[Connection, Tables], None]] = (
    lambda connection, tables: tables.metadata.create_all(connection),
)


@dataclass(frozen=True)
class Database:
    """An open database: its engine, our tables in it, and work done in transactions that outlast an outage.

    ``url`` never shows the password when printed through :meth:`__str__`.
    """

    url: URL
    engine: Engine
    tables: Tables
    patience_s: float = PATIENCE_S
    now: ColumnElement[float] = field(repr=False, default=literal_column("0.0"))

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

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
            cause = _cause(error)
            if cause is None:
                raise
            tried = f" for {self.patience_s:.0f} s" if is_transient(error) else ""
            raise DatabaseError(f"{self}: the database failed{tried}: {_line(cause)}; {_advice(cause)}") from error

    def upsert(self, into: Table) -> Any:
        """An insert into ``into`` that knows ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
        return (postgresql.insert if self.engine.name == "postgresql" else sqlite.insert)(into)

    def sessions(self) -> scoped_session[Session]:
        """Sessions, one per thread, on this engine."""
        return scoped_session(sessionmaker(bind=self.engine))

    def storage_engine_kwargs(self) -> dict[str, Any]:
        """What another library needs to open an engine that behaves like this one."""
        return _engine_kwargs(self.url)

    def close(self) -> None:
        """Close the pooled connections; the next use opens new ones."""
        self.engine.dispose()


def open(url: str | Path, *, patience_s: float = PATIENCE_S) -> Database:
    """Open the database at ``url``, make or migrate our tables, and return it.

    ``url`` is a path or ``sqlite:///path`` (made with its folder when missing), or ``postgresql://user@host/name``.
    SQLite is for one machine: its file locks cannot be trusted over a network.

    Raises DatabaseError at once (an outage is only waited out later): unreachable host, refused password, a folder
    that cannot be written, a file that is something else, tables made by a newer version.
    """
    parsed = _parse(str(url))
    tables = _TABLES[parsed.get_backend_name()]
    if parsed.get_backend_name() == "sqlite":
        engine = _sqlite(parsed)
        now = literal_column("(julianday('now') - 2440587.5) * 86400.0", Double)
    else:
        engine = create_engine(parsed, **_engine_kwargs(parsed))
        now = literal_column("CAST(extract(epoch FROM clock_timestamp()) AS double precision)", Double)
    database = Database(parsed, engine, tables, patience_s, now)
    try:
        with engine.begin() as connection:
            _migrate(connection, database)
    except (SQLAlchemyError, sqlite3.Error) as error:
        engine.dispose()
        cause = _cause(error) or error
        raise DatabaseError(f"{database}: cannot be opened: {_line(cause)}; {_advice(cause)}") from error
    return database


def _parse(url: str) -> URL:
    if "://" not in url:
        url = f"sqlite:///{Path(url).expanduser().absolute()}"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # not shown: it may hold a password
        raise DatabaseError(
            f"{url.partition(':')[0]}://...: not a database URL; expected a path or postgresql://user@host:port/name"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("postgresql+psycopg", "sqlite"):
        raise DatabaseError(f"{parsed.drivername}: not a supported database; expected sqlite or postgresql")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise DatabaseError("sqlite: a database in memory cannot be shared by workers; expected the path of a file")
    return parsed


def _engine_kwargs(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        # No transactions of Python's own making: begin() below says when and how.
        return {"connect_args": {"timeout": 60.0, "isolation_level": None}}
    # A worker needs one connection and its heartbeat another: servers run out of connections before anything else.
    # The timeouts end a session frozen inside a transaction, whose locks would stop everybody.
    return {
        "pool_pre_ping": True,
        "pool_size": 1,
        "max_overflow": 3,
        "pool_timeout": 30,
        "connect_args": {
            "connect_timeout": 5,
            "tcp_user_timeout": 10_000,
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "application_name": "sweeper",
            "options": "-c idle_in_transaction_session_timeout=30000 -c lock_timeout=20000",
        },
    }


def _sqlite(url: URL) -> Engine:
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"{path}: its folder cannot be made: {error.strerror}; choose a writable place") from error
    engine = create_engine(url, **_engine_kwargs(url))

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: Any) -> None:
        # A commit then appends to the log without waiting for the disk. A killed process loses nothing; after a power
        # cut the last commits may be missing, never broken, and their trials go on from the last snapshot.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that first reads and then writes would fail, or act on what it no longer is, when another
        # writes in between: take the write lock at the start.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _migrate(connection: Connection, database: Database) -> None:
    version = database.tables.version
    if database.engine.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7305829)"))  # any number, the same for all workers
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS sweeper_tables"))
    version.create(connection, checkfirst=True)
    found = connection.execute(select(version.c.version)).scalar() or 0
    known = len(_MIGRATIONS)
    if found > known:
        raise DatabaseError(
            f"{database}: its tables have version {found}, this sweeper knows {known}; install the newer sweeper"
        )
    if found == known:
        return
    for step in _MIGRATIONS[found:]:
        step(connection, database.tables)
    connection.execute(delete(version))
    connection.execute(version.insert().values(version=known))


# SQLSTATE classes and codes that pass: connection lost, resources short, serialization and deadlock, shutting down.
_PASSING = ("08", "40", "53", "57P01", "57P02", "57P03", "57P05", "55P03", "25P03")
# What the server says when a connection is refused for good; there is no SQLSTATE on a failed connection.
_FINAL = ("password", "authentication", "pg_hba.conf", "does not exist", "SSL", "certificate", "permission denied")


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help. Looks at the driver's own error, which other libraries wrap in theirs."""
    cause = _cause(error)
    if cause is None:
        return False
    if isinstance(cause, PoolTimeout):
        return True
    if isinstance(cause, sqlite3.Error):
        return isinstance(cause, sqlite3.OperationalError) and any(word in str(cause) for word in ("locked", "busy"))
    state = getattr(cause, "sqlstate", None)
    if state:
        return str(state).startswith(_PASSING)
    # psycopg's OperationalError without a state: no connection, or it broke.
    return type(cause).__name__ == "OperationalError" and not any(word in str(cause) for word in _FINAL)


def _cause(error: BaseException) -> BaseException | None:
    """The driver's or pool's error at the bottom of ``error``; None if no database is to blame."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DBAPIError) and seen.orig is not None:
            return seen.orig
        if isinstance(seen, (PoolTimeout, sqlite3.Error)) or type(seen).__module__.startswith("psycopg"):
            return seen
        if isinstance(seen, SQLAlchemyError) and seen.__cause__ is None:
            return seen
        seen = seen.__cause__
    return None


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _advice(error: BaseException) -> str:
    said = str(error)
    for words, advice in (
        (("password", "authentication", "pg_hba"), "check the user and the password in the database URL"),
        (("resolve host", "refused", "timeout", "timed out", "unreachable"), "check the host, and that it is running"),
        (("not a database",), "choose another path, or remove the file"),
        (("unable to open", "readonly", "read-only"), "choose a place that this user can write"),
        (("full",), "free some disk space"),
        (("does not exist",), "create the database first, or correct its name"),
        (("permission denied",), "grant the user CREATE on the database"),
    ):
        if any(word in said for word in words):
            return advice
    return "see `sweeper doctor`"
