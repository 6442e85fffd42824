import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from alexnet_func.data import datasets, images


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def test_digits_are_sklearns_images_each_once(digits):
    source = load_digits()
    both = [torch.cat(pair) for pair in zip(digits.train, digits.test, strict=True)]
    assert both[0].shape == (1797, 3, 32, 32)
    assert both[0].dtype == torch.uint8
    small = both[0][:, 0, ::4, ::4].numpy()
    ours = sorted((label, image.tobytes()) for image, label in zip(small, both[1].tolist(), strict=True))
    grey = np.rint(source.images * 255 / 16).astype(np.uint8)
    assert ours == sorted((label, image.tobytes()) for image, label in zip(grey, source.target.tolist(), strict=True))


def test_each_pixel_is_four_by_four_of_three_channels(digits):
    images = digits.test.images
    blocks = images.view(-1, 3, 8, 4, 8, 4)
    assert torch.equal(blocks.amax((3, 5)), blocks.amin((3, 5)))
    assert torch.equal(images[:, 0], images[:, 2])


def test_the_split_is_fixed_and_stratified(digits):
    counts = [split.labels.bincount(minlength=10) for split in (digits.train, digits.test)]
    assert torch.equal(counts[1], (counts[0] + counts[1]) // 5)
    assert len(digits.test.labels) == 355
    again = datasets.load("digits")
    assert torch.equal(again.test.images, digits.test.images)
    assert digits.classes == tuple("0123456789")


def test_torchvisions_cifar_layouts_load_without_a_download(tmp_path, monkeypatch):
    """The files of the archive as torchvision leaves them, with made-up pixels; the download itself cannot run here."""
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    generator = np.random.default_rng(0)
    pixels = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels[name] = generator.integers(0, 256, (4, 3072)).astype(np.uint8)
        (batches / name).write_bytes(pickle.dumps({"data": pixels[name], "labels": [0, 9, 3, 3]}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *a: True)
    dataset = datasets.load("cifar10", root=tmp_path)
    assert dataset.classes == tuple(names)
    assert dataset.train.images.shape == (20, 3, 32, 32)
    assert torch.equal(dataset.test.images, torch.from_numpy(pixels["test_batch"]).view(4, 3, 32, 32))
    assert dataset.test.labels.tolist() == [0, 9, 3, 3]


@pytest.mark.errors
def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fail)
    with pytest.raises(OSError, match="no route to host") as caught:
        datasets.load("cifar100", root=tmp_path)
    for part in ("CIFAR100 could not be had from https://", "cifar-100-python.tar.gz", str(tmp_path), "--data digits"):
        assert part in str(caught.value)


def save_gradient(path, mode):
    ramp = np.tile(np.linspace(0, 1, 64), (48, 1))
    if mode == "16":
        Image.fromarray((ramp * 65535).astype(np.uint16)).save(path)
    else:
        Image.fromarray((ramp * 255).astype(np.uint8)).convert(mode).save(path)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "png"),
        ("RGB", "png"),
        ("RGBA", "png"),
        ("P", "png"),
        ("LA", "png"),
        ("16", "png"),
        ("16", "tif"),
        ("CMYK", "tif"),
    ],
)
def test_images_of_any_mode_become_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    save_gradient(path, mode)
    image = images.read(path, 48)
    assert image.shape == (3, 48, 48)
    assert image.dtype == torch.uint8
    expected = torch.linspace(0, 255, 64)[8:56].expand(3, 48, 48)
    assert (image.float() - expected).abs().max() <= 4


def test_the_shorter_side_is_resized_and_the_middle_kept(tmp_path):
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (images.read(tmp_path / "wide.png", 20) > 200).all(), "the middle 40 of 100 columns are white"
    assert torch.equal(images.read(tmp_path / "wide.png", 40), torch.full((3, 40, 40), 255, dtype=torch.uint8))


