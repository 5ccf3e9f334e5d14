"""Everything that is asked of MLflow, and nothing else: the one module that imports it, and only when it is needed.

Runs are written through ``MlflowClient`` alone: it leaves a finished run's end time as it is, and sends the caller's
timestamps. MLflow can neither delete nor overwrite a metric; sending a point again with its original timestamp
changes nothing.
"""

import contextlib
import fcntl
import logging
import os
import posixpath
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import TrackingError
from sweeper.tracking import names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the journal tries again, without holding anybody up
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
_POINTS_PER_BATCH = 1000
_WORDS_PER_BATCH = 50  # params or tags: MLflow takes 100, and a megabyte a request
_SETTLE = 0.4  # seconds; longer than a request that makes a run normally takes
_PATIENCE = 30  # seconds for another process's turn at an SQLite store; a turn takes milliseconds


class Refused(TrackingError):
    """The server answered that it never takes this."""


class Gone(TrackingError):
    """The run is not there (any more)."""


@dataclass
class Held:
    """What a run has on the server."""

    status: str = "RUNNING"
    attempt: int = 0
    parent: str | None = None
    params: set[str] = field(default_factory=set)
    points: set[tuple[str, int]] = field(default_factory=set)


class Server:
    """One experiment on one MLflow server or store. Every method may raise TrackingError; the constructor asks nothing.

    ``uri``: ``http(s)://``, ``sqlite:///FILE`` (several processes may write to it at once) or another database that
    MLflow takes. ``artifacts``: where a store without a server keeps files, beside the database file by default.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None = None) -> None:
        self.uri, self.experiment = uri.rstrip("/"), experiment
        self._file = Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None
        if self._file:
            self.uri = f"sqlite:///{self._file}"
        self._artifacts = artifacts or (self._file.parent / "artifacts" if self._file else None)
        self._client: MlflowClient | None = None
        self._experiment_id: str | None = None
        self._mutex = threading.RLock()
        self._turns = 0
        self._lock = -1

    def __str__(self) -> str:
        return re.sub(r"//[^@/]*@", "//", self.uri)  # without a password

    def check(self, timeout: float) -> None:
        """TrackingError unless the server answers within ``timeout`` seconds and takes the experiment from us."""
        if self.uri.startswith(("http://", "https://")):
            self._check_answer(timeout)
        elif not re.match(r"(sqlite|postgresql|mysql|mssql)[+\w]*://", self.uri):
            raise TrackingError(f"tracking {self}: expected http(s)://HOST:PORT or sqlite:///FILE")
        with self._asking():
            self._found_experiment()

    def _check_answer(self, timeout: float) -> None:
        self.client()  # sets the environment
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        try:
            answer = http_request(  # type: ignore[no-untyped-call]
                get_default_host_creds(self.uri),  # type: ignore[no-untyped-call]
                "/api/2.0/mlflow/experiments/search",
                "GET",
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
            raise TrackingError(
                f"tracking {self}: user {os.environ.get('MLFLOW_TRACKING_USERNAME')!r} or the password is refused; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        if answer.status_code == 403:
            raise TrackingError(
                f"tracking {self}: refused (403: {_line(answer.text, 100)}); "
                "start the server with --allowed-hosts for this name, or give the user permission"
            )
        if answer.status_code != 200:
            raise TrackingError(f"tracking {self}: answers {answer.status_code}; expected an MLflow server")

    def client(self) -> "MlflowClient":
        """The client, made at the first call: MLflow takes seconds to import, a new SQLite store a second to make."""
        if self._client is None:
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient

            for name in ("mlflow.store.db.utils", "alembic", "mlflow.tracking"):
                logging.getLogger(name).setLevel(logging.CRITICAL)  # a busy database is ours to handle, not news
            with self._asking(), self._turn():
                if self._file:
                    with contextlib.closing(sqlite3.connect(self._file, timeout=20)) as database:
                        database.execute("PRAGMA journal_mode=WAL")  # readers and the one writer do not wait
                client = MlflowClient(self.uri, self.uri)
                if self._file:
                    client.search_experiments(
                        max_results=1
                    )  # makes the tables, which two processes must not do at once
                self._client = client
        return self._client

    def experiment_id(self) -> str:
        """The experiment's id; it is made if it is not there."""
        if self._experiment_id is None:
            with self._asking(), self._turn():
                self._experiment_id = self._found_experiment()
                if self._experiment_id is None:
                    place = (self._artifacts / self.experiment).resolve().as_uri() if self._artifacts else None
                    kind = {names.EXPERIMENT_KIND: "custom_model_development"}  # or the UI opens on its GenAI pages
                    try:
                        self._experiment_id = self.client().create_experiment(self.experiment, place, kind)
                    except Exception:
                        self._experiment_id = self._found_experiment()  # somebody else made it meanwhile
                        if self._experiment_id is None:
                            raise
        return self._experiment_id

    def _found_experiment(self) -> str | None:
        found = self.client().get_experiment_by_name(self.experiment)
        if found is None:
            return None
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"tracking {self}: experiment {self.experiment!r} was deleted there; restore it or choose a new name"
            )
        return str(found.experiment_id)

    def run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        """The id of the run with these identifying ``tags``: the oldest there is, or a new one."""
        found = self.find(tags)
        if found:
            return found
        experiment = self.experiment_id()
        with self._asking(), self._turn():
            found = self.find(tags)  # since we have the turn
            if found:
                return found
            made = self.client().create_run(experiment, start_ms, {names.SWEEP: self.experiment, **tags}, name)
            run_id = str(made.info.run_id)
            if not self._file:
                # Nothing on a server makes "search, then create" one step. Two who raced see each other after a
                # moment, and both keep the older run.
                time.sleep(_SETTLE)
                found = self.find(tags)
                if found and found != run_id:
                    self.client().delete_run(run_id)
                    return found
            return run_id

    def find(self, tags: Mapping[str, str]) -> str | None:
        """The id of the oldest run with these tags, or None."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        experiment = self.experiment_id()
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        try:
            with self._asking():
                runs = self.client().search_runs([experiment], wanted, max_results=1, order_by=order)
        except Gone:
            self._experiment_id = None  # the server lost its memory: next time it is made again
            raise
        return str(runs[0].info.run_id) if runs else None

    def held(self, run_id: str) -> Held:
        """What the run has, every (metric, step) included."""
        with self._asking():
            run = self.client().get_run(run_id)
            if run.info.lifecycle_stage != "active":
                raise Gone(f"tracking {self}: run {run_id} was deleted there")
            tags = run.data.tags
            held = Held(run.info.status, int(tags.get(names.ATTEMPT, 0)), tags.get(names.PARENT), set(run.data.params))
            for key in run.data.metrics:
                held.points.update((key, point.step) for point in self.client().get_metric_history(run_id, key))
        return held

    def send(
        self,
        run_id: str,
        points: list[tuple[str, float, int, int]],
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """Points are (metric, value, time in ms, step)."""
        client = self.client()
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in points]
        param_list = [Param(*item) for item in params.items()]
        tag_list = [RunTag(*item) for item in tags.items()]
        for i in range(0, len(metrics), _POINTS_PER_BATCH):
            with self._asking(), self._turn():
                client.log_batch(run_id, metrics=metrics[i : i + _POINTS_PER_BATCH])
        for i in range(0, max(len(param_list), len(tag_list)), _WORDS_PER_BATCH):
            part = slice(i, i + _WORDS_PER_BATCH)
            with self._asking(), self._turn():
                client.log_batch(run_id, params=param_list[part], tags=tag_list[part])

    def send_file(self, run_id: str, name: str, path: Path) -> None:
        """Log the file as artifact ``name``; its last part is the file's own name."""
        with self._asking():
            self.client().log_artifact(run_id, str(path), posixpath.dirname(name) or None)

    def has_file(self, run_id: str, name: str) -> bool:
        """Whether artifact ``name`` is there."""
        with self._asking():
            return any(
                file.path == name for file in self.client().list_artifacts(run_id, posixpath.dirname(name) or None)
            )

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """RUNNING for a run that goes on; FINISHED, FAILED or KILLED with its end."""
        with self._asking(), self._turn():
            if end_ms is None:
                self.client().update_run(run_id, status)
            else:
                self.client().set_terminated(run_id, status, end_ms)

    def delete_tag(self, run_id: str, key: str) -> None:
        with self._asking(), self._turn():
            self.client().delete_tag(run_id, key)

    def set_experiment_tag(self, key: str, value: str) -> None:
        experiment = self.experiment_id()
        with self._asking(), self._turn():
            self.client().set_experiment_tag(experiment, key, value)

    def experiment_tags(self) -> dict[str, str]:
        with self._asking():
            return dict(self.client().get_experiment(self.experiment_id()).tags)

    def runs(self) -> list[dict[str, Any]]:
        """Every run of the experiment as a plain dict, oldest first."""
        found: list[dict[str, Any]] = []
        experiment, token = self.experiment_id(), None
        while True:
            with self._asking():
                page = self.client().search_runs(
                    [experiment], max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
                )
            found += [_plain(run) for run in page]
            token = page.token
            if not token:
                return found

    def history(self, run_id: str, key: str) -> list[tuple[int, float, int]]:
        """(step, value, time in ms) of a metric, by step."""
        with self._asking():
            points = self.client().get_metric_history(run_id, key)
        return sorted((int(point.step), float(point.value), int(point.timestamp)) for point in points)

    def version(self) -> str:
        """The server's version of MLflow; of the installed one for a store without a server."""
        self.client()
        import mlflow

        if not self.uri.startswith("http"):
            return str(mlflow.__version__)
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        with self._asking():
            credentials = get_default_host_creds(self.uri)  # type: ignore[no-untyped-call]
            return str(http_request(credentials, "/version", "GET").text).strip()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Only one process writes to an SQLite store at a time: two would fail with "database is locked"."""
        if self._file is None:
            yield
            return
        with self._mutex:
            if self._turns == 0:
                self._lock = self._locked(self._file)
            self._turns += 1
            try:
                yield
            finally:
                self._turns -= 1
                if self._turns == 0:
                    os.close(self._lock)

    def _locked(self, file: Path) -> int:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(file.with_name(file.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise TrackingError(
                f"tracking {self}: {error.strerror}: {error.filename}; expected a writable folder"
            ) from None
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise TrackingError(f"tracking {self}: another process has held it for {_PATIENCE} s") from None
                time.sleep(0.005)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Failures as TrackingError, by what can be done about them."""
        try:
            yield
        except TrackingError:
            raise
        except Exception as error:
            code = getattr(error, "error_code", "")
            text = f"tracking {self}: {_line(error, 300)}"
            if code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and "'active' state" in text):
                raise Gone(text) from error
            raise (Refused if code == "INVALID_PARAMETER_VALUE" else TrackingError)(text) from error


def _line(error: object, length: int) -> str:
    """The gist of an error in one line, without a password."""
    text = re.sub(r"//[^@/\s]*@", "//", " ".join(str(error).split()))
    return text if len(text) <= length else text[: length - 1] + "…"


def _plain(run: "Run") -> dict[str, Any]:
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "start_ms": run.info.start_time,
        "end_ms": run.info.end_time,
        "tags": dict(run.data.tags),
        "params": dict(run.data.params),
        "metrics": dict(run.data.metrics),
    }
