"""The layouts in which people have their images."""

import re

import pytest
import torch
from PIL import Image

from alexnet_func.data import datasets, holdout


def make(path, *, count=3, classes=("a", "b")):
    """A folder for each class, of that many images."""
    for i, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for j in range(count):
            Image.new("RGB", (8, 8), (i * 100, j, 7)).save(path / name / f"{j}.png")


def load(path, **options):
    return datasets.load(str(path), **options)


def test_a_folder_lists_files_by_sorted_class_and_name(folder):
    dataset = load(folder)
    assert dataset.classes == ("a", "b")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train.paths == tuple(folder / "train" / name / f"{i}.png" for name in "ab" for i in range(3))
    assert dataset.test.paths[4] == folder / "val" / "b" / "1.png"
    assert dataset.notes == ()


@pytest.mark.parametrize("train", ["train", "training", "Training", "TRAIN"])
@pytest.mark.parametrize("test", ["test", "Testing", "val", "valid", "validation", "Validation"])
def test_splits_by_any_of_their_names(tmp_path, train, test):
    make(tmp_path / train)
    make(tmp_path / test, count=1)
    dataset = load(tmp_path)
    assert dataset.train.paths[-1] == tmp_path / train / "b" / "2.png"
    assert dataset.test.paths == tuple(tmp_path / test / name / "0.png" for name in "ab")


def test_of_test_and_val_one_is_taken_and_the_other_named(tmp_path):
    for name in ("train", "val", "test"):
        make(tmp_path / name)
    dataset = load(tmp_path)
    assert dataset.test.paths[0].parent.parent == tmp_path / "test"
    assert dataset.notes == (f"{tmp_path / 'val'} is not used: test is the test split",)


def test_a_test_folder_without_classes_gives_way_to_one_with(tmp_path):
    """A competition's: its images for testing have no labels."""
    make(tmp_path / "train")
    make(tmp_path / "val")
    (tmp_path / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "1.png")
    dataset = load(tmp_path)
    assert dataset.test.paths[0].parent.parent == tmp_path / "val"
    assert dataset.notes == (f"{tmp_path / 'test'} is not used: val is the test split",)


def test_images_in_folders_below_a_class_are_its_images(tmp_path):
    make(tmp_path / "train")
    make(tmp_path / "train" / "a" / "session", classes=("2",))
    make(tmp_path / "test")
    dataset = load(tmp_path)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 3
    assert dataset.train.paths[3:6] == tuple(tmp_path / "train" / "a" / "session" / "2" / f"{i}.png" for i in range(3))


def test_a_class_that_the_test_split_lacks_is_told(tmp_path):
    make(tmp_path / "train", classes=("a", "b", "c"))
    make(tmp_path / "test", classes=("a", "c"))
    (tmp_path / "test" / "c" / "0.png").rename(tmp_path / "test" / "c.png")
    for i in (1, 2):
        (tmp_path / "test" / "c" / f"{i}.png").unlink()
    dataset = load(tmp_path)
    assert dataset.classes == ("a", "b", "c")
    assert dataset.test.labels.tolist() == [0, 0, 0]
    assert dataset.notes == (
        "2 of 3 classes have no test images: b, c",
        f"passed over 1 image beside the folders of the classes: {tmp_path / 'test' / 'c.png'}",
    )


@pytest.mark.parametrize("name", ["test", "val", "Validation"])
def test_a_test_split_alone_has_an_empty_training_split(tmp_path, name):
    make(tmp_path / name)
    dataset = load(tmp_path)
    assert dataset.classes == ("a", "b")
    assert dataset.train.paths == ()
    assert dataset.train.labels.shape == (0,)
    assert dataset.train.labels.dtype == torch.int64
    assert dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("inside", [".", "train"])
def test_a_share_of_each_class_is_held_out(tmp_path, inside):
    make(tmp_path / inside, count=10, classes=("a", "b", "c"))
    dataset = load(tmp_path, holdout=0.2)
    assert dataset.classes == ("a", "b", "c")
    assert dataset.train.labels.bincount().tolist() == [8, 8, 8]
    assert dataset.test.labels.bincount().tolist() == [2, 2, 2]
    both = dataset.train.paths + dataset.test.paths
    assert sorted(both) == sorted((tmp_path / inside).rglob("*.png"))
    assert all(path.parent.name == "abc"[label] for path, label in zip(*dataset.train, strict=True))
    assert dataset.notes == ("held out for testing: 6 of 30 images, 0.2 of each class by a fixed key",)


def test_a_train_may_be_a_class_among_vehicles(tmp_path):
    make(tmp_path, count=10, classes=("bus", "train"))
    assert load(tmp_path, holdout=0.1).classes == ("bus", "train")


