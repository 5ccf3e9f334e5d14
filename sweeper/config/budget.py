"""``Budget``: what a sweep may spend, in trained epochs or worker hours."""

import re
from typing import Any

from pydantic import model_serializer, model_validator

from sweeper.config.recipe import Model

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
