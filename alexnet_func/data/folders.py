"""What lies in a folder of classes: which entries are classes, which files are images, and what is passed over."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet_func.data import images

# What systems leave behind, in lower case; names that begin with a dot are no data either.
_SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"})
_UNREAD_PHOTOGRAPHS = {".heic", ".heif"}


class Found(NamedTuple):
    """The images below a folder, and how many other files lie there, by suffix."""

    paths: tuple[Path, ...]
    passed_over: Counter[str]


def subfolders(path: Path) -> tuple[str, ...]:
    """The names of the folders in `path`, sorted, links to folders among them; hidden ones are no data."""
    with os.scandir(path) as entries:
        return tuple(sorted(entry.name for entry in entries if _is_data(entry.name) and _is_folder(entry)))


def loose(path: Path) -> Found:
    """What lies in `path` itself."""
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if _is_data(entry.name) and not _is_folder(entry))
    return _sorted_out([(str(path), names)])


def below(path: Path) -> Found:
    """What lies in `path` and in the folders below, in the order of `torchvision.datasets.ImageFolder`.

    Links are followed, but none to a folder that the link itself lies in. An image is told by its suffix
    (`images.SUFFIXES`) alone: whether it is readable shows when it is read. Raises OSError for a folder that may not
    be read.
    """
    return _sorted_out(_walk(str(path)))


def describe(passed_over: Counter[str], most: int = 5) -> str:
    """As in "3 files that are no images: 2 .txt, 1 .heic", the commonest first."""
    total = passed_over.total()
    ordered = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    kinds = some([f"{count} {suffix}" for suffix, count in ordered], most)
    hint = " (convert HEIC to JPEG to have it read)" if _UNREAD_PHOTOGRAPHS & passed_over.keys() else ""
    return f"{total:,} {'file that is no image' if total == 1 else 'files that are no images'}: {kinds}{hint}"


def some(names: Sequence[str | Path], most: int = 5) -> str:
    """The first few of them."""
    return ", ".join(str(name) for name in names[:most]) + (", ..." if len(names) > most else "")


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _SYSTEM


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _walk(top: str) -> list[tuple[str, list[str]]]:
    """Each folder from `top` down with the sorted names of its files, sorted by path as a string."""
    found = []
    waiting = [(top, frozenset(_identity(parent) for parent in Path(os.path.realpath(top)).parents))]
    while waiting:
        folder, above = waiting.pop()
        if (identity := _identity(folder)) in above:
            continue
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_data(entry.name):
                    continue
                if _is_folder(entry):
                    waiting.append((os.path.join(folder, entry.name), above | {identity}))
                else:
                    names.append(entry.name)
        found.append((folder, sorted(names)))
    return sorted(found)


def _identity(path: str | Path) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_dev, about.st_ino


def _sorted_out(found: list[tuple[str, list[str]]]) -> Found:
    paths, passed_over = [], Counter[str]()
    for folder, names in found:
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in images.SUFFIXES:
                paths.append(Path(folder, name))
            else:
                passed_over[suffix or "without suffix"] += 1
    return Found(tuple(paths), passed_over)
