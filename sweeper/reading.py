"""Reads files and YAML that come from outside, within limits on file size, nesting depth and number of values.

A device, a pipe or an endless file is refused before a byte of it is read. Errors are OSError or ValueError, with a
text that can follow the file's name in a message.
"""

import errno
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

MAX_YAML = 1_000_000  # bytes of a sweep file, a schedule or a data.yaml
MAX_TEXT = 100_000_000  # bytes of a label file or a list of images
MAX_JSON = 4_000_000_000  # bytes of COCO annotations; COCO's own have 0.5 GB
MAX_IMAGE = 1_000_000_000  # bytes of an image file
MAX_DEPTH = 32  # levels of nested lists and mappings; a sweep file needs 8
MAX_NODES = 100_000  # values of a YAML text; the values below an alias count each time that it is used
MAX_DIGITS = 400  # characters of a number; the largest float has 309 digits


class NotYaml(ValueError):
    """A text is not valid YAML. The message begins with the line number."""


class TooMuch(NotYaml):
    """A text is YAML, but nested too deeply or too large."""


def check_file(path: Path, max_bytes: int) -> None:
    """Raise OSError with the reason, unless ``path`` is a regular file of at most ``max_bytes`` bytes."""
    try:
        status = path.stat()
    except ValueError:  # the path contains a NUL character
        raise OSError(errno.EINVAL, "is not a path", str(path)) from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is a device, a pipe or a socket", str(path))
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"has {status.st_size} bytes; expected at most {max_bytes}", str(path))


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file of at most ``max_bytes`` bytes. Raises OSError with the reason."""
    check_file(path, max_bytes)
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:  # The file grows, or it is one of the kernel's, whose size is given as 0.
        raise OSError(errno.EFBIG, f"has more than {max_bytes} bytes; expected at most {max_bytes}", str(path))
    return content


def read_text(path: Path, max_bytes: int = MAX_YAML) -> str:
    """The text of a UTF-8 file of at most ``max_bytes`` bytes, without a byte-order mark.

    Raises OSError with the reason, or UnicodeDecodeError.
    """
    return read_bytes(path, max_bytes).decode("utf-8-sig")


def why(error: OSError | UnicodeDecodeError) -> str:
    """The reason of an error of ``read_bytes`` or ``read_text``, without error number and path."""
    if isinstance(error, UnicodeDecodeError):
        return "is not text"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (error.strerror or str(error)) if isinstance(error.strerror, str) else os.strerror(error.errno or 0)


class _Loader(yaml.SafeLoader):
    """Reads YAML as users expect it: ``1e-3`` is a number, a date is a text, and a repeated key is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._size = 0
        self._sizes: dict[int, int] = {}  # id of a node -> number of values in it, with those of its aliases

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """PyYAML's method with limits on depth and number of values. An alias inside its own anchor is refused."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TooMuch(f"line {mark.line + 1}: is nested too deeply; expected at most {MAX_DEPTH} levels")
        alias, before = self.check_event(yaml.AliasEvent), self._size
        node = super().compose_node(parent, index)
        if alias:
            if id(node) not in self._sizes:
                raise NotYaml(f"line {mark.line + 1}: an alias stands inside its own anchor")
            self._size += self._sizes[id(node)]
        else:
            self._size += 1
            self._sizes[id(node)] = self._size - before
        if self._size > MAX_NODES:
            raise TooMuch(f"line {mark.line + 1}: holds too much; expected at most {MAX_NODES} values")
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """PyYAML's method; a value that cannot be converted is an error with its line number."""
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
            raise NotYaml(f"line {node.start_mark.line + 1}: a number of {len(node.value)} characters is too long")
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            if isinstance(error, NotYaml):
                raise
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            shown = repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "this"
            raise NotYaml(f"line {node.start_mark.line + 1}: {shown} is not a value of type {kind}") from None


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _mapping_of_distinct_keys(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise NotYaml(f"line {line}: a list or a mapping cannot be a key")
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise NotYaml(f"line {line}: key {str(key)[:40]!r} stands twice")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_of_distinct_keys)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises NotYaml with the line number, TooMuch if it is too deep or too large."""
    if len(text) > MAX_YAML:
        raise TooMuch(f"line 1: has {len(text)} characters; expected at most {MAX_YAML}")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark else "line 1"
        problem = getattr(error, "problem", None) or str(error)
        raise NotYaml(f"{line}: {' '.join(str(problem).split())[:200]}") from None
