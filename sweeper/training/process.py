"""Runs a training in a child process, so that a crash of CUDA, of a loader or of the model does not end the worker.

The parent never imports torch. The child keeps its trainer between trials of one recipe (a new process costs seconds, a
live one a tenth) and ends with its parent. While the parent stores an epoch and decides whether to go on, the child
trains the next one ahead, so that the GPU does not wait for a database; if the parent decides against it, the child
stops at its next batch.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sweeper import errors, training
from sweeper.config import Recipe
from sweeper.errors import LRMismatch, TrainingError
from sweeper.schedules import Trace
from sweeper.training import Detections, Trainer, child
from sweeper.training.child import GO, STOP, STOPPED, Beat, Epoch

__all__ = ["Beat", "Crash", "Epoch", "Hang", "TrainingProcess"]

T = TypeVar("T")
START_S = 300.0  # timeout of a new process's first answer, because it imports torch first


class Crash(TrainingError):
    """The training process died, or raised an unexpected error; the message says which."""

    reason = "crashed"


class Hang(TrainingError):
    """The training made no progress for too long and was ended."""

    reason = "hung"


class TrainingProcess:
    """The worker's handle of the child. Use it as a context manager; the child starts at the first call.

    A child that has died is started anew at the next call. ``stall_s``: after so many seconds without a finished batch
    it is ended as hung. ``share``: how much of a GPU's memory it may take, from 0 to 1. ``open_trainer``: the function
    that opens the trainer in the child, for a custom trainer; it must be importable and have the signature of
    ``sweeper.training.open``. ``epochs``: the number of epochs finished so far, over all trainings.
    """

    def __init__(
        self,
        *,
        device: str,
        folder: Path,
        stall_s: float,
        share: float = 1.0,
        open_trainer: Callable[..., Trainer] = training.open,
    ) -> None:
        self._device, self._folder, self._stall_s, self._share = device, folder, stall_s, share
        self._open_trainer = open_trainer
        self._process: Any = None
        self._pipe: Connection | None = None
        self._has_answered = False  # whether the child has sent anything since it was started
        self._is_stopping = False  # whether STOP was sent and not answered yet; answers before STOPPED are dropped
        self._log_start = 0  # size of the log in bytes when the last request was sent
        self.epochs = 0
        self.log = folder / f"training-{os.getpid()}.log"

    def __enter__(self) -> "TrainingProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def fingerprint(self, recipe: Recipe) -> dict[str, str | int]:
        """The properties of model, versions and hardware that determine a training of ``recipe``, for its digest."""
        return self._call(child.fingerprint, recipe)

    def state_bytes(self, recipe: Recipe) -> int:
        """About how many bytes a state of ``recipe`` takes, from the model's size."""
        return self._call(child.state_bytes, recipe)

    def train(
        self,
        recipe: Recipe,
        trace: Trace,
        *,
        start: int,
        state: bytes | None,
        detecting: Callable[[int], bool] = lambda epoch: False,
    ) -> Generator[Epoch | Beat]:
        """Train ``trace`` from the beginning of epoch ``start``, where the state is ``state`` (None: untrained).

        Yields a Beat from time to time and an Epoch after each, with its detections if ``detecting(epoch)``. An epoch
        is yielded only when the caller asks for it, though it may have been trained ahead. Closing the iterator
        (``contextlib.closing``) ends the training; it must be closed before the next call of this object. If it is
        closed after an epoch, the child stays alive; inside an epoch it is killed.

        Before an Epoch is yielded, what the optimizer used at each of its steps is compared with ``trace``. Raises
        LRMismatch where they differ, another TrainingError, or the error of the child.
        """
        with_detections = {epoch for epoch in range(start, trace.epochs) if detecting(epoch)}
        self._send((child.train, recipe, trace, start, with_detections, state))
        process, child_waits = self._process, False  # whether the child waits for GO or STOP
        try:
            for number in range(start, trace.epochs):
                child_waits = False
                while isinstance(answer := self._receive(), Beat):
                    yield answer
                child_waits = True
                epoch, applied = answer
                applied.check(number, trace, recipe)
                self.epochs += 1
                yield epoch
                self._send(GO)
        except (GeneratorExit, LRMismatch):
            if self._process is process:  # otherwise that child has been ended already
                if child_waits:
                    with contextlib.suppress(Crash):
                        self._send(STOP)
                        self._is_stopping = True
                else:
                    self.end()
            raise

    def weights(self, recipe: Recipe, state: bytes) -> bytes:
        """The EMA's weights in a state of ``recipe`` (a state_dict file, no pickled code)."""
        return self._call(child.weights, recipe, state)

    def detections(self, recipe: Recipe, state: bytes) -> list[Detections]:
        """The detections of the EMA in a state of ``recipe`` on the validation images, one element per image."""
        return self._call(child.detections, recipe, state)

    def quench(
        self, recipe: Recipe, trace: Trace, *, epoch: int, steps: int, state: bytes | None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The EMA's arrays after ``steps`` steps from ``state`` with the data and learning rates of ``epoch``.

        ``state``: None is the untrained one. Raises LRMismatch as :meth:`train` does.
        """
        arrays, applied = self._call(child.quench, recipe, trace, epoch, steps, state)
        applied.check(epoch, trace, recipe, steps)
        return arrays

    def loss(
        self, recipe: Recipe, arrays: Mapping[str, np.ndarray[Any, Any]], *, epoch: int, batches: int, images: int
    ) -> float:
        """The loss of an EMA with these arrays on the first ``images`` validation images, without augmentation.

        Its BatchNorm statistics are recomputed first, on the first ``batches`` augmented training batches of ``epoch``.
        """
        return self._call(child.loss, recipe, dict(arrays), epoch, batches, images)

    def end(self) -> None:
        """Kill the child."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            assert self._pipe is not None
            self._pipe.close()
        self._process = self._pipe = None
        self._is_stopping = False

    def last_lines(self, count: int = 40) -> str:
        """The last ``count`` lines that the child has written since the last request, so of this trial only."""
        with contextlib.suppress(OSError):
            written = self.log.read_bytes()[self._log_start :].decode(errors="replace")
            return "\n".join(written.splitlines()[-count:])
        return ""

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Let the child call ``function`` with itself and ``arguments``, and return the result."""
        self._send((function, *arguments))
        while isinstance(answer := self._receive(), Beat):
            pass
        result: T = answer
        return result

    def _send(self, message: Any) -> None:
        if self._is_stopping:
            with contextlib.suppress(Crash, Hang):  # An error of an unwanted epoch concerns nobody; a new child starts.
                while self._receive_any() != STOPPED:
                    pass
            self._is_stopping = False
        if self._process is None:
            self._start()
        elif message != GO:  # With GO the request stays the same, and so does its part of the log.
            with contextlib.suppress(FileNotFoundError):
                self._log_start = self.log.stat().st_size
        assert self._pipe is not None
        try:
            self._pipe.send(message)
        except (BrokenPipeError, ConnectionError):
            raise self._crashed() from None

    def _receive(self) -> Any:
        """The child's next answer. Raises the error that it reports."""
        answer = self._receive_any()
        if isinstance(answer, tuple) and answer[0] == "error":
            _, name, message = answer
            error_class = errors.OutOfMemory if name == "MemoryError" else getattr(errors, name, None)
            if error_class is None:  # an unexpected error, such as a full disk or a fault of CUDA
                raise Crash(f"{name}: {message}")
            raise error_class(message)
        return answer

    def _receive_any(self) -> Any:
        """The child's next answer, which may be an error. Raises Crash and Hang."""
        assert self._pipe is not None
        try:
            timeout_s = self._stall_s if self._has_answered else max(self._stall_s, START_S)
            if not self._pipe.poll(timeout_s):
                self.end()
                raise Hang(f"no batch was finished in {timeout_s:g} s (stall_s); the training was ended")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise self._crashed() from None
        self._has_answered = True
        return answer

    def _crashed(self) -> Crash:
        assert self._process is not None
        self._process.join(5)
        code = self._process.exitcode
        status = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        hint = " (from the kernel, because memory ran out?)" if code == -signal.SIGKILL else ""
        self.end()
        return Crash(f"the training process ended with {status}{hint}; its output: {self.log}")

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        self._log_start = 0
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        arguments = (other_end, self._open_trainer, self._device, self._share, self._folder, self.log, os.getpid())
        self._process = context.Process(target=child.serve, args=arguments, daemon=False)
        self._process.start()
        self._has_answered = False
        other_end.close()
