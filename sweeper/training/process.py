"""A training in a child process: a crash of CUDA, of a loader or of the model must not take the worker along.

The parent never imports torch. The child keeps its trainer between trials of one recipe (a new process costs seconds, a
live one a tenth) and dies with its parent. While the parent stores an epoch and asks whether to go on, the child trains
the next one, which it gives up at its next batch if the answer is no: a GPU does not wait for a database.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from sweeper import errors, training
from sweeper.config import Recipe
from sweeper.errors import LRMismatch, TrainingError
from sweeper.schedules import Trace
from sweeper.training import Detections, Trainer, child
from sweeper.training.child import GO, STOP, STOPPED, Beat, Epoch

__all__ = ["Beat", "Crash", "Epoch", "Hang", "TrainingProcess"]

START_S = 300.0  # patience with a new process, which first imports torch


class Crash(TrainingError):
    """The training process died, or raised what it was not expected to; the message says how."""

    reason = "crashed"


class Hang(TrainingError):
    """The training made no progress for too long and was ended."""

    reason = "hung"


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
        answer: dict[str, Any] = self._ask(child.fingerprint, recipe)
        return answer

    def state_bytes(self, recipe: Recipe) -> int:
        """About how many bytes a state of ``recipe`` takes, from the model's size."""
        answer: int = self._ask(child.state_bytes, recipe)
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
        self._send((child.train, recipe, trace, start, with_detections, state))
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
        answer: bytes = self._ask(child.weights, recipe, state)
        return answer

    def detections(self, recipe: Recipe, state: bytes) -> list[Detections]:
        """The detections of the EMA in a state of ``recipe`` on the validation images, one entry per image."""
        answer: list[Detections] = self._ask(child.detections, recipe, state)
        return answer

    def quench(
        self, recipe: Recipe, trace: Trace, *, epoch: int, steps: int, state: bytes | None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The EMA's arrays after ``steps`` steps from ``state`` with the data and learning rates of ``epoch``.

        ``state``: None is the untrained one. Raises LRMismatch as :meth:`train` does.
        """
        arrays: dict[str, np.ndarray[Any, Any]]
        arrays, applied = self._ask(child.quench, recipe, trace, epoch, steps, state)
        applied.check(epoch, trace, recipe, steps)
        return arrays

    def loss(
        self, recipe: Recipe, arrays: Mapping[str, np.ndarray[Any, Any]], *, epoch: int, batches: int, images: int
    ) -> float:
        """Loss of an EMA with these arrays on the first ``images`` validation images, as they are.

        Its BatchNorm statistics are recomputed before, on the first ``batches`` of the augmented batches of ``epoch``.
        """
        return float(self._ask(child.loss, recipe, dict(arrays), epoch, batches, images))

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
        self._pipe, other_end = context.Pipe()
        arguments = (other_end, self._opening, self._device, self._share, self._folder, self.log, os.getpid())
        self._process = context.Process(target=child.serve, args=arguments, daemon=False)
        self._process.start()
        self._has_answered = False
        other_end.close()
