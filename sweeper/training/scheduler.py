"""Applies a trace to an optimizer, by a torch scheduler or by Ultralytics' callbacks, and records what was used."""

import math
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sweeper.errors import ScheduleError
from sweeper.schedules import Schedule, TimeBase, Trace
from sweeper.training import Applied


class TraceLR(LRScheduler):
    """Sets each optimizer step's learning rate (and momentum) from ``trace``; one ``step()`` per optimizer step.

    A parameter group is looked up in the trace by its ``"param_group"`` or ``"name"`` entry, else by its index as a
    string ("1" is the second group); a group that is not in the trace gets the main group's LR. ``start``: the
    optimizer step to begin at, for a resume without a saved state. ``state_dict`` holds the step and the trace's
    digest; loading it sets the LR, so optimizer and scheduler can be loaded in any order. After the last step the LR
    stays constant. Raises ScheduleError for a start outside the trace or the state of another trace.

    >>> import torch
    >>> from sweeper.schedules import TimeBase, parse
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> schedule = parse({"family": "cawb", "lr": 0.1, "steps": [2], "floor": 0.2, "decay": "linear"})
    >>> scheduler = TraceLR(optimizer, schedule.trace(TimeBase(epochs=4, steps_per_epoch=1)))
    >>> used = []
    >>> for batch in torch.ones(4, 2):
    ...     used.append(round(scheduler.get_last_lr()[0], 3))
    ...     _ = optimizer.zero_grad(), model(batch).sum().backward(), optimizer.step(), scheduler.step()
    >>> used
    [0.1, 0.06, 0.08, 0.048]
    """

    def __init__(self, optimizer: Optimizer, trace: Trace, start: int = 0) -> None:
        if not 0 <= start <= trace.steps:
            raise ScheduleError(f"start: {start} is not a step of this trace; expected 0 to {trace.steps}")
        self.trace = trace
        self._start = start
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Go on to the next optimizer step; call it after ``optimizer.step()``."""
        if epoch is not None:
            raise ScheduleError(
                f"step({epoch}): a trace is read one step at a time; expected step() without an argument"
            )
        self._step_count += 1
        self._apply(self._start if self._step_count == 1 else self.last_epoch + 1)

    def get_lr(self) -> list[float | Tensor]:
        """The LR of each parameter group at the current step."""
        step = min(self.last_epoch, self.trace.steps - 1)
        groups = self.optimizer.param_groups
        return [float(self.trace.group(_group_name(group, index))[step]) for index, group in enumerate(groups)]

    def _apply(self, step: int) -> None:
        self.last_epoch = step  # The name is torch's; it counts optimizer steps here.
        lrs = self.get_lr()
        momentum = self.trace.momentum
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
            if momentum is not None and "momentum" in group:
                group["momentum"] = float(momentum[min(step, self.trace.steps - 1)])
        self._last_lr = lrs

    def state_dict(self) -> dict[str, Any]:
        """The next step and the digest of the trace; loads with ``weights_only=True``."""
        return {"step": self.last_epoch, "trace": self.trace.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the saved step of the same trace, exactly."""
        saved, step = state_dict.get("trace"), state_dict.get("step")
        if saved != self.trace.digest:
            raise ScheduleError(
                f"trace: the saved state belongs to {str(saved)[:12]}, this scheduler reads {self.trace.digest[:12]}; "
                "use the same schedule, or TraceLR(..., start=step) to go on with another one"
            )
        if not isinstance(step, int) or step < 0:
            raise ScheduleError(f"step: {step!r} in the saved state is not a step; expected a whole number from 0")
        self._step_count = step + 1
        self._apply(step)


