"""`sweeper run`, `yolo tune` and a plain Optuna loop on the same photographs, for the same number of trained epochs.

    python benchmarks/bccd_search.py --data DIR/data.yaml --folder OUT --estimate    # hours, from two timed epochs
    python benchmarks/bccd_search.py --data DIR/data.yaml --folder OUT               # all of it; again: goes on
    python benchmarks/bccd_search.py --data DIR/data.yaml --folder OUT --smoke       # tiny, to see that it works

Each searches with one seed until RUNS * EPOCHS epochs are trained; its winner is trained again on the same three fresh
seeds. The score is always Ultralytics' mAP50-95 of the EMA, mean of the last three epochs. Recipe, data, augmentation,
optimizer and length are the same. What is searched is each tool's own: `sweeper` the default space of schedules at a
held base LR, Optuna's loop lr0, lrf, cos_lr and the warm-up, `yolo tune` its 20-odd hyperparameters, augmentation too.
Interrupt it at any time: finished runs are kept, and `sweeper` goes on within one.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SEEDS = (101, 102, 103)
LAST = 3
CALL = """
import json, sys
from ultralytics import YOLO, settings
settings.update({"mlflow": False})
said = json.loads(sys.argv[2])
getattr(YOLO(said.pop("model")), sys.argv[1])(**said)
"""


class Bench:
    """One comparison in one folder."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.folder: Path = given.folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.epochs, self.runs = given.epochs, given.runs
        self.seeds = SEEDS[: given.seeds]
        self.recipe = {"model": "yolo11n.yaml", "imgsz": given.imgsz, "batch": given.batch, "nbs": given.batch}
        self.recipe |= {"data": str(given.data.absolute()), "optimizer": "SGD", "mosaic": 1.0}
        self.lr0 = given.lr0
        self.closed = min(10, self.epochs)  # last epochs without mosaic, Ultralytics' default

    def python(self, *arguments: str, log: str) -> str:
        """Run Python on this, everything it says into a log; ends the benchmark where that fails."""
        own = {"OMP_NUM_THREADS": "1", "YOLO_VERBOSE": "false", "YOLO_CONFIG_DIR": str(self.folder / "settings")}
        (self.folder / "settings").mkdir(exist_ok=True)
        with (self.folder / f"{log}.log").open("a") as file:
            done = subprocess.run(
                [sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, **own},
                cwd=self.folder,
            )
            file.write(done.stdout)
        if done.returncode:
            raise SystemExit(f"{log}: ended with {done.returncode}; see {self.folder / log}.log")
        return done.stdout

    # -- Ultralytics

    def ultralytics(self, **more: Any) -> dict[str, Any]:
        """Arguments of `yolo train` that make it comparable: CPU, one thread, no early stop, no plots."""
        held = {"device": "cpu", "workers": 0, "amp": False, "patience": 0, "pretrained": False, "plots": False}
        lengths = {"epochs": self.epochs, "close_mosaic": self.closed, "lr0": self.lr0}
        return {**self.recipe, **held, **lengths, "verbose": False, "exist_ok": True, **more}

    def yolo(self, name: str, **more: Any) -> float:
        """The score of one run of `yolo train`, trained unless its results are there already."""
        results = self.folder / "ultralytics" / name / "results.csv"
        if not results.exists() or len(scores(results)) < self.epochs:
            said = self.ultralytics(project=str(self.folder / "ultralytics"), name=name, **more)
            self.python("-c", CALL, "train", json.dumps(said), log="ultralytics")
        return float(np.mean(scores(results)[-LAST:]))

    def tuned(self) -> tuple[dict[str, Any], float]:
        """The hyperparameters that `yolo tune` names, and its own score of them."""
        said = self.ultralytics(project=str(self.folder), name="tune", iterations=self.runs, resume=True)
        self.python("-c", CALL, "tune", json.dumps(said), log="tune")
        records = [json.loads(line) for line in (self.folder / "tune" / "tune_results.ndjson").read_text().splitlines()]
        best = max(record["fitness"] for record in records)
        return yaml.safe_load((self.folder / "tune" / "best_hyperparameters.yaml").read_text()), best

    # -- Optuna, as its tutorial would have it

    def optuna(self) -> tuple[dict[str, Any], float]:
        """The arguments that a plain loop over `yolo train` names, and their score."""
        import optuna

        study = optuna.create_study(
            storage=f"sqlite:///{self.folder / 'optuna.db'}",
            study_name="plain",
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=0),
        )

        def asked(trial: optuna.Trial) -> float:
            return self.yolo(
                f"optuna-{trial.number}",
                seed=0,
                lr0=trial.suggest_float("lr0", 1e-3, 1e-1, log=True),
                lrf=trial.suggest_float("lrf", 0.01, 1.0, log=True),
                cos_lr=trial.suggest_categorical("cos_lr", [False, True]),
                warmup_epochs=trial.suggest_float("warmup_epochs", 0.0, 5.0),
            )

        for stale in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # interrupted: its epochs were lost
            study.tell(stale.number, state=optuna.trial.TrialState.FAIL)
        done = len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
        study.optimize(asked, n_trials=max(self.runs - done, 0))
        return study.best_params, study.best_value

    # -- sweeper

    def sweep(self, name: str, **more: Any) -> Path:
        """A sweep file of this recipe."""
        said = {**self.recipe, "name": name, "epochs": self.epochs, "mosaic_epochs": self.epochs - self.closed}
        every = max(self.epochs // 10, 1)
        space = {
            "family": "cawb",
            "restarts": {"min": 0, "max": 3 if self.epochs >= 20 else 1, "every": every, "distance": every},
            "step_scale": {"per": "cycle", "choices": [0.5, 0.7, 1.0]},
            "horizon": "end",
            "floor": 0.05,
            "warmup": "3ep" if self.epochs >= 20 else "1ep",
        }
        said |= {"lr0": self.lr0, "seed": 0, "baselines": [], "search": space, "workers": 1, "weights": "none", **more}
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(said))
        return file

    def run(self, file: Path, trials: int) -> list[Any]:
        """The trials of a sweep after `sweeper run`."""
        store = str(self.folder / "store")
        self.python("-m", "sweeper", "run", str(file), f"trials={trials}", "--store", store, log="sweeper")
        from sweeper.config import Sweep
        from sweeper.service import Place, Service

        service = Service(Sweep.load(file, [f"trials={trials}"]), Place(store))
        rows: list[Any] = service.study.trials()
        return rows

    def swept(self) -> tuple[dict[str, Any], float]:
        """The schedule that `sweeper run` names for the same number of trained epochs, and its score."""
        file, trials = self.sweep("search", trials=self.runs), self.runs
        while True:
            rows = self.run(file, trials)
            left = self.runs * self.epochs - sum(int(row.facts.epochs_trained or 0) for row in rows)
            print(f"sweeper: {trials} trials, {left} epochs left", flush=True)
            if left < self.epochs or trials >= 20 * self.runs:  # one more could cost more than is left
                break
            trials += left // self.epochs
        best = max((row for row in rows if row.state == "COMPLETE"), key=lambda row: row.score)
        return dict(best.spec), float(best.score)

    def again(self, schedule: dict[str, Any], seed: int) -> float:
        """The score of a schedule on another seed."""
        file = self.sweep(f"winner-{seed}", seed=seed, enqueue=[schedule], trials=1)
        [row] = self.run(file, 1)
        return float(row.score)

    # -- all of it

    def estimate(self) -> None:
        begun = time.perf_counter()
        said = self.ultralytics(project=str(self.folder / "ultralytics"), name="estimate", epochs=2)
        self.python("-c", CALL, "train", json.dumps(said), log="ultralytics")
        seconds = (time.perf_counter() - begun) / 2  # start-up included: every run has one
        count = 3 * self.runs * self.epochs + 3 * len(self.seeds) * self.epochs
        print(f"{count} epochs of about {seconds:.1f} s on one core: {count * seconds / 3600:.1f} hours")

    def compare(self) -> None:
        found: dict[str, Any] = {}
        for name, search in (("sweeper", self.swept), ("optuna", self.optuna), ("yolo tune", self.tuned)):
            begun = time.perf_counter()
            winner, value = search()
            print(f"{name}: {value:.4f} in the search with {winner} ({time.perf_counter() - begun:.0f} s)", flush=True)
            if name == "sweeper":
                fresh = [self.again(winner, seed) for seed in self.seeds]
            else:
                label = name.replace(" ", "-")
                fresh = [self.yolo(f"{label}-winner-{seed}", **winner, seed=seed) for seed in self.seeds]
            found[name] = {"winner": winner, "search": value, "fresh": fresh}
            (self.folder / "result.json").write_text(json.dumps(found, indent=1))
        print(
            f"\n| {self.runs * self.epochs} epochs each | in the search | fresh seeds | mean | sweeper's lead, 95 % |"
        )
        print("|---|---|---|---|---|")
        for name, row in found.items():
            fresh = ", ".join(f"{value:.4f}" for value in row["fresh"])
            lead = "" if name == "sweeper" else interval(np.subtract(found["sweeper"]["fresh"], row["fresh"]))
            print(f"| {name} | {row['search']:.4f} | {fresh} | {np.mean(row['fresh']):.4f} | {lead} |")


def interval(differences: np.ndarray) -> str:
    """Mean and 95 % interval of paired differences (Student's t)."""
    t = {2: 12.71, 3: 4.30}.get(len(differences))
    half = t * float(np.std(differences, ddof=1)) / math.sqrt(len(differences)) if t else math.nan
    return f"{np.mean(differences):+.4f} ± {half:.4f}"


def scores(results: Path) -> list[float]:
    """mAP50-95 by epoch from Ultralytics' results.csv."""
    with results.open() as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    return [float(row["metrics/mAP50-95(B)"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data.yaml in YOLO layout")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--runs", type=int, default=10, help="RUNS * EPOCHS epochs for each of the three searches")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr0", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        given.epochs, given.runs, given.imgsz, given.batch, given.seeds = 4, 2, 32, 8, 2
    bench = Bench(given)
    bench.estimate() if given.estimate else bench.compare()


if __name__ == "__main__":
    main()
