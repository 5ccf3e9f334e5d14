"""Schedules in words: a label for a table, the parameters as text, and what each of these words means."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from sweeper.schedules.families import FAMILIES
from sweeper.schedules.trace import CONTROLS

#: What acts at restarts only, and so does nothing in a schedule without any.
AT_RESTARTS = ("step_scale", "epoch_scale")

#: What the families, the control runs and the parameters are. A peak, a decay and a floor are those of a cycle.
MEANINGS = {
    "cawb": "cosine annealing with warm booting, a decay that begins anew at the epochs `steps`",
    "cosine": "one cosine from its peak to eta_min",
    "warm_restarts": "a cosine again and again, each T_mult times as long and step_scale times as high as the last",
    "multistep": "stairs, times gamma at each of the boundaries",
    "yolo_linear": "what `yolo train` does by default, a straight line to 1 % of lr0",
    "yolo_cosine": "the same as a cosine (`cos_lr`)",
    "onecycle": "up to its peak until the share pct_start of the run, then down",
    "wsd": "held, then a decay over the last decay_length",
    "polynomial": "(1 - the share of the run)^power",
    "exponential": "times gamma in each epoch",
    "constant": "the same learning rate in every step",
    "counterfactual": "the run without that restart",
    "matched_peak": "one decay from the learning rate of that restart, without the restart",
    "lr": "the base learning rate, lr0 in a sweep: the highest one unless a scale is above 1",
    "steps": "the epochs at which the learning rate jumps and a new decay begins",
    "step_scale": "the height of each new peak, times the one before (the first is lr)",
    "epoch_scale": "the length that a decay is made for, times that of its cycle",
    "horizon": "where a decay is heading, a length or `end` (of the run), by default the next jump",
    "decay": "how it falls, by a name such as cosine or by arithmetic in x (epochs since it began) and y (its length)",
    "floor": "where a decay ends, as a share of its peak",
    "power": "the exponent of a cosine or polynomial decay, which above 1 falls faster at first",
    "mode": "`clean` is CAWB as its article says, `article` as its figure is drawn, `reference` as its code does",
    "last_epoch": "the epoch at which CAWB's own code goes on after an interruption",
    "warmup": "the length of the rise to the first peak",
    "warmup_start": "where that rise begins, as a share of lr",
    "warmup_kind": "`lr`: all rise alike, `trainer`: the biases fall and the momentum rises, as in `yolo train`",
    "warmup_bias_lr": "where the learning rate of the biases begins",
    "warmup_momentum": "where the momentum begins",
    "momentum": "the momentum after the warm-up",
    "granularity": "whether the learning rate changes with each step, or with each epoch",
    "T_max": "the length of the cosine, beyond which the learning rate rises again",
    "T_0": "the length of the first cycle",
    "T_mult": "the length of each cycle, times the one before",
    "eta_min": "the lowest learning rate",
    "boundaries": "where the stairs are",
    "gamma": "the factor of each stair, or of each epoch",
    "lrf": "the last learning rate, as a share of lr",
    "pct_start": "the share of the run at which the peak is",
    "anneal": "the form of the way up and down: cos or linear",
    "div_factor": "lr over the first learning rate",
    "final_div_factor": "the first learning rate over the last",
    "three_phase": "whether the way down is as long as the way up, and a third one leads to the end",
    "base_momentum": "the momentum at the peak",
    "max_momentum": "the momentum at begin and end",
    "decay_length": "the length of the decay at the end",
    "total_iters": "the length of the decay",
    "groups": "what parameter groups have instead, by their names",
    "trunk": "the schedule that it is up to its first jump",
    "from": "the epoch at which it leaves its trunk",
}


def legend(labels: Iterable[str]) -> str:
    """What the families and parameters in these labels mean, in a line; empty where none needs a word."""
    words = {word for label in labels for pair in re.findall(r"(?:^|\()(\w+)|(\w+)=", label) for word in pair}
    return "; ".join(f"{word}: {meaning}" for word, meaning in MEANINGS.items() if word in words)


def label(spec: Mapping[str, Any], held: Mapping[str, Any] | None = None, searched: Collection[str] = ()) -> str:
    """The family of a schedule and those of its parameters that tell what it is: ``cawb steps=[20] step_scale=1``.

    A parameter at its family's default is left out, and so is one that does nothing. ``held``: values, as a sweep file
    writes them, that all compared schedules have and that therefore need no mention. ``searched``: parameters that are
    shown at their default, too, because other schedules differ in them.

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
    words = [family]
    if trunk != (held or {}).get("trunk"):
        words.append("trunk=none" if trunk is None else f"trunk=({label(trunk, {**(held or {}), 'trunk': None})})")
    for name, value in flat({key: value for key, value in spec.items() if key not in ("family", "trunk")}):
        if not _idle(spec, name) and (name in searched or name not in defaults or defaults[name] != value):
            words.append(f"{name}={'none' if value is None else short(value)}")
    return " ".join(words)


def _idle(spec: Mapping[str, Any], name: str) -> bool:
    """Whether a parameter does nothing for want of a restart, which is also where a CAWB branch leaves its trunk."""
    if spec.get("steps") != [] or name == "steps":
        return False
    return spec.get("trunk") is not None or (name in AT_RESTARTS and not isinstance(spec[name], list))


def words(spec: Mapping[str, Any]) -> dict[str, str]:
    """Every parameter of a schedule by its own name, as text that reads back: what a program filters and plots.

    Numbers and lists are written as JSON, which YAML reads, too; what lies below a parameter has a dotted name.

    >>> words({"family": "cawb", "steps": [20, 40], "horizon": None, "groups": {"bias": {"lr": 0.1}}})
    {'family': 'cawb', 'steps': '[20, 40]', 'horizon': 'null', 'groups.bias.lr': '0.1'}
    """
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in flat(spec)}


def flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys joined by dots, with their values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def short(value: Any) -> str:
    """A value in a table cell: no trailing digits, no quotes."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(short(item) for item in value) + "]"
    return str(value)
