"""Each key of ``yolo train`` is taken with its meaning, taken with a difference that is named, or refused in a line."""

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
    "optimizer": "has no auto, which ignores the learning rate it is given; SGD by default",
    "amp": "is auto by default, on for CUDA and off on a CPU; there is no bf16",
    "workers": "are trainings at one time on this machine; Ultralytics' loader processes are loader_workers",
    "device": "has one training on each GPU that it names, not one training on all of them",
    "name": "names the sweep, its study and its experiment in MLflow",
    "data": "may also be a folder in COCO layout, or digits; nothing is downloaded",
    "model": "may also be one of torchvision's detectors; only detectors, YOLO's and RT-DETR",
    "batch": "is a number of images; there is no search for one that fits",
    "imgsz": "is one number, a multiple of 32; it is not rounded",
    "lr0": "is the base of every schedule that names no lr",
    "epochs": "is at most 100000 and part of every schedule",
    "fraction": "takes a share or a number of the training images, in the order of their paths; no list",
    "freeze": "takes layers by number, not by name",
    "multi_scale": "is drawn for each batch from its number, so that a resumed run has the same sizes",
    "scale": "is one number",
    "mosaic": "is on in all epochs; mosaic_epochs: 90 turns it off after the first 90, Ultralytics before the last 10",
}


def page() -> str:
    """docs/keys.md, as the code says it."""
    same = ", ".join(f"`{key}`" for key in DEFAULT_CFG_DICT if key in TAKEN and key not in DIFFERENT)
    by_sentence: dict[str, list[str]] = {}
    for key, sentence in ELSEWHERE.items():
        by_sentence.setdefault(sentence, []).append(f"`{key}`")
    lines = [
        "# The keys of `yolo train`",
        "",
        "A sweep file takes the recipe of a training by Ultralytics' names. Every key of `yolo train` is taken with",
        "the same meaning, taken with a difference that is named here, or refused in a line that says where its",
        "meaning lives.",
        "",
        f"**Taken with the same meaning:** {same}.",
        "",
        "**Taken, with a difference**",
        "",
        "| key | here |",
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