def test_a_folder_lists_files_by_sorted_class_and_name(folder):
    (folder / "train" / "a" / "notes.txt").write_text("no image")
    dataset = datasets.load(str(folder))
    assert dataset.classes == ("a", "b")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train.paths == tuple(folder / "train" / name / f"{i}.png" for name in "ab" for i in range(3))
    assert dataset.test.paths[4] == folder / "val" / "b" / "1.png"


@pytest.mark.errors
def test_folders_that_are_wrong_are_refused_by_name(folder):
    (folder / "val" / "c").mkdir()
    with pytest.raises(ValueError, match=r"classes of only one of .*: c"):
        datasets.load(str(folder))
    (folder / "train" / "c").mkdir()
    with pytest.raises(ValueError, match="train/c holds no images"):
        datasets.load(str(folder))
    for split in ("train", "val"):
        for name in "abc":
            shutil.rmtree(folder / split / name)
    with pytest.raises(ValueError, match="train has no folder of images for each class"):
        datasets.load(str(folder))
    shutil.rmtree(folder / "val")
    with pytest.raises(ValueError, match="has neither test nor val beside train"):
        datasets.load(str(folder))
    shutil.rmtree(folder / "train")
    with pytest.raises(ValueError, match="has no folder train"):
        datasets.load(str(folder))


@pytest.fixture
def imagenet(tmp_path):
    """Two classes as torchvision leaves them when it has unpacked the archives."""
    words = {"n02": ("crane", "crane bird"), "n01": ("tench", "Tinca tinca")}
    torch.save((words, ["n01", "n02"]), tmp_path / "meta.bin")
    for split, count in (("train", 3), ("val", 1)):
        for wnid in words:
            (tmp_path / split / wnid).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / split / wnid / f"{wnid}_{i}.JPEG")
    return tmp_path


def test_torchvisions_imagenet_layout_loads_in_the_order_of_wordnet_ids(imagenet):
    dataset = datasets.load("imagenet", root=imagenet)
    assert dataset.classes == ("tench", "crane")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test.paths == tuple(imagenet / "val" / wnid / f"{wnid}_0.JPEG" for wnid in ("n01", "n02"))


@pytest.mark.errors
def test_an_imagenet_that_is_not_there_says_which_archives_belong_where(imagenet):
    shutil.rmtree(imagenet / "val" / "n02")
    with pytest.raises(ValueError, match="classes of only one of train and val: n02"):
        datasets.load("imagenet", root=imagenet)
    (imagenet / "meta.bin").unlink()
    with pytest.raises(OSError, match="imagenet could not be had") as caught:
        datasets.load("imagenet", root=imagenet)
    for part in (
        "ILSVRC2012_devkit_t12.tar.gz",
        "img_train.tar",
        "https://image-net.org",
        str(imagenet),
        "--data digits",
    ):
        assert part in str(caught.value)


@pytest.mark.skipif("ALEXNET_DATA" not in os.environ, reason="ALEXNET_DATA names no folder of real images")
def test_real_photographs_load(tmp_path):
    with tarfile.open(Path(os.environ["ALEXNET_DATA"]) / "imagenet-sample.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    photographs = sorted(tmp_path.rglob("*.JPEG"))
    assert len(photographs) == 100
    pixels = torch.stack([images.read(path, 256) for path in photographs])
    assert pixels.shape == (100, 3, 256, 256)
    assert 40 < pixels.float().std() < 90


@pytest.mark.errors
def test_an_unknown_data_set_and_labels_out_of_range(monkeypatch):
    with pytest.raises(
        ValueError, match="no data set 'mnist': there are digits, cifar10, cifar100, imagenet, or a folder"
    ):
        datasets.load("mnist")
    split = datasets.Split(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([2]))
    monkeypatch.setitem(datasets._LOADERS, "bad", lambda root: datasets.Dataset(split, split, ("a", "b")))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1, got 2\.\.2"):
        datasets.load("bad")
