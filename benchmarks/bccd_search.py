"""A raced `sweeper run`, a plain Optuna loop and `yolo tune` on the same photographs, for the same number of epochs.

    python benchmarks/bccd_search.py --data DATA --folder OUT                       # all of it; again: goes on
    python benchmarks/bccd_search.py --data DATA --folder OUT --workers 2           # two trainings at a time
    python benchmarks/bccd_search.py --data DATA --folder OUT --sweep S.yaml --store STORE   # our search as it is there
    python benchmarks/bccd_search.py --data DATA --folder OUT --estimate            # hours, from two timed epochs
    python benchmarks/bccd_search.py --data DATA --folder OUT --smoke               # tiny, to see that it works

Each search trains `budget` epochs: ours its race and its confirmation on seeds of its own, the others budget / epochs
runs on one seed. What is searched is each tool's own: `sweeper` branches of the trunk at a held base LR, Optuna's loop
lr0, lrf, cos_lr and the warm-up, `yolo tune` its 20-odd hyperparameters, augmentation too.

Then the winners, and `yolo_linear` at the sweep's lr0 as the reference, are trained on the same fresh seeds, all by
plain `yolo train` with the same recipe, ours with the learning rate of `sweeper export`. The score is Ultralytics'
mAP50-95 of the EMA, mean of the last three epochs. These seeds are used for nothing else. Interrupt it at any time:
finished runs are kept, and `sweeper` goes on within one.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from ultralytics.utils import DEFAULT_CFG_DICT

from sweeper import stats
from sweeper.config import Sweep
from sweeper.evidence import fresh_seeds
from sweeper.search import search_seeds

SEEDS = (201, 202, 203, 204, 205, 206)
LAST = 3
SWEEP: dict[str, Any] = {
    "name": "race", "model": "yolo11n.yaml", "epochs": 40, "imgsz": 160, "batch": 16, "nbs": 16, "optimizer": "SGD",
    "mosaic": 1.0, "mosaic_epochs": 30, "seed": 2, "lr0": 0.02, "baselines": ["yolo_linear", "yolo_cosine"],
    "search": {
        "family": "cawb", "trunk": "best", "seeds": 6, "begin": 2, "step_scale": [0.5, 0.7, 1.0], "horizon": "end",
        "restarts": {"min": 1, "max": 1, "every": 5, "first": 10}, "decay": "cosine", "floor": 0.05,
    },
    "budget": "1600ep", "confirm": {"best": 1, "seeds": 8}, "workers": 1,
}  # fmt: skip
SMOKE = {
    "epochs": 4, "imgsz": 32, "batch": 8, "nbs": 8, "mosaic_epochs": 3, "budget": "36ep",
    "baselines": [{"family": "yolo_linear", "warmup": "1ep"}], "confirm": {"best": 1, "seeds": 2},
    "search": SWEEP["search"] | {"seeds": 2, "begin": 1, "restarts": {"min": 1, "max": 1, "first": 2}},
}  # fmt: skip
#: One call of Ultralytics; where a folder of `sweeper export` is named, the model follows its learning rate.
CALL = """
import importlib.util, json, sys
from ultralytics import YOLO, settings
settings.update({"mlflow": False})
arguments = json.loads(sys.argv[2])
model = YOLO(arguments.pop("model"))
if exported := arguments.pop("exported", None):
    spec = importlib.util.spec_from_file_location("exported", exported)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.follow(model)
