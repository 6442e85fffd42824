"""AlexNet as pure functions over a parameter dict, JAX-style, in PyTorch.

`init`, `forward` and `loss_fn` stand here; everything else lives in its room, such as `random`, `arch` or `train`.
"""

from importlib import metadata

from alexnet_func import (
    allocator,
    arch,
    checkpoint,
    curvature,
    data,
    ensemble,
    history,
    hybrid,
    influence,
    interop,
    losses,
    model,
    ops,
    optim,
    parallel,
    per_sample,
    precision,
    privacy,
    random,
    routes,
    train,
)
from alexnet_func.losses import loss_fn
from alexnet_func.model import forward, init

try:
    __version__ = metadata.version("alexnet_func")
except metadata.PackageNotFoundError:  # a folder on the path, not an installation
    __version__ = "0.0.0+unknown"

__all__ = [
    "allocator",
    "arch",
    "checkpoint",
    "curvature",
    "data",
    "ensemble",
    "forward",
    "history",
    "hybrid",
    "influence",
    "init",
    "interop",
    "loss_fn",
    "losses",
    "model",
    "ops",
    "optim",
    "parallel",
    "per_sample",
    "precision",
    "privacy",
    "random",
    "routes",
    "train",
]
