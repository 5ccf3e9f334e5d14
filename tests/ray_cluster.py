"""`make ray-test`: sweeps on a real Ray cluster of three nodes on this machine, disturbed, then audited.

First places are counted with processes that only sleep, then real small trainings lose a worker, a node and their
driver. Prints the figures; exit status 1 if anything was lost.
"""

import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import clusters
import ray
import tiny
from drill import Drill, drilling
from held import Held
from ray.cluster_utils import Cluster

from sweeper import on_ray

print = functools.partial(print, flush=True)
NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 << 20}


def below(node: Any) -> list[int]:
    """The worker processes on a node: below its raylet, with our command line."""
    (raylet,) = node.all_processes["raylet"]
    found = []
    for pid in tiny.children(raylet.process.pid, below=True):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"sweeper" in line and b"worker" in line and clusters.alive(pid):
            found.append(pid)
    return found


def places(cluster: Cluster, folder: Path) -> list[str]:
    """Half a GPU for each process: how many run on which, while a node comes and goes."""
    code = f"""
import os, signal, time
place = os.environ["RAY_RAYLET_PID"] + " " + os.environ["CUDA_VISIBLE_DEVICES"]
open({str(folder)!r} + f"/{{os.getpid()}}", "w").write(place)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
time.sleep(600)"""
    folder.mkdir()
    stop, said = threading.Event(), list[str]()

    def run() -> None:
        crew.run(lambda: False, stop=stop, say=said.append)

    def there() -> Counter[str]:
        return Counter(path.read_text() for path in folder.iterdir() if clusters.alive(int(path.name)))

    def wait(count: int) -> Counter[str]:
        try:
            tiny.wait(lambda: there().total() == count, 90)
            time.sleep(on_ray.GROW_S + 1)  # no more than that
        except AssertionError:
            pass
        return there()

    ray.init(address=cluster.address, log_to_driver=False)
    crew = on_ray.RayFleet(["-c", code], workers=None, gpus=0.5, cpus=0.1, wanted=lambda: 100)
    thread = threading.Thread(target=run)
    thread.start()
    counts = [wait(6)]
    more = cluster.add_node(**NODE)
    counts.append(wait(8))
    cluster.remove_node(more, allow_graceful=False)
    counts.append(wait(6))
    stop.set()
    thread.join(60)
    counts.append(there())
    ray.shutdown()
    on = [count.total() for count in counts]
    most = max(max(count.values(), default=0) for count in counts)
    print(f"places for half a GPU each: {on[0]} on three nodes, {on[1]} on four, {on[2]} on three again, then {on[3]}")
    wrong = [] if on == [6, 8, 6, 0] else [f"expected 6, 8, 6 and 0 processes, not {on}"]
    return wrong + ([f"{most} processes on one GPU"] if most != 2 else [])


def sweep(cluster: Cluster, drill: Drill) -> list[str]:
    """A worker killed, a node removed, one added, Ctrl-C, the same command again."""
    stand = drill.stand("ray", served=True)
    tiny.sweeper("launch", stand.sweep, "device=cpu", cwd=stand.folder, **stand.environment)
    held = Held(stand.place.database, stand.name)
    address = ["--address", cluster.address, "--gpus", "1", "--cpus", "1"]
    log = stand.folder / "driver.log"

    def start() -> "subprocess.Popen[bytes]":
        with log.open("ab") as file:
            return subprocess.Popen(
                tiny.command("ray", stand.sweep, *address, "device=cpu"),
                cwd=stand.folder,
                env=clusters.environment(stand),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    nodes = [cluster.head_node, *cluster.worker_nodes]
    driver, began = start(), time.monotonic()
    try:
        tiny.wait(lambda: all(below(node) for node in nodes), 240)
        print(f"  workers on each of {len(nodes)} nodes after {time.monotonic() - began:.0f} s")
        (killed, *_) = held.pids(held.at_work(2))
        (place,) = [node for node in nodes if killed in below(node)]
        os.kill(killed, signal.SIGKILL)
        died = time.monotonic()
        tiny.wait(lambda: set(below(place)) - {killed}, 60)
        print(f"  kill -9 of a worker; another one on its node after {time.monotonic() - died:.1f} s")
        busy = held.pids(held.at_work(2))
        victim = next((node for node in nodes[1:] if set(below(node)) & set(busy)), nodes[1])  # the head must stay
        lost = below(victim)
        cluster.remove_node(victim, allow_graceful=False)
        died = time.monotonic()
        tiny.wait(lambda: not any(clusters.alive(pid) for pid in lost), 60)
        print(
            f"  a node removed with {len(lost)} worker; its processes gone after {time.monotonic() - died:.1f} s",
        )
        held.at_work()
        new = cluster.add_node(**NODE)
        died = time.monotonic()
        tiny.wait(lambda: below(new), 60)
        print(f"  a node added; a worker on it after {time.monotonic() - died:.1f} s")
        held.at_work()
        running = clusters.workers_of(stand)
        driver.send_signal(signal.SIGINT)
        died, code = time.monotonic(), driver.wait(120)
        left = [pid for pid in running if clusters.alive(pid)]
        print(
            f"  Ctrl-C: exit status {code} after {time.monotonic() - died:.1f} s, {len(left)} of {len(running)} "
            f"workers left, {stand.epochs()} epochs done",
        )
        wrong = [f"Ctrl-C: {code}, {left} left"] if code != 130 or left else []
        held.release_all()
        driver = start()
        code = driver.wait(900)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
    print(f"  the same command again: exit status {code}; {time.monotonic() - began:.0f} s in all")
    wrong += [f"the second command: {code}"] if code else []
    logs = Path(cluster.head_node.get_logs_dir_path())
    told = {path.name for path in logs.glob("worker-*.err") if "mAP50-95" in path.read_text(errors="replace")}
    print(f"  {len(told)} of Ray's logs hold a worker's lines")
    return wrong + ([] if told else ["Ray's logs say nothing"]) + clusters.judge(drill, stand)


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="ray-test-"))
    head = NODE | {"include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    try:
        with drilling(folder, 0, 0) as drill:
            wrong = places(cluster, folder / "places")
            clusters.calm(drill)
            print(f"on Ray {ray.__version__}, three nodes:")
            wrong += sweep(cluster, drill)
    except clusters.FAULTS as error:
        wrong = clusters.unfinished(error)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return clusters.conclude(wrong, folder)


if __name__ == "__main__":
    sys.exit(main())
