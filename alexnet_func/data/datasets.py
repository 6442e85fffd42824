"""What to load: data sets, as uint8 tensors in memory or as lists of image files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from alexnet_func import losses, random
from alexnet_func.data import images, shards
from alexnet_func.data.shards import Shards


class Split(NamedTuple):
    """Images [N, C, H, W] in memory and their class labels [N]."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, "n"]

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the images' files: none."""
        return ()

    def take(self, index: Int64[Tensor, "m"]) -> "Split":
        """Those images."""
        return Split(self.images[index], self.labels[index])


class Files(NamedTuple):
    """Image files, N of them, and their class labels [N]; `memory.decode` and `stream.batches` read them."""

    paths: tuple[Path, ...]
    labels: Int64[Tensor, "n"]

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the images' files."""
        return tuple(map(str, self.paths))

    def take(self, index: Int64[Tensor, "m"]) -> "Files":
        """Those files."""
        return Files(tuple(self.paths[i] for i in index.tolist()), self.labels[index])


class Dataset(NamedTuple):
    """A training and a test split, and the names of the classes, in the order of their labels."""

    train: Split | Files | Shards
    test: Split | Files | Shards
    classes: tuple[str, ...]


def load(name: str, *, root: str | os.PathLike[str] = "data") -> Dataset:
    """A data set by name, a folder `DIR/train/<class>/*` with `DIR/test` or `DIR/val`, or what `prepare` made of one.

    `digits` needs nothing; `cifar10` and `cifar100` are downloaded to `root` on first use; `imagenet` is
    torchvision's layout of ILSVRC-2012 under `root`, or its archives, which are then unpacked. Splits of ImageNet and
    of a folder are `Files`, of a prepared directory `Shards`, the others are in memory.

    Raises ValueError for an unknown name or an empty class or one of one split alone, OSError where a download fails
    or an archive is missing.
    """
    if name in _LOADERS:
        dataset = _LOADERS[name](Path(root))
    elif (Path(name) / shards.MANIFEST).is_file():
        dataset = Dataset(*shards.load(Path(name)))
    elif Path(name).is_dir():
        dataset = folder(Path(name))
    else:
        raise ValueError(f"no data set {name!r}: there are {', '.join(_LOADERS)}, or a folder with train/<class>/*")
    for split in (dataset.train, dataset.test):
        losses.check_labels(split.labels, len(dataset.classes))
    return dataset


def digits(root: Path = Path()) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels (UCI, Alpaydin and Kaynak 1998) as 3x32x32; no download.

    Each pixel becomes 4x4 of three equal channels. A fifth of each class, 355 images chosen by a fixed key, is the
    test split. Raises ImportError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('the digits need scikit-learn: pip install "alexnet_func[app]"') from error
    source = load_digits()
    small = torch.from_numpy(source.images)[:, None]  # 0 .. 16
    gray = (small * 255 / 16).round().to(torch.uint8)
    images = gray.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(source.target).long()
    test = _stratified_fifth(labels)
    return Dataset(
        Split(images[~test], labels[~test]), Split(images[test], labels[test]), tuple(str(digit) for digit in range(10))
    )


def cifar10(root: Path) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 3x32x32 in ten classes."""
    return _torchvision("CIFAR10", root)


def cifar100(root: Path) -> Dataset:
    """CIFAR-100 (Krizhevsky 2009): as CIFAR-10, in a hundred classes."""
    return _torchvision("CIFAR100", root)


def imagenet(root: Path) -> Dataset:
    """ILSVRC-2012 (Russakovsky et al. 2015) as `torchvision.datasets.ImageNet` lays it out; val is the test split.

    Classes are in the order of their WordNet ids, as published weights have them.
    """
    from torchvision.datasets import ImageNet

    try:
        train, val = (ImageNet(root, split) for split in ("train", "val"))
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"imagenet could not be had ({error}); put ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and "
            f"ILSVRC2012_img_val.tar from https://image-net.org into {root.resolve()} and try again, "
            "or train with --data digits, which needs no download"
        ) from error
    if train.wnids != val.wnids:
        raise ValueError(f"classes of only one of train and val: {_some_of(set(train.wnids) ^ set(val.wnids))}")
    files = [Files(tuple(Path(path) for path, _ in part.imgs), torch.tensor(part.targets)) for part in (train, val)]
    return Dataset(files[0], files[1], _imagenet_names(train.classes))


def folder(path: Path) -> Dataset:
    """The images under `path/train/<class>` and `path/test/<class>` or `path/val/<class>`, by sorted class name."""
    if not (path / "train").is_dir():
        raise ValueError(f"{path} has no folder train with a folder of images for each class")
    held_out = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    if held_out is None:
        raise ValueError(f"{path} has neither test nor val beside train")
    classes = _class_names(path / "train")
    differing = set(classes) ^ set(_class_names(held_out))
    if differing:
        raise ValueError(f"classes of only one of {path / 'train'} and {held_out}: {_some_of(differing)}")
    if not classes:
        raise ValueError(f"{path / 'train'} has no folder of images for each class")
    return Dataset(_files(path / "train", classes), _files(held_out, classes), classes)


_LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
}
_SPLIT_SEED = 1797  # no run's seed by default: the split shares no key with a run


def _stratified_fifth(labels: Tensor) -> Tensor:
    """A mask of a fifth of each class, the same on every machine."""
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        order = random.permutation(random.fold_in(random.key(_SPLIT_SEED), label), len(members))
        chosen[members[order[: len(members) // 5]]] = True
    return chosen


def _torchvision(name: str, root: Path) -> Dataset:
    import torchvision

    make: Any = getattr(torchvision.datasets, name)
    try:
        parts = [make(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{name} could not be had from {make.url} ({error}); put {make.filename} into {root.resolve()} "
            "and try again, or train with --data digits, which needs no download"
        ) from error
    train, test = (
        Split(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return Dataset(train, test, tuple(parts[0].classes))


def _class_names(path: Path) -> tuple[str, ...]:
    return tuple(sorted(child.name for child in path.iterdir() if child.is_dir()))


def _some_of(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _files(path: Path, classes: tuple[str, ...]) -> Files:
    paths: list[Path] = []
    counts = []
    for name in classes:
        members = sorted(file for file in (path / name).iterdir() if file.suffix.lower() in images.SUFFIXES)
        if not members:
            raise ValueError(f"{path / name} holds no images ({', '.join(sorted(images.SUFFIXES))})")
        paths += members
        counts.append(len(members))
    return Files(tuple(paths), torch.arange(len(classes)).repeat_interleave(torch.tensor(counts)))


def _imagenet_names(synonyms: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Those of torchvision's weights, which tell the two cranes apart; of a part of the classes the first synonyms."""
    from torchvision.models import AlexNet_Weights

    names = tuple(AlexNet_Weights.DEFAULT.meta["categories"])
    return names if len(names) == len(synonyms) else tuple(words[0] for words in synonyms)
