"""The drill: sweeps are trained while everything they stand on is killed, stopped, filled and cut off; then audited.

    python tests/drill.py [--kills 100] [--only database] [--seed 0]

Trainings are real and small. Every disturbed sweep is compared, trial by trial, with one that was left alone: states
bit for bit, every metric of every epoch once and with the same value, no lease or journal left, every snapshot whole.
Prints a table; exit status 1 if anything was lost. As root it also fills a disk and cuts the network.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tiny
import yaml
from held import Held
from postgres import Postgres, programs
from test_tracking import MLflow
from trials import history

from sweeper import database
from sweeper.database import func, select
from sweeper.errors import SweeperError
from sweeper.service import Place
from sweeper.store import Store
from sweeper.study import Study, Trial
from sweeper.tracking import Tracker

TRIALS, EPOCHS, LEASE_S = 6, 4, 8.0
RACE = {"seeds": 4, "begin": 1, "race": 1.5}  # of three proposals two go on to a second seed, and one to four
SAME = ("curve/lr", "curve/mAP50-95", "train/box_loss", "val/box_loss", "curve/lr_rel")


Run = tuple[str, int]  # a configuration's name and a seed: in a race numbers depend on who comes first


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an undisturbed and a disturbed sweep must agree on, and what is wrong with it by itself."""

    digests: dict[Run, str]
    points: dict[tuple[Run, str, int], float]
    wrong: tuple[str, ...]
    attempts: int
    epochs_trained: int


