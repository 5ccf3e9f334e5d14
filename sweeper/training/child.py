"""The child process of a training: it holds the trainer, and answers the worker's messages one after the other.

See ``sweeper.training.process`` for the other side. torch is imported here only.
"""

import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sweeper.config import Recipe
from sweeper.errors import SweeperError
from sweeper.schedules import Trace
from sweeper.training import Detections, Trainer


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: ``metrics`` of the EMA, mean ``losses``, seconds, and the exact state after it.

    ``detections`` are the EMA's on the validation images, where they were asked for. ``memory``: the largest share of
    the GPU's memory that was held so far; 0 on a CPU.
    """

    epoch: int
    lr: float  #: in effect at the epoch's last step, as recorded from the optimizer
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


def serve(
    pipe: Connection,
    opening: Callable[..., Trainer],
    device: str,
    share: float,
    folder: Path,
    log: Path,
    parent: int,
) -> None:
    """Do what comes through ``pipe``, one message after the other, until it is closed; the main of the child."""
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
        beat = Pulse(pipe)  # at the first batch of everything that is asked, and then once a second
        try:
            if message[0] == "fingerprint":
                pipe.send(training.fingerprint(message[1], device=device, threads=message[1].threads))
                continue
            if message[0] == "state_bytes":
                pipe.send(training.state_bytes(message[1]))
                continue
            recipe, state = message[1], message[-1]
            if trainer is None or opened != recipe:
                _limit_memory(device, share)
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
                pipe.send(trainer.evaluate(beat).detections)
            elif message[0] == "quench":
                log_of_steps = trainer.train_epoch(message[3], message[2], beat, steps=message[4])
                pipe.send((trainer.arrays(), log_of_steps.applied))
            else:
                _train(pipe, trainer, beat, device=device, trace=message[2], start=message[3], detecting=message[4])
        except BaseException as error:  # whatever it is, the worker hears of it; a broken trainer is not used again
            import traceback

            traceback.print_exc()
            trainer = opened = None
            pipe.send(("error", type(error).__name__, str(error)))
            if not isinstance(error, SweeperError | Exception):
                raise


class Pulse:
    """Tells the worker of progress inside an epoch, at most once a second."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._last = pipe, 0.0
        self.epoch = 0

    def __call__(self, step: int) -> None:
        """A batch is done."""
        if (now := time.monotonic()) - self._last >= 1:
            self._last = now
            self._pipe.send(Beat(self.epoch, step))


def _train(
    pipe: Connection, trainer: Any, beat: Pulse, *, device: str, trace: Trace, start: int, detecting: set[int]
) -> None:
    for epoch in range(start, trace.epochs):
        beat.epoch = epoch
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
            memory=_memory(device),
        )
        pipe.send((event, log.applied))
        if pipe.recv() != ("go",):  # EOF ends the process
            return


def _limit_memory(device: str, share: float) -> None:
    """Let this process take no more than ``share`` of a GPU's memory; beyond it torch raises as if it were full."""
    if device != "cpu" and share < 1:
        import torch

        torch.cuda.set_per_process_memory_fraction(share, device)


def _memory(device: str) -> float:
    """The most of a GPU's memory that torch has held in this process, as a share of it; 0 on a CPU."""
    if device == "cpu":
        return 0.0
    import torch

    return float(torch.cuda.max_memory_reserved(device) / torch.cuda.get_device_properties(device).total_memory)


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
