"""From stored images to a network's input: which images, their statistics, and the preparation of a batch."""

import base64
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, UInt8
from torch import Tensor
from torch.func import vmap

from alexnet_func import random, train
from alexnet_func.arch import Arch, Shape
from alexnet_func.data import augment
from alexnet_func.data.records import Files, Split
from alexnet_func.data.shards import Shards
from alexnet_func.data.sources import Source
from alexnet_func.losses import Batch

Augmentation = Literal["none", "shift", "shift-flip", "reflect-flip", "crop-flip", "resized-flip", "paper", "source"]
Normalization = Literal["moments", "mean-image"]
COLOURED = ("paper", "source")  # augmentations that want the training images' `augment.rgb_components`
Prepare = Callable[..., Float32[Tensor, "n c s s"]]  # of (key, index [N], images [N, C, H, W], step=None)
AnySplit = Split | Files | Shards

_SHUFFLE_SEED = 1000  # no run's seed by default, so that no key is shared with a run
_SAMPLE_PIXELS = 2**26
_BATCH = 256  # images, where nothing but memory depends on it
_SIGMA = 0.1  # of colour noise
_SHARED = 32  # images of a batch that the source of 2012 crops alike
_BEFORE_CROPS = {24: 32}  # cuda-convnet's crops of CIFAR-10


class Moments(NamedTuple):
    """What images on 0..1 are normalised by: `(x - mean) / std` a channel, or with a mean image `(x - image) / std`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image: Float32[Tensor, "c s s"] | None = None

    def to(self, device: torch.device) -> "Moments":
        """The same, where a batch lies."""
        return self if self.image is None else self._replace(image=self.image.to(device))

    def normalized(self, x: Float32[Tensor, "*n c s s"]) -> Float32[Tensor, "*n c s s"]:
        """Images on 0..1 as a network takes them."""
        if self.image is None:
            return augment.normalize(x, self.mean, self.std)
        return augment.normalize(x - self.image, (0.0,) * len(self.std), self.std)


def statistics(images: UInt8[Tensor, "n c h w"], normalization: Normalization, size: int) -> Moments:
    """Of training images: "moments" of their channels; or the "mean-image" of their middle, which leaves 0..255.

    The latter is what cuda-convnet does: nothing is divided.
    """
    mean, std = augment.channel_moments(images)
    if normalization == "moments":
        return Moments(mean, std)
    return Moments(mean, (1 / 255,) * len(std), augment.mean_image(images, size))


def encoded_image(image: Float32[Tensor, "c s s"]) -> str:
    """A mean image as text, for a configuration: its bytes, low end first, in base64."""
    return base64.b64encode(image.cpu().numpy().astype("<f4").tobytes()).decode()


def decoded_image(text: str, shape: Shape) -> Float32[Tensor, "c s s"]:
    """The image of `encoded_image`. Raises ValueError for text of anything else, or of another shape."""
    try:
        values = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be base64 of float32 values: {error}") from error
    if values.size != math.prod(shape) or not np.isfinite(values).all():
        raise ValueError(f"must be {list(shape)} finite values, got {values.size} values")
    return torch.from_numpy(values.astype(np.float32)).view(shape)


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
    """The side of images before cropping: 256 for 224 and 227 as in the paper, 32 for 24, the arch's own up to 64."""
    return _BEFORE_CROPS.get(arch.image_size, arch.image_size if arch.image_size <= 64 else 256)


def preparation(
    augmentation: Augmentation,
    size: int,
    moments: Moments,
    components: Float32[Tensor, "3 3"] | None = None,
    noise_until: int | None = None,
) -> Prepare:
    """`prepare(key, index, images, step=None)`: each augmented by its own key `fold_in(key, index)`, normalised.

    "none" the middle of the image, "shift" by up to an eighth of the side, "shift-flip" with mirroring too,
    "reflect-flip" the same by up to a sixteenth into the image's reflection, as in airbench (Jordan 2024), "crop-flip"
    a random crop of `size` pixels and mirroring, "resized-flip" a crop of random size and shape, "paper" that of
    crop-flip and PCA colour noise of `components`, the training images' `augment.rgb_components`. "source" is what the
    source code of 2012 does: of a batch 32 images in a row are cropped and mirrored alike, by the key of the first of
    them; colour noise goes by `augment.rgb_deviations`, and the image is divided by 1.1 for it, as long as `step` is
    below `noise_until` or one of them None (`convdata_jpeg.py`).
    """
    crops: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "shift": functools.partial(augment.padded_crops, padding=size // 8),
        "reflect": functools.partial(augment.padded_crops, padding=size // 16, border="reflect"),
        "none": lambda _, images: augment.center_crop(images, size),
        "crop": functools.partial(augment.random_crops, size=size),
        "resized": vmap(functools.partial(augment.resized_crop, size=size)),
    }
    crop = crops["crop" if augmentation in ("paper", "source") else augmentation.split("-")[0]]

    def prepare(key: Tensor, index: Tensor, images: Tensor, step: Tensor | None = None) -> Tensor:
        if not len(images):  # vmap maps nothing over nobody
            return torch.empty(0, images.shape[1], size, size, device=images.device)
        keys = vmap(lambda i: random.split(random.fold_in(key, i), 3))(index)
        crop_keys, flip_keys, colour_keys = keys.unbind(1)
        if augmentation == "source":
            first = torch.arange(len(index), device=index.device) // _SHARED * _SHARED
            crop_keys, flip_keys = crop_keys[first], flip_keys[first]
        images = crop(crop_keys, images)
        if augmentation not in ("none", "shift"):
            images = augment.random_flips(flip_keys, images)
        x = augment.to_float(images)
        if components is None:
            return moments.normalized(x)
        sigma = _SIGMA if step is None or noise_until is None else _SIGMA * (step < noise_until).float()
        colours = augment.rgb_deviations(components) if augmentation == "source" else components
        x = moments.normalized(vmap(augment.pca_noise, in_dims=(0, 0, None, None))(colour_keys, x, colours, sigma))
        return x / (1 + sigma) if augmentation == "source" else x

    return prepare


def in_views(prepare: Prepare, views: int) -> Callable[..., Float32[Tensor, "n k c s s"]]:
    """`prepare` for so many views of each image, [N, K, C, S, S]: view k by the key `fold_in(key, k)`."""

    def prepare_views(key: Tensor, index: Tensor, images: Tensor, step: Tensor | None = None) -> Tensor:
        return torch.stack([prepare(random.fold_in(key, k), index, images, step) for k in range(views)], 1)

    return prepare_views


def prepared_step(step: train.StepFunction | train.Step, prepare: Prepare) -> train.Step:
    """The step on batches as they are fetched, `(key, index, images, labels, ...)`: on `(x, labels, ...)`, x prepared.

    To be compiled in one graph, or around a compiled step.
    """

    def fetched_step(state: train.TrainState, batch: Any) -> train.Stepped:
        key, index, images, *rest = batch
        return step(state, (prepare(key, index, images, state.step), *rest))

    return train.Step(fetched_step, step.precision if isinstance(step, train.Step) else None)


def middle(pixels: UInt8[Tensor, "*n c h w"], arch: Arch, moments: Moments) -> Float32[Tensor, "*n c s s"]:
    """What a network is shown in evaluation: the middle of each image, normalised."""
    return moments.normalized(augment.to_float(augment.center_crop(pixels, arch.image_size)))


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
