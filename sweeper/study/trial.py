"""The state of one trial, and every attribute that is stored with a trial."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

from optuna.trial import FrozenTrial

from sweeper.schedules import Schedule, parse

Stage = Literal["baseline", "search", "confirm", "control"]
State = Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL"]

REPLICATE = "replicate_of"  #: The attribute of a replicate with the number of the trial whose schedule it repeats.


@dataclass(frozen=True)
class Wanted:
    """A trial that should exist. Each field that is not None is stored as an attribute, see :class:`Facts`.

    ``schedule`` is a spec. If it is None, the trial repeats the schedule of trial ``replicate_of`` on another seed; if
    that is None too, the sampler proposes a schedule, in which the parameters in ``params`` are fixed.
    """

    stage: Stage
    seed: int
    schedule: Mapping[str, Any] | None = None
    name: str | None = None
    params: Mapping[str, Any] | None = None
    replicate_of: int | None = None
    design: Mapping[str, Any] | None = None
    control: Mapping[str, Any] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def item(self) -> str:
        """The text by which the study knows whether this trial exists: its stage and a hash of the fields.

        The seed is left out for a trial whose schedule the sampler proposes.
        """
        proposed = self.schedule is None and self.replicate_of is None
        content = self.given | ({"schedule": None, "seed": 0} if proposed else {})
        text = json.dumps(content, sort_keys=True)
        return f"{self.stage}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Control:
    """The restart of ``trial`` that a control trial examines, or that trial as a whole (``restart`` None).

    ``kind`` is a control's family, another seed, or the measurement of a barrier. ``restart`` counts the restarts of
    ``trial`` from 1; it comes at the beginning of ``epoch``, multiplies the learning rate by ``ratio`` (None: the rate
    was 0), and its cycle ends after ``end`` epochs. A measurement of a barrier has the ``other`` seed with which it
    compares, and its ``settings``.
    """

    trial: int
    kind: str
    restart: int | None = None
    epoch: int = 0
    ratio: float | None = None
    end: int = 0
    other: int | None = None
    settings: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Facts:
    """The attributes that are stored with a trial, under these names in Optuna; None where an attribute is not stored.

    Stored when the trial is created: ``name`` of the configuration, ``replicate_of`` (the number of the trial whose
    schedule it repeats on another seed), ``design`` of the confirmation (``evidence.Design``), ``control``.
    Stored when its schedule is known: ``trace`` and ``recipe`` (digests), ``facts`` (those of the trace; ``restarts``
    to ``warmup_fraction`` repeat some of them as columns for optuna-dashboard), ``proposals`` (how many the sampler
    made), ``duplicate_of`` (the number of a finished trial with the same training).
    Stored when it ends: ``epochs_trained`` and ``epochs_reused``, the median ``epoch_seconds``, ``state_digest``
    (SHA-256), ``effects`` of its jumps on its own curve (``evidence.Effect``; for a branch see ``evidence.jumps_of``),
    ``landscape`` (``evidence.Landscape``), ``AP`` (COCO's, of the final model), ``gpu_memory`` (the largest share of
    the GPU's memory that was held), ``run_id`` in MLflow, ``pruned`` (why it was stopped early).
    ``judged`` is the number of epochs after which it was last compared with other trials, ``confounder`` a keyword for
    why it must not be compared, ``reasons`` why its attempts ended, if the trial failed.
    """

    name: str | None = None
    replicate_of: int | None = None
    design: Mapping[str, Any] | None = None
    control: Control | None = None
    trace: str | None = None
    recipe: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    restarts: int | None = None
    drops: int | None = None
    peak: float | None = None
    final: float | None = None
    integral: float | None = None
    warmup_fraction: float | None = None
    proposals: int = 1
    duplicate_of: int | None = None
    epochs_trained: int | None = None
    epochs_reused: int | None = None
    epoch_seconds: float | None = None
    state_digest: str | None = None
    effects: Sequence[Mapping[str, Any]] = ()
    landscape: Mapping[str, Any] | None = None
    AP: float | None = None
    gpu_memory: float | None = None
    run_id: str | None = None
    pruned: str | None = None
    judged: int = 0
    confounder: str | None = None
    reasons: Sequence[str] = ()

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Facts:
        """Read the facts from the user attributes of an Optuna trial; other attributes are ignored."""
        stored = {field.name: attributes[field.name] for field in fields(cls) if field.name in attributes}
        if stored.get("control") is not None:
            stored["control"] = Control(**stored["control"])
        return cls(**stored)


@dataclass(frozen=True)
class Trial:
    """The state of one trial, as read by ``Study.trials``.

    ``seed`` is the seed of the training, ``state`` Optuna's state. ``spec`` is the schedule as plain data (None: not
    proposed yet), ``params`` are the sampler's parameters. ``score`` is the final objective, for a pruned trial its
    best one. ``curve`` is the objective by epoch (from 0). ``seconds`` is the time from the first start to the end over
    all attempts. ``attempt`` counts claims. ``worker`` is the last worker that claimed the trial (None: it released the
    trial). ``reasons`` say why attempts ended before the trial did. ``label`` describes the schedule in a few words;
    the service sets it, because it depends on the sweep.
    """

    number: int
    stage: Stage
    seed: int
    state: State = "WAITING"
    spec: Mapping[str, Any] | None = None
    score: float | None = None
    curve: Mapping[int, float] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    params: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    attempt: int = 0
    worker: str | None = None
    reasons: Sequence[str] = ()
    label: str = ""

    @classmethod
    def of(cls, frozen: FrozenTrial, slot: Any) -> Trial:
        """Combine Optuna's trial with the row of its slot."""
        begun, ended = frozen.datetime_start, frozen.datetime_complete
        return cls(
            number=frozen.number,
            stage=frozen.user_attrs["stage"],
            seed=frozen.user_attrs["seed"],
            state=frozen.state.name,  # type: ignore[arg-type]
            spec=frozen.user_attrs.get("schedule"),
            score=None if frozen.values is None else frozen.values[0],
            curve=dict(frozen.intermediate_values),
            facts=Facts.of(frozen.user_attrs),
            params=dict(frozen.params),
            seconds=None if begun is None or ended is None else (ended - begun).total_seconds(),
            attempt=slot.attempt,
            worker=slot.worker,
            reasons=tuple(json.loads(slot.reasons)),
        )

    @cached_property
    def schedule(self) -> Schedule | None:
        """The schedule, parsed at the first access; raises ScheduleError for an invalid spec."""
        return None if self.spec is None else parse(self.spec)

    @property
    def name(self) -> str:
        """The name of the configuration: the baseline's name, or ``trial N``, also for the replicates of trial N."""
        return self.facts.name or f"trial {self.number if self.original is None else self.original}"

    @property
    def original(self) -> int | None:
        """The number of the trial that this one repeats on another seed; None for a trial that is no replicate."""
        return self.facts.replicate_of

    @property
    def title(self) -> str:
        """The configuration's name in a sentence: trial and label, or :attr:`name` where there is no label."""
        return f"trial {self.number} ({self.label})" if self.label else self.name

    @property
    def open(self) -> bool:
        """Whether the trial is not finished."""
        return self.state in ("WAITING", "RUNNING")

    @property
    def shown_state(self) -> str:
        """The state in lower case; a trial that was begun and released is "waiting", because no worker holds it."""
        return "waiting" if self.state == "RUNNING" and self.worker is None else self.state.lower()

    @property
    def failed(self) -> bool:
        """Whether the trial ended with an error."""
        return self.state == "FAIL"

    @property
    def confounder(self) -> str | None:
        """Why the trial cannot be compared, in one line; None if it can be, and while it is not finished."""
        if self.failed:  # The last attempt's reason is more specific; only its first line, because a log may follow.
            return self.reasons[-1].splitlines()[0] if self.reasons else self.facts.confounder or "failed"
        return self.facts.confounder or ("pruned" if self.state == "PRUNED" else None)

    @property
    def usable(self) -> bool:
        """Whether the trial can be compared: it is finished and has a finite score and no confounder."""
        return self.confounder is None and self.score is not None and math.isfinite(self.score)

    @property
    def unfinished(self) -> bool:
        """Whether the trial has neither a score nor a confounder."""
        return self.score is None and self.confounder is None

    @property
    def reused(self) -> int:
        """How many of its epochs another trial had trained."""
        return self.facts.epochs_reused or 0

    @property
    def values(self) -> list[float]:
        """The objective of the epochs, in their order."""
        return [self.curve[epoch] for epoch in sorted(self.curve)]

    def shown(self) -> dict[str, Any]:
        """The facts of the trace, and COCO's ``AP`` if it was measured, for a row of a table."""
        return {**self.facts.facts, **({} if self.facts.AP is None else {"AP": self.facts.AP})}
