"""What Ultralytics 8.4.190 does by default: an epoch-quantised decay, a warm-up that chases it, bias and momentum.

Source: ultralytics/engine/trainer.py, _setup_scheduler, _get_warmup_iterations and the warm-up of _do_train.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sweeper.schedules import checks
from sweeper.schedules.checks import Key, number
from sweeper.schedules.compose import Curve, quantise, scale, segment, warmup_lerp
from sweeper.schedules.shapes import shape
from sweeper.schedules.time import Duration, TimeBase

Params = Mapping[str, Any]

KEYS: Mapping[str, Key] = {
    "lrf": Key(number(0, 1), 0.01),
    "warmup": Key(checks.duration, "3ep"),
    "warmup_bias_lr": Key(number(0, 1e6), 0.1),
    "warmup_momentum": Key(number(0, 1, below=True), 0.8),
    "momentum": Key(number(0, 1, below=True), 0.937),
}


def warmup_iterations(params: Params, time: TimeBase) -> int:
    """round(min(warmup, epochs - 1) * steps per epoch): the last epoch is never warm-up. Python's round, half to even.

    >>> warmup_iterations({"warmup": "3ep"}, TimeBase(2, 7))
    7
    """
    return round(min(Duration.parse(params["warmup"]).epochs(time), time.epochs - 1) * time.steps_per_epoch)


def yolo_curve(decay: str) -> Callable[[Params, TimeBase, str], Curve]:
    """lr f(epoch), f from 1 to lrf over the run; in the first W steps a lerp from 0 (group bias: warmup_bias_lr) to it.

    >>> params = {"lr": 0.01, "lrf": 0.01, "warmup": "1ep", "warmup_bias_lr": 0.1}
    >>> yolo_curve("linear")(params, TimeBase(3, 2), "main")(np.arange(6.0)).round(5).tolist()
    [0.0, 0.005, 0.0067, 0.0067, 0.0034, 0.0034]
    """

    def curve(params: Params, time: TimeBase, group: str) -> Curve:
        nb, start = time.steps_per_epoch, params["warmup_bias_lr"] if group == "bias" else 0.0
        held = quantise(segment(shape(decay, params["lrf"]), time.steps, unit=nb), nb)
        return warmup_lerp(scale(held, params["lr"]), warmup_iterations(params, time), start)

    return curve


def yolo_momentum(params: Params, time: TimeBase) -> Curve:
    """From warmup_momentum to momentum over the warm-up, then momentum.

    >>> params = {"warmup": "1ep", "warmup_momentum": 0.8, "momentum": 0.9}
    >>> yolo_momentum(params, TimeBase(3, 2))(np.arange(4.0)).round(3).tolist()
    [0.8, 0.85, 0.9, 0.9]
    """
    held: Curve = lambda k: np.full_like(k, params["momentum"])  # noqa: E731
    return warmup_lerp(held, warmup_iterations(params, time), params["warmup_momentum"])
