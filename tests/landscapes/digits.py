"""A small network with BatchNorm on handwritten digits: 1,797 images of 8 x 8 pixels, a run takes about a second."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

Weights = Mapping[str, NDArray[np.generic]]
WIDTH = 32
BATCH = 64


@cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 (1797, 64) in [0, 1] and labels; the first 1,200 train, the others evaluate."""
    digits = load_digits()
    return torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 10),
    )


def train(weights: Weights, lr: NDArray[np.floating], order: int) -> dict[str, NDArray[np.generic]]:
    """SGD with momentum 0.9 from these weights, one step per entry of ``lr``; ``order`` seeds the batches."""
    model = loaded(weights)
    images, labels = data()
    generator = torch.Generator().manual_seed(order)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for rate in lr:
        optimizer.param_groups[0]["lr"] = float(rate)
        batch = torch.randint(0, 1200, (BATCH,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return weights_of(model)


def weights_of(model: nn.Module) -> dict[str, NDArray[np.generic]]:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def loaded(weights: Weights, *, recompute: bool = False) -> nn.Sequential:
    """A network with these weights, in evaluation mode; ``recompute``: with the BatchNorm statistics they deserve."""
    model = network(0)
    model.load_state_dict({name: torch.tensor(np.asarray(array)) for name, array in weights.items()})
    if recompute:
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.reset_running_stats()
                layer.momentum = None  # a plain average over everything seen
        model.train()
        with torch.no_grad():
            model(data()[0][:1200])
    return model.eval()


def loss(weights: Weights, *, recompute: bool = True) -> float:
    """Cross entropy on 600 fixed training images."""
    images, labels = data()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(loaded(weights, recompute=recompute)(images[:600]), labels[:600]))


def decisions(weights: Weights) -> NDArray[np.int64]:
    """The class named for every evaluation image, shape (597,)."""
    with torch.no_grad():
        found: NDArray[np.int64] = loaded(weights, recompute=True)(data()[0][1200:]).argmax(dim=1).numpy()
    return found


def accuracy(weights: Weights) -> float:
    return float((decisions(weights) == data()[1][1200:].numpy()).mean())
