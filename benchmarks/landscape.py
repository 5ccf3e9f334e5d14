"""A training that takes microseconds: noisy SGD of a few hundred weights on a rugged landscape, driven by an LR trace.

Each weight has a valley of its own, w^2 h/2, with ripples a(1 - cos(k w + p)): local minima with barriers of 2a. The
gradient is noisy, so a large LR crosses barriers and cannot settle, a small one settles where it is. Curvatures h and
barriers a span decades, so no single LR serves all weights, and how far a schedule gets depends on its whole course.
What is told of it is like mAP: 0.45 exp(-loss of the EMA). Landscapes differ in noise, barriers, and in how far their
best LR is from the sweep's base LR.

The noise of a step depends on the run's seed and the step alone, as batches and augmentation do in the real trainer:
a run that goes on from another's state is that run, number for number.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sweeper.schedules import TimeBase, Trace, prefix_keys

EPOCHS = 100
STEPS = 10  # per epoch
WEIGHTS = 256
LR0 = 0.01  # the sweep's base LR; what it does depends on the landscape
TIME = TimeBase(EPOCHS, STEPS)
LAST = 3  # epochs whose mean is the objective
TRUTH = 32  # fresh seeds whose mean is the truth
FRESH = 1_000_000

Floats = NDArray[np.float32]


class Landscape:
    """One simulated recipe and data set; ``number`` is its seed."""

    def __init__(self, number: int) -> None:
        random = np.random.default_rng([number, 7])
        self.number = number
        self.curvature = (10 ** random.uniform(-1.7, 0.0, WEIGHTS)).astype(np.float32)
        self.wave = random.uniform(2.0, 6.0, WEIGHTS).astype(np.float32)
        self.barrier = (10 ** random.uniform(-2.0, -0.3, WEIGHTS) * random.uniform(0.5, 1.5)).astype(np.float32)
        self.phase = random.uniform(0, 2 * np.pi, WEIGHTS).astype(np.float32)
        self.start = random.normal(0, 4, WEIGHTS).astype(np.float32)
        self.noise = float(random.uniform(0.6, 1.6))
        self.gain = float(10 ** random.uniform(-1.0, 0.3)) / LR0
        self.trained = 0  # epochs really computed
        self._states: dict[str, tuple[Floats, Floats, float]] = {}
        self._truths: dict[str, float] = {}

    def curve(self, trace: Trace, seed: int = 0) -> NDArray[np.float64]:
        """mAP after each epoch of the run with this trace and seed, float64[epochs]."""
        keys = prefix_keys(f"{self.number}/{seed}", trace)
        found = []
        state = (self.start, self.start)
        for epoch in range(trace.epochs):
            if keys[epoch + 1] not in self._states:
                *after, reached = self._epoch(
                    *state, trace.lr[epoch * STEPS : (epoch + 1) * STEPS], self._noise(seed, epoch)
                )
                self._states[keys[epoch + 1]] = (after[0], after[1], float(reached))
                self.trained += 1
            *kept, value = self._states[keys[epoch + 1]]
            state = (kept[0], kept[1])
            found.append(value)
        return np.asarray(found)

    def truth(self, trace: Trace) -> float:
        """The objective's mean over 32 fresh seeds, trained side by side."""
        if trace.digest not in self._truths:
            w = np.broadcast_to(self.start, (TRUTH, WEIGHTS))
            ema, values = w, []
            for epoch in range(trace.epochs):
                noise = self._fresh[epoch]
                w, ema, value = self._epoch(w, ema, trace.lr[epoch * STEPS : (epoch + 1) * STEPS], noise)
                values.append(value)
            self._truths[trace.digest] = float(np.mean(values[-LAST:]))
        return self._truths[trace.digest]

    def _epoch(self, w: Floats, ema: Floats, lr: Floats, noise: Floats) -> tuple[Floats, Floats, NDArray[np.float64]]:
        for step, rate in enumerate(lr * np.float32(self.gain)):
            slope = self.curvature * w + self.barrier * self.wave * np.sin(self.wave * w + self.phase)
            w = w - rate * (slope + noise[step])
            ema = np.float32(0.9) * ema + np.float32(0.1) * w
        ripples = self.barrier * (1 - np.cos(self.wave * ema + self.phase))
        loss = (self.curvature * ema**2 / 2 + ripples).mean(axis=-1)
        return w, ema, 0.45 * np.exp(-loss)

    def _noise(self, seed: int, epoch: int) -> Floats:
        random = np.random.default_rng([self.number, seed, epoch])
        return random.standard_normal((STEPS, WEIGHTS), np.float32) * np.float32(self.noise)

    @cached_property
    def _fresh(self) -> list[Floats]:
        return [
            np.stack([self._noise(FRESH + seed, epoch) for seed in range(TRUTH)], axis=1) for epoch in range(EPOCHS)
        ]
