"""Image files to shards, once: parallel, and resumable at any moment to the same bytes."""

import json
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from alexnet_func import checkpoint
from alexnet_func.data import images, memory, shards
from alexnet_func.data.records import Dataset, Files

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
    orientation: images.Orientation = "exif",
    workers: int | None = None,
    track: memory.Track = lambda items, total: items,
) -> Prepared:
    """Writes the data set's image files to `path` as `shards` of pixels that `images.read` turns and cuts to `side`.

    A shard appears whole or not at all, and the manifest after all of them: while any is missing or of other files
    there is none. A shard that is there and whole, of the same files (by path, size and time of change), is kept, so a
    call that was killed is made good by the same call.

    `workers` threads (None: one a processor) decode a shard while another writes the last one; `track(shards, total)`
    may follow. Raises ValueError for an unreadable image, unless `skip_bad` leaves those out, for a split of such
    alone, and for a data set that is in memory already; OSError, which names the file, where one cannot be written.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    images.check(side, orientation)
    jobs = [job for name in ("train", "test") for job in _jobs(name, getattr(dataset, name))]
    with ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for job in track(jobs, len(jobs)):
            target, source = path / job.file, memory.fingerprint(job.files, side, orientation=orientation)
            if _is_whole(target, source, skip_bad):
                continue
            (path / shards.MANIFEST).unlink(missing_ok=True)  # until all is of these files again
            decoded = memory.read(job.files, side, skip_bad=skip_bad, orientation=orientation, workers=workers)
            if written is not None:
                written.result()
            written = writer.submit(_write, target, source, decoded)
        if written is not None:
            written.result()
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    reasons: list[str] = []
    for job in jobs:
        _, about = checkpoint.mapped(path / job.file)
        reasons += about["unreadable"]
        if about["count"]:
            splits[job.split].append({"file": job.file, "count": about["count"]})
    counts = {name: sum(entry["count"] for entry in listed) for name, listed in splits.items()}
    if reasons and not all(counts.values()):
        raise ValueError(f"none of the images of a split is readable: {reasons[0]}")
    manifest = {"side": side, "classes": dataset.classes, "splits": splits}
    checkpoint.write_text(path / shards.MANIFEST, json.dumps(manifest, indent=1))
    return Prepared(counts, tuple(reasons))


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


def _is_whole(target: Path, source: str, skip_bad: bool) -> bool:
    """Whether the shard is there, of the same files and unaltered."""
    try:
        _, about = checkpoint.mapped(target)
        if about.get("source") != source or (about["unreadable"] and not skip_bad):
            return False
        shards.verify(target)
        return True
    except (FileNotFoundError, ValueError):
        return False


def _write(target: Path, source: str, decoded: memory.Decoded) -> None:
    pixels, labels = decoded.split
    about = {
        "source": source,
        "count": len(labels),
        "labels_crc32": zlib.crc32(labels.numpy().data),
        "crc32": [zlib.crc32(image.numpy().data) for image in pixels],
        "unreadable": decoded.unreadable,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_mapped(target, {"images": pixels, "labels": labels}, about)
