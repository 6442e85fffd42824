"""Image files to shards, once: parallel, and resumable at any moment to the same bytes."""

import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from alexnet_func import files
from alexnet_func.data import images, memory, shards
from alexnet_func.data.records import Dataset, Files

SHARD = 512  # images a file: 100 MB at 256x256
_SPLITS = ("train", "test")
_MANIFEST_OR_SPLIT, _SHARD_NAME = re.compile(r"manifest\.json|train|test"), re.compile(r"\d{5,}\.safetensors")


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
    call that was killed is made good by the same call, as is a directory whose files were altered.

    `workers` threads (None: one a processor) decode a shard while another writes the last one; `track(shards, total)`
    may follow. Raises ValueError for an unreadable image, unless `skip_bad` leaves those out, for a split of such
    alone, for a data set that is in memory already, and for a `path` that holds anything else than shards, of which
    nothing is touched; BlockingIOError while another process prepares there; OSError, which names the file, where one
    cannot be written.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    images.check(side, orientation)
    jobs = [job for name in _SPLITS for job in _jobs(name, getattr(dataset, name))]
    _check_ours(path)
    for name in _SPLITS:
        (path / name).mkdir(parents=True, exist_ok=True)
    with files.locked(path):
        for directory in (path, *(path / name for name in _SPLITS)):
            files.sweep(directory)
        how: Any = {"side": side, "skip_bad": skip_bad, "orientation": orientation, "workers": workers}
        _write_missing(jobs, path, **how, track=track)
        return _list(jobs, path, side, dataset.classes)


def _write_missing(
    jobs: list["_Job"],
    path: Path,
    *,
    side: int,
    skip_bad: bool,
    orientation: images.Orientation,
    workers: int | None,
    track: memory.Track,
) -> None:
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
            written = writer.submit(shards.write, target, *decoded.split, source=source, unreadable=decoded.unreadable)
        if written is not None:
            written.result()


def _list(jobs: list["_Job"], path: Path, side: int, classes: tuple[str, ...]) -> Prepared:
    """Writes the manifest of the shards, those without images left out."""
    splits: dict[str, list[dict[str, Any]]] = {name: [] for name in _SPLITS}
    reasons: dict[str, list[str]] = {job.split: [] for job in jobs}
    for job in jobs:
        shard = shards.open_shard(path / job.file)
        reasons[job.split] += shard.about.unreadable
        if shard.about.count:
            splits[job.split].append({"file": job.file, "count": shard.about.count, "identity": shard.identity})
    for name, of_split in reasons.items():
        if not splits[name]:
            raise ValueError(f"none of the images of a split is readable: {of_split[0]}")
    shards.write_manifest(path, side, classes, splits)
    counts = {name: sum(entry["count"] for entry in listed) for name, listed in splits.items()}
    return Prepared(counts, tuple(reason for of_split in reasons.values() for reason in of_split))


def _check_ours(path: Path) -> None:
    """Raises ValueError, naming the file, if the directory holds what `prepare` has not written.

    Names tell, and for what would be replaced one whole shard or manifest among it, since a damaged one may look like
    anything. Hidden files are no matter.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, and shards need a directory")
    found: list[Path] = []
    for directory, fits in ((path, _MANIFEST_OR_SPLIT), *((path / name, _SHARD_NAME) for name in _SPLITS)):
        for entry in _visible(directory):
            if not fits.fullmatch(entry.name) or entry.is_dir() != (entry.name in _SPLITS):
                raise ValueError(f"{entry} is not of alexnet prepare: choose a directory that holds nothing else")
            found += [] if entry.is_dir() else [entry]
    if found and not any(map(shards.is_ours, found)):
        raise ValueError(f"{found[0]} is not of alexnet prepare, or damaged: remove it, or choose another directory")


def _visible(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))


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
        about = shards.open_shard(target).about
        if about.source != source or (about.unreadable and not skip_bad):
            return False
        shards.verify(target)
        return True
    except (FileNotFoundError, ValueError):
        return False
