"""The database: opened once by many, clear about what is wrong, patient when it is away."""

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psycopg
import pytest
from postgres import Postgres

from sweeper import database
from sweeper.database import Connection, Database, IntegrityError, is_transient, select, update
from sweeper.errors import DatabaseError


def clock(opened: Database) -> float:
    return float(opened.transaction(lambda connection: connection.execute(select(opened.now)).scalar_one()))


def test_time_is_the_databases_in_seconds_since_1970(url: str) -> None:
    opened = database.open(url)
    assert clock(opened) == pytest.approx(time.time(), abs=5)
    first = clock(opened)
    time.sleep(0.02)
    assert 0.01 < clock(opened) - first < 5


def test_our_tables_do_not_meet_optunas(url: str) -> None:
    opened = database.open(url)
    names = {table.fullname for table in opened.tables.metadata.sorted_tables}
    assert all(name.startswith(("sweeper_tables.", "sweeper_")) for name in names)


def test_opening_again_keeps_what_is_there(url: str) -> None:
    first = database.open(url)
    first.transaction(lambda c: c.execute(first.tables.stores.insert().values(store="mine")))
    again = database.open(url)
    assert again.transaction(lambda c: c.execute(select(again.tables.stores.c.store)).scalars().all()) == ["mine"]


def _open_at(url: str, at: float) -> None:
    time.sleep(max(0.0, at - time.time()))
    database.open(url)


def test_many_processes_may_open_a_new_database_at_once(url: str) -> None:
    context, at = get_context("fork"), time.time() + 0.3
    processes = [context.Process(target=_open_at, args=(url, at)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8


def test_the_database_of_an_earlier_version_is_refused_in_a_line(url: str) -> None:
    opened = database.open(url)
    version = opened.tables.version
    opened.transaction(lambda c: c.execute(update(version).values(version=1)))
    with pytest.raises(DatabaseError, match=r"version 1, this sweeper knows \d+; begin with another database"):
        database.open(url)


def test_a_newer_databases_version_is_named(url: str) -> None:
    opened = database.open(url)
    version = opened.tables.version
    opened.transaction(lambda c: c.execute(update(version).values(version=99)))
    with pytest.raises(DatabaseError, match=r"version 99, this sweeper knows \d+; install the newer"):
        database.open(url)


def test_counting_up_from_many_threads_loses_nothing(url: str) -> None:
    opened = database.open(url)
    stores = opened.tables.stores
    opened.transaction(lambda c: c.execute(stores.insert().values(store="s", reads=0)))

    def read_then_write(connection: Connection) -> None:
        reads = connection.execute(select(stores.c.reads).with_for_update()).scalar_one()
        connection.execute(update(stores).values(reads=reads + 1))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(opened.transaction, read_then_write) for _ in range(100)]:
            done.result()
    assert opened.transaction(lambda c: c.execute(select(stores.c.reads)).scalar_one()) == 100


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:secret@127.0.0.1:1/x", "refused; check the host"),
        ("postgresql://u:secret@no-such-host.invalid/x", "resolve host .* check the host"),
        ("mysql://u:secret@host/x", "expected sqlite or postgresql"),
        ("sqlite://", "in memory cannot be shared"),
        ("postgresql://u:secret@host:port/x", "not a database URL; expected postgresql://USER@HOST"),
        ("sqlite:////dev/null/sweep.db", "unable to open .*; choose a path that this user can write"),
        ("sqlite:////proc/sweep.db", "choose a path that this user can write"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_without_the_password(url: str, said: str) -> None:
    begun = time.monotonic()
    with pytest.raises(DatabaseError, match=said) as caught:
        database.open(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert time.monotonic() - begun < 10


def test_a_file_that_is_something_else_is_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("this is no database, and longer than a header of sixteen bytes")
    with pytest.raises(DatabaseError, match="not a database; choose another path"):
        database.open(other)
    assert other.read_text().startswith("this is no database")


def test_a_wrong_password_is_refused_at_once(postgres: Postgres) -> None:
    right = postgres.database()
    wrong = right.replace(right.split(":")[2].split("@")[0], "wr0ng")
    begun = time.monotonic()
    with pytest.raises(DatabaseError, match=r"password authentication failed.*; check the user and the password"):
        database.open(wrong)
    assert time.monotonic() - begun < 5
    with pytest.raises(DatabaseError, match="does not exist; create the database first"):
        database.open(postgres.plain("nowhere"))


def test_no_permission_is_named(postgres: Postgres) -> None:
    url = postgres.database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    guest = f"postgresql://guest:guest@{url.partition('@')[2]}"
    with pytest.raises(DatabaseError, match=r"permission denied .*; grant the user CREATE"):
        database.open(guest)


def test_an_outage_is_waited_out(postgres: Postgres) -> None:
    opened = database.open(postgres.database())
    clock(opened)
    postgres.stop()
    back = threading.Timer(3.0, postgres.start)
    back.start()
    begun = time.monotonic()
    try:
        clock(opened)
    finally:
        back.join()
    assert 2.0 < time.monotonic() - begun < 30


def test_patience_ends(postgres: Postgres) -> None:
    opened = database.open(postgres.database(), patience_s=1.0)
    postgres.stop()
    try:
        with pytest.raises(DatabaseError, match=r"failed for 1 s: .*; check the host"):
            clock(opened)
    finally:
        postgres.start()


def test_bad_data_is_not_tried_again(url: str) -> None:
    opened = database.open(url)
    calls = []

    def twice_the_same(connection: Connection) -> None:
        calls.append(1)
        for _ in range(2):
            connection.execute(opened.tables.stores.insert().values(store="same"))

    with pytest.raises(IntegrityError):
        opened.transaction(twice_the_same)
    assert len(calls) == 1


def test_a_writer_waits_for_another(tmp_path: Path) -> None:
    opened = database.open(tmp_path / "sweep.db")
    inside, order = threading.Event(), []

    def slow(connection: Connection) -> None:
        inside.set()
        time.sleep(0.3)
        order.append("slow")

    thread = threading.Thread(target=opened.transaction, args=(slow,))
    thread.start()
    inside.wait()
    opened.transaction(lambda connection: order.append("next"))
    thread.join()
    assert order == ["slow", "next"]


def test_our_own_mistakes_are_not_transient() -> None:
    assert not is_transient(KeyError("x"))
    assert not is_transient(ValueError("the database is locked"))


def test_a_server_that_does_not_answer_is_an_outage() -> None:
    """A cut network, unlike a stopped server, refuses nothing: the connection's own time-out is all one hears."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(psycopg.OperationalError) as raised:
            psycopg.connect(f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/x", connect_timeout=2)
    assert is_transient(raised.value)


def test_folder_is_made(tmp_path: Path) -> None:
    database.open(tmp_path / "a" / "b" / "sweep.db")
    assert os.path.exists(tmp_path / "a" / "b" / "sweep.db")
