"""Images decoded once and for all: shards of uint8 pixels, mapped into memory, and the manifest that lists them.

    alexnet prepare photographs shards        # `prepare.prepare`
    alexnet train --data shards ...

A data set is a directory with `manifest.json` and, for each split, files of up to `prepare.SHARD` images as
`tensorfile.write_mapped` writes them. The manifest has a SHA-256 of its contents and of each shard's header; each
image's CRC-32 is checked as it is read. Reading copies bytes from the page cache.
"""

import hashlib
import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from alexnet_func import files, tensorfile

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

    def take(self, index: Int[Tensor, "m"]) -> "Shards":
        """Those images."""
        return self._replace(file=self.file[index], row=self.row[index], labels=self.labels[index])

    def contents(self) -> str:
        """A SHA-256 of each image's CRC-32 and label."""
        files, rows, labels = self.file.tolist(), self.row.tolist(), self.labels.tolist()
        known = [(self.checksums[file][row], label) for file, row, label in zip(files, rows, labels, strict=True)]
        return hashlib.sha256(repr(known).encode()).hexdigest()


class About(NamedTuple):
    """What a shard's header says: a `memory.fingerprint` of the files it is of, and why some are not in it.

    `crc32` has one checksum for each image.
    """

    source: str
    count: int  # type: ignore[assignment]  # a tuple has a method of that name
    labels_crc32: int
    crc32: list[int]
    unreadable: list[str]


class Shard(NamedTuple):
    """One file's images, mapped, its labels, what it says of itself, and a SHA-256 of that by which it is known."""

    images: UInt8[Tensor, "n 3 side side"]
    labels: Int64[Tensor, "n"]
    about: About
    identity: str


def load(path: Path) -> tuple[Shards, Shards, tuple[str, ...]]:
    """The training and the test split of a prepared directory, and its classes.

    Every file is opened, so that a missing, truncated or altered one, or one of another preparation, is told at once.
    Raises ValueError or FileNotFoundError with its name.
    """
    manifest = read_manifest(path)
    train, test = (_open_all(path, manifest["splits"][name], manifest["side"]) for name in ("train", "test"))
    return train, test, tuple(manifest["classes"])


def write_manifest(path: Path, side: int, classes: Sequence[str], splits: Mapping[str, Sequence[Mapping]]) -> None:
    """Lists for each split its files: for each its "file" within `path`, "count" of images and "identity"."""
    contents = {"side": side, "classes": list(classes), "splits": splits}
    text = json.dumps({**contents, "sha256": _digest(contents)}, indent=1)
    files.write_text(path / MANIFEST, text)


def read_manifest(path: Path) -> dict[str, Any]:
    """What `write_manifest` wrote. Raises ValueError for anything else, and for a manifest that was altered."""
    file = path / MANIFEST
    contents = _parsed(file)
    digest = contents.pop("sha256", None)
    if digest is None:
        raise ValueError(f"{file} is of an earlier version, without a checksum: prepare it again")
    if digest != _digest(contents):
        raise ValueError(f"{file} was altered: its contents do not have the SHA-256 in it; prepare it again")
    return contents


def _parsed(file: Path) -> dict[str, Any]:
    """A manifest of any version, whatever its checksum."""
    try:
        contents = json.loads(file.read_bytes())
        lists = [contents["classes"], *(contents["splits"][name] for name in ("train", "test"))]
        entries = [entry for entries in lists[1:] for entry in entries]
        names = [*lists[0], *(entry["file"] for entry in entries)]
        numbers = [contents["side"], *(entry["count"] for entry in entries)]
        right = {type(part) for part in lists} == {list} and {type(number) for number in numbers} == {int}
        if right and all(isinstance(name, str) for name in names):
            return contents
        error: Exception = ValueError("its fields have other types")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as raised:
        error = raised
    raise ValueError(f"{file} is not a manifest that alexnet prepare wrote: {error!r}; prepare it again") from error


def is_ours(file: Path) -> bool:
    """Whether it is a manifest, of whatever version, or a shard, and not damaged."""
    try:
        _parsed(file) if file.name == MANIFEST else open_shard(file)
    except (OSError, ValueError):
        return False
    return True


def write(path: Path, images: UInt8[Tensor, "n 3 side side"], labels: Int64[Tensor, "n"], **about: Any) -> None:
    """Writes a shard; `about` are its `source` and the `unreadable`. Errors as `tensorfile.write`."""
    checksums = [zlib.crc32(image.numpy().data) for image in images]
    full = About(count=len(labels), labels_crc32=zlib.crc32(labels.numpy().data), crc32=checksums, **about)
    tensorfile.write_mapped(path, {"images": images, "labels": labels}, full._asdict())


def open_shard(path: Path) -> Shard:
    """A shard as `write` wrote it; only its images' bytes are not looked at.

    Raises FileNotFoundError for a missing one, ValueError, naming it, for one that was altered or is no shard.
    """
    try:
        tensors, config = tensorfile.mapped(path, "shard")
        about = About(**config)
        images, labels = tensors["images"], tensors["labels"].clone()
        _check(about, images, labels)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}: prepare it again") from error
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is no shard that alexnet prepare wrote: {error}") from error
    except ValueError as error:
        raise ValueError(f"{error}; prepare it again") from error
    if zlib.crc32(labels.numpy().data) != about.labels_crc32:
        raise ValueError(f"{path} was altered: its labels do not have their CRC-32; prepare it again")
    return Shard(images, labels, about, _digest(config))


def _check(about: About, images: Tensor, labels: Tensor) -> None:
    """Raises TypeError unless a header that someone wrote is as `write` writes it."""
    n = len(labels) if labels.dim() == 1 else -1
    typed = type(about.count) is int and isinstance(about.crc32, list) and isinstance(about.unreadable, list)
    if labels.dtype != torch.int64 or images.dtype != torch.uint8 or images.dim() != 4 or images.shape[:2] != (n, 3):
        raise TypeError("it does not hold images and their labels")
    if not typed or about.count != n or len(about.crc32) != n or not all(isinstance(r, str) for r in about.unreadable):
        raise TypeError("its count, checksums or reasons are not those of its images")


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


def verify(path: Path) -> Shard:
    """Reads all of one shard's file. Raises as `open_shard`, and ValueError if an image was altered."""
    shard = open_shard(path)
    for row, image in enumerate(shard.images):
        _check_image(path, row, image, shard.about.crc32)
    return shard


def _check_image(path: Path, row: int, image: Tensor, checksums: list[int]) -> None:
    if zlib.crc32(image.numpy().data) != checksums[row]:
        raise ValueError(f"{path} was altered: image {row} does not have its CRC-32; prepare it again")


def _open_all(path: Path, listed: list[dict], side: int) -> Shards:
    paths = tuple(path / entry["file"] for entry in listed)
    parts = [open_shard(file) for file in paths]
    for file, part, entry in zip(paths, parts, listed, strict=True):
        found = (part.identity, part.about.count, *part.images.shape[-2:])
        if found != (entry.get("identity"), entry["count"], side, side):
            raise ValueError(f"{file} is not the shard that {path / MANIFEST} lists: prepare it again")
    none = torch.empty(0, dtype=torch.int64)
    counts = torch.tensor([part.about.count for part in parts], dtype=torch.int64)
    return Shards(
        paths,
        tuple(part.images for part in parts),
        tuple(part.about.crc32 for part in parts),
        torch.arange(len(paths)).repeat_interleave(counts),
        torch.cat([none, *(torch.arange(part.about.count) for part in parts)]),
        torch.cat([none, *(part.labels for part in parts)]),
        side,
    )


def _digest(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
