"""``Search``: the space that Optuna searches, as a sweep file writes it."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationError, model_validator

from sweeper.config.parts import Model, Positive
from sweeper.config.written import Scalar, one_line
from sweeper.errors import shorten

MAX_CHOICES = 1000  # of one parameter; a check before training tries each
MAX_GRID = 1_000_000


class Range(Model):
    """Numbers from ``low`` to ``high``, both included: continuous, on a log scale, or on a grid of ``step``."""

    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
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
        if self.step is not None and not (self.high - self.low) / self.step <= MAX_GRID:
            raise ValueError(f"step {self.step:g} makes a grid of more than {MAX_GRID} values; expected a longer step")
        return self

    def __contains__(self, value: object) -> bool:
        """Whether a draw can give this value."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-9

    def grid(self) -> list[float]:
        """Every value on the grid of ``step``, or of 1 where it is continuous."""
        step = self.step or 1.0
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [min(self.low + step * number, self.high) for number in range(count)]  # 0.1 + 2 * 0.1 is above 0.3


class Parameter(Model):
    """What one schedule parameter may be: a fixed ``value``, one of ``choices``, or within a ``range``.

    In YAML: a scalar; a list; ``{low, high[, step][, log]}``. ``{per: cycle, choices: [...]}`` draws one a cycle. A
    choice may have parameters that exist only where it is chosen, ``- cosine: {power: [1, 2]}``; of a decay written as
    arithmetic they are also the constants that it leaves open. ``conditional`` has them by :meth:`label`; where a
    launched sweep is stored it is called ``own``.
    """

    value: Any = None
    choices: tuple[Scalar | None, ...] | None = None
    range: Range | None = None
    per_cycle: bool = False
    conditional: dict[str, dict[str, "Parameter"]] = Field(default_factory=dict, alias="own")

    @classmethod
    def read(cls, written: Any) -> "Parameter":
        """From what stands in the YAML. Raises ValueError saying what is allowed."""
        per_cycle = isinstance(written, Mapping) and "per" in written
        if per_cycle:
            if written["per"] != "cycle":
                raise ValueError(f"per: {shorten(written['per'])}; expected 'cycle'")
            written = {key: value for key, value in written.items() if key != "per"}
        if isinstance(written, Mapping) and set(written) == {"choices"}:
            written = written["choices"]
        if isinstance(written, list | tuple):
            return cls._read_choices(list(written), per_cycle)
        if isinstance(written, Mapping):
            return cls(range=_read_range(written), per_cycle=per_cycle)
        return cls(value=written)

    @classmethod
    def _read_choices(cls, written: list[Any], per_cycle: bool) -> "Parameter":
        if not written:
            raise ValueError("is an empty list; expected at least one choice")
        if len(written) > MAX_CHOICES:
            raise ValueError(f"has {len(written)} choices; expected at most {MAX_CHOICES}, or a range")
        choices: dict[Any, dict[str, Parameter]] = {}
        for item in written:
            [(choice, inner)] = item.items() if isinstance(item, Mapping) and len(item) == 1 else [(item, {})]
            if isinstance(choice, list | Mapping) or not isinstance(inner, Mapping):
                raise ValueError(
                    "a choice is a single value, or one with its own parameters: {cosine: {power: [1, 2]}}"
                )
            if choice in choices:
                raise ValueError("names a choice twice")
            choices[choice] = {}
            for name, value in inner.items():
                try:
                    choices[choice][str(name)] = cls.read(value)
                except ValueError as error:
                    raise ValueError(f"{choice}: {name}: {error}") from None
        parameter = cls(choices=tuple(choices), per_cycle=per_cycle)
        conditional = {parameter.label(choice): below for choice, below in choices.items() if below}
        if per_cycle and conditional:
            raise ValueError("a choice drawn per cycle cannot have parameters of its own")
        if any(inner.per_cycle for below in conditional.values() for inner in below.values()):
            raise ValueError("a choice's own parameter cannot be drawn per cycle")
        return parameter.model_copy(update={"conditional": conditional})

    def label(self, choice: Any) -> str:
        """A choice's name in the names of its parameters: itself if it is a word, else its place (from 1)."""
        assert self.choices is not None
        return choice if isinstance(choice, str) and choice.isidentifier() else str(self.choices.index(choice) + 1)

    @property
    def searched(self) -> bool:
        """Whether Optuna has something to decide."""
        return self.range is not None or (self.choices is not None and len(self.choices) > 1)

    def examples(self) -> tuple[Any, ...]:
        """The lowest and the highest value that a range gives, every choice, or the value."""
        if self.range is not None:
            return self.range.low, self.range.high if self.range.step is None else self.range.grid()[-1]
        return self.choices if self.choices is not None else (self.value,)


