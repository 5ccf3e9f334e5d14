"""``Recipe``: everything that determines a training except the learning rate."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_LAYERS = 10_000
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

#: Optimizers that Ultralytics builds by name; ``auto`` is left out because it ignores the learning rate it is given.
OPTIMIZERS = ("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp")


class Model(BaseModel):
    """A part of a sweep file: unknown keys are errors, and what was read never changes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, validate_by_name=True, serialize_by_alias=True
    )


class Recipe(Model):
    """Everything that determines a training except the learning rate; names and defaults are Ultralytics' own.

    Exceptions, each for a reason: ``optimizer`` has no ``auto`` (it ignores the LR), ``mosaic_epochs`` counts from the
    start (``close_mosaic`` counts from the end, so a longer run would have another beginning), ``amp: auto`` is on for
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
        default=1, ge=1, le=1024, description="of torch, for one training on a CPU: gradients differ with it"
    )
    amp: bool | Literal["auto"] = Field(default="auto", description="auto: on for CUDA, off on a CPU")
    deterministic: bool = True
    rect: bool = Field(default=False, description="batches of images of one shape, in a fixed order, without mosaic")
    single_cls: bool = Field(default=False, description="all labels are of one class, item")
    fraction: Annotated[int, Field(gt=1)] | Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="of the training images, in the order of their paths: a share, or from 2 on a number"
    )
    freeze: int | list[int] | None = Field(default=None, description="the first so many layers, or these, from 0")
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
        default=None, ge=0, description="mosaic is on in so many first epochs; null: in all"
    )
    mixup: Fraction = 0.0
    cutmix: Fraction = 0.0
    copy_paste: Fraction = 0.0
    multi_scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loader_workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = Field(
        default="auto", description="loader processes, by default from the worker's cores; changes no bit of the result"
    )
    cache_mb: Annotated[int, Field(ge=0, le=10_000_000)] | Literal["auto"] = Field(
        default="auto", description="decoded images kept, by default from the worker's memory; changes no bit"
    )

    #: Keys that say where or how fast, and those that the data set's digest stands for: outside the digest.
    UNHASHED: ClassVar[frozenset[str]] = frozenset({"data", "single_cls", "fraction", "loader_workers", "cache_mb"})

    @field_validator("optimizer")
    @classmethod
    def _optimizer_is_known(cls, value: str) -> str:
        known = {name.lower(): name for name in OPTIMIZERS}
        if value.lower() not in known:
            hint = " ('auto' ignores the learning rate it is given)" if value.lower() == "auto" else ""
            raise ValueError(f"is not an optimizer{hint}; expected one of {', '.join(OPTIMIZERS)}")
        return known[value.lower()]

    @field_validator("freeze")
    @classmethod
    def _layers_are_counted_from_zero(cls, value: int | list[int] | None) -> int | list[int] | None:
        layers = value if isinstance(value, list) else [value or 0]
        if len(layers) > MAX_LAYERS or not all(0 <= layer < MAX_LAYERS for layer in layers):
            raise ValueError("is not allowed; expected how many first layers, or a list of layers from 0 on")
        return value

    @property
    def accumulate(self) -> int:
        """Batches per optimizer step, as Ultralytics after warm-up: ``max(round(nbs / batch), 1)``; constant here."""
        return max(round(self.nbs / self.batch), 1)

    @property
    def part(self) -> dict[str, Any]:
        """Which part of the data set is trained, as ``data.open`` takes it."""
        return {"fraction": self.fraction, "single_cls": self.single_cls}

    def digest(self, facts: Mapping[str, Any]) -> str:
        """SHA-256 (hex) naming this recipe: all values, defaults written out, plus ``facts``.

        ``facts`` are what the values do not say: the data set's digest, the weights', versions and hardware
        (``training.fingerprint``). Paths, loader workers and caches are left out: they change no bit.
        """
        values = {key: value for key, value in self.model_dump().items() if key not in self.UNHASHED}
        if not self.rect:  # states of before there was this key keep their names
            del values["rect"]
        if self.amp == "auto":  # as what it came to on this device
            values["amp"] = facts.get("precision") == "amp"
        if Path(self.model).suffix == ".pt":
            values["model"] = "weights"  # weights are named by their content, in ``facts``
        text = json.dumps({"recipe": values, "facts": dict(facts)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
