"""What is found in folders of images, against `torchvision.datasets.ImageFolder` and by name."""

import os
import shutil
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from alexnet_func.data import datasets, folders, images

NAMES = st.text("ab.-_ /ÄZ0\udc80", min_size=1, max_size=4).map(lambda name: name.replace("/", "~"))
FOLDER_NAMES = NAMES.filter(lambda name: not name.startswith("."))
FILE_NAMES = st.builds(
    str.__add__,
    FOLDER_NAMES,
    st.sampled_from([".jpg", ".JPG", ".Jpeg", ".png", ".webp", ".tif", ".txt", "", ".j", "."]),
)
TREES = st.recursive(
    st.just({}),
    lambda inner: st.dictionaries(FILE_NAMES, st.none()) | st.dictionaries(FOLDER_NAMES, inner),
    max_leaves=4,
)


def make(path, tree):
    path.mkdir()
    for name, inner in tree.items():
        if inner is None:
            (path / name).touch()
        elif not (path / name).exists():
            make(path / name, inner)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(FOLDER_NAMES, st.tuples(TREES, st.dictionaries(FILE_NAMES, st.none(), max_size=3)), min_size=1))
def test_images_are_found_in_the_order_of_torchvisions_image_folder(tmp_path, classes):
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    make(root, {name: {**files, **tree} for name, (tree, files) in classes.items()})
    expected = ImageFolder(str(root), allow_empty=True)
    assert folders.subfolders(root) == tuple(expected.classes)
    found = [folders.below(root / name) for name in expected.classes]
    paths = [(str(path), label) for label, part in enumerate(found) for path in part.paths]
    assert paths == expected.samples
    files = sum(len(names) for _, _, names in os.walk(root))
    assert len(paths) + sum(part.passed_over.total() for part in found) == files


def test_what_systems_leave_behind_is_no_data(folder):
    """From macOS (.DS_Store, ._* and __MACOSX of its archives), Windows, Jupyter and a Synology server."""
    before = datasets.load(str(folder))
    for name in (".DS_Store", "._0.png", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini", ".hidden.png"):
        for place in (folder, folder / "train", folder / "train" / "a", folder / "val" / "b"):
            touch(place / name)
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git"):
        for place in (folder, folder / "train", folder / "train" / "a", folder / "val"):
            touch(place / name / "0.png")
    after = datasets.load(str(folder))
    assert after.train.paths == before.train.paths
    assert after.test.paths == before.test.paths
    assert after.classes == before.classes == ("a", "b")
    assert after.notes == before.notes == ()


def test_what_is_passed_over_is_counted_and_said_once(folder):
    for name in ("a.txt", "b.TXT", "c.heic", "noext", "d.mp4"):
        touch(folder / "train" / "a" / "deeper" / name)
    touch(folder / "val" / "b" / "e.txt")
    touch(folder / "val" / "list.csv")
    touch(folder / "train" / "stray.jpg")
    notes = datasets.load(str(folder)).notes
    assert notes == (
        f"passed over 1 image beside the folders of the classes: {folder / 'train' / 'stray.jpg'}",
        "passed over 7 files that are no images: 3 .txt, 1 .csv, 1 .heic, 1 .mp4, 1 without suffix "
        "(convert HEIC to JPEG to have it read)",
    )


def test_one_file_is_told_in_the_singular_and_only_the_commonest_suffixes_are():
    assert folders.describe(Counter({".txt": 1})) == "1 file that is no image: 1 .txt"
    many = Counter({f".{i}": i for i in range(1, 9)})
    assert folders.describe(many) == "36 files that are no images: 8 .8, 7 .7, 6 .6, 5 .5, 4 .4, ..."


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPEG", ".gif", ".tiff", ".bmp", ".webp", ".pnm"])
def test_these_suffixes_are_images(tmp_path, suffix):
    touch(tmp_path / f"a{suffix}")
    assert len(folders.below(tmp_path).paths) == 1


def test_avif_is_read_where_pillow_can():
    from PIL import features

    assert (".avif" in images.SUFFIXES) == features.check("avif")


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "elsewhere" / "far.png")
    touch(tmp_path / "train" / "cat" / "near.png")
    touch(tmp_path / "train" / "dog" / "other.png")
    cat = tmp_path / "train" / "cat"
    (cat / "to_elsewhere").symlink_to(tmp_path / "elsewhere")
    (cat / "a_file.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (cat / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (cat / "itself.png").symlink_to(cat / "itself.png")
    (cat / "to_itself").symlink_to(cat)
    (cat / "up").symlink_to(tmp_path)  # would lead to the dogs
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "train" / "cat")
    found = [str(path.relative_to(cat)) for path in folders.below(cat).paths]
    assert found == ["a_file.png", "dangling.png", "itself.png", "near.png", "to_elsewhere/far.png"]


def test_a_folder_that_is_linked_twice_is_read_twice_as_torchvision_does(tmp_path):
    touch(tmp_path / "photographs" / "1.png")
    (tmp_path / "root" / "cat").mkdir(parents=True)
    for name in ("first", "second"):
        (tmp_path / "root" / "cat" / name).symlink_to(tmp_path / "photographs")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "photographs")
    expected = ImageFolder(str(tmp_path / "root"))
    assert folders.subfolders(tmp_path / "root") == ("cat", "dog")
    found = [path for name in ("cat", "dog") for path in folders.below(tmp_path / "root" / name).paths]
    assert [str(path) for path in found] == [path for path, _ in expected.samples]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_an_error_and_no_gap(tmp_path):
    touch(tmp_path / "locked" / "1.png")
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(PermissionError, match="locked"):
            folders.below(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)
