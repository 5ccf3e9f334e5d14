"""The tables of sweeper and the steps that migrate them from version to version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    delete,
    inspect,
    select,
    text,
)

from sweeper.errors import DatabaseError


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
        must("item", String),  # the slot's name in the launched list
        must("first", Boolean),  # baselines and replicates are claimed before all others
        must("state", String, "open"),  # open or closed
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


# By SQLAlchemy's name of the kind of database.
TABLES = {"sqlite": _tables(None, "sweeper_"), "postgresql": _tables("sweeper_tables", "")}

VERSION = 2  # of the tables above and of the attributes that the study stores with its trials


def create(connection: Connection, tables: Tables) -> None:
    """Make the tables where there are none, in the caller's transaction; raises DatabaseError for another version's."""
    if _version(connection, tables) == VERSION:
        return  # without the lock, because many workers begin at once and only the first has something to do
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7305829)"))  # any number, the same for all workers
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS sweeper_tables"))
    version = _version(connection, tables)
    if version not in (0, VERSION):
        where = connection.engine.url.render_as_string(hide_password=True)
        advice = "install the newer sweeper" if version > VERSION else "begin with another database and store"
        raise DatabaseError(f"{where}: its tables have version {version}, this sweeper knows {VERSION}; {advice}")
    tables.metadata.create_all(connection)
    connection.execute(delete(tables.version))
    connection.execute(tables.version.insert().values(version=VERSION))


def exists(connection: Connection, tables: Tables) -> bool:
    """Whether any version of our tables is in this database."""
    return _version(connection, tables) > 0


def _version(connection: Connection, tables: Tables) -> int:
    """The schema's version in this database, 0 where it has none."""
    if not inspect(connection).has_table(tables.version.name, schema=tables.version.schema):
        return 0
    return connection.execute(select(tables.version.c.version)).scalar() or 0
