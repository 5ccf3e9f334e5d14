"""A schedule as plain data: its parameters checked and completed, and its name for tables, charts and MLflow."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sweeper.errors import ScheduleError
from sweeper.schedules import branch
from sweeper.schedules.checks import IDLE
from sweeper.schedules.controls import CONTROLS
from sweeper.schedules.decay import did_you_mean
from sweeper.schedules.families import FAMILIES

MAIN = "main"
MAX_GROUPS = 64


def with_lr(spec: Mapping[str, Any], lr: object) -> dict[str, Any]:
    """``spec`` with ``lr`` where neither it nor a trunk below it names one."""
    if "lr" in spec:
        return dict(spec)
    below = spec.get("trunk")
    if below is None:
        return {**spec, "lr": lr}
    return {**spec, "trunk": with_lr({"family": below} if isinstance(below, str) else below, lr)}


def groups_of(name: str, given: dict[str, Any], groups: object) -> dict[str, dict[str, Any]]:
    """The overrides by group as given; a list of base LRs is taken apart (``given`` keeps the first)."""
    if groups is None:
        groups = {}
    if not isinstance(groups, Mapping) or not all(isinstance(over, Mapping) for over in groups.values()):
        raise ScheduleError(
            f"{name}: groups: {str(groups)[:80]!r} is not allowed; expected for example bias: {{lr: 0.2}}"
        )
    overrides = {str(group): dict(over) for group, over in groups.items()}
    if MAIN in overrides or "" in overrides:
        raise ScheduleError(f"{name}: groups: {MAIN} is what the schedule itself says; expected other groups' names")
    lr = given.get("lr")
    if isinstance(lr, list | tuple):
        if not lr:
            raise ScheduleError(f"{name}: lr: [] is empty; expected one base LR per parameter group")
        given["lr"] = lr[0]
        for index, base in enumerate(lr[1:], start=1):
            overrides.setdefault(str(index), {}).setdefault("lr", base)
    if len(overrides) > MAX_GROUPS:
        raise ScheduleError(f"{name}: groups: {len(overrides)} are too many; expected at most {MAX_GROUPS}")
    return overrides


def checked(
    what: str, given: Mapping[str, Any], family: str | None = None, *, branches: bool = False
) -> dict[str, Any]:
    """Every parameter of the family, or of a branch of it, checked, in the family's order, defaults written out."""
    name = family or what
    keys = branch.keys(name, given) if branches else FAMILIES[name].keys(given)
    for key in given:
        if key not in keys:
            if key == "from":
                raise ScheduleError(f"{what}: from: says where a branch begins; expected trunk: beside it")
            known = [*keys, "groups", "trunk"]
            raise ScheduleError(
                f"{what}: {str(key)[:80]} is not a parameter; known are {', '.join(known)}" + did_you_mean(key, known)
            )
    params: dict[str, Any] = {}
    for name, rule in keys.items():
        if name in given:
            value = rule.check(f"{what}: {name}", given[name])
        elif rule.required:
            raise ScheduleError(f"{what}: {name} is missing; it has no default")
        else:
            value = rule.default
        if value is not IDLE:
            params[name] = value
    return params


#: What acts at restarts only, and so does nothing in a schedule without any.
AT_RESTARTS = ("step_scale", "epoch_scale")


def label(spec: Mapping[str, Any], held: Mapping[str, Any] | None = None, searched: Collection[str] = ()) -> str:
    """The family of a schedule and those of its parameters that tell what it is: ``cawb steps=[20] step_scale=1``.

    A parameter at its family's default is left out, and so is one that does nothing. ``held``: values, as a sweep file
    writes them, that all compared schedules have and that therefore need no mention. ``searched``: parameters that are
    shown at their default, too, because other schedules differ in them.

    >>> cawb = {"family": "cawb", "lr": 0.02, "steps": [20], "step_scale": 1.0, "epoch_scale": 1.0, "decay": "cosine"}
    >>> label(cawb), label(cawb, {"lr": "2e-2"}, ["decay"])
    ('cawb lr=0.02 steps=[20] step_scale=1', 'cawb steps=[20] step_scale=1 decay=cosine')
    >>> label({**cawb, "steps": []}, {"lr": 0.02}, ["steps", "step_scale"])
    'cawb steps=[]'
    >>> label({"family": "counterfactual", "of": cawb, "restart": 2}, {"lr": 0.02})
    'counterfactual of (cawb steps=[20] step_scale=1) restart=2'
    >>> label({"family": "cosine", "trunk": {"family": "yolo_linear", "lr": 0.1}, "from": "20ep"}, {"lr": 0.1})
    'cosine trunk=(yolo_linear) from=20ep'
    """
    family = str(spec.get("family"))
    if family in CONTROLS:
        return f"{family} of ({label(spec['of'], held, searched)}) restart={spec['restart']}"
    keys = FAMILIES[family].keys(spec) if family in FAMILIES else {}
    unsaid = {name: key.default for name, key in keys.items()}
    for name, value in (held or {}).items():
        if name in keys:
            unsaid[name] = keys[name].check(name, value)
    trunk = spec.get("trunk")
    words = [family]
    if trunk != (held or {}).get("trunk"):
        words.append("trunk=none" if trunk is None else f"trunk=({label(trunk, {**(held or {}), 'trunk': None})})")
    for name, value in flat({key: value for key, value in spec.items() if key not in ("family", "trunk")}):
        if not _idle(spec, name) and (name in searched or name not in unsaid or unsaid[name] != value):
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
