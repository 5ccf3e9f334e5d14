"""Writes a first sweep file that fits a data set and a machine, with the reason beside each choice."""

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

WIDTH, COLUMN = 120, 28  # the length of a line of the file, and the column where the reasons begin
IMAGE_GB = 0.3  # memory for training a nano model in float32, for each image of 640x640 in a batch
HARDLY_LEARNED = 12  # pixels; smaller objects are hardly learned, because a cell of the finest grid has 8 pixels


@dataclass(frozen=True)
class Machine:
    """The resources for training: GPUs, the memory in GB that one training may use, and CPU cores."""

    gpus: int
    memory_gb: float
    cores: int

    @classmethod
    def here(cls) -> "Machine":
        """This machine. Without a GPU half of the memory is for the trainings, one for each core."""
        gigabytes, cores = fleet.gpu_memory_gb(), fleet.cores()
        if gigabytes:
            return cls(len(gigabytes), min(gigabytes), cores)
        return cls(0, memory() / 1e9 / 2 / cores, cores)

    def __str__(self) -> str:
        gpus = f"{_count(self.gpus, 'GPU')} of {self.memory_gb:.0f} GB" if self.gpus else "no GPU"
        return f"{_count(self.cores, 'CPU core')}, {gpus}"


@dataclass(frozen=True)
class Contents:
    """The properties of a data set that a recipe depends on.

    ``train`` and ``val``: number of images. ``width`` and ``height``: median over the training images, in pixels.
    ``smallest``: the class whose median object is the smallest; ``side``: the square root of that object's area, as a
    share of the longer side of its image.
    """

    train: int
    val: int
    width: int
    height: int
    classes: int
    objects: int
    smallest: str
    side: float

    @classmethod
    def of(cls, dataset: data.Dataset) -> "Contents":
        """The properties of a checked data set, read from its annotations."""
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
    """The text of a commented sweep file. It is valid except for the path of the data set."""
    return resources.files("sweeper.service").joinpath("sweep.yaml").read_text(encoding="utf-8")


def suggest(path: str, file: Path, folder: Path, machine: Machine | None = None) -> str:
    """The text of a sweep file, to be written to ``file``, for the data set at ``path`` on a ``machine`` (None: this).

    The data set is checked as by ``sweeper data check``; ``folder`` is an empty folder for its prepared files. Raises
    DataError for a data set that a sweep would refuse.
    """
    machine = machine or Machine.here()
    contents = Contents.of(data.open(path, folder=folder))
    # The article's schedule is removed: with its own warm-up it is no branch, so that pairing it with the trunk on the
    # same seed does not reduce the noise.
    article = r"^  - \{family: cawb, mode: article.*\n"
    text = re.sub(article, "", template(), flags=re.MULTILINE)
    for key, (value, reason) in _choices(path, file, contents, machine).items():
        text = _put(text, key, value, reason)
    header = (
        f"For {_count(contents.train, 'training image')} of {contents.width}x{contents.height} pixels with "
        f"{_count(contents.objects, 'object')} of {_count(contents.classes, 'class', 'classes')}, "
        f"{_count(contents.val, 'validation image')}, and {machine}. Each value that was chosen for these has its "
        "reason beside it; change it if you know a better one."
    )
    sweep = Sweep.build({**parse_yaml(text), "data": path}, str(file))
    for searched in sweep.with_each_trunk():  # so that `plan` accepts the file
        search.check(searched, TimeBase.from_images(contents.train, sweep.recipe.batch, epochs=sweep.epochs))
    return textwrap.fill(header, WIDTH, initial_indent="# ", subsequent_indent="# ") + "\n" + text


