"""A sweep as it is written: the mapping in a file, and what ``key=value`` puts into it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeper.errors import ConfigError, shorten
from sweeper.reading import MAX_DEPTH, NotYaml, TooMuch, parse_yaml, read_text, why


def read(path: Path) -> dict[str, Any]:
    """The mapping in a sweep file; ConfigError in one line where there is none."""
    try:
        found = parse_yaml(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {why(error)}; expected a sweep file ('sweeper init' writes one)") from None
    except TooMuch as error:
        raise ConfigError(f"{path}: {error}") from None
    except NotYaml as error:
        line, _, problem = str(error).partition(": ")
        raise ConfigError(f"{path}: {line} is not YAML: {problem}") from None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: holds {type(found).__name__}, expected a mapping of keys ('sweeper init' writes one)"
        )
    return found


def _value(key: str, text: str) -> Any:
    """A value as the command line writes it (``key=value``), read as YAML; what is no YAML is a text."""
    try:
        return parse_yaml(text)
    except TooMuch as error:
        raise ConfigError(f"{key[:80]}: the value {str(error).partition(': ')[2]}") from None
    except NotYaml:
        return text


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    if len(parents) >= MAX_DEPTH:
        raise ConfigError(f"{key[:80]}...: goes {len(parents)} keys deep; expected at most {MAX_DEPTH}")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            shown = f"{key}={shorten(value)}"
            raise ConfigError(f"{shown}: {parent} is {shorten(below)}, which has nothing below it")
        tree = below
    tree[last] = value


def override(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put each ``key=value`` into ``tree``; dots go deeper. Raises ConfigError for what is no override."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{shorten(text)} is not an override; expected key=value, for example epochs=20")
        _put(tree, key.strip(), _value(key, value))
