"""What the search finds for the epochs that it trains, on simulated trainings driven by the LR trace itself.

    python benchmarks/search.py                  # 20 seeds, all three questions; about 40 minutes of one core
    python benchmarks/search.py --quick          # 4 seeds, small budgets: a minute or two
    python benchmarks/search.py --only pruners   # or: budget, encodings
    python benchmarks/search.py --jobs 2         # seeds side by side

Real are: the space of `sweeper init`'s sweep file (without its trunk), `sweeper.search`, Optuna's samplers and pruners,
prefix keys, the pruning rule. Simulated is the training, benchmarks/landscape.py. Counts of epochs are exact; mAP is a
toy's.
"""

import argparse
import json
import math
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from landscape import EPOCHS, LAST, TIME, Landscape

import sweeper.service
from sweeper import search
from sweeper.config import Pruner, Restarts, Sweep
from sweeper.schedules import Trace, parse, prefix_keys
from sweeper.search import rules
from sweeper.study import samplers

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
warnings.simplefilter("ignore", UserWarning)

# without its trunk: no baseline is trained here
DEFAULT = Sweep.load(Path(sweeper.service.__file__).parent / "sweep.yaml", ["search.trunk=null", "search.warmup=3ep"])
SCALES = [0.5, 0.7, 1.0]
Propose = Callable[[Any], dict[str, Any]]  # suggest -> spec
Make = Callable[[int, int], optuna.samplers.BaseSampler]  # trial, attempt -> sampler


# -- one search: proposals, what they cost, what they found


@dataclass(frozen=True)
class Trial:
    """``spent``: epochs trained by the whole search when it was told; ``asked``: proposals made by then."""

    spent: int
    asked: int
    value: float
    trace: Trace


def objective(curve: np.ndarray) -> float:
    return float(curve[-LAST:].mean())


def hunt(
    land: Landscape,
    propose: Propose,
    sampler: Make,
    *,
    shares: bool,
    again: bool = False,
    epochs: float = math.inf,
    trials: int = 100_000,
    pruner: optuna.pruners.BasePruner | None = None,
) -> list[Trial]:
    """Search until ``epochs`` are trained or ``trials`` told. With ``shares`` an epoch whose prefix key was seen before
    costs nothing; with ``again`` the sampler is asked again for what was trained before, as sweeper does. ``pruner``:
    reported to after each epoch, as a plain script does."""
    made = sampler(0, 0)
    study = optuna.create_study(direction="maximize", sampler=made, pruner=pruner or optuna.pruners.NopPruner())
    known: set[str] = set()
    digests: set[str] = set()
    told: list[Trial] = []
    spent = asked = 0
    while len(told) < trials and spent < epochs:
        for attempt in range(samplers.TRIES):
            study.sampler, asked = sampler(len(told), attempt), asked + 1
            trial = study.ask()
            trace = parse(propose(trial)).trace(TIME)
            if not again or trace.digest not in digests or attempt + 1 == samplers.TRIES:
                break
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # no sampler sees it
        digests.add(trace.digest)
        curve = land.curve(trace)
        done = EPOCHS
        if pruner is not None:
            for epoch, value in enumerate(curve):
                trial.report(value, epoch)
                if trial.should_prune():
                    done = epoch + 1
                    break
        keys = set(prefix_keys("", trace)[1 : done + 1])
        cost = len(keys - known) if shares else done
        known |= keys
        spent += cost
        if done < EPOCHS:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, objective(curve))
            told.append(Trial(spent, asked, objective(curve), trace))
    return told


def best(told: list[Trial], epochs: float) -> Trial:
    """What the search would have named after ``epochs`` trained epochs."""
    return max((trial for trial in told if trial.spent <= epochs), key=lambda trial: trial.value)


# -- question 1: how good, and how many, for the epochs trained


def default_space(suggest: Any) -> dict[str, Any]:
    return search.propose(DEFAULT, suggest, TIME).spec


