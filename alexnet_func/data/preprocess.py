"""From stored images to a network's input: which images, their statistics, and the preparation of a batch."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float32, Int, Int64, UInt8
from torch import Tensor
from torch.func import vmap

from alexnet_func import random, train
from alexnet_func.arch import Arch
from alexnet_func.data import augment
from alexnet_func.data.records import Files, Split
from alexnet_func.data.shards import Shards
from alexnet_func.data.sources import Source
from alexnet_func.losses import Batch

Augmentation = Literal["none", "shift", "shift-flip", "crop-flip", "resized-flip", "paper"]
Prepare = Callable[[random.Key, Int64[Tensor, "n"], UInt8[Tensor, "n c h w"]], Float32[Tensor, "n c s s"]]
AnySplit = Split | Files | Shards

_SHUFFLE_SEED = 1000  # no run's seed by default, so that no key is shared with a run
_SAMPLE_PIXELS = 2**26
_BATCH = 256  # images, where nothing but memory depends on it


class Moments(NamedTuple):
    """Mean and standard deviation of the training images' channels, on 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def shuffle(count: int) -> Int[Tensor, "count"]:
    """An order of 0 .. count-1 that is the same in every run."""
    return random.permutation(random.key(_SHUFFLE_SEED), count)


def limited(split: AnySplit, limit: int | None) -> AnySplit:
    """The first `limit` images of `shuffle`; None: all."""
    return split if limit is None else split.take(shuffle(len(split.labels))[:limit])


def sample(images: Source) -> UInt8[Tensor, "n 3 side side"]:
    """The first 2^26 pixels' worth of images of `shuffle`, for statistics: all of CIFAR-10, 1,024 of 256x256."""
    chosen = shuffle(len(images.labels))[: max(1, _SAMPLE_PIXELS // images.side**2)]
    return torch.cat([pixels for _, pixels in images.fetch(chosen.split(_BATCH))])


def stored_side(arch: Arch) -> int:
    """The side of images before cropping: 256 for 224 and 227 as in the paper, the arch's own up to 64."""
    return arch.image_size if arch.image_size <= 64 else 256


def preparation(
    augmentation: Augmentation, size: int, moments: Moments, components: Float32[Tensor, "3 3"] | None = None
) -> Prepare:
    """`prepare(key, index, images)`: each image augmented by its own key `fold_in(key, index)`, normalised.

    "none" the middle of the image, "shift" by up to an eighth of the side, "shift-flip" with mirroring too, "crop-flip"
    a random crop of `size` pixels and mirroring, "resized-flip" a crop of random size and shape, "paper" that of
    crop-flip and PCA colour noise of `components`, the training images' `augment.rgb_components`.
    """
    crops: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "shift": functools.partial(augment.padded_crops, padding=size // 8),
        "none": lambda _, images: augment.center_crop(images, size),
        "crop": functools.partial(augment.random_crops, size=size),
        "resized": vmap(functools.partial(augment.resized_crop, size=size)),
    }
    crop = crops["crop" if augmentation == "paper" else augmentation.split("-")[0]]

    def prepare(key: Tensor, index: Tensor, images: Tensor) -> Tensor:
        if not len(images):  # vmap maps nothing over nobody
            return torch.empty(0, images.shape[1], size, size, device=images.device)
        keys = vmap(lambda i: random.split(random.fold_in(key, i), 3))(index)
        crop_keys, flip_keys, colour_keys = keys.unbind(1)
        images = crop(crop_keys, images)
        if augmentation not in ("none", "shift"):
            images = augment.random_flips(flip_keys, images)
        x = augment.to_float(images)
        if components is not None:
            x = vmap(augment.pca_noise, in_dims=(0, 0, None))(colour_keys, x, components)
        return augment.normalize(x, *moments)

    return prepare


def in_views(prepare: Prepare, views: int) -> Callable[..., Float32[Tensor, "n k c s s"]]:
    """`prepare` for so many views of each image, [N, K, C, S, S]: view k by the key `fold_in(key, k)`."""

    def prepare_views(key: Tensor, index: Tensor, images: Tensor) -> Tensor:
        return torch.stack([prepare(random.fold_in(key, k), index, images) for k in range(views)], 1)

    return prepare_views


def prepared_step(step: train.StepFunction | train.Step, prepare: Prepare) -> train.Step:
    """The step on batches as they are fetched, `(key, index, images, labels, ...)`: on `(x, labels, ...)`, x prepared.

    To be compiled in one graph, or around a compiled step.
    """

    def fetched_step(state: train.TrainState, batch: Any) -> train.Stepped:
        key, index, images, *rest = batch
        return step(state, (prepare(key, index, images), *rest))

    return train.Step(fetched_step, step.precision if isinstance(step, train.Step) else None)


def middle(pixels: UInt8[Tensor, "*n c h w"], arch: Arch, moments: Moments) -> Float32[Tensor, "*n c s s"]:
    """What a network is shown in evaluation: the middle of each image, normalised."""
    return augment.normalize(augment.to_float(augment.center_crop(pixels, arch.image_size)), *moments)


def batches(images: Source, arch: Arch, moments: Moments, part: int = 0, parts: int = 1) -> Iterator[Batch]:
    """The middle of every image of one of so many parts, normalised, with its label."""
    orders = torch.arange(len(images.labels)).tensor_split(parts)[part].split(_BATCH)
    return (batch for _, batch in indexed_batches(images, orders, arch, moments))


def indexed_batches(
    images: Source, orders: Iterable[Tensor], arch: Arch, moments: Moments
) -> Iterator[tuple[Int64[Tensor, "n"], Batch]]:
    """For each of `orders` the indices that could be read, and the middle of those images with their labels.

    Where none could be, there is no such batch.
    """
    for index, pixels in images.fetch(orders):
        if not len(index):
            continue
        yield index, (middle(pixels, arch, moments), images.labels[index])
