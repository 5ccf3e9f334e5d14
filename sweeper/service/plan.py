"""What a sweep would do, before anything is trained."""

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
from sweeper.service.run import slots
from sweeper.stats import CLAIM, KNOWN, MIN_PAIRS, Spread, detectable_effect, pairs_needed
from sweeper.study import Study, Trial, samplers

if TYPE_CHECKING:
    from sweeper.service.service import Service

SAMPLE = 1000  # proposals that a plan draws at most: a second or two
SAMPLE_STEPS = 50_000_000  # optimizer steps of all of them: some seconds
SAMPLE_EPOCHS = 1_000_000  # and epochs, each with a key
SAMPLE_LEAST = 20
MEASURED = 100  # trials whose last states say how large a state is
DRAWN = 20  # proposals by which it is reckoned what a budget buys


@dataclass(frozen=True)
class Planned:
    """A schedule that would be trained, or that lies at the edge of the space.

    ``kind`` is baseline, search or corner; ``digest`` and ``facts`` are its trace's."""

    kind: str
    name: str
    spec: Mapping[str, Any]
    digest: str
    facts: Mapping[str, Any]
    label: str


@dataclass(frozen=True)
class Elsewhere:
    """With the noise of another data set: the standard deviation of a pair's difference ``s_d``, the effect that would
    be seen with 80 % power, and how many pairs +0.004 needs."""

    where: str
    s_d: float
    detectable: float
    needed: int


