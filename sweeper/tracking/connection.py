"""The connection to MLflow, which is imported at the first request, because the import takes seconds."""

import contextlib
import logging
import os
import re
import signal
import sqlite3
import urllib.parse
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from sweeper.errors import TrackingError, TrackingRefused, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # The uploader repeats failed requests itself.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
FILES = "mlartifacts"  # The folder of artifacts beside an SQLite store; `mlflow server` uses this name by default.
SERVED = "mlflow-artifacts:/"  # The beginning of an artifact URI that leaves the location to the MLflow server.
_LOCK_TIMEOUT = 30  # Seconds to wait for the other writers of an SQLite store, each of which takes milliseconds.


class Refused(TrackingError):
    """The server will refuse this request however often it is sent."""


class Gone(TrackingError):
    """The run does not exist (any more)."""


def check_uri(uri: str) -> None:
    """Raise TrackingError unless ``uri`` names an MLflow server or store; MLflow would take any text for a folder."""
    file = uri.startswith("sqlite:///") and uri.removeprefix("sqlite:///").strip("/")
    try:
        parts = urllib.parse.urlsplit(uri)
        server = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", uri)
    except ValueError:
        server = False
    if not (server or file):
        raise TrackingError(
            f"tracking {without_password(uri)!r}: not an MLflow server; expected http(s)://HOST:PORT or sqlite:///FILE"
            "; correct --tracking-uri or MLFLOW_TRACKING_URI"
        )


def set_environment() -> None:
    """Set MLflow's environment variables, before its import, so that it sends, prints and repeats nothing itself."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class Connection:
    """An MLflow server (``http(s)://``) or store (``sqlite:///FILE``). The constructor does not connect."""

    def __init__(self, uri: str) -> None:
        check_uri(uri)
        path = uri.removeprefix("sqlite:///")
        self.file = None if path == uri else Path(path).expanduser().resolve()
        self.uri = f"sqlite:///{self.file}" if self.file else uri.rstrip("/")
        self._client: MlflowClient | None = None
        #: Lets one process write to an SQLite store at a time; a second one would fail with "database is locked".
        self.write_lock: contextlib.AbstractContextManager[Any] = (
            FileLock(f"{self.file}.lock", _LOCK_TIMEOUT, poll_interval=0.005) if self.file else contextlib.nullcontext()
        )

    def __str__(self) -> str:
        return re.sub(r"//[^@/]*@", "//", self.uri)  # Without the password.

    def check_access(self, timeout: float) -> None:
        """Raise TrackingError unless a server answers within ``timeout`` seconds and grants access; a store passes."""
        if not self.uri.startswith("http"):
            return
        try:
            answer = self._get(
                "/api/2.0/mlflow/experiments/search",
                params={"max_results": 1},
                max_retries=0,
                timeout=timeout,
                raise_on_status=False,
            )
        except Exception as error:  # MLflow raises exceptions of several classes if it cannot connect.
            raise TrackingError(
                f"tracking {self}: no answer within {timeout:g} s ({_line(error, 120)}); start it or change the address"
            ) from None
        if answer.status_code == 401:
            raise TrackingRefused(
                f"tracking {self}: user {os.environ.get('MLFLOW_TRACKING_USERNAME')!r} or the password is refused; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if answer.status_code == 403:
            raise TrackingRefused(
                f"tracking {self}: refused (403: {_line(answer.text, 100)}); "
                "start the server with --allowed-hosts for this name, or give the user permission"
            )
        if answer.status_code != 200:
            raise TrackingError(f"tracking {self}: answers {answer.status_code}; expected an MLflow server")

    @contextlib.contextmanager
    def writing(self) -> Iterator["MlflowClient"]:
        """As :meth:`session`, while no other process writes to an SQLite store."""
        with self.session() as client, self.write_lock:
            yield client

    def client(self) -> "MlflowClient":
        """Return MLflow's client, which is made at the first call, because importing MLflow takes seconds."""
        if self._client is None:
            set_environment()
            from mlflow import MlflowClient
            from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

            repositories: dict[str, Any] = get_registered_artifact_repositories()
            repositories["mlflow-artifacts"] = _artifacts
            # MLflow imports polars, which has system calls restarted after SIGINT, so that Ctrl-C would not end a wait.
            signal.siginterrupt(signal.SIGINT, True)
            for name in ("mlflow.store.db.utils", "alembic", "mlflow.tracking", "mlflow.utils.validation"):
                logging.getLogger(name).setLevel(logging.CRITICAL)  # They log a busy database and a truncated text.
            with self.write_lock:
                if self.file:
                    if not self.file.exists():
                        _create_store(self.file)
                    with contextlib.closing(sqlite3.connect(self.file, timeout=20)) as database:
                        database.execute("PRAGMA journal_mode=WAL")  # Readers then do not wait for the writer.
                self._client = MlflowClient(self.uri, self.uri)
        return self._client

    def version(self) -> str:
        """Return the server's version of MLflow; for a store without a server, the installed version."""
        if not self.uri.startswith("http"):
            return metadata.version("mlflow")
        with self.session():
            return str(self._get("/version").text).strip()

    def _get(self, path: str, **options: Any) -> Any:
        """Return the server's response to GET ``path``, sent with the credentials that MLflow's client uses."""
        self.client()  # This sets MLflow's environment variables before its modules are imported below.
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        credentials = get_default_host_creds(self.uri)  # type: ignore[no-untyped-call]
        return http_request(credentials, path, "GET", **options)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def session(self) -> Iterator["MlflowClient"]:
        """Give MLflow's client to the block, and raise its errors as Gone, Refused or another TrackingError."""
        try:
            yield self.client()
        except TrackingError:
            raise
        except Exception as error:
            code = getattr(error, "error_code", "")
            text = f"tracking {self}: {_line(error, 300)}"
            if code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and "'active' state" in text):
                raise Gone(text) from error
            raise (Refused if code == "INVALID_PARAMETER_VALUE" else TrackingError)(text) from error


def _create_store(file: Path) -> None:
    """Create an SQLite store of MLflow, which two processes cannot do at once.

    It takes seconds and many transactions, and MLflow can neither use nor repair a store whose creation was
    interrupted. Therefore the store gets its name when it is complete.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = file.with_name(f"{file.name}.new")
    for left in (temporary, temporary.with_name(f"{temporary.name}-journal")):  # of an interrupted process
        left.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(temporary)) as database:  # Fails at once, where MLflow tries for minutes.
        database.execute("PRAGMA user_version=0")
    store = SqlAlchemyStore(f"sqlite:///{temporary}", FILES)  # type: ignore[no-untyped-call]
    store.engine.dispose()  # A database must not be open when it is renamed.
    temporary.replace(file)


def _artifacts(uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """Return MLflow's repository of the artifacts at ``uri``; an SQLite store has them in a folder beside its file.

    The URI of those artifacts does not contain the folder, so that a store that is moved finds them.
    """
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    if tracking_uri and tracking_uri.startswith("sqlite:///") and uri.startswith(SERVED):
        folder = Path(tracking_uri.removeprefix("sqlite:///")).with_name(FILES)
        uri = str(folder / uri.removeprefix(SERVED))
    repository = MlflowArtifactsRepository if uri.startswith(SERVED) else LocalArtifactRepository
    return repository(uri, tracking_uri, registry_uri)


def _line(error: object, length: int) -> str:
    """Return an error's message in one line of at most ``length`` characters, without passwords."""
    text = re.sub(r"//[^@/\s]*@", "//", " ".join(str(error).split()))
    return text if len(text) <= length else text[: length - 1] + "…"
