"""AlexNet as pure functions over a parameter dict, JAX-style, in PyTorch.

`init`, `forward` and `loss_fn` stand here; everything else lives in its room, such as `random`, `arch` or `train`.
"""

from alexnet_func import (
    allocator,
    arch,
    captures,
    checkpoint,
    curvature,
    data,
    ensemble,
    influence,
    interop,
    losses,
    model,
    onednn,
    ops,
    optim,
    parallel,
    per_sample,
    precision,
    privacy,
    random,
    routes,
    tensorfile,
    train,
    weights,
)
from alexnet_func.losses import loss_fn
from alexnet_func.model import forward, init

__all__ = [
    "allocator",
    "arch",
    "captures",
    "checkpoint",
    "curvature",
    "data",
    "ensemble",
    "forward",
    "influence",
    "init",
    "interop",
    "loss_fn",
    "losses",
    "model",
    "onednn",
    "ops",
    "optim",
    "parallel",
    "per_sample",
    "precision",
    "privacy",
    "random",
    "routes",
    "tensorfile",
    "train",
    "weights",
]
