"""A training in a child process: a crash of CUDA, of a loader or of the model must not take the worker along.

The parent never imports torch. The child keeps its trainer between trials of one recipe (a new process costs seconds, a
live one a tenth) and dies with its parent. While the parent stores an epoch and asks whether to go on, the child trains
the next one, which it gives up at its next batch if the answer is no: a GPU does not wait for a database.
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
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from sweeper import errors, training
from sweeper.config import Recipe
from sweeper.errors import LRMismatch, TrainingError
from sweeper.schedules import Trace
from sweeper.training import Applied, Detections, Trainer

START_S = 300.0  # patience with a new process, which first imports torch
GO, STOP, STOPPED = "go", "stop", "stopped"  # after an epoch: the parent's two words, and the child's answer to stop


class Crash(TrainingError):
    """The training process died, or raised what it was not expected to; the message says how."""

    reason = "crashed"


class Hang(TrainingError):
    """The training made no progress for too long and was ended."""

    reason = "hung"


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: ``metrics`` of the EMA, mean ``losses``, seconds, and the exact state after it.

    ``lr``: at the epoch's last step, as recorded from the optimizer. ``detections``: the EMA's on the validation
    images, where they were asked for. ``memory``: the largest share of the GPU's memory that was held so far; 0 on a
    CPU.
    """

    epoch: int
    lr: float
    metrics: dict[str, float]
    losses: dict[str, float]
    seconds: float
    state: bytes
    state_digest: str
    detections: list[Detections] | None = None
    memory: float = 0.0


@dataclass(frozen=True)
class Beat:
    """A sign of progress inside an epoch, at most one a second."""

    epoch: int
    step: int


