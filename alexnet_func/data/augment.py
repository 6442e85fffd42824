"""Augmentation of one image as pure functions of a key; `torch.func.vmap` over keys and images makes batches.

    crops = vmap(lambda key, image: padded_crop(key, image, padding=4))(keys, images)

Images are uint8 [C, H, W] until `normalize`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor

from alexnet_func import random


def padded_crop(key: random.Key, image: UInt8[Tensor, "c h w"], padding: int) -> UInt8[Tensor, "c h w"]:
    """A crop of the image's own size from the image with `padding` black pixels on every side.

    That is a shift by up to `padding` pixels along each axis, all of them equally likely. Raises ValueError for a
    negative padding.
    """
    if padding < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    top, left = random.randint(key, (2,), 0, 2 * padding + 1).unbind()
    rows = top + torch.arange(image.shape[-2], device=image.device)
    columns = left + torch.arange(image.shape[-1], device=image.device)
    return F.pad(image, (padding,) * 4)[:, rows[:, None], columns]


def normalize(
    images: UInt8[Tensor, "*n c h w"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "*n c h w"]:
    """`(images / 255 - mean) / std` a channel, with mean and std on the scale 0..1."""
    shift = torch.tensor(mean, device=images.device)[:, None, None]
    scale = torch.tensor(std, device=images.device)[:, None, None]
    return (images.float() / 255 - shift) / scale
