"""``Search``: the space that Optuna searches, as a sweep file writes it."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from sweeper.config.recipe import Model, Positive


class Range(Model):
    """Numbers from ``low`` to ``high``, both included: continuous, on a log scale, or on a grid of ``step``."""

    low: float
    high: float
    step: Positive | None = None
    log: bool = False

    @model_validator(mode="after")
    def _has_an_extent(self) -> Self:
        if not self.low < self.high:
            raise ValueError(
                f"low {self.low:g} is not below high {self.high:g}; expected low < high, or a single value"
            )
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low > 0 and no step")
        return self


Scalar = bool | int | float | str


class Parameter(Model):
    """What one schedule parameter may be: a fixed ``value``, one of ``choices``, or within a ``range``.

    In YAML: a scalar; a list; ``{low, high[, step][, log]}``. ``{per: cycle, choices: [...]}`` draws one a cycle.
    """

    value: Any = None
    choices: tuple[Scalar | None, ...] | None = None
    range: Range | None = None
    per_cycle: bool = False

    @classmethod
    def read(cls, written: Any) -> "Parameter":
        """From what stands in the YAML. Raises ValueError saying what is allowed."""
        if isinstance(written, Parameter):
            return written
        per_cycle = False
        if isinstance(written, Mapping) and "per" in written:
            written = dict(written)
            if (per := written.pop("per")) != "cycle":
                raise ValueError(f"per: {per!r}; expected 'cycle'")
            per_cycle = True
        if isinstance(written, Mapping) and set(written) == {"choices"}:
            written = written["choices"]
        if isinstance(written, list | tuple):
            if not written:
                raise ValueError("is an empty list; expected at least one choice")
            if any(isinstance(item, list | dict) for item in written):
                raise ValueError("a choice is a single value, not a list or mapping")
            if len(set(written)) < len(written):
                raise ValueError("names a choice twice")
            return cls(choices=tuple(written), per_cycle=per_cycle)
        if isinstance(written, Mapping):
            return cls(range=Range.model_validate(written), per_cycle=per_cycle)
        return cls(value=written)

    @property
    def searched(self) -> bool:
        """Whether Optuna has something to decide."""
        return self.range is not None or (self.choices is not None and len(self.choices) > 1)

    def examples(self) -> tuple[Any, ...]:
        """The ends of the range, every choice, or the value: what a check before training looks at."""
        if self.range is not None:
            return (self.range.low, self.range.high)
        return self.choices if self.choices is not None else (self.value,)


class Restarts(Model):
    """How many restart steps a proposal has (``min`` to ``max``) and where: ``first`` to ``last``, a grid of ``every``.

    All in epochs. One on/off slot per possible restart with a position inside it: of the encodings tried, the one that
    searches best. ``distance`` is the least number of epochs between two restarts; ``first`` defaults to it, ``last``
    to the run's length less it.
    """

    min: int = Field(default=0, ge=0)
    max: int = Field(default=2, ge=1, le=64)
    every: int = Field(default=1, ge=1)
    distance: int = Field(default=1, ge=1)
    first: int | None = Field(default=None, ge=1)
    last: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Search(Model):
    """The space that Optuna searches: a family, its restart slots, a ``Parameter`` for each of the family's keys."""

    family: str = "cawb"
    restarts: Restarts | None = None
    params: dict[str, Parameter] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _other_keys_are_parameters(cls, written: Any) -> Any:
        if not isinstance(written, Mapping):
            raise ValueError("is not a mapping; expected family, restarts and the family's parameters")
        own = {key: written[key] for key in ("family", "restarts") if key in written}
        params = dict(written.get("params") or {})
        for key, value in written.items():
            if key in ("family", "restarts", "params"):
                continue
            try:
                # `steps` as a list is one schedule's restart steps, not a choice between them
                params[key] = Parameter(value=value) if key in ("steps", "groups") else Parameter.read(value)
            except ValueError as error:
                message = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                raise ValueError(f"{key}: {message}") from None
        if own.get("restarts") is not None and "steps" in params:
            raise ValueError("restarts and steps both say where restarts are; expected one of them")
        return {**own, "params": params}
