"""One image file to a uint8 tensor, whatever the file holds, by the best JPEG decoder that is installed."""

import functools
import importlib
import io
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp")
_OTHERS = (".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
_AVIF = (".avif",) if find_spec("PIL._avif") else ()  # Pillow may have been built without
SUFFIXES = frozenset({*_JPEG, *_OTHERS, *_AVIF})

DecodeJpeg = Callable[[bytes], UInt8[Tensor, "3 h w"]]


def read(path: Path, side: int) -> UInt8[Tensor, "3 side side"]:
    """The image as RGB, its shorter side resized to `side` pixels and the middle cut out, as the paper did (section 2).

    Resizing is bilinear with antialiasing. Grayscale, palette, CMYK and 16-bit images are converted, transparency is
    dropped. JPEG files in colour or gray are decoded by `decoder()`, all else by Pillow. Raises ValueError with the
    path for a file that is unreadable or ends early.
    """
    try:
        image = _decoded(path.read_bytes())
    except UnidentifiedImageError as error:  # whose own words name an address in memory
        raise ValueError(f"{path} is not a readable image: it begins as none of the formats known") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, RuntimeError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error
    scale = side / min(image.shape[1:])
    if scale != 1:
        extent = [max(side, round(length * scale)) for length in image.shape[1:]]
        # torch's fast kernel for bytes is the one for pixels that lie together.
        together = image[None].contiguous(memory_format=torch.channels_last)
        image = F.interpolate(together, extent, mode="bilinear", antialias=True)[0]
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return image[:, top : top + side, left : left + side].clone(memory_format=torch.contiguous_format)


@functools.cache
def decoder() -> tuple[str, DecodeJpeg]:
    """The best JPEG decoder that works here, torchcodec's, torchvision's or Pillow's, and its name with its version."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    for package, load in (("torchcodec", _torchcodec), ("torchvision", _torchvision)):
        try:
            decode = load()
            decode(buffer.getvalue())
        except (ImportError, AttributeError, OSError, RuntimeError):  # not installed, too old, or built without libjpeg
            continue
        return f"{package} {version(package)}", decode
    return f"pillow {version('pillow')}", _by_pillow


def _torchcodec() -> DecodeJpeg:
    return importlib.import_module("torchcodec.decoders").decode_jpeg


def _torchvision() -> DecodeJpeg:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(data: bytes) -> Tensor:
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)

    return decode


def _by_pillow(data: bytes) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(_rgb(image))).permute(2, 0, 1)


def _decoded(data: bytes) -> UInt8[Tensor, "3 h w"]:
    with Image.open(io.BytesIO(data)) as image:  # reads the header alone
        plain = image.format == "JPEG" and image.mode in ("RGB", "L")
    return decoder()[1](data) if plain else _by_pillow(data)


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
