"""How often a search and its confirmation find a schedule that is better by a known amount, on simulated scores.

    python benchmarks/power.py                        # 100 repeats, as a table
    python benchmarks/power.py --json --repeats 40 --start 1000 --effect 0.004 --run-sd 0.0215 --branch-sd 0.006
    python benchmarks/power.py --only today race      # two of the methods
    python benchmarks/power.py --quick --repeats 400  # the same race, confirmation and rule without a database

Real are the study, its queue, samplers, the race, the confirmation and the rule that names a winner. Only the score of
a training is simulated, by the model of docs/race.md: m of the schedule + noise of the seed + noise of the branch on
that seed. Runs that begin as `yolo_linear` does share the noise of the seed with it; runs with CAWB's own warm-up have
another one, shared among themselves (measured on BCCD: no correlation between the two kinds). The noise of a branch
grows with its departure, the share of the learning rate that is another one, to the power of 0.75; `--branch-sd` is
that of the schedule in the middle of the space, and the one that may be better. All others are worth as much as the
baseline. Every repeat is done twice: once with that effect, and once with no effect anywhere, where any winner is
false.

`today` searches with one seed each and confirms on as many fresh seeds as make at least the epochs of `race`.
"""

import argparse
import functools
import hashlib
import itertools
import json
import logging
import math
import multiprocessing
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from sweeper import database, evidence, search
from sweeper.config import Sweep
from sweeper.schedules import TimeBase, Trace, parse, prefix_keys
from sweeper.search import Entrant
from sweeper.service import Place, Service
from sweeper.study import Study, Trial, Wanted
from sweeper.study.trial import Facts

logging.disable(logging.WARNING)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)

EPOCHS = 40
TIME = TimeBase(EPOCHS, 4, 64)
MIDDLE = {"steps": [20], "step_scale": 0.75}  # the schedule in the middle of the space
SPACE = {
    "family": "cawb",
    "restarts": {"min": 1, "max": 1, "every": 10, "first": 10, "last": 30},
    "step_scale": [0.5, 0.75, 1.0, 1.25],
    "horizon": "end",
    "floor": 0.01,
}
TRIALS = 12  # as many as the space has
CONFIRM = {"best": 2, "seeds": 42}
RACE = {"seeds": 32, "begin": 8, "race": 2}
COMMON = {
    "name": "power", "data": "digits", "model": "yolo11n.yaml", "epochs": EPOCHS, "lr0": 0.02, "trials": TRIALS,
    "baselines": ["yolo_linear"], "sampler": "tpe", "lease_s": 6e5,
}  # fmt: skip
Promote = Callable[[Sequence[Entrant], Sequence[int]], list[tuple[int, int]]]


# -- the world: what a training would have scored


