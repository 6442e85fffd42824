"""The same layers by other routes, as tables for `model.forward(..., table=...)`: equal to rounding, not in bits.

    loss = functools.partial(losses.loss_fn, table=routes.SPACE_TO_DEPTH)
    step = train.compile_step(train.make_step(loss, optimizer))

They belong to compiled steps. `python -m benchmarks --only train_step` measures which of them pays on a machine.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alexnet_func.arch import Conv, Placed
from alexnet_func.model import PLAIN, Table

_FEW_CHANNELS = 4


def space_to_depth_conv(
    at: Placed, x: Float[Tensor, "*n c h w"], weight: Float[Tensor, "o ci k k"], bias: Float[Tensor, "o"]
) -> Float[Tensor, "*n o ho wo"]:
    """A strided convolution of few channels as one of stride 1 on stride^2 times as many, each stride x stride pixels
    being one: ALEXNET's first layer, 11x11 by 4 on 3 channels, becomes 3x3 on 48. Other layers go their plain way.

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
