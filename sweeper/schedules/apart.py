"""What tells schedules apart, in the fewest words: for tables that show only what differs."""

from collections.abc import Mapping, Sequence
from typing import Any


def differing(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all of ``specs``, in the order in which they first appear.

    >>> differing([{"family": "cawb", "lr": 0.1, "steps": [3]}, {"family": "cawb", "lr": 0.1, "steps": [4]}])
    ['steps']
    """
    keys = list(dict.fromkeys(key for spec in specs for key in spec))
    return [key for key in keys if len({repr(spec.get(key)) for spec in specs}) > 1]


def told_apart(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each spec, what tells it from the others of its family: ``steps=[3] decay=linear``.

    >>> told_apart([{"family": "cawb", "steps": [3]}, {"family": "cawb", "steps": [4]}, {"family": "cosine"}])
    ['steps=[3]', 'steps=[4]', '']
    """
    keys = differing_by_family(specs)
    return [
        " ".join(f"{key}={short(spec[key])}" for key in keys[spec.get("family")] if spec.get(key) is not None)
        for spec in specs
    ]


def differing_by_family(specs: Sequence[Mapping[str, Any]]) -> dict[Any, list[str]]:
    """family -> the keys that tell its specs from each other."""
    families = dict.fromkeys(spec.get("family") for spec in specs)
    return {name: differing([spec for spec in specs if spec.get("family") == name]) for name in families}


def short(value: Any) -> str:
    """A value in a table cell: no trailing digits, no quotes; of a schedule (a trunk) its family.

    >>> short([0.10000001, "end"]), short({"family": "yolo_linear", "lr": 0.1})
    ('[0.1,end]', 'yolo_linear')
    """
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(short(item) for item in value) + "]"
    if isinstance(value, Mapping) and "family" in value:
        return str(value["family"])
    return str(value)
