"""Reads the mapping of a sweep file, applies ``key=value`` overrides, and turns pydantic's errors into one line.

At the end stand the keys of ``yolo train`` that a sweep file refuses, each with the text of its message.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sweeper.errors import ConfigError, did_you_mean, shorten
from sweeper.reading import MAX_DEPTH, NotYaml, TooMuch, parse_yaml, read_text, why

Scalar = bool | int | float | str
MOST_NAMED = 5  # A message names at most so many keys with further errors.

#: By pydantic's type of error the phrase that follows "expected" in a message.
EXPECTED = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list: [...]",
    "list_type": "a list: [...]",
    "literal_error": "{expected}",
    "too_long": "at most {max_length} entries",
    "finite_number": "a finite number",
    "multiple_of": "a multiple of {multiple_of:g}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    # `name` is the only key with a pattern.
    "string_pattern_mismatch": "at most 64 letters, digits, '.', '_' or '-', the first one a letter or a digit",
}


def one_line(error: ValidationError, model: type[BaseModel]) -> str:
    """The first of the errors of a ``model``, and the keys with further errors, in one line."""
    # A mistyped key comes first, because it may be the reason for which another one is missing.
    errors = sorted(error.errors(), key=lambda each: {"extra_forbidden": 0, "missing": 1}.get(each["type"], 2))
    first, value, path = errors[0], errors[0]["input"], _path(errors[0]).split(".")
    reported = [first]
    if first["type"] == "extra_forbidden":
        text = f"{'.'.join(path)} is not a key here{did_you_mean(path[-1], _keys(model, path[:-1]))}"
    elif first["type"] == "missing":
        reported = [each for each in errors if each["type"] == "missing"]
        verb, wanted = ("is", "a value") if len(reported) == 1 else ("are", "a value for each")
        text = f"{', '.join(map(_path, reported))} {verb} missing; expected {wanted}"
    else:
        # If a key allows several types, pydantic reports an error for each of them.
        union = [each for each in errors if each["loc"][:-1] == first["loc"][:-1] and each["input"] is value]
        if len(union) > 1:
            reported, path = union, path[:-1]
        expected = [phrase for each in reported if (phrase := _expected(model, each, path)) is not None]
        problem = f"{shorten(value)} is not allowed; expected {' or '.join(expected)}" if expected else _message(first)
        text = f"{'.'.join(path)}: {problem}" if first["loc"] else problem
    others = list(dict.fromkeys(_path(each).partition(".")[0] for each in errors if each not in reported))
    more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
    return text + (f"; also wrong: {', '.join(others[:MOST_NAMED])}{more}" if others else "")


def _path(error: Any) -> str:
    """The path, in a sweep file, of the key with this error."""
    return ".".join(str(part) for part in error["loc"] if part != "recipe")


def _expected(model: type[BaseModel], error: Any, path: Sequence[str]) -> str | None:
    """The phrase that follows "expected" for an error of pydantic's own; None for one with a message of ours."""
    if error["type"] in EXPECTED:
        return EXPECTED[error["type"]].format(**error.get("ctx", {}))
    if error["type"] in ("model_type", "dict_type"):
        return f"a mapping with {', '.join(keys)}" if (keys := _keys(model, path)) else "a mapping"
    return None


def _message(error: Any) -> str:
    """The message of an error, behind the value unless the message has it already."""
    message: str = error["msg"].removeprefix("Value error, ")
    value = shorten(error["input"])
    if message.startswith("is ") or (isinstance(error["input"], Scalar) and value not in message):
        return f"{value} {message[0].lower()}{message[1:]}"
    return message


def _keys(model: Any, path: Sequence[str]) -> list[str]:
    """The keys of the mapping at ``path`` in a sweep file; empty if they are not fixed."""
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return list(getattr(model, "model_fields", {}))


def read(path: Path) -> dict[str, Any]:
    """The mapping in a sweep file. Raises ConfigError, in one line."""
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
            f"{path}: holds {shorten(written)}; expected a mapping of keys to values ('sweeper init' writes one)"
        )
    return written


def override(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set each ``key=value`` in ``tree``; dots separate the keys of nested mappings. Raises ConfigError.

    A value is read as YAML. If it is not valid YAML, it is taken as a text.
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
    """Set ``key``, whose dots separate nested keys, to ``value``. Raises ConfigError."""
    *parents, last = key.split(".")
    if len(parents) >= MAX_DEPTH:
        raise ConfigError(f"{key[:80]}...: goes {len(parents)} keys deep; expected at most {MAX_DEPTH}")
    for depth, parent in enumerate(parents, start=1):
        inner = tree.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{key}={shorten(value)}: {parent} is {shorten(inner)}, which is not a mapping; expected "
                f"{'.'.join(parents[:depth])}=VALUE"
            )
        tree = inner
    tree[last] = value


