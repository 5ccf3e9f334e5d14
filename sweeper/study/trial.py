"""One trial as it stands, and every attribute that is stored with one."""

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

REPLICATE = "replicate_of"  #: the attribute that names the trial whose schedule is repeated


@dataclass(frozen=True)
class Wanted:
    """A trial that there should be; what is given becomes its attributes, see :class:`Facts`.

    ``schedule``: a spec; None: one is proposed, with the answers in ``params`` where the sampler would be asked, or
    that of the trial ``replicate_of`` is repeated on another seed.
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
        """What is not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def item(self) -> str:
        """The name by which the study knows whether it is there: of its content, without the seed where a schedule is
        yet to be proposed."""
        proposed = self.schedule is None and self.replicate_of is None
        content = self.given | ({"schedule": None, "seed": 0} if proposed else {})
        text = json.dumps(content, sort_keys=True)
        return f"{self.stage}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Control:
    """What a control trial controls: a restart of ``trial``, or that trial as a whole (``restart`` None).

    ``kind`` is a control's family, another seed, or the measurement of a barrier. ``restart`` counts from 1, in
    ``epoch`` by ``ratio`` (None: from a learning rate of 0), with a cycle that ends after ``end`` epochs. A measurement
    has the ``other`` seed that it compares with, and its ``settings``.
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
    """The attributes that are stored with a trial, under these names in Optuna; None where there is none (yet).

    Given with its slot: ``name`` of the configuration, ``replicate_of`` (the trial that it repeats on another seed),
    ``design`` of the confirmation (``evidence.Design``), ``control``.
    Known with its schedule: ``trace`` and ``recipe`` are digests; ``facts`` are those of the trace, and ``restarts`` to
    ``warmup_fraction`` the ones that optuna-dashboard shows as columns; ``proposals`` counts the sampler's for it;
    ``duplicate_of`` is a finished trial with the same training.
    Known with its end: ``epochs_trained`` and ``epochs_reused``, the median ``epoch_seconds``, ``state_digest``
    (SHA-256), ``effects`` of its jumps on its own curve (``evidence.Effect``; of a branch see ``evidence.jumps_of``),
    ``landscape`` (``evidence.Landscape``), ``AP`` (COCO's, of the final model), ``gpu_memory`` (the largest share
    held), ``run_id`` in MLflow, why it was ``pruned``.
    ``judged``: after how many epochs it was last compared with others. ``confounder``: why it must not be compared, in
    a word. ``reasons``: how its attempts ended, once they are used up.
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
        """Those among the user attributes of an Optuna trial."""
        known = {each.name: attributes[each.name] for each in fields(cls) if each.name in attributes}
        if known.get("control") is not None:
            known["control"] = Control(**known["control"])
        return cls(**known)


@dataclass(frozen=True)
class Trial:
    """One trial as it stands, read by ``Study.trials``.

    ``seed`` is that of its training. ``state`` is Optuna's word. ``spec`` is its schedule as plain data (None: not
    proposed yet), ``params`` what the sampler answered. ``score``: the objective that it was told with, of a pruned one
    the best so far. ``curve``: the objective by epoch (from 0). ``seconds`` from the first start to the end over all
    attempts. ``attempt`` counts claims, ``worker`` is the last one (None: it gave the trial back), ``reasons`` say how
    attempts ended that did not reach the end. ``label``: in a few words what its schedule is, given by the service,
    which knows the sweep.
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
        """The trial as Optuna has it, with what the row of its slot says of it."""
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
        """Its schedule, parsed once. ScheduleError for a spec that is none."""
        return None if self.spec is None else parse(self.spec)

    @property
    def name(self) -> str:
        """What its configuration is called: the baseline's name, or ``trial N``, and so are trial N's replicates."""
        return self.facts.name or f"trial {self.number if self.original is None else self.original}"

    @property
    def original(self) -> int | None:
        """The trial that it repeats on another seed; None where it repeats none."""
        return self.facts.replicate_of

    @property
    def title(self) -> str:
        """How a sentence calls the configuration: by its trial and its label, or by its name without one."""
        return f"trial {self.number} ({self.label})" if self.label else self.name

    @property
    def open(self) -> bool:
        """Whether it is not finished."""
        return self.state in ("WAITING", "RUNNING")

    @property
    def shown_state(self) -> str:
        """Its state in small letters; a trial that was begun and given back is "waiting", as no worker has it now."""
        return "waiting" if self.state == "RUNNING" and self.worker is None else self.state.lower()

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.state == "FAIL"

    @property
    def confounder(self) -> str | None:
        """Why it cannot be compared, in a line; None if it can, or while it is not finished."""
        if self.failed:  # the last attempt's reason says more than the word; lines of a log may follow it
            return self.reasons[-1].splitlines()[0] if self.reasons else self.facts.confounder or "failed"
        return self.facts.confounder or ("pruned" if self.state == "PRUNED" else None)

    @property
    def usable(self) -> bool:
        """Whether it can be compared: finished, with a finite score, and nothing against it."""
        return self.confounder is None and self.score is not None and math.isfinite(self.score)

    @property
    def unfinished(self) -> bool:
        """Whether it has neither a score nor a reason why there is none."""
        return self.score is None and self.confounder is None

    @property
    def reused(self) -> int:
        """Epochs that were there already when it began."""
        return self.facts.epochs_reused or 0

    @property
    def values(self) -> list[float]:
        """The objective of its epochs in their order."""
        return [self.curve[epoch] for epoch in sorted(self.curve)]

    def shown(self) -> dict[str, Any]:
        """What stands beside it in a table: the facts of its trace, and COCO's ``AP`` if it has one."""
        return {**self.facts.facts, **({} if self.facts.AP is None else {"AP": self.facts.AP})}
