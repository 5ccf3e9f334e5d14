"""A sweep as it is written: the mapping in a file, what ``key=value`` puts into it, and what is wrong in one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sweeper.errors import ConfigError, did_you_mean, shorten
from sweeper.reading import MAX_DEPTH, NotYaml, TooMuch, parse_yaml, read_text, why

Scalar = bool | int | float | str
NAMED = 5  # keys of further errors that a message names

#: What pydantic finds, by its type of error, in words that can stand behind the value.
WORDS = {
    "int_parsing": "is not a whole number",
    "int_from_float": "is not a whole number",
    "int_type": "is not a whole number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "bool_parsing": "is not true or false",
    "bool_type": "is not true or false",
    "string_type": "is not a text",
    "tuple_type": "is not a list; write [...]",
    "list_type": "is not a list; write [...]",
    "literal_error": "is not {expected}",
    "too_long": "has more than {max_length} entries",
    "finite_number": "is not a finite number",
    "multiple_of": "is not a multiple of {multiple_of:g}",
    "greater_than": "is not above {gt:g}",
    "greater_than_equal": "is below {ge:g}",
    "less_than": "is not below {lt:g}",
    "less_than_equal": "is above {le:g}",
    "string_pattern_mismatch": "does not match {pattern}",
}


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong with a ``model``: the first thing that is wrong, in words, and what else is."""
    # a mistyped key comes first, because it may be why another one is missing
    errors = sorted(error.errors(), key=lambda each: {"extra_forbidden": 0, "missing": 1}.get(each["type"], 2))
    first, value, path = errors[0], errors[0]["input"], _place(errors[0]).split(".")
    if first["type"] == "extra_forbidden":
        text, count = f"{'.'.join(path)} is not a key here{did_you_mean(path[-1], _keys(model, path[:-1]))}", 1
    elif first["type"] == "missing":
        missing = [_place(each) for each in errors if each["type"] == "missing"]
        verb, wanted = ("is", "a value") if len(missing) == 1 else ("are", "a value for each")
        text, count = f"{', '.join(missing)} {verb} missing; expected {wanted}", len(missing)
    else:
        # where several types are allowed, pydantic reports an error for each of them
        union = [each for each in errors if each["loc"][:-1] == first["loc"][:-1] and each["input"] is value]
        count = len(union)
        if count > 1:
            words = " and ".join(_words(model, each, path[:-1]) for each in union)
            text = f"{'.'.join(path[:-1])}: {shorten(value)} {words}"
            errors = union + [each for each in errors if each not in union]
        else:
            words = _words(model, first, path)
            shown = f"{shorten(value)} " if _is_shown(value, words) else ""
            text = f"{'.'.join(path)}: {shown}{words}" if first["loc"] else words
    others = list(dict.fromkeys(_place(each).partition(".")[0] for each in errors[count:]))
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return text + (f"; also wrong: {', '.join(others[:NAMED])}{more}" if others else "")


def _place(error: Any) -> str:
    """Where in a sweep file a thing is wrong."""
    return ".".join(str(part) for part in error["loc"] if part != "recipe")


def _words(model: type[BaseModel], error: Any, path: Sequence[str]) -> str:
    """What is wrong with a value, to stand behind it."""
    if error["type"] in WORDS:
        return WORDS[error["type"]].format(**error.get("ctx", {}))
    if error["type"] in ("model_type", "dict_type"):
        return f"is not a mapping; expected {', '.join(_keys(model, path)) or 'keys and values'}"
    message: str = error["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:] if _is_shown(error["input"], message) else message


def _is_shown(value: Any, message: str) -> bool:
    return (isinstance(value, Scalar) and shorten(value) not in message) or message.startswith(("is ", "does not "))


def _keys(model: Any, path: Sequence[str]) -> list[str]:
    """The keys that may stand below this one in a sweep file; none where they are not fixed."""
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return list(getattr(model, "model_fields", {}))


def read(path: Path) -> dict[str, Any]:
    """The mapping in a sweep file; ConfigError in one line where there is none."""
    try:
        written = parse_yaml(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {why(error)}; expected a sweep file ('sweeper init' writes one)") from None
    except TooMuch as error:
        raise ConfigError(f"{path}: {error}") from None
    except NotYaml as error:
        line, _, problem = str(error).partition(": ")
        raise ConfigError(f"{path}: {line} is not YAML: {problem}") from None
    if not isinstance(written, dict):
        raise ConfigError(
            f"{path}: holds {type(written).__name__}, expected a mapping of keys ('sweeper init' writes one)"
        )
    return written


def override(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put each ``key=value`` into ``tree``; dots go deeper. Raises ConfigError for what is no override.

    A value is read as YAML; what is no YAML is a text.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"{shorten(text)} is not an override; expected key=value, for example epochs=20")
        try:
            parsed = parse_yaml(value)
        except TooMuch as error:
            raise ConfigError(f"{key[:80]}: the value {str(error).partition(': ')[2]}") from None
        except NotYaml:
            parsed = value
        _put(tree, key.strip(), parsed)


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