def _read_range(written: Mapping[Any, Any]) -> Range:
    if len(written) == 1 and isinstance(next(iter(written.values())), Mapping):
        [(choice, below)] = written.items()
        raise ValueError(
            f"{shorten(choice)} with parameters of its own is one of several choices; expected a list: "
            f"[{{{choice}: {{{', '.join(map(str, below))}: ...}}}}]"
        )
    try:
        return Range.model_validate(written)
    except ValidationError as error:
        raise ValueError(one_line(error, Range)) from None


class Restarts(Model):
    """How many restarts a proposal has, and where, in epochs: ``first`` to ``last`` on a grid of ``every``.

    ``distance`` is the least number of epochs between two restarts, by default ``every``; ``first`` defaults to it (and
    to after the warm-up), ``last`` to the run's length less it.
    """

    min: int = Field(default=0, ge=0)
    max: int = Field(default=2, ge=1, le=64)
    every: int = Field(default=1, ge=1)
    distance: int = Field(default=1, ge=1)
    first: int | None = Field(default=None, ge=1)
    last: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _as_far_apart_as_the_grid(cls, written: Any) -> Any:
        if isinstance(written, Mapping) and isinstance(every := written.get("every"), int) and every >= 1:
            return {"distance": every, **written}
        return written

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Search(Model):
    """The space that Optuna searches: a family, its restart slots, a ``Parameter`` for each of the family's keys.

    ``trunk``: the baseline (its name, or the same schedule) that every proposal is a branch of; ``best``: the one
    that is the best on the search seeds. ``seeds``, ``race`` and ``begin`` are the race over seeds (docs/race.md): a
    proposal is trained on the first ``begin`` of ``seeds`` search seeds (a quarter of them); of those on n seeds the
    best 1/``race`` go on to 2n.
    """

    family: str = "cawb"
    trunk: str | dict[str, Any] | None = None
    seeds: int = Field(default=1, ge=1, le=1000)
    race: float = Field(default=2, ge=1, allow_inf_nan=False)
    begin: int = Field(default=1, ge=1)
    restarts: Restarts | None = None
    params: dict[str, Parameter] = Field(default_factory=dict)

    #: Keys that are no parameters of the family.
    SETTINGS: ClassVar[tuple[str, ...]] = ("family", "trunk", "restarts", "seeds", "race", "begin")

    @model_validator(mode="before")
    @classmethod
    def _other_keys_are_parameters(cls, written: Any) -> Any:
        if not isinstance(written, Mapping):
            raise ValueError("is not a mapping; expected family, restarts and the family's parameters")
        settings = {key: written[key] for key in cls.SETTINGS if key in written}
        if isinstance(seeds := settings.get("seeds"), int):
            settings.setdefault("begin", max(seeds // 4, 1))
        params = written.get("params") or {}
        if not isinstance(params, Mapping):
            raise ValueError(
                f"params: {shorten(params)} is not a mapping; expected the family's parameters, name: value"
            )
        params = dict(params)
        for key, value in written.items():
            if key in (*cls.SETTINGS, "params"):
                continue
            try:
                # `steps` as a list is one schedule's restart steps, not a choice between them
                params[key] = Parameter(value=value) if key in ("steps", "groups") else Parameter.read(value)
            except ValidationError as error:
                raise ValueError(f"{key}: {one_line(error, Parameter)}") from None
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        if settings.get("restarts") is not None and "steps" in params:
            raise ValueError("restarts and steps both say where restarts are; expected one of them")
        return {**settings, "params": params}

    @model_validator(mode="after")
    def _begins_within_its_seeds(self) -> Self:
        if self.begin > self.seeds:
            raise ValueError(f"begin {self.begin} is above seeds {self.seeds}; expected at most as many")
        return self

    def held(self) -> dict[str, Any]:
        """The parameters that are the same in every proposal, with their values."""
        return {name: each.examples()[0] for name, each in self.params.items() if not each.searched}

    def searched(self, spec: Mapping[str, Any]) -> set[str]:
        """The parameters of a proposal in which it may differ from others, those of the choices made among them."""
        names = {name for name, parameter in self.params.items() if parameter.searched}
        for name, parameter in self.params.items():
            if parameter.choices is not None and spec.get(name) in parameter.choices:
                names.update(parameter.conditional.get(parameter.label(spec[name]), {}))
        return names if self.restarts is None else {"steps", *names}
