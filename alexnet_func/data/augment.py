"""Augmentation of one image as pure functions of a key; `torch.func.vmap` over keys and images makes batches.

    crops = vmap(lambda key, image: padded_crop(key, image, padding=4))(keys, images)

`random_crops`, `padded_crops` and `random_flips` are the same batches, made without a gather on a CPU.
Images are uint8 [C, H, W] until `to_float`; what changes colours, `pca_noise` and `normalize`, takes floats on 0..1.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor
from torch.func import vmap

from alexnet_func import checks, random, tape

Border = Literal["black", "reflect"]

_CHUNK = 256  # images at a time, where sums over a whole set are taken in 64 bits


def random_crop(key: random.Key, image: UInt8[Tensor, "c h w"], size: int) -> UInt8[Tensor, "c size size"]:
    """A square of `size` pixels a side, every position equally likely: Krizhevsky et al. 2012, section 4.1.

    Raises ValueError for a size below 1 or above the image's.
    """
    top, left = _corner(key, image.shape[-2:], size).unbind()
    pixels = torch.arange(size, device=image.device)
    return image.index_select(-2, top + pixels).index_select(-1, left + pixels)


def random_crops(
    keys: Int32[Tensor, "n 2"], images: UInt8[Tensor, "n c h w"], size: int
) -> UInt8[Tensor, "n c size size"]:
    """`vmap(random_crop)`, on a CPU by slices: gathering the pixels of photographs takes six times as long there.

    Slices read the positions: where those may not be looked at, as under a transform, it is the `vmap`. Errors as
    `random_crop`.
    """
    if not _readable(keys, images):
        return vmap(lambda key, image: random_crop(key, image, size))(keys, images)
    corners = vmap(lambda key: _corner(key, images.shape[-2:], size))(keys)
    crops = images.new_empty(*images.shape[:-2], size, size)
    for crop, image, (top, left) in zip(crops, images, corners.tolist(), strict=True):
        crop.copy_(image[:, top : top + size, left : left + size])
    return crops


def _corner(key: random.Key, extent: Sequence[int], size: int) -> Int32[Tensor, "2"]:
    height, width = extent
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size must lie in 1..{min(height, width)} for an image of {height}x{width}, got {size}")
    row_key, column_key = random.split(key).unbind()
    top, left = random.randint(row_key, (), 0, height - size + 1), random.randint(column_key, (), 0, width - size + 1)
    return torch.stack([top, left])


def padded_crop(
    key: random.Key, image: UInt8[Tensor, "c side side"], padding: int, border: Border = "black"
) -> UInt8[Tensor, "c side side"]:
    """A crop of the square image's own size from the image with `padding` pixels more on every side.

    That is a shift by up to `padding` pixels along each axis, all of them equally likely. What comes in at the `border`
    is "black", or the image's own reflection without the outermost pixels ("reflect"). Raises ValueError for a negative
    padding, or one that reaches beyond what can be reflected.
    """
    return random_crop(key, _padded(image, padding, border), image.shape[-1])


def padded_crops(
    keys: Int32[Tensor, "n 2"], images: UInt8[Tensor, "n c side side"], padding: int, border: Border = "black"
) -> UInt8[Tensor, "n c side side"]:
    """`vmap(padded_crop)`, by `random_crops`. Errors as `padded_crop`."""
    return random_crops(keys, _padded(images, padding, border), images.shape[-1])


def _padded(images: UInt8[Tensor, "*n c h w"], padding: int, border: Border) -> UInt8[Tensor, "*n c hp wp"]:
    if padding < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    if border == "black":
        return F.pad(images, (padding,) * 4)
    if padding >= min(images.shape[-2:]):
        raise ValueError(f"padding must be below the side of {images.shape[-1]} to be reflected, got {padding}")
    rows, columns = (_reflected(side, padding, images.device) for side in images.shape[-2:])
    return images.index_select(-2, rows).index_select(-1, columns)  # F.pad reflects no uint8 on CUDA


def _reflected(side: int, padding: int, device: torch.device) -> Int64[Tensor, "padded"]:
    """The place of each pixel of a padded row in the row itself: 2 1 0 1 2 ... for a padding of 2."""
    last = side - 1
    return last - (last - torch.arange(-padding, side + padding, device=device).abs()).abs()


def resized_crop(
    key: random.Key,
    image: UInt8[Tensor, "c h w"],
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> UInt8[Tensor, "c size size"]:
    """A box of random area and shape, resized to `size` pixels a side: Szegedy et al. 2015, section 6.

    The box's area is a share of the image's, uniform in `scale`; its width over its height is log-uniform in `ratio`;
    its place is uniform. As in `torchvision.transforms.RandomResizedCrop` the first of ten draws that fits is taken,
    else the largest box in the middle of a shape within `ratio`; resizing is bilinear with antialiasing.

    Raises ValueError for a size below 1, or bounds that are not positive and in order.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            raise ValueError(f"{name} must be positive bounds in order, got {(low, high)}")
    extent = image.shape[-2:]
    return _resized(image, _random_box(key, extent, scale, ratio), size)


