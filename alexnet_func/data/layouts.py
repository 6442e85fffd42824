"""Folders of image files as a data set: which folder is which split, and what is wrong where none fits."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from alexnet_func.data import folders, holdout, images
from alexnet_func.data.records import Dataset, Files

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")
ACCEPTED = "train/<class>/* with test/ or val/ beside it"


class Splits(NamedTuple):
    """The folder of training images, and those for testing, in the order in which they are asked for."""

    train: Path | None
    tests: tuple[Path, ...]


def folder(path: Path, share: float | None = None) -> Dataset:
    """The images under `path`, a folder for each class, in any of these layouts; classes are sorted by name.

    - `train` or `training`, and `test`, `testing`, `val`, `valid` or `validation`, in upper or lower case;
    - one of the latter alone: the training split is empty;
    - `train` alone, or neither: `share` of each class is held out for testing, by a fixed key.

    Raises ValueError where the folder fits none of them, where it has a test split and `share` is given or has none
    and it is not, for a class without training images and for one in the test split alone; OSError for a folder that
    may not be read.
    """
    train, tests = splits(path)
    if share is not None and tests:
        raise ValueError(f"holdout is for data without a test split, and {path} has {tests[0].name}")
    if train is not None and tests:
        return two(train, _labelled(tests))
    others = sorted(set(folders.subfolders(path)) - {test.name for test in tests})
    if tests and others:
        raise ValueError(
            f"{path} has {tests[0].name} but no train, and also {folders.some(others)}: accepted are {ACCEPTED}, "
            f"{tests[0].name} alone, or a folder for each class"
        )
    if tests:
        return alone(_labelled(tests)[0])
    # A train may be a class as well: one among vehicles, of images and not of folders.
    is_split = train is not None and (folders.subfolders(train) or len(others) == 1)
    return _held_out(train if train is not None and is_split else path, share)


def splits(path: Path) -> Splits:
    """The folders of `path` that are named as splits are."""
    by_name = {name.casefold(): path / name for name in folders.subfolders(path)}
    train = next((by_name[name] for name in _TRAIN if name in by_name), None)
    return Splits(train, tuple(by_name[name] for name in _TEST if name in by_name))


def two(train: Path, tests: Sequence[Path]) -> Dataset:
    """A folder of training images and the first of those for testing."""
    classes, training = full(train)
    present = set(folders.subfolders(tests[0]))
    if surplus := present - set(classes):
        raise ValueError(f"classes of {tests[0]} that {train} lacks: {folders.some(sorted(surplus))}")
    testing = [folders.below(tests[0] / name) if name in present else folders.Found((), Counter()) for name in classes]
    test = files(testing)
    if not test.paths:
        raise ValueError(f"{tests[0]} holds no images: {_contents(testing)}")
    unused = [f"{other} is not used: {tests[0].name} is the test split" for other in tests[1:]]
    notes = (*unused, *lacking(test, classes), *passed_over([train, tests[0]], training + testing))
    return Dataset(files(training), test, classes, notes)


def alone(test: Path) -> Dataset:
    """A test split and an empty training split."""
    classes, listed = full(test)
    nothing = Files((), torch.empty(0, dtype=torch.int64))
    return Dataset(nothing, files(listed), classes, tuple(passed_over([test], listed)))


def full(path: Path) -> tuple[tuple[str, ...], list[folders.Found]]:
    """The classes of a folder and what lies in each. Raises ValueError where there are none or one has no images."""
    classes = _classes(path)
    listed = [folders.below(path / name) for name in classes]
    for name, found in zip(classes, listed, strict=True):
        if not found.paths:
            suffixes = ", ".join(sorted(images.SUFFIXES))
            raise ValueError(f"{path / name} holds no images ({suffixes}): {_contents([found])}")
    return classes, listed


def files(listed: Sequence[folders.Found]) -> Files:
    """The images of each class, labelled by its place."""
    counts = torch.tensor([len(found.paths) for found in listed])
    return Files(
        tuple(path for found in listed for path in found.paths), torch.arange(len(listed)).repeat_interleave(counts)
    )


def lacking(test: Files, classes: Sequence[str]) -> list[str]:
    """Which classes the test split lacks, in a line if there are any."""
    counts = test.labels.bincount(minlength=len(classes)).tolist()
    names = [name for name, count in zip(classes, counts, strict=True) if not count]
    if not names:
        return []
    return [f"{len(names)} of {len(classes)} classes have no test images: {folders.some(names)}"]


def passed_over(places: Sequence[Path], listed: Sequence[folders.Found]) -> list[str]:
    """What was found that is no image, and which images lie beside the folders of classes in `places`, a line each."""
    beside = [folders.loose(place) for place in places]
    stray = [path for found in beside for path in found.paths]
    lines = []
    if stray:
        lines.append(f"passed over {_images(len(stray))} beside the folders of the classes: {folders.some(stray, 1)}")
    if counts := _counts([*listed, *beside]):
        lines.append(f"passed over {folders.describe(counts)}")
    return lines


def _labelled(tests: Sequence[Path]) -> Sequence[Path]:
    """Those from the first on that has folders of classes: a competition's `test` often has none, and no labels."""
    for i, test in enumerate(tests):
        if folders.subfolders(test):
            return (*tests[i:], *tests[:i])
    raise ValueError(f"{tests[0]} has no folder of images for each class: {_contents([folders.loose(tests[0])])}")


def _classes(path: Path) -> tuple[str, ...]:
    classes = folders.subfolders(path)
    if not classes:
        held = _contents([folders.loose(path)])
        raise ValueError(f"{path} has no folder of images for each class: {held}; accepted is {ACCEPTED}")
    return classes


def _held_out(path: Path, share: float | None) -> Dataset:
    inside = _classes(path)
    if len(inside) == 1 and any(splits(path / inside[0])):  # as archives unpack
        raise ValueError(f"{path} has no folder train, but {path / inside[0]} is a data set: name that one")
    if share is None:
        raise ValueError(
            f"{path} has no test split, only the folders {folders.some(inside)}: to test on a tenth of each class "
            f"give --holdout 0.1, else name a folder with {ACCEPTED}"
        )
    classes, listed = full(path)
    everything = files(listed)
    mask = holdout.stratified(everything.labels, share)
    if not mask.any():
        raise ValueError(f"no class of {path} has two images, one to train on and one to test on")
    train, test = (everything.take(part.nonzero()[:, 0]) for part in (~mask, mask))
    counts = f"{len(test.paths):,} of {len(everything.paths):,} images"
    held = f"held out for testing: {counts}, {share:g} of each class by a fixed key"
    notes = (held, *lacking(test, classes), *passed_over([path], listed))
    return Dataset(train, test, classes, notes)


def _contents(listed: Sequence[folders.Found]) -> str:
    counts, kept = _counts(listed), sum(len(found.paths) for found in listed)
    held = ([_images(kept)] if kept else []) + ([folders.describe(counts)] if counts else [])
    return f"it holds {' and '.join(held)}" if held else "it is empty"


def _counts(listed: Sequence[folders.Found]) -> Counter[str]:
    return sum((found.passed_over for found in listed), Counter())


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
