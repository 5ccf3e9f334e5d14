"""The plan of a sweep before anything is trained: schedules, epochs, cost, disk, and which gain it could detect."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from statistics import median
from typing import TYPE_CHECKING, Any

from sweeper import search
from sweeper.errors import DatabaseError, DeviceError
from sweeper.schedules import Schedule, Trace, begin_alike, prefix_keys
from sweeper.service.racing import Cost, RacePlan, race_plan
from sweeper.service.run import worker_devices
from sweeper.stats import CLAIM, KNOWN, MIN_PAIRS, Spread, detectable_effect, pairs_needed
from sweeper.study import Study, Trial, samplers

if TYPE_CHECKING:
    from sweeper.service.service import Service

# A plan draws as many proposals as each of the first three limits allows, so that it takes seconds.
SAMPLE = 1000  # proposals
SAMPLE_STEPS = 50_000_000  # optimizer steps of all their traces
SAMPLE_EPOCHS = 1_000_000  # epochs, each with a prefix key
SAMPLE_LEAST = 20  # proposals that are drawn in any case
MEASURED = 100  # The size of a state is the mean over the last states of so many trials.
DRAWN = 20  # The cost of an average proposal is the mean over so many, where the number of proposals is not known.


@dataclass(frozen=True)
class Planned:
    """A schedule that would be trained, or a corner of the search space.

    ``kind`` is baseline, search or corner. ``digest`` and ``facts`` are those of its LR trace."""

    kind: str
    name: str
    spec: Mapping[str, Any]
    digest: str
    facts: Mapping[str, Any]
    label: str


@dataclass(frozen=True)
class Elsewhere:
    """What the confirmation could detect with the noise of another data set ``where``.

    ``s_d`` is the standard deviation of a pair's difference, ``detectable`` the gain that would be detected with 80 %
    power, and ``needed`` the number of pairs for a gain of 0.004.
    """

    where: str
    s_d: float
    detectable: float
    needed: int


@dataclass(frozen=True)
class Evidence:
    """What a confirmation of the ``best`` schedules on ``seeds`` seeds could detect.

    With fewer than ``least`` seeds there is no winner. ``detectable``, with its range, is the gain that would be
    detected with 80 % power at the ``noise`` of paired differences; it is None while the sweep has no pairs.
    ``elsewhere`` has the same for the noise of some other data sets.
    """

    best: int
    seeds: int
    least: int
    noise: Spread
    detectable: float | None
    detectable_range: tuple[float, float]
    elsewhere: Sequence["Elsewhere"]

    def to_dict(self) -> dict[str, Any]:
        """The evidence under the keys of ``plan --json``."""
        noise = self.noise
        return {key: value for key, value in asdict(self).items() if key != "noise"} | {
            "sigma_of_differences": noise.s_d,
            "sigma_of_differences_range": (noise.low, noise.high),
            "source": noise.source,
            "pairs_for_0.004": noise.needed,
            "pairs_for_0.004_range": noise.needed_range,
            "needs": noise.needs,
        }


@dataclass(frozen=True)
class Disk:
    """The disk space of a sweep's ``states``, one for each trained epoch, of ``state_bytes`` each.

    ``states`` is None for a budget in hours while no epoch was timed. ``measured``: the size is the mean of states in
    the store, else an estimate from the model. ``limit``: size limit of the store in bytes; beyond it the least
    recently used states are removed. ``free``: free bytes of the disk (None: unknown).
    """

    states: int | None
    state_bytes: int
    measured: bool
    limit: int
    free: int | None

    @property
    def needed(self) -> int | None:
        """Bytes of all states; None if their number is not known."""
        return None if self.states is None else self.states * self.state_bytes


@dataclass(frozen=True)
class TrainingTime:
    """How long the training of ``epochs`` takes: hours of one worker, and with the ``workers`` and ``devices`` of this
    machine the hours on the clock (``wall_hours``) and of all devices. The latter are None if the sweep's device is not
    in this machine."""

    epochs: int
    worker_hours: float
    workers: int
    devices: int
    wall_hours: float | None
    device_hours: float | None


@dataclass(frozen=True)
class Plan:
    """The plan of a sweep. ``images``: numbers of training and validation images.

    ``trials``: number of proposals that the sweep file asks for or that the budget pays for (None: not known yet).
    ``drawn`` of them were drawn for the plan, ``distinct`` are different; ``sampled`` is the size of the sample, None
    if all were drawn. ``epochs_asked``: epochs of all trials, on one seed each; ``epochs_to_train``: the same with each
    shared epoch counted once; ``share_saved``: the share that need not be trained. ``share_of_baselines``: the share of
    the proposals' epochs that baselines train, too; ``begin_otherwise``: baseline -> proposals that begin differently;
    ``trunk``: the spec of the trunk. ``hours``: of one worker for ``epochs_to_train``; ``race``: None for a sweep
    without a race; ``duration``: of the search with its race, and with a budget also of the confirmation. ``hours``,
    ``seconds_per_epoch`` and ``duration`` are None while no epoch was timed. ``problems``: of the data set.
    """

    sweep: str
    epochs: int
    steps_per_epoch: int
    images: tuple[int, int]
    schedules: Sequence[Planned]
    trials: int | None
    drawn: int
    sampled: int | None
    distinct: int
    epochs_asked: int
    epochs_to_train: int
    share_saved: float
    share_of_baselines: float
    begin_otherwise: Mapping[str, int]
    trunk: Mapping[str, Any] | None
    hours: float | None
    seconds_per_epoch: float | None
    confirm: Evidence
    race: RacePlan | None
    cost: Cost
    disk: Disk
    duration: TrainingTime | None
    problems: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """The plan under the keys of ``plan --json``; a trace's facts are keys of its schedule."""
        plain, images = asdict(self), dict(zip(("train", "val"), self.images, strict=True))
        schedules = [planned | planned.pop("facts") for planned in plain["schedules"]]
        return plain | {"images": images, "schedules": schedules, "confirm": self.confirm.to_dict()}


