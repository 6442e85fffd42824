"""What a run is fed with: a split in memory or from files, its statistics, and the preparation of a batch."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.func import vmap

from alexnet_func import arch, random
from alexnet_func.app.recipes import Recipe
from alexnet_func.data import augment, memory, shards, stream
from alexnet_func.data.datasets import Files, Split
from alexnet_func.data.shards import Shards
from alexnet_func.losses import Batch

_SHUFFLE_SEED = 1000  # no run's seed by default, so that no key is shared with a run
_SAMPLE_PIXELS = 2**26
_SKIP = "; --skip-bad-images leaves such files out"
_FEW = 1000  # files are read sooner than processes that read them have started
_BATCH = 256  # images, where nothing but memory depends on it


class Reading(NamedTuple):
    """How image files are read: nothing here changes what a run computes.

    `stream` None: what takes more than a quarter of the memory is streamed. With a `cache` directory what is decoded
    into memory is kept there.
    """

    device: torch.device
    skip_bad: bool
    stream: bool | None = None
    workers: int | None = None
    cache: Path | None = None


class Source(NamedTuple):
    """Labels [N] on the device, and `fetch(orders)`: for each tensor of indices (those that could be read, images).

    `unreadable` gathers why others could not.
    """

    labels: Tensor
    fetch: Callable[[Iterable[Tensor]], Iterator[tuple[Tensor, Tensor]]]
    unreadable: list[str]


class Moments(NamedTuple):
    """Of the training images' channels, on 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def source(split: Split | Files | Shards, side: int, reading: Reading, console: Console, name: str) -> Source:
    """The images of a split at `side` x `side`, in memory on the device if they fit and are not to be streamed.

    Raises ValueError for images of another size in memory or in shards, and for an unreadable file unless those are
    skipped.
    """
    if isinstance(split, Shards):
        return _mapped(split, side, reading, name)
    if isinstance(split, Files) and _streams(len(split.paths), side, reading):
        return _streamed(split, side, reading, console)
    unreadable: list[str] = []
    if isinstance(split, Files):
        split, reasons = _decoded(split, side, reading, console, name)
        unreadable += reasons
        for reason in reasons:
            console.print(f"left out: {reason}")
    _check_side(split.images.shape[-1], side, name)
    images, labels = split.images.to(reading.device), split.labels.to(reading.device)

    def fetch(orders: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for order in orders:
            index = order.to(reading.device)
            yield index, images[index]

    return Source(labels, fetch, unreadable)


def _check_side(found: int, side: int, name: str) -> None:
    if found != side:
        raise ValueError(f"the {name} images are {found}x{found}, and the network needs {side}x{side}")


def _mapped(split: Shards, side: int, reading: Reading, name: str) -> Source:
    _check_side(split.side, side, name)

    def fetch(orders: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for index, pixels in shards.batches(split, orders, pin_memory=reading.device.type == "cuda"):
            yield index.to(reading.device, non_blocking=True), pixels.to(reading.device, non_blocking=True)

    return Source(split.labels.to(reading.device), fetch, [])


def _streams(count: int, side: int, reading: Reading) -> bool:
    if reading.stream is not None:
        return reading.stream
    memories = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _ranks_here()]
    if reading.device.type == "cuda":
        memories.append(torch.cuda.get_device_properties(reading.device).total_memory)
    return 4 * count * 3 * side**2 > min(memories)


def _ranks_here() -> int:
    """How many of torchrun's ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _decoded(files: Files, side: int, reading: Reading, console: Console, name: str) -> memory.Decoded:
    decode = memory.decode
    if reading.cache is not None:
        reading.cache.mkdir(parents=True, exist_ok=True)
        decode = functools.partial(memory.cached, reading.cache / f"images-{name}.safetensors")
    try:
        following = functools.partial(follow, console, f"reading {name} images")
        return decode(files, side, skip_bad=reading.skip_bad, track=following)
    except ValueError as error:
        raise error if reading.skip_bad else ValueError(str(error) + _SKIP) from error


def follow(console: Console, what: str, items: Iterable, total: int) -> Iterable:
    """`items`, with a progress bar where the console is a terminal."""
    if not console.is_terminal:
        return items
    return track(items, description=what, total=total, console=console, transient=True)


def _streamed(files: Files, side: int, reading: Reading, console: Console) -> Source:
    chosen = max(1, (os.cpu_count() or 1) // _ranks_here()) if len(files.paths) > _FEW else 0
    workers = chosen if reading.workers is None else reading.workers
    unreadable: list[str] = []

    def fetch(orders: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        on_cuda = reading.device.type == "cuda"
        for batch in stream.batches(files.paths, orders, side=side, workers=workers, pin_memory=on_cuda):
            for reason in batch.unreadable:
                if not reading.skip_bad:
                    raise ValueError(reason + _SKIP)
                if reason not in unreadable:
                    console.print(f"left out: {reason}")
                    unreadable.append(reason)
            if len(batch.indices) == 0:
                raise ValueError(f"none of the images of a batch is readable: {batch.unreadable[0]}")
            yield (
                batch.indices.to(reading.device, non_blocking=True),
                batch.images.to(reading.device, non_blocking=True),
            )

    return Source(files.labels.to(reading.device), fetch, unreadable)


def limited(split: Split | Files | Shards, limit: int | None) -> Split | Files | Shards:
    """The first `limit` images of `shuffle`."""
    if limit is None:
        return split
    chosen = shuffle(len(split.labels))[:limit]
    if isinstance(split, Files):
        return Files(tuple(split.paths[i] for i in chosen.tolist()), split.labels[chosen])
    if isinstance(split, Shards):
        return split._replace(file=split.file[chosen], row=split.row[chosen], labels=split.labels[chosen])
    return Split(split.images[chosen], split.labels[chosen])


def sample(images: Source, side: int) -> Tensor:
    """The first 2^26 pixels' worth of images of `shuffle`, for statistics: all of CIFAR-10, 1,024 of 256x256."""
    chosen = shuffle(len(images.labels))[: max(1, _SAMPLE_PIXELS // side**2)]
    return torch.cat([pixels for _, pixels in images.fetch(chosen.split(_BATCH))])


def shuffle(count: int) -> Tensor:
    """An order of 0 .. count-1 that is the same in every run."""
    return random.permutation(random.key(_SHUFFLE_SEED), count)


def stored_side(network: arch.Arch) -> int:
    """The side of images before cropping: 256 for 224 and 227 as in the paper, the arch's own up to 64."""
    return network.image_size if network.image_size <= 64 else 256


def preparation(
    recipe: Recipe, network: arch.Arch, moments: Moments, components: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`prepare(key, index, images)`: each image augmented by its own key `fold_in(key, index)`, normalised.

    `components` are the training images' `augment.rgb_components`, which the paper's augmentation needs.
    """
    side = network.image_size
    crops: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "shift": functools.partial(augment.padded_crops, padding=side // 8),
        "crop": functools.partial(augment.random_crops, size=side),
        "resized": vmap(functools.partial(augment.resized_crop, size=side)),
    }
    crop = crops["crop" if recipe.augmentation == "paper" else recipe.augmentation.split("-")[0]]

    def prepare(key: Tensor, index: Tensor, images: Tensor) -> Tensor:
        keys = vmap(lambda i: random.split(random.fold_in(key, i), 3))(index)
        crop_keys, flip_keys, colour_keys = keys.unbind(1)
        images = crop(crop_keys, images)
        if recipe.augmentation != "shift":
            images = augment.random_flips(flip_keys, images)
        x = augment.to_float(images)
        if components is not None:
            x = vmap(augment.pca_noise, in_dims=(0, 0, None))(colour_keys, x, components)
        return augment.normalize(x, *moments)

    return prepare


def batches(images: Source, network: arch.Arch, moments: Moments, part: int = 0, parts: int = 1) -> Iterator[Batch]:
    """The middle of every image of one of so many parts, normalised, with its label."""
    orders = torch.arange(len(images.labels)).tensor_split(parts)[part].split(_BATCH)
    return (batch for _, batch in indexed_batches(images, orders, network, moments))


def indexed_batches(
    images: Source, orders: Iterable[Tensor], network: arch.Arch, moments: Moments
) -> Iterator[tuple[Tensor, Batch]]:
    """For each of `orders` the indices that could be read, and the middle of those images with their labels."""
    for index, pixels in images.fetch(orders):
        crops = augment.center_crop(pixels, network.image_size)
        yield index, (augment.normalize(augment.to_float(crops), *moments), images.labels[index])
