"""The tables of sweeper and the steps that migrate them from version to version."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Integer, String, Table, Text

from sweeper.errors import DatabaseError


class Tables:
    """Our tables, named for one kind of database."""

    def __init__(self, schema: str | None, prefix: str) -> None:
        self.metadata = sa.MetaData(schema=schema)

        def make(name: str, *columns: Any) -> Table:
            return Table(prefix + name, self.metadata, *columns)

        def key(name: str, kind: Any = String) -> Column[Any]:
            return Column(name, kind, primary_key=True, autoincrement=False)

        def must(name: str, kind: Any, default: str | None = None) -> Column[Any]:
            return Column(name, kind, nullable=False, server_default=default)

        self.version = make("version", key("version", Integer))
        self.studies = make(
            "studies",
            key("id"),  # our own random name: SQLite gives a deleted study's number to the next one
            Column("name", String, nullable=False, unique=True),
            must("study_id", Integer),  # Optuna's
            must("config", Text),  # JSON
            must("sampler", String),
            must("seed", sa.BigInteger),
        )
        self.slots = make(
            "slots",
            key("study"),
            key("number", Integer),  # the trial's
            must("trial_id", Integer),  # Optuna's
            must("item", String),  # the slot's name in the launched list
            must("first", sa.Boolean),  # baselines and replicates are claimed before all others
            must("state", String, "open"),  # open or closed
            must("attempt", Integer, "0"),  # the fencing token: grows with every claim
            must("strikes", Integer, "0"),  # attempts that ended badly
            must("reasons", Text, "[]"),  # JSON: why
            Column("worker", String),  # null: nobody
            Column("claim", String),  # one claim's random name, so that a claim whose answer got lost is found again
            Column("expires", sa.Double),
            sa.UniqueConstraint("study", "item"),
            sa.Index(f"{prefix}slots_claim", "study", "state", "first", "number"),
        )
        self.workers = make(
            "workers",
            key("study"),
            key("worker"),
            must("host", String),
            must("pid", Integer),
            must("device", String),
            Column("number", Integer),
            Column("epoch", Integer),
            must("beat", sa.Double),
        )
        self.stores = make(
            "stores", key("store"), must("reads", sa.BigInteger, "0"), must("read_bytes", sa.BigInteger, "0")
        )
        self.snapshots = make(
            "snapshots",
            key("store"),
            key("key"),
            must(
                "file", String
            ),  # below the store's folder; holds the content's digest, so two writers never meet in it
            must("sha256", String),
            must("state_digest", String),
            must("bytes", sa.BigInteger),
            must("epoch", Integer),
            must("branch", sa.Boolean),
            must("profile", Text),  # JSON
            must("used", sa.Double),
            must("reads", Integer, "0"),
        )
        self.segments = make("segments", key("store"), key("key"), must("owner", String), must("expires", sa.Double))
        self.pins = make("pins", key("store"), key("key"), key("owner"))
        self.mismatches = make(
            "mismatches",
            key("store"),
            key("key"),
            key("digest"),
            must("epoch", Integer),
            must("first_digest", String),
            must("first_profile", Text),  # JSON
            must("profile", Text),  # JSON
            must("seen", sa.Double),
        )


# By SQLAlchemy's name of the kind of database.
TABLES = {"sqlite": Tables(None, "sweeper_"), "postgresql": Tables("sweeper_tables", "")}

VERSION = 2  # of the tables above and of the attributes that the study stores with its trials


def create(connection: sa.Connection, tables: Tables) -> None:
    """Make the tables where there are none, in the caller's transaction; raises DatabaseError for another version's."""
    if version(connection, tables) == VERSION:
        return  # without the lock, because many workers begin at once and only the first has something to do
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(7305829)"))  # any number, the same for all workers
        connection.execute(sa.text("CREATE SCHEMA IF NOT EXISTS sweeper_tables"))
    there = version(connection, tables)
    if there not in (0, VERSION):
        where = connection.engine.url.render_as_string(hide_password=True)
        advice = "install the newer sweeper" if there > VERSION else "begin with another database and store"
        raise DatabaseError(f"{where}: its tables have version {there}, this sweeper knows {VERSION}; {advice}")
    tables.metadata.create_all(connection)
    connection.execute(sa.delete(tables.version))
    connection.execute(tables.version.insert().values(version=VERSION))


def version(connection: sa.Connection, tables: Tables) -> int:
    """The schema's version in this database, 0 where it has none."""
    if not sa.inspect(connection).has_table(tables.version.name, schema=tables.version.schema):
        return 0
    return connection.execute(sa.select(tables.version.c.version)).scalar() or 0
