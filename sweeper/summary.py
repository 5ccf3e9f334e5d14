"""What a sweep has come to, gathered from its parts for those who look: plain data, nothing is trained or changed."""

from sweeper.config import Sweep
from sweeper.stats import Answer

#: Numbers that every family's trace has: what can be compared over all trials, baselines included.
FACTS = ("restarts", "drops", "peak", "final_ratio", "integral", "warmup_fraction")
SHOWN = 8  # runs beside the baselines, in charts that show a few


def chart_parameters(sweep: Sweep) -> list[str]:
    """The schedule parameters to draw against mAP: what is searched, and the facts that all schedules have."""
    searched = [name for name, parameter in sweep.search.params.items() if parameter.searched]
    return ["family", *(name for name in FACTS if name not in searched), *searched]


def best_runs(answer: Answer) -> list[str]:
    """MLflow ids of the runs to look at first: the best configurations and the best baseline."""
    entries = [*answer.ranking[:SHOWN], *([answer.baseline] if answer.baseline else [])]
    return list(dict.fromkeys(entry["run_id"] for entry in entries if entry["run_id"]))
