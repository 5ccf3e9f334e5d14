"""``Search``: the search space of a sweep file."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, ValidationError, model_validator

from sweeper.config.parts import Model, Positive
from sweeper.config.written import Scalar, one_line
from sweeper.errors import shorten

MAX_CHOICES = 1000  # Choices of one parameter; the check of a space tries each of them.
MAX_GRID = 1_000_000


class Range(Model):
    """The numbers from ``low`` to ``high``, both included: all of them, on a log scale, or on a grid of ``step``."""

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
            raise ValueError("log is given, but low is not above 0, or step is given; expected low > 0 and no step")
        if self.step is not None and not (self.high - self.low) / self.step <= MAX_GRID:
            raise ValueError(f"step {self.step:g} makes a grid of more than {MAX_GRID} values; expected a larger step")
        return self

    def __contains__(self, value: object) -> bool:
        """Whether ``value`` is a number of the range."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-9

    def grid(self) -> list[float]:
        """The values on the grid of ``step``, ascending; without a step on a grid of 1."""
        step = self.step or 1.0
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [min(self.low + step * number, self.high) for number in range(count)]  # In floats 0.1 + 2 * 0.1 > 0.3.


class Parameter(Model):
    """The values of one schedule parameter in a search: a fixed ``value``, one of ``choices``, or one of a ``range``.

    In YAML these are a scalar, a list, and ``{low, high[, step][, log]}``. ``{per: cycle, choices: [...]}`` draws one
    value for each cycle. A choice may have conditional parameters, which exist only if it is chosen:
    ``- cosine: {power: [1, 2]}``. Those of an arithmetic decay may also be the constants that it leaves open.
    ``conditional`` holds them by the choice's :meth:`label`; in a stored sweep its key is ``own``.
    """

    value: Any = None
    choices: tuple[Scalar | None, ...] | None = None
    range: Range | None = None
    per_cycle: bool = False
    conditional: dict[str, dict[str, "Parameter"]] = Field(default_factory=dict, alias="own")

    @classmethod
    def read(cls, written: Any) -> "Parameter":
        """The parameter for a value of the YAML file. Raises ValueError, which says what is allowed."""
        per_cycle = isinstance(written, Mapping) and "per" in written
        if per_cycle:
            if written["per"] != "cycle":
                raise ValueError(f"per: {shorten(written['per'])} is not allowed; expected per: cycle")
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
                    f"{shorten(item)} is not a choice; expected a single value, or one with conditional parameters: "
                    "{cosine: {power: [1, 2]}}"
                )
            if choice in choices:
                raise ValueError(f"has the choice {shorten(choice)} twice; expected each choice once")
            choices[choice] = {}
            for name, value in inner.items():
                try:
                    choices[choice][str(name)] = cls.read(value)
                except ValueError as error:
                    raise ValueError(f"{choice}: {name}: {error}") from None
        parameter = cls(choices=tuple(choices), per_cycle=per_cycle)
        conditional = {parameter.label(choice): inner for choice, inner in choices.items() if inner}
        if per_cycle and conditional:
            raise ValueError("is drawn per cycle and has conditional parameters; expected only one of the two")
        if any(each.per_cycle for inner in conditional.values() for each in inner.values()):
            raise ValueError("has a conditional parameter that is drawn per cycle; expected one value for all cycles")
        return parameter.model_copy(update={"conditional": conditional})

    def label(self, choice: Any) -> str:
        """The suffix of a choice's conditional parameters: the choice, or its number from 1 if it is no identifier."""
        assert self.choices is not None
        return choice if isinstance(choice, str) and choice.isidentifier() else str(self.choices.index(choice) + 1)

    @property
    def searched(self) -> bool:
        """Whether the parameter has more than one value, so that the sampler chooses."""
        return self.range is not None or (self.choices is not None and len(self.choices) > 1)

    def examples(self) -> tuple[Any, ...]:
        """The lowest and the highest value of a range; all choices; or the fixed value."""
        if self.range is not None:
            return self.range.low, self.range.high if self.range.step is None else self.range.grid()[-1]
        return self.choices if self.choices is not None else (self.value,)


def _read_range(written: Mapping[Any, Any]) -> Range:
    if len(written) == 1 and isinstance(next(iter(written.values())), Mapping):
        [(choice, inner)] = written.items()
        raise ValueError(
            f"{shorten(choice)} with conditional parameters has to be one of several choices; expected a list: "
            f"[{{{choice}: {{{', '.join(map(str, inner))}: ...}}}}]"
        )
    try:
        return Range.model_validate(written)
    except ValidationError as error:
        raise ValueError(one_line(error, Range)) from None


class Restarts(Model):
    """The restarts of a proposal: ``min`` to ``max`` of them, at epochs ``first`` to ``last`` on a grid of ``every``.

    ``distance`` is the least number of epochs between two restarts, by default ``every``. ``first`` is by default
    ``distance``, or later if the warm-up is longer. ``last`` is by default ``distance`` epochs before the run's end.
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
            raise ValueError(f"min {self.min} is above max {self.max}; expected at most {self.max}")
        return self


class Search(Model):
    """The search space: a family, its restarts, and a ``Parameter`` for each of the family's keys in the file.

    ``trunk`` is the baseline from which every proposal branches off: its name, the same schedule, or ``best`` for the
    baseline that is the best on the search seeds. ``seeds``, ``race`` and ``begin`` define the race over seeds
    (docs/race.md). A proposal is trained on the first ``begin`` of ``seeds`` search seeds, by default a quarter of
    them; of the proposals on n seeds the best 1/``race`` go on to 2n seeds.
    """

    family: str = "cawb"
    trunk: str | dict[str, Any] | None = None
    seeds: int = Field(default=1, ge=1, le=1000)
    race: float = Field(default=2, ge=1, allow_inf_nan=False)
    begin: int = Field(default=1, ge=1)
    restarts: Restarts | None = None
    params: dict[str, Parameter] = Field(default_factory=dict)

    #: The keys that are not parameters of the family.
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
                f"params: {shorten(params)} is not a mapping; expected the family's parameters, as name: value"
            )
        params = dict(params)
        for key, value in written.items():
            if key in (*cls.SETTINGS, "params"):
                continue
            try:
                # A list of `steps` is the value of one schedule, not a list of choices; `groups` is a mapping.
                params[key] = Parameter(value=value) if key in ("steps", "groups") else Parameter.read(value)
            except ValidationError as error:
                raise ValueError(f"{key}: {one_line(error, Parameter)}") from None
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        if settings.get("restarts") is not None and "steps" in params:
            raise ValueError("restarts and steps are both given; expected only one of them")
        return {**settings, "params": params}

    @model_validator(mode="after")
    def _begins_within_its_seeds(self) -> Self:
        if self.begin > self.seeds:
            raise ValueError(f"begin {self.begin} is above seeds {self.seeds}; expected at most as many")
        return self

    def held(self) -> dict[str, Any]:
        """The parameters that have the same value in every proposal, with these values."""
        return {name: each.examples()[0] for name, each in self.params.items() if not each.searched}

    def searched(self, spec: Mapping[str, Any]) -> set[str]:
        """The parameters in which the proposal ``spec`` may differ from others, including conditional ones."""
        names = {name for name, parameter in self.params.items() if parameter.searched}
        for name, parameter in self.params.items():
            if parameter.choices is not None and spec.get(name) in parameter.choices:
                names.update(parameter.conditional.get(parameter.label(spec[name]), {}))
        return names if self.restarts is None else {"steps", *names}