_DETECTION = "belongs to another task, and only detectors are trained here; leave it out"
_AFTERWARDS = (
    "is a setting of 'yolo predict', 'yolo val', 'yolo track' or 'yolo export', not of a training; leave it out"
)
_VALIDATION = (
    "is fixed, so that the mAP of all trials is comparable (Ultralytics' own values for validation); leave it out"
)
_OUTPUT = "has no effect here: 'sweeper ui' and 'sweeper report' show what a trial did; leave it out"
_SPEED = "is not supported: it changes the bits of a training, but prefix keys do not include it; leave it out"
_WARMUP = "is a parameter of the schedule: write {value} in a baseline such as {{family: yolo_linear, {value}}}"

#: Keys of ``yolo train`` that a sweep file refuses, each with the text that follows the key in the message.
ELSEWHERE: Mapping[str, str] = {
    # the learning rate
    "lrf": (
        "is a parameter of the schedule: write lrf: 0.01 in a baseline, {family: yolo_linear, lrf: 0.01}, "
        "or floor: 0.01 under search:"
    ),
    "cos_lr": "is a schedule of its own: write yolo_cosine under baselines:, or decay: cosine under search:",
    "warmup_epochs": (
        "is a parameter of the schedule: write warmup: 3ep under search:, or in a baseline such as "
        "{family: yolo_linear, warmup: 3ep}"
    ),
    "warmup_momentum": _WARMUP.format(value="warmup_momentum: 0.8"),
    "warmup_bias_lr": _WARMUP.format(value="warmup_bias_lr: 0.1"),
    # the length of a run
    "patience": (
        "is not supported: it would stop a run in the dip after a restart; write pruner: cycle_end, which stops a bad "
        "trial at the end of a cycle, or dead_after: 50, which stops one whose mAP stays 0"
    ),
    "time": "is not supported: a schedule depends on the length of the run; write epochs",
    "resume": "is not needed: the same command resumes the sweep; leave it out",
    "close_mosaic": (
        "counts from the end, so that a longer run would begin otherwise; write mosaic_epochs, which counts from the "
        "start: mosaic_epochs: 90 for close_mosaic=10 of 100 epochs"
    ),
    # data
    "cache": (
        "is called cache_mb here: megabytes of decoded images in memory, by default a quarter of a worker's, 0 for none"
    ),
    "classes": "is not supported: the data set defines the classes; remove the others from its labels",
    # the model
    "pretrained": "follows from model: yolo11n.yaml starts untrained, yolo11n.pt from these weights; leave it out",
    "cls_remap": "is always on: a class of the same name keeps its weights; leave it out",
    "quantize": "is not supported: trainings are in float32, or with amp: true in mixed precision; leave it out",
    **dict.fromkeys(("distill_model", "dis"), "is not supported: a trial trains without a teacher model; leave it out"),
    **dict.fromkeys(("compile", "channels_last"), _SPEED),
    "cls_pw": "is not supported: all classes have the same weight; leave it out",
    # output
    "project": (
        "is not a key of a sweep: write sweeper run SWEEP --store FOLDER, or set the variable SWEEPER_STORE; the runs "
        "have the sweep's name"
    ),
    "exist_ok": "is not needed: the same sweep is resumed, and a changed one needs a new name; leave it out",
    "cfg": "is the sweep file itself; write its keys there",
    **dict.fromkeys(("mode", "task"), "is always the training of a detector; leave it out"),
    "save": "is called weights here: all or none",
    "save_period": "is not needed: the exact state after every epoch is stored, up to store_gb; leave it out",
    "val": "is always on: every epoch is evaluated, because the sweep compares the curves; leave it out",
    "split": "is not supported: trials are compared on val; name other images under val: in the data.yaml",
    "save_json": "is replaced by objective: AP, or by coco_epochs: 10 for COCO's metrics beside another objective",
    **dict.fromkeys(("plots", "verbose", "profile"), _OUTPUT),
    **dict.fromkeys(("conf", "iou", "max_det", "agnostic_nms", "nms"), _VALIDATION),
    **dict.fromkeys(("overlap_mask", "mask_ratio", "dropout", "pose", "kobj", "rle", "angle"), _DETECTION),
    **dict.fromkeys(("dlog", "dgrad", "dlam", "copy_paste_mode", "auto_augment", "erasing"), _DETECTION),
    **dict.fromkeys(("dnn", "source", "vid_stride", "stream_buffer", "visualize", "augment"), _AFTERWARDS),
    **dict.fromkeys(("retina_masks", "embed", "show", "save_frames", "save_txt", "save_conf"), _AFTERWARDS),
    **dict.fromkeys(("save_crop", "show_labels", "show_conf", "show_boxes", "line_width"), _AFTERWARDS),
    **dict.fromkeys(("format", "optimize", "dynamic", "simplify", "opset", "workspace", "tracker"), _AFTERWARDS),
}