def plain_script(trial: Any) -> dict[str, Any]:
    """What a person writes who wraps CAWB as published: sorted integers, floats, a stretch."""
    count = trial.suggest_int("restarts", 0, 3)
    steps = sorted({trial.suggest_int(f"step{i}", 4, 96) for i in range(count)})
    shape = {"step_scale": trial.suggest_float("step_scale", 0.5, 1.0)} if steps else {}
    shape |= {"epoch_scale": trial.suggest_float("epoch_scale", 1.0, 4.0)} if steps else {}
    return {"family": "cawb", "lr": 0.01, "steps": steps, "warmup": "3ep", "floor": 0.05, **shape}


def budget(number: int, epochs: int) -> dict[str, Any]:
    """All methods on one landscape: truth of the schedule named (mAP points), distinct schedules; at three budgets."""

    def ours(name: str) -> Make:
        return lambda trial, attempt: samplers.make(name, number, trial, attempt)

    def theirs(kind: type[optuna.samplers.BaseSampler]) -> Make:
        made = kind(seed=number)  # type: ignore[call-arg]
        return lambda trial, attempt: made

    land = Landscape(number)
    tpe, rand = optuna.samplers.TPESampler, optuna.samplers.RandomSampler
    median = optuna.pruners.MedianPruner()
    shared, alone = {"shares": True, "again": True}, {"shares": False}
    methods: dict[str, tuple[Propose, Make, dict[str, Any]]] = {
        "sweeper": (default_space, ours("tpe"), shared),
        "sweeper, nothing shared": (default_space, ours("tpe"), alone | {"again": True}),
        "random, shared": (default_space, ours("random"), shared),
        "random": (default_space, theirs(rand), alone),
        "plain Optuna script": (plain_script, theirs(tpe), alone),
        "plain Optuna script, MedianPruner": (plain_script, theirs(tpe), alone | {"pruner": median}),
        "plain random script": (plain_script, theirs(rand), alone),
    }
    found: dict[str, Any] = {}
    for name, (propose, sampler, how) in methods.items():
        told = hunt(land, propose, sampler, epochs=epochs, **how)
        for part in (epochs // 4, epochs // 2, epochs):
            distinct = len({trial.trace.digest for trial in told if trial.spent <= part})
            truth = 100 * land.truth(best(told, part).trace)
            asked = max(trial.asked for trial in told if trial.spent <= part)
            found[f"{name}/{part}"] = {"truth": truth, "distinct": distinct, "asked": asked}
    return found


# -- question 2: whom do pruners stop


def pruners(number: int, count: int) -> dict[str, Any]:
    """``count`` random schedules of the default space, one after the other: good ones stopped, epochs not trained."""
    land = Landscape(number)
    traces = [search.propose(DEFAULT, search.OfflineTrial(number * 1_000 + i), TIME).trace(TIME) for i in range(count)]
    curves, truths = [land.curve(trace) for trace in traces], [land.truth(trace) for trace in traces]
    good = np.array(truths) >= np.quantile(truths, 0.9)
    optunas: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "Median": optuna.pruners.MedianPruner,
        "SuccessiveHalving": optuna.pruners.SuccessiveHalvingPruner,
        "Hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=EPOCHS),
        "Patient(None, 10)": lambda: optuna.pruners.PatientPruner(None, patience=10),
        "Percentile(75, after 50)": lambda: optuna.pruners.PercentilePruner(75.0, n_warmup_steps=50),
    }
    stops = {name: stopped_by(make(), curves) for name, make in optunas.items()}
    stops["sweeper cycle_end"] = stopped_by_us(traces, curves)
    return {
        name: {
            "wrong": int((good & (np.array(stop) < EPOCHS)).sum()),
            "good": int(good.sum()),
            "epochs": 1 - float(np.mean(stop)) / EPOCHS,
            # what is lost: the best that was left to name, against the best
            "lost": 100 * (max(truths) - max((t for t, s in zip(truths, stop, strict=True) if s == EPOCHS), default=0)),
        }
        for name, stop in stops.items()
    }


