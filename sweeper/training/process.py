"""A training in a child process: a crash of CUDA, of a loader or of the model must not take the worker along.

The parent never imports torch. The child keeps its trainer between trials of one recipe (a new process costs seconds,
a live one a tenth), answers one message an epoch, and dies with its parent.
"""

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeper import errors
from sweeper.config import Recipe
from sweeper.errors import LRMismatch, SweeperError, TrainingError
from sweeper.schedules import Trace
from sweeper.training import Applied, Trainer
from sweeper.training import open as open_trainer

if TYPE_CHECKING:
    from sweeper.training import Detections

START_S = 300.0  # patience with a new process, which first imports torch


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: ``metrics`` of the EMA, mean ``losses``, seconds, and the exact state after it.

    ``detections`` are the EMA's on the validation images, where they were asked for. ``memory``: the most of the GPU's
    that was held so far, as a share of it; 0 on a CPU.
    """

    epoch: int
    lr: float  #: in effect at the epoch's last step, as recorded from the optimizer
    metrics: dict[str, float]
    losses: dict[str, float]
    seconds: float
    state: bytes
    state_digest: str
    detections: "list[Detections] | None" = None
    memory: float = 0.0


@dataclass(frozen=True)
class Beat:
    """A sign of progress inside an epoch, at most one a second."""

    epoch: int
    step: int


class Crash(TrainingError):
    """The training process died, or raised what it was not expected to; the message says how."""

    reason = "crashed"


class Hang(TrainingError):
    """The training made no progress for too long and was ended."""

    reason = "hung"


class TrainingProcess:
    """The child, seen from the worker. Use as a context manager; start-up is lazy and a dead child is started anew.

    ``share``: how much of a GPU's memory it may take. ``opening``: a function at the top of a module that opens the
    trainer in the child, for a trainer of one's own; see ``sweeper.training.open``.
    """

    def __init__(
        self,
        *,
        device: str,
        folder: Path,
        stall_s: float,
        share: float = 1.0,
        opening: Callable[..., Trainer] = open_trainer,
    ) -> None:
        self._device, self._folder, self._stall_s, self._share = device, folder, stall_s, share
        self._opening = opening
        self._process: Any = None
        self._pipe: Connection | None = None
        self._heard = False  # since it was started
        self._asked_at = 0  # bytes of the log that were there when it was last asked for something
        self.epochs = 0  #: finished so far, over all trainings
        self.log = folder / f"training-{os.getpid()}.log"

    def __enter__(self) -> "TrainingProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def fingerprint(self, recipe: Recipe) -> dict[str, Any]:
        """What of model, versions and hardware determines a training of ``recipe`` on this device (for its digest)."""
        answer = self._ask(("fingerprint", recipe))
        assert isinstance(answer, dict)
        return answer

    def train(
        self,
        recipe: Recipe,
        trace: Trace,
        *,
        start: int,
        state: bytes | None,
        detecting: Callable[[int], bool] = lambda epoch: False,
    ) -> Iterator[Epoch | Beat]:
        """Train ``trace`` from epoch ``start`` (whose beginning is ``state``; None: untrained) to its end.

        Epochs for which ``detecting`` holds come with their detections.

        Yields a Beat now and then and an Epoch after each; the child goes on when the next one is asked for. Closing
        the iterator ends the training at that point. Before an Epoch is given, what the optimizer used at each of its
        steps is compared with ``trace``: LRMismatch where they differ. Raises TrainingError, or what the child raised.
        """
        with_detections = {epoch for epoch in range(start, trace.epochs) if detecting(epoch)}
        self._send(("train", recipe, trace, start, with_detections, state))
        try:
            for number in range(start, trace.epochs):
                while isinstance(answer := self._receive(), Beat):
                    yield answer
                epoch, applied = answer
                self._compare(applied, number, trace, recipe)
                self.epochs += 1
                yield epoch
                self._send(("go",))
        except GeneratorExit:  # left before its end: what the child is doing is of no use any more
            self.end()
            raise

    def weights(self, recipe: Recipe, state: bytes) -> bytes:
        """The EMA's weights in a state of ``recipe`` (a state_dict file, no pickled code)."""
        answer = self._ask(("weights", recipe, state))
        assert isinstance(answer, bytes)
        return answer

    def detections(self, recipe: Recipe, state: bytes) -> "list[Detections]":
        """What the EMA in a state of ``recipe`` finds in the validation images."""
        answer = self._ask(("detections", recipe, state))
        assert isinstance(answer, list)
        return answer

    def quench(
        self, recipe: Recipe, trace: Trace, *, epoch: int, steps: int, state: bytes | None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The EMA's arrays after ``steps`` steps from ``state`` with the data and learning rates of ``epoch``.

        ``state``: None is the untrained one. Raises LRMismatch as :meth:`train` does.
        """
        arrays, applied = self._ask(("quench", recipe, trace, epoch, steps, state))
        self._compare(applied, epoch, trace, recipe, steps)
        assert isinstance(arrays, dict)
        return arrays

    def loss(
        self, recipe: Recipe, arrays: Mapping[str, np.ndarray[Any, Any]], *, epoch: int, batches: int, images: int
    ) -> float:
        """Loss of an EMA with these arrays on the first ``images`` validation images, as they are.

        Its BatchNorm statistics are recomputed before, on the first ``batches`` of the augmented batches of ``epoch``.
        """
        return float(self._ask(("loss", recipe, dict(arrays), epoch, batches, images)))

    def end(self) -> None:
        """End the child, at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            assert self._pipe is not None
            self._pipe.close()
        self._process = self._pipe = None

    def last_lines(self, count: int = 40) -> str:
        """The end of what the child wrote since it was last asked for something: of this trial, not of those before."""
        with contextlib.suppress(OSError):
            written = self.log.read_bytes()[self._asked_at :].decode(errors="replace")
            return "\n".join(written.splitlines()[-count:])
        return ""

    def _compare(self, applied: Applied, epoch: int, trace: Trace, recipe: Recipe, steps: int | None = None) -> None:
        try:
            applied.check(epoch, trace, recipe, steps)
        except LRMismatch:
            self.end()  # it waits to be sent on
            raise

    def _ask(self, message: tuple[Any, ...]) -> Any:
        self._send(message)
        while isinstance(answer := self._receive(), Beat):
            pass
        return answer

    def _send(self, message: tuple[Any, ...]) -> None:
        if self._process is None:
            self._start()
        else:
            with contextlib.suppress(FileNotFoundError):
                self._asked_at = self.log.stat().st_size
        assert self._pipe is not None
        try:
            self._pipe.send(message)
        except (BrokenPipeError, ConnectionError):
            raise self._crashed() from None

    def _receive(self) -> Any:
        assert self._pipe is not None
        try:
            patience = self._stall_s if self._heard else max(self._stall_s, START_S)
            if not self._pipe.poll(patience):
                self.end()
                raise Hang(f"no batch was finished in {patience:g} s (stall_s); the training was ended")
            answer = self._pipe.recv()
            self._heard = True
        except (EOFError, ConnectionError):
            raise self._crashed() from None
        if isinstance(answer, tuple) and answer[0] == "error":
            _, name, message = answer
            kind = errors.OutOfMemory if name == "MemoryError" else getattr(errors, name, None)
            if kind is None:  # a full disk, a fault of CUDA: nobody foresaw it
                raise Crash(f"{name}: {message}")
            raise kind(message)
        return answer

    def _crashed(self) -> Crash:
        assert self._process is not None
        self._process.join(5)
        code = self._process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        hint = " (the kernel's, for want of memory?)" if code == -signal.SIGKILL else ""
        self.end()
        return Crash(f"the training process ended with {how}{hint}; its output: {self.log}")

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        self._asked_at = 0
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_child,
            args=(theirs, self._opening, self._device, self._share, self._folder, self.log, os.getpid()),
            daemon=False,
        )
        self._process.start()
        self._heard = False
        theirs.close()


