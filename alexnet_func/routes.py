"""The same layers by other routes, as tables for `model.forward(..., table=...)`: equal to rounding, not in bits.

    loss = functools.partial(losses.loss_fn, table=routes.fused(ALEXNET))
    step = train.compile_step(train.make_step(loss, optimizer))

`python -m benchmarks --only train_step` and `--only layers` measure which of them pays on a machine, and
`python -m benchmarks.kernels` what each moves through a GPU's memory.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alexnet_func.arch import Arch, Conv, MaxPool, Placed, ReLU, Tanh, place
from alexnet_func.model import PLAIN, LayerFn, Table

__all__ = [
    "SPACE_TO_DEPTH",
    "fused",
    "space_to_depth_conv",
]

_FEW_CHANNELS = 4


def space_to_depth_conv(
    at: Placed,
    x: Float[Tensor, "*n c h w"],
    weight: Float[Tensor, "o ci k k"],
    bias: Float[Tensor, "o"] | None,
) -> Float[Tensor, "*n o ho wo"]:
    """Computes a strided convolution of `x` with few channels as one of stride 1 on stride^2 times as many.

    Each stride x stride pixels become one: ALEXNET's first layer, 11x11 by 4 on 3 channels, becomes 3x3 on 48. Other
    layers go their plain way.

    Matrix units are poorly filled by three channels; the price is a kernel padded to a multiple of the stride, here
    144/121 of the products.
    """
    layer: Conv = at.layer  # type: ignore[assignment]
    stride, channels = layer.stride, x.shape[-3]
    if stride == 1 or layer.groups > 1 or channels > _FEW_CHANNELS:
        return PLAIN[Conv](at, x, weight, bias)
    blocks = -(-layer.kernel_size // stride)  # of pixels, along one side of the kernel
    extents = [(size + blocks - 1) * stride for size in at.out_shape[1:]]
    # What the last window does not reach is cut off by a negative margin.
    below, right = (e - s - layer.padding for e, s in zip(extents, x.shape[-2:], strict=True))
    padded = F.pad(x, (layer.padding, right, layer.padding, below))
    spare = blocks * stride - layer.kernel_size
    kernel = _to_depth(F.pad(weight, (0, spare, 0, spare)), stride)
    return F.conv2d(_to_depth(padded, stride), kernel, bias)


def _to_depth(x: Float[Tensor, "*n c h w"], block: int) -> Float[Tensor, "*n cbb hb wb"]:
    c, h, w = x.shape[-3:]
    split = x.reshape(*x.shape[:-3], c, h // block, block, w // block, block)
    return split.movedim((-3, -1), (-5, -4)).reshape(*x.shape[:-3], c * block**2, h // block, w // block)


SPACE_TO_DEPTH: Table = {**PLAIN, Conv: space_to_depth_conv}


def fused(arch: Arch, table: Table = PLAIN) -> Table:
    """Returns `table` with maps in channels_last, pooled as early as may be.

    A GPU waits for memory; on a CPU oneDNN would bring maps into that order and back, in bfloat16 most of all.

    A convolution that ReLU or Tanh and max-pooling follow is pooled first. Both, and a bias, keep the order of numbers,
    and so come after without any other result, on a quarter of the pixels. Gradients differ where two pixels of a
    window are the same only after the bias is added and rounded. One image, without a batch axis, stays as it lies in
    memory.
    """
    layers = place(arch, (arch.in_channels, arch.image_size, arch.image_size))
    pooled = {
        conv.name: (bend, pool)
        for conv, bend, pool in zip(layers, layers[1:], layers[2:], strict=False)
        if isinstance(conv.layer, Conv) and isinstance(bend.layer, ReLU | Tanh) and isinstance(pool.layer, MaxPool)
    }
    done = {at.name for pair in pooled.values() for at in pair}

    def conv(at: Placed, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight = _channels_last(x), _channels_last(weight)
        if at.name not in pooled:
            return table[Conv](at, x, weight, bias)
        bend, pool = pooled[at.name]
        pooled_map = table[MaxPool](pool, table[Conv](at, x, weight, None))
        return table[type(bend.layer)](bend, pooled_map + bias[:, None, None])

    def unless_done(kind: type) -> LayerFn:
        return lambda at, x: x if at.name in done else table[kind](at, x)

    return {**table, Conv: conv, ReLU: unless_done(ReLU), Tanh: unless_done(Tanh), MaxPool: unless_done(MaxPool)}


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
