"""One image file to a uint8 tensor, whatever the file holds."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


def read(path: Path, side: int) -> UInt8[Tensor, "3 side side"]:
    """The image as RGB, its shorter side resized to `side` pixels and the middle cut out, as the paper did (section 2).

    Grayscale, palette, CMYK and 16-bit images are converted, transparency is dropped. Raises ValueError with the path
    for a file that is unreadable or ends early.
    """
    try:
        with Image.open(path) as file:
            image = _rgb(file)
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error
    scale = side / min(image.size)
    if scale != 1:
        width, height = (max(side, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def read_or_reason(path: Path, side: int) -> UInt8[Tensor, "3 side side"] | str:
    """`read`, or why that is not possible, for readers in other threads and processes."""
    try:
        return read(path, side)
    except ValueError as error:
        return str(error)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