class TrainingProcess:
    """The child, seen from the worker. Use as a context manager; start-up is lazy and a dead child is started anew.

    ``share``: how much of a GPU's memory it may take. ``opening``: a function at the top of a module that opens the
    trainer in the child, for a trainer of one's own; see ``sweeper.training.open``. ``epochs``: finished so far, over
    all trainings.
    """

    def __init__(
        self,
        *,
        device: str,
        folder: Path,
        stall_s: float,
        share: float = 1.0,
        opening: Callable[..., Trainer] = training.open,
    ) -> None:
        self._device, self._folder, self._stall_s, self._share = device, folder, stall_s, share
        self._opening = opening
        self._process: Any = None
        self._pipe: Connection | None = None
        self._has_answered = False  # since it was started
        self._is_stopping = False  # it was told to stop, and its answers up to STOPPED are of no use
        self._asked_at = 0  # bytes of the log that were there when it was last asked for something
        self.epochs = 0
        self.log = folder / f"training-{os.getpid()}.log"

    def __enter__(self) -> "TrainingProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def fingerprint(self, recipe: Recipe) -> dict[str, Any]:
        """What of model, versions and hardware determines a training of ``recipe`` on this device (for its digest)."""
        answer: dict[str, Any] = self._ask(_fingerprint, recipe)
        return answer

    def state_bytes(self, recipe: Recipe) -> int:
        """About how many bytes a state of ``recipe`` takes, from the model's size."""
        answer: int = self._ask(_state_bytes, recipe)
        return answer

    def train(
        self,
        recipe: Recipe,
        trace: Trace,
        *,
        start: int,
        state: bytes | None,
        detecting: Callable[[int], bool] = lambda epoch: False,
    ) -> Generator[Epoch | Beat]:
        """Train ``trace`` from epoch ``start`` (whose beginning is ``state``; None: untrained) to its end.

        Yields a Beat now and then and an Epoch after each, with its detections where ``detecting`` holds. An epoch is
        given only after the caller has asked on after the one before. Closing the iterator (``contextlib.closing``)
        ends the training; do so before anything else is asked of the child. After an epoch the child lives on, in the
        middle of one it is killed.

        Before an Epoch is given, what the optimizer used at each of its steps is compared with ``trace``: LRMismatch
        where they differ. Raises TrainingError, or what the child raised.
        """
        with_detections = {epoch for epoch in range(start, trace.epochs) if detecting(epoch)}
        self._send((_train, recipe, trace, start, with_detections, state))
        process, waits = self._process, False  # whether the child waits for a word
        try:
            for number in range(start, trace.epochs):
                waits = False
                while isinstance(answer := self._receive(), Beat):
                    yield answer
                waits = True
                epoch, applied = answer
                applied.check(number, trace, recipe)
                self.epochs += 1
                yield epoch
                self._send(GO)
        except (GeneratorExit, LRMismatch):  # left before its end
            if self._process is process:  # else it was ended meanwhile
                if waits:
                    with contextlib.suppress(Crash):
                        self._send(STOP)
                        self._is_stopping = True
                else:  # what the child is doing is of no use any more
                    self.end()
            raise

    def weights(self, recipe: Recipe, state: bytes) -> bytes:
        """The EMA's weights in a state of ``recipe`` (a state_dict file, no pickled code)."""
        answer: bytes = self._ask(_weights, recipe, state)
        return answer

    def detections(self, recipe: Recipe, state: bytes) -> list[Detections]:
        """The detections of the EMA in a state of ``recipe`` on the validation images, one entry per image."""
        answer: list[Detections] = self._ask(_detections, recipe, state)
        return answer

    def quench(
        self, recipe: Recipe, trace: Trace, *, epoch: int, steps: int, state: bytes | None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The EMA's arrays after ``steps`` steps from ``state`` with the data and learning rates of ``epoch``.

        ``state``: None is the untrained one. Raises LRMismatch as :meth:`train` does.
        """
        arrays: dict[str, np.ndarray[Any, Any]]
        arrays, applied = self._ask(_quench, recipe, trace, epoch, steps, state)
        applied.check(epoch, trace, recipe, steps)
        return arrays

    def loss(
        self, recipe: Recipe, arrays: Mapping[str, np.ndarray[Any, Any]], *, epoch: int, batches: int, images: int
    ) -> float:
        """Loss of an EMA with these arrays on the first ``images`` validation images, as they are.

        Its BatchNorm statistics are recomputed before, on the first ``batches`` of the augmented batches of ``epoch``.
        """
        return float(self._ask(_loss, recipe, dict(arrays), epoch, batches, images))

    def end(self) -> None:
        """End the child, at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            assert self._pipe is not None
            self._pipe.close()
        self._process = self._pipe = None
        self._is_stopping = False

    def last_lines(self, count: int = 40) -> str:
        """The end of what the child wrote since it was last asked for something: of this trial, not of those before."""
        with contextlib.suppress(OSError):
            written = self.log.read_bytes()[self._asked_at :].decode(errors="replace")
            return "\n".join(written.splitlines()[-count:])
        return ""

    def _ask(self, *message: Any) -> Any:
        self._send(message)
        while isinstance(answer := self._receive(), Beat):
            pass
        return answer

    def _send(self, message: Any) -> None:
        if self._is_stopping:
            with contextlib.suppress(Crash, Hang):  # in an epoch that nobody wants; a new child is started
                while self._next() != STOPPED:
                    pass
            self._is_stopping = False
        if self._process is None:
            self._start()
        elif message != GO:  # what it wrote in an epoch ahead belongs to what was asked before
            with contextlib.suppress(FileNotFoundError):
                self._asked_at = self.log.stat().st_size
        assert self._pipe is not None
        try:
            self._pipe.send(message)
        except (BrokenPipeError, ConnectionError):
            raise self._crashed() from None

    def _receive(self) -> Any:
        answer = self._next()
        if isinstance(answer, tuple) and answer[0] == "error":
            _, name, message = answer
            kind = errors.OutOfMemory if name == "MemoryError" else getattr(errors, name, None)
            if kind is None:  # a full disk, a fault of CUDA: nobody foresaw it
                raise Crash(f"{name}: {message}")
            raise kind(message)
        return answer

    def _next(self) -> Any:
        assert self._pipe is not None
        try:
            patience = self._stall_s if self._has_answered else max(self._stall_s, START_S)
            if not self._pipe.poll(patience):
                self.end()
                raise Hang(f"no batch was finished in {patience:g} s (stall_s); the training was ended")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise self._crashed() from None
        self._has_answered = True
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
        given = (theirs, self._opening, self._device, self._share, self._folder, self.log, os.getpid())
        self._process = context.Process(target=serve, args=given, daemon=False)
        self._process.start()
        self._has_answered = False
        theirs.close()


# -- in the child ------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The parent wants no more epochs of this training."""


def serve(
    pipe: Connection,
    opening: Callable[..., Trainer],
    device: str,
    share: float,
    folder: Path,
    log: Path,
    parent: int,
) -> None:
    """Call what comes through ``pipe``, one function after the other, until it is closed; the main of the child."""
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
    child = Child(pipe, opening, device, share, folder)
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        if message == GO:  # for an epoch that has failed meanwhile, of which the parent hears next
            continue
        try:
            if message == STOP:
                raise Stopped
            function, *arguments = message
            answer = function(child.asked(), *arguments)
            if answer is not None:
                child.send(answer)
        except Stopped:
            child.send(STOPPED)
        except BaseException as error:  # whatever it is, the worker hears of it; a broken trainer is not used again
            import traceback

            traceback.print_exc()
            child.trainer = None
            child.send(("error", type(error).__name__, str(error)))
            if not isinstance(error, Exception):
                raise


class Child:
    """The trainer, and the child's end of the pipe. Two threads send: that which trains, and that which digests."""

    def __init__(
        self, pipe: Connection, opening: Callable[..., Trainer], device: str, share: float, folder: Path
    ) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self._opening, self._share, self._folder = opening, share, folder
        self._opened: Recipe | None = None
        self._untrained = b""
        self.trainer: Trainer | None = None
        self.device = device
        self.asked()

    def asked(self) -> "Child":
        """Something new is asked."""
        self._last_beat, self.epoch, self.may_go_on = 0.0, 0, True
        return self

    def open(self, recipe: Recipe) -> Trainer:
        """The trainer of ``recipe``, in whatever state it was left."""
        if self.trainer is None or self._opened != recipe:
            if self.device != "cpu" and self._share < 1:
                import torch

                torch.cuda.set_per_process_memory_fraction(self._share, self.device)  # beyond it, it is full
            self.trainer = None  # its memory goes before the next one's comes
            trainer = self._opening(recipe, device=self.device, threads=recipe.threads, folder=self._folder)
            self.trainer, self._opened, self._untrained = trainer, recipe, trainer.state()
        return self.trainer

    def at(self, recipe: Recipe, state: bytes | None) -> Trainer:
        """The trainer of ``recipe`` in this state; None: untrained."""
        trainer = self.open(recipe)
        trainer.load(self._untrained if state is None else state)
        return trainer

    def send(self, answer: Any) -> None:
        """Give the parent an answer."""
        with self._lock:
            self._pipe.send(answer)

    def beat(self, step: int) -> None:
        """A batch is done; the parent hears of one a second. Raises Stopped if it wants no more."""
        if (now := time.monotonic()) - self._last_beat >= 1:
            self._last_beat = now
            self.send(Beat(self.epoch, step))
        if not self.may_go_on and self._pipe.poll():
            self.wait()

    def wait(self) -> None:
        """Wait until the parent wants another epoch. Raises Stopped, or EOFError if it is gone."""
        if not self.may_go_on and self._pipe.recv() == STOP:
            raise Stopped
        self.may_go_on = True

    def memory(self) -> float:
        """The most of a GPU's memory that torch has held in this process, as a share of it; 0 on a CPU."""
        if self.device == "cpu":
            return 0.0
        import torch

        total = torch.cuda.get_device_properties(self.device).total_memory
        return float(torch.cuda.max_memory_reserved(self.device) / total)


def _fingerprint(child: Child, recipe: Recipe) -> dict[str, str | int]:
    return training.fingerprint(recipe, device=child.device, threads=recipe.threads)


def _state_bytes(child: Child, recipe: Recipe) -> int:
    return training.state_bytes(recipe)


def _weights(child: Child, recipe: Recipe, state: bytes) -> bytes:
    return child.at(recipe, state).weights()


def _detections(child: Child, recipe: Recipe, state: bytes) -> list[Detections]:
    return child.at(recipe, state).evaluate(child.beat).detections


def _quench(child: Child, recipe: Recipe, trace: Trace, epoch: int, steps: int, state: bytes | None) -> tuple[Any, ...]:
    trainer = child.at(recipe, state)
    used = trainer.train_epoch(epoch, trace, child.beat, steps=steps).applied
    return trainer.arrays(), used


def _loss(child: Child, recipe: Recipe, arrays: dict[str, Any], epoch: int, batches: int, images: int) -> float:
    trainer = child.open(recipe)
    trainer.set_weights(arrays)
    trainer.recompute_bn(epoch, batches)
    return trainer.val_loss(images)


def _train(child: Child, recipe: Recipe, trace: Trace, start: int, detecting: set[int], state: bytes | None) -> None:
    """Train epoch after epoch. Each is digested and sent beside the next one, and not before the parent wants it."""
    trainer = child.at(recipe, state)

    def write(copy: Callable[[], tuple[bytes, str]], used: Applied, **event: Any) -> None:
        state, digest = copy()
        child.send((Epoch(state=state, state_digest=digest, **event), used))

    with ThreadPoolExecutor(1) as aside:
        written: Future[None] | None = None
        for epoch in range(start, trace.epochs):
            child.epoch = epoch
            log = trainer.train_epoch(epoch, trace, child.beat)
            evaluation = trainer.evaluate(child.beat)
            if written is not None:
                written.result()
                child.wait()
            child.may_go_on = False
            written = aside.submit(
                write,
                trainer.copied(),
                log.applied,
                epoch=epoch,
                lr=float(log.lr[-1]) if len(log.lr) else math.nan,
                metrics=dict(evaluation.metrics),
                losses=dict(log.losses),
                seconds=log.seconds,
                detections=evaluation.detections if epoch in detecting else None,
                memory=child.memory(),
            )
        if written is not None:
            written.result()
            child.wait()


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
