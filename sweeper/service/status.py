"""How far a sweep is."""

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

ALIVE_S = 120.0  # a worker that reported within so many seconds is at work


@dataclass(frozen=True)
class Epochs:
    """Epochs of each trial, and those of all trials so far: trained for them, or ``reused`` from other trials."""

    per_trial: int
    trained: int
    reused: int


@dataclass(frozen=True)
class Proposals:
    """How often the sampler was ``asked`` for the ``told`` search trials that have ended well or were pruned.

    ``distinct`` schedules among them; ``duplicates`` took the result of a finished trial with the same training.
    """

    asked: int
    told: int
    distinct: int
    per_trial: float | None
    duplicates: int


@dataclass(frozen=True)
class Stored:
    """States in the store: how many, their size, the size allowed (``budget``) and the disk's ``free`` bytes (None:
    not known); how often and how much was read from it. Sizes are in bytes."""

    count: int
    bytes: int
    reads: int
    read_bytes: int
    free: int | None
    budget: int


@dataclass(frozen=True)
class AtWork:
    """A worker as it last reported: its trial and epoch (None: none), ``age_s`` seconds ago."""

    worker: str
    device: str
    trial: int | None
    epoch: int | None
    age_s: float

    @property
    def alive(self) -> bool:
        """Whether it reported of late."""
        return self.age_s < ALIVE_S


@dataclass(frozen=True)
class Row:
    """A trial in the table. ``score``: what it was told with, before that its last epoch's; ``curve``: by epoch;
    ``lr``: at the start of its next epoch, None unless its state is running. ``waits``: it has begun, and no worker has
    it now: another trial trains an epoch that it can use, or its worker is gone."""

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
    """How far a sweep is. ``budget``: how many trials there are; ``counts``: trials by state, with their "total".

    ``phase``: what is being done now and why, in sentences. ``hours_saved`` by reuse, each trial's epochs at their own
    time; ``seconds_per_epoch``: the median over trials (None: none was timed). ``mismatches``: trainings of one segment
    that differ. ``race``: how the race over seeds stands, ``spending``: of the sweep's budget; None without one.
    ``tracking_problem``: why MLflow does not get everything, None if it does.
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
        """How many trials have begun and are in no worker's hands."""
        return sum(row.waits for row in self.trials)

    @property
    def settled(self) -> tuple[int, int]:
        """Epochs that are settled, and those of all trials; a trial that failed or was pruned has none to come."""
        each, to_come = self.epochs.per_trial, ("waiting", "running")
        done = sum(row.epochs_done if row.state in to_come else each for row in self.trials)
        return done, each * len(self.trials)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the score of a trial stands under the objective's name."""
        parts = {"race": self.race, "spending": self.spending, "failures": self.failures}
        data = asdict(replace(self, race=None, spending=None))
        data |= {key: None if part is None else part.to_dict() for key, part in parts.items()}
        data["begun_and_waiting"] = self.waits
        data["mismatches"] = [mismatch.to_dict() for mismatch in self.mismatches]
        for row in data["trials"]:
            row[self.objective] = row.pop("score")
        return data


def status_of(service: "Service") -> Status:
    """How far the sweep is. Raises DatabaseError if it was never launched."""
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
    """The LR that a trial in training has at the start of its next epoch."""
    if trial.shown_state != "running" or trial.schedule is None:
        return None
    trace = service.trace(trial.schedule)
    return float(trace.lr[min(len(trial.curve), trace.epochs - 1) * trace.steps_per_epoch])
