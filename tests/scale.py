"""`make scale-test`: 128 workers whose training is a sleep, on one PostgreSQL and one MLflow; what do they ask of them?

    python tests/scale.py [--workers 128] [--epochs 8] [--seconds 30] [--trials 256] [--kills 4]

All but the training is real: study, slots, leases, TPE, reports, states in a store, journals, MLflow. Workers are
forked from one process, so that they share the memory of their libraries. Some are killed in the middle and replaced.
Prints the figures; exit status 1 if a trial was lost or trained twice.
"""

import argparse
import functools
import gc
import hashlib
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from postgres import Postgres, programs
from sqlalchemy import Engine, event
from test_tracking import MLflow

from sweeper import charts, data, study  # noqa: F401  (loaded before the fork: one copy for all)
from sweeper.config import Recipe, Sweep
from sweeper.schedules import Trace
from sweeper.service import Place, Service
from sweeper.study import Slot, Study
from sweeper.training import Detections
from sweeper.training.process import Epoch
from sweeper.worker import Worker

print = functools.partial(print, flush=True)
TIMED = ((Study, "claim"), (Slot, "propose"), (Slot, "report"), (Slot, "tell"))
BALLAST = bytes(20_000)


class Sleep:
    """What a worker sees of a training process; an epoch is a sleep of ``seconds``, give or take a tenth."""

    def __init__(self, *, device: str, folder: Path, stall_s: float, seconds: float, share: float = 1.0) -> None:
        self._seconds = seconds
        self.epochs = 0

    def __enter__(self) -> "Sleep":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def fingerprint(self, recipe: Recipe) -> dict[str, Any]:
        return {"device": "a bed"}

    def train(
        self, recipe: Recipe, trace: Trace, *, start: int, state: bytes | None, detecting: Callable[[int], bool]
    ) -> Iterator[Epoch]:
        for epoch in range(start, trace.epochs):
            time.sleep(self._seconds * random.uniform(0.9, 1.1))
            key = hashlib.sha256((trace.chunk(epoch) + (state or b"")[:32]).ljust(1)).digest()
            state = key + BALLAST
            score = (1 + epoch) / (2 + trace.epochs) + key[0] / 5000
            self.epochs += 1
            lr = float(trace.lr[(epoch + 1) * trace.steps_per_epoch - 1])
            yield Epoch(
                epoch, lr, {"mAP50-95": score, "mAP50": score}, {"train/loss": 1 - score}, 1.0, state, key.hex()
            )

    def detections(self, recipe: Recipe, state: bytes) -> list[Detections]:
        return []

    def weights(self, recipe: Recipe, state: bytes) -> bytes:
        return state

    def end(self) -> None:
        """There is no process."""


def service(sweep: Sweep, place: Place, dataset: Any, seconds: float) -> Service:
    made = Service(sweep, place, training=functools.partial(Sleep, seconds=seconds))
    made.dataset = dataset
    return made


def work(sweep: Sweep, place: Place, dataset: Any, seconds: float, results: Path, delay: float) -> None:
    """A worker as `sweeper worker` runs it, with a clock on what it asks of the database."""
    times: dict[str, list[float]] = defaultdict(list)
    statements = Counter[str]()

    def timed(kind: type, name: str) -> None:
        plain = getattr(kind, name)

        def call(*arguments: Any, **more: Any) -> Any:
            stored = name == "propose" and arguments[0].spec is not None  # by an attempt before: nothing is asked
            began = time.perf_counter()
            try:
                return plain(*arguments, **more)
            finally:
                if not stored:
                    times[name].append(time.perf_counter() - began)

        setattr(kind, name, call)

    for kind, name in TIMED:
        timed(kind, name)
    event.listen(Engine, "before_cursor_execute", lambda *_: statements.update(("statements",)))
    event.listen(Engine, "commit", lambda *_: statements.update(("commits",)))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    random.seed(os.getpid())
    time.sleep(delay)
    here = service(sweep, place, dataset, seconds)
    try:
        began = time.perf_counter()
        here.study  # noqa: B018
        times["open"].append(time.perf_counter() - began)
        Worker(here, device="cpu", stop=stop).run()
    finally:
        here.tracker.close(60)
        (results / f"{os.getpid()}.json").write_text(json.dumps({"times": times, "counts": statements}))


def launch(sweep: Sweep, place: Place, dataset: Any) -> None:
    made = service(sweep, place, dataset, 0)
    made.launch()
    made.tracker.close(30)


