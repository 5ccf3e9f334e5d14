"""What the tests on clusters share: a sweep left alone, one disturbed on the cluster, and what must be equal."""

import os
import subprocess
from collections import defaultdict
from pathlib import Path

from drill import EPOCHS, TRIALS, Drill, Outcome, Stand

from sweeper import database
from sweeper.database import func, select
from sweeper.errors import SweeperError


def workers_of(stand: Stand) -> list[int]:
    """The process ids of the workers that are alive, on this machine."""
    return [worker.pid for worker in stand.study.workers() if alive(worker.pid)]


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def environment_of(pid: int) -> dict[str, str]:
    """A process's environment; its end may come first."""
    try:
        said = Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        said = ""
    return defaultdict(str, (entry.split("=", 1) for entry in said.split("\0") if "=" in entry))


def calm(drill: Drill) -> Outcome:
    """The sweep as it ends when one worker trains it and nobody interferes."""
    stands, what = drill.undisturbed()
    if wrong := drill.judge(stands[0]):
        raise RuntimeError(f"the undisturbed sweep: {wrong}")
    undisturbed = drill.calm[False]
    print(f"undisturbed: {what}, {undisturbed.epochs_trained} epochs trained", flush=True)
    return undisturbed


def judge(drill: Drill, stand: Stand) -> list[str]:
    """What is wrong with a disturbed sweep, in itself and beside the undisturbed one; its figures are printed."""
    wrong, study, before = drill.judge(stand), stand.study, drill.calm[False]
    rows = study.trials()
    opened = database.open(stand.place.database)
    stored = opened.transaction(
        lambda connection: connection.execute(select(func.count()).select_from(opened.tables.snapshots)).scalar_one()
    )
    trained = sum(int(row.facts.epochs_trained) for row in rows)
    reused = sum(int(row.facts.epochs_reused) for row in rows)
    if not trained == stored == before.epochs_trained:
        wrong.append(f"{trained} epochs trained, {stored} states stored, undisturbed {before.epochs_trained}")
    if trained + reused != TRIALS * EPOCHS:
        wrong.append(f"{trained} epochs trained and {reused} reused of {TRIALS * EPOCHS}")
    complete = sum(row.state == "COMPLETE" for row in rows)
    same = sum(row.facts.state_digest == before.digests[(row.name, row.seed)] for row in rows)
    print(f"  {complete} of {TRIALS} trials complete, in {sum(row.attempt for row in rows)} attempts")
    print(f"  {trained} epochs trained, {stored} states stored, {reused} epochs reused: no segment twice")
    print(f"  {same} of {TRIALS} final states equal the undisturbed sweep's, bit for bit")
    return wrong


#: What a cluster's test may end of; it is told, not raised.
FAULTS = (AssertionError, SweeperError, RuntimeError, ValueError, subprocess.SubprocessError)


def unfinished(error: Exception) -> list[str]:
    """What is wrong if the test broke off."""
    return [f"could not be finished: {type(error).__name__} {' '.join(str(error).split())[-500:]}"]


def conclude(wrong: list[str], folder: Path) -> int:
    """Print what is wrong, if anything; the exit status."""
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"nothing lost ({folder} may be removed)" if not wrong else f"see {folder}")
    return int(bool(wrong))


def environment(stand: Stand) -> dict[str, str]:
    """Of whoever starts the workers."""
    return {**os.environ, **stand.environment}