def stopped_by(pruner: optuna.pruners.BasePruner, curves: list[np.ndarray]) -> list[int]:
    """Epochs after which each of the runs is stopped (all of them: never)."""
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for curve in curves:
        trial = study.ask()
        for epoch, value in enumerate(curve):
            trial.report(value, epoch)
            if trial.should_prune() and epoch + 1 < EPOCHS:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                found.append(epoch + 1)
                break
        else:
            study.tell(trial, objective(curve))
            found.append(EPOCHS)
    return found


def stopped_by_us(traces: list[Trace], curves: list[np.ndarray]) -> list[int]:
    """The same by `pruner: cycle_end` with its defaults."""
    options = Pruner(name="cycle_end")
    found: list[int] = []
    seen: list[list[float]] = []
    for trace, curve in zip(traces, curves, strict=True):
        ends = {jump.epoch for jump in trace.jumps()}
        stop = EPOCHS
        for end in sorted(ends):
            if rules.cycle_end(
                curve[:end].tolist(), ends, seen, from_epoch=EPOCHS // 3, share=options.share, least=options.others
            ):
                stop = end
                break
        seen.append(curve[:stop].tolist())
        found.append(stop)
    return found


# -- question 3: how restarts are written as parameters


def encodings(number: int, trials: int) -> dict[str, Any]:
    """Truth (mAP points) of what each encoding of up to 3 restarts at any epoch, 5 apart, names after ``trials``."""
    space = DEFAULT.model_dump()["search"]["restarts"] | {"max": 3, "every": 1, "distance": 5}
    sections = DEFAULT.model_copy(update={"search": DEFAULT.search.model_copy(update={"restarts": Restarts(**space)})})

    def written(trial: Any, steps: list[int]) -> dict[str, Any]:
        steps = [step for step in steps if 4 <= step <= 95]
        scales = [trial.suggest_categorical(f"step_scale_{i + 1}", SCALES) for i in range(len(steps))]
        spec = {"family": "cawb", "steps": steps, "horizon": "end", "warmup": "3ep", "floor": 0.05, "lr": 0.01}
        return {**spec, "step_scale": scales} if scales else spec

    def relative_gaps(trial: Any) -> dict[str, Any]:
        """Each restart at a fraction of what the one before left of the run."""
        steps, at = [], 0.0
        for i in range(trial.suggest_int("restarts", 0, 3)):
            at += 5 + trial.suggest_float(f"gap_{i + 1}", 0.0, 1.0) * max(90 - at, 0)
            steps.append(round(at))
        return written(trial, steps)

    def fixed_gaps(trial: Any) -> dict[str, Any]:
        """Epochs between restarts; one past the end is left out."""
        gaps = [trial.suggest_int(f"gap_{i + 1}", 5, 60) for i in range(trial.suggest_int("restarts", 0, 3))]
        return written(trial, [int(step) for step in np.cumsum(gaps)])

    def sticks(trial: Any) -> dict[str, Any]:
        """Lengths of cycles as shares of the run."""
        count = trial.suggest_int("restarts", 0, 3)
        parts = [trial.suggest_float(f"length_{i}", 0.05, 1.0) for i in range(count + 1)]
        return written(trial, [round(100 * step) for step in np.cumsum(parts)[:-1] / np.sum(parts)])

    def positions(trial: Any) -> dict[str, Any]:
        """Epochs, sorted, equal ones once."""
        count = trial.suggest_int("restarts", 0, 3)
        return written(trial, sorted({trial.suggest_int(f"step_{i + 1}", 5, 95) for i in range(count)}))

    land = Landscape(number)
    tried: dict[str, tuple[Propose, str]] = {
        "sections": (lambda suggest: search.propose(sections, suggest, TIME).spec, "tpe"),
        "relative gaps": (relative_gaps, "tpe"),
        "fixed gaps": (fixed_gaps, "tpe"),
        "shares of the run": (sticks, "tpe"),
        "sorted positions": (positions, "tpe"),
        "sections, random": (lambda suggest: search.propose(sections, suggest, TIME).spec, "random"),
    }
    truths, seen = {}, []
    for name, (propose, sampler) in tried.items():
        told = hunt(
            land,
            propose,
            lambda trial, attempt, of=sampler: samplers.make(of, number, trial, attempt),  # type: ignore[misc]
            shares=False,
            again=True,
            trials=trials,
        )
        ranked = sorted(told, key=lambda trial: -trial.value)
        truths[name] = 100 * land.truth(ranked[0].trace)
        seen += [100 * land.truth(trial.trace) for trial in ranked[:3]]
    # the best that anybody saw stands for the unknown optimum
    return {name: {"truth": truth, "regret": max(seen) - truth} for name, truth in truths.items()}