def forked(work: Callable[..., None], *arguments: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def memory_mb(pids: list[int]) -> float:
    """Of these processes, what they share counted once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def cpu_s(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))  # also of its children that have ended
    return total / os.sysconf("SC_CLK_TCK")


def quantiles(values: list[float]) -> str:
    if len(values) < 20:
        return f"{len(values)} only"
    cuts = statistics.quantiles(values, n=100)
    return f"median {1000 * cuts[49]:.0f} ms, p95 {1000 * cuts[94]:.0f} ms, max {1000 * max(values):.0f} ms"


def watch(crew: list[Any], server: Postgres, asked: argparse.Namespace, again: Callable[[], Any]) -> dict[str, Any]:
    """Until all have ended: connections, commits and CPU of the server; kill some on the way."""
    with psycopg.connect(server.plain("postgres"), autocommit=True) as connection:

        def ask(query: str) -> Any:
            row = connection.execute(query).fetchone()
            assert row is not None
            return row[0]

        rows = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'sweep'"
        open_ones = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'sweep'"
        backends = "SELECT array_agg(pid) FROM pg_stat_activity"
        began, killed, samples, memory = time.monotonic(), 0, [], 0.0
        cpu: dict[int, float] = {}
        ramp = asked.workers / asked.rate
        while any(process.is_alive() for process in crew):
            time.sleep(2)
            pids = ask(backends)
            cpu |= {pid: cpu_s([pid]) for pid in pids}
            samples.append((time.monotonic() - began, ask(open_ones), ask(rows), sum(cpu.values())))
            due = ramp + asked.seconds * (1 + 2 * killed)
            if killed < asked.kills and samples[-1][0] > due:
                memory = max(memory, memory_mb([process.pid for process in crew]))
                index = random.randrange(len(crew))
                crew[index].kill()
                crew[index].join()
                crew[index] = again()
                killed += 1
    calm = [sample for sample in samples if sample[0] > ramp]
    first, last = calm[0], calm[int(len(calm) * 0.8)]
    span = last[0] - first[0]
    return {
        "seconds": samples[-1][0],
        "connections": max(sample[1] for sample in samples),
        "typical": statistics.median(sample[1] for sample in calm),
        "commits": (last[2] - first[2]) / span,
        "cpu": (last[3] - first[3]) / span,
        "killed": killed,
        "memory": memory,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=128)
    parser.add_argument("--trials", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0, help="of an epoch")
    parser.add_argument("--rate", type=float, default=1.0, help="workers started a second")
    parser.add_argument("--kills", type=int, default=4)
    asked = parser.parse_args()
    found = programs()
    if found is None:
        print("needs PostgreSQL: apt-get install postgresql")
        return 2
    folder = Path(tempfile.mkdtemp(prefix="scale-test-"))
    results = folder / "results"
    results.mkdir()
    (folder / "mlflow").mkdir()
    dataset = data.open("digits", folder=folder / "digits")
    dataset.digest, dataset.train_images  # noqa: B018
    sweep = Sweep.build(
        {
            "name": "scale",
            "data": str(dataset.yaml),
            "model": "toy",
            "epochs": asked.epochs,
            "lr0": 0.01,
            "trials": asked.trials - 2,
            "attempts": 10,
            "search": {
                "family": "cawb",
                "restarts": {"min": 0, "max": 2, "every": 1, "distance": 1},
                "step_scale": {"per": "cycle", "low": 0.3, "high": 1.0},
                "horizon": "end",
                "decay": ["linear", "cosine"],
                "floor": {"low": 0.01, "high": 0.2},
                "warmup": "1ep",
            },
        }
    )
    server, mlflow = Postgres(found, connections=4 * asked.workers + 20), MLflow(folder / "mlflow")
    crew: list[Any] = []
    try:
        place = Place(str(folder / "store"), server.database(), mlflow.ready())
        launching = forked(launch, sweep, place, dataset)
        launching.join()
        if launching.exitcode:
            return 1
        gc.freeze()
        start = functools.partial(forked, work, sweep, place, dataset, asked.seconds, results)
        crew = [start(number / asked.rate) for number in range(asked.workers)]
        seen = watch(crew, server, asked, lambda: start(0.0))
        forked(audit, sweep, place, dataset, results / "audit").join()
    finally:
        for process in crew:
            process.kill()
        mlflow.kill()
        server.remove()
    times: dict[str, list[float]] = defaultdict(list)
    counts = Counter[str]()
    for file in results.glob("*.json"):
        said = json.loads(file.read_text())
        counts.update(said["counts"])
        for name, values in said["times"].items():
            times[name] += values
    print(
        f"{asked.workers} workers, {asked.trials} trials of {asked.epochs} epochs of {asked.seconds:g} s, TPE: "
        f"{seen['seconds']:.0f} s; {seen['killed']} killed; {seen['memory'] / 1024:.1f} GiB for all workers"
    )
    for name, means in (
        ("propose", "ask: a trial's proposal"),
        ("claim", "claim of a slot"),
        ("report", "report of an epoch"),
        ("tell", "tell"),
        ("open", "first look at the study"),
    ):
        print(f"  {means}: {quantiles(times[name])}")
    epochs = max(len(times["report"]), 1)
    print(
        f"  PostgreSQL: {seen['commits']:.0f} transactions/s, {seen['cpu']:.2f} of a core, "
        f"{seen['typical']:.0f} connections ({seen['connections']} at most)"
    )
    print(f"  in all {counts['statements']} statements, {counts['statements'] / epochs:.1f} for an epoch trained")
    try:
        wrong = json.loads((results / "audit").read_text())
    except OSError:
        wrong = ["the audit did not end"]
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"no trial lost ({folder} may be removed)" if not wrong else f"see {folder}")
    return bool(wrong)


def audit(sweep: Sweep, place: Place, dataset: Any, file: Path) -> None:
    """What is wrong with the finished sweep, as JSON."""
    here = service(sweep, place, dataset, 0)
    rows, wrong = here.study.trials(), []
    states = Counter(row.state for row in rows)
    if states != {"COMPLETE": sweep.trials + 2}:
        wrong.append(f"trials {dict(states)}, not {sweep.trials + 2} complete")
    trained = sum(int(row.facts.epochs_trained or 0) for row in rows)
    stored, mismatches = here.store.usage().count, len(here.store.mismatches())
    if trained != stored or mismatches:
        wrong.append(f"{trained} epochs trained, {stored} states stored, {mismatches} mismatches")
    here.tracker.drain(300)
    runs = Counter(run["status"] for run in here.tracker.runs())
    if runs != {"FINISHED": len(rows)}:
        wrong.append(f"runs in MLflow: {dict(runs)}")
    print(f"{states['COMPLETE']} of {sweep.trials + 2} trials complete, {runs['FINISHED']} runs finished in MLflow,")
    print(f"  {trained} epochs trained and stored once, {sum(row.attempt for row in rows)} attempts")
    file.write_text(json.dumps(wrong))


if __name__ == "__main__":
    sys.exit(main())