@dataclass
class World:
    """Scores of trainings; a function of ``start``, so that all methods meet the same luck on the same seeds."""

    start: int
    effect: float
    run_sd: float
    branch_sd: float
    trunk: bool
    traces: dict[str, Trace] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    trained: set[tuple[int, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        yolo = sweep_of("", {}).schedule("yolo_linear").spec
        plain = {**sweep_of("", {}).schedule({**_plain(SPACE), "steps": []}).spec, "warmup": "3ep"}
        self.roots = {"yolo": self.trace(yolo), "cawb": self.trace(plain)}
        branch = {**_plain(SPACE), **MIDDLE} | ({"trunk": "yolo_linear"} if self.trunk else {"warmup": "3ep"})
        self.known = self.trace(sweep_of("", {}).schedule(branch).spec)
        self.middle = self.departure(self.known)

    def trace(self, spec: Mapping[str, Any]) -> Trace:
        """A spec's trace, made once."""
        text = json.dumps(spec, sort_keys=True)
        if text not in self.traces:
            trace = self.traces[text] = parse(spec).trace(TIME)
            self.keys[trace.digest] = prefix_keys("", trace)
        return self.traces[text]

    def root(self, trace: Trace) -> str:
        """What a run begins as."""
        return "yolo" if self.keys[trace.digest][1] == self.keys[self.roots["yolo"].digest][1] else "cawb"

    def departure(self, trace: Trace) -> float:
        """The share of the learning rate that is another one than that of the run without a restart."""
        root = self.roots[self.root(trace)]
        return float(np.abs(trace.lr - root.lr).sum() / root.lr.sum())

    def score(self, trace: Trace, seed: int) -> float:
        """What training it on this seed ends with."""
        root = self.root(trace)
        luck = self._draw(seed, root) * self.run_sd
        branch = self._draw(seed, trace.digest) * self.branch_sd * (self.departure(trace) / self.middle) ** 0.75
        return float(0.48 + luck + branch + (self.effect if trace.digest == self.known.digest else 0.0))

    def train(self, trace: Trace, seed: int) -> float:
        """The same, its epochs counted where they were not trained before."""
        self.trained |= {(seed, key) for key in self.keys[trace.digest][1:]}
        return self.score(trace, seed)

    def _draw(self, seed: int, what: str) -> float:
        words = hashlib.sha256(f"{self.start} {seed} {what}".encode()).digest()
        return float(np.random.default_rng(int.from_bytes(words, "big")).standard_normal())


def _plain(space: Mapping[str, Any]) -> dict[str, Any]:
    return {key: space[key] for key in ("family", "horizon", "floor")}


def sweep_of(name: str, changes: Mapping[str, Any], **space: Any) -> Sweep:
    """A sweep over the space, with these keys of its search and these changes."""
    named = {"name": name} if name else {}
    return Sweep.build({**COMMON, "confirm": CONFIRM, "search": {**SPACE, **space}, **named, **changes})


# -- the methods: each is a sweep, and for the variants another rule of promotion


def intensify(entrants: Sequence[Entrant], seeds: Sequence[int]) -> list[tuple[int, int]]:
    """SMAC's rule (Hutter et al. 2011). Each challenger meets the incumbent, which gets one more seed with each of
    them, on 1, 2, 4, ... of the incumbent's seeds; it leaves as soon as its mean there is lower, and takes over when
    it has kept up on all of them."""
    wanted: list[tuple[int, int]] = []

    def has(entrant: Entrant, count: int) -> bool:
        wanted.extend((entrant.trial, seed) for seed in seeds[1:count])
        return all(seed in entrant.scores for seed in seeds[:count])

    def mean(entrant: Entrant, count: int) -> float:
        return float(np.mean([entrant.scores[seed] for seed in seeds[:count]]))

    incumbent, raced = None, 1
    for challenger in entrants:
        if seeds[0] not in challenger.scores:
            break
        if incumbent is None:
            incumbent = challenger
            continue
        raced = min(raced + 1, len(seeds))
        if not has(incumbent, raced):
            break
        count = 1
        while True:
            if not has(challenger, count):
                return list(dict.fromkeys(wanted))
            if mean(challenger, count) < mean(incumbent, count):
                break
            if count == raced:
                incumbent = challenger
                break
            count = min(2 * count, raced)
    return list(dict.fromkeys(wanted))


class Wilcoxon:
    """Optuna's WilcoxonPruner over seeds (step = seed): one proposal after the other is trained on all seeds, and
    stopped as soon as the signed-rank test with the best so far says that it is worse (p < 0.1)."""

    def __init__(self) -> None:
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
        self.study = optuna.create_study(direction="maximize", pruner=pruner)
        self.wanted: list[tuple[int, int]] = []
        self.place = self.step = 0  # the proposal and the seed that are looked at: what is before them is decided
        self.trial = self.study.ask()

    def __call__(self, entrants: Sequence[Entrant], seeds: Sequence[int]) -> list[tuple[int, int]]:
        while self.place < len(entrants):
            entrant, seed = entrants[self.place], seeds[self.step]
            if self.step and (entrant.trial, seed) not in self.wanted:
                self.wanted.append((entrant.trial, seed))
            if seed not in entrant.scores:
                break
            self.trial.report(float(entrant.scores[seed] or 0.0), self.step)
            self.step += 1
            if self.step == len(seeds) or self.trial.should_prune():
                self.study.tell(self.trial, float(np.mean([entrant.scores[s] or 0.0 for s in seeds[: self.step]])))
                self.place, self.step, self.trial = self.place + 1, 0, self.study.ask()
        return self.wanted


@dataclass(frozen=True)
class Method:
    """``space``: keys of the search; ``promote``: whose rule."""

    space: Mapping[str, Any]
    promote: Callable[[], Promote] | None = None
    equal: bool = False  # confirms on as many seeds as make the race's epochs


TRUNK = {"trunk": "yolo_linear", **RACE}
METHODS = {
    "today": Method({"warmup": "3ep"}, equal=True),
    "race": Method(TRUNK),
    "every proposal on all seeds": Method({**TRUNK, "begin": RACE["seeds"]}),
    "from one seed": Method({**TRUNK, "begin": 1}),
    "intensify": Method({**TRUNK, "begin": 1}, promote=lambda: intensify),
    "wilcoxon": Method({**TRUNK, "begin": 1}, promote=Wilcoxon),
}


def service_of(sweep: Sweep, method: Method, folder: Path) -> Service:
    """The sweep as workers see it, without data, store and server."""
    service = Service(sweep, Place(str(folder)))
    vars(service).update(time=TIME, _run_ids={})
    agenda = service.agenda
    if method.promote is not None:
        promote = method.promote()
        entrants = functools.partial(evidence.entrants, reference="yolo_linear")
        vars(agenda)["race"] = lambda rows: evidence.wanted_replicates(rows, promote(entrants(rows), agenda.seeds))
    return service


def confirming(sweep: Sweep, method: Method, world: World, leaders: Sequence[str], epochs: int) -> Sweep:
    """The sweep with as many confirmation seeds as make ``epochs``, for a method that may use as much."""
    if not method.equal or not epochs:
        return sweep
    each = len({key for digest in (world.roots["yolo"].digest, *leaders) for key in world.keys[digest][1:]})
    seeds = max(math.ceil((epochs - len(world.trained)) / each), 4)
    return sweep.model_copy(update={"confirm": sweep.confirm.model_copy(update={"seeds": seeds})})


def outcome(
    service: Service, world: World, rows: Sequence[Trial], searched: int, leaders: Sequence[str]
) -> dict[str, Any]:
    """What came out of a sweep with these trials."""
    winner = service.answer(rows).winner
    return {
        "winner": winner is not None,
        "right": winner is not None and world.trace(winner.params).digest == world.known.digest,
        "finalist": world.known.digest in leaders,
        "search": searched,
        "epochs": len(world.trained),
    }


def digests(service: Service, rows: Sequence[Trial]) -> list[str]:
    """The traces of the trials that are going to be confirmed."""
    traces = {row.number: row.facts.trace for row in rows if row.facts.trace}
    return [traces[number] for number in service.leaders(rows)[: CONFIRM["best"]]]


def in_memory(method: Method, world: World, folder: Path, name: str, epochs: int) -> dict[str, Any]:
    """The same sweep without a database and a sampler that learns: proposals are drawn at random, each another one."""
    sweep = sweep_of(name, {"seed": world.start % 2**31}, **method.space)
    service, rows, known, draws = service_of(sweep, method, folder), list[Trial](), set[str](), itertools.count()
    asked: list[str] = []

    def work(trials: Sequence[Wanted]) -> bool:
        have, added = Counter(asked), False
        for wanted in trials:
            text = json.dumps(wanted.given, sort_keys=True)
            have[text] -= 1
            if have[text] >= 0:
                continue
            asked.append(text)
            added = True
            spec = wanted.schedule if wanted.replicate_of is None else rows[wanted.replicate_of].spec
            while spec is None:
                drawn = search.propose(
                    service.searched, search.OfflineTrial(world.start * 1000 + next(draws)), TIME
                ).spec
                spec = drawn if world.trace(drawn).digest not in known else None
            trace = world.trace(spec)
            known.update([trace.digest] if wanted.stage == "search" else [])
            score = world.train(trace, wanted.seed)
            facts = Facts.of({**wanted.given, "trace": trace.digest})
            rows.append(Trial(len(rows), wanted.stage, wanted.seed, "COMPLETE", spec, score, facts=facts))
        return added

    while work(service.agenda.wanted(rows)):
        pass
    leaders, searched = digests(service, rows), len(world.trained)
    confirm = confirming(sweep, method, world, leaders, epochs).confirm
    design = evidence.Design.begin(rows, ["yolo_linear"], confirm, sweep.recipe.seed, service.leaders(rows))
    work(evidence.wanted_confirmation(rows, service.baselines(), design))
    return outcome(service, world, rows, searched, leaders)


def repeat(method: Method, world: World, folder: Path, name: str, epochs: int) -> dict[str, Any]:
    """One sweep, searched, confirmed and judged. ``epochs``: what the race trained; some may use as much."""
    sweep = sweep_of(name, {"seed": world.start % 2**31}, **method.space)
    service, opened = service_of(sweep, method, folder), database.open(folder / "power.db")
    vars(service)["database"] = opened
    agenda = service.agenda
    study = Study.create(
        opened,
        name,
        config={},
        trials=agenda.wanted([]),
        sampler=sweep.sampler,
        seed=sweep.recipe.seed,
        lease_seconds=6e5,
    )
    if agenda.adds_trials:
        study.agenda = agenda.now
    vars(service)["study"] = study

    def work() -> None:
        known: set[str] = set()
        while (slot := study.claim("worker")) is not None:
            spec = slot.propose(
                lambda suggest: search.propose(service.searched, suggest, TIME).spec,
                known=lambda spec: world.trace(spec).digest in known,
                reference=agenda.known_reference,
            )
            trace = world.trace(spec)
            if slot.stage == "search":
                known.add(trace.digest)
            if slot.stage == "baseline" or (slot.stage == "search" and slot.facts.replicate_of is None):
                slot.set("trace", trace.digest)
            slot.tell(world.train(trace, slot.seed))

    work()
    leaders, searched = digests(service, study.trials()), len(world.trained)
    service.sweep = confirming(sweep, method, world, leaders, epochs)
    study.agenda = None
    service.confirm()
    work()
    result = outcome(service, world, study.trials(), searched, leaders)
    opened.engine.dispose()
    return result


def once(start: int, given: argparse.Namespace) -> dict[str, Any]:
    """All methods in one world with the effect, and in one without."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for world_of, effect in (("with", given.effect), ("without", 0.0)):
            epochs = 0
            names = sorted(given.only, key=lambda name: METHODS[name].equal)  # the race first
            for name in names:
                method = METHODS[name]
                world = World(start, effect, given.run_sd, given.branch_sd, "trunk" in method.space)
                unique = f"{list(METHODS).index(name)}-{world_of}"
                result = (in_memory if given.quick else repeat)(method, world, Path(folder), unique, epochs)
                epochs = result["epochs"] if name == "race" else epochs
                results.setdefault(name, {})[world_of] = result
    return results


def summary(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Shares and means over the repeats, by method."""
    return {
        name: {
            "found": float(np.mean([result[name]["with"]["right"] for result in results])),
            "false": float(np.mean([result[name]["without"]["winner"] for result in results])),
            "epochs": float(np.mean([result[name]["with"]["epochs"] for result in results])),
            "search_epochs": float(np.mean([result[name]["with"]["search"] for result in results])),
            "finalist": float(np.mean([result[name]["with"]["finalist"] for result in results])),
            "repeats": len(results),
        }
        for name in names
    }


def count(text: str) -> int:
    """A number of the command line that is at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value


def deviation(text: str) -> float:
    """A standard deviation of the command line."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a standard deviation, 0 or more")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--start", type=int, default=0, help="the first repeat's number; other repeats, other luck")
    parser.add_argument("--effect", type=float, default=0.004)
    parser.add_argument("--repeats", type=count, default=100)
    parser.add_argument("--run-sd", type=deviation, default=0.0215, help="of a run over seeds")
    parser.add_argument("--branch-sd", type=deviation, default=0.006, help="of a branch's difference to its trunk")
    parser.add_argument("--quick", action="store_true", help="without a database; proposals are drawn, not sampled")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--jobs", type=count, default=1, help="repeats side by side")
    given = parser.parse_args()
    begun, starts = time.perf_counter(), range(given.start, given.start + given.repeats)
    with multiprocessing.Pool(given.jobs) as pool:
        results = pool.starmap(once, zip(starts, itertools.repeat(given)), chunksize=1)
    table = summary(results, given.only)
    if given.json:
        print(json.dumps(table, indent=1))
        return
    print("| method | finds it | false winners | trained epochs | of them in the search | among the finalists |")
    print("|---|---|---|---|---|---|")
    for name, row in table.items():
        shares = [f"{100 * row[key]:.0f} %" for key in ("found", "false")]
        numbers = [f"{row[key]:,.0f}" for key in ("epochs", "search_epochs")]
        print("| " + " | ".join([name, *shares, *numbers, f"{100 * row['finalist']:.0f} %"]) + " |")
    print(f"\n{given.repeats} repeats, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
