"""Which way up a picture is: the EXIF tag that cameras write instead of turning the pixels."""

import re
from collections.abc import Callable
from typing import Literal, get_args

from jaxtyping import UInt8
from PIL import ExifTags, Image
from torch import Tensor

from alexnet_func.data import quiet

Orientation = Literal["exif", "stored"]

_TURNS: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda image: image.flip(2),
    3: lambda image: image.flip(1, 2),
    4: lambda image: image.flip(1),
    5: lambda image: image.transpose(1, 2),
    6: lambda image: image.transpose(1, 2).flip(2),
    7: lambda image: image.transpose(1, 2).flip(1, 2),
    8: lambda image: image.transpose(1, 2).flip(1),
}
_EXIF_SEGMENT = re.compile(rb"\xff\xe1(..Exif)", re.DOTALL)  # APP1


def check(orientation: str) -> None:
    """Raises ValueError unless that is one of `Orientation`."""
    if orientation not in get_args(Orientation):
        raise ValueError(f"orientation must be one of {', '.join(get_args(Orientation))}, got {orientation!r}")


def turn(image: Image.Image) -> Callable[[UInt8[Tensor, "3 h w"]], UInt8[Tensor, "3 _ _"]]:
    """What turns the stored pixels of an open image as viewers show them: the eight cases of EXIF 2.3, tag 274.

    A missing, unknown or unreadable tag turns nothing. Of a PNG file the pixels must have been loaded, as its tag may
    lie behind them.
    """
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    except quiet.DAMAGE:  # of the EXIF alone: the pixels are fine
        tag = 1
    return _TURNS.get(tag, _as_stored)


def _as_stored(image: Tensor) -> Tensor:
    return image


def untagged(data: bytes, header: int) -> bytes:
    """A JPEG file with the EXIF of its first `header` bytes hidden: torchcodec turns by it, unasked, others do not."""
    if b"Exif" not in data[:header]:
        return data
    return _EXIF_SEGMENT.sub(b"\xff\xef\\1", data[:header]) + data[header:]  # APP15, which no decoder reads
