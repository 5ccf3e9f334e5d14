"""`make slurm-test`: jobs/slurm.sh on a real Slurm of one node and two logical GPUs; disturbed, then audited. As root.

A worker is killed, a task preempted, another one told that its time is nearly over, one cancelled. Prints the figures;
exit status 1 if anything was lost.
"""

import functools
import os
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

import clusters
import tiny
from drill import Stand, drilling
from held import HOLDER, Held
from slurm import Slurm, missing

print = functools.partial(print, flush=True)
wait = functools.partial(tiny.wait, seconds=1800)  # on a machine that is busy with other things
SCRIPT = Path(__file__).resolve().parents[1] / "jobs" / "slurm.sh"


def workers(stand: Stand) -> dict[str, int]:
    """task of the array -> its worker's process id, as its environment says."""
    found = {}
    for pid in clusters.workers_of(stand):
        said = clusters.environment_of(pid)
        found[f"{said['SLURM_ARRAY_JOB_ID']}_{said['SLURM_ARRAY_TASK_ID']}"] = pid
    return found


def sweep(slurm: Slurm, stand: Stand) -> list[str]:
    """The faults, one after the other; returns when the sweep is done."""
    tiny.sweeper("launch", stand.sweep, cwd=stand.folder, **stand.environment)
    held = Held(stand.place.database, stand.name)
    told = stand.environment | {"SWEEPER": shlex.join(tiny.command())}

    def submit(tasks: str) -> str:
        options = ["--parsable", f"--array={tasks}", "--cpus-per-task=1", "--mem=3G", "--time=01:00:00"]
        return slurm.ask("sbatch", *options, str(SCRIPT), str(stand.sweep), cwd=stand.folder, **told)

    wrong, began = [], time.monotonic()
    array = submit("1-2")
    first, second = f"{array}_1", f"{array}_2"
    wait(lambda: workers(stand).keys() == {first, second})
    seen = {task: clusters.environment_of(pid)["CUDA_VISIBLE_DEVICES"] for task, pid in workers(stand).items()}
    print(f"  two tasks, CUDA_VISIBLE_DEVICES {seen}, workers after {time.monotonic() - began:.0f} s")
    wrong += [] if sorted(seen.values()) == ["0", "1"] else [f"GPUs {seen}"]
    (killed, *_) = held.pids(held.at_work(2))
    (task,) = [name for name, pid in workers(stand).items() if pid == killed]
    os.kill(killed, signal.SIGKILL)
    died = time.monotonic()
    wait(lambda: workers(stand).get(task, killed) != killed)
    print(f"  kill -9 of a worker; another one at work in the same task after {time.monotonic() - died:.1f} s")

    held.at_work()
    urgent = stand.folder / "urgent.sh"
    urgent.write_text("#!/bin/bash\nsleep 5\n")
    other = slurm.ask("sbatch", "--parsable", "-p", "high", "--gres=gpu:1", "--mem=1G", str(urgent), cwd=stand.folder)
    died = time.monotonic()
    wait(lambda: slurm.states().get(other) in ("RUNNING", "COMPLETED"))
    (preempted,) = wait(
        lambda: [task for task, state in slurm.states().items() if task in (first, second) and state != "RUNNING"]
    )
    print(f"  a task preempted: its GPU free after {time.monotonic() - died:.1f} s, {slurm.states()[preempted]}")

    held.at_work()
    ending = second if preempted == first else first
    slurm.ask("scancel", "--batch", "--signal=USR1", ending)  # as --signal does before the time limit
    died = time.monotonic()
    wait(lambda: slurm.states().get(ending) == "PENDING")
    rows = [row for row in stand.study.trials() if row.state == "RUNNING" and row.worker not in (None, HOLDER)]
    print(
        f"  time limit announced: {ending} queued again after {time.monotonic() - died:.1f} s, {len(rows)} trials held"
    )
    wrong += [f"trial {row.number} was not given back" for row in rows]
    for task in (preempted, ending):
        # Slurm lets what it queued again wait for two minutes; a node that is asked to start it in the second in which
        # it ended there refuses ("Job credential revoked"), and the task fails.
        slurm.ask("scontrol", "update", f"JobId={task}", "StartTime=now+3")
    wait(lambda: workers(stand).keys() == {first, second})
    print(f"  both tasks at work again, {stand.epochs()} epochs done")

    held.at_work()
    slurm.ask("scancel", second)
    wait(lambda: slurm.states().get(second) == "CANCELLED" and second not in workers(stand))
    print(f"  scancel of a task: {slurm.states()[second]}, the other one goes on")
    held.release_all()
    wait(stand.done)
    wait(lambda: not {"RUNNING", "COMPLETING", "PENDING"} & set(slurm.states().values()))
    print(f"  done, tasks {slurm.states()}; {time.monotonic() - began:.0f} s in all")
    return wrong


def main() -> int:
    if os.getuid() or missing():
        need = f"needs {', '.join(missing())}: apt-get install slurmctld slurmd munge slurm-client"
        print(need if missing() else "needs root: Slurm's daemons are started by hand")
        return 2
    folder = Path(tempfile.mkdtemp(prefix="slurm-test-"))
    (folder / "slurm").mkdir()
    folder.chmod(0o755)
    slurm = Slurm(folder / "slurm", gpus=2, cpus=4)
    try:
        slurm.start()
        with drilling(folder, 0, 0) as drill:
            clusters.calm(drill)
            print(f"on {slurm.ask('sinfo', '--version')}, one node:")
            stand = drill.stand("on-slurm", served=True)
            wrong = sweep(slurm, stand) + clusters.judge(drill, stand)
    except clusters.FAULTS as error:
        wrong = clusters.unfinished(error)
    finally:
        slurm.stop()
    return clusters.conclude(wrong, folder)


if __name__ == "__main__":
    sys.exit(main())
