"""A training state as plain values: taken, digested, written as bytes, put back."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from sweeper.errors import SnapshotCorrupt

State = dict[str, Any]
Model = torch.nn.Module
Optimizer = torch.optim.Optimizer
Scaler = torch.amp.GradScaler


class Averaged(Protocol):
    """An exponential moving average: its model and the number of its updates, on which its decay depends."""

    ema: Model
    updates: int


def take(model: Model, ema: Averaged, optimizer: Optimizer, scaler: Scaler) -> State:
    """Everything needed to continue. The tensors are the live ones: to be written or digested at once."""
    return {
        "model": model.state_dict(),
        "ema": ema.ema.state_dict(),
        "updates": ema.updates,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "criterion": _criterion(model),
    }


def put(
    state: Mapping[str, Any],
    model: Model,
    ema: Averaged,
    optimizer: Optimizer,
    scaler: Scaler,
) -> None:
    """Put a state back, in place. Raises SnapshotCorrupt where it is of another model or optimizer."""
    try:
        model.load_state_dict(state["model"])
        ema.ema.load_state_dict(state["ema"])
        ema.updates = state["updates"]
        optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where mixed precision is off
            scaler.load_state_dict(state["scaler"])
        for name, value in state["criterion"].items():
            setattr(model.criterion, name, value)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise SnapshotCorrupt(f"snapshot: is not of this model and optimizer ({first}); train from the start") from None


def to_bytes(state: State) -> bytes:
    """The state as a file of ``torch.save``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> State:
    """Read what ``to_bytes`` wrote, on the CPU, without running code from it. Raises SnapshotCorrupt."""
    try:
        state: State = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or pickle raises anything
        raise SnapshotCorrupt(f"snapshot: {len(data)} bytes cannot be read ({type(error).__name__})") from None
    return state


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over every tensor (name, type, shape, bytes) and counter.

    Left out: the optimizer's settings, which every step writes anew from the schedule.
    """
    hashed = hashlib.sha256()
    kept = {**state, "optimizer": state["optimizer"]["state"]}
    for name, value in _leaves("", kept):
        if isinstance(value, torch.Tensor):
            hashed.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            hashed.update(flat.view(torch.uint8).numpy().data)
        else:
            hashed.update(f"{name} {value!r}\n".encode())
    return hashed.hexdigest()


def first_not_finite(model: Model) -> str | None:
    """The name of the first weight or buffer that holds a NaN or infinity."""
    tensors = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    fine = torch.stack([value.isfinite().all() for value in tensors.values()]).cpu().tolist()
    return next((name for name, ok in zip(tensors, fine, strict=True) if not ok), None)


def _criterion(model: Model) -> dict[str, float]:
    """The loss's own state: end-to-end heads (YOLO26, YOLOv10) shift weight between two losses as epochs pass."""
    criterion = getattr(model, "criterion", None)
    return {name: getattr(criterion, name) for name in ("updates", "o2m", "o2o") if hasattr(criterion, name)}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(f"{name}/{key}", value[key])
    else:
        yield name, value
