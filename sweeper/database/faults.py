"""What went wrong, and whether trying again may help."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# SQLSTATE classes and codes that pass: connection lost, resources short, serialization and deadlock, shutting down.
_PASSING = ("08", "40", "53", "57P01", "57P02", "57P03", "57P05", "55P03", "25P03")
# What the server says when a connection is refused for good; there is no SQLSTATE on a failed connection.
_FINAL = ("password", "authentication", "pg_hba.conf", "does not exist", "SSL", "certificate", "permission denied")


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help. Looks at the driver's own error, which other libraries wrap in theirs."""
    cause = cause_of(error)
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


def cause_of(error: BaseException) -> BaseException | None:
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


def line_of(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def advice_for(error: BaseException) -> str:
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
