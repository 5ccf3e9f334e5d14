"""The connection to MLflow, which is imported when it is first needed, because that takes seconds."""

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
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the uploader tries again, and nobody waits for it
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
FILES = "mlartifacts"  # the folder beside an SQLite store with its files; MLflow, started there, looks for it
SERVED = "mlflow-artifacts:/"  # begins the address of files in MLflow that are wherever the server keeps them
_PATIENCE = 30  # seconds to wait for the other writers of an SQLite store; each takes milliseconds


class Refused(TrackingError):
    """The server will never take this request, however often it is sent."""


class Gone(TrackingError):
    """The run does not exist, or no longer."""


def check_uri(uri: str) -> None:
    """TrackingError unless ``uri`` can be an MLflow server or store; MLflow would make a folder of any other name."""
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
    """Switch off, before MLflow is imported, what it would send, print or repeat by itself."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class Connection:
    """An MLflow server (``http(s)://``) or store (``sqlite:///FILE``). The constructor connects to nothing."""

    def __init__(self, uri: str) -> None:
        check_uri(uri)
        path = uri.removeprefix("sqlite:///")
        self.file = None if path == uri else Path(path).expanduser().resolve()
        self.uri = f"sqlite:///{self.file}" if self.file else uri.rstrip("/")
        self._client: MlflowClient | None = None
        #: Held while an SQLite store is written to: a second writer would fail with "database is locked".
        self.turn: contextlib.AbstractContextManager[Any] = (
            FileLock(f"{self.file}.lock", _PATIENCE, poll_interval=0.005) if self.file else contextlib.nullcontext()
        )

    def __str__(self) -> str:
        return re.sub(r"//[^@/]*@", "//", self.uri)  # without a password

    def check_answer(self, timeout: float) -> None:
        """TrackingError unless the server answers within ``timeout`` seconds and lets the user in. A store passes."""
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
        except Exception as error:  # MLflow wraps every failure to connect in its own exception
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
        """As :meth:`asking`, in our turn."""
        with self.asking() as client, self.turn:
            yield client

    def client(self) -> "MlflowClient":
        """The client, made at the first call: importing MLflow takes seconds, making a new SQLite store takes one."""
        if self._client is None:
            set_environment()
            from mlflow import MlflowClient
            from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

            repositories: dict[str, Any] = get_registered_artifact_repositories()
            repositories["mlflow-artifacts"] = _artifacts
            # MLflow imports polars, which has system calls restarted after SIGINT: Ctrl-C would not end a wait.
            signal.siginterrupt(signal.SIGINT, True)
            for name in ("mlflow.store.db.utils", "alembic", "mlflow.tracking", "mlflow.utils.validation"):
                logging.getLogger(name).setLevel(logging.CRITICAL)  # no error: a busy database, a text that is cut
            with self.turn:
                if self.file:
                    with contextlib.closing(sqlite3.connect(self.file, timeout=20)) as database:
                        database.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
                client = MlflowClient(self.uri, self.uri)
                if self.file:
                    client.search_experiments(max_results=1)  # makes the tables, which only one process must do
                self._client = client
        return self._client

    def version(self) -> str:
        """The server's version of MLflow; the installed version for a store without a server."""
        if not self.uri.startswith("http"):
            return metadata.version("mlflow")
        with self.asking():
            return str(self._get("/version").text).strip()

    def _get(self, path: str, **options: Any) -> Any:
        """The server's response to GET ``path``, with the user's credentials as MLflow itself sends them."""
        self.client()  # it sets MLflow's environment
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        credentials = get_default_host_creds(self.uri)  # type: ignore[no-untyped-call]
        return http_request(credentials, path, "GET", **options)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def asking(self) -> Iterator["MlflowClient"]:
        """The client; every failure becomes a TrackingError of the kind that says what can be done about it."""
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


def _artifacts(uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """MLflow's access to the files at ``uri``; those of an SQLite store are beside its database, wherever that is."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    if tracking_uri and tracking_uri.startswith("sqlite:///") and uri.startswith(SERVED):
        folder = Path(tracking_uri.removeprefix("sqlite:///")).with_name(FILES)
        uri = str(folder / uri.removeprefix(SERVED))
    repository = MlflowArtifactsRepository if uri.startswith(SERVED) else LocalArtifactRepository
    return repository(uri, tracking_uri, registry_uri)


def _line(error: object, length: int) -> str:
    """An error's text in one line of at most ``length`` characters, without a password."""
    text = re.sub(r"//[^@/\s]*@", "//", " ".join(str(error).split()))
    return text if len(text) <= length else text[: length - 1] + "…"