def plan_of(service: "Service") -> Plan:
    """The plan of the sweep. Trains and changes nothing. Raises SweeperError for a sweep that could not be launched.

    The enqueued schedules come first. The other proposals are drawn uniformly with the sweep's seed, without repeats
    while the space has more; a sampler that learns will propose more similar ones. Of many proposals only a sample is
    drawn. The epochs of the others are then estimated from the second half of the sample. This is an upper bound,
    because the more proposals there are, the more epochs a further one shares with them.
    """
    estimated_bytes = service.check_sweep()
    samplers.make(service.sweep.sampler, seed=0, number=0)
    baselines, time, finished = service.baselines(), service.time, _trials(service)
    timed = [row.facts.epoch_seconds for row in finished if row.facts.epoch_seconds]
    seconds = median(timed) if timed else None
    trials = service.sweep.trials
    cost = None
    if trials is None:
        cost = Cost.of(service, [schedule.spec for schedule, _ in _drawn(service, DRAWN)], seconds)
        trials = cost.proposals
    wanted = DRAWN if trials is None else trials
    limit = max(min(SAMPLE, SAMPLE_STEPS // time.steps, SAMPLE_EPOCHS // time.epochs), SAMPLE_LEAST)
    tally = _Tally(service)
    for number, (schedule, trace) in enumerate(_drawn(service, min(wanted, limit))):
        tally.add(f"draw {number}", schedule, trace)
    drawn = len(tally.new_states)
    sampled = drawn if drawn == limit < wanted else None
    traced = ((corner, service.trace(corner)) for corner in search.corners(service.searched, service.time))
    corners = {trace.digest: (corner, trace) for corner, trace in traced}
    shown = [
        *tally.schedules,
        *(_planned(service, "corner", f"corner {n}", *corner) for n, corner in enumerate(corners.values())),
    ]
    epochs_asked, epochs_to_train = (len(baselines) + drawn) * time.epochs, len(tally.keys)
    if sampled is not None:
        second_half = tally.new_states[-(sampled // 2) :]
        epochs_asked += (wanted - sampled) * time.epochs
        epochs_to_train += round((wanted - sampled) * sum(second_half) / len(second_half))
    confirm = service.sweep.confirm
    noise = service.answer(finished).noise

    def detectable(s_d: float) -> float:
        alpha = confirm.alpha / confirm.best
        return detectable_effect(s_d, confirm.seeds, alpha=alpha, equivalence=confirm.equivalence)

    proposals = [planned for planned in tally.schedules if planned.kind == "search"]
    cost = cost or Cost.of(service, [planned.spec for planned in proposals], seconds)
    epochs_in_all: int | None = epochs_to_train  # on all search seeds, and with a budget also of the confirmation
    if service.sweep.search.seeds > 1 or service.sweep.budget is not None:
        epochs_in_all = None if trials is None else round(cost.total(trials if sampled is not None else drawn))
    return Plan(
        sweep=service.sweep.name,
        epochs=service.sweep.epochs,
        steps_per_epoch=time.steps_per_epoch,
        images=(service.dataset.train_images, service.dataset.val_images),
        schedules=shown,
        trials=trials,
        drawn=drawn,
        sampled=sampled,
        distinct=len({planned.digest for planned in proposals}),
        epochs_asked=epochs_asked,
        epochs_to_train=epochs_to_train,
        share_saved=1 - epochs_to_train / epochs_asked if epochs_asked else 0.0,
        share_of_baselines=tally.states_of_baselines / (drawn * time.epochs) if drawn else 0.0,
        begin_otherwise=tally.begin_otherwise,
        trunk=None if service.sweep.trunk is None else service.sweep.trunk.spec,
        hours=None if seconds is None else epochs_to_train * seconds / 3600,
        seconds_per_epoch=seconds,
        confirm=Evidence(
            best=confirm.best,
            seeds=confirm.seeds,
            least=MIN_PAIRS,
            noise=noise,
            detectable=None if noise.s_d is None else detectable(noise.s_d),
            detectable_range=(detectable(noise.low), detectable(noise.high)),
            elsewhere=[
                Elsewhere(where, s_d, detectable(s_d), pairs_needed(CLAIM, s_d, most=10**9))
                for s_d, where in _noise_elsewhere()
            ],
        ),
        race=race_plan(service, finished),
        cost=cost,
        disk=_disk(service, epochs_in_all, estimated_bytes, finished),
        duration=None if seconds is None or epochs_in_all is None else _duration(service, epochs_in_all, seconds),
        problems=list(service.dataset.problems),
    )


def _noise_elsewhere() -> list[tuple[float, str]]:
    """(Standard deviation of a pair's difference, data set) of the least noisy, a middle and the noisiest data set
    among those that were measured elsewhere."""
    noises = sorted(((known.low * known.high) ** 0.5, f"{known.data}, {known.what}") for known in KNOWN)
    return [noises[0], noises[(len(noises) - 1) // 2], noises[-1]]


def _disk(service: "Service", states: int | None, estimated_bytes: int, trials: Sequence[Trial]) -> Disk:
    begun = [trial for trial in trials if trial.spec is not None and trial.facts.recipe and trial.curve][-MEASURED:]
    traced = [(trial, service.trace(schedule)) for trial in begun if (schedule := trial.schedule) is not None]
    last = {prefix_keys(str(trial.facts.recipe), trace)[len(trial.curve)] for trial, trace in traced}
    measured = service.store.mean_bytes(last) if last else None
    limit = service.place.limit(service.sweep.store_gb, 0)
    with contextlib.suppress(DatabaseError):
        if not service.database_missing:
            limit = service.store.max_bytes or limit
    size = estimated_bytes if measured is None else round(measured)
    return Disk(states, size, measured is not None, limit, service.place.free)


def _trials(service: "Service") -> list[Trial]:
    """The trials so far; [] before the launch."""
    if not service.database_missing:
        with contextlib.suppress(DatabaseError):
            return Study.open(service.database, service.sweep.name).trials()
    return []


def _duration(service: "Service", epochs: int, seconds: float) -> TrainingTime:
    hours = epochs * seconds / 3600
    try:
        devices = worker_devices(service.sweep)
    except DeviceError:
        return TrainingTime(epochs, hours, 0, 0, None, None)
    workers, count = len(devices), len(set(devices))
    return TrainingTime(epochs, hours, workers, count, hours / workers, hours / workers * count)


class _Tally:
    """Counts the states that baselines and drawn proposals would train. Only the baselines' traces are kept, because
    those of a thousand proposals would need too much memory."""

    def __init__(self, service: "Service") -> None:
        self._service, self._baselines = service, service.sweep.named_baselines
        self._traces = {name: service.trace(schedule) for name, schedule in self._baselines.items()}
        self._baseline_keys = frozenset(key for t in self._traces.values() for key in prefix_keys("plan", t)[1:])
        self.keys = set(self._baseline_keys)  # prefix keys of all states
        self.schedules = [
            _planned(service, "baseline", name, self._baselines[name], trace) for name, trace in self._traces.items()
        ]
        self.new_states: list[int] = []  # by proposal: its states that no baseline and no earlier proposal has
        self.states_of_baselines = 0  # states of proposals that a baseline has, too
        self.begin_otherwise = dict.fromkeys(self._baselines, 0)  # number of proposals that begin in another way

    def add(self, name: str, schedule: Schedule, trace: Trace) -> None:
        """Count the states of a proposal."""
        keys, before, time = prefix_keys("plan", trace)[1:], len(self.keys), self._service.time
        self.keys.update(keys)
        self.new_states.append(len(self.keys) - before)
        self.states_of_baselines += sum(key in self._baseline_keys for key in keys)
        self.schedules.append(_planned(self._service, "search", name, schedule, trace))
        for baseline, other in self._baselines.items():
            steps = max(ceil(schedule.warmup_steps(time)), ceil(other.warmup_steps(time)), time.steps_per_epoch)
            self.begin_otherwise[baseline] += not begin_alike(trace, self._traces[baseline], steps)


def _planned(service: "Service", kind: str, name: str, schedule: Schedule, trace: Trace) -> Planned:
    return Planned(kind, name, schedule.spec, trace.digest, trace.facts(), service.searched.label(schedule.spec))


def _drawn(service: "Service", count: int) -> Iterator[tuple[Schedule, Trace]]:
    """``count`` proposals with their traces, drawn at random; fewer if the space has no more schedules.

    The enqueued ones come first; parameters that they leave open are drawn, too.
    """
    first = service.sweep.sampling_seed * 1_000_003
    digests: set[str] = set()
    enqueued = search.enqueued(service.searched, service.time)
    for number, start in enumerate(enqueued[:count]):
        suggest = search.OfflineTrial(first + number, start.params)
        schedule = start.schedule or search.propose(service.searched, suggest, service.time)
        trace = service.trace(schedule)
        digests.add(trace.digest)
        yield schedule, trace
    remaining, misses = count - len(enqueued), 0
    for number in range(first, first + 50 * count):
        # If the space had another schedule, so many draws in a row would miss it with a probability of about e^-10.
        if remaining <= 0 or misses > 10 * (len(digests) + 10):
            break
        schedule = search.propose(service.searched, search.OfflineTrial(number), service.time)
        trace = service.trace(schedule)
        if trace.digest in digests:
            misses += 1
            continue
        digests.add(trace.digest)
        remaining, misses = remaining - 1, 0
        yield schedule, trace