def _random_box(
    key: random.Key, extent: Sequence[int], scale: tuple[float, float], ratio: tuple[float, float]
) -> Int32[Tensor, "4"]:
    """Top, left, height, width."""
    rows, columns = extent
    area_key, shape_key, top_key, left_key = random.split(key, 4).unbind()
    areas = rows * columns * (scale[0] + (scale[1] - scale[0]) * random.uniform(area_key, (10,)))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shapes = (low + (high - low) * random.uniform(shape_key, (10,))).exp()
    heights, widths = (areas / shapes).sqrt().round(), (areas * shapes).sqrt().round()
    fits = (heights >= 1) & (heights <= rows) & (widths >= 1) & (widths <= columns)
    within = min(max(columns / rows, ratio[0]), ratio[1])
    largest = _constants([min(rows, round(columns / within)), min(columns, round(rows * within))], key.device)
    first = fits.int().argmax()
    drawn = torch.stack([heights, widths]).index_select(1, first[None])[:, 0]
    height, width = torch.where(fits.any(), drawn, largest).unbind()
    # The middle is where the largest box is put; a drawn one goes anywhere.
    share = torch.stack([random.uniform(top_key), random.uniform(left_key)])
    room = torch.stack([rows - height, columns - width])
    corner = torch.where(fits.any(), (share * (room + 1)).floor().minimum(room), (room / 2).round())
    return torch.cat([corner, torch.stack([height, width])]).int()


def _resized(image: UInt8[Tensor, "c h w"], box: Int32[Tensor, "4"], size: int) -> UInt8[Tensor, "c size size"]:
    top, left, height, width = box.unbind()
    rows = _resampling(image.shape[-2], top, height, size)
    columns = _resampling(image.shape[-1], left, width, size)
    return (rows @ image.float() @ columns.T).round().clamp(0, 255).to(torch.uint8)


def _resampling(extent: int, start: Tensor, length: Tensor, size: int) -> Float32[Tensor, "size extent"]:
    """Weights that take `extent` pixels to `size`, those from `start` on for `length`: a triangle over each target.

    The triangle is as wide as a target pixel is in the source, but never narrower than two source pixels.
    """
    scale = length / size
    centers = start + (torch.arange(size, device=start.device) + 0.5) * scale
    pixels = torch.arange(extent, device=start.device)
    weights = (1 - ((pixels + 0.5)[None] - centers[:, None]).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixels >= start) & (pixels < start + length))
    return weights / weights.sum(1, keepdim=True)