class ColumnsCallback:
    """Callbacks of Ultralytics that set each optimizer step's learning rate, and momentum, from ``columns``.

    ``columns``: a number for every optimizer step under ``lr``, under ``lr/GROUP`` for a parameter group with its own
    LR, and under ``momentum`` if the schedule changes it. Ultralytics' own warm-up is turned off. ``sweeper export``
    copies the source of this class into its script, so it must not use other code of this package.
    """

    def __init__(self, columns: dict[str, Any], steps_per_epoch: int) -> None:
        self.columns, self.steps_per_epoch, self._batch = columns, steps_per_epoch, 0

    def add_to(self, model: Any) -> None:
        """Register the callbacks with ``model``, a ``YOLO``, for all its trainings."""
        for event in ("on_pretrain_routine_end", "on_train_epoch_start", "on_train_batch_start"):
            model.add_callback(event, getattr(self, event))

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        """Called before the first epoch."""
        trainer.args.warmup_epochs = 0.0

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Called before each epoch."""
        self._batch = 0

    def on_train_batch_start(self, trainer: Any) -> None:
        """Called before each batch, of which ``accumulate`` make an optimizer step."""
        step = min(self._batch // trainer.accumulate, self.steps_per_epoch - 1) + trainer.epoch * self.steps_per_epoch
        self._batch += 1
        for group in trainer.optimizer.param_groups:
            multiple = round(group["initial_lr"] / trainer.args.lr0, 6)  # 3 in some groups of MuSGD
            lr = self.columns.get("lr/" + group.get("param_group", ""), self.columns["lr"])
            group["lr"] = multiple * float(lr[step])
            if "momentum" in group and "momentum" in self.columns:
                group["momentum"] = float(self.columns["momentum"][step])


class ScheduleCallback(ColumnsCallback):
    """Makes ``model.train(...)`` of plain Ultralytics follow a schedule, or a trace with its epochs and steps.

    When the training begins, the trace of a schedule is computed for its epochs, batches and ``nbs``; it is available
    as ``trace``. The training must run on one device. ``train`` raises ScheduleError for a schedule that has no trace
    of this length, and for a trace of another length::

        model = YOLO("yolo11n.pt")
        ScheduleCallback(parse({"family": "cawb", "lr": 0.01, "steps": [30, 60]})).add_to(model)
        model.train(data="data.yaml", epochs=100)
    """

    trace: Trace

    def __init__(self, schedule: Schedule | Trace) -> None:
        super().__init__({}, 0)
        self.schedule = schedule

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        """Compute the trace for this training."""
        time = TimeBase(
            trainer.epochs, math.ceil(len(trainer.train_loader) / trainer.accumulate), len(trainer.train_loader.dataset)
        )
        trace = self.schedule if isinstance(self.schedule, Trace) else self.schedule.trace(time)
        if (trace.epochs, trace.steps_per_epoch) != (time.epochs, time.steps_per_epoch):
            raise ScheduleError(
                f"trace: it has {trace.epochs} epochs of {trace.steps_per_epoch} steps, this training "
                f"{time.epochs} of {time.steps_per_epoch}; pass the schedule, from which the right trace is computed"
            )
        self.trace, self.columns, self.steps_per_epoch = trace, trace.to_columns(), trace.steps_per_epoch
        super().on_pretrain_routine_end(trainer)


def _group_name(group: dict[str, Any], index: int) -> str:
    return str(group.get("param_group") or group.get("name") or index)


class Recorder:
    """Records the settings of the groups of ``optimizer`` at each of its steps, without waiting for a GPU.

    Its hook runs after the update, because other hooks may change a setting before it. The update itself changes no
    setting.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._names: tuple[str, ...] = tuple(group["param_group"] for group in optimizer.param_groups)
        self.clear()
        optimizer.register_step_post_hook(self._stepped)

    def clear(self) -> None:
        """Delete the recorded steps, at the beginning of an epoch."""
        self._rows: list[list[tuple[Any, ...]]] = []
        self._infinite: list[Tensor | bool] = []

    @property
    def steps(self) -> int:
        """The number of recorded steps, including skipped ones."""
        return len(self._rows)

    def skipped(self) -> None:
        """Record a step in which the gradient scaler did not call the optimizer."""
        self._rows.append(self._settings())
        self._infinite.append(True)

    def applied(self) -> Applied:
        """The steps since ``clear``. Waits for the GPU once."""
        columns = len(self._settings()[0])
        settings = np.array(self._rows, np.float64).reshape(len(self._rows), len(self._names), columns)
        skipped = [bool(value) for value in self._infinite]
        return Applied(self._names, settings[:, :, 0], settings[:, :, 1:], np.array(skipped, bool))

    def _stepped(self, optimizer: Optimizer, *_: object) -> None:
        self._rows.append(self._settings())
        # A fused optimizer is called even if a gradient is infinite, and skips the update in its own kernel.
        self._infinite.append(getattr(optimizer, "found_inf", False))

    def _settings(self) -> list[tuple[Any, ...]]:
        """Each group's LR with its momentum or betas."""
        groups = self._optimizer.param_groups
        return [(group["lr"], *((group["momentum"],) if "momentum" in group else group["betas"])) for group in groups]
