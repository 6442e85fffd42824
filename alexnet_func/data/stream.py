"""Image files that do not fit in memory, decoded ahead of their use by the workers of a DataLoader."""

import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet_func.data import images

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    ahead by two batches each; with 0 workers this process reads. Pixels travel through pipes, not through shared
    memory, of which containers have little. Signals are this process's to heed: its workers ignore them, and end when
    it does.

    Raises ValueError for a negative number, and for a side or orientation that `images.read` refuses. Where a worker
    was killed, the loader raises its RuntimeError wherever the main thread is at that moment.
    """
    images.check(side, orientation)
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    asked = ([(i, paths[i]) for i in order.tolist()] for order in orders)
    how: dict[str, Any] = {
        "sampler": asked,  # paths travel with the indices: a worker need not hold a million of them
        "batch_size": None,
        "num_workers": workers,
        "collate_fn": tuple,  # as it is: tensors would go through shared memory
        "worker_init_fn": _ignore_signals,
        # A fork of a process with threads may deadlock, and warns from Python 3.12 on.
        "multiprocessing_context": "spawn" if workers else None,
        "generator": torch.Generator(),  # else the loader draws from the global one
    }
    if workers:
        with _signals_held():  # or SIGHUP would end the process that keeps account of semaphores
            resource_tracker.ensure_running()  # now, as its start lets the other signals through
    # Signals wait until its workers ignore them, who start with what is held here. It warns of more workers than
    # processors, which were asked for.
    with _signals_held(), warnings.catch_warnings(action="ignore", category=UserWarning):
        fetched = iter(DataLoader(_Reader(side, orientation), **how))
    return _as_tensors(fetched, pin_memory)


def _as_tensors(fetched: Iterator[tuple[list[int], np.ndarray, list[str]]], pin_memory: bool) -> Iterator[Fetched]:
    for indices, pixels, unreadable in fetched:
        index, batch = torch.tensor(indices, dtype=torch.int64), torch.from_numpy(pixels)
        if pin_memory:
            index, batch = index.pin_memory(), batch.pin_memory()
        yield Fetched(index, batch, unreadable)


class _Reader(Dataset):
    def __init__(self, side: int, orientation: images.Orientation) -> None:
        self.side = side
        self.orientation = orientation

    def __getitem__(self, asked: list[tuple[int, Path]]) -> tuple[list[int], np.ndarray, list[str]]:
        results = [images.read_or_reason(path, self.side, orientation=self.orientation) for _, path in asked]
        read = [(i, image) for (i, _), image in zip(asked, results, strict=True) if isinstance(image, Tensor)]
        pixels = np.empty((len(read), 3, self.side, self.side), np.uint8)
        for row, (_, image) in zip(pixels, read, strict=True):
            row[:] = image.numpy()
        return [i for i, _ in read], pixels, [reason for reason in results if isinstance(reason, str)]


def _ignore_signals(_: int) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Within the block signals wait, for this thread and for processes that are started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