# -- the tables


def mean(values: list[float]) -> str:
    """Mean with a 95 % interval over seeds (Student's t)."""
    t = {4: 3.18, 20: 2.09, 40: 2.02}.get(len(values), 2.0)
    half = t * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):.2f} ± {half:.2f}"


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def said_of_budget(results: list[dict[str, Any]], epochs: int) -> Iterator[str]:
    names = list(dict.fromkeys(key.split("/")[0] for key in results[0]))
    rows = []
    for name in names:
        row = [name]
        for part in (epochs // 4, epochs // 2, epochs):
            row.append(mean([result[f"{name}/{part}"]["truth"] for result in results]))
        at_end = [result[f"{name}/{epochs}"] for result in results]
        ours = [result[f"sweeper/{epochs}"]["truth"] for result in results]
        row.append(
            mean([own - end["truth"] for own, end in zip(ours, at_end, strict=True)]) if name != names[0] else ""
        )
        row.append(mean([float(end["distinct"]) for end in at_end]))
        row.append(mean([end["distinct"] / (epochs / EPOCHS) for end in at_end]))
        row.append(f"{np.mean([end['asked'] / end['distinct'] for end in at_end]):.2f}")
        rows.append(row)
    head = ["method", *(f"mAP points, {part:,} epochs" for part in (epochs // 4, epochs // 2, epochs))]
    head += ["sweeper's lead", "distinct schedules", "per run of 100 epochs", "proposals for one"]
    yield from table(head, rows)


def said_of_pruners(results: list[dict[str, Any]], count: int) -> Iterator[str]:
    rows = []
    for name in results[0]:
        wrong, good = (sum(result[name][key] for result in results) for key in ("wrong", "good"))
        saved = [100 * result[name]["epochs"] for result in results]
        lost = [result[name]["lost"] for result in results]
        rows.append([name, f"{100 * wrong / good:.0f} % ({wrong} of {good})", mean(saved), mean(lost)])
    yield from table(["pruner", "good schedules stopped", "epochs saved, %", "mAP points lost"], rows)


def said_of_encodings(results: list[dict[str, Any]], trials: int) -> Iterator[str]:
    base = np.mean([result["sections, random"]["regret"] for result in results])
    rows = []
    for name in results[0]:
        regret = [result[name]["regret"] for result in results]
        rows.append([name, mean(regret), f"{np.mean(regret) / base:.2f}"])
    yield from table([f"encoding, {trials} trials", "regret, mAP points", "of random search's"], rows)


QUESTIONS: dict[str, tuple[Callable[[int, int], dict[str, Any]], Any, int, int]] = {
    "budget": (budget, said_of_budget, 6400, 1600),
    "pruners": (pruners, said_of_pruners, 60, 20),
    "encodings": (encodings, said_of_encodings, 100, 30),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=QUESTIONS)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every seed's figures there")
    given = parser.parse_args()
    numbers = range(given.seeds or (4 if given.quick else 20))
    written = {}
    for name, (work, say, full, quick) in QUESTIONS.items():
        if given.only not in (None, name):
            continue
        size, begun = quick if given.quick else full, time.perf_counter()
        with multiprocessing.Pool(given.jobs) as pool:
            results = pool.starmap(work, [(number, size) for number in numbers], chunksize=1)
        written[name] = results
        print(f"\n## {name} ({len(numbers)} seeds, {time.perf_counter() - begun:.0f} s)\n", flush=True)
        print("\n".join(say(results, size)), flush=True)
    if given.json:
        given.json.write_text(json.dumps(written))


if __name__ == "__main__":
    main()
