"""ImageNet in the layouts in which people have it, on made-up images."""

import re
import shutil

import pytest
import torch
from PIL import Image
from torchvision.models import AlexNet_Weights

from alexnet_func.data import datasets, imagenet

WNIDS = ("n01440764", "n02012849", "n03126707")  # among the thousand: a tench, and both cranes
NAMES = ("tench", "crane", "crane bird")


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def make(path, wnids, count):
    for wnid in wnids:
        for i in range(count):
            save(path / wnid / f"{wnid}_{i}.JPEG")


@pytest.fixture
def torchvisions(tmp_path):
    """Two classes as torchvision leaves them when it has unpacked the archives."""
    words = {"n02": ("crane", "crane bird"), "n01": ("tench", "Tinca tinca")}
    torch.save((words, ["n01", "n02"]), tmp_path / "meta.bin")
    make(tmp_path / "train", words, 3)
    make(tmp_path / "val", words, 1)
    return tmp_path


def test_torchvisions_layout_loads_in_the_order_of_wordnet_ids(torchvisions):
    dataset = datasets.load("imagenet", root=torchvisions)
    assert dataset.classes == ("tench", "crane")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test.paths == tuple(torchvisions / "val" / wnid / f"{wnid}_0.JPEG" for wnid in ("n01", "n02"))


@pytest.mark.errors
def test_an_imagenet_that_is_not_there_says_what_belongs_where(torchvisions):
    shutil.rmtree(torchvisions / "val" / "n02")
    with pytest.raises(ValueError, match="classes of only one of train and val: n02"):
        datasets.load("imagenet", root=torchvisions)
    shutil.rmtree(torchvisions / "val")
    for _ in range(2):  # with the development kit, and then without
        with pytest.raises(OSError, match="imagenet could not be had") as caught:
            datasets.load("imagenet", root=torchvisions)
        for part in (
            "ILSVRC2012_devkit_t12.tar.gz",
            "img_train.tar",
            "https://image-net.org",
            "LOC_val_solution.csv",
            str(torchvisions),
            "--data digits",
        ):
            assert part in str(caught.value)
        (torchvisions / "meta.bin").unlink(missing_ok=True)


@pytest.mark.parametrize("inside", [".", "imagenet"])
def test_train_and_val_by_wordnet_id_are_enough(tmp_path, inside):
    place = tmp_path / inside
    make(place / "train", WNIDS, 3)
    make(place / "val", WNIDS, 1)
    for dataset in (datasets.load("imagenet", root=tmp_path), datasets.load(str(place))):
        assert sorted(dataset.classes) == sorted(NAMES)
        assert dataset.classes[0] == "tench"
        assert dataset.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
        assert [path.parent.name for path in dataset.test.paths] == list(WNIDS)
        assert dataset.notes == ()


@pytest.mark.errors
def test_folders_by_other_names_are_not_taken_for_imagenet(tmp_path):
    make(tmp_path / "train", ("cat", "dog"), 1)
    make(tmp_path / "val", ("cat", "dog"), 1)
    with pytest.raises(OSError, match="imagenet could not be had"):
        datasets.load("imagenet", root=tmp_path)
    assert datasets.load(str(tmp_path)).classes == ("cat", "dog")


@pytest.fixture
def kaggles(tmp_path):
    """As Kaggle's archive unpacks, its lists in an order of their own."""
    tree = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    make(tree / "train", WNIDS, 3)
    lines = ["ImageId,PredictionString"]
    for number, wnid in ((4, WNIDS[1]), (1, WNIDS[2]), (3, WNIDS[0]), (2, WNIDS[1])):
        save(tree / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
        lines.append(f"ILSVRC2012_val_{number:08d},{wnid} 85 1 499 272 {wnid} 1 2 3 4 ")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    save(tree / "test" / "ILSVRC2012_test_00000001.JPEG")
    return tmp_path


@pytest.mark.parametrize("named", [".", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_tree_loads_by_name_and_from_any_of_its_folders(kaggles, named):
    for dataset in (datasets.load(str(kaggles / named)), datasets.load("imagenet", root=kaggles)):
        assert set(dataset.classes) == set(NAMES)
        assert dataset.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
        assert [int(path.stem[-1]) for path in dataset.test.paths] == [3, 2, 4, 1]
        assert dataset.test.labels.tolist() == [0, 1, 1, 2]
        assert dataset.notes == ()


def test_kaggles_tree_loads_with_val_sorted_into_folders_too(kaggles):
    val = kaggles / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    for line in (kaggles / "LOC_val_solution.csv").read_text().splitlines()[1:]:
        name, wnid = line.split()[0].split(",")
        (val / wnid).mkdir(exist_ok=True)
        (val / f"{name}.JPEG").rename(val / wnid / f"{name}.JPEG")
    (kaggles / "LOC_val_solution.csv").unlink()
    for path in (kaggles, val.parent):
        dataset = datasets.load(str(path))
        assert [int(file.stem[-1]) for file in dataset.test.paths] == [3, 2, 4, 1]


@pytest.mark.errors
def test_kaggles_tree_without_its_labels_or_of_other_images_is_refused(kaggles):
    solution, val = kaggles / "LOC_val_solution.csv", kaggles / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    with pytest.raises(ValueError, match=f"holdout is for data without a test split, and {kaggles} has val"):
        datasets.load(str(kaggles), holdout=0.1)
    save(val / "ILSVRC2012_val_00000009.JPEG")
    with pytest.raises(
        ValueError, match=rf"{solution} names no class of train for {val}/ILSVRC2012_val_00000009\.JPEG"
    ):
        datasets.load(str(kaggles))
    shutil.rmtree(val)
    val.mkdir()
    with pytest.raises(ValueError, match=f"{solution} is there, but {val} is empty"):
        datasets.load(str(kaggles))
    save(val / "ILSVRC2012_val_00000001.JPEG")
    solution.unlink()
    message = f"{val} has no folder for each class: put LOC_val_solution.csv, which names its classes, into {kaggles}"
    for path in (kaggles, kaggles / "ILSVRC"):
        with pytest.raises(ValueError, match=re.escape(message)):
            datasets.load(str(path))


def test_the_thousand_wordnet_ids_are_in_the_order_of_the_published_classes():
    wnids = imagenet._wnids()
    assert len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    assert imagenet.names(wnids) == tuple(AlexNet_Weights.DEFAULT.meta["categories"])
    # As torchvision's Imagenette has them, a list of its own.
    assert imagenet.names(["n02102040", "n03888257", "n01440764"]) == ("English springer", "parachute", "tench")
    assert imagenet.names(["n01440764", "n99999999"]) is None
    assert imagenet.names([]) is None