@dataclasses.dataclass
class Stand:
    """A place for one sweep: where its things are, and its workers, each replaced when it dies."""

    folder: Path
    name: str
    place: Place
    workers: int = 2
    raced: bool = False

    def __post_init__(self) -> None:
        constants = [{"family": "constant", "lr": 0.02 * (1 + i / 100)} for i in range(TRIALS // 2)]
        # all given: what a sampler proposes in place of a duplicate depends on what was trained before
        drops = [{"family": "multistep", "lr": 0.02, "boundaries": [at], "gamma": 0.5} for at in range(1, EPOCHS)]
        changes = {"baselines": constants, "enqueue": drops, "trials": len(drops), "epochs": EPOCHS}
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.raced:
            tiny.squares(self.folder / "data")  # something to learn: the race is decided by scores
            search = {**tiny.SWEEP["search"], **RACE, "trunk": None}
            changes |= {**tiny.LEARNING, "baselines": constants[:1], "search": search}
            self.sweep = tiny.written(self.folder, name=self.name, lease_s=LEASE_S, attempts=1000, **changes)
        else:
            self.sweep = tiny.write(self.folder, name=self.name, lease_s=LEASE_S, attempts=1000, **changes)
        self.crew: list[subprocess.Popen[bytes]] = []
        self.held: Held | None = None
        self.killed = self.crashed = 0

    @property
    def environment(self) -> dict[str, str]:
        said = {"SWEEPER_STORE": self.place.store, "OMP_NUM_THREADS": "1"}
        said |= {"SWEEPER_DATABASE_URL": self.place.database_url} if self.place.database_url else {}
        return said | ({"MLFLOW_TRACKING_URI": self.place.tracking_uri} if self.place.tracking_uri else {})

    def start(self, *, hold: bool = False) -> None:
        """Launch, then the crew; with ``hold``, which gets its trials from ``held``."""
        tiny.sweeper("launch", self.sweep, cwd=self.folder, **self.environment)
        self.held = Held(self.place.database, self.name) if hold else None
        self.crew = [self._worker() for _ in range(self.workers)]

    def _worker(self) -> "subprocess.Popen[bytes]":
        with (self.folder / "workers.log").open("ab") as log:
            return subprocess.Popen(
                tiny.command("worker", self.sweep, "--devices", "cpu"),
                cwd=self.folder,
                env=os.environ | self.environment,
                stdout=log,
                stderr=log,
            )

    def tend(self) -> None:
        """Replace who died, as a restart policy does."""
        for index, worker in enumerate(self.crew):
            if worker.poll() not in (None, 0):
                self.crashed += worker.returncode != -signal.SIGKILL
                self.crew[index] = self._worker()

    def kill(self, chance: random.Random) -> None:
        """kill -9 of a living worker."""
        living = [worker for worker in self.crew if worker.poll() is None]
        if living:
            chance.choice(living).kill()
            self.killed += 1

    @property
    def study(self) -> Study:
        return Study.open(database.open(self.place.database), self.name)

    def done(self) -> bool:
        with contextlib.suppress(SweeperError):
            return self.study.done
        return False

    def epochs(self) -> int:
        """Values reported so far."""
        return sum(len(row.curve) for row in self.study.trials())

    def at_work(self, more: int, **options: Any) -> list[Trial]:
        """See ``Held.at_work``; workers that die meanwhile are replaced."""
        assert self.held is not None
        return self.held.at_work(more, free=self.workers, **{"meanwhile": self.tend, **options})

    def finish(self, minutes: float = 60) -> None:
        """Until every worker has ended by itself, with all the trials that are left."""
        if self.held is not None:
            self.held.release_all()
        end = time.monotonic() + 60 * minutes
        while any(worker.poll() is None for worker in self.crew) or not self.done():
            self.tend()
            time.sleep(0.5)
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name} did not end; see {self.folder}/workers.log")

    def stop(self) -> None:
        for worker in self.crew:
            worker.kill()

    def audit(self) -> Outcome:
        """Everything that can be known of the sweep afterwards."""
        wrong = []
        opened = database.open(self.place.database)
        rows = self.study.trials()
        if [row.number for row in rows] != list(range(len(rows) if self.raced else TRIALS)):
            wrong.append(f"trials {[row.number for row in rows]}")
        names = {row.number: (row.name, row.seed) for row in rows}
        if len(set(names.values())) != len(rows):
            wrong.append("a configuration was trained on one seed twice")
        wrong += [f"trial {row.number} is {row.state}" for row in rows if row.state != "COMPLETE"]
        wrong += [f"trial {row.number}: epochs {sorted(row.curve)}" for row in rows if len(row.curve) != EPOCHS]
        tracker = Tracker(self.place.tracking, self.name, self.place.folder / "journals").of(self.study.id)
        tracker.drain(120)
        if waiting := tracker.waiting():
            wrong.append(f"{waiting} journals not sent: {tracker.problem}")
        runs = tracker.server.runs()
        if len(runs) != len(rows) + 1:
            wrong.append(f"{len(runs)} runs")
        points: dict[tuple[Run, str, int], float] = {}
        for run in tracker.runs():
            number = int(run["tags"]["sweeper.trial"])
            if run["status"] != "FINISHED":
                wrong.append(f"run {number} is {run['status']}")
            for key in SAME:
                found = history(tracker.server, run["run_id"], key)
                if [step for step, _, _ in found] != list(range(EPOCHS)):
                    wrong.append(f"run {number}: {key} at steps {[step for step, _, _ in found]}")
                points |= {(names[number], key, step): value for step, value, _ in found}
            for row in rows:
                if row.number == number and any(
                    points.get((names[number], "curve/mAP50-95", e)) != v for e, v in row.curve.items()
                ):
                    wrong.append(f"trial {number}: study and MLflow disagree")
        tracker.close()
        wrong += leases(opened) + snapshots(opened, self.place)
        return Outcome(
            {names[row.number]: str(row.facts.state_digest) for row in rows},
            points,
            tuple(wrong),
            sum(row.attempt for row in rows),
            sum(int(row.facts.epochs_trained or 0) for row in rows),
        )


def leases(opened: database.Database) -> list[str]:
    """Slots that are not closed, segments and pins that are held still."""
    t = opened.tables

    def count(connection: database.Connection) -> list[int]:
        queries = (
            select(func.count()).select_from(t.slots).where(t.slots.c.state != "closed"),
            select(func.count()).select_from(t.segments).where(t.segments.c.expires > opened.now + LEASE_S),
            select(func.count()).select_from(t.pins),
        )
        return [int(connection.execute(query).scalar_one()) for query in queries]

    counts = opened.transaction(count)
    names = ("slots open", "segments leased", "snapshots pinned")
    return [f"{number} {name}" for number, name in zip(counts, names, strict=True) if number]


def snapshots(opened: database.Database, place: Place) -> list[str]:
    """Snapshots that cannot be read or that two workers trained differently."""
    store = Store(place.snapshots, opened)
    table = opened.tables.snapshots
    keys = opened.transaction(
        lambda connection: connection.execute(select(table.c.key).where(table.c.store == store.id)).scalars().all()
    )
    wrong = [f"{len(store.mismatches())} mismatches"] if store.mismatches() else []
    for key in keys:
        try:
            store.get(key)
        except SweeperError as error:
            wrong.append(str(error))
    store.gc(10**15)
    files = [path for path in Path(place.snapshots).glob("??/*") if path.is_file()]
    if len(files) < len(keys):
        wrong.append(f"{len(files)} files of {len(keys)} snapshots")
    return wrong


class Drill:
    """The scenarios, each a sweep of its own."""

    def __init__(self, folder: Path, kills: int, seed: int) -> None:
        self.folder, self.kills, self.chance = folder, kills, random.Random(seed)
        self.calm: dict[bool, Outcome] = {}  # by whether it was a race
        self.table: list[tuple[str, str, str, float]] = []
        self.running: list[Stand] = []
        self._postgres: Postgres | None = None
        self._url: str | None = None
        self._mlflow: MLflow | None = None

    @property
    def postgres(self) -> Postgres:
        found = programs()
        if found is None:
            raise SystemExit("the drill needs PostgreSQL: apt-get install postgresql")
        self._postgres = self._postgres or Postgres(found)
        return self._postgres

    @property
    def url(self) -> str:
        """One database for all served sweeps."""
        self._url = self._url or self.postgres.database("drill")
        return self._url

    @property
    def mlflow(self) -> MLflow:
        if self._mlflow is None:
            (self.folder / "mlflow").mkdir()
            self._mlflow = MLflow(self.folder / "mlflow")
        self._mlflow.ready()
        return self._mlflow

    def stand(self, name: str, *, served: bool, workers: int = 2, raced: bool = False) -> Stand:
        """Embedded, or on PostgreSQL and a served MLflow."""
        folder = self.folder / name
        urls = (self.url, self.mlflow.url) if served else (None, None)
        made = Stand(folder, name, Place(str(folder / "store"), *urls), workers, raced)
        self.running.append(made)
        return made

    def scenario(self, name: str, work: Callable[[], tuple[list[Stand], str]]) -> None:
        """Do it, audit it, and write a line of the table."""
        began = time.monotonic()
        try:
            stands, faults = work()
            wrong = [line for stand in stands for line in self.judge(stand)]
            restarts = sum(stand.crashed for stand in stands)
            attempts = sum(row.attempt for stand in stands for row in stand.study.trials())
            faults += f"; {attempts} attempts" + (f", {restarts} workers ended with an error" if restarts else "")
        except (AssertionError, RuntimeError, subprocess.SubprocessError) as error:
            faults, wrong = "could not be finished", [" ".join(str(error).split())[-500:]]
        finally:
            for stand in self.running:
                stand.stop()
            self.running = []
        self.table.append((name, faults, "; ".join(wrong) or "nothing lost", time.monotonic() - began))
        print(" | ".join((name, faults, self.table[-1][2], f"{self.table[-1][3]:.0f} s")), flush=True)

    def judge(self, stand: Stand) -> list[str]:
        found, calm = stand.audit(), self.calm.get(stand.raced)
        wrong = list(found.wrong)
        if calm is None:
            self.calm[stand.raced] = found
            return wrong
        if found.digests.keys() != calm.digests.keys():
            others = sorted(found.digests.keys() ^ calm.digests.keys())
            wrong.append(f"other runs than undisturbed: {others}")
        differ = [run for run in calm.digests if found.digests.get(run) != calm.digests[run]]
        wrong += [f"final states of {differ} differ"] if differ else []
        if stand.raced and found.epochs_trained > calm.epochs_trained + stand.killed:
            wrong.append(f"{found.epochs_trained} epochs trained instead of {calm.epochs_trained}")
        lost = calm.points.keys() - found.points.keys()
        other = [key for key in calm.points.keys() & found.points.keys() if calm.points[key] != found.points[key]]
        return (
            wrong + ([f"{len(lost)} points lost"] if lost else []) + ([f"{len(other)} points differ"] if other else [])
        )

    # -- scenarios

    def undisturbed(self) -> tuple[list[Stand], str]:
        stand = self.stand("undisturbed", served=False, workers=1)
        stand.start()
        stand.finish()
        return [stand], f"{TRIALS} trials of {EPOCHS} epochs"

    def race(self, kills: int) -> tuple[list[Stand], str]:
        """A race left alone, and the same race whose workers are killed after every few of its epochs."""
        calm = self.stand("race-undisturbed", served=False, workers=1, raced=True)
        calm.start()
        calm.finish()
        epochs, stand = calm.epochs(), self.stand("race", served=False, raced=True)
        stand.start()
        for goal in sorted(self.chance.sample(range(1, epochs - EPOCHS), kills)):
            tiny.wait(lambda goal=goal: stand.tend() or stand.epochs() >= goal, 1800)
            stand.kill(self.chance)
        stand.finish()
        rows = stand.study.trials()
        replicates = sum(row.original is not None for row in rows)
        return [
            calm,
            stand,
        ], f"{stand.killed} kill -9 over a race of {len(rows)} trials, {replicates} of them replicates"

    def killing(self, name: str, kills: int, *, served: bool, sweeps: int = 1) -> tuple[list[Stand], str]:
        """Kill until the number is reached; a sweep that ends before is not enough, so another one follows."""
        stands: list[Stand] = []
        while sum(stand.killed for stand in stands) < kills or len(stands) < sweeps:
            together = [self.stand(f"{name}-{len(stands) + i}", served=served) for i in range(sweeps)]
            stands += together
            for stand in together:
                stand.start(hold=True)

            def tend(stands: list[Stand] = together) -> None:
                for stand in stands:
                    stand.tend()

            left = list(together)  # those that can still be disturbed in the middle of their trials
            while left and sum(stand.killed for stand in stands) < kills:
                victim, more, began = self.chance.choice(left), self.chance.randint(1, 2), time.monotonic()
                if victim.at_work(more, meanwhile=tend):
                    time.sleep(self.chance.uniform(0, (time.monotonic() - began) / more))  # anywhere in an epoch
                    victim.kill(self.chance)
                else:
                    left.remove(victim)
            for stand in together:
                stand.finish()
        killed = sum(stand.killed for stand in stands)
        return stands, f"{killed} kill -9 over {len(stands)} sweep{'s' * (len(stands) > 1)}"

    def frozen(self) -> tuple[list[Stand], str]:
        stand, rows = self.started("frozen", served=False)
        assert stand.held is not None
        (victim, *_), row, began = stand.held.pids(rows[:1]), rows[0], time.monotonic()
        family = [victim, *tiny.children(victim, below=True)]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)

        def adopted() -> bool:
            now = stand.study.trials()[row.number]
            return now.worker not in (None, row.worker) and len(now.curve) > len(row.curve)

        tiny.wait(adopted, 600)
        for pid in family:
            os.kill(pid, signal.SIGCONT)
        seconds = time.monotonic() - began
        stand.finish()
        return [
            stand
        ], f"SIGSTOP of a worker and its training for {seconds:.0f} s, until another went on with its trial"

    def outage(self, name: str, seconds: float, stop: Callable[[], Any], start: Callable[[], Any]) -> list[Stand]:
        stand, _ = self.started(name, served=True)
        assert stand.held is not None
        stand.held.release(2)  # what they can train meanwhile
        stop()
        time.sleep(seconds)
        start()
        stand.finish()
        return [stand]

    def database_away(self) -> tuple[list[Stand], str]:
        server = self.postgres
        return self.outage("database", 30, server.stop, server.start), "PostgreSQL crashed, back after 30 s"

    def network_cut(self) -> tuple[list[Stand], str]:
        rule = ["INPUT", "-i", "lo", "-p", "tcp", "--dport", str(self.postgres.port), "-j", "DROP"]
        back = ["INPUT", "-i", "lo", "-p", "tcp", "--sport", str(self.postgres.port), "-j", "DROP"]

        def cut(what: str) -> None:
            for each in (rule, back):
                subprocess.run(["iptables", what, *each], check=True)

        try:
            stands = self.outage("network", 30, lambda: cut("-I"), lambda: cut("-D"))
        finally:
            for each in (rule, back):
                subprocess.run(["iptables", "-D", *each], stderr=subprocess.DEVNULL)
        return stands, "packets from and to PostgreSQL dropped for 30 s"

    def tracking_away(self) -> tuple[list[Stand], str]:
        server = self.mlflow
        return self.outage("mlflow", 75, server.kill, server.ready), "MLflow killed, back after 75 s"

    def tracking_gone(self) -> tuple[list[Stand], str]:
        stand, _ = self.started("mlflow-gone", served=True)
        self.mlflow.kill()
        stand.finish()  # the sweep ends without it
        waiting = len(list((stand.place.folder / "journals").rglob("*.jsonl")))
        self.mlflow.ready()  # only to see that the journals hold everything
        return [stand], f"MLflow gone until the sweep was done; then {waiting} journals sent"

    def disk_full(self) -> tuple[list[Stand], str]:
        stand = self.stand("disk", served=False)
        folder = Path(stand.place.snapshots)
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", folder], check=True)
        try:
            stand.start(hold=True)
            stand.at_work(2)
            ballast = folder / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
            before = len(list(folder.glob("??/*")))
            reported = stand.epochs()
            stand.at_work(4)  # it goes on
            assert stand.epochs() >= reported + 4
            stored = len(list(folder.glob("??/*"))) - before
            ballast.unlink()
            stand.finish()
            log = (stand.folder / "workers.log").read_text()
            faults = f"no byte left for 4 epochs ({stored} states stored, {log.count('goes on without')} left out)"
            kept = stand.folder / "kept"
            shutil.copytree(folder, kept)
        finally:
            stand.stop()
            time.sleep(1)
            subprocess.run(["umount", "-l", folder], check=True)
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        return [stand], faults

    def started(self, name: str, *, served: bool) -> tuple[Stand, list[Trial]]:
        """A sweep in the middle of its trials, and those that are in training."""
        stand = self.stand(name, served=served)
        stand.start(hold=True)
        return stand, stand.at_work(3)