def _child(
    pipe: Connection,
    opening: Callable[..., Trainer],
    device: str,
    share: float,
    folder: Path,
    log: Path,
    parent: int,
) -> None:
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the worker decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if hasattr(os, "register_at_fork"):  # loader processes are ours to end, too
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    import faulthandler

    faulthandler.enable()
    from sweeper import training

    trainer: training.Trainer | None = None
    opened: Recipe | None = None
    untrained = b""
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        try:
            if message[0] == "fingerprint":
                pipe.send(training.fingerprint(message[1], device=device, threads=message[1].threads))
                continue
            recipe, state = message[1], message[-1]
            if trainer is None or opened != recipe:
                training.limit_memory(device, share)
                trainer = opening(recipe, device=device, threads=recipe.threads, folder=folder)
                opened, untrained = recipe, trainer.state()
            if message[0] == "loss":
                _, _, arrays, epoch, batches, images = message
                trainer.set_weights(arrays)
                trainer.recompute_bn(epoch, batches)
                pipe.send(trainer.val_loss(images))
                continue
            trainer.load(untrained if state is None else state)
            if message[0] == "weights":
                pipe.send(trainer.weights())
            elif message[0] == "detections":
                pipe.send(trainer.evaluate().detections)
            elif message[0] == "quench":
                log_of_steps = trainer.train_epoch(message[3], message[2], steps=message[4])
                pipe.send((trainer.arrays(), log_of_steps.applied))
            else:
                _train(pipe, trainer, device=device, trace=message[2], start=message[3], detecting=message[4])
        except BaseException as error:  # whatever it is, the worker hears of it; a broken trainer is not used again
            import traceback

            traceback.print_exc()
            trainer = opened = None
            pipe.send(("error", type(error).__name__, str(error)))
            if not isinstance(error, SweeperError | Exception):
                raise


def _train(pipe: Connection, trainer: Any, device: str, trace: Trace, start: int, detecting: set[int]) -> None:
    from sweeper import training

    last = 0.0

    def beat(step: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= 1:
            last = now
            pipe.send(Beat(epoch, step))

    for epoch in range(start, trace.epochs):
        log = trainer.train_epoch(epoch, trace, beat)
        evaluation = trainer.evaluate(beat)
        event = Epoch(
            epoch=epoch,
            lr=float(log.lr[-1]) if len(log.lr) else math.nan,
            metrics=dict(evaluation.metrics),
            losses=dict(log.losses),
            seconds=log.seconds,
            state=trainer.state(),
            state_digest=trainer.state_digest(),
            detections=evaluation.detections if epoch in detecting else None,
            memory=training.memory(device),
        )
        pipe.send((event, log.applied))
        pipe.recv()  # "go"; EOF ends the process


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process with its parent; where it cannot, watch."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
