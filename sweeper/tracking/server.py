"""Everything that is asked of MLflow about one experiment.

Runs are written through ``MlflowClient`` alone: it leaves a finished run's end time as it is, and sends the caller's
timestamps. MLflow can neither delete nor overwrite a metric; sending a point again with its original timestamp
changes nothing.
"""

import contextlib
import posixpath
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import TrackingError
from sweeper.tracking import names
from sweeper.tracking.connection import Connection, Gone

if TYPE_CHECKING:
    from mlflow.entities import Run

_POINTS_PER_BATCH = 1000
_WORDS_PER_BATCH = 50  # params or tags: MLflow takes 100, and a megabyte a request
_DEAD = 10  # seconds; whoever has not made a run after them is taken for dead


@dataclass
class Held:
    """What a run has on the server."""

    status: str = "RUNNING"
    attempt: int = 0
    parent: str | None = None
    params: set[str] = field(default_factory=set)
    points: set[tuple[str, int]] = field(default_factory=set)


class Server(Connection):
    """One experiment on one MLflow server or store (see Connection for ``uri``).

    ``artifacts``: where a store without a server keeps files, beside the database file by default.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None = None) -> None:
        super().__init__(uri)
        self.experiment = experiment
        self._artifacts = artifacts or (self.file.parent / "artifacts" if self.file else None)
        self._experiment_id: str | None = None

    def check(self, timeout: float) -> None:
        """TrackingError unless the server answers within ``timeout`` seconds and takes the experiment from us."""
        self.check_answer(timeout)
        with self.asking():
            self._found_experiment()

    def forget(self) -> None:
        """What the server said before does not count: it may have lost its memory."""
        self._experiment_id = None

    def experiment_id(self) -> str:
        """The experiment's id; it is made if it is not there."""
        if self._experiment_id is None:
            with self.asking(), self.turn():
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
        experiment = self.experiment_id()
        with self.asking(), self.turn():
            made = self.find(tags)
            if self.file:
                return made or self._made(name, tags, start_ms)  # nobody else has a turn
            # Nothing on a server makes "search, then create" one step: the bakery algorithm, with tags of the
            # experiment as its flags. Who begins after our look at the flags finds our run.
            ours = None
            if made is None:
                flag = f"{names.MAKING}.{uuid.uuid4().hex[:12]}"
                self.client().set_experiment_tag(experiment, flag, "1")
                try:
                    made = self.find(tags) or (ours := self._made(name, tags, start_ms))
                finally:
                    self.client().delete_experiment_tag(experiment, flag)
            self._await_others(experiment)
            oldest = self.find(tags) or made
            if ours and ours != oldest:
                self.client().delete_run(ours)
            return oldest

    def _made(self, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        run = self.client().create_run(self.experiment_id(), start_ms, {names.SWEEP: self.experiment, **tags}, name)
        return str(run.info.run_id)

    def _await_others(self, experiment: str) -> None:
        """Until everybody who was making a run has made it, or has died of it."""
        client, waited_for = self.client(), None
        end = time.monotonic() + _DEAD
        while time.monotonic() < end:
            flags = {tag for tag in client.get_experiment(experiment).tags if tag.startswith(f"{names.MAKING}.")}
            waited_for = flags if waited_for is None else waited_for & flags
            if not waited_for:
                return
            time.sleep(0.05)
        for flag in waited_for or ():
            with contextlib.suppress(Exception):  # removed by another who waited
                client.delete_experiment_tag(experiment, flag)

    def find(self, tags: Mapping[str, str]) -> str | None:
        """The id of the oldest run with these tags, or None."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        experiment = self.experiment_id()
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        with self.asking():
            runs = self.client().search_runs([experiment], wanted, max_results=1, order_by=order)
        return str(runs[0].info.run_id) if runs else None

    def tag(self, tags: Mapping[str, str], key: str) -> str | None:
        """A tag of the oldest run with these tags; None if there is none. Makes no experiment."""
        with self.asking():
            if self._found_experiment() is None:
                return None
        run_id = self.find(tags)
        if run_id is None:
            return None
        with self.asking():
            found: str | None = self.client().get_run(run_id).data.tags.get(key)
            return found

    def attempt(self, run_id: str) -> int:
        """The newest attempt that has written to the run."""
        with self.asking():
            return int(self.client().get_run(run_id).data.tags.get(names.ATTEMPT, 0))

    def held(self, run_id: str) -> Held:
        """What the run has, every (metric, step) included."""
        with self.asking():
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
            with self.asking(), self.turn():
                client.log_batch(run_id, metrics=metrics[i : i + _POINTS_PER_BATCH])
        for i in range(0, max(len(param_list), len(tag_list)), _WORDS_PER_BATCH):
            part = slice(i, i + _WORDS_PER_BATCH)
            with self.asking(), self.turn():
                client.log_batch(run_id, params=param_list[part], tags=tag_list[part])

    def send_file(self, run_id: str, name: str, path: Path) -> None:
        """Log the file as artifact ``name``; its last part is the file's own name."""
        with self.asking():
            self.client().log_artifact(run_id, str(path), posixpath.dirname(name) or None)

    def has_file(self, run_id: str, name: str) -> bool:
        """Whether artifact ``name`` is there."""
        with self.asking():
            return any(
                file.path == name for file in self.client().list_artifacts(run_id, posixpath.dirname(name) or None)
            )

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """RUNNING for a run that goes on; FINISHED, FAILED or KILLED with its end."""
        with self.asking(), self.turn():
            if end_ms is None:
                self.client().update_run(run_id, status)
            else:
                self.client().set_terminated(run_id, status, end_ms)

    def delete_tag(self, run_id: str, key: str) -> None:
        with self.asking(), self.turn():
            self.client().delete_tag(run_id, key)

    def set_experiment_tag(self, key: str, value: str) -> None:
        experiment = self.experiment_id()
        with self.asking(), self.turn():
            self.client().set_experiment_tag(experiment, key, value)

    def experiment_tags(self) -> dict[str, str]:
        with self.asking():
            return dict(self.client().get_experiment(self.experiment_id()).tags)

    def runs(self) -> list[dict[str, Any]]:
        """Every run of the experiment as a plain dict, oldest first. Makes no experiment."""
        found: list[dict[str, Any]] = []
        if self.file is not None and not self.file.exists():
            return found
        with self.asking():
            experiment, token = self._found_experiment(), None
        if experiment is None:
            return found
        while True:
            with self.asking():
                page = self.client().search_runs(
                    [experiment], max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
                )
            found += [_plain(run) for run in page]
            token = page.token
            if not token:
                return found

    def history(self, run_id: str, key: str) -> list[tuple[int, float, int]]:
        """(step, value, time in ms) of a metric, by step."""
        with self.asking():
            points = self.client().get_metric_history(run_id, key)
        return sorted((int(point.step), float(point.value), int(point.timestamp)) for point in points)


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
