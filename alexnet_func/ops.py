"""Pure tensor operations that torch lacks, or gets wrong on one example.

Each takes one example or a batch, and works under `torch.func` transforms and `torch.compile`.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from alexnet_func import tape
from alexnet_func.checks import check_fraction
from alexnet_func.layers import LRN, WithinChannelLRN

__all__ = [
    "classic_dropout",
    "dropout",
    "local_response_norm",
    "within_channel_response_norm",
]


def local_response_norm(x: Float[Tensor, "*n c h w"], layer: LRN) -> Float[Tensor, "*n c h w"]:
    """Normalises `x` by local response across channels, as `layer` says: Krizhevsky et al. 2012, section 3.3.

    `y_i = x_i / (k + a * sum_j x_j^2)^beta`, where j runs over the `size` channels around i that exist in its group
    and `a` is alpha ("sum" convention) or alpha / size ("mean"). `F.local_response_norm` agrees on a batch
    to rounding; on one example [C, H, W] it silently normalises over the wrong axis.
    """
    if layer.groups > 1:
        by_group = x.unflatten(-3, (layer.groups, -1))
        return local_response_norm(by_group, replace(layer, groups=1)).flatten(-4, -3)
    total = _sum_over_windows(x * x, layer.size)
    alpha = layer.alpha if layer.convention == "sum" else layer.alpha / layer.size
    return x / (layer.k + alpha * total) ** layer.beta


def _sum_over_windows(x: Float[Tensor, "*n c h w"], size: int) -> Float[Tensor, "*n ca h w"]:
    """Sums over `size` channels around each; where every window holds all channels, that is one map for all."""
    before, after, channels = size // 2, (size - 1) // 2, x.shape[-3]
    if after >= channels - 1:
        return x.sum(-3, keepdim=True)
    padded = F.pad(x, (0, 0, 0, 0, before, after))
    total = padded.narrow(-3, 0, channels)
    for offset in range(1, size):
        total = total + padded.narrow(-3, offset, channels)
    return total


def within_channel_response_norm(x: Float[Tensor, "*n c h w"], layer: WithinChannelLRN) -> Float[Tensor, "*n c h w"]:
    """Normalises `x` by local response over pixels of the same channel, as `WithinChannelLRN` describes it."""
    before, after = layer.size // 2, (layer.size - 1) // 2
    padded = F.pad(x * x, (before, after, before, after))
    total = F.avg_pool2d(padded, layer.size, stride=1, divisor_override=1)
    alpha = layer.alpha if layer.convention == "sum" else layer.alpha / layer.size**2
    return x / (layer.k + alpha * total) ** layer.beta


def dropout(x: Float[Tensor, "*s"], noise: Float32[Tensor, "*s"], rate: float) -> Float[Tensor, "*s"]:
    """Applies inverted dropout to `x`: `x / (1 - rate)` where `noise < 1 - rate`, else 0.

    `noise` is `random.uniform(key, x.shape)`, so what is kept is `random.bernoulli(key, 1 - rate, x.shape)`.
    Raises ValueError for a rate outside [0, 1).
    """
    check_fraction("dropout rate", rate)
    return (x / (1 - rate)).where(noise < 1 - rate, 0)


def classic_dropout(x: Float[Tensor, "*s"], noise: Float32[Tensor, "*s"] | None, rate: float) -> Float[Tensor, "*s"]:
    """Applies dropout to `x` as the 2012 paper has it, section 4.2.

    It is x where `noise < 1 - rate`, else 0; without noise `x (1 - rate)`.
    Raises ValueError for a rate outside [0, 1).
    """
    check_fraction("dropout rate", rate)
    return x * (1 - rate) if noise is None else x.where(noise < 1 - rate, 0)


def square_root(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The square root, whose derivative at 0 counts as 0 and not as infinite, as that of a norm at zero may.

    Where nobody differentiates or traces it is `x.sqrt()`, with the same bits.
    """
    if not (torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or tape.watched(x)):
        return x.sqrt()
    zero = x == 0
    return x.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)
