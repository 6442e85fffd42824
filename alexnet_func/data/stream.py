"""Image files that do not fit in memory, decoded ahead of their use by the workers of a DataLoader."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet_func.data import images


class Fetched(NamedTuple):
    """The images of a batch that could be read, with their indices, and why each other one could not."""

    indices: Int64[Tensor, "n"]
    images: UInt8[Tensor, "n 3 side side"]
    unreadable: list[str]


def batches(
    paths: Sequence[Path],
    orders: Iterable[Int[Tensor, "_"]],
    *,
    side: int,
    workers: int,
    orientation: images.Orientation = "exif",
    pin_memory: bool = False,
) -> Iterator[Fetched]:
    """For each tensor of indices into `paths` those images, as `images.read` turns and cuts them.

    Batches come in the order asked for and hold the same bytes whatever the number of worker processes, which read
    ahead by two batches each; with 0 workers this process reads. Raises ValueError for a negative number, and
    for a side or orientation that `images.read` refuses.
    """
    images.check(side, orientation)
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    asked = ([(i, paths[i]) for i in order.tolist()] for order in orders)
    loader: DataLoader = DataLoader(
        _Reader(side, orientation),
        sampler=asked,  # paths travel with the indices: a worker need not hold a million of them
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_ctrl_c_to_the_parent,
        # A fork of a process with threads may deadlock, and warns from Python 3.12 on.
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator(),  # else the loader draws from the global one
    )
    return iter(loader)


class _Reader(Dataset):
    def __init__(self, side: int, orientation: images.Orientation) -> None:
        self.side = side
        self.orientation = orientation

    def __getitem__(self, asked: list[tuple[int, Path]]) -> Fetched:
        results = [images.read_or_reason(path, self.side, orientation=self.orientation) for _, path in asked]
        read = [(i, image) for (i, _), image in zip(asked, results, strict=True) if isinstance(image, Tensor)]
        pixels = torch.stack([image for _, image in read]) if read else torch.empty(0, 3, self.side, self.side).byte()
        indices = torch.tensor([i for i, _ in read], dtype=torch.int64)
        return Fetched(indices, pixels, [reason for reason in results if isinstance(reason, str)])


def _leave_ctrl_c_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
