"""The sweep file that a new user starts from, with what fits a data set and a machine, each choice with its reason."""

import json
import os
import re
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from importlib import resources
from math import ceil
from pathlib import Path
from statistics import median

from sweeper import data, fleet, search
from sweeper.config import Sweep, built_in
from sweeper.reading import parse_yaml
from sweeper.schedules import TimeBase
from sweeper.service.racing import expected_seeds
from sweeper.training import loader_workers, memory

WIDTH, COLUMN = 120, 28  # of a line of the file, and where the reasons begin
IMAGE_GB = 0.3  # of memory for training a nano model in float32 on one image of 640x640
TILED = 12  # pixels: the finest grid has cells of 8, so that smaller objects are hardly learned


@dataclass(frozen=True)
class Machine:
    """What there is for training: GPUs, the GB of memory that one training may use, and CPU cores."""

    gpus: int
    memory_gb: float
    cores: int

    @classmethod
    def here(cls) -> "Machine":
        """This machine. On a CPU half of the memory is for the trainings, of which there is one for each core."""
        gigabytes, cores = fleet.gpu_memory_gb(), fleet.cores()
        if gigabytes:
            return cls(len(gigabytes), min(gigabytes), cores)
        return cls(0, memory() / 1e9 / 2 / cores, cores)

    def __str__(self) -> str:
        gpus = f"{_count(self.gpus, 'GPU')} of {self.memory_gb:.0f} GB" if self.gpus else "no GPU"
        return f"{_count(self.cores, 'CPU core')}, {gpus}"


@dataclass(frozen=True)
class Contents:
    """What is in a data set, as far as a recipe depends on it; ``side`` is a share of an image's longer side."""

    train: int
    val: int
    width: int
    height: int
    classes: int
    objects: int
    smallest: str  # the class whose typical object is the smallest one
    side: float  # of that object: the root of its area

    @classmethod
    def of(cls, dataset: data.Dataset) -> "Contents":
        """Of a checked data set: sizes are medians over its training images, and over the objects of each class."""
        truth = json.loads(dataset.ground_truth("train").read_text(encoding="utf-8"))
        sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
        names = {category["id"]: category["name"] for category in truth["categories"]}
        sides = defaultdict(list)
        for box in truth["annotations"]:
            side = (box["bbox"][2] * box["bbox"][3]) ** 0.5
            sides[names[box["category_id"]]].append(side / max(sizes[box["image_id"]]))
        side, smallest = min((median(shares), name) for name, shares in sides.items())
        width, height = (round(median(lengths)) for lengths in zip(*sizes.values(), strict=True))
        return cls(
            dataset.train_images,
            dataset.val_images,
            width,
            height,
            len(dataset.names),
            len(truth["annotations"]),
            smallest,
            side,
        )


def template() -> str:
    """A commented sweep file, valid but for its data."""
    return resources.files("sweeper.service").joinpath("sweep.yaml").read_text(encoding="utf-8")


def suggest(path: str, file: Path, folder: Path, machine: Machine | None = None) -> str:
    """The text of a sweep file, to be written to ``file``, for the data set at ``path`` on a machine (by default this).

    The data set is checked as ``sweeper data check`` does it; ``folder`` is empty, and takes what that needs. Raises
    DataError for a data set that a sweep would refuse.
    """
    machine = machine or Machine.here()
    contents = Contents.of(data.open(path, folder=folder))
    # the article's schedule has a warm-up of its own: it is no branch, and pairs with the trunk tell little of it
    article = r"^  - \{family: cawb, mode: article.*\n"
    text = re.sub(article, "", template(), flags=re.MULTILINE)
    for key, (value, reason) in _choices(path, file, contents, machine).items():
        text = _put(text, key, value, reason)
    head = (
        f"For {_count(contents.train, 'training image')} of {contents.width}x{contents.height} pixels with "
        f"{_count(contents.objects, 'object')} of {_count(contents.classes, 'class', 'classes')}, "
        f"{_count(contents.val, 'validation image')}, and {machine}. What was chosen for these has its reason beside "
        "it; change what you know better."
    )
    sweep = Sweep.build({**parse_yaml(text), "data": path}, str(file))
    for searched in sweep.with_each_trunk():  # what `plan` refuses is not to be written
        search.check(searched, TimeBase.from_images(contents.train, sweep.recipe.batch, epochs=sweep.epochs))
    return textwrap.fill(head, WIDTH, initial_indent="# ", subsequent_indent="# ") + "\n" + text


