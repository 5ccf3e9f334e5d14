"""Each key of ``yolo train`` is accepted with its meaning, accepted with a named difference, or refused in a line."""

from pathlib import Path
from typing import Any

import pytest

from sweeper.config import Recipe, Sweep
from sweeper.config.written import ELSEWHERE
from sweeper.errors import ConfigError
from sweeper.training.parts import SAME_NAMES

# isort: split
from ultralytics.cfg import DEFAULT_CFG_DICT

TAKEN = (set(Sweep.model_fields) | set(Recipe.model_fields)) - {"recipe"}
PAGE = Path(__file__).parents[1] / "docs" / "keys.md"
WRITTEN: dict[str, Any] = {
    "name": "keys",
    "data": "digits",
    "model": "yolo11n.yaml",
    "epochs": 20,
    "lr0": 0.02,
    "trials": 6,
    "search": {"family": "cawb"},
}

#: Keys that a sweep file and ``yolo train`` both have, and what is not the same.
DIFFERENT = {
    "optimizer": "is SGD by default; auto is refused, because it ignores the given learning rate",
    "amp": "is auto by default, which means on for CUDA and off on a CPU; bf16 is refused",
    "workers": "is the number of simultaneous trainings on this machine; for loader processes write loader_workers",
    "device": "runs one training on each GPU that it names, not one training on all of them",
    "name": "names the sweep, its study and its experiment in MLflow",
    "data": "may also be a folder in COCO or Pascal VOC layout, or digits; nothing is downloaded",
    "model": "is a YOLO or RT-DETR detector, or one of torchvision's detectors",
    "batch": "is a number of images; -1, the search for the largest batch, is refused",
    "imgsz": "is one number and must be a multiple of 32; it is not rounded",
    "lr0": "is the base learning rate of every schedule without an lr of its own",
    "epochs": "is at most 100000, and every schedule depends on it",
    "fraction": "is a share or a number of the training images, in the order of their paths; a list is refused",
    "freeze": "names layers by number, not by name",
    "multi_scale": "draws each batch's size from the batch number, so that a resumed run has the same sizes",
    "scale": "is one number; a list is refused",
    "mosaic": "is on in all epochs; mosaic_epochs: 90 turns it off after epoch 90 (Ultralytics: before the last 10)",
}


def page() -> str:
    """The text of docs/keys.md, made from the keys in the code."""
    same = ", ".join(f"`{key}`" for key in DEFAULT_CFG_DICT if key in TAKEN and key not in DIFFERENT)
    by_sentence: dict[str, list[str]] = {}
    for key, sentence in ELSEWHERE.items():
        by_sentence.setdefault(sentence, []).append(f"`{key}`")
    lines = [
        "# The keys of `yolo train`",
        "",
        "A sweep file has Ultralytics' names for everything that determines a training. Each key of `yolo train` is",
        "either accepted with the same meaning, accepted with a difference, or refused with a line that says what to",
        "write instead.",
        "",
        f"**Accepted with the same meaning:** {same}.",
        "",
        "**Accepted with a difference**",
        "",
        "| key | in a sweep file |",
        "|---|---|",
        *(f"| `{key}` | {difference} |" for key, difference in DIFFERENT.items()),
        "",
        "**Refused**",
        "",
        "| key | what the message says |",
        "|---|---|",
        *(f"| {', '.join(keys)} | {sentence} |" for sentence, keys in by_sentence.items()),
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("key", DEFAULT_CFG_DICT)
def test_every_key_of_yolo_train_is_taken_or_refused_in_a_line(key: str) -> None:
    if key in TAKEN:
        assert key not in ELSEWHERE
        return
    with pytest.raises(ConfigError) as caught:
        Sweep.build({**WRITTEN, key: DEFAULT_CFG_DICT[key]}, "sweep.yaml")
    message = str(caught.value)
    assert message == f"sweep.yaml: {key}: {ELSEWHERE[key]}"
    assert "\n" not in message
    assert "did you mean" not in message


def test_what_is_taken_with_the_same_meaning_has_ultralytics_default_and_reaches_its_trainer() -> None:
    defaults = Sweep.defaults()
    same = [key for key in DEFAULT_CFG_DICT if key in TAKEN and key not in DIFFERENT]
    assert {key: defaults[key] for key in same} == {key: DEFAULT_CFG_DICT[key] for key in same}
    assert set(same) <= set(SAME_NAMES)
    assert {key for key in DIFFERENT if key not in TAKEN or key not in DEFAULT_CFG_DICT} == set()


def test_what_the_lines_recommend_is_taken() -> None:
    more = {
        "baselines": [
            {"family": "yolo_linear", "lrf": 0.01, "warmup": "3ep", "warmup_momentum": 0.8, "warmup_bias_lr": 0.1},
            "yolo_cosine",
        ],
        "search": {"family": "cawb", "decay": "cosine", "floor": 0.01, "warmup": "3ep"},
        "pruner": "cycle_end",
        "dead_after": 10,
        "mosaic_epochs": 18,
        "cache_mb": 0,
        "weights": "none",
        "objective": "AP",
        "coco_epochs": 10,
        "loader_workers": 2,
        "amp": True,
        "store_gb": 5,
    }
    assert Sweep.build({**WRITTEN, **more}).recipe.loader_workers == 2


def test_the_page_of_keys_says_what_the_code_does() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
