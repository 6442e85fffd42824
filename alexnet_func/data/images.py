"""One image file to a uint8 tensor, whatever the file holds, by the best JPEG decoder that is installed."""

import functools
import importlib
import io
import stat
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

from alexnet_func import machine
from alexnet_func.data import orientation as orientations
from alexnet_func.data import quiet
from alexnet_func.data.orientation import Orientation

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp")
_OTHERS = (".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
_AVIF = (".avif",) if find_spec("PIL._avif") else ()  # Pillow may have been built without
SUFFIXES = frozenset({*_JPEG, *_OTHERS, *_AVIF})

MAX_SIDE = 2048  # a shard of 512 such images takes 6 GB
MAX_PIXELS = 178_956_970  # where Pillow refuses: 512 MiB as RGB
MAX_BYTES = 8 * MAX_PIXELS  # four channels of 16 bits, not compressed

DecodeJpeg = Callable[[bytes], UInt8[Tensor, "3 h w"]]

_muted = quiet.Muted()
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnreadableError(ValueError):
    """A file is no image that can be read; the message names it and says why."""


def read(path: Path, side: int, *, orientation: Orientation = "exif") -> UInt8[Tensor, "3 side side"]:
    """The image as RGB, its shorter side resized to `side` pixels and the middle cut out, as the paper did (section 2).

    Resizing is bilinear with antialiasing. Grayscale, palette, CMYK and 16-bit images are converted, transparency is
    dropped. JPEG files in colour or gray are decoded by `decoder()`, all else by Pillow.

    `orientation` "exif" turns the picture as viewers show it, by its EXIF tag; "stored" leaves it as Pillow opens it,
    which is what torchvision's `ImageFolder` does (TIFF files Pillow turns itself).

    Raises UnreadableError with the path for a file that is missing, no regular file, unreadable or ends early, and for
    one of more than `MAX_PIXELS` as it is or once resized; ValueError for a side outside 1 .. `MAX_SIDE` or an unknown
    orientation.
    """
    check(side, orientation)
    image = _picture(path, orientation)
    height, width = image.shape[1:]
    scale = side / min(height, width)
    if scale != 1:
        extent = [max(side, round(length * scale)) for length in (height, width)]
        if extent[0] * extent[1] > MAX_PIXELS:
            reason = f"resized from {width}x{height} {_too_many(f'{extent[1]}x{extent[0]}')}"
            raise UnreadableError(f"{path} is not a readable image: {reason}")
        # torch's fast kernel for bytes is the one for pixels that lie together.
        together = image[None].contiguous(memory_format=torch.channels_last)
        image = F.interpolate(together, extent, mode="bilinear", antialias=True)[0]
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return image[:, top : top + side, left : left + side].clone(memory_format=torch.contiguous_format)


def read_or_reason(path: Path, side: int, *, orientation: Orientation = "exif") -> UInt8[Tensor, "3 side side"] | str:
    """`read`, or why that is not possible, for readers in other threads and processes.

    Those call `check` first: no image is to blame for a wrong side.
    """
    try:
        return read(path, side, orientation=orientation)
    except UnreadableError as error:
        return str(error)


def check(side: int, orientation: Orientation) -> None:
    """Raises ValueError unless images may be cut to that many pixels a side, and turned so."""
    if not 1 <= side <= MAX_SIDE:
        raise ValueError(f"side must lie in 1..{MAX_SIDE} pixels, got {side}")
    orientations.check(orientation)


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
        return _pixels(image)


def _picture(path: Path, orientation: Orientation) -> UInt8[Tensor, "3 h w"]:
    """All of the image, or UnreadableError with the path."""
    try:
        with _muted:
            return _decoded(_bytes(path), orientation)
    except quiet.DAMAGE as error:
        if machine.is_want_of_memory(error):
            raise
        raise UnreadableError(f"{path} is not a readable image: {_reason(error, path)}") from error


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return _too_many("more")
    if isinstance(error, FileNotFoundError):
        return "its link leads nowhere" if path.is_symlink() else "there is no such file"
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _bytes(path: Path) -> bytes:
    """What a regular file holds: to open a pipe would be to wait for ever."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"it is no file but {_KINDS.get(stat.S_IFMT(about.st_mode), 'something else')}")
    if about.st_size > MAX_BYTES:
        raise ValueError(f"it has {about.st_size:,} bytes, and {MAX_BYTES:,} are the most that are read")
    data = path.read_bytes()
    if not data:
        raise ValueError("it is empty")
    return data


def _decoded(data: bytes, orientation: Orientation) -> UInt8[Tensor, "3 h w"]:
    file = io.BytesIO(data)
    with _opened(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(_too_many(f"{image.width}x{image.height}"))
        plain = image.format == "JPEG" and image.mode in ("RGB", "L")
        pixels = decoder()[1](orientations.untagged(data, file.tell())) if plain else _pixels(image)
        return orientations.turn(image)(pixels) if orientation == "exif" else pixels


def _opened(file: io.BytesIO) -> Image.Image:
    """The image, of which the header alone is read."""
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:  # whose own words name an address in memory
        is_heic = file.getvalue()[4:11] == b"ftyphei"
        what = "HEIC does, which is not read: convert it to JPEG" if is_heic else "none of the formats known"
        raise ValueError(f"it begins as {what}") from error


def _too_many(found: str) -> str:
    return f"it has {found} pixels, and {MAX_PIXELS:,} in all are the most that are read"


def _pixels(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(_rgb(image))).permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
