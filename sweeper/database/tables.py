"""The tables of sweeper, and their version."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Integer, String, Table, Text

from sweeper.errors import DatabaseError


class Tables:
    """The tables of sweeper, in ``schema`` and with ``prefix`` before their names."""

    def __init__(self, schema: str | None, prefix: str) -> None:
        self.metadata = sa.MetaData(schema=schema)

        def define(name: str, *columns: Any) -> Table:
            return Table(prefix + name, self.metadata, *columns)

        def key(name: str, kind: Any = String) -> Column[Any]:
            return Column(name, kind, primary_key=True, autoincrement=False)

        def required(name: str, kind: Any, default: str | None = None) -> Column[Any]:
            return Column(name, kind, nullable=False, server_default=default)

        self.version = define("version", key("version", Integer))
        self.studies = define(
            "studies",
            key("id"),  # Random, because SQLite reuses the number of a deleted study.
            Column("name", String, nullable=False, unique=True),
            required("study_id", Integer),  # Optuna's id of the study.
            required("config", Text),  # JSON.
            required("sampler", String),
            required("seed", sa.BigInteger),  # The sampler's seed.
        )
        self.slots = define(
            "slots",
            key("study"),
            key("number", Integer),  # The trial's number.
            required("trial_id", Integer),  # Optuna's id of the trial.
            required("item", String),  # Identifies the wanted trial, so that it is created only once.
            required("first", sa.Boolean),  # Baselines and replicates are claimed before all others.
            required("state", String, "open"),  # "open" or "closed".
            required("attempt", Integer, "0"),  # The fencing token, which grows with every claim.
            required("strikes", Integer, "0"),  # Bad attempts in a row, without a new epoch in between.
            required("reasons", Text, "[]"),  # JSON: why earlier attempts ended.
            Column("worker", String),  # NULL: no worker holds the trial.
            Column("claim", String),  # A random id of the claim: if its transaction is repeated, it finds its own row.
            Column("expires", sa.Double),
            sa.UniqueConstraint("study", "item"),
            sa.Index(f"{prefix}slots_claim", "study", "state", "first", "number"),
        )
        self.workers = define(
            "workers",
            key("study"),
            key("worker"),
            required("host", String),
            required("pid", Integer),
            required("device", String),
            Column("number", Integer),  # The trial that the worker trains; NULL: none.
            Column("epoch", Integer),
            required("beat", sa.Double),  # The time of the last heartbeat.
        )
        self.stores = define(
            "stores", key("store"), required("reads", sa.BigInteger, "0"), required("read_bytes", sa.BigInteger, "0")
        )
        self.snapshots = define(
            "snapshots",
            key("store"),
            key("key"),
            required("file", String),  # The path in the store; it contains the content's digest.
            required("sha256", String),
            required("state_digest", String),
            required("bytes", sa.BigInteger),
            required("epoch", Integer),
            required("branch", sa.Boolean),  # Whether trials branch here; such snapshots are evicted last.
            required("profile", Text),  # JSON: the machine that trained it.
            required("used", sa.Double),  # The time of the last use.
            required("reads", Integer, "0"),
        )
        self.segments = define(
            "segments", key("store"), key("key"), required("owner", String), required("expires", sa.Double)
        )
        self.pins = define("pins", key("store"), key("key"), key("owner"))
        self.mismatches = define(
            "mismatches",
            key("store"),
            key("key"),
            key("digest"),
            required("epoch", Integer),
            required("first_digest", String),
            required("first_profile", Text),  # JSON.
            required("profile", Text),  # JSON.
            required("seen", sa.Double),
        )


TABLES = {"sqlite": Tables(None, "sweeper_"), "postgresql": Tables("sweeper_tables", "")}  # By SQLAlchemy's backend.

VERSION = 2  # The version of these tables and of the attributes that the study stores with its trials.


def create(connection: sa.Connection, tables: Tables) -> None:
    """Create the tables if there are none, in the caller's transaction; raises DatabaseError for another version."""
    if version(connection, tables) == VERSION:
        return  # Without the lock below, which many workers that start at once would otherwise wait for.
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(7305829)"))  # An arbitrary number, equal for all.
        connection.execute(sa.text("CREATE SCHEMA IF NOT EXISTS sweeper_tables"))
    existing = version(connection, tables)
    if existing not in (0, VERSION):
        where = connection.engine.url.render_as_string(hide_password=True)
        advice = "install the newer sweeper" if existing > VERSION else "begin with another database and store"
        raise DatabaseError(f"{where}: its tables have version {existing}, this sweeper knows {VERSION}; {advice}")
    tables.metadata.create_all(connection)
    connection.execute(sa.delete(tables.version))
    connection.execute(tables.version.insert().values(version=VERSION))


def version(connection: sa.Connection, tables: Tables) -> int:
    """Return the version of sweeper's tables in this database; 0 if there are none."""
    if not sa.inspect(connection).has_table(tables.version.name, schema=tables.version.schema):
        return 0
    return connection.execute(sa.select(tables.version.c.version)).scalar() or 0