@contextlib.contextmanager
def drilling(folder: Path, kills: int, seed: int) -> Iterator[Drill]:
    drill = Drill(folder, kills, seed)
    try:
        yield drill
    finally:
        for stand in drill.running:
            stand.stop()
        if drill._mlflow:
            drill._mlflow.kill()
        if drill._postgres:
            drill._postgres.remove()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kill -9 of workers, half on each kind of database")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="scenarios by name")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one is not")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="drill-"))
    with drilling(folder.absolute(), asked.kills, asked.seed) as drill:
        half = asked.kills // 2
        scenarios: dict[str, Callable[[], tuple[list[Stand], str]]] = {
            "kills-sqlite": lambda: drill.killing("kills-sqlite", asked.kills - half, served=False),
            "kills-postgresql": lambda: drill.killing("kills-postgresql", half, served=True),
            "two-sweeps": lambda: drill.killing("two", 2, served=True, sweeps=2),
            "race": lambda: drill.race(min(max(asked.kills // 5, 3), 15)),
            "frozen": drill.frozen,
            "database": drill.database_away,
            "mlflow": drill.tracking_away,
            "mlflow-gone": drill.tracking_gone,
        }
        if os.getuid() == 0:
            scenarios["disk"] = drill.disk_full
            if shutil.which("iptables"):
                scenarios["network"] = drill.network_cut
        skipped = [name for name in ("disk", "network") if name not in scenarios]
        if asked.only != ["race"]:  # it has an undisturbed race of its own
            drill.scenario("undisturbed", drill.undisturbed)
        for name, work in scenarios.items():
            if not asked.only or name in asked.only:
                drill.scenario(name, work)
        if skipped:
            print(f"not done for want of root or iptables: {', '.join(skipped)}")
        lost = [name for name, _, verdict, _ in drill.table if verdict != "nothing lost"]
    if not asked.folder:
        shutil.rmtree(folder, ignore_errors=True)
    print(yaml.safe_dump({"scenarios": len(drill.table), "lost something": lost}, sort_keys=False).strip())
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
