"""The status of a sweep: its trials, workers, epochs, store and budget."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from sweeper.service.racing import Race, Spending, race
from sweeper.stats import Failures, failures
from sweeper.store import Mismatch
from sweeper.study import Stage, Trial

if TYPE_CHECKING:
    from sweeper.service.service import Service

ALIVE_S = 120.0  # A worker counts as alive if it reported within so many seconds.


@dataclass(frozen=True)
class Epochs:
    """Epochs of each trial, and the epochs of all trials so far: ``trained``, or ``reused`` from the store."""

    per_trial: int
    trained: int
    reused: int


@dataclass(frozen=True)
class Proposals:
    """The sampler's proposals. ``told`` are those that finished or were pruned; the sampler was ``asked`` so often for
    them, ``per_trial`` on average.

    ``distinct`` counts the schedules among them, ``duplicates`` those that took the result of an equal training.
    """

    asked: int
    told: int
    distinct: int
    per_trial: float | None
    duplicates: int


@dataclass(frozen=True)
class Stored:
    """The store's states: their ``count``, their size in ``bytes``, the size limit ``budget`` and the disk's ``free``
    bytes (None: unknown). ``reads`` counts the states that were read, ``read_bytes`` their bytes."""

    count: int
    bytes: int
    reads: int
    read_bytes: int
    free: int | None
    budget: int


@dataclass(frozen=True)
class AtWork:
    """The latest report of a worker, ``age_s`` seconds ago: its trial and epoch (None if it had no trial)."""

    worker: str
    device: str
    trial: int | None
    epoch: int | None
    age_s: float

    @property
    def alive(self) -> bool:
        """Whether the worker reported within the last ``ALIVE_S`` seconds."""
        return self.age_s < ALIVE_S


@dataclass(frozen=True)
class Row:
    """A trial in the table.

    ``score`` is the trial's score, before its end the objective of its last epoch. ``curve`` is the objective by epoch.
    ``lr`` is the learning rate at the start of the next epoch, None unless the trial is running. ``waits``: the trial
    has begun but no worker has it, because another trial trains an epoch that it can reuse, or because its worker died.
    """

    trial: int
    state: str
    stage: Stage
    name: str
    label: str
    seed: int
    epochs_done: int
    score: float | None
    curve: list[float]
    lr: float | None
    reasons: list[str]
    waits: bool


@dataclass(frozen=True)
class Status:
    """The status of a sweep. ``budget``: the number of trials; ``counts``: trials by state, and their "total".

    ``phase``: sentences on the current phase and why the one before it ended. ``hours_saved``: training time of the
    reused epochs, at each trial's own seconds an epoch; ``seconds_per_epoch``: the median over trials (None: not timed
    yet). ``mismatches``: repeated trainings of an epoch that gave different states. ``race`` is None for a sweep
    without a race, ``spending`` for one without a budget. ``tracking``: the MLflow URI; ``tracking_problem``: why
    records could not be sent to MLflow (None: no problem).
    """

    sweep: str
    objective: str
    budget: int
    counts: Mapping[str, int]
    done: bool
    phase: str
    epochs: Epochs
    proposals: Proposals
    hours_saved: float
    seconds_per_epoch: float | None
    store: Stored
    mismatches: Sequence[Mismatch]
    workers: Sequence[AtWork]
    trials: Sequence[Row]
    race: Race | None
    spending: Spending | None
    failures: Failures
    tracking: str
    tracking_problem: str | None

    @property
    def at_work(self) -> list[AtWork]:
        """The workers that are alive."""
        return [worker for worker in self.workers if worker.alive]

    @property
    def waits(self) -> int:
        """How many trials have begun, while no worker has them."""
        return sum(row.waits for row in self.trials)

    @property
    def settled(self) -> tuple[int, int]:
        """(Epochs that need no more training, epochs of all trials). Every epoch of a trial that has ended is settled,
        also if the trial failed or was pruned."""
        per_trial = self.epochs.per_trial
        settled = sum(row.epochs_done if row.state in ("waiting", "running") else per_trial for row in self.trials)
        return settled, per_trial * len(self.trials)

    def to_dict(self) -> dict[str, Any]:
        """The status under the keys of ``status --json``; a trial's score has the objective's name as its key."""
        parts = {"race": self.race, "spending": self.spending, "failures": self.failures}
        data = asdict(replace(self, race=None, spending=None))
        data |= {key: None if part is None else part.to_dict() for key, part in parts.items()}
        data["begun_and_waiting"] = self.waits
        data["mismatches"] = [mismatch.to_dict() for mismatch in self.mismatches]
        for row in data["trials"]:
            row[self.objective] = row.pop("score")
        return data


def status_of(service: "Service") -> Status:
    """The status of a launched sweep. Raises DatabaseError if it was never launched."""
    trials = service.study.trials()
    counts = service.study.counts()
    reused = sum(trial.reused for trial in trials)
    trained = sum(len(trial.curve) for trial in trials) - reused
    timed = [trial.facts.epoch_seconds for trial in trials if trial.facts.epoch_seconds]
    seconds = median(timed) if timed else None
    workers = [
        AtWork(worker.worker, worker.device, worker.number, worker.epoch, round(worker.age_s, 1))
        for worker in service.study.workers()
    ]
    alive = {worker.worker for worker in workers if worker.alive}
    return Status(
        sweep=service.sweep.name,
        objective=service.sweep.objective,
        budget=counts["total"],
        counts=counts,
        done=service.done,
        phase=service.agenda.phase(trials),
        epochs=Epochs(service.sweep.epochs, trained, reused),
        proposals=_proposals(trials),
        hours_saved=sum(trial.reused * (trial.facts.epoch_seconds or seconds or 0.0) for trial in trials) / 3600,
        seconds_per_epoch=seconds,
        store=Stored(**asdict(service.store.usage()), budget=service.store.max_bytes or 0),
        mismatches=service.store.mismatches(),
        workers=workers,
        trials=[_row(service, trial, alive) for trial in trials],
        race=race(service, trials),
        spending=Spending.of(service, trials) if service.sweep.budget is not None else None,
        failures=failures([trial for trial in trials if trial.stage != "control"]),
        tracking=service.place.tracking,
        tracking_problem=service.tracker.problem,
    )


def _proposals(trials: Sequence[Trial]) -> Proposals:
    ended = [
        trial
        for trial in trials
        if trial.stage == "search" and trial.state in ("COMPLETE", "PRUNED") and trial.original is None
    ]
    asked = sum(trial.facts.proposals for trial in ended)
    return Proposals(
        asked=asked,
        told=len(ended),
        distinct=len({trial.facts.trace for trial in ended}),
        per_trial=asked / len(ended) if ended else None,
        duplicates=sum(trial.facts.duplicate_of is not None for trial in ended),
    )


def _row(service: "Service", trial: Trial, alive: Collection[str]) -> Row:
    values = trial.values
    return Row(
        trial=trial.number,
        state=trial.shown_state,
        stage=trial.stage,
        name=trial.name,
        label=service.searched.label(trial.spec) if trial.spec else "not proposed yet",
        seed=trial.seed,
        epochs_done=len(values),
        score=trial.score if trial.score is not None or not values else values[-1],
        curve=values,
        lr=_lr_now(service, trial),
        reasons=list(trial.reasons),
        waits=trial.state == "RUNNING" and trial.worker not in alive,
    )


def _lr_now(service: "Service", trial: Trial) -> float | None:
    """The learning rate at the start of the trial's next epoch; None unless the trial is running."""
    if trial.shown_state != "running" or trial.schedule is None:
        return None
    trace = service.trace(trial.schedule)
    return float(trace.lr[min(len(trial.curve), trace.epochs - 1) * trace.steps_per_epoch])
