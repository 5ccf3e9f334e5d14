"""The child process of a training: it holds the trainer, and calls the functions that the worker sends.

``sweeper.training.process`` is the worker's side.
"""

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from sweeper import training
from sweeper.config import Recipe
from sweeper.schedules import Trace
from sweeper.training import Applied, Detections, Trainer

GO, STOP, STOPPED = "go", "stop", "stopped"  # After an epoch the worker sends GO or STOP; STOP is answered by STOPPED.


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: ``metrics`` of the EMA, mean ``losses``, and the exact state after it.

    ``lr``: of the main group at the epoch's last step, as recorded from the optimizer. ``seconds``: wall time of
    training and validation. ``detections``: the EMA's on the validation images, where they were requested. ``memory``:
    the largest share of the GPU's memory that torch has reserved so far; 0 on a CPU.
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
    """A sign of progress inside an epoch, at most one a second, with the ``memory`` as in Epoch."""

    epoch: int
    step: int
    memory: float = 0.0


class NoMoreEpochs(Exception):
    """The parent wants no more epochs of this training."""


def serve(
    pipe: Connection,
    open_trainer: Callable[..., Trainer],
    device: str,
    share: float,
    folder: Path,
    log: Path,
    parent: int,
) -> None:
    """The main function of the child: call each function that comes through ``pipe``, until the pipe is closed."""
    _die_with(parent)
    # Ctrl-C and a stop of the job reach the whole process group, but the worker decides when the child ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if hasattr(os, "register_at_fork"):  # Loader processes must obey SIGTERM, because torch ends them by it.
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    import faulthandler

    faulthandler.enable()
    child = Child(pipe, open_trainer, device, share, folder)
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        if message == GO:  # It asks for an epoch that has already failed; the parent reads that error next.
            continue
        try:
            if message == STOP:
                raise NoMoreEpochs
            function, *arguments = message
            child.reset()
            answer = function(child, *arguments)
            if answer is not None:
                child.send(answer)
        except NoMoreEpochs:
            child.send(STOPPED)
        except BaseException as error:  # The worker gets every error. The trainer's state is undefined, so it goes.
            import traceback

            traceback.print_exc()
            child.trainer = None
            child.send(("error", type(error).__name__, str(error)))
            if not isinstance(error, Exception):
                raise


class Child:
    """The trainer and the child's end of the pipe. Two threads send through it: one trains, the other digests states.

    ``requested``: whether the parent has asked for the epoch that is being trained; if not, it is trained ahead.
    """

    def __init__(
        self, pipe: Connection, open_trainer: Callable[..., Trainer], device: str, share: float, folder: Path
    ) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self._open_trainer, self._share, self._folder = open_trainer, share, folder
        self._opened: Recipe | None = None
        self._untrained = b""
        self.trainer: Trainer | None = None
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Set the progress back to that of a new request."""
        self._last_beat, self.epoch, self.requested = 0.0, 0, True

    def open(self, recipe: Recipe) -> Trainer:
        """The trainer of ``recipe``, in the state in which the request before has left it."""
        if self.trainer is None or self._opened != recipe:
            if self.device != "cpu" and self._share < 1:
                import torch

                torch.cuda.set_per_process_memory_fraction(self._share, self.device)  # more is OutOfMemory
            self.trainer = None  # so that its memory is free before the next one needs some
            trainer = self._open_trainer(recipe, device=self.device, threads=recipe.threads, folder=self._folder)
            self.trainer, self._opened, self._untrained = trainer, recipe, trainer.state()
        return self.trainer

    def restored(self, recipe: Recipe, state: bytes | None) -> Trainer:
        """The trainer of ``recipe`` in ``state``; None: untrained."""
        trainer = self.open(recipe)
        trainer.load(self._untrained if state is None else state)
        return trainer

    def send(self, answer: Any) -> None:
        """Send an answer to the parent."""
        with self._lock:
            self._pipe.send(answer)

    def beat(self, step: int) -> None:
        """Report a finished batch to the parent, at most once a second. Raises NoMoreEpochs, as :meth:`wait` does."""
        if (now := time.monotonic()) - self._last_beat >= 1:
            self._last_beat = now
            self.send(Beat(self.epoch, step, self.memory()))
        if not self.requested and self._pipe.poll():
            self.wait()

    def wait(self) -> None:
        """Wait until the parent asks for the next epoch. Raises NoMoreEpochs, or EOFError if the parent has ended."""
        if not self.requested and self._pipe.recv() == STOP:
            raise NoMoreEpochs
        self.requested = True

    def memory(self) -> float:
        """The largest share of the GPU's memory that torch has reserved in this process; 0 on a CPU."""
        if self.device == "cpu":
            return 0.0
        import torch

        total = torch.cuda.get_device_properties(self.device).total_memory
        return float(torch.cuda.max_memory_reserved(self.device) / total)


# -- the functions that the worker sends; TrainingProcess documents them -----------------------------------------------


def fingerprint(child: Child, recipe: Recipe) -> dict[str, str | int]:
    return training.fingerprint(recipe, device=child.device, threads=recipe.threads)


def state_bytes(child: Child, recipe: Recipe) -> int:
    return training.state_bytes(recipe)


def weights(child: Child, recipe: Recipe, state: bytes) -> bytes:
    return child.restored(recipe, state).weights()


def detections(child: Child, recipe: Recipe, state: bytes) -> list[Detections]:
    return child.restored(recipe, state).evaluate(child.beat).detections


def quench(
    child: Child, recipe: Recipe, trace: Trace, epoch: int, steps: int, state: bytes | None
) -> tuple[dict[str, np.ndarray], Applied]:
    trainer = child.restored(recipe, state)
    applied = trainer.train_epoch(epoch, trace, child.beat, steps=steps).applied
    return trainer.arrays(), applied


def loss(child: Child, recipe: Recipe, arrays: dict[str, Any], epoch: int, batches: int, images: int) -> float:
    trainer = child.open(recipe)
    trainer.set_weights(arrays)
    trainer.recompute_bn(epoch, batches)
    return trainer.val_loss(images)


def train(child: Child, recipe: Recipe, trace: Trace, start: int, detecting: set[int], state: bytes | None) -> None:
    """Train epoch after epoch. A second thread digests and sends an epoch while the next one is trained.

    An epoch is sent only after the parent has asked for it.
    """
    trainer = child.restored(recipe, state)

    def send_epoch(serialise: Callable[[], tuple[bytes, str]], applied: Applied, **values: Any) -> None:
        state, digest = serialise()
        child.send((Epoch(state=state, state_digest=digest, **values), applied))

    with ThreadPoolExecutor(1) as sender:
        sent: Future[None] | None = None
        for epoch in range(start, trace.epochs):
            child.epoch, began = epoch, time.perf_counter()
            log = trainer.train_epoch(epoch, trace, child.beat)
            evaluation = trainer.evaluate(child.beat)
            seconds = time.perf_counter() - began
            if sent is not None:
                sent.result()
                child.wait()
            child.requested = False
            sent = sender.submit(
                send_epoch,
                trainer.copied(),
                log.applied,
                epoch=epoch,
                lr=float(log.lr[-1]) if len(log.lr) else math.nan,
                metrics=dict(evaluation.metrics),
                losses=dict(log.losses),
                seconds=seconds,
                detections=evaluation.detections if epoch in detecting else None,
                memory=child.memory(),
            )
        if sent is not None:
            sent.result()
            child.wait()


def _die_with(parent: int) -> None:
    """End this process when its parent ends: by the kernel on Linux, and by a thread that checks every second."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # The parent ended before the call.
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