def random_flip(key: random.Key, image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
    """The image or, with probability 1/2, its mirror image."""
    columns = torch.arange(image.shape[-1], device=image.device)
    return image.index_select(-1, torch.where(random.bernoulli(key), columns.flip(0), columns))


def random_flips(keys: Int32[Tensor, "n 2"], images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    """`vmap(random_flip)`, on a CPU image by image, as `random_crops` does."""
    if not _readable(keys, images):
        return vmap(random_flip)(keys, images)
    flipped = images.clone()
    for i in vmap(random.bernoulli)(keys).nonzero().flatten().tolist():
        flipped[i] = images[i].flip(-1)
    return flipped


def _readable(keys: Tensor, images: Tensor) -> bool:
    return checks.visible(keys) is not None and not tape.watched(keys, images)


def to_float(images: UInt8[Tensor, "*n c h w"]) -> Float32[Tensor, "*n c h w"]:
    """The images on the scale 0..1."""
    return images.float() / 255


def normalize(
    images: Float32[Tensor, "*n c h w"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "*n c h w"]:
    """`(images - mean) / std` a channel, all on the scale 0..1."""
    shift, scale = (_constants(values, images.device)[:, None, None] for values in (mean, std))
    return (images - shift) / scale


def _constants(values: Sequence[float | int], device: torch.device) -> Float32[Tensor, "n"]:
    """By fills: a tensor of Python numbers would be copied to a GPU, which waits for it."""
    return torch.stack([torch.full((), value, dtype=torch.float32, device=device) for value in values])


def channel_moments(images: UInt8[Tensor, "n c h w"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, on the scale 0..1, exact up to float64 rounding.

    Counted from each channel's histogram, so that neither the order nor the number of images matters. The deviation of
    a constant channel is given as 1, which `normalize` can divide by.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    moments = []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64, device=images.device)
        for part in images[:, channel].split(_CHUNK):
            counts += part.flatten().to(torch.int64).bincount(minlength=256)
        weights = counts.cpu().double()
        mean = (weights * levels).sum() / weights.sum()
        std = ((weights * (levels - mean) ** 2).sum() / weights.sum()).sqrt()
        moments.append((mean.item(), std.item() if weights.count_nonzero() > 1 else 1.0))
    means, stds = zip(*moments, strict=True)
    return means, stds


def mean_image(images: UInt8[Tensor, "n c h w"], size: int) -> Float32[Tensor, "c size size"]:
    """The mean of the squares of `size` pixels in the middle, on the scale 0..1, pixel by pixel."""
    total = sum(center_crop(part, size).sum(0, dtype=torch.int64) for part in images.split(_CHUNK))
    return (torch.as_tensor(total).double() / (255 * len(images))).float()


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
    count = images.numel() // 3
    total, products = torch.zeros(3, 1).double(), torch.zeros(3, 3).double()
    for part in images.split(_CHUNK):
        pixels = part.transpose(0, 1).reshape(3, -1).double() / 255
        total += pixels.sum(1, keepdim=True).cpu()
        products += (pixels @ pixels.T).cpu()
    eigenvalues, vectors = torch.linalg.eigh((products - total @ total.T / count) / (count - 1))
    # The sign of an eigenvector is arbitrary: the largest entry is made positive, so that every machine agrees.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * largest.sign() * eigenvalues).float().to(images.device)


def rgb_deviations(components: Float32[Tensor, "3 3"]) -> Float32[Tensor, "3 3"]:
    """`sqrt(lambda_i) p_i` a column, of `rgb_components`: the roots that the source has for the paper's eigenvalues."""
    lengths = components.norm(dim=0)
    return components / lengths.clamp(min=torch.finfo(components.dtype).tiny).sqrt()


def pca_noise(
    key: random.Key,
    image: Float[Tensor, "3 h w"],
    components: Float[Tensor, "3 3"],
    sigma: float | Float[Tensor, ""] = 0.1,
) -> Float[Tensor, "3 h w"]:
    """The image (0..1) plus one colour for all its pixels: `sum_i a_i lambda_i p_i`, a_i from N(0, sigma^2).

    `components` is `rgb_components` of the training images. Source: Krizhevsky et al. 2012, section 4.1.
    """
    amounts = random.normal(key, (3,)).to(components.dtype) * sigma
    return image + (components @ amounts)[:, None, None]