def _choices(path: str, file: Path, contents: Contents, machine: Machine) -> dict[str, tuple[str, str]]:
    """key -> value and reason, in the order of the decisions: later ones stand on earlier ones."""
    gpu = machine.gpus > 0
    longer = max(contents.width, contents.height)
    enough, most = (32, 1280) if gpu else (16, 640)
    imgsz = _multiple(min(enough / contents.side, longer, most))
    pixels = contents.side * imgsz
    size = f"an object of the smallest class, {contents.smallest}, is then typically {pixels:.0f} pixels wide"
    if imgsz >= longer:
        size = f"the size of the images; {size}"
    elif pixels >= enough:
        size += "; `yolo train` takes 640, which costs more time"
    else:
        size += f"; more than {most} is slow here"
    if pixels < TILED:
        size += ": that is hardly learned; cut the images into tiles, or raise imgsz"

    fits = max(int(0.8 * machine.memory_gb / (IMAGE_GB * (imgsz / 640) ** 2)), 1)
    batch = _power_of_two(min(64 if gpu else 16, max(contents.train // 12, 1), fits))
    steps = ceil(contents.train / batch)
    why = f"{_count(steps, 'batch', 'batches')} an epoch"
    if batch < (64 if gpu else 16):
        why += "; more images might not fit the memory" if batch * 2 > fits else "; a larger batch would leave few"
    nbs = 64 if contents.train >= 50 * 64 or batch == 64 else batch
    nbs_why = "gradients accumulate over round(nbs / batch) batches per optimizer step"
    if nbs < 64:
        nbs_why = (
            f"an optimizer step after each batch; with 64, as `yolo train` has it, there were "
            f"{ceil(contents.train / 64)} in an epoch"
        )
    epochs = min(max(ceil((2000 if gpu else 600) / steps / 10) * 10, 20), 100)
    every = epochs // 10

    seeds, confirmed, proposals = (8, 8, 16) if gpu else (4, 6, 8)
    begin = max(seeds // 4, 1)
    baselines = 2 * seeds * epochs
    confirmation = (2 + 2) * confirmed * epochs
    raced = expected_seeds(seeds, 2, begin)
    budget = ceil((baselines + confirmation + proposals * raced * epochs) / 100) * 100
    loaders = loader_workers(machine.cores, max(machine.gpus, 1))
    workers = (
        f"trainings at one time: one on each GPU with {_count(loaders, 'loader process', 'loader processes')}; "
        "`sweeper doctor` says whether several may share one"
    )
    if not gpu:
        workers = f"trainings at one time: on {machine} {machine.cores}, a core each"
    return {
        "name": (_name(path), "of the study, of the experiment in MLflow, and for commands that look"),
        "data": (_from(path, file), "as for `yolo train`; folders in the layout of COCO or Pascal VOC are taken, too"),
        "model": (
            "yolo11n.yaml",
            "from scratch, and the smallest, as a sweep trains it dozens of times; a .pt file means fine-tuning, which "
            f"suits {_count(contents.train, 'image')}: its content becomes part of the recipe",
        ),
        "epochs": (
            str(epochs),
            f"{epochs * steps} batches in all; from scratch it takes some hundreds until a model finds anything",
        ),
        "imgsz": (str(imgsz), size),
        "batch": (str(batch), why),
        "nbs": (str(nbs), nbs_why),
        "mosaic_epochs": (
            str(epochs - every),
            "from the start; `close_mosaic` counts from the end and so changes with the run's length",
        ),
        "trials": (
            f"budget: {budget}ep",
            f"trained epochs: baselines on {seeds} seeds {baselines}, confirmation {confirmation}, and the rest for "
            f"{proposals} proposals or more, each on {raced:.3g} seeds on average; also in hours of workers: 8h",
        ),
        "  trunk": (
            f"best\n  seeds: {seeds}",
            f"a race: proposals go on from the better baseline on {begin} of {seeds} seeds, the better half on more "
            f"(docs/race.md), as one run is mostly luck: its mAP stands on {_count(contents.val, 'image')}",
        ),
        "  restarts": (f"{{min: 0, max: 3, every: {every}, distance: {every}}}", "epochs; a coarse grid shares more"),
        "dead_after": (str(epochs // 2), "epochs: a trial whose mAP never left 0 is stopped"),
        "confirm": (
            f"{{best: 2, seeds: {confirmed}}}",
            "the leaders of the race and the baselines again, on fresh paired seeds; `sweeper plan` says which "
            "difference they can show",
        ),
        "workers": ("auto", workers),
    }


def _put(text: str, key: str, value: str, reason: str) -> str:
    """The text with another value of a key, and a reason in place of the comment beside it."""
    entry = value if key == "trials" else f"{key}: {value}"
    begin = max(COLUMN, len(entry.splitlines()[-1]) + 2)
    lines = textwrap.wrap(reason, WIDTH - begin - 2, break_on_hyphens=False)
    block = entry + " " * (begin - len(entry.splitlines()[-1])) + f"\n{' ' * begin}".join(f"# {line}" for line in lines)
    before = re.compile(rf"^{key}:[^\n]*(?:\n {{20,}}#[^\n]*)*", re.MULTILINE)
    changed, times = before.subn(lambda _: block, text, count=1)
    assert times, key
    return changed


def _count(number: int, singular: str, plural: str = "") -> str:
    """
    >>> _count(1, "image"), _count(2, "image"), _count(2, "class", "classes")
    ('1 image', '2 images', '2 classes')
    """
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def _multiple(pixels: float) -> int:
    return max(ceil(pixels / 32) * 32, 64)


def _power_of_two(most: int) -> int:
    """The largest power of two up to ``most``."""
    return 1 << (most.bit_length() - 1)


def _name(path: str) -> str:
    """A sweep's name for a data set: its folder's, but not that of a built-in sweep."""
    where = Path(path).expanduser().absolute()
    named = path if path == "digits" else (where if where.is_dir() else where.parent).name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", named).strip("-._")[:60] or "sweep"
    return f"my-{name}" if name in ("sweep", *built_in()) else name


def _from(path: str, file: Path) -> str:
    """The data set's path as it has to stand in ``file``: relative to the file's folder if it was given so."""
    if path == "digits" or Path(path).expanduser().is_absolute():
        written = str(Path(path).expanduser())
    else:
        written = os.path.join(os.curdir, os.path.relpath(path, file.parent))
    return written if re.fullmatch(r"[\w./-]+", written) else json.dumps(written, ensure_ascii=False)
