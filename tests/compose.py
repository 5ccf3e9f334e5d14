"""docker-compose.yml, brought up for real: a sweep through it, workers killed in the middle, the doors tried.

    python tests/compose.py [--keep]

Needs a Docker engine and either `docker compose` or docker-compose. BASE, POSTGRES_IMAGE and TORCH_INDEX may come from
the environment. Trains on photographs from ../shared/data/bccd, without them on digits. Exit status 1 at the first
thing that is not as promised.
"""

import argparse
import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import yaml
from held import Held
from trials import history

from sweeper import database
from sweeper.database import func, select
from sweeper.errors import SweeperError
from sweeper.study import Study
from sweeper.tracking import Tracker

ROOT = Path(__file__).resolve().parents[1]
BCCD = ROOT.parent / "shared" / "data" / "bccd"
EPOCHS, TRIALS = 4, 6


def compose_command() -> list[str]:
    """`docker compose`, else docker-compose."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]) and subprocess.run([*words, "version"], capture_output=True).returncode == 0:
            return words
    raise SystemExit("needs Docker with its compose plugin, or docker-compose")


class Stack:
    """One project of docker-compose.yml with secrets, ports and volumes of its own."""

    def __init__(self, folder: Path) -> None:
        self.project = f"sweepertest{secrets.token_hex(3)}"
        self.folder = folder
        (folder / "jobs").mkdir()
        env = folder / ".env"
        subprocess.run([sys.executable, ROOT / "jobs" / "compose_env.py", env], check=True, stdout=subprocess.DEVNULL)
        made = env.read_text().splitlines()
        self.secrets = dict(line.split("=", 1) for line in made if line and line[0] != "#")
        assert env.stat().st_mode & 0o077 == 0, ".env can be read by others"
        self.ports = {name: free_port() for name in ("POSTGRES_PORT", "MLFLOW_PORT", "DASHBOARD_PORT")}
        settings = {"SWEEP": "tiny.yaml", "SWEEP_FOLDER": folder / "jobs", "DATA_FOLDER": self.data(), **self.ports}
        for name in ("BASE", "POSTGRES_IMAGE", "TORCH_INDEX"):
            if name in os.environ:
                settings[name] = os.environ[name]
        settings["SWEEPER_IMAGE"] = os.environ.get("SWEEPER_IMAGE", "sweeper:compose-test")
        env.write_text("\n".join([*made, *(f"{name}={value}" for name, value in settings.items())]) + "\n")
        self.command = [*compose_command(), "--project-name", self.project, "--env-file", str(env)]
        self.command += ["--file", str(ROOT / "docker-compose.yml")]

    def data(self) -> Path:
        """Write the sweep; the folder of its images."""
        if BCCD.is_dir():
            written = tiny.SWEEP | {"data": "/data/data.yaml", "imgsz": 96, "batch": 16, "nbs": 16}
            place = BCCD
        else:
            tiny.write(self.folder / "digits")
            written, place = tiny.SWEEP | {"data": "/data/data.yaml"}, self.folder / "digits" / "data"
        baselines = [{"family": "yolo_linear", "warmup": "1ep"}, {"family": "yolo_cosine", "warmup": "1ep"}]
        written |= {"epochs": EPOCHS, "trials": TRIALS - 2, "baselines": baselines, "lease_s": 10}
        (self.folder / "jobs" / "tiny.yaml").write_text(yaml.safe_dump(written))
        for path in (self.folder, *self.folder.rglob("*")):  # the containers' user is nobody here
            path.chmod(0o755 if path.is_dir() else 0o644)
        return place

    def compose(self, *arguments: str, check: bool = True, timeout: float = 3600) -> str:
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, timeout=timeout, cwd=ROOT)
        if check and done.returncode:
            raise RuntimeError(f"compose {' '.join(arguments)}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout + done.stderr

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()

    @property
    def database(self) -> str:
        return f"postgresql://optuna:{self.secrets['OPTUNA_PASSWORD']}@127.0.0.1:{self.ports['POSTGRES_PORT']}/optuna"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.ports['MLFLOW_PORT']}"

    def study(self) -> Study | None:
        try:
            return Study.open(database.open(self.database, patience_s=5), "tiny")
        except SweeperError:
            return None

    def trained(self) -> int:
        study = self.study()
        return 0 if study is None else sum(len(row.curve) for row in study.trials())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


def inspected(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", container))[0]
    return found


def status(url: str, user: str = "", password: str = "", host: str = "") -> int:
    """The HTTP status of a GET."""
    request = urllib.request.Request(url)
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def check(what: str, true: object) -> None:
    if not true:
        raise RuntimeError(f"not as promised: {what}")
    print(f"ok   {what}", flush=True)


def guarded(stack: Stack) -> None:
    """What a container may do, as the engine sees it."""
    for service in ("postgres", "mlflow", "dashboard", "workers"):
        container = inspected(stack.containers(service)[0])
        host, name = container["HostConfig"], container["Config"]["User"]
        bound = [port["HostIp"] for ports in (host["PortBindings"] or {}).values() for port in ports]
        check(
            f"{service}: user {name}, root file system read-only, no capabilities, ports on {set(bound) or 'none'}",
            name not in ("", "root", "0")
            and host["ReadonlyRootfs"]
            and host["CapDrop"] == ["ALL"]
            and any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
            and host["Memory"] > 0
            and set(bound) <= {"127.0.0.1"},
        )


def doors(stack: Stack) -> None:
    """Who is let in."""
    password, page = stack.secrets["MLFLOW_TRACKING_PASSWORD"], stack.mlflow + "/"
    api = stack.mlflow + "/api/2.0/mlflow/experiments/search?max_results=10"
    answers = [status(page), status(page, "sweeper", "password1234"), status(page, "sweeper", password)]
    check(f"MLflow's page without, with a wrong and with the password: {answers}", answers == [401, 401, 200])
    answers = [status(api), status(api, "admin", "password1234"), status(api, "sweeper", password)]
    check(f"its API without, with a well-known and with the password: {answers}", answers == [401, 401, 200])
    answer = status(api, "sweeper", password, host="evil.example")
    check(f"MLflow under a foreign host name: {answer}", answer == 403)
    for user, name in (("optuna", "mlflow"), ("mlflow", "optuna")):
        secret = stack.secrets["OPTUNA_PASSWORD" if user == "optuna" else "MLFLOW_DATABASE_PASSWORD"]
        url = f"postgresql://{user}:{secret}@127.0.0.1:{stack.ports['POSTGRES_PORT']}/{name}"
        check(f"PostgreSQL: {user} in {name}'s database is refused", refused(url))
    wrong = stack.database.replace(stack.secrets["OPTUNA_PASSWORD"], "optuna")
    check("PostgreSQL with a wrong password is refused", refused(wrong))
    check("optuna-dashboard answers on loopback", status(f"http://127.0.0.1:{stack.ports['DASHBOARD_PORT']}/") == 200)
    image = inspected(stack.containers("workers")[0])["Image"]
    told = docker("history", "--no-trunc", image) + json.dumps(inspected(image))
    check("no secret in the image", not [name for name, value in stack.secrets.items() if value in told])


def refused(url: str) -> bool:
    try:
        database.open(url, patience_s=1)
    except SweeperError:
        return True
    return False


def audited(stack: Stack) -> None:
    """Every trial, epoch and point once."""
    study = stack.study()
    assert study is not None
    rows = study.trials()
    check(f"{TRIALS} trials, all complete", [row.state for row in rows] == ["COMPLETE"] * TRIALS)
    check(f"{EPOCHS} epochs each", all(sorted(row.curve) == list(range(EPOCHS)) for row in rows))
    os.environ |= {
        "MLFLOW_TRACKING_USERNAME": "sweeper",
        "MLFLOW_TRACKING_PASSWORD": stack.secrets["MLFLOW_TRACKING_PASSWORD"],
    }
    tracker = Tracker(stack.mlflow, "tiny", stack.folder / "journals")
    runs = tracker.runs()
    check(f"{TRIALS} runs, all finished", [run["status"] for run in runs] == ["FINISHED"] * TRIALS)
    for key in ("curve/lr", "curve/mAP50-95", "train/box_loss"):
        steps = [[step for step, _, _ in history(tracker.server, run["run_id"], key)] for run in runs]
        check(f"{key} at every epoch once in every run", steps == [list(range(EPOCHS))] * TRIALS)
    tracker.close()
    opened = database.open(stack.database)
    slots = opened.tables.slots
    left = select(func.count()).select_from(slots).where(slots.c.state != "closed")
    check("no lease left", opened.transaction(lambda connection: connection.execute(left).scalar_one()) == 0)
    attempts = {row.number: (row.attempt, list(row.reasons)) for row in rows}
    print(f"     attempts and how they ended: {attempts}")


def through(stack: Stack) -> None:
    """All of it, in order."""
    began = time.monotonic()
    stack.compose("build", "workers")
    image = os.environ.get("SWEEPER_IMAGE", "sweeper:compose-test")
    print(f"     image {image}: {docker('images', '--format', '{{.Size}}', image).strip()}")
    stack.compose("run", "--rm", "workers", "sweeper", "launch", "/jobs/tiny.yaml")
    held = Held(stack.database, "tiny")
    stack.compose("up", "-d", "--no-build", "--scale", "workers=2", "workers")
    stack.compose("up", "-d", "--no-build", "--no-deps", "dashboard")
    print(f"     up after {time.monotonic() - began:.0f} s")
    held.at_work()
    first, second = stack.containers("workers")
    guarded(stack)
    held.at_work(0)
    docker("kill", first)
    check("docker kill of a worker", not inspected(first)["State"]["Running"])
    check("in the middle of the sweep", not (study := stack.study()) or not study.done)
    check("the other one goes on", held.at_work() and inspected(second)["State"]["Running"])
    worker = docker(
        "exec", second, "sh", "-c", "grep -l '^sweeper' /proc/[0-9]*/comm | cut -d/ -f3 | sort -n | head -1"
    )
    docker("exec", second, "sh", "-c", f"kill -9 {worker.strip()}")
    wait(lambda: inspected(second)["RestartCount"] >= 1, stack)
    check("a worker that crashes is started again by the engine", True)
    held.release_all()
    wait(lambda: (study := stack.study()) is not None and study.done, stack)
    wait(lambda: inspected(second)["State"]["Status"] == "exited", stack)
    check("the worker ends with status 0", inspected(second)["State"]["ExitCode"] == 0)
    wait(lambda: status(f"http://127.0.0.1:{stack.ports['DASHBOARD_PORT']}/") == 200, stack)
    doors(stack)
    audited(stack)
    said = stack.compose("run", "--rm", "--no-deps", "workers", "sweeper", "doctor", "/jobs/tiny.yaml")
    print("".join(f"     {line}\n" for line in said.splitlines() if line[:3] in ("ok ", "RED")), end="")
    check("sweeper doctor in a worker's container", "RED" not in said)
    print(f"     {time.monotonic() - began:.0f} s")


def wait(condition: Callable[[], object], stack: Stack, minutes: float = 30) -> None:
    end = time.monotonic() + 60 * minutes
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(stack.compose("logs", "--tail", "40"))
        time.sleep(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the stack up")
    keep = parser.parse_args().keep
    folder = Path(tempfile.mkdtemp(prefix="compose-test-"))
    stack = Stack(folder)
    try:
        through(stack)
    except RuntimeError as error:
        print(error, stack.compose("logs", "--tail", "60", check=False), sep="\n")
        return 1
    finally:
        if not keep:
            stack.compose("down", "--volumes", "--timeout", "5", check=False)
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
