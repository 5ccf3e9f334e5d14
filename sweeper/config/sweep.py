"""``Sweep``: a sweep file after overrides and checks."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator

from sweeper import names, schedules
from sweeper.config.parts import Budget, Confirm, Escape, Model, Positive, Pruner, Recipe
from sweeper.config.space import Search
from sweeper.config.written import ELSEWHERE, one_line, override, read
from sweeper.errors import ConfigError, ScheduleError, did_you_mean, shorten
from sweeper.schedules import Schedule

MAX_SECONDS = 604_800  # A week.
MOST_TRUNKS = 8  # A trunk may be a branch of another baseline; more levels than this are a cycle of names.
BEST = "best"  # With this value of search.trunk the baseline with the best score on the search seeds is the trunk.
#: The samplers with a name of their own; any other sampler for Optuna is written module:Class.
SAMPLERS = ("tpe", "random", "gp", "grid")

#: The objectives and the metric of each in an epoch's row: Ultralytics' own mAP, or COCO's metrics by pycocotools.
OBJECTIVES = {
    "mAP50-95": f"{names.CURVE}mAP50-95",
    "mAP50": f"{names.CURVE}mAP50",
    **{
        name: f"{names.COCO}{name}"
        for name in ("AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge", "AR1", "AR10", "AR100")
    },
}

#: A list of schedules in a sweep file, each a family's name or a mapping.
WrittenSchedules = Annotated[tuple[str | dict[str, Any], ...], Field(max_length=1000)]


class Sweep(Model):
    """A sweep: one YAML file, one Optuna study and one MLflow experiment, all of the same ``name``.

    :meth:`load` reads a file, :meth:`build` checks a mapping. An instance is immutable. docs/search.md and docs/keys.md
    explain the keys.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    recipe: Recipe
    epochs: int = Field(ge=1, le=100_000)
    lr0: Positive
    trials: int | None = Field(
        default=None, ge=0, le=100_000, description="proposals at most; null: what budget allows"
    )
    budget: Budget | None = None
    baselines: WrittenSchedules = ("yolo_linear", "yolo_cosine")
    enqueue: WrittenSchedules = Field(
        default=(), description="schedules, or values of Optuna parameters, for the first proposals"
    )
    search: Search
    objective: str = Field(default="mAP50-95", description="metric whose mean over the last three epochs is maximised")
    coco_epochs: int | tuple[int, ...] = Field(
        default=(), description="epochs after which COCO's metrics are computed, or their interval"
    )
    sampler: str = "tpe"
    sampler_seed: int | None = Field(default=None, ge=0, lt=2**31, description="seed of the sampler; null: seed")
    pruner: Pruner = Field(default_factory=Pruner)
    dead_after: int | None = Field(
        default=None, ge=1, description="epochs after which a search trial is stopped if its mAP is 0 in all of them"
    )
    confirm: Confirm = Field(default_factory=Confirm)
    escape: Escape = Field(default_factory=Escape)
    invalid: Literal["refuse", "skip"] = "refuse"
    device: str | int = "auto"
    workers: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    attempts: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="failed attempts in a row, without a finished epoch, after which a trial fails",
    )
    lease_s: float = Field(default=60, gt=0, le=MAX_SECONDS)
    stall_s: float = Field(
        900, gt=0, le=MAX_SECONDS, description="seconds without a finished batch after which a training counts as hung"
    )
    store_gb: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="limit of the stored states in GB; null: half of the free disk, up to 100",
    )
    weights: Literal["all", "none"] = "all"
    system_metrics: bool = Field(
        default=False, description="whether MLflow records the machine's metrics (CPU, memory, disk, network, GPU)"
    )

    #: Keys that may change after the launch. A change of any other key makes another sweep.
    CHANGEABLE: ClassVar[tuple[str, ...]] = (
        *("trials", "budget", "confirm", "escape", "device", "workers", "attempts", "lease_s", "stall_s", "store_gb"),
        *("weights", "system_metrics", "data", "invalid", "loader_workers", "cache_mb", "coco_epochs"),
    )

    @field_validator("sampler")
    @classmethod
    def _sampler_is_known(cls, value: str) -> str:
        if value not in SAMPLERS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
            raise ValueError(
                f"is not a sampler{did_you_mean(value, SAMPLERS)}; expected one of {', '.join(SAMPLERS)}, "
                "or module:Class of an Optuna sampler"
            )
        return value

    @field_validator("device")
    @classmethod
    def _device_is_a_device(cls, value: str | int) -> str | int:
        if not re.fullmatch(r"auto|cpu|[0-9]{1,4}( *, *[0-9]{1,4})*", str(value)):
            raise ValueError("is not a device; expected auto, cpu, or numbers of GPUs: 0, or '0,1'")
        return value

    @field_validator("objective")
    @classmethod
    def _objective_is_known(cls, value: str) -> str:
        if value not in OBJECTIVES:
            hint = did_you_mean(value, OBJECTIVES)
            raise ValueError(f"is not an objective{hint}; expected one of {', '.join(OBJECTIVES)}")
        return value

    @field_validator("coco_epochs", mode="before")
    @classmethod
    def _epochs_are_counted_from_one(cls, value: Any) -> Any:
        epochs = value if isinstance(value, list | tuple) else [value]
        if not all(type(epoch) is int and epoch > 0 for epoch in epochs):
            raise ValueError("is not allowed; expected a list of epochs from 1 on, or an interval in epochs")
        return value

    @property
    def sampling_seed(self) -> int:
        """The seed of the sampler: ``sampler_seed``, or ``seed`` if that is null."""
        return self.recipe.seed if self.sampler_seed is None else self.sampler_seed

    @property
    def metric(self) -> str:
        """The name of the objective's metric in an epoch's row."""
        return OBJECTIVES[self.objective]

    @property
    def by_coco(self) -> bool:
        """Whether the objective is one of COCO's metrics, so that they are computed after every epoch."""
        return self.metric.startswith(names.COCO)

    def with_coco(self, epoch: int) -> bool:
        """Whether COCO's metrics are computed after ``epoch`` (from 0); they always are after the last epoch."""
        number, chosen = epoch + 1, self.coco_epochs
        named = number % chosen == 0 if isinstance(chosen, int) else number in chosen
        return named or number == self.epochs or self.by_coco

    def schedule(self, written: str | Mapping[str, Any]) -> Schedule:
        """A schedule of this sweep: a family's name, or a mapping with ``family`` and parameters.

        ``lr`` and ``momentum`` are the sweep's unless they are given. A ``trunk`` given by name is the baseline of that
        name, or else a family. Raises ScheduleError.
        """
        return schedules.parse(self._complete(written))

    def _complete(self, schedule: str | Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
        """The mapping of a schedule with the sweep's defaults; the name of a trunk is replaced by that baseline."""
        written: dict[str, Any] = {"family": schedule} if isinstance(schedule, str) else dict(schedule)
        family, trunk = str(written.get("family", "")), written.get("trunk")
        if isinstance(trunk, str | Mapping):
            if depth > MOST_TRUNKS:
                raise ScheduleError(f"trunk: {str(trunk)[:80]} is a branch of itself; expected another baseline")
            named = self._named_baselines().get(trunk, trunk) if isinstance(trunk, str) else trunk
            written["trunk"] = self._complete(named, depth + 1)
        if trunk is None or family == "cawb":  # The default lr of any other branch is its trunk's LR at that step.
            written.setdefault("lr", self.lr0)
        if trunk is None and (family.startswith("yolo_") or written.get("warmup_kind") == "trainer"):
            written.setdefault("momentum", self.recipe.momentum)
        return written

    def _named_baselines(self) -> dict[str, str | dict[str, Any]]:
        """The baselines as written, by name; see ``named_baselines``."""
        named: dict[str, str | dict[str, Any]] = {}
        for written in self.baselines:
            family = written if isinstance(written, str) else str(written.get("family"))
            names = (family if number == 1 else f"{family}-{number}" for number in itertools.count(1))
            named[next(name for name in names if name not in named)] = written
        return named

    @cached_property
    def named_baselines(self) -> dict[str, Schedule]:
        """The baselines by name. The name is the family's; the second baseline of a family is ``cawb-2``."""
        return {name: self.schedule(written) for name, written in self._named_baselines().items()}

    @property
    def trunk(self) -> Schedule | None:
        """The baseline that ``search.trunk`` names, or None. Raises ConfigError if it is not one of the baselines.

        For ``best`` it is the first baseline; the service replaces it with :meth:`with_trunk` once the best is known.
        """
        written, baselines = self.search.trunk, self.named_baselines
        if written is None:
            return None
        if written == BEST and baselines:
            return next(iter(baselines.values()))
        try:
            trunk = baselines.get(written) if isinstance(written, str) else self.schedule(written)
        except ScheduleError as error:
            raise ConfigError(f"search.trunk: {error}") from None
        if trunk is None or trunk not in baselines.values():
            what = written if isinstance(written, str) else f"this {written.get('family')} schedule"
            raise ConfigError(
                f"search.trunk: {what} is not among the baselines{did_you_mean(written, baselines)}; expected "
                + (f"one of {', '.join(baselines)}" if baselines else "baselines: with the trunk in it")
            )
        return trunk

    def label(self, spec: Mapping[str, Any]) -> str:
        """The label of a schedule (``schedules.label``) without the parameters that are the same in all proposals."""
        held, proposed = {"lr": self.lr0, "momentum": self.recipe.momentum}, spec.get("of", spec)
        if proposed.get("family") != self.search.family:
            return schedules.label(spec, held)
        trunk = None if self.trunk is None else self.trunk.spec
        return schedules.label(spec, {**held, **self.search.held(), "trunk": trunk}, self.search.searched(proposed))

    def trunk_name(self) -> str | None:
        """The name of the baseline that is ``search.trunk``; None without a trunk and for ``best``."""
        if self.search.trunk in (None, BEST):
            return None
        return next(name for name, baseline in self.named_baselines.items() if baseline == self.trunk)

    def with_trunk(self, name: str | None) -> "Sweep":
        """The sweep with the baseline ``name``, or the first one for None, in the place of ``trunk: best``."""
        if self.search.trunk != BEST:
            return self
        chosen = name or next(iter(self.named_baselines))
        return self.model_copy(update={"search": self.search.model_copy(update={"trunk": chosen})})

    def with_each_trunk(self) -> "list[Sweep]":
        """For ``trunk: best`` the sweep with each baseline as its trunk, because each may be chosen; else the sweep."""
        names = self.named_baselines if self.search.trunk == BEST else [None]
        return [self.with_trunk(name) for name in names]

    def to_dict(self) -> dict[str, Any]:
        """Every key of the sweep file with its value, defaults included, as JSON data; ``build`` restores the sweep."""
        keys = self.model_dump(mode="json")
        # Keys without effect are left out, so that a sweep that was launched before they existed is the same sweep.
        if self.search.trunk is None:
            del keys["search"]["trunk"]
        if self.search.seeds == 1:
            for key in ("seeds", "race", "begin"):
                del keys["search"][key]
        keys.update(keys.pop("recipe"))
        return keys

    def identity(self) -> dict[str, Any]:
        """The keys of :meth:`to_dict` that may not change after the launch."""
        return {key: value for key, value in self.to_dict().items() if key not in self.CHANGEABLE}

    @classmethod
    def keys(cls) -> set[str]:
        """The keys that may stand in a sweep file."""
        return (set(Recipe.model_fields) | set(cls.model_fields)) - {"recipe"}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The optional keys of a sweep file with their default values, as JSON data."""
        fields = {**Recipe.model_fields, **cls.model_fields}
        values = {key: field.get_default(call_default_factory=True) for key, field in fields.items()}
        return {
            key: value.model_dump(mode="json") if isinstance(value, Model) else value
            for key, value in values.items()
            if not fields[key].is_required()
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> "Sweep":
        """Read and check a sweep file, or the built-in sweep of that name. ``overrides`` are texts ``key=value``.

        Raises ConfigError, in one line.
        """
        file = find_file(path)
        written = read(file)
        if isinstance(data := written.get("data"), str) and _is_path(data) and str(path) not in built_in():
            written["data"] = str(file.parent / data)  # A relative path in the file is relative to the file.
        override(written, overrides)
        return cls.build(written, str(file))

    @staticmethod
    def read_name(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> str:
        """The name in a sweep file, whose other keys are not checked. Raises ConfigError if there is no name."""
        written = read(find_file(path))
        override(written, overrides)
        if not isinstance(name := written.get("name"), str) or not name:
            raise ConfigError(f"{path}: name: {shorten(name)} is not the name of a sweep; expected a text")
        return name

    @classmethod
    def build(cls, written: Mapping[str, Any], where: str = "sweep") -> "Sweep":
        """The sweep for the keys and values of a sweep file. Raises ConfigError; ``where`` begins its message."""
        recipe_keys = set(Recipe.model_fields)
        known = sorted(cls.keys())
        for key in written:
            if key in ELSEWHERE:
                raise ConfigError(f"{where}: {key}: {ELSEWHERE[key]}")
            if key not in known:
                hint = did_you_mean(key, known) or f"; expected one of {', '.join(known)}"
                raise ConfigError(f"{where}: {shorten(key)} is not a key of a sweep{hint}")
        parts: dict[str, Any] = {key: value for key, value in written.items() if key not in recipe_keys}
        parts["recipe"] = {key: value for key, value in written.items() if key in recipe_keys}
        try:
            sweep = cls.model_validate(parts)
            _ = sweep.named_baselines
        except ValidationError as error:
            raise ConfigError(f"{where}: {one_line(error, cls)}") from None
        except ScheduleError as error:
            raise ConfigError(f"{where}: baselines: {error}") from None
        try:
            _ = sweep.trunk
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        if sweep.trials is None and sweep.budget is None:
            raise ConfigError(f"{where}: trials is missing; expected trials: 20, or a budget such as budget: 1600ep")
        if not sweep.baselines and (sweep.search.seeds > 1 or sweep.search.trunk == BEST):
            raise ConfigError(
                f"{where}: baselines: the list is empty, but a race compares proposals with a baseline on each seed; "
                "expected at least one baseline"
            )
        return sweep


def built_in() -> dict[str, Path]:
    """The files of the sweeps that come with the package, by name, as in ``sweeper run digits``. A relative path of
    ``data`` in them is relative to the current folder."""
    folder = resources.files("sweeper") / "sweeps"
    return {Path(file.name).stem: Path(str(file)) for file in folder.iterdir()} if folder.is_dir() else {}


def find_file(path: str | os.PathLike[str]) -> Path:
    """``path`` if that is a file; otherwise the file of the built-in sweep of that name, or ``path`` without one."""
    return Path(path) if os.path.isfile(path) else built_in().get(str(path), Path(path))


def _is_path(data: str) -> bool:
    return ("/" in data or data.endswith((".yaml", ".yml", ".json"))) and not Path(data).is_absolute()