def test_what_is_held_out_is_the_same_wherever_the_folder_lies(tmp_path):
    for name in ("here", "there"):
        make(tmp_path / name, count=10)
    held = [load(tmp_path / name, holdout=0.3).test.paths for name in ("here", "there")]
    assert [path.relative_to(tmp_path / "here") for path in held[0]] == [
        path.relative_to(tmp_path / "there") for path in held[1]
    ]
    # Of jax.random.permutation(fold_in(key(1797), label), 10) the first three. Were it to change, a resumed run would
    # test on what it has trained on.
    assert [path.name for path in held[0]] == [f"{i}.png" for i in (3, 7, 8, 2, 3, 6)]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([100, 10, 5, 1], 0.1, [10, 1, 1, 0]),
        ([100], 0.29, [29]),
        ([2, 3], 0.99, [1, 2]),
        ([1797], 1 / 5, [359]),
        ([7], 1e-9, [1]),
    ],
)
def test_the_share_is_rounded_down_to_one_at_least_and_all_but_one_at_most(counts, share, expected):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    mask = holdout.stratified(labels, share)
    assert labels[mask].bincount(minlength=len(counts)).tolist() == expected


def refused(path, message, **options):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.errors
def test_folders_that_are_wrong_say_what_they_hold_and_what_is_accepted(tmp_path):
    accepted = "accepted is train/<class>/* with test/ or val/ beside it"
    refused(tmp_path, f"{tmp_path} has no folder of images for each class: it is empty; {accepted}")
    (tmp_path / "a.csv").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    held = "it holds 1 image and 1 file that is no image: 1 .csv"
    refused(tmp_path, f"{tmp_path} has no folder of images for each class: {held}; {accepted}")
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    refused(tmp_path, f"{tmp_path / 'val'} has no folder of images for each class: it is empty")
    make(tmp_path / "val")
    refused(tmp_path, f"{tmp_path / 'train'} has no folder of images for each class: it is empty; {accepted}")
    make(tmp_path / "train", classes=("a",))
    refused(tmp_path, f"classes of {tmp_path / 'val'} that {tmp_path / 'train'} lacks: b")
    (tmp_path / "train" / "b" / "deep").mkdir(parents=True)
    (tmp_path / "train" / "b" / "deep" / "0.heic").touch()
    refused(tmp_path, f"{tmp_path / 'train' / 'b'} holds no images (")
    refused(tmp_path, "): it holds 1 file that is no image: 1 .heic (convert HEIC to JPEG to have it read)")


@pytest.mark.errors
def test_a_test_split_without_images_is_none(tmp_path):
    make(tmp_path / "train")
    (tmp_path / "test" / "a").mkdir(parents=True)
    (tmp_path / "test" / "a" / "0.txt").touch()
    refused(tmp_path, f"{tmp_path / 'test'} holds no images: it holds 1 file that is no image: 1 .txt")


@pytest.mark.errors
def test_without_a_test_split_the_option_is_named(tmp_path):
    make(tmp_path / "pets")
    refused(tmp_path / "pets", f"{tmp_path / 'pets'} has no test split, only the folders a, b: to test on a tenth of")
    refused(tmp_path / "pets", "each class give --holdout 0.1, else name a folder with train/<class>/* with test/ or")
    (tmp_path / "pets").rename(tmp_path / "train")
    refused(tmp_path, f"{tmp_path / 'train'} has no test split, only the folders a, b: to test on a tenth")


@pytest.mark.errors
@pytest.mark.parametrize("names", [("train", "val"), ("test",)])
def test_a_folder_with_a_test_split_takes_no_holdout(tmp_path, names):
    for name in names:
        make(tmp_path / name)
    refused(tmp_path, f"holdout is for data without a test split, and {tmp_path} has {names[-1]}", holdout=0.1)


@pytest.mark.errors
def test_a_folder_in_a_folder_of_its_name_is_found_by_the_message(tmp_path):
    make(tmp_path / "pets" / "pets" / "train")
    make(tmp_path / "pets" / "pets" / "test")
    (tmp_path / "pets" / "__MACOSX" / "pets").mkdir(parents=True)
    for options in ({}, {"holdout": 0.1}):
        refused(tmp_path / "pets", f"but {tmp_path / 'pets' / 'pets'} is a data set: name that one", **options)


@pytest.mark.errors
def test_a_test_split_among_classes_is_ambiguous(tmp_path):
    make(tmp_path, classes=("cat", "dog"))
    make(tmp_path / "val")
    refused(tmp_path, f"{tmp_path} has val but no train, and also cat, dog: accepted are train/<class>/* with test/")


@pytest.mark.errors
def test_nothing_can_be_held_out_of_single_images(tmp_path):
    make(tmp_path, count=1)
    refused(tmp_path, f"no class of {tmp_path} has two images, one to train on and one to test on", holdout=0.5)
