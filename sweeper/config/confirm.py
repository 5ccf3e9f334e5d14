"""What a sweep may spend, and what is done with the best of the search: ``Budget``, ``Confirm``, ``Escape``."""

import re
from typing import Annotated, Any

from pydantic import Field, model_serializer, model_validator

from sweeper.config.recipe import Model, NotNegative

WRITTEN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ep|h)\s*")


class Budget(Model):
    """So many trained epochs, or so many hours of workers, over search and confirmation; in YAML ``1600ep``, ``8h``.

    An epoch that was stored already costs nothing. Hours of two workers that train at the same time are added.
    """

    amount: float
    unit: str

    @model_validator(mode="before")
    @classmethod
    def _a_number_with_a_unit(cls, written: Any) -> Any:
        if isinstance(written, dict | cls):
            return written
        match = WRITTEN.fullmatch(written) if isinstance(written, str) else None
        if match is None or not 0 < float(match[1]) < 1e9:
            raise ValueError("is not a budget; expected trained epochs or worker hours above 0, such as 1600ep or 8h")
        return {"amount": float(match[1]), "unit": match[2]}

    @model_serializer
    def _as_written(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"

    @property
    def in_words(self) -> str:
        """For a sentence."""
        return self.words(self.amount)

    def words(self, amount: float) -> str:
        """An amount in this budget's unit."""
        return f"{amount:,.0f} trained epochs" if self.unit == "ep" else f"{amount:.3g} worker hours"


class Confirm(Model):
    """Confirmation: the best ``best`` of the search and the baselines again on ``seeds`` fresh, paired seeds."""

    best: int = Field(default=5, ge=1, le=1000)
    seeds: int = Field(default=6, ge=2, le=1000)
    equivalence: NotNegative = 0.002
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05


class Escape(Model):
    """The battery on a restart: what decides, printed with every verdict, and what is spent on it.

    ``practical``: region of practical equivalence, in mAP. ``over_self``: the path barrier must be this many times the
    self-barrier. ``moved_beta``, ``same_beta``: share of the barrier between independent seeds from which on weights
    have moved, and below which they are in the same basin. ``within``: sigmas of curve noise that count as recovered.
    ``snapshots``: quenched ones along the way; ``points``: losses on a straight line from end to end, ``piece_points``:
    on each piece of the way, both ends included. ``quench``: the length of a short anneal to the bottom, as a share of
    the run's steps, an epoch at most. ``bn_batches`` and ``val_images`` are what one loss on the landscape costs.
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
        """The settings on which the measurement itself depends; with others it is made anew."""
        names = {"snapshots", "points", "piece_points", "quench", "bn_batches", "val_images"}
        return self.model_dump(include=names)

    def decides(self) -> dict[str, float]:
        """The settings on which a verdict depends."""
        return self.model_dump(exclude={"quench", "bn_batches", "val_images"})
