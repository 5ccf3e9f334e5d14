"""The child process of a training: it holds the trainer, and calls the functions that the worker asks for.

See ``sweeper.training.process`` for the other side.
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

from sweeper import training
from sweeper.config import Recipe
from sweeper.schedules import Trace
from sweeper.training import Applied, Detections, Trainer

GO, STOP, STOPPED = "go", "stop", "stopped"  # after an epoch: the worker's two words, and the child's answer to stop


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: ``metrics`` of the EMA, mean ``losses``, and the exact state after it.

    ``lr``: at the epoch's last step, as recorded from the optimizer. ``seconds``: of training and validation on the
    clock. ``detections``: the EMA's on the validation images, where they were asked for. ``memory``: the largest share
    of the GPU's memory that was held so far; 0 on a CPU.
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
            answer = function(child.begin(), *arguments)
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
        self.begin()

    def begin(self) -> "Child":
        """Forget what was asked before."""
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
            self.send(Beat(self.epoch, step, self.memory()))
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


def fingerprint(child: Child, recipe: Recipe) -> dict[str, str | int]:
    return training.fingerprint(recipe, device=child.device, threads=recipe.threads)


def state_bytes(child: Child, recipe: Recipe) -> int:
    return training.state_bytes(recipe)


def weights(child: Child, recipe: Recipe, state: bytes) -> bytes:
    return child.at(recipe, state).weights()


def detections(child: Child, recipe: Recipe, state: bytes) -> list[Detections]:
    return child.at(recipe, state).evaluate(child.beat).detections


def quench(child: Child, recipe: Recipe, trace: Trace, epoch: int, steps: int, state: bytes | None) -> tuple[Any, ...]:
    trainer = child.at(recipe, state)
    used = trainer.train_epoch(epoch, trace, child.beat, steps=steps).applied
    return trainer.arrays(), used


def loss(child: Child, recipe: Recipe, arrays: dict[str, Any], epoch: int, batches: int, images: int) -> float:
    trainer = child.open(recipe)
    trainer.set_weights(arrays)
    trainer.recompute_bn(epoch, batches)
    return trainer.val_loss(images)


def train(child: Child, recipe: Recipe, trace: Trace, start: int, detecting: set[int], state: bytes | None) -> None:
    """Train epoch after epoch. Each is digested and sent beside the next one, and not before the parent wants it."""
    trainer = child.at(recipe, state)

    def write(copy: Callable[[], tuple[bytes, str]], used: Applied, **event: Any) -> None:
        state, digest = copy()
        child.send((Epoch(state=state, state_digest=digest, **event), used))

    with ThreadPoolExecutor(1) as aside:
        written: Future[None] | None = None
        for epoch in range(start, trace.epochs):
            child.epoch, began = epoch, time.perf_counter()
            log = trainer.train_epoch(epoch, trace, child.beat)
            evaluation = trainer.evaluate(child.beat)
            seconds = time.perf_counter() - began
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
                seconds=seconds,
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
