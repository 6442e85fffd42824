"""Image files to shards, once: parallel, and resumable at any moment to the same bytes."""

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet_func import checkpoint
from alexnet_func.data import images, memory, shards
from alexnet_func.data.datasets import Dataset, Files

SHARD = 512  # images a file: 100 MB at 256x256


class Prepared(NamedTuple):
    """How many images each split holds, and why others were left out."""

    counts: dict[str, int]
    unreadable: tuple[str, ...]


def prepare(
    dataset: Dataset,
    path: Path,
    *,
    side: int = 256,
    skip_bad: bool = False,
    workers: int | None = None,
    track: memory.Track = lambda items, total: items,
) -> Prepared:
    """Writes the data set's image files to `path` as `shards` of pixels that `images.read` cuts to `side` x `side`.

    A shard appears whole or not at all, the manifest after all of them. A shard that is there and whole, of the same
    files (by path, size and time of change), is kept, so a call that was killed is made good by the same call.

    `workers` threads (None: one a processor and one more, as some always wait for the disk) make a shard each;
    `track(items, total)` may follow them. Raises
    ValueError for an unreadable image, unless `skip_bad` leaves those out, for a split of such alone, and for a data
    set that is in memory already; OSError, which names the file, where one cannot be written.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    jobs = [job for name in ("train", "test") for job in _jobs(name, getattr(dataset, name))]
    write = partial(_written, path, side, skip_bad)
    with ThreadPoolExecutor(workers or (os.cpu_count() or 1) + 1) as pool:
        results = pool.map(write, jobs)
        try:
            written = list(track(results, len(jobs)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for job, entry in zip(jobs, written, strict=True):
        if entry["count"]:
            splits[job.split].append({"file": job.file, "count": entry["count"]})
    counts = {name: sum(entry["count"] for entry in listed) for name, listed in splits.items()}
    reasons = tuple(reason for entry in written for reason in entry["unreadable"])
    if reasons and not all(counts.values()):
        raise ValueError(f"none of the images of a split is readable: {reasons[0]}")
    manifest = {"side": side, "classes": dataset.classes, "splits": splits}
    checkpoint.write_text(path / shards.MANIFEST, json.dumps(manifest, indent=1))
    return Prepared(counts, reasons)


class _Job(NamedTuple):
    split: str
    file: str
    files: Files


def _jobs(name: str, split: Any) -> list[_Job]:
    if not isinstance(split, Files):
        raise ValueError("only image files are prepared, and this data set is in memory already")
    starts = range(0, len(split.paths), SHARD)
    parts = [Files(split.paths[i : i + SHARD], split.labels[i : i + SHARD]) for i in starts]
    return [_Job(name, f"{name}/{number:05d}.safetensors", part) for number, part in enumerate(parts)]


def _written(path: Path, side: int, skip_bad: bool, job: _Job) -> dict[str, Any]:
    """What the manifest needs of the shard, which is made unless it is there."""
    target = path / job.file
    source = memory.fingerprint(job.files, side)
    try:
        _, about = checkpoint.mapped(target)
        if about.get("source") == source and (skip_bad or not about["unreadable"]):
            shards.verify(target)
            return about
    except (FileNotFoundError, ValueError):
        pass  # nothing there, or not whole: it is written anew
    results = [_read(file, side, skip_bad) for file in job.files.paths]
    kept = [i for i, result in enumerate(results) if isinstance(result, Tensor)]
    read = [result for result in results if isinstance(result, Tensor)]
    pixels = torch.stack(read) if read else torch.empty(0, 3, side, side, dtype=torch.uint8)
    labels = job.files.labels[kept]
    about = {
        "source": source,
        "count": len(kept),
        "labels_crc32": zlib.crc32(labels.numpy().data),
        "crc32": [zlib.crc32(image.numpy().data) for image in pixels],
        "unreadable": [reason for reason in results if isinstance(reason, str)],
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_mapped(target, {"images": pixels, "labels": labels}, about)
    return about


def _read(file: Path, side: int, skip_bad: bool) -> Tensor | str:
    return images.read_or_reason(file, side) if skip_bad else images.read(file, side)
