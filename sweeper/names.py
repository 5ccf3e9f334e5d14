"""Every name that a run carries in MLflow, and what MLflow takes for a name. Nobody else writes such a name by hand."""

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
REFUSED: Final = "sweeper.refused"  # the last record that the server would not take, and why
DAMAGED: Final = "sweeper.damaged"  # the last journal line that could not be read, because the disk is failing
ANSWER: Final = "sweeper.answer"  # of the parent run: who won, in a sentence
DIFFERENCE: Final = "sweeper.difference"  # the schedule's to its trunk and to the baselines, with intervals and seeds
WINNER: Final = "sweeper.winner"  # "yes" for the run of the schedule that won
VIEW: Final = "sweeper.view"  # the run's place in the prepared view; "001" is first
MAKING: Final = "sweeper.making"  # begins tags of the experiment: each belongs to a process that is making a run
PARENT: Final = "mlflow.parentRunId"
COLOR: Final = "mlflow.runColor"
NAME: Final = "mlflow.runName"
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
# Metrics of the machine, whose step is the second since 1970: MLflow draws them over the time.
SYSTEM: Final = "system/"  # one of MLflow's own system metrics
# Metric of an optimizer step, logged once when the trial begins.
TRACE: Final = "trace/lr"  # the learning rate at a few hundred steps
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
LEARNED: Final = "learned/"  # begins the pictures of what a trial's model has learned, and the numbers beside them

_ALLOWED = re.compile(r"[\w.\-:/ ]+")
# Okabe and Ito's palette, which colour-blind eyes tell apart; greys are left for the baselines.
_DISTINCT = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7")
_GREYS = ("#4d4d4d", "#8a8a8a", "#b0b0b0")
_PALE = "#c5d5e4"


def color(place: int, *, baseline: bool = False) -> str:
    """The colour of a run whose schedule has this ``place`` from 0 among those that are shown: the best few differ.

    >>> color(0), color(6) == color(7), color(0, baseline=True)
    ('#0072b2', True, '#4d4d4d')
    """
    if baseline:
        return _GREYS[place % len(_GREYS)]
    return _DISTINCT[place] if place < len(_DISTINCT) else _PALE


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
