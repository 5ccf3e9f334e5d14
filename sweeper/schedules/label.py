"""Schedules as text: a label for a table, the parameters for MLflow, and the meaning of each family and parameter."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from sweeper.schedules.families import FAMILIES
from sweeper.schedules.trace import CONTROLS

#: Parameters that act at a restart only, so that they have no effect in a schedule without restarts.
AT_RESTARTS = ("step_scale", "epoch_scale")

#: The meaning of each family, control run and parameter, for ``sweeper families`` and below tables.
MEANINGS = {
    "cawb": "cosine annealing with warm booting, a new decay begins at each of the epochs `steps`",
    "cosine": "a cosine from lr down to eta_min",
    "warm_restarts": "cosine cycles, each T_mult times as long as the one before, with a peak step_scale times as high",
    "multistep": "a learning rate that is constant but for a factor gamma at each of the boundaries",
    "yolo_linear": "the default of `yolo train`, a straight line from lr to lrf times lr",
    "yolo_cosine": "`yolo train` with cos_lr, a cosine from lr to lrf times lr",
    "onecycle": "a rise to lr over the share pct_start of the run, then a fall",
    "wsd": "a constant learning rate, then a decay over the last decay_length of the run",
    "polynomial": "lr times (1 - t / total_iters)^power at the time t",
    "exponential": "a learning rate that is multiplied by gamma per epoch",
    "constant": "the same learning rate in every step",
    "counterfactual": "a control run, the same run without the restart",
    "matched_peak": "a control run, a single decay from the learning rate of the restart",
    "lr": "the base learning rate, lr0 of a sweep, and the highest one unless a scale is above 1",
    "steps": "the epochs at which the learning rate jumps and a new decay begins",
    "step_scale": "the peak of each cycle divided by the peak of the cycle before (the first peak is lr)",
    "epoch_scale": "the length of a decay divided by the length of its cycle",
    "horizon": "the length of a decay, or `end` for a decay to the end of the run, by default up to the next jump",
    "decay": "a name such as cosine, or arithmetic in x (epochs since the cycle began) and y (epochs of the decay)",
    "floor": "the learning rate at the end of a decay, as a share of the peak of its cycle",
    "power": "the exponent of a cosine or polynomial decay, which falls faster at first if it is above 1",
    "mode": "CAWB as its article describes it (`clean`), its figure shows it (`article`) or its code is (`reference`)",
    "last_epoch": "the epoch at which CAWB's own code resumes a run",
    "warmup": "the length of the warm-up, at the end of which the learning rate is at its first peak",
    "warmup_start": "the learning rate at the start of the warm-up, as a share of lr",
    "warmup_kind": "`lr`: every group's learning rate rises, `trainer`: as in `yolo train`, with bias and momentum",
    "warmup_bias_lr": "the learning rate of the biases at the start of the warm-up",
    "warmup_momentum": "the momentum at the start of the warm-up",
    "momentum": "the momentum after the warm-up",
    "granularity": "whether the learning rate changes with each step or with each epoch",
    "T_max": "the length of the cosine, after which the learning rate rises again",
    "T_0": "the length of the first cycle",
    "T_mult": "the length of each cycle divided by the length of the cycle before",
    "eta_min": "the lowest learning rate",
    "boundaries": "the epochs at which the learning rate is multiplied by gamma",
    "gamma": "the factor at each boundary, or per epoch",
    "lrf": "the learning rate at the end of the run, as a share of lr",
    "pct_start": "the share of the run after which the learning rate is at its peak",
    "anneal": "the form of the rise and the fall, cos or linear",
    "div_factor": "lr divided by the learning rate of the first step",
    "final_div_factor": "the learning rate of the first step divided by that of the last step",
    "three_phase": "whether the fall takes as long as the rise, before a third phase down to the last learning rate",
    "base_momentum": "the momentum at the peak of the learning rate",
    "max_momentum": "the momentum in the first and in the last step",
    "decay_length": "the length of the decay at the end of the run",
    "total_iters": "the length of the decay",
    "groups": "other values of parameters for single parameter groups, by the group's name",
    "trunk": "the schedule that this schedule equals until it branches off",
    "from": "the epoch at which the schedule branches off its trunk",
}


def legend(labels: Iterable[str]) -> str:
    """The meanings of the families and parameters in ``labels``, in one line; empty without any."""
    names = {name for label in labels for match in re.findall(r"(?:^|\()(\w+)|(\w+)=", label) for name in match}
    return "; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items() if name in names)


def label(spec: Mapping[str, Any], held: Mapping[str, Any] | None = None, searched: Collection[str] = ()) -> str:
    """The family of a schedule and the parameters that identify it: ``cawb steps=[20] step_scale=1``.

    A parameter is left out if it is at its family's default or has no effect. ``held`` are the values, as a sweep file
    writes them, that all compared schedules share; a parameter at such a value is left out, too. ``searched`` are
    parameters that are shown even at their default, because other schedules differ in them.

    >>> cosine = {"family": "cosine", "trunk": {"family": "yolo_linear", "lr": 0.1}, "from": "20ep", "eta_min": 0.01}
    >>> label(cosine, {"lr": 0.1, "eta_min": 0.01}), label(cosine, {"lr": 0.1}, ["eta_min"])
    ('cosine trunk=(yolo_linear) from=20ep', 'cosine trunk=(yolo_linear) from=20ep eta_min=0.01')
    """
    family = str(spec.get("family"))
    if family in CONTROLS:
        return f"{family} of ({label(spec['of'], held, searched)}) restart={spec['restart']}"
    keys = FAMILIES[family].keys(spec) if family in FAMILIES else {}
    defaults = {name: key.default for name, key in keys.items()}
    for name, value in (held or {}).items():
        if name in keys:
            defaults[name] = keys[name].check(name, value)
    trunk = spec.get("trunk")
    terms = [family]
    if trunk != (held or {}).get("trunk"):
        terms.append("trunk=none" if trunk is None else f"trunk=({label(trunk, {**(held or {}), 'trunk': None})})")
    for name, value in flatten({key: value for key, value in spec.items() if key not in ("family", "trunk")}):
        if not _has_no_effect(spec, name) and (name in searched or name not in defaults or defaults[name] != value):
            terms.append(f"{name}={'none' if value is None else format_value(value)}")
    return " ".join(terms)


def _has_no_effect(spec: Mapping[str, Any], name: str) -> bool:
    """Whether a parameter has no effect because the schedule has no ``steps``, without which a branch is its trunk."""
    if spec.get("steps") != [] or name == "steps":
        return False
    return spec.get("trunk") is not None or (name in AT_RESTARTS and not isinstance(spec[name], list))


def text_params(spec: Mapping[str, Any]) -> dict[str, str]:
    """Every parameter of a schedule as text, by its name, for the params of a run in MLflow.

    Numbers and lists are written as JSON, so that a YAML reader restores them. The keys of a nested parameter are
    joined with dots.

    >>> text_params({"family": "cawb", "steps": [20, 40], "horizon": None, "groups": {"bias": {"lr": 0.1}}})
    {'family': 'cawb', 'steps': '[20, 40]', 'horizon': 'null', 'groups.bias.lr': '0.1'}
    """
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in flatten(spec)}


def flatten(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings: their keys, joined with dots behind ``above``, and their values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def format_value(value: Any) -> str:
    """A value as text for a table cell: four significant digits, no quotes, ``-`` for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(format_value(item) for item in value) + "]"
    return str(value)
