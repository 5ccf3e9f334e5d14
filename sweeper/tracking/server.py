"""Everything that is asked of MLflow about one experiment.

Runs are written through ``MlflowClient`` alone, because it leaves a finished run's end time as it is and sends the
caller's timestamps. MLflow can neither delete nor overwrite a metric; sending a point again with its original timestamp
changes nothing.
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

_MAKING = 10.0  # seconds; a process that has not made its run after them is taken for dead

Point = tuple[str, float, int, int]  #: metric, value, time in ms since 1970, step


@dataclass
class Held:
    """What a run has on the server."""

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
        """TrackingError unless the server answers within ``timeout`` seconds and takes the experiment from us."""
        self.check_answer(timeout)
        with self.asking():
            self._existing_experiment()

    def forget(self) -> None:
        """Ask for the experiment's id again: the server may have lost its memory."""
        self._experiment_id = None

    def experiment_id(self) -> str:
        """The experiment's id; the experiment is made if it is not there."""
        if self._experiment_id is None:
            with self.writing():
                self._experiment_id = self._existing_experiment() or self._new_experiment()
        return self._experiment_id

    def _existing_experiment(self) -> str | None:
        experiment = self.client().get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"tracking {self}: experiment {self.experiment!r} was deleted there; restore it or choose a new name"
            )
        return str(experiment.experiment_id)

    def _new_experiment(self) -> str:
        place = f"{SERVED}{self.experiment}" if self.file else None  # a server knows where it keeps files
        kind = {names.EXPERIMENT_KIND: "custom_model_development"}  # without it the UI opens on its GenAI pages
        try:
            return str(self.client().create_experiment(self.experiment, place, kind))
        except Exception:
            if experiment := self._existing_experiment():  # another process has made it meanwhile
                return experiment
            raise

    def run(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        """The id of the run with these identifying ``tags``: the oldest that there is, or a new one.

        A trial's lease does not decide who makes its run: after an outage two machines may send the journals of two
        attempts at the same moment. No request to a server searches and creates in one step, so this is Lamport's
        bakery algorithm: whoever makes a run holds a tag of the experiment meanwhile, and everybody waits until the
        tags that they have seen are gone before they take the oldest run. An SQLite store needs none of this, because
        only one process at a time has its ``turn``.
        """
        experiment, new = self.experiment_id(), ""

        def make() -> str:
            made = client.create_run(experiment, start_ms, {names.SWEEP: self.experiment, **tags}, name)
            return str(made.info.run_id)

        with self.writing() as client:
            run = self.find(tags)
            if self.file:
                return str(run["run_id"]) if run else make()
            if run is None:
                flag = f"{names.MAKING}.{uuid.uuid4().hex[:12]}"
                client.set_experiment_tag(experiment, flag, "1")
                try:
                    new = "" if self.find(tags) else make()
                finally:
                    client.delete_experiment_tag(experiment, flag)
            self._await_makers(client, experiment)
            run = self.find(tags)
            oldest = str(run["run_id"]) if run else new
            if new and new != oldest:
                client.delete_run(new)
            return oldest

    def _await_makers(self, client: "MlflowClient", experiment: str) -> None:
        """Wait until every process that is making a run now has made it; a dead one's tag is removed."""
        deadline, makers = time.monotonic() + _MAKING, None
        while makers is None or makers:
            tags = {tag for tag in client.get_experiment(experiment).tags if tag.startswith(f"{names.MAKING}.")}
            makers = tags if makers is None else makers & tags
            if time.monotonic() > deadline:
                for tag in makers:
                    with contextlib.suppress(Exception):  # another process that waited has removed it
                        client.delete_experiment_tag(experiment, tag)
                return
            if makers:
                time.sleep(0.05)

    def find(self, tags: Mapping[str, str]) -> dict[str, Any] | None:
        """The oldest run with these tags, as in :meth:`runs`; None if there is none. Makes no experiment."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        with self.asking() as client:
            experiment = self._experiment_id or self._existing_experiment()
            runs = client.search_runs([experiment], query, max_results=1, order_by=order) if experiment else []
        return _plain(runs[0]) if runs else None

    def attempt(self, run_id: str) -> int:
        """The newest attempt that has written to the run."""
        with self.asking() as client:
            return int(client.get_run(run_id).data.tags.get(names.ATTEMPT, 0))

    def held(self, run_id: str) -> Held:
        """What the run has, every (metric, step) included."""
        with self.asking() as client:
            run = client.get_run(run_id)
            if run.info.lifecycle_stage != "active":
                raise Gone(f"tracking {self}: run {run_id} was deleted there")
            tags = run.data.tags
            held = Held(run.info.status, int(tags.get(names.ATTEMPT, 0)), tags.get(names.PARENT), set(run.data.params))
            for key in run.data.metrics:
                held.points.update((key, point.step) for point in client.get_metric_history(run_id, key))
        return held

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
        """RUNNING for a run that goes on; FINISHED, FAILED or KILLED with its end."""
        with self.writing() as client:
            if end_ms is None:
                client.update_run(run_id, status)
            else:
                client.set_terminated(run_id, status, end_ms)

    def runs(self) -> list[dict[str, Any]]:
        """Every run of the experiment as a plain dict, oldest first. Makes no experiment and no store."""
        if self.file is not None and not self.file.exists():
            return []
        with self.asking() as client:
            from mlflow.utils import get_results_from_paginated_fn

            if (experiment := self._existing_experiment()) is None:
                return []
            search, order = functools.partial(client.search_runs, [experiment], "", 1), ["attributes.start_time ASC"]
            runs = get_results_from_paginated_fn(  # type: ignore[no-untyped-call]
                lambda count, token: search(count, order, token), 1000
            )
        return [_plain(run) for run in runs]

    def send_file(self, run_id: str, name: str, path: Path) -> None:
        """Log the file as artifact ``name``, whose last part must be the file's own name."""
        with self.asking() as client:
            client.log_artifact(run_id, str(path), posixpath.dirname(name) or None)

    def has_file(self, run_id: str, name: str) -> bool:
        """Whether artifact ``name`` is there."""
        with self.asking() as client:
            files = client.list_artifacts(run_id, posixpath.dirname(name) or None)
        return any(file.path == name for file in files)

    def fetch(self, run_id: str, name: str) -> bytes | None:
        """Artifact ``name`` of a run; None if the run has none of that name."""
        if not self.has_file(run_id, name):
            return None
        with tempfile.TemporaryDirectory() as folder, self.asking() as client:
            return Path(client.download_artifacts(run_id, name, folder)).read_bytes()

    def register(self, run_id: str, model: str, alias: str, tags: Mapping[str, str]) -> int:
        """Make the run's weights the version of ``model`` that ``alias`` names; gives the version's number.

        What is registered is where the weights are, a plain ``state_dict`` among the run's artifacts, so nothing that
        MLflow would unpickle. A version of this run that is there already is used again.
        """
        words = {**tags, "weights": f"runs:/{run_id}/{names.WEIGHTS}", "format": "torch state_dict, weights_only"}
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
                before = os.environ.get("MLFLOW_TRACKING_URI")  # MLflow keeps there what is set, for child processes
                mlflow.set_tracking_uri(self.uri)  # the client has no call that makes an external model
                try:
                    external = mlflow.create_external_model(
                        model, run_id, words, model_type="detector", experiment_id=self.experiment_id()
                    )
                    source, key = f"models:/{external.model_id}", external.model_id
                    versions = [
                        client.create_model_version(model, source, run_id, tags=words, description=text, model_id=key)
                    ]
                finally:
                    mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None: not set
            number = max(int(version.version) for version in versions)
            client.set_registered_model_alias(model, alias, str(number))
        return number


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
