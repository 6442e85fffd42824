"""Image files decoded once into memory, and kept in a file between runs."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import PIL
import torch
from torch import Tensor

from alexnet_func import checkpoint
from alexnet_func.data import images
from alexnet_func.data.datasets import Files, Split

Track = Callable[[Iterable, int], Iterable]


class Decoded(NamedTuple):
    """The readable images of some files with their labels, and why each other one could not be read."""

    split: Split
    unreadable: tuple[str, ...]


def decode(files: Files, side: int, *, skip_bad: bool = False, track: Track = lambda items, total: items) -> Decoded:
    """`read`, of which something must be readable.

    Raises ValueError with the path of the first unreadable file, or with `skip_bad` if none is readable.
    """
    decoded = read(files, side, skip_bad=skip_bad, track=track)
    if not len(decoded.split.labels):
        raise ValueError(f"none of {len(files.paths)} images is readable: {decoded.unreadable[0]}")
    return decoded


def read(
    files: Files,
    side: int,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    track: Track = lambda items, total: items,
) -> Decoded:
    """Every image as `images.read` cuts it to `side` x `side`, by `workers` threads (None: one a processor).

    `track(items, total)` may follow them. Raises ValueError with the path of the first unreadable file, unless
    `skip_bad` leaves those out.
    """
    count = len(files.paths)
    pixels = torch.empty(count, 3, side, side, dtype=torch.uint8)
    kept: list[int] = []
    unreadable: list[str] = []
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        results = pool.map(partial(images.read_or_reason, side=side), files.paths)
        for i, result in enumerate(track(results, count)):
            if isinstance(result, Tensor):
                pixels[len(kept)] = result
                kept.append(i)
            elif skip_bad:
                unreadable.append(result)
            else:
                raise ValueError(result)
    finally:
        pool.shutdown(cancel_futures=True)
    return Decoded(Split(pixels[: len(kept)], files.labels[kept]), tuple(unreadable))


def cached(
    path: Path, files: Files, side: int, *, skip_bad: bool = False, track: Track = lambda items, total: items
) -> Decoded:
    """`decode`, from `path` if that holds the same files' images whole, else decoded and written there.

    A file counts as the same by its path, size and time of last change. Where `path` cannot be written the images are
    decoded all the same, and again the next time.
    """
    source = fingerprint(files, side)
    try:
        tensors, about = checkpoint.read(path)
        if about["source"] == source and (skip_bad or not about["unreadable"]):
            return Decoded(Split(tensors["images"], tensors["labels"]), tuple(about["unreadable"]))
    except (FileNotFoundError, ValueError):
        pass  # nothing there, or not whole: it is written anew
    decoded = decode(files, side, skip_bad=skip_bad, track=track)
    try:
        checkpoint.write(path, decoded.split._asdict(), {"source": source, "unreadable": decoded.unreadable})
    except OSError as error:
        print(f"the decoded images are not kept: {error}")
    return decoded


def fingerprint(files: Files, side: int) -> str:
    """A SHA-256 that changes with any file's path, label, size or time of change, with `side` and the decoders."""
    digest = hashlib.sha256(f"{side} {PIL.__version__} {images.decoder()[0]}".encode())
    for path, label in zip(files.paths, files.labels.tolist(), strict=True):
        about = path.stat()
        digest.update(os.fsencode(path.resolve()) + f" {label} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()
