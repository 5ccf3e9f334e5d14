"""One way to SQLite and PostgreSQL: engines that survive many workers and outages, and our own tables.

Optuna's tables live in the same database. Ours keep out of their way: schema ``sweeper_tables`` on PostgreSQL (not
``sweeper``: a user of that name would meet it first in the search path), the prefix ``sweeper_`` on SQLite. Every time
in them is the database's clock, in seconds since the Unix epoch (UTC), so that workers whose clocks disagree still
agree on whose lease has run out.

This package is the home of SQLAlchemy; the others build their statements with the names it offers.
"""

from sqlalchemy import Connection, column, delete, event, exists, func, literal_column, or_, select, table, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sweeper.database.engine import PATIENCE_S, Database, NothingThere, is_transient, open, parse
from sweeper.database.tables import Tables

__all__ = [
    "PATIENCE_S",
    "Connection",
    "Database",
    "IntegrityError",
    "NothingThere",
    "Session",
    "Tables",
    "column",
    "delete",
    "event",
    "exists",
    "func",
    "is_transient",
    "literal_column",
    "open",
    "or_",
    "parse",
    "select",
    "table",
    "update",
]
