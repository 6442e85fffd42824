"""Image files decoded once into memory, and kept in a file between runs."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import torch
from jaxtyping import Int64
from torch import Tensor

from alexnet_func import machine, tensorfile
from alexnet_func.data import images
from alexnet_func.data.records import Files, Split

Track = Callable[[Iterable, int], Iterable]


class Decoded(NamedTuple):
    """The readable images of some files, their labels and places among them, and why the others could not be read."""

    split: Split
    unreadable: tuple[str, ...]
    indices: Int64[Tensor, "n"]


def decode(
    files: Files,
    side: int,
    *,
    skip_bad: bool = False,
    orientation: images.Orientation = "exif",
    track: Track = lambda items, total: items,
) -> Decoded:
    """`read`, of which something must be readable.

    Raises ValueError with the path of the first unreadable file, or with `skip_bad` if none is readable; ValueError
    where there are no files.
    """
    if not files.paths:
        raise ValueError("there are no image files to decode")
    decoded = read(files, side, skip_bad=skip_bad, orientation=orientation, track=track)
    if not len(decoded.split.labels):
        raise ValueError(f"none of {len(files.paths)} images is readable: {decoded.unreadable[0]}")
    return decoded


def read(
    files: Files,
    side: int,
    *,
    skip_bad: bool = False,
    orientation: images.Orientation = "exif",
    workers: int | None = None,
    track: Track = lambda items, total: items,
) -> Decoded:
    """Every image as `images.read` turns and cuts it, by `workers` threads (None: one a processor).

    `track(items, total)` may follow them. Raises ValueError with the path of the first unreadable file, unless
    `skip_bad` leaves those out, and for a side or orientation that `images.read` refuses.
    """
    images.check(side, orientation)
    count = len(files.paths)
    pixels = torch.empty(count, 3, side, side, dtype=torch.uint8)
    kept: list[int] = []
    unreadable: list[str] = []
    pool = ThreadPoolExecutor(workers or machine.processors())
    try:
        results = pool.map(partial(images.read_or_reason, side=side, orientation=orientation), files.paths)
        for i, result in enumerate(track(results, count)):
            if isinstance(result, Tensor):
                pixels[len(kept)] = result
                kept.append(i)
            elif skip_bad:
                unreadable.append(result)
            else:
                raise images.UnreadableError(result)
    finally:
        pool.shutdown(cancel_futures=True)
    return Decoded(Split(pixels[: len(kept)], files.labels[kept]), tuple(unreadable), torch.tensor(kept).long())


def cached(
    path: Path,
    files: Files,
    side: int,
    *,
    skip_bad: bool = False,
    orientation: images.Orientation = "exif",
    track: Track = lambda items, total: items,
    tell: Callable[[str], Any] = print,
) -> Decoded:
    """`decode`, from `path` if that holds the same files' images whole, else decoded and written there.

    A file counts as the same by its path, size and time of last change. Where `path` cannot be written the images are
    decoded all the same, and again the next time, which `tell` is given a line about.
    """
    source = fingerprint(files, side, orientation=orientation)
    kept = _kept(path, source)
    if kept is not None and (skip_bad or not kept.unreadable):
        return kept
    decoded = decode(files, side, skip_bad=skip_bad, orientation=orientation, track=track)
    try:
        tensors = {**decoded.split._asdict(), "indices": decoded.indices}
        tensorfile.write(path, tensors, {"source": source, "unreadable": decoded.unreadable})
    except OSError as error:
        tell(f"the decoded images are not kept: {error}")
    return decoded


def _kept(path: Path, source: str) -> Decoded | None:
    """What `cached` has written of that source; None where there is nothing, or anything else: it is written anew."""
    try:
        tensors, about = tensorfile.read(path, "cache")
    except (OSError, ValueError):
        return None
    if about.get("source") != source or set(tensors) != {*Split._fields, "indices"} or "unreadable" not in about:
        return None
    return Decoded(Split(tensors["images"], tensors["labels"]), tuple(about["unreadable"]), tensors["indices"])


def fingerprint(files: Files, side: int, *, orientation: images.Orientation = "exif") -> str:
    """A SHA-256 that changes with any file's path, label, size or time of change, with `side`, `orientation`, decoders.

    A file that is not there, as at the end of a dangling link, has no size and time: to read it is the error.
    """
    digest = hashlib.sha256(f"{side} {orientation} {PIL.__version__} {images.decoder()[0]}".encode())
    for path, label in zip(files.paths, files.labels.tolist(), strict=True):
        digest.update(os.fsencode(f"{os.path.realpath(path)} {label} {_size_and_time(path)}\n"))
    return digest.hexdigest()


def _size_and_time(path: Path) -> str:
    try:
        about = path.stat()
    except OSError:
        return "missing"
    return f"{about.st_size} {about.st_mtime_ns}"
