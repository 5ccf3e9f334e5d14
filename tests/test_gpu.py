"""The comparisons of test_exactness.py on a CUDA device, with and without AMP, deterministic and not. `make gpu-test`.

Kernels that are not deterministic are not expected to give the same bits: how far two trainings then are apart is
printed (-s), and that everything around the kernels is exact is still required.
"""

import io
from pathlib import Path
from typing import Any

import exact
import numpy as np
import pytest
import torch
from exact import ALL_ON, Elsewhere

from sweeper import schedules

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

EPOCHS, CUDA = 4, "cuda:0"
WARM = {"family": "yolo_linear", "lr": 0.01, "warmup": "1.5ep"}
MODELS: dict[str, dict[str, Any]] = {
    "yolo11n-sgd": {"imgsz": 160, **ALL_ON, "nbs": 4},
    "yolo26n-musgd": {"imgsz": 160, **ALL_ON, "nbs": 4, "model": "yolo26n.yaml", "optimizer": "MuSGD"},
    "fcos": {"model": "fcos_resnet18_fpn", "mosaic_epochs": 2, "nbs": 4},
}


@pytest.mark.parametrize("deterministic", [True, False], ids=["deterministic", "free"])
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "amp"])
@pytest.mark.parametrize("model", MODELS)
def test_stopped_moved_and_forked(bccd: Path, tmp_path: Path, model: str, amp: bool, deterministic: bool) -> None:
    data = exact.subset(bccd, tmp_path / "data")
    recipe = exact.recipe(data, **MODELS[model], amp=amp, deterministic=deterministic)
    trainer = exact.open_trainer(recipe, tmp_path / "here", device=CUDA)
    trace = exact.trace(WARM, trainer.steps_per_epoch, EPOCHS)
    states, digests = exact.straight(trainer, trace)
    assert len(set(digests)) == EPOCHS + 1
    moved = distance(states[0], states[-1])
    assert moved > 1e-3  # the first steps of mixed precision are skipped, until its scale fits
    same: dict[str, bool] = {}
    apart: dict[str, float] = {}

    def compared(name: str, found: list[str], state: bytes, expected: list[str], other: bytes) -> None:
        same[name] = found == expected
        apart[name] = distance(state, other)

    trainer.load(states[0])
    assert trainer.state_digest() == digests[0]
    again, repeated = exact.straight(trainer, trace)
    compared("again", repeated, again[-1], digests, states[-1])

    elsewhere = Elsewhere(recipe, WARM, EPOCHS, tmp_path / "elsewhere", CUDA)
    for epoch in range(EPOCHS):
        elsewhere.run(until=epoch + 1)
    resumed = [(elsewhere.folder / f"{epoch + 1}.digest").read_text() for epoch in range(EPOCHS)]
    last = (elsewhere.folder / f"{EPOCHS}.state").read_bytes()
    compared("stopped after every epoch", resumed, last, digests[1:], states[-1])

    killed = Elsewhere(recipe, WARM, EPOCHS, tmp_path / "killed", CUDA)
    killed.run(until=EPOCHS, kill_after=3)
    killed.run(until=EPOCHS)
    last = (killed.folder / f"{EPOCHS}.state").read_bytes()
    compared("killed and resumed", [killed.digest()], last, digests[-1:], states[-1])

    for start in (1, 2, 3):
        end = start * trace.steps_per_epoch + 1
        lr = np.where(np.arange(trace.steps) < end, trace.lr, 0.5 * trace.lr)
        other = schedules.Trace(lr, trace.groups, trace.momentum, trace.steps_per_epoch, EPOCHS)
        trainer.load(states[0])
        whole, straight = exact.straight(trainer, other)
        trainer.load(states[start])
        assert trainer.state_digest() == digests[start]
        parted, forked = exact.straight(trainer, other, start)
        compared(f"forked at {start}", forked, parted[-1], straight[start:], whole[-1])

    loaders = exact.open_trainer(
        recipe.model_copy(update={"loader_workers": 2, "cache_mb": 0}), tmp_path / "two", device=CUDA
    )
    two, loaded = exact.straight(loaders, trace)
    compared("two loader processes", loaded, two[-1], digests, states[-1])

    trainer.load(states[-1])
    seen = trainer.evaluate().metrics
    assert trainer.evaluate().metrics == seen
    assert trainer.state_digest() == digests[-1]  # looking changes nothing

    kind = f"{model}, {'amp' if amp else 'float32'}, {'deterministic' if deterministic else 'not deterministic'}"
    scaler = torch.load(io.BytesIO(states[-1]), weights_only=True)["scaler"]
    print(
        f"\n{kind}: moved by {moved:.1e}; scaler {scaler}; "
        + "; ".join(f"{name} {'same bits' if same[name] else f'apart by {apart[name]:.1e}'}" for name in same)
    )
    if deterministic:
        assert all(same.values())
    assert all(np.isfinite(list(apart.values())))


def distance(mine: bytes, other: bytes) -> float:
    """How far two states' weights are apart, as a share of the weights' own norm."""

    def weights(state: bytes) -> torch.Tensor:
        model = torch.load(io.BytesIO(state), weights_only=True, map_location="cpu")["model"]
        learned = [value for name, value in model.items() if name.endswith(("weight", "bias"))]
        return torch.cat([value.double().flatten() for value in learned])

    a, b = weights(mine), weights(other)
    return float((a - b).norm() / a.norm())
