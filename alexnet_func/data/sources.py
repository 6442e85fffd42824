"""Where the images of a run come from: memory, files that are decoded as they are asked for, or shards; one protocol.

    images = sources.open_split(dataset.train, 32, sources.Reading(device), "train")
    for index, pixels in images.fetch(orders):
        labels = images.labels[index]

What opens a data set is the one place that asks which of the three it is.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from alexnet_func import machine
from alexnet_func.data import images, memory, shards, stream
from alexnet_func.data.images import Orientation
from alexnet_func.data.records import Files, Split
from alexnet_func.data.shards import Shards

Fetched = Iterator[tuple[Int[Tensor, "b"], UInt8[Tensor, "b 3 side side"]]]

CACHE = "images-{}.safetensors"  # what a cache directory holds of a split
_SKIP = "; --skip-bad-images leaves such files out"
_READ = 512  # images of shards at a time, into memory
_FEW = 1000  # files are read sooner than processes that read them have started


@runtime_checkable
class Source(Protocol):
    """N images of `side` x `side` pixels, of which those asked for are fetched."""

    @property
    def labels(self) -> Int64[Tensor, "n"]:
        """Of each image, on the device that the images come to."""

    @property
    def side(self) -> int:
        """Pixels along each side."""

    @property
    def unreadable(self) -> list[str]:
        """Why some images could not be read, as far as they have been asked for."""

    def fetch(self, orders: Iterable[Int[Tensor, "_"]]) -> Fetched:
        """For each tensor of indices those [b] whose images could be read, and these [b, 3, side, side].

        They are read ahead where that takes time. Raises ValueError for an unreadable image, unless such are to be
        skipped: then b may be less than was asked for, and 0.
        """


def _untracked(what: str, items: Iterable, total: int) -> Iterable:
    return items


class Reading(NamedTuple):
    """How images are read: but for `orientation`, nothing here changes what a run computes.

    `stream` None: what takes more than a quarter of the memory is streamed, by `workers` processes (None: one a
    processor). With a `cache` directory what is decoded into memory is kept there. `track(what, items, total)` may
    follow what is decoded or read into memory, and `tell` is given a line for each image that is left out.
    """

    device: torch.device
    skip_bad: bool = False
    stream: bool | None = None
    workers: int | None = None
    cache: Path | None = None
    orientation: Orientation = "exif"
    track: Callable[[str, Iterable, int], Iterable] = _untracked
    tell: Callable[[str], Any] = print


def open_split(split: Split | Files | Shards, side: int, reading: Reading, name: str) -> Source:
    """The images of a split at `side` x `side`, in memory on the device if they fit and are not to be streamed.

    Raises ValueError for images of another size in memory or in shards, for altered bytes of shards that are read into
    memory, and UnreadableError for the first unreadable file of those that are decoded into memory, unless such are
    skipped; of what is streamed `fetch` raises it.
    """
    labels = split.labels.to(reading.device)
    if isinstance(split, Shards):
        _check_side(split.side, side, name, f": prepare them again with --side {side}")
        if _streams(len(labels), side, reading):
            return Mapped(split, labels)
        return InMemory(_read(split, reading, name), labels, torch.arange(len(labels), device=reading.device))
    if isinstance(split, Files) and _streams(len(split.paths), side, reading):
        return Streamed(split.paths, labels, side, _workers(split, reading), reading)
    if isinstance(split, Files):
        decoded = _decoded(split, side, reading, name)
        for reason in decoded.unreadable:
            reading.tell(f"left out: {reason}")
        rows = torch.full((len(labels),), -1).index_copy(0, decoded.indices, torch.arange(len(decoded.indices)))
        images = decoded.split.images.to(reading.device)
        return InMemory(images, labels, rows.to(reading.device), list(decoded.unreadable))
    _check_side(split.images.shape[-1], side, name)
    return InMemory(split.images.to(reading.device), labels, torch.arange(len(labels), device=reading.device))


@dataclass(frozen=True)
class InMemory:
    """A `Source` of images on the device. `rows` has the place of each of N among them, -1 of an unreadable one."""

    images: UInt8[Tensor, "m 3 side side"]
    labels: Int64[Tensor, "n"]
    rows: Int64[Tensor, "n"]
    unreadable: list[str] = field(default_factory=list)

    @property
    def side(self) -> int:
        """Pixels along each side."""
        return self.images.shape[-1]

    def fetch(self, orders: Iterable[Int[Tensor, "_"]]) -> Fetched:
        """As `Source.fetch`."""
        device = self.images.device
        for order in orders:
            # From pinned memory the copy to a GPU is not waited for.
            index = (order.pin_memory() if device.type == "cuda" else order).to(device, non_blocking=True)
            if self.unreadable:
                index = index[self.rows[index] >= 0]
            yield index, self.images[self.rows[index]]


@dataclass(frozen=True)
class Streamed:
    """A `Source` of image files, decoded ahead of their use by `workers` processes, or by this one where that is 0."""

    paths: tuple[Path, ...]
    labels: Int64[Tensor, "n"]
    side: int
    workers: int
    reading: Reading
    unreadable: list[str] = field(default_factory=list)

    def fetch(self, orders: Iterable[Int[Tensor, "_"]]) -> Fetched:
        """As `Source.fetch`."""
        device = self.labels.device
        pinned = device.type == "cuda"
        how: Any = {"side": self.side, "orientation": self.reading.orientation, "workers": self.workers}
        for batch in stream.batches(self.paths, orders, **how, pin_memory=pinned):
            for reason in batch.unreadable:
                if not self.reading.skip_bad:
                    raise images.UnreadableError(reason + _SKIP)
                if reason not in self.unreadable:
                    self.reading.tell(f"left out: {reason}")
                    self.unreadable.append(reason)
            yield batch.indices.to(device, non_blocking=True), batch.images.to(device, non_blocking=True)


@dataclass(frozen=True)
class Mapped:
    """A `Source` of shards that are not kept in memory, read by threads from the page cache.

    Nothing in them is unreadable: they were prepared.
    """

    shards: Shards
    labels: Int64[Tensor, "n"]
    unreadable: list[str] = field(default_factory=list)

    @property
    def side(self) -> int:
        """Pixels along each side."""
        return self.shards.side

    def fetch(self, orders: Iterable[Int[Tensor, "_"]]) -> Fetched:
        """As `Source.fetch`; raises ValueError for an image whose bytes are not those that were written."""
        device = self.labels.device
        for index, pixels in shards.batches(self.shards, orders, pin_memory=device.type == "cuda"):
            yield index.to(device, non_blocking=True), pixels.to(device, non_blocking=True)


def _read(split: Shards, reading: Reading, name: str) -> UInt8[Tensor, "n 3 side side"]:
    orders = torch.arange(len(split.labels)).split(_READ)
    images = torch.empty(len(split.labels), 3, split.side, split.side, dtype=torch.uint8, device=reading.device)
    read = shards.batches(split, orders)
    for index, pixels in reading.track(f"reading {name} images", read, len(orders)):
        images[index] = pixels.to(reading.device)
    return images


def check_any(count: int, images: Source, what: str) -> None:
    """Raises ValueError where not one image of a batch, or of whatever it is, was readable."""
    if count == 0 and images.unreadable:
        raise ValueError(f"none of the images of {what} is readable: {images.unreadable[-1]}")


def _check_side(found: int, side: int, name: str, hint: str = "") -> None:
    if found != side:
        raise ValueError(f"the {name} images are {found}x{found}, and the network needs {side}x{side}{hint}")


def _streams(count: int, side: int, reading: Reading) -> bool:
    if reading.stream is not None:
        return reading.stream
    memories = [machine.memory() // _ranks_here()]
    if reading.device.type == "cuda":
        memories.append(torch.cuda.get_device_properties(reading.device).total_memory)
    return 4 * count * 3 * side**2 > min(memories)


def _workers(files: Files, reading: Reading) -> int:
    if reading.workers is not None:
        return reading.workers
    return max(1, machine.processors() // _ranks_here()) if len(files.paths) > _FEW else 0


def _ranks_here() -> int:
    """How many of torchrun's ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _decoded(files: Files, side: int, reading: Reading, name: str) -> memory.Decoded:
    decode = memory.decode
    if reading.cache is not None:
        reading.cache.mkdir(parents=True, exist_ok=True)
        kept = reading.cache / CACHE.format(name)
        decode = functools.partial(memory.cached, kept, tell=reading.tell)
    try:
        following = functools.partial(reading.track, f"reading {name} images")
        return decode(files, side, orientation=reading.orientation, skip_bad=reading.skip_bad, track=following)
    except images.UnreadableError as error:
        raise images.UnreadableError(f"{error}{_SKIP}") from error
