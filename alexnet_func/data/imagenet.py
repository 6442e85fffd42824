"""ILSVRC-2012 (Russakovsky et al. 2015) as people have it, and the names of its classes.

Three layouts: torchvision's, with the development kit; `train/<wnid>` and `val/<wnid>` alone; and what Kaggle's archive
unpacks to, `ILSVRC/Data/CLS-LOC/{train,val}`, whose `val` has no folders but `LOC_val_solution.csv` beside `ILSVRC`.
"""

import csv
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch

from alexnet_func.data import folders, layouts
from alexnet_func.data.records import Dataset, Files

SOLUTION = "LOC_val_solution.csv"
_DEVKIT = ("meta.bin", "ILSVRC2012_devkit_t12.tar.gz")  # torchvision's extract of the second is the first
_KAGGLE = Path("ILSVRC", "Data", "CLS-LOC")


def load(root: Path) -> Dataset:
    """ImageNet under `root` or `root/imagenet`; val is the test split, classes are in the order of their WordNet ids.

    Archives in torchvision's layout are unpacked. Raises OSError that says what belongs where if there is none.
    """
    for base in (root, root / "imagenet"):
        if any((base / name).is_file() for name in _DEVKIT):
            return _torchvision(base)
        if (dataset := kaggle(base)) is not None:
            return named(dataset)
        if _has_wnids(base / "train") and (base / "val").is_dir():
            return named(layouts.two(base / "train", [base / "val"]))
    raise OSError(_missing(root, "neither train/<wnid> and val/<wnid> nor archives are there"))


def kaggle(path: Path) -> Dataset | None:
    """The data set of Kaggle's tree, of its folder `ILSVRC` or of its folder `CLS-LOC`; None if `path` is none of them.

    Raises ValueError for a flat `val` without the file of its labels, or if that does not name each image there.
    """
    trees = (path / _KAGGLE, path / _KAGGLE.relative_to("ILSVRC"), path)
    tree = next((tree for tree in trees if _has_wnids(tree / "train") and (tree / "val").is_dir()), None)
    if tree is None:
        return None
    if folders.subfolders(tree / "val"):  # as a well-known script sorts it
        return None if tree == path else layouts.two(tree / "train", [tree / "val"])
    above = [tree.absolute(), *tree.absolute().parents][: 1 + len(_KAGGLE.parts)]
    solution = next((place / SOLUTION for place in above if (place / SOLUTION).is_file()), None)
    if solution is None:
        raise ValueError(
            f"{tree / 'val'} has no folder for each class: put {SOLUTION}, which names its classes, into "
            f"{above[-1] if tree != path else path}, or sort its images into val/<wnid>"
        )
    return _flat(tree, solution)


def named(dataset: Dataset) -> Dataset:
    """The data set with the published names of its classes if those are WordNet ids of ILSVRC-2012, else as it is."""
    return dataset._replace(classes=names(dataset.classes) or dataset.classes)


def names(wnids: Sequence[str]) -> tuple[str, ...] | None:
    """What torchvision's weights call these classes, or None unless all are among the thousand."""
    known = {wnid: i for i, wnid in enumerate(_wnids())}
    if not wnids or not known.keys() >= set(wnids):
        return None
    from torchvision.models import AlexNet_Weights

    categories = AlexNet_Weights.DEFAULT.meta["categories"]
    return tuple(categories[known[wnid]] for wnid in wnids)


def _wnids() -> list[str]:
    """The thousand, sorted, which is the order of the classes."""
    return resources.files("alexnet_func.data").joinpath("wnids.txt").read_text().split()


def _has_wnids(train: Path) -> bool:
    classes = folders.subfolders(train) if train.is_dir() else ()
    return bool(classes) and all(re.fullmatch(r"n\d{8}", name) for name in classes)


def _torchvision(root: Path) -> Dataset:
    from torchvision.datasets import ImageNet

    try:
        train, val = (ImageNet(root, split) for split in ("train", "val"))
    except (OSError, RuntimeError) as error:
        raise OSError(_missing(root, str(error))) from error
    if train.wnids != val.wnids:
        differing = sorted(set(train.wnids) ^ set(val.wnids))
        raise ValueError(f"classes of only one of train and val: {folders.some(differing)}")
    parts = [Files(tuple(Path(path) for path, _ in part.imgs), torch.tensor(part.targets)) for part in (train, val)]
    return Dataset(parts[0], parts[1], names(train.wnids) or tuple(words[0] for words in train.classes))


def _missing(root: Path, why: str) -> str:
    return (
        f"imagenet could not be had ({why}); put ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and "
        f"ILSVRC2012_img_val.tar from https://image-net.org, or Kaggle's folder ILSVRC and {SOLUTION}, into "
        f"{root.resolve()} and try again, or train with --data digits, which needs no download"
    )


def _flat(tree: Path, solution: Path) -> Dataset:
    classes, listed = layouts.full(tree / "train")
    number = {wnid: i for i, wnid in enumerate(classes)}
    solved = _solved(solution)
    found = folders.below(tree / "val")
    unknown = [path for path in found.paths if solved.get(path.stem) not in number]
    if unknown or not found.paths:
        what = f"names no class of train for {unknown[0]}" if unknown else f"is there, but {tree / 'val'} is empty"
        raise ValueError(f"{solution} {what}")
    paths = sorted(found.paths, key=lambda path: number[solved[path.stem]])  # within a class by name, as they were
    test = Files(tuple(paths), torch.tensor([number[solved[path.stem]] for path in paths]))
    notes = (*layouts.lacking(test, classes), *layouts.passed_over([tree / "train"], [*listed, found]))
    return Dataset(layouts.files(listed), test, classes, notes)


def _solved(solution: Path) -> dict[str, str]:
    """The WordNet id of each image: `ILSVRC2012_val_00048981,n03995372 85 1 499 272` is a line, the box aside."""
    with solution.open(newline="") as file:
        return {row[0]: row[1].split(maxsplit=1)[0] for row in csv.reader(file) if len(row) > 1 and row[1].strip()}