def _choices(path: str, file: Path, contents: Contents, machine: Machine) -> dict[str, tuple[str, str]]:
    """Key of the sweep file -> value and reason. A later choice depends on the earlier ones."""
    gpu = machine.gpus > 0
    longer = max(contents.width, contents.height)
    enough, limit = (32, 1280) if gpu else (16, 640)  # pixels of an object, pixels of an image
    imgsz = max(ceil(min(enough / contents.side, longer, limit) / 32) * 32, 64)
    pixels = contents.side * imgsz
    imgsz_reason = f"an object of the smallest class, {contents.smallest}, is then typically {pixels:.0f} pixels wide"
    if imgsz >= longer:
        imgsz_reason = f"the size of the images; {imgsz_reason}"
    elif pixels >= enough:
        imgsz_reason += "; `yolo train` takes 640, which costs more time"
    else:
        imgsz_reason += f"; more than {limit} is slow here"
    if pixels < HARDLY_LEARNED:
        imgsz_reason += ": that is hardly learned; cut the images into tiles, or raise imgsz"

    max_batch = 64 if gpu else 16
    fits = max(int(0.8 * machine.memory_gb / (IMAGE_GB * (imgsz / 640) ** 2)), 1)
    batch = _power_of_two(min(max_batch, max(contents.train // 12, 1), fits))
    steps = ceil(contents.train / batch)
    batch_reason = f"{_count(steps, 'batch', 'batches')} an epoch"
    if batch < max_batch:
        too_large = batch * 2 > fits
        batch_reason += "; more images might not fit the memory" if too_large else "; a larger batch would leave few"
    nbs = 64 if contents.train >= 50 * 64 or batch == 64 else batch
    nbs_reason = "gradients accumulate over round(nbs / batch) batches per optimizer step"
    if nbs < 64:
        nbs_reason = (
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
        f"trainings at the same time: one on each GPU with {_count(loaders, 'loader process', 'loader processes')}; "
        "`sweeper doctor` says whether several may share one"
    )
    if not gpu:
        workers = f"trainings at the same time: on {machine} {machine.cores}, one on each core"
    return {
        "name": (_name(path), "the name of the study and of the MLflow experiment, also for `sweeper status NAME`"),
        "data": (
            _path_from(path, file),
            "as for `yolo train`; folders in the layout of COCO or Pascal VOC are taken, too",
        ),
        "model": (
            "yolo11n.yaml",
            "from scratch, and the smallest, as a sweep trains it dozens of times; a .pt file means fine-tuning, which "
            f"suits {_count(contents.train, 'image')}: its content becomes part of the recipe",
        ),
        "epochs": (
            str(epochs),
            f"{epochs * steps} batches in all; from scratch a model needs some hundreds before it detects anything",
        ),
        "imgsz": (str(imgsz), imgsz_reason),
        "batch": (str(batch), batch_reason),
        "nbs": (str(nbs), nbs_reason),
        "mosaic_epochs": (
            str(epochs - every),
            "from the start; `close_mosaic` counts from the end and so changes with the run's length",
        ),
        "trials": (
            f"budget: {budget}ep",
            f"trained epochs: baselines on {seeds} seeds {baselines}, confirmation {confirmation}, and the rest for "
            f"{proposals} proposals or more, each on {raced:.3g} seeds on average; in worker hours: budget: 8h",
        ),
        "  trunk": (
            f"best\n  seeds: {seeds}",
            f"a race: proposals are branches of the better baseline and begin on {begin} of {seeds} seeds; the better "
            "half goes on to more (docs/race.md), because the result of one run is mostly luck: its mAP is measured on "
            f"{_count(contents.val, 'image')}",
        ),
        "  restarts": (
            f"{{min: 0, max: 3, every: {every}, distance: {every}}}",
            "in epochs; with a coarse grid, more epochs are shared",
        ),
        "dead_after": (str(epochs // 2), "epochs: a trial whose mAP never left 0 is stopped"),
        "confirm": (
            f"{{best: 2, seeds: {confirmed}}}",
            "the leaders of the race and the baselines again, on fresh paired seeds; `sweeper plan` says which "
            "difference they can show",
        ),
        "workers": ("auto", workers),
    }


def _put(text: str, key: str, value: str, reason: str) -> str:
    """``text`` with another value of a key, and with the reason in place of the comment beside it."""
    entry = value if key == "trials" else f"{key}: {value}"
    begin = max(COLUMN, len(entry.splitlines()[-1]) + 2)
    lines = textwrap.wrap(reason, WIDTH - begin - 2, break_on_hyphens=False)
    block = entry + " " * (begin - len(entry.splitlines()[-1])) + f"\n{' ' * begin}".join(f"# {line}" for line in lines)
    before = re.compile(rf"^{key}:[^\n]*(?:\n {{20,}}#[^\n]*)*", re.MULTILINE)
    changed, times = before.subn(lambda _: block, text, count=1)
    assert times, key
    return changed


def _count(number: int, singular: str, plural: str = "") -> str:
    """``number`` with the noun in singular or plural (by default with an s).

    >>> _count(1, "image"), _count(2, "image"), _count(2, "class", "classes")
    ('1 image', '2 images', '2 classes')
    """
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def _power_of_two(limit: int) -> int:
    """The largest power of two up to ``limit``."""
    return 1 << (limit.bit_length() - 1)


def _name(path: str) -> str:
    """The name of a sweep of this data set: that of its folder, with "my-" before the name of a built-in sweep."""
    absolute = Path(path).expanduser().absolute()
    folder = path if path == "digits" else (absolute if absolute.is_dir() else absolute.parent).name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-._")[:60] or "sweep"
    return f"my-{name}" if name in ("sweep", *built_in()) else name


def _path_from(path: str, file: Path) -> str:
    """The data set's ``path`` as YAML; a relative one is made relative to the folder of the sweep file."""
    if path == "digits" or Path(path).expanduser().is_absolute():
        written = str(Path(path).expanduser())
    else:
        written = os.path.join(os.curdir, os.path.relpath(path, file.parent))
    return written if re.fullmatch(r"[\w./-]+", written) else json.dumps(written, ensure_ascii=False)
