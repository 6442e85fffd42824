"""What a data set is: two splits, in memory, as image files or as shards, and the names of their classes."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from alexnet_func.data.shards import Shards


class Split(NamedTuple):
    """Images [N, C, H, W] in memory and their class labels [N]."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, "n"]

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the images' files: none."""
        return ()

    def take(self, index: Int[Tensor, "m"]) -> "Split":
        """Those images."""
        return Split(self.images[index], self.labels[index])

    def contents(self) -> str:
        """A SHA-256 of images and labels."""
        digest = hashlib.sha256(repr((self.images.shape, len(self.labels))).encode())
        for tensor in self:
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


class Files(NamedTuple):
    """Image files, N of them, and their class labels [N]; `memory.decode` and `stream.batches` read them."""

    paths: tuple[Path, ...]
    labels: Int64[Tensor, "n"]

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the images' files."""
        return tuple(map(str, self.paths))

    def take(self, index: Int[Tensor, "m"]) -> "Files":
        """Those files."""
        return Files(tuple(self.paths[i] for i in index.tolist()), self.labels[index])

    def contents(self) -> str:
        """A SHA-256 of each file's name, size and label, wherever the files lie."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels.tolist(), strict=True):
            try:
                size = path.stat().st_size
            except OSError:  # as at the end of a dangling link: to read it is the error
                size = -1
            digest.update(os.fsencode(path.name) + f"/{label} {size}\n".encode())
        return digest.hexdigest()


class Dataset(NamedTuple):
    """A training and a test split, and the names of the classes, in the order of their labels.

    `train` is empty where there is a test split alone. `notes` are lines for the user, such as what was passed over.
    """

    train: Split | Files | Shards
    test: Split | Files | Shards
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
