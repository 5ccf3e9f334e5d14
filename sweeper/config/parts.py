"""The parts of a sweep: ``Recipe``, ``Pruner``, ``Budget``, ``Confirm``, ``Escape``."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_LAYERS = 10_000
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

#: The optimizers that Ultralytics builds by name, without ``auto``, which ignores the given learning rate.
OPTIMIZERS = ("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp")


class Model(BaseModel):
    """A part of a sweep file. Unknown keys are errors; an instance is immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, validate_by_name=True, serialize_by_alias=True
    )


class Recipe(Model):
    """Everything that determines a training except the learning rate. Names and defaults are Ultralytics'.

    There are three exceptions. ``optimizer`` has no ``auto``, because that ignores the LR. ``mosaic_epochs`` replaces
    ``close_mosaic``, which counts from the end, so that a longer run would begin otherwise. ``amp: auto`` is on for
    CUDA and off on a CPU.
    """

    data: str
    model: str
    imgsz: int = Field(default=640, ge=32, le=8192, multiple_of=32)
    batch: int = Field(default=16, ge=1, le=65_536)
    nbs: int = Field(default=64, ge=1, le=1_048_576)
    optimizer: str = "SGD"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.937
    weight_decay: NotNegative = 0.0005
    seed: int = Field(default=0, ge=0, lt=2**31)
    threads: int = Field(
        default=1, ge=1, le=1024, description="torch threads of a training on a CPU; gradients depend on their number"
    )
    amp: bool | Literal["auto"] = Field(default="auto", description="auto: on for CUDA, off on a CPU")
    deterministic: bool = True
    rect: bool = Field(default=False, description="batches have images of one shape, in a fixed order, without mosaic")
    single_cls: bool = Field(default=False, description="all labels have the same class, item")
    fraction: Annotated[int, Field(gt=1)] | Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="share (at most 1) or number (from 2 on) of the training images, in path order"
    )
    freeze: int | list[int] | None = Field(
        default=None, description="number of first layers, or a list of layers from 0 on, to freeze"
    )
    box: NotNegative = 7.5
    cls: NotNegative = 0.5
    dfl: NotNegative = 1.5
    hsv_h: Fraction = 0.015
    hsv_s: Fraction = 0.7
    hsv_v: Fraction = 0.4
    degrees: NotNegative = 0.0
    translate: Fraction = 0.1
    scale: Fraction = 0.5
    shear: NotNegative = 0.0
    perspective: Annotated[float, Field(ge=0, le=0.001)] = 0.0
    flipud: Fraction = 0.0
    fliplr: Fraction = 0.5
    bgr: Fraction = 0.0
    mosaic: Fraction = 1.0
    mosaic_epochs: int | None = Field(
        default=None, ge=0, description="number of first epochs in which mosaic is on; null: all"
    )
    mixup: Fraction = 0.0
    cutmix: Fraction = 0.0
    copy_paste: Fraction = 0.0
    multi_scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loader_workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = Field(
        default="auto", description="loader processes, by default from the worker's cores; no bit depends on it"
    )
    cache_mb: Annotated[int, Field(ge=0, le=10_000_000)] | Literal["auto"] = Field(
        default="auto", description="MB of decoded images in memory, by default from the worker's; no bit depends on it"
    )

    #: Keys outside the digest: paths and speed change no bit, and the data set's own digest covers the others.
    UNHASHED: ClassVar[frozenset[str]] = frozenset({"data", "single_cls", "fraction", "loader_workers", "cache_mb"})

    @field_validator("optimizer")
    @classmethod
    def _optimizer_is_known(cls, value: str) -> str:
        names = {name.lower(): name for name in OPTIMIZERS}
        if value.lower() not in names:
            hint = " ('auto' ignores the learning rate it is given)" if value.lower() == "auto" else ""
            raise ValueError(f"is not an optimizer{hint}; expected one of {', '.join(OPTIMIZERS)}")
        return names[value.lower()]

    @field_validator("freeze")
    @classmethod
    def _layers_are_counted_from_zero(cls, value: int | list[int] | None) -> int | list[int] | None:
        layers = value if isinstance(value, list) else [value or 0]
        if len(layers) > MAX_LAYERS or not all(0 <= layer < MAX_LAYERS for layer in layers):
            raise ValueError("is not allowed; expected a number of first layers, or a list of layers from 0 on")
        return value

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step, ``max(round(nbs / batch), 1)``. Ultralytics has fewer during its warm-up."""
        return max(round(self.nbs / self.batch), 1)

    @property
    def part(self) -> dict[str, Any]:
        """The part of the data set that is trained, as arguments of ``data.open``."""
        return {"fraction": self.fraction, "single_cls": self.single_cls}

    def digest(self, facts: Mapping[str, Any]) -> str:
        """SHA-256 (hex) over all values of the recipe, defaults included, and over ``facts``.

        ``facts`` are the digests of data set and weights, versions and hardware (``training.fingerprint``). Paths,
        loader processes and caches are left out, because no bit of a training depends on them.
        """
        values = {key: value for key, value in self.model_dump().items() if key not in self.UNHASHED}
        if not self.rect:  # Stored states are older than this key, and their prefix keys must not change.
            del values["rect"]
        if self.amp == "auto":  # The digest holds the precision that auto gives on this device.
            values["amp"] = facts.get("precision") == "amp"
        if Path(self.model).suffix == ".pt":
            values["model"] = "weights"  # ``facts`` holds the digest of the file's content.
        text = json.dumps({"recipe": values, "facts": dict(facts)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class Pruner(Model):
    """The rule that stops a search trial early. In YAML: a name, or ``{name: cycle_end, from_epoch: 40, ...}``.

    The other keys are arguments of ``sweeper.search.rules.cycle_end``. ``from_epoch: null`` is a third of the run.
    """

    name: Literal["none", "cycle_end"] = "none"
    from_epoch: int | None = Field(default=None, ge=1)
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    others: int = Field(default=5, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_enough(cls, written: Any) -> Any:
        return {"name": written} if isinstance(written, str) else written


class Budget(Model):
    """A limit for search and confirmation together: ``1600ep`` in trained epochs, or ``8h`` in worker hours.

    An epoch whose state is stored already costs nothing. The hours of workers that train at the same time are added.
    """

    amount: float
    unit: str

    @model_validator(mode="before")
    @classmethod
    def _a_number_with_a_unit(cls, written: Any) -> Any:
        if isinstance(written, dict | cls):
            return written
        match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*(ep|h)\s*", written if isinstance(written, str) else "")
        if match is None or not 0 < float(match[1]) < 1e9:
            raise ValueError("is not a budget; expected trained epochs or worker hours above 0, such as 1600ep or 8h")
        return {"amount": float(match[1]), "unit": match[2]}

    @model_serializer
    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


class Confirm(Model):
    """The confirmation, which trains the ``best`` best proposals and the baselines on ``seeds`` fresh, paired seeds."""

    best: int = Field(default=5, ge=1, le=1000)
    seeds: int = Field(default=6, ge=2, le=1000)
    equivalence: NotNegative = 0.002
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05


class Escape(Model):
    """The tests of a restart: the thresholds, which are printed with every verdict, and the cost of the measurement.

    ``practical``: region of practical equivalence, in mAP. ``over_self``: the path barrier must be at least this many
    times the self-barrier. ``moved_beta`` and ``same_beta`` are shares of the barrier between independent seeds: the
    weights have moved from the first on, and are in the same basin below the second. ``within``: distance in sigmas of
    the curve's noise that counts as recovered. ``snapshots``: number of quenched snapshots along the path. ``points``:
    number of losses on the straight line from end to end, ``piece_points``: on the line between neighbouring snapshots,
    both ends included. ``quench``: length of the short anneal to a nearby minimum, as a share of the run's steps, at
    most one epoch. ``bn_batches``, ``val_images``: batches and images for one loss of the landscape.
    """

    practical: NotNegative = 0.002
    over_self: NotNegative = 3.0
    moved_beta: NotNegative = 0.05
    same_beta: NotNegative = 0.02
    within: NotNegative = 2.0
    snapshots: int = Field(default=8, ge=0, le=64)
    points: int = Field(default=7, ge=3, le=101)
    piece_points: int = Field(default=3, ge=3, le=101)
    quench: Annotated[float, Field(gt=0, le=1)] = 0.005
    bn_batches: int = Field(default=2, ge=1, le=100_000)
    val_images: int = Field(default=32, ge=1, le=1_000_000)

    def cost(self) -> dict[str, float]:
        """The settings on which the measurement depends. If one of them changes, the measurement is repeated."""
        return self.model_dump(include={"snapshots", "points", "piece_points", "quench", "bn_batches", "val_images"})

    def decides(self) -> dict[str, float]:
        """The settings on which a verdict depends."""
        return self.model_dump(exclude={"quench", "bn_batches", "val_images"})
