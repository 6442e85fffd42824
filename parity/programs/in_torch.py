"""Trains a small network with dropout and momentum, and differentiates that by the learning rate: with alexnet_func."""

from typing import Any

import torch
from torch import Tensor
from torch.func import grad

import alexnet_func as af
from alexnet_func import random
from alexnet_func.arch import Arch, Conv, Dropout, Linear, MaxPool, ReLU

Params = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]

STEPS, EXAMPLES, RATE, MOMENTUM = 10, 16, 0.05, 0.9
NET = Arch(
    name="net",
    in_channels=1,
    image_size=20,
    num_classes=10,
    features=(Conv(16, 4, stride=2, padding=1), ReLU(), MaxPool(2, 2), Conv(16, 4, padding=1), ReLU()),
    classifier=(Dropout(0.2), Linear(64), ReLU(), Dropout(0.5), Linear(None)),
)


def init(key: Tensor) -> Params:
    return af.init(key, NET, dtype=torch.float64)


def forward(params: Params, x: Tensor, *, key: Tensor | None = None) -> Tensor:
    return af.forward(params, x, arch=NET, key=key)


def loss(params: Params, batch: Batch, *, key: Tensor | None = None) -> Tensor:
    x, y = batch
    return af.losses.cross_entropy(forward(params, x, key=key), y)


def train(params: Params, rate: Tensor, batch: Batch, key: Tensor) -> tuple[Params, Tensor]:
    optimizer = af.optim.sgd(rate, momentum=MOMENTUM)
    step = af.train.make_step(loss, optimizer)

    state, losses = af.train.create_state(params, optimizer, key=key), []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    return state.params, torch.stack(losses)


def final_loss(rate: Tensor, params: Params, batch: Batch, key: Tensor) -> tuple[Tensor, Any]:
    trained, losses = train(params, rate, batch, key)
    return loss(trained, batch), {"losses": losses, **trained}


def run(key: Tensor) -> dict[str, Tensor]:
    init_key, image_key, label_key, key = random.split(key, 4)
    x = random.uniform(image_key, (EXAMPLES, 1, 20, 20)).double()
    y = random.randint(label_key, (EXAMPLES,), 0, 10)
    hypergradient = grad(final_loss, has_aux=True)
    by_rate, found = hypergradient(torch.tensor(RATE, dtype=torch.float64), init(init_key), (x, y), key)
    return {"by learning rate": by_rate, **found}


if __name__ == "__main__":
    found = run(random.key(0))
    print("losses", *(f"{value:.6f}" for value in found["losses"]))
    print(f"by the learning rate {found['by learning rate']:.6f}")
