"""AlexNet as pure functions over a parameter dict, JAX-style, in PyTorch.

`init`, `forward` and `loss_fn` stand here; everything else lives in its room, such as `random`, `arch` or `train`.
"""

from alexnet_func import arch, checkpoint, data, interop, losses, model, ops, optim, precision, random, train
from alexnet_func.losses import loss_fn
from alexnet_func.model import forward, init

__all__ = [
    "arch",
    "checkpoint",
    "data",
    "forward",
    "init",
    "interop",
    "loss_fn",
    "losses",
    "model",
    "ops",
    "optim",
    "precision",
    "random",
    "train",
]
