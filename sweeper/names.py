"""Every name that a run carries in MLflow, and what MLflow takes for a name. Nobody else writes such a name by hand."""

import hashlib
import posixpath
import re
from collections.abc import Mapping
from typing import Final

from sweeper.errors import TrackingError

# Tags of a run. Those of the sweep's parent run are SWEEP, KIND, STUDY and DATA.
SWEEP: Final = "sweeper.sweep"  # the sweep's name, which is the experiment's name, too
KIND: Final = "sweeper.kind"  # "sweep" for the parent run, "trial" for the others
STUDY: Final = "sweeper.study"  # the random id of the study
DATA: Final = "sweeper.data"  # the digest of the data set
TRIAL: Final = "sweeper.trial"  # the number of the trial, from 0
ATTEMPT: Final = "sweeper.attempt"  # the latest attempt that wrote to the run
FAMILY: Final = "sweeper.family"  # of the schedule
STAGE: Final = "sweeper.stage"  # baseline, search, confirm or control
RECIPE: Final = "sweeper.recipe"  # the digest of everything but the learning rate
STATE: Final = "sweeper.state"  # FINISHED, FAILED, KILLED or PRUNED; MLflow itself has no status for the last
REASON: Final = "sweeper.reason"  # why the trial failed
VERDICT: Final = "sweeper.verdict"  # on the trial's restarts, or that it has none
STATE_DIGEST: Final = "sweeper.state_digest"  # SHA-256 over the final model, EMA and optimizer tensors
EPOCHS_TRAINED: Final = "sweeper.epochs_trained"
EPOCHS_REUSED: Final = "sweeper.epochs_reused"
UNSTORED: Final = "sweeper.unstored"  # why the states of the trial could not be stored
CUT: Final = "sweeper.cut"  # the params and tags that were too long for MLflow and lost their end
REFUSED: Final = "sweeper.refused"  # the last record that the server would not take, and why
DAMAGED: Final = "sweeper.damaged"  # the last journal line that could not be read, because the disk is failing
VIEW: Final = "sweeper.view"  # the run's place in the prepared view; "001" is first
MAKING: Final = "sweeper.making"  # begins tags of the experiment: each belongs to a process that is making a run
PARENT: Final = "mlflow.parentRunId"
COLOR: Final = "mlflow.runColor"
EXPERIMENT_KIND: Final = "mlflow.experimentKind"

# Params of a trial are the parameters of its schedule, its seed, and the facts of its trace.
FACT: Final = "trace/"  # begins the facts' names; no parameter of a schedule has a slash
SEED: Final = "seed"

# Metrics of an epoch, and the beginnings of their names.
CURVE: Final = "curve/"
LR: Final = "curve/lr"
LR_RELATIVE: Final = "curve/lr_rel"  # the learning rate divided by the trace's peak
TRAIN: Final = "train/"  # a training loss
VAL: Final = "val/"  # a validation loss
COCO: Final = "coco/"  # a metric of pycocotools
JUMP: Final = "jump/"  # what the curve did at a jump of the learning rate
# Metrics of a whole trial, logged at its last epoch.
BEST: Final = "best/"  # before an objective's name: its highest value
BEST_EPOCH: Final = "best/epoch"
FINAL: Final = "final/"  # before an objective's name: the trial's score

# Artifacts.
TRACE_TABLE: Final = "trace/lr.parquet"
TRACE_PLOT: Final = "trace/lr.png"
LANDSCAPE: Final = "escape/landscape.json"
VERDICTS: Final = "escape/verdicts.json"
WEIGHTS: Final = "weights/ema.pt"  # a plain state_dict that loads with weights_only=True
REPORT: Final = "report.html"

PARAM_CHARACTERS: Final = 6000  # MLflow cuts longer ones without a word
TAG_CHARACTERS: Final = 8000
EXPERIMENT_TAG_CHARACTERS: Final = 20_000

_ALLOWED = re.compile(r"[\w.\-:/ ]+")
_COLORS = {
    "cawb": "#0072b2",
    "cosine": "#e69f00",
    "warm_restarts": "#009e73",
    "multistep": "#d55e00",
    "yolo_linear": "#222222",
    "yolo_cosine": "#888888",
    "onecycle": "#cc79a7",
    "wsd": "#56b4e9",
    "polynomial": "#8c510a",
    "exponential": "#b8a900",
    "constant": "#7b3294",
    "counterfactual": "#8db9d6",
    "matched_peak": "#b5a17a",
}


def color(family: str, number: int = 0) -> str:
    """A hue per schedule family (MLflow's own hashed colours collide), and shades of it for the trials within.

    >>> color("cawb"), color("cawb", 1), color("mine") == color("mine")
    ('#0072b2', '#006fae', True)
    """
    hue = _COLORS.get(family) or "#" + hashlib.sha256(family.encode()).hexdigest()[:6]
    shade = number * 0.618034 % 1  # the golden section keeps neighbours apart
    target, share = (255, shade) if shade < 0.6 else (0, 1.4 * (shade - 0.6))
    return "#" + "".join(f"{round(c + (target - c) * share):02x}" for c in bytes.fromhex(hue[1:]))


def check(what: str, name: str) -> str:
    """``name`` if MLflow takes it as the name of a ``what`` (metric, param, tag or artifact), else TrackingError."""
    if len(name) > 250 or not _ALLOWED.fullmatch(name) or posixpath.normpath(name) != name or name[0] in "./":
        raise TrackingError(
            f"{what} {name!r:.300}: MLflow takes letters, digits and _ - . : / and space, up to 250; rename it"
        )
    return name


def params(schedule: Mapping[str, str], facts: Mapping[str, object], seed: int | None) -> dict[str, object]:
    """A trial's params: its schedule's parameters under their own names, ``trace/NAME`` for each fact, and the seed.

    TrackingError where a parameter of the schedule has the name of one of the others: it would be lost.

    >>> params({"family": "cawb", "steps": "[20]"}, {"steps": 220}, 0)
    {'family': 'cawb', 'steps': '[20]', 'trace/steps': 220, 'seed': 0}
    """
    others: dict[str, object] = {f"{FACT}{name}": value for name, value in facts.items()} | {SEED: seed}
    for name in schedule:
        if name in others or name.startswith(FACT):
            raise TrackingError(
                f"param {name!r} of a schedule: the run says something else by it; rename the parameter"
            )
    return {**schedule, **{name: value for name, value in others.items() if value is not None}}


def cut(values: Mapping[str, object], limit: int) -> tuple[dict[str, str], list[str]]:
    """``values`` as strings of at most ``limit`` characters, and the names of those that lost their end."""
    texts = {name: str(value) for name, value in values.items()}
    long = [name for name, text in texts.items() if len(text) > limit]
    return {name: text if len(text) <= limit else text[: limit - 1] + "…" for name, text in texts.items()}, long
