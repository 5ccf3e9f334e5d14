"""The parameters of a schedule as given, checked: groups and lists of base LRs taken apart, defaults written out."""

from collections.abc import Mapping
from typing import Any

from sweeper.errors import ScheduleError
from sweeper.schedules import branch
from sweeper.schedules.checks import IDLE
from sweeper.schedules.families import FAMILIES
from sweeper.schedules.shapes import did_you_mean

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
    found = {str(group): dict(over) for group, over in groups.items()}
    if MAIN in found or "" in found:
        raise ScheduleError(f"{name}: groups: {MAIN} is what the schedule itself says; expected other groups' names")
    lr = given.get("lr")
    if isinstance(lr, list | tuple):
        if not lr:
            raise ScheduleError(f"{name}: lr: [] is empty; expected one base LR per parameter group")
        given["lr"] = lr[0]
        for index, base in enumerate(lr[1:], start=1):
            found.setdefault(str(index), {}).setdefault("lr", base)
    if len(found) > MAX_GROUPS:
        raise ScheduleError(f"{name}: groups: {len(found)} are too many; expected at most {MAX_GROUPS}")
    return found


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