@dataclass(frozen=True)
class Evidence:
    """What the confirmation of the ``best`` on ``seeds`` could tell; fewer than ``least`` seeds name no winner.

    ``detectable``: the effect that would be seen with 80 % power at the ``noise`` of paired differences, and its range;
    None while the sweep has no pairs. ``elsewhere``: what it would be with the noise of some other data sets.
    """

    best: int
    seeds: int
    least: int
    noise: Spread
    detectable: float | None
    detectable_range: tuple[float, float]
    elsewhere: Sequence["Elsewhere"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
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
    """The disk that a sweep's states take: ``states``, one for each epoch that is trained, of ``state_bytes`` each.

    ``states`` is None while nobody knows what a budget buys. ``measured``: that size is the mean of states in the
    store, else it is reckoned from the model. ``limit``: bytes of the states that are kept, the last used ones.
    ``free``: bytes of the disk, None where that is not known.
    """

    states: int | None
    state_bytes: int
    measured: bool
    limit: int
    free: int | None

    @property
    def needed(self) -> int | None:
        """Bytes of all states."""
        return None if self.states is None else self.states * self.state_bytes


@dataclass(frozen=True)
class Duration:
    """How long a sweep takes: ``epochs`` in hours of one worker, and with the ``workers`` and ``devices`` of this
    machine in hours on the clock (``wall``) and hours of a device; None where its device is not here."""

    epochs: int
    worker_hours: float
    workers: int
    devices: int
    wall_hours: float | None
    device_hours: float | None


@dataclass(frozen=True)
class Plan:
    """What a sweep would do. ``images``: training and validation images.

    ``trials`` proposals are asked for, or are what the budget buys (None: not known yet), of which ``drawn`` were
    drawn; ``sampled``: as a sample, None for all of them; ``distinct`` schedules among them. ``epochs_asked`` in all
    trials, on one seed each, ``epochs_to_train`` as far as none is there already, ``share_saved`` thereby.
    ``share_of_baselines``: of the proposals' epochs that are the baselines' own; ``begin_otherwise``: how many
    proposals do not begin as a baseline, by its name; ``trunk``: its spec. ``hours`` of one worker for
    ``epochs_to_train`` and ``seconds_per_epoch``: None where no epoch was timed. ``confirm``: what the confirmation
    could tell; ``race``: the race over seeds, None without one. ``duration`` of the whole search with its race, and
    with a budget of the confirmation; None where no epoch was timed. ``problems`` of the data.
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
    duration: Duration | None
    problems: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain, (train, val) = asdict(self), self.images
        schedules = [planned | planned["facts"] for planned in plain["schedules"]]
        for planned in schedules:
            del planned["facts"]
        images = {"train": train, "val": val}
        return plain | {"images": images, "schedules": schedules, "confirm": self.confirm.to_dict()}


def plan_of(service: "Service") -> Plan:
    """What would be tried, how much of it is shared, and what it could detect. Trains and changes nothing.

    The enqueued schedules are among the proposals; the others are drawn uniformly with the sweep's seed, each
    another one while the space has more. A sampler that learns will propose others, more alike. Of many trials a sample
    is drawn (``sampled`` says how many, else None). What the others train is then bounded by what the second half of
    the sample adds to the first, as each further proposal finds more of its beginning there already.
    """
    reckoned_bytes = service.check_sweep()
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
    reckoned = _Reckoned(service)
    for number, (schedule, trace) in enumerate(_drawn(service, min(wanted, limit))):
        reckoned.draw(f"draw {number}", schedule, trace)
    drawn = len(reckoned.added)
    sampled = drawn if drawn == limit < wanted else None
    traced = ((corner, service.trace(corner)) for corner in search.corners(service.searched, service.time))
    corners = {trace.digest: (corner, trace) for corner, trace in traced}
    shown = [
        *reckoned.shown,
        *(_planned(service, "corner", f"corner {n}", *corner) for n, corner in enumerate(corners.values())),
    ]
    asked, trained = (len(baselines) + drawn) * time.epochs, len(reckoned.keys)
    if sampled is not None:
        late = reckoned.added[-(sampled // 2) :]
        asked += (wanted - sampled) * time.epochs
        trained += round((wanted - sampled) * sum(late) / len(late))
    confirm = service.sweep.confirm
    noise = service.answer(finished).noise

    def seen(s_d: float) -> float:
        alpha = confirm.alpha / confirm.best
        return detectable_effect(s_d, confirm.seeds, alpha=alpha, equivalence=confirm.equivalence)

    proposals = [planned for planned in reckoned.shown if planned.kind == "search"]
    cost = cost or Cost.of(service, [planned.spec for planned in proposals], seconds)
    whole: int | None = trained
    if service.sweep.search.seeds > 1 or service.sweep.budget is not None:
        whole = None if trials is None else round(cost.total(trials if sampled is not None else drawn))
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
        epochs_asked=asked,
        epochs_to_train=trained,
        share_saved=1 - trained / asked if asked else 0.0,
        share_of_baselines=reckoned.of_baselines / (drawn * time.epochs) if drawn else 0.0,
        begin_otherwise=reckoned.begin_otherwise,
        trunk=None if service.sweep.trunk is None else service.sweep.trunk.spec,
        hours=None if seconds is None else trained * seconds / 3600,
        seconds_per_epoch=seconds,
        confirm=Evidence(
            best=confirm.best,
            seeds=confirm.seeds,
            least=MIN_PAIRS,
            noise=noise,
            detectable=None if noise.s_d is None else seen(noise.s_d),
            detectable_range=(seen(noise.low), seen(noise.high)),
            elsewhere=[
                Elsewhere(where, s_d, seen(s_d), pairs_needed(CLAIM, s_d, most=10**9)) for s_d, where in _measured()
            ],
        ),
        race=race_plan(service, finished),
        cost=cost,
        disk=_disk(service, whole, reckoned_bytes, finished),
        duration=None if seconds is None or whole is None else _duration(service, whole, seconds),
        problems=list(service.dataset.problems),
    )


def _measured() -> list[tuple[float, str]]:
    """The noise of the quietest, a middle and the noisiest of the data sets elsewhere, and which they are."""
    noises = sorted(((known.low * known.high) ** 0.5, f"{known.data}, {known.what}") for known in KNOWN)
    return [noises[0], noises[(len(noises) - 1) // 2], noises[-1]]


def _disk(service: "Service", states: int | None, reckoned: int, trials: Sequence[Trial]) -> Disk:
    begun = [trial for trial in trials if trial.spec is not None and trial.facts.recipe and trial.curve][-MEASURED:]
    traced = [(trial, service.trace(schedule)) for trial in begun if (schedule := trial.schedule) is not None]
    last = {prefix_keys(str(trial.facts.recipe), trace)[len(trial.curve)] for trial, trace in traced}
    measured = service.store.mean_bytes(last) if last else None
    limit = service.place.limit(service.sweep.store_gb, 0)
    with contextlib.suppress(DatabaseError):
        if not service.database_missing:
            limit = service.store.max_bytes or limit
    size = reckoned if measured is None else round(measured)
    return Disk(states, size, measured is not None, limit, service.place.free)


def _trials(service: "Service") -> list[Trial]:
    """The trials so far; none before the launch, and none is created by asking."""
    if not service.database_missing:
        with contextlib.suppress(DatabaseError):
            return Study.open(service.database, service.sweep.name).trials()
    return []


def _duration(service: "Service", epochs: int, seconds: float) -> Duration:
    hours = epochs * seconds / 3600
    try:
        where = slots(service.sweep)
    except DeviceError:
        return Duration(epochs, hours, 0, 0, None, None)
    workers, devices = len(where), len(set(where))
    return Duration(epochs, hours, workers, devices, hours / workers, hours / workers * devices)


class _Reckoned:
    """What is known of the schedules that were tried so far; no trace is kept but the baselines'."""

    def __init__(self, service: "Service") -> None:
        self._service, self._baselines = service, service.sweep.named_baselines
        self._traces = {name: service.trace(schedule) for name, schedule in self._baselines.items()}
        self._known = frozenset(key for trace in self._traces.values() for key in prefix_keys("plan", trace)[1:])
        self.keys = set(self._known)  # of the states that are reached, each once
        self.shown = [
            _planned(service, "baseline", name, self._baselines[name], trace) for name, trace in self._traces.items()
        ]
        self.added: list[int] = []  # states that each proposal adds to those before
        self.of_baselines = 0  # states of the proposals that are the baselines', too
        self.begin_otherwise = dict.fromkeys(self._baselines, 0)  # proposals that do not begin as this baseline

    def draw(self, name: str, schedule: Schedule, trace: Trace) -> None:
        """Add a proposal."""
        keys, before, time = prefix_keys("plan", trace)[1:], len(self.keys), self._service.time
        self.keys.update(keys)
        self.added.append(len(self.keys) - before)
        self.of_baselines += sum(key in self._known for key in keys)
        self.shown.append(_planned(self._service, "search", name, schedule, trace))
        for baseline, other in self._baselines.items():
            steps = max(ceil(schedule.warm(time)), ceil(other.warm(time)), time.steps_per_epoch)
            self.begin_otherwise[baseline] += not begin_alike(trace, self._traces[baseline], steps)


def _planned(service: "Service", kind: str, name: str, schedule: Schedule, trace: Trace) -> Planned:
    spec = schedule.spec
    return Planned(kind, name, spec, trace.digest, trace.facts(), service.searched.label(spec))


def _drawn(service: "Service", count: int) -> Iterator[tuple[Schedule, Trace]]:
    """``count`` proposals without a sampler, with their traces; fewer where the space seems to have no more schedules.

    What enqueued answers leave open is drawn.
    """
    first = service.sweep.sampling_seed * 1_000_003
    seen: set[str] = set()
    given = search.enqueued(service.searched, service.time)
    for number, start in enumerate(given[:count]):
        suggest = search.Drawn(first + number, start.answers)
        schedule = start.schedule or search.propose(service.searched, suggest, service.time)
        trace = service.trace(schedule)
        seen.add(trace.digest)
        yield schedule, trace
    left, misses = count - len(given), 0
    for number in range(first, first + 50 * count):
        # ten times as many misses as there are schedules: the chance that a space still had one is e^-10
        if left <= 0 or misses > 10 * (len(seen) + 10):
            break
        schedule = search.propose(service.searched, search.Drawn(number), service.time)
        trace = service.trace(schedule)
        if trace.digest in seen:
            misses += 1
            continue
        seen.add(trace.digest)
        left, misses = left - 1, 0
        yield schedule, trace
