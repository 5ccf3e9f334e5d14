"""What leases cost: ask + 8 suggestions + 40 reports + tell, ours and bare Optuna's, on the same storage in one run.

    python benchmarks/leases.py [--database-url postgresql://...] [--finished 0 1000 5000] [--workers 1 8 32]

Each worker is a process; a line is the median over all of their trials, in milliseconds. "ask" is what happens before
a training can begin (for us: claim, lease, proposal stored). Both use a random sampler: what a sampler thinks is its
own, and the same for both. Without a database URL: an SQLite file in a temporary folder, opened our way by both.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Mapping
from typing import Any

import optuna

from sweeper import database
from sweeper.study import Study, Wanted
from sweeper.study.fence import open_storage

REPORTS, PARAMETERS = 40, 8
Times = list[tuple[float, float, float]]  # seconds: ask, one report, tell


def proposal(suggest: Any) -> Mapping[str, Any]:
    return {f"x{i}": suggest.suggest_float(f"x{i}", 0.0, 1.0) for i in range(PARAMETERS)}


def ours(url: str, name: str, trials: int) -> Times:
    study, times = Study.open(database.open(url), name), []
    for _ in range(trials):
        began = time.perf_counter()
        slot = study.claim(f"worker-{os.getpid()}")
        assert slot is not None
        slot.propose(proposal)
        asked = time.perf_counter()
        for epoch in range(REPORTS):
            slot.report(epoch, epoch / REPORTS)
        reported = time.perf_counter()
        slot.tell(1.0)
        times.append((asked - began, (reported - asked) / REPORTS, time.perf_counter() - reported))
    return times


def bare(url: str, name: str, trials: int) -> Times:
    storage, times = open_storage(database.open(url)), []  # the same engine; no slot is asked for
    study = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler())
    for _ in range(trials):
        began = time.perf_counter()
        trial = study.ask()
        proposal(trial)
        asked = time.perf_counter()
        for epoch in range(REPORTS):
            trial.report(epoch / REPORTS, epoch)
        reported = time.perf_counter()
        study.tell(trial, 1.0)
        times.append((asked - began, (reported - asked) / REPORTS, time.perf_counter() - reported))
    return times


def prepare(url: str, finished: int, slots: int) -> str:
    """A study of ours with ``finished`` trials and ``slots`` waiting ones."""
    opened, name = database.open(url), uuid.uuid4().hex[:8]
    study = Study.create(opened, name, config={}, trials=[], sampler="random", seed=0)
    optuna_study = optuna.load_study(study_name=name, storage=open_storage(opened))
    distribution = optuna.distributions.FloatDistribution(0.0, 1.0)
    params = {f"x{i}": 0.5 for i in range(PARAMETERS)}
    optuna_study.add_trials(
        optuna.trial.create_trial(params=params, distributions=dict.fromkeys(params, distribution), value=0.5)
        for _ in range(finished)
    )
    study.add([Wanted("search", 0)] * slots)
    return name


def measure(kind: Any, url: str, name: str, workers: int, trials: int) -> list[float]:
    """Median milliseconds of ask, report and tell over all trials of all workers."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        pool.map(time.sleep, [0.5] * workers, chunksize=1)  # everybody has imported everything
        times = [t for each in pool.starmap(kind, [(url, name, trials)] * workers, chunksize=1) for t in each]
    return [1000 * statistics.median(column) for column in zip(*times, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database-url")
    parser.add_argument("--finished", type=int, nargs="*", default=[0, 1000, 5000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--trials", type=int, default=64, help="in all; at least 2 for each worker")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'finished':>8} {'workers':>7} {'':>8} {'ask':>8} {'report':>8} {'tell':>8}  ms")
        for finished in asked.finished:
            for workers in asked.workers:
                each = max(asked.trials // workers, 2)
                url = asked.database_url or f"sqlite:///{folder}/{uuid.uuid4().hex}.db"
                for label, kind in (("optuna", bare), ("sweeper", ours)):
                    name = prepare(url, finished, workers * each if kind is ours else 0)
                    ask, report, tell = measure(kind, url, name, workers, each)
                    print(f"{finished:8} {workers:7} {label:>8} {ask:8.1f} {report:8.2f} {tell:8.1f}", flush=True)


if __name__ == "__main__":
    main()
