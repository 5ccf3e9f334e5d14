"""YAML as people mean it, and errors in one line."""

import re
from pathlib import Path
from typing import Any

import yaml

from sweeper.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: ``1e-3`` is a number, and a key written twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
_Loader.yaml_implicit_resolvers = {
    first: sorted(rules, key=lambda rule: rule[0] != "tag:yaml.org,2002:int")
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}


def _mapping_without_twins(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_twins)


def parse_value(text: str) -> Any:
    """A value as the command line writes it (``key=value``), read as YAML: ``[31, 81]``, ``1e-3``, ``cosine``."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; ConfigError in one line where it does not."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise ConfigError(f"{path}: {reason}; expected a sweep file ('sweeper init' writes one)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}:{line} is not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: holds {type(found).__name__}, expected a mapping of keys ('sweeper init' writes one)"
        )
    return found
