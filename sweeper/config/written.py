"""A sweep as it is written: the mapping in a file, what ``key=value`` puts into it, and what is wrong in one line.

The last part are the keys of ``yolo train`` that a sweep file refuses, and where their meaning lives.
"""

from collections.abc import Mapping, Sequence
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
    reported = [first]
    if first["type"] == "extra_forbidden":
        text = f"{'.'.join(path)} is not a key here{did_you_mean(path[-1], _keys(model, path[:-1]))}"
    elif first["type"] == "missing":
        reported = [each for each in errors if each["type"] == "missing"]
        verb, wanted = ("is", "a value") if len(reported) == 1 else ("are", "a value for each")
        text = f"{', '.join(map(_place, reported))} {verb} missing; expected {wanted}"
    else:
        # where several types are allowed, pydantic reports an error for each of them
        union = [each for each in errors if each["loc"][:-1] == first["loc"][:-1] and each["input"] is value]
        if len(union) > 1:
            reported, path = union, path[:-1]
        words = " and ".join(_words(model, each, path) for each in reported)
        shown = f"{shorten(value)} " if len(union) > 1 or _is_shown(value, words) else ""
        text = f"{'.'.join(path)}: {shown}{words}" if first["loc"] else words
    others = list(dict.fromkeys(_place(each).partition(".")[0] for each in errors if each not in reported))
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


_DETECTION = "belongs to another task, and only detectors are trained here; leave it out"
_AFTERWARDS = (
    "is a setting of 'yolo predict', 'yolo val', 'yolo track' or 'yolo export', not of a training; leave it out"
)
_VALIDATION = (
    "is fixed, so that the mAP of all trials is on one scale (Ultralytics' own values for validation); leave it out"
)
_SHOWS = "has no meaning here: what a trial did is in MLflow ('sweeper ui') and in 'sweeper report'; leave it out"
_FASTER = "is not taken: it changes the bits of a training without being part of its name; leave it out"
_WARMUP = "is a parameter of the schedule: write {value} in a baseline such as {{family: yolo_linear, {value}}}"

#: Keys of ``yolo train`` that a sweep file refuses, each with the sentence that follows it in the message.
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
    # how long
    "patience": (
        "is not taken: it stops in the dip after a restart; pruner: cycle_end stops a trial where a cycle ends, "
        "dead_after: 50 one that learned nothing"
    ),
    "time": "is not taken: the length of a run is part of its schedule; write epochs",
    "resume": "is not needed: the same command goes on where it stopped",
    "close_mosaic": (
        "counts from the end, so that a longer run would begin otherwise; write mosaic_epochs, which counts from the "
        "start: mosaic_epochs: 90 for close_mosaic=10 of 100 epochs"
    ),
    # data
    "cache": "is cache_mb here: megabytes of decoded images in memory, by default a quarter of a worker's, 0 for none",
    "classes": "is not taken: the labels belong to the data set; leave the other classes out of its labels",
    # the model
    "pretrained": "is said by model: yolo11n.yaml starts untrained, yolo11n.pt from these weights",
    "cls_remap": "is always on: a class of the same name keeps its weights; leave it out",
    "quantize": "is not taken: trainings are in float32, or with amp: true in mixed precision; leave it out",
    **dict.fromkeys(("distill_model", "dis"), "is of distillation, which is not taken: a trial has one model"),
    **dict.fromkeys(("compile", "channels_last"), _FASTER),
    "cls_pw": "is not taken: classes weigh the same; leave it out",
    # where, and what is kept and shown
    "project": (
        "is the place of everything here, and no key: sweeper run SWEEP --store FOLDER, or the variable SWEEPER_STORE; "
        "name is the sweep's name"
    ),
    "exist_ok": "is not needed: the same sweep goes on, and a changed one needs a new name",
    "cfg": "is the sweep file itself; write its keys there",
    **dict.fromkeys(("mode", "task"), "is always the training of a detector; leave it out"),
    "save": "is weights here: all or none",
    "save_period": "is not needed: the exact state after every epoch is kept, up to store_gb",
    "val": "is not taken: every epoch is evaluated, because the sweep compares the curves; leave it out",
    "split": "is not taken: trials are compared on val; name other images under val: in the data.yaml",
    "save_json": "is objective: AP, or coco_epochs: 10 for COCO's metrics beside another objective",
    **dict.fromkeys(("plots", "verbose", "profile"), _SHOWS),
    **dict.fromkeys(("conf", "iou", "max_det", "agnostic_nms", "nms"), _VALIDATION),
    **dict.fromkeys(("overlap_mask", "mask_ratio", "dropout", "pose", "kobj", "rle", "angle"), _DETECTION),
    **dict.fromkeys(("dlog", "dgrad", "dlam", "copy_paste_mode", "auto_augment", "erasing"), _DETECTION),
    **dict.fromkeys(("dnn", "source", "vid_stride", "stream_buffer", "visualize", "augment"), _AFTERWARDS),
    **dict.fromkeys(("retina_masks", "embed", "show", "save_frames", "save_txt", "save_conf"), _AFTERWARDS),
    **dict.fromkeys(("save_crop", "show_labels", "show_conf", "show_boxes", "line_width"), _AFTERWARDS),
    **dict.fromkeys(("format", "optimize", "dynamic", "simplify", "opset", "workspace", "tracker"), _AFTERWARDS),
}
