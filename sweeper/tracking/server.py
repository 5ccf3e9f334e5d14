"""All requests to MLflow about one experiment.

Runs are written with ``MlflowClient`` only, because it keeps a finished run's end time and sends the caller's
timestamps. MLflow can neither delete nor overwrite a point of a metric; a point that is sent again with the same
timestamp and value changes nothing.
"""

import contextlib
import functools
import os
import posixpath
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper import names
from sweeper.errors import TrackingError
from sweeper.tracking.connection import SERVED, Connection, Gone

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_MAKING = 10.0  # Seconds after which a process that has announced a run and not created it counts as dead.

Point = tuple[str, float, int, int]  #: Metric, value, time in ms since 1970, step.


@dataclass
class RunContents:
    """What a run has on the server; ``points`` are pairs of metric and step."""

    status: str = "RUNNING"
    attempt: int = 0
    parent: str | None = None
    params: set[str] = field(default_factory=set)
    points: set[tuple[str, int]] = field(default_factory=set)


class Server(Connection):
    """One experiment on one MLflow server or store."""

    def __init__(self, uri: str, experiment: str) -> None:
        super().__init__(uri)
        self.experiment = experiment
        self._experiment_id: str | None = None

    def check(self, timeout: float) -> None:
        """Raise TrackingError unless the server answers within ``timeout`` seconds and its experiment can be used."""
        self.check_access(timeout)
        with self.session():
            self._existing_experiment()

    def forget_experiment(self) -> None:
        """Look the experiment's id up again at the next request, because the server may have a new database."""
        self._experiment_id = None

    def experiment_id(self) -> str:
        """Return the experiment's id; the experiment is created if it is missing."""
        if self._experiment_id is None:
            with self.writing():
                self._experiment_id = self._existing_experiment() or self._new_experiment()
        return self._experiment_id

    def _existing_experiment(self) -> str | None:
        """Return the experiment's id, or None if there is none; raises TrackingError if it was deleted."""
        experiment = self.client().get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"tracking {self}: experiment {self.experiment!r} was deleted there; restore it or choose a new name"
            )
        return str(experiment.experiment_id)

    def _new_experiment(self) -> str:
        location = f"{SERVED}{self.experiment}" if self.file else None  # None: the server's default.
        kind = {names.EXPERIMENT_KIND: "custom_model_development"}  # Otherwise the UI opens on its GenAI pages.
        try:
            return str(self.client().create_experiment(self.experiment, location, kind))
        except Exception:
            if experiment := self._existing_experiment():  # Another process has created it since the query.
                return experiment
            raise

    def run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        """Return the id of the oldest run with these identifying ``tags``, which is created if there is none.

        A trial's lease does not decide which process creates its run: after an outage, two machines may send the
        journals of two attempts at the same moment. MLflow has no request that searches and creates in one step, so
        this is Lamport's bakery algorithm. A process sets a tag of the experiment before it creates a run, and removes
        the tag afterwards. Every process waits until the tags that it has seen are removed, then takes the oldest run,
        and deletes the run that it created itself if that is a younger one. For an SQLite store the write lock
        suffices.
        """
        experiment, new = self.experiment_id(), ""

        def create() -> str:
            created = client.create_run(experiment, start_ms, {names.SWEEP: self.experiment, **tags}, name)
            return str(created.info.run_id)

        with self.writing() as client:
            run = self.find(tags)
            if self.file:
                return str(run["run_id"]) if run else create()
            if run is None:
                flag = f"{names.MAKING}.{uuid.uuid4().hex[:12]}"
                client.set_experiment_tag(experiment, flag, "1")
                try:
                    new = "" if self.find(tags) else create()
                finally:
                    client.delete_experiment_tag(experiment, flag)
            self._await_creators(client, experiment)
            run = self.find(tags)
            oldest = str(run["run_id"]) if run else new
            if new and new != oldest:
                client.delete_run(new)
            return oldest

    def _await_creators(self, client: "MlflowClient", experiment: str) -> None:
        """Wait until every process that is creating a run now has created it; remove the tags of dead ones."""
        deadline, creators = time.monotonic() + _MAKING, None
        while creators is None or creators:
            tags = {tag for tag in client.get_experiment(experiment).tags if tag.startswith(f"{names.MAKING}.")}
            creators = tags if creators is None else creators & tags
            if time.monotonic() > deadline:
                for tag in creators:
                    with contextlib.suppress(Exception):  # Another process that waited may have removed it already.
                        client.delete_experiment_tag(experiment, tag)
                return
            if creators:
                time.sleep(0.05)

    def find(self, tags: Mapping[str, str]) -> dict[str, Any] | None:
        """Return the oldest run with these tags, as in :meth:`runs`; None if there is none. Creates no experiment."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        with self.session() as client:
            experiment = self._experiment_id or self._existing_experiment()
            runs = client.search_runs([experiment], query, max_results=1, order_by=order) if experiment else []
        return _as_dict(runs[0]) if runs else None

    def attempt(self, run_id: str) -> int:
        """Return the newest attempt that has written to the run."""
        with self.session() as client:
            return _newest_attempt(client.get_run(run_id).data.tags)

    def contents(self, run_id: str) -> RunContents:
        """Return what the run has on the server, including the steps of every metric; raises Gone if it was deleted."""
        with self.session() as client:
            run = client.get_run(run_id)
            if run.info.lifecycle_stage != "active":
                raise Gone(f"tracking {self}: run {run_id} was deleted there")
            tags, params = run.data.tags, set(run.data.params)
            contents = RunContents(run.info.status, _newest_attempt(tags), tags.get(names.PARENT), params)
            for key in run.data.metrics:
                contents.points.update((key, point.step) for point in client.get_metric_history(run_id, key))
        return contents

    def send(self, run_id: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Log points, params and tags."""
        with self.writing() as client:
            from mlflow.entities import Metric, Param, RunTag

            client.log_batch(
                run_id,
                [Metric(*point) for point in points],
                [Param(*item) for item in params.items()],
                [RunTag(*item) for item in tags.items()],
            )

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """Set a run's status: RUNNING without ``end_ms``; FINISHED, FAILED or KILLED with its end in ms since 1970."""
        with self.writing() as client:
            if end_ms is None:
                client.update_run(run_id, status)
            else:
                client.set_terminated(run_id, status, end_ms)

    def runs(self) -> list[dict[str, Any]]:
        """Return every run of the experiment as a dict, the oldest first. Creates no experiment and no store."""
        if self.file is not None and not self.file.exists():
            return []
        with self.session() as client:
            from mlflow.utils import get_results_from_paginated_fn

            if (experiment := self._existing_experiment()) is None:
                return []
            search, order = functools.partial(client.search_runs, [experiment], "", 1), ["attributes.start_time ASC"]
            runs = get_results_from_paginated_fn(  # type: ignore[no-untyped-call]
                lambda count, token: search(count, order, token), 1000
            )
        return [_as_dict(run) for run in runs]

    def send_file(self, run_id: str, name: str, path: Path) -> None:
        """Log the file ``path`` as artifact ``name``; both must end in the same file name."""
        with self.session() as client:
            client.log_artifact(run_id, str(path), posixpath.dirname(name) or None)

    def has_file(self, run_id: str, name: str) -> bool:
        """Whether the run has an artifact ``name``."""
        with self.session() as client:
            files = client.list_artifacts(run_id, posixpath.dirname(name) or None)
        return any(file.path == name for file in files)

    def fetch(self, run_id: str, name: str) -> bytes | None:
        """Return the bytes of artifact ``name`` of a run; None if the run has no such artifact."""
        if not self.has_file(run_id, name):
            return None
        with tempfile.TemporaryDirectory() as folder, self.session() as client:
            return Path(client.download_artifacts(run_id, name, folder)).read_bytes()

    def register(self, run_id: str, model: str, alias: str, tags: Mapping[str, str]) -> int:
        """Register the run's weights as a version of ``model``, point ``alias`` to it, and return its number.

        The version refers to the weights in the run's artifacts, a plain ``state_dict``, so MLflow has nothing to
        unpickle. If the run is registered already, its version is used.
        """
        all_tags = {**tags, "weights": f"runs:/{run_id}/{names.WEIGHTS}", "format": "torch state_dict, weights_only"}
        text = f"Weights: artifact {names.WEIGHTS} of run {run_id}; a state_dict, torch.load(..., weights_only=True)."
        with self.writing() as client:
            import mlflow

            try:
                client.get_registered_model(model)
            except Exception as error:
                if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    raise
                client.create_registered_model(model, description="Detector weights found by sweeping learning rates.")
            versions = [v for v in client.search_model_versions(f"name = '{model}'") if v.run_id == run_id]
            if not versions:
                # MlflowClient cannot create an external model, so the module's global tracking URI is set for a moment;
                # MLflow also writes it to the environment, for child processes.
                before = os.environ.get("MLFLOW_TRACKING_URI")
                mlflow.set_tracking_uri(self.uri)
                try:
                    external = mlflow.create_external_model(
                        model, run_id, all_tags, model_type="detector", experiment_id=self.experiment_id()
                    )
                    key = external.model_id
                    version = client.create_model_version(
                        model, f"models:/{key}", run_id, tags=all_tags, description=text, model_id=key
                    )
                    versions = [version]
                finally:
                    mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None: it was not set.
            number = max(int(version.version) for version in versions)
            client.set_registered_model_alias(model, alias, str(number))
        return number


def _newest_attempt(tags: Mapping[str, str]) -> int:
    """Return the highest number of an attempt in a run's tags, 0 if there is none.

    Each attempt sets a tag of its own. In a single tag, the request of an older attempt that arrives late would replace
    the newer number, because MLflow cannot compare before it writes.
    """
    prefix = f"{names.ATTEMPT}."
    return max((int(key.removeprefix(prefix)) for key in tags if key.startswith(prefix)), default=0)


def _as_dict(run: "Run") -> dict[str, Any]:
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
