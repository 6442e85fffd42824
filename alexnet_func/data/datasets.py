"""What to load: data sets as uint8 tensors in memory."""

from typing import NamedTuple

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


def load(name: str) -> Dataset:
    """The data set of that name. Raises ValueError for an unknown one."""
    if name not in _LOADERS:
        raise ValueError(f"unknown data set {name!r}; there is {', '.join(_LOADERS)}")
    dataset = _LOADERS[name]()
    for split in (dataset.train, dataset.test):
        losses.check_labels(split.labels, len(dataset.classes))
    return dataset


def digits() -> Dataset:
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


_LOADERS = {"digits": digits}
_SPLIT_SEED = 1797  # no run's seed by default: the split shares no key with a run


def _stratified_fifth(labels: Tensor) -> Tensor:
    """A mask of a fifth of each class, the same on every machine."""
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        order = random.permutation(random.fold_in(random.key(_SPLIT_SEED), label), len(members))
        chosen[members[order[: len(members) // 5]]] = True
    return chosen
