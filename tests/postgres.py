"""A throw-away PostgreSQL server for the tests: a fresh cluster on a free port, never as root, gone afterwards."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

PASSWORD = secrets.token_hex(8)

# Ends the server at once, as if it had crashed (the next start recovers), when told to or when the tests have died;
# in the latter case nobody is left to remove its folder.
_KEEPER = 'folder=$0; "$@" & server=$!; read -r said; kill -QUIT $server; wait; [ "$said" ] || rm -rf "$folder"'


def programs() -> Path | None:
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


class Postgres:
    """One server. ``stop`` and ``start`` are the outage; ``database`` empties a database and tells its URL."""

    def __init__(self, programs: Path, *, connections: int = 60) -> None:
        self.programs, self.connections = programs, connections
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        # The server refuses to run as root.
        self.user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        if self.user:
            shutil.chown(self.folder, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self.data = self.folder / "data"
        options = [
            "-U",
            "sweeper",
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--no-sync",
            "--no-locale",
            "-E",
            "UTF8",
        ]
        initdb = [programs / "initdb", "-D", self.data, *options]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self.user)
        self.start()

    def start(self) -> None:
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}"]
        settings += ["fsync=off", f"max_connections={self.connections}", "shared_buffers=32MB"]
        options = [word for setting in settings for word in ("-c", setting)]
        self.server = subprocess.Popen(
            ["sh", "-c", _KEEPER, str(self.folder), self.programs / "postgres", "-D", self.data, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self.folder,
            **self.user,
        )
        for _ in range(200):
            try:
                psycopg.connect(self.plain("postgres")).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise RuntimeError("the server did not come up")

    def stop(self) -> None:
        self.server.communicate(b"stop\n", timeout=30)

    def plain(self, name: str, password: str = PASSWORD) -> str:
        return f"postgresql://sweeper:{password}@127.0.0.1:{self.port}/{name}"

    def database(self, name: str = "sweep") -> str:
        """The database ``name``, empty: a dozen of dropped tables cost less than a new database's 300 files."""
        with psycopg.connect(self.plain("postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
            if known is None:
                connection.execute(f"CREATE DATABASE {name}")
            leave = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            connection.execute(leave, [name])
        with psycopg.connect(self.plain(name), autocommit=True) as connection:
            connection.execute("SET client_min_messages = warning")
            connection.execute("DROP SCHEMA IF EXISTS sweeper_tables CASCADE")
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return self.plain(name)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server, started when the first test asks for it."""
    found = programs()
    if found is None:
        pytest.skip("needs PostgreSQL's initdb and postgres (apt-get install postgresql)")
    server = Postgres(found)
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sweep.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()
