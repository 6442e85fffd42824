"""What a data set is: two splits, in memory, as image files or as shards, and the names of their classes."""

from pathlib import Path
from typing import NamedTuple

from jaxtyping import Int64, UInt8
from torch import Tensor

from alexnet_func.data.shards import Shards


class Split(NamedTuple):
    """Images [N, C, H, W] in memory and their class labels [N]."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, "n"]


class Files(NamedTuple):
    """Image files, N of them, and their class labels [N]; `memory.decode` and `stream.batches` read them."""

    paths: tuple[Path, ...]
    labels: Int64[Tensor, "n"]


class Dataset(NamedTuple):
    """A training and a test split, and the names of the classes, in the order of their labels.

    `train` is empty where there is a test split alone. `notes` are lines for the user, such as what was passed over.
    """

    train: Split | Files | Shards
    test: Split | Files | Shards
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
