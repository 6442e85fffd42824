"""What to load: data sets, as uint8 tensors in memory or as lists of image files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alexnet_func import losses
from alexnet_func.data import holdout as holdouts
from alexnet_func.data import imagenet, layouts, shards
from alexnet_func.data.records import Dataset, Files, Split

__all__ = ["Dataset", "Files", "Split", "cifar10", "cifar100", "digits", "load"]


def load(name: str, *, root: str | os.PathLike[str] = "data", holdout: float | None = None) -> Dataset:
    """A data set by name, a folder of image files in one of the `layouts`, or what `prepare` made of one.

    `digits` needs nothing; `cifar10` and `cifar100` are downloaded to `root` on first use; `imagenet` is ILSVRC-2012
    under `root` in one of the layouts of that module. Splits of ImageNet and of a folder are `Files`, of a prepared
    directory `Shards`, the others are in memory.

    Of a folder without a test split `holdout` of each class, 0.1 for a tenth, is the test split. Raises ValueError for
    an unknown name, for a folder that fits no layout, and for a `holdout` that is not asked for or is missing; OSError
    where a download fails or an archive is missing or damaged.
    """
    path = Path(name)
    if not name.strip():
        raise ValueError(f"data names nothing: there are {_accepted()}")
    if holdout is not None:
        holdouts.check(holdout)
        if name in _LOADERS or (path / shards.MANIFEST).is_file():
            raise ValueError(f"holdout is for data without a test split, and {name} has one")
    if name in _LOADERS:
        dataset = _LOADERS[name](Path(root))
    elif (path / shards.MANIFEST).is_file():
        dataset = Dataset(*shards.load(path))
    elif path.is_dir():
        dataset = _folder(path, holdout)
    else:
        what = "which is a file; " if path.is_file() else ""
        raise ValueError(f"no data set {name!r}: {what}there are {_accepted()}")
    for split in (dataset.train, dataset.test):
        losses.check_labels(split.labels, len(dataset.classes))
    return dataset


def _accepted() -> str:
    return f"{', '.join(_LOADERS)}, or a folder with {layouts.ACCEPTED}"


def _folder(path: Path, holdout: float | None) -> Dataset:
    dataset = imagenet.kaggle(path)
    if dataset is not None and holdout is not None:
        raise ValueError(f"holdout is for data without a test split, and {path} has val")
    return imagenet.named(dataset or layouts.folder(path, holdout))


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
    test = holdouts.stratified(labels, 1 / 5)
    return Dataset(
        Split(images[~test], labels[~test]), Split(images[test], labels[test]), tuple(str(digit) for digit in range(10))
    )


def cifar10(root: Path) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 3x32x32 in ten classes."""
    return _torchvision("CIFAR10", root)


def cifar100(root: Path) -> Dataset:
    """CIFAR-100 (Krizhevsky 2009): as CIFAR-10, in a hundred classes."""
    return _torchvision("CIFAR100", root)


_LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet.load,
}


def _torchvision(name: str, root: Path) -> Dataset:
    import torchvision

    make: Any = getattr(torchvision.datasets, name)
    try:
        parts = _parts(make, root)
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


def _parts(make: Any, root: Path) -> list[Any]:
    """Training and test part, of the folder that lies there, else of the archive, else of a download."""
    from torchvision.datasets.utils import check_integrity

    try:
        return [make(root, train=train) for train in (True, False)]
    except RuntimeError:  # the folder is not there, or altered
        archive = root / make.filename
        if archive.is_file() and not check_integrity(archive, make.tgz_md5):
            raise OSError(f"the {archive} there is damaged or cut short: delete it, to have it downloaded") from None
        return [make(root, train=train, download=True) for train in (True, False)]
