"""Augmentation of one image as pure functions of a key; `torch.func.vmap` over keys and images makes batches.

    crops = vmap(lambda key, image: padded_crop(key, image, padding=4))(keys, images)

Images are uint8 [C, H, W] until `to_float`; what changes colours, `pca_noise` and `normalize`, takes floats on 0..1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor

from alexnet_func import random


def random_crop(key: random.Key, image: UInt8[Tensor, "c h w"], size: int) -> UInt8[Tensor, "c size size"]:
    """A square of `size` pixels a side, every position equally likely: Krizhevsky et al. 2012, section 4.1.

    Raises ValueError for a size below 1 or above the image's.
    """
    height, width = image.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size must lie in 1..{min(height, width)} for an image of {height}x{width}, got {size}")
    row_key, column_key = random.split(key).unbind()
    rows = random.randint(row_key, (), 0, height - size + 1) + torch.arange(size, device=image.device)
    columns = random.randint(column_key, (), 0, width - size + 1) + torch.arange(size, device=image.device)
    return image[:, rows[:, None], columns]


def padded_crop(key: random.Key, image: UInt8[Tensor, "c side side"], padding: int) -> UInt8[Tensor, "c side side"]:
    """A crop of the square image's own size from the image with `padding` black pixels on every side.

    That is a shift by up to `padding` pixels along each axis, all of them equally likely. Raises ValueError for a
    negative padding.
    """
    if padding < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    return random_crop(key, F.pad(image, (padding,) * 4), image.shape[-1])


def random_flip(key: random.Key, image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
    """The image or, with probability 1/2, its mirror image."""
    return torch.where(random.bernoulli(key), image.flip(-1), image)


def to_float(images: UInt8[Tensor, "*n c h w"]) -> Float32[Tensor, "*n c h w"]:
    """The images on the scale 0..1."""
    return images.float() / 255


def normalize(
    images: Float32[Tensor, "*n c h w"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "*n c h w"]:
    """`(images - mean) / std` a channel, all on the scale 0..1."""
    shift = torch.tensor(mean, device=images.device)[:, None, None]
    scale = torch.tensor(std, device=images.device)[:, None, None]
    return (images - shift) / scale


def channel_moments(images: UInt8[Tensor, "n c h w"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, on the scale 0..1, exact up to float64 rounding.

    Counted from each channel's histogram, so that neither the order nor the number of images matters. The deviation of
    a constant channel is given as 1, which `normalize` can divide by.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    moments = []
    for channel in images.unbind(1):
        weights = channel.flatten().to(torch.int64).bincount(minlength=256).cpu().double()
        mean = (weights * levels).sum() / weights.sum()
        std = ((weights * (levels - mean) ** 2).sum() / weights.sum()).sqrt()
        moments.append((mean.item(), std.item() if weights.count_nonzero() > 1 else 1.0))
    means, stds = zip(*moments, strict=True)
    return means, stds


def center_crop(images: UInt8[Tensor, "*n c h w"], size: int) -> UInt8[Tensor, "*n c size size"]:
    """The square of `size` pixels in the middle, placed as `torchvision.transforms.CenterCrop` places it."""
    height, width = images.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size must lie in 1..{min(height, width)} for images of {height}x{width}, got {size}")
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def ten_crop(images: UInt8[Tensor, "n c h w"], size: int) -> UInt8[Tensor, "n 10 c size size"]:
    """The four corners and the centre, and their mirror images: Krizhevsky et al. 2012, section 4.1."""
    corners = [images[..., rows, columns] for rows in _ends(size) for columns in _ends(size)]
    five = torch.stack([*corners, center_crop(images, size)], dim=1)
    return torch.cat([five, five.flip(-1)], dim=1)


def _ends(size: int) -> tuple[slice, slice]:
    return slice(None, size), slice(-size, None)


def rgb_components(images: UInt8[Tensor, "n 3 h w"]) -> Float32[Tensor, "3 3"]:
    """`lambda_i p_i` a column: the principal components of the set's RGB values (0..1), each times its eigenvalue."""
    pixels = images.transpose(0, 1).reshape(3, -1).double() / 255
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(pixels))
    # The sign of an eigenvector is arbitrary: the largest entry is made positive, so that every machine agrees.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * largest.sign() * eigenvalues).float()


def pca_noise(
    key: random.Key, image: Float32[Tensor, "3 h w"], components: Float32[Tensor, "3 3"], sigma: float = 0.1
) -> Float32[Tensor, "3 h w"]:
    """The image (0..1) plus one colour for all its pixels: `sum_i a_i lambda_i p_i`, a_i from N(0, sigma^2).

    `components` is `rgb_components` of the training images. Source: Krizhevsky et al. 2012, section 4.1.
    """
    return image + (components @ (random.normal(key, (3,)) * sigma))[:, None, None]
