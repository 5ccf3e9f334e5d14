"""The words that runs carry in MLflow, and what MLflow takes: one place, no MLflow needed."""

import hashlib
import posixpath
import re
from collections.abc import Mapping

from sweeper.errors import TrackingError

SWEEP = "sweeper.sweep"  # the sweep's name; also the experiment's
STUDY = "sweeper.study"  # of the parent run: the study's own random name
KIND = "sweeper.kind"  # "sweep" (the parent run) or "trial"
TRIAL = "sweeper.trial"  # number of the trial, from 0
ATTEMPT = "sweeper.attempt"  # the latest attempt that wrote to the run
FAMILY = "sweeper.family"  # of the schedule
STAGE = "sweeper.stage"  # baseline, search, confirm, control
RECIPE = "sweeper.recipe"  # digest of everything but the learning rate
STATE_DIGEST = "sweeper.state_digest"  # SHA-256 over the final model, EMA and optimizer tensors
STATE = "sweeper.state"  # FINISHED, FAILED, KILLED or PRUNED, where MLflow has no word for the last
REASON = "sweeper.reason"  # why a trial failed
VERDICT = "sweeper.verdict"  # on the restarts, or that there are none
CUT = "sweeper.cut"  # params and tags that were too long for MLflow and lost their end
REFUSED = "sweeper.refused"  # the last record that the server would not take, and why
DAMAGED = "sweeper.damaged"  # journal lines that could not be read (a failing disk)
MAKING = "sweeper.making"  # of the experiment, while somebody makes a run in it
VIEW = "sweeper.view"  # place of the run in the prepared view, "001" is first
FACT = "trace/"  # begins the params that are facts of the LR trace; no schedule's parameter has a slash
PARENT = "mlflow.parentRunId"
COLOR = "mlflow.runColor"
EXPERIMENT_KIND = "mlflow.experimentKind"

PARAM_CHARACTERS = 6000  # MLflow cuts longer ones without a word
TAG_CHARACTERS = 8000
EXPERIMENT_TAG_CHARACTERS = 20_000

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
    ours: dict[str, object] = {f"{FACT}{name}": value for name, value in facts.items()} | {"seed": seed}
    for name in schedule:
        if name in ours or name.startswith(FACT):
            raise TrackingError(
                f"param {name!r} of a schedule: the run says something else by it; rename the parameter"
            )
    return {**schedule, **{name: value for name, value in ours.items() if value is not None}}


def cut(values: Mapping[str, object], limit: int) -> tuple[dict[str, str], list[str]]:
    """``values`` as strings of at most ``limit`` characters, and the names of those that lost their end."""
    texts = {name: str(value) for name, value in values.items()}
    long = [name for name, text in texts.items() if len(text) > limit]
    return {name: text if len(text) <= limit else text[: limit - 1] + "…" for name, text in texts.items()}, long
