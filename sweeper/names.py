"""All names of tags, params, metrics and artifacts in MLflow, and the check of what MLflow accepts as a name.

Other modules use these constants, so that each name is written down once.
"""

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
ATTEMPT: Final = "sweeper.attempt"  # with ".N": when attempt N began; a tag each, because none may overwrite another
FAMILY: Final = "sweeper.family"  # the family of the schedule
STAGE: Final = "sweeper.stage"  # baseline, search, confirm or control
RECIPE: Final = "sweeper.recipe"  # the digest of the recipe, which is everything but the learning rate
STATE: Final = "sweeper.state"  # FINISHED, FAILED, KILLED or PRUNED; MLflow's own status has no PRUNED
REASON: Final = "sweeper.reason"  # why the trial failed; with ".N", how attempt N ended
VERDICT: Final = "sweeper.verdict"  # the verdict on each jump of the trial, or that none of them is a restart
STATE_DIGEST: Final = "sweeper.state_digest"  # SHA-256 over the final model, EMA and optimizer tensors
EPOCHS_TRAINED: Final = "sweeper.epochs_trained"
EPOCHS_REUSED: Final = "sweeper.epochs_reused"
UNSTORED: Final = "sweeper.unstored"  # why a state of the trial could not be stored
REFUSED: Final = "sweeper.refused"  # the last record that the MLflow server refused, and why
DAMAGED: Final = "sweeper.damaged"  # file and byte of the last journal line that could not be read
ANSWER: Final = "sweeper.answer"  # on the parent run: which schedule won, in a sentence
DIFFERENCE: Final = "sweeper.difference"  # mean difference to the trunk and the baselines, with intervals and seeds
WINNER: Final = "sweeper.winner"  # "yes" for the run of the schedule that won
VIEW: Final = "sweeper.view"  # the run's position in the prepared view, from "001"
MAKING: Final = "sweeper.making"  # prefix of a tag on the experiment that a process sets while it creates a run
PARENT: Final = "mlflow.parentRunId"
COLOR: Final = "mlflow.runColor"
NAME: Final = "mlflow.runName"
EXPERIMENT_KIND: Final = "mlflow.experimentKind"

# Params of a trial: the parameters of its schedule, its seed, and the facts of its LR trace.
FACT: Final = "trace/"  # prefix of the facts; a schedule's parameters have no slash, so the names cannot collide
SEED: Final = "seed"

# Metrics of an epoch; a name with a slash at its end is a prefix.
CURVE: Final = "curve/"
LR: Final = "curve/lr"
LR_RELATIVE: Final = "curve/lr_rel"  # the learning rate divided by the trace's peak
TRAIN: Final = "train/"  # a training loss
VAL: Final = "val/"  # a validation loss
COCO: Final = "coco/"  # a metric of pycocotools
JUMP: Final = "jump/"  # the effect of a jump of the learning rate on the objective's curve
# Metrics of the machine; their step is the Unix time in seconds, so that MLflow draws them over time.
SYSTEM: Final = "system/"  # one of MLflow's own system metrics
# Metric by optimizer step, logged once when the trial begins.
TRACE: Final = "trace/lr"  # the learning rate at a few hundred steps
# Metrics of a whole trial, logged at its last epoch.
BEST: Final = "best/"  # prefix of the objective's highest value
BEST_EPOCH: Final = "best/epoch"
FINAL: Final = "final/"  # prefix of the trial's score

# Artifacts.
TRACE_TABLE: Final = "trace/lr.parquet"
TRACE_PLOT: Final = "trace/lr.png"
LANDSCAPE: Final = "escape/landscape.json"
VERDICTS: Final = "escape/verdicts.json"
WEIGHTS: Final = "weights/ema.pt"  # a plain state_dict that loads with weights_only=True
REPORT: Final = "report.html"
LEARNED: Final = "learned/"  # folder of the pictures of a trial's model, and of their numbers

_ALLOWED = re.compile(r"[\w.\-:/ ]+")
# Okabe and Ito's palette, which colour-blind readers can tell apart. Greys are reserved for the baselines.
_DISTINCT = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7")
_GREYS = ("#4d4d4d", "#8a8a8a", "#b0b0b0")
_PALE = "#c5d5e4"


def color(index: int, *, baseline: bool = False) -> str:
    """The colour of a run whose schedule has this ``index`` (0: best) among those shown; only the first six differ.

    >>> color(0), color(6) == color(7), color(0, baseline=True)
    ('#0072b2', True, '#4d4d4d')
    """
    if baseline:
        return _GREYS[index % len(_GREYS)]
    return _DISTINCT[index] if index < len(_DISTINCT) else _PALE


def check(kind: str, name: str) -> str:
    """Return ``name`` if MLflow accepts it as the name of a ``kind`` (metric, tag, ...), else raise TrackingError."""
    if len(name) > 250 or not _ALLOWED.fullmatch(name) or posixpath.normpath(name) != name or name[0] in "./":
        raise TrackingError(
            f"{kind} {name!r:.300}: MLflow takes letters, digits and _ - . : / and space, up to 250; rename it"
        )
    return name


def params(schedule: Mapping[str, str], facts: Mapping[str, object], seed: int | None) -> dict[str, object]:
    """A trial's params: its schedule's parameters under their own names, ``trace/NAME`` for each fact, and the seed.

    Raises TrackingError if a parameter of the schedule has the name of a fact or of the seed, as one would be lost.

    >>> params({"family": "cawb", "steps": "[20]"}, {"steps": 220}, 0)
    {'family': 'cawb', 'steps': '[20]', 'trace/steps': 220, 'seed': 0}
    """
    others: dict[str, object] = {f"{FACT}{name}": value for name, value in facts.items()} | {SEED: seed}
    for name in schedule:
        if name in others or name.startswith(FACT):
            raise TrackingError(f"param {name!r} of a schedule: the run has another param of this name; rename it")
    return {**schedule, **{name: value for name, value in others.items() if value is not None}}
