"""Images decoded once and for all: shards of uint8 pixels, mapped into memory, and the manifest that lists them.

    alexnet prepare photographs shards        # `prepare.prepare`
    alexnet train --data shards ...

A data set is a directory with `manifest.json` and, for each split, files of up to `prepare.SHARD` images as
`checkpoint` writes them. Reading copies bytes from the page cache; each image's CRC-32 is checked as it is read.
"""

import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from alexnet_func import checkpoint

MANIFEST = "manifest.json"
_AHEAD = 2  # batches


class Shards(NamedTuple):
    """N images of `side` x `side`: where each lies, as the number of its file and its row there, and its label.

    Every file's pixels, mapped, and its images' CRC-32 are of the file that the labels were read from, even if another
    has taken its place since.
    """

    paths: tuple[Path, ...]
    pixels: tuple[UInt8[Tensor, "_ 3 side side"], ...]
    checksums: tuple[list[int], ...]
    file: Int64[Tensor, "n"]
    row: Int64[Tensor, "n"]
    labels: Int64[Tensor, "n"]
    side: int

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the images' files: none."""
        return ()

    def take(self, index: Int64[Tensor, "m"]) -> "Shards":
        """Those images."""
        return self._replace(file=self.file[index], row=self.row[index], labels=self.labels[index])


def load(path: Path) -> tuple[Shards, Shards, tuple[str, ...]]:
    """The training and the test split of a prepared directory, and its classes.

    Every file is opened, so that a missing or truncated one is told at once. Raises ValueError or FileNotFoundError
    with its name.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        train, test = (_open(path, manifest["splits"][name], manifest["side"]) for name in ("train", "test"))
        return train, test, tuple(manifest["classes"])
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path / MANIFEST} is not a manifest that alexnet prepare wrote: {error!r}") from error


def read(shards: Shards, index: Int[Tensor, "n"]) -> UInt8[Tensor, "n 3 side side"]:
    """Those images. Raises ValueError, naming file and row, for one whose bytes are not those that were written."""
    images = torch.empty(len(index), 3, shards.side, shards.side, dtype=torch.uint8)
    for image, file, row in zip(images, shards.file[index].tolist(), shards.row[index].tolist(), strict=True):
        image.copy_(shards.pixels[file][row])
        _check_image(shards.paths[file], row, image, shards.checksums[file])
    return images


def batches(
    shards: Shards, orders: Iterable[Int[Tensor, "_"]], *, pin_memory: bool = False
) -> Iterator[tuple[Int[Tensor, "n"], UInt8[Tensor, "n 3 side side"]]]:
    """For each tensor of indices those and the images, read by threads, two batches ahead. Errors as `read`."""

    def fetched(order: Tensor) -> tuple[Tensor, Tensor]:
        images = read(shards, order)
        return (order.pin_memory(), images.pin_memory()) if pin_memory else (order, images)

    with ThreadPoolExecutor(_AHEAD) as reader:
        waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
        for order in orders:
            waiting.append(reader.submit(fetched, order))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def verify(path: Path) -> None:
    """Reads all of one shard's file. Raises ValueError if any of it was altered."""
    tensors, about = checkpoint.mapped(path)
    _check_labels(path, tensors["labels"], about)
    for row, image in enumerate(tensors["images"]):
        _check_image(path, row, image, about["crc32"])


def _check_labels(path: Path, labels: Tensor, about: dict[str, Any]) -> None:
    if zlib.crc32(labels.numpy().data) != about["labels_crc32"]:
        raise ValueError(f"{path} was altered: its labels do not have their CRC-32; prepare it again")


def _check_image(path: Path, row: int, image: Tensor, checksums: list[int]) -> None:
    if zlib.crc32(image.numpy().data) != checksums[row]:
        raise ValueError(f"{path} was altered: image {row} does not have its CRC-32; prepare it again")


def _open(path: Path, listed: list[dict], side: int) -> Shards:
    paths = tuple(path / entry["file"] for entry in listed)
    labels, rows, pixels, checksums = [], [], [], []
    for file, entry in zip(paths, listed, strict=True):
        tensors, about = checkpoint.mapped(file)
        if about.get("count") != entry["count"]:
            raise ValueError(f"{file} is not the shard of {entry['count']} images that the manifest lists")
        labels.append(tensors["labels"].clone())
        _check_labels(file, labels[-1], about)
        rows.append(torch.arange(entry["count"]))
        pixels.append(tensors["images"])
        checksums.append(about["crc32"])
    files = torch.arange(len(paths)).repeat_interleave(torch.tensor([len(part) for part in labels]))
    return Shards(paths, tuple(pixels), tuple(checksums), files, torch.cat(rows), torch.cat(labels), side)