getattr(model, sys.argv[1])(**arguments)
"""


class Bench:
    """One comparison in one folder. ``judged``: the fresh seeds."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder: Path = options.folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.workers: int = options.workers
        self.data = str(options.data.absolute())
        self.file, self.store, self.finished = options.sweep, options.store, options.store is not None
        if self.file is None:
            self.file = self.folder / "race.yaml"
            self.file.write_text(yaml.safe_dump({**SWEEP, "data": self.data} | (SMOKE if options.smoke else {})))
        self.store = (self.store or self.folder / "store").absolute()
        self.sweep = Sweep.load(self.file, [f"data={self.data}"])
        recipe, budget = self.sweep.recipe, self.sweep.budget
        if budget is None or budget.unit != "ep":
            raise SystemExit(f"{self.file}: expected a budget in epochs, such as budget: 1600ep")
        self.epochs, self.budget = self.sweep.epochs, int(budget.amount)
        self.runs = self.budget // self.epochs
        self.judged = SEEDS[: options.seeds]
        searched = search_seeds(recipe.seed, self.sweep.search.seeds) + fresh_seeds(
            recipe.seed, self.sweep.confirm.seeds
        )
        if used := set(self.judged) & {0, *searched}:
            raise SystemExit(
                f"{self.file}: its search uses seeds {sorted(used)}, which judge the winners; change its seed"
            )
        closed = 0 if recipe.mosaic_epochs is None else max(self.epochs - recipe.mosaic_epochs, 0)
        # device, precision and places are the same for all below
        mine = {key: value for key, value in recipe.model_dump().items() if value is not None and key != "seed"}
        self.recipe: dict[str, Any] = {key: value for key, value in mine.items() if key in DEFAULT_CFG_DICT}
        self.recipe |= {"data": self.data, "epochs": self.epochs, "close_mosaic": closed, "lr0": self.sweep.lr0}
        self.printing = threading.Lock()

    def say(self, line: str) -> None:
        with self.printing:
            print(line, flush=True)

    def python(self, *arguments: str, log: str) -> str:
        """Run Python on this, its output into a log; ends the benchmark where that fails."""
        settings = self.folder / "settings" / log  # a folder each: two at a time would write the same file
        settings.mkdir(parents=True, exist_ok=True)
        own = {"OMP_NUM_THREADS": "1", "YOLO_VERBOSE": "false", "YOLO_CONFIG_DIR": str(settings)}
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
            self.say(problem := f"{log}: ended with {done.returncode}; see {self.folder / log}.log")
            raise SystemExit(problem)
        return done.stdout

    # -- Ultralytics

    def ultralytics(self, **more: Any) -> dict[str, Any]:
        """Arguments of `yolo train` that make it comparable: CPU, one thread, no early stop, no plots."""
        held = {"device": "cpu", "workers": 0, "amp": False, "patience": 0, "pretrained": False, "plots": False}
        return {**self.recipe, **held, "verbose": False, "exist_ok": True, **more}

    def yolo(self, name: str, log: str, **more: Any) -> float:
        """The score of one run of `yolo train`, trained unless its results are there already."""
        results = self.folder / "ultralytics" / name / "results.csv"
        if not results.exists() or len(scores(results)) < self.epochs:
            arguments = self.ultralytics(project=str(self.folder / "ultralytics"), name=name, **more)
            self.python("-c", CALL, "train", json.dumps(arguments), log=log)
        return float(np.mean(scores(results)[-LAST:]))

    def tuned(self) -> tuple[dict[str, Any], float, str]:
        """The hyperparameters that `yolo tune` names, its own score of them, and what it trained."""
        arguments = self.ultralytics(project=str(self.folder), name="tune", iterations=self.runs, resume=True, seed=0)
        self.python("-c", CALL, "tune", json.dumps(arguments), log="tune")
        records = [json.loads(line) for line in (self.folder / "tune" / "tune_results.ndjson").read_text().splitlines()]
        best = max(record["fitness"] for record in records)
        winner = yaml.safe_load((self.folder / "tune" / "best_hyperparameters.yaml").read_text())
        return winner, best, f"{len(records)} runs, {len(records) * self.epochs} epochs"

    # -- Optuna, as its tutorial would have it

    def optuna(self) -> tuple[dict[str, Any], float, str]:
        """The arguments that a plain loop over `yolo train` names, their score, and what it trained."""
        study = optuna.create_study(
            storage=f"sqlite:///{self.folder / 'optuna.db'}",
            study_name="plain",
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=0),
        )

        def objective(trial: optuna.Trial) -> float:
            return self.yolo(
                f"optuna-{trial.number}",
                "optuna",
                seed=0,
                lr0=trial.suggest_float("lr0", 1e-3, 1e-1, log=True),
                lrf=trial.suggest_float("lrf", 0.01, 1.0, log=True),
                cos_lr=trial.suggest_categorical("cos_lr", [False, True]),
                warmup_epochs=trial.suggest_float("warmup_epochs", 0.0, 5.0),
            )

        for stale in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # interrupted: its epochs were lost
            study.tell(stale.number, state=optuna.trial.TrialState.FAIL)
        done = len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]))
        study.optimize(objective, n_trials=max(self.runs - done, 0))
        return study.best_params, study.best_value, f"{self.runs} runs, {self.runs * self.epochs} epochs"

    # -- sweeper

    def raced(self) -> tuple[dict[str, Any], float, str]:
        """The schedule that `sweeper run` puts first, exported; its score in the search, and what was trained.

        Without a winner it is the best of those confirmed, which the answer itself would not recommend.
        """
        target = [str(self.file.absolute()), "--store", str(self.store)]
        if not self.finished:
            self.python("-m", "sweeper", "run", *target, f"data={self.data}", "workers=1", log="sweeper")
        answer = json.loads(self.python("-m", "sweeper", "pick", *target, "--json", log="sweeper"))
        trained = json.loads(self.python("-m", "sweeper", "status", *target, "--json", log="sweeper"))["epochs"][
            "trained"
        ]
        self.say(f"sweeper: {answer['sentence']}")
        if not answer["ranking"]:
            raise SystemExit(f"{self.file}: the budget leaves nothing for the search; raise it")
        first = answer["ranking"][0]
        folder = self.folder / "exported"
        options = ["--trial", str(first["trial"]), "-o", str(folder), "--no-register"]
        self.python("-m", "sweeper", "export", *target, *options, log="sweeper")
        if trained > self.budget:
            raise SystemExit(f"{self.store}: {trained} epochs were trained, more than the budget of {self.budget}")
        winner = {"exported": str(folder / "ultralytics_train.py"), "warmup_epochs": 0.0}
        words = "winner" if answer["winner"] else "no winner; the best of those confirmed"
        return winner, first[answer["objective"]], f"{words}: {first['label']}; {trained} epochs"

    # -- all of it

    def estimate(self) -> None:
        begun = time.perf_counter()
        arguments = self.ultralytics(project=str(self.folder / "ultralytics"), name="estimate", epochs=2)
        self.python("-c", CALL, "train", json.dumps(arguments), log="estimate")
        seconds = (time.perf_counter() - begun) / 2  # start-up included: every run has one
        searches = 2 if self.finished else 3
        count = searches * self.budget + 4 * len(self.judged) * self.epochs
        print(f"{count} epochs of about {seconds:.1f} s on one core: {count * seconds / 3600:.1f} hours of it")

    def compare(self) -> None:
        searches: dict[str, Callable[[], tuple[dict[str, Any], float, str]]] = {
            "sweeper": self.raced,
            "optuna": self.optuna,
            "yolo tune": self.tuned,
        }

        def search(name: str) -> dict[str, Any]:
            begun = time.perf_counter()
            winner, score, words = searches[name]()
            self.say(f"{name}: {score:.4f} in the search ({words}) with {winner} ({time.perf_counter() - begun:.0f} s)")
            return {"winner": winner, "search": score, "words": words}

        def judge(run: tuple[str, int]) -> float:
            name, seed = run
            label = name.replace(" ", "-")
            score = self.yolo(f"{label}-judged-{seed}", f"judged-{label}-{seed}", **table[name]["winner"], seed=seed)
            self.say(f"{name} on seed {seed}: {score:.4f}")
            return score

        with ThreadPoolExecutor(self.workers) as pool:
            table = dict(zip(searches, pool.map(search, searches), strict=True))
            table["yolo_linear"] = {"winner": {"lrf": 0.01, "cos_lr": False}, "search": None, "words": "reference"}
            runs = [(name, seed) for seed in self.judged for name in table]
            judged = dict(zip(runs, pool.map(judge, runs), strict=True))
        for name, row in table.items():
            row["fresh"] = [judged[name, seed] for seed in self.judged]
        (self.folder / "result.json").write_text(json.dumps(table, indent=1))
        self.show(table)

    def show(self, table: dict[str, Any]) -> None:
        """The table in Markdown. Intervals are 95 %, paired over seeds, of each comparison alone."""
        seeds = ", ".join(map(str, self.judged))
        print(f"\n| {self.budget} epochs each | in the search | seeds {seeds} | over yolo_linear | sweeper over it |")
        print("|---|---|---|---|---|")
        for name, row in table.items():
            cells = [name, f"{row['search']:.4f}" if row["search"] is not None else "", f"{np.mean(row['fresh']):.4f}"]
            cells.append("" if name == "yolo_linear" else lead(row["fresh"], table["yolo_linear"]["fresh"]))
            cells.append("" if name == "sweeper" else lead(table["sweeper"]["fresh"], row["fresh"]))
            print("| " + " | ".join(cells) + " |")
        for name, row in table.items():
            print(f"\n{name}: {row['words']}; by seed {', '.join(f'{score:.4f}' for score in row['fresh'])}")


def lead(scores: Sequence[float], others: Sequence[float]) -> str:
    """The mean difference with its interval."""
    paired = stats.paired(scores, others)
    return f"{paired.mean:+z.4f} [{paired.low:+z.4f}, {paired.high:+z.4f}]"


def scores(results: Path) -> list[float]:
    """mAP50-95 by epoch from Ultralytics' results.csv."""
    with results.open() as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    return [float(row["metrics/mAP50-95(B)"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data.yaml in YOLO layout")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sweep", type=Path, help="our sweep file, with a budget in epochs; recipe and budget are its")
    parser.add_argument("--store", type=Path, help="the store of that sweep, finished: it is not run again")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many fresh seeds judge the winners")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, each on one core")
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.store is not None and options.sweep is None:
        parser.error("--store needs the --sweep that was run there")
    bench = Bench(options)
    bench.estimate() if options.estimate else bench.compare()


if __name__ == "__main__":
    main()
