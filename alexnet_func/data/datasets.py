"""What to load: data sets as uint8 tensors in memory."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from alexnet_func import losses, random


class Split(NamedTuple):
    """Images [N, C, H, W] and their class labels [N]."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, "n"]

    def to(self, device: torch.device | str) -> "Split":
        """The same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


class Dataset(NamedTuple):
    """A training and a test split, and the names of the classes, in the order of their labels."""

    train: Split
    test: Split
    classes: tuple[str, ...]


Track = Callable[[Iterable, int], Iterable]


def load(
    name: str,
    *,
    root: str | os.PathLike[str] = "data",
    side: int = 32,
    skip_bad: bool = False,
    track: Track = lambda items, total: items,
) -> Dataset:
    """A data set by name, or a folder `DIR/train/<class>/*` with `DIR/test` or `DIR/val`.

    `digits` needs nothing; `cifar10` and `cifar100` are downloaded to `root` on first use; images of a folder are cut
    to `side` x `side` as `images.read` says, in parallel, and `track(results, total)` may follow them. With `skip_bad`
    unreadable files are printed and left out.

    Raises ValueError for an unknown name, images of another size than `side`, an empty class, a class in one split
    alone or an unreadable image, and OSError where a download fails.
    """
    if name in _LOADERS:
        dataset = _LOADERS[name](Path(root))
        found = dataset.train.images.shape[-1]
        if found != side:
            raise ValueError(f"{name} has images of {found}x{found}, and {side}x{side} are asked for")
    elif Path(name).is_dir():
        dataset = folder(Path(name), side=side, skip_bad=skip_bad, track=track)
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


def folder(path: Path, *, side: int, skip_bad: bool = False, track: Track = lambda items, total: items) -> Dataset:
    """The images under `path/train/<class>` and `path/test/<class>` or `path/val/<class>`, by sorted class name."""
    if not (path / "train").is_dir():
        raise ValueError(f"{path} has no folder train with a folder of images for each class")
    held_out = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    if held_out is None:
        raise ValueError(f"{path} has neither test nor val beside train")
    classes = _class_names(path / "train")
    if _class_names(held_out) != classes:
        differing = sorted(set(classes) ^ set(_class_names(held_out)))
        raise ValueError(f"classes of only one of {path / 'train'} and {held_out}: {', '.join(differing)}")
    train, test = (_read_split(part, classes, side, skip_bad, track) for part in (path / "train", held_out))
    return Dataset(train, test, classes)


_LOADERS: dict[str, Callable[[Path], Dataset]] = {"digits": digits, "cifar10": cifar10, "cifar100": cifar100}
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


def _read_split(path: Path, classes: tuple[str, ...], side: int, skip_bad: bool, track: Track) -> Split:
    from alexnet_func.data import images

    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = sorted(f for f in (path / name).iterdir() if f.suffix.lower() in images.SUFFIXES)
        if not members:
            raise ValueError(f"{path / name} holds no images ({', '.join(sorted(images.SUFFIXES))})")
        files += members
        labels += [label] * len(members)

    def read(file: Path) -> Tensor | ValueError:
        try:
            return images.read(file, side)
        except ValueError as error:
            if skip_bad:
                return error
            raise

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(track(pool.map(read, files), len(files)))
    kept = [(image, label) for image, label in zip(results, labels, strict=True) if isinstance(image, Tensor)]
    for error in results:
        if isinstance(error, ValueError):
            print(f"skipped: {error}")
    if not kept:
        raise ValueError(f"{path} holds no readable image")
    return Split(torch.stack([image for image, _ in kept]), torch.tensor([label for _, label in kept]))
