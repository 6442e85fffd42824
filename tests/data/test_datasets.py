import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from alexnet_func.data import datasets, images, prepare


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


@pytest.mark.errors
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_damaged_archive_is_told_at_once_and_nothing_is_fetched(tmp_path, monkeypatch, name):
    def fetch(*_args, **_kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fetch)
    archive = tmp_path / {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[name]
    archive.write_bytes(b"cut short")
    with pytest.raises(OSError, match=rf"the {archive} there is damaged or cut short: delete it"):
        datasets.load(name, root=tmp_path)
    assert archive.read_bytes() == b"cut short"


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
@pytest.mark.parametrize("name", ["", " ", "\t\n"])
def test_an_empty_name_is_no_folder(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    with pytest.raises(
        ValueError, match="data names nothing: there are digits, cifar10, cifar100, imagenet, or a fold"
    ):
        datasets.load(name)


@pytest.mark.errors
def test_an_unknown_data_set_and_labels_out_of_range(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match="no data set 'mnist': there are digits, cifar10, cifar100, imagenet, or a folder"
    ):
        datasets.load("mnist")
    (tmp_path / "cats.zip").touch()
    with pytest.raises(ValueError, match=r"no data set '.*cats\.zip': which is a file; there are digits, "):
        datasets.load(str(tmp_path / "cats.zip"))
    split = datasets.Split(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([2]))
    monkeypatch.setitem(datasets._LOADERS, "bad", lambda root: datasets.Dataset(split, split, ("a", "b")))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1, got 2\.\.2"):
        datasets.load("bad")


@pytest.mark.errors
def test_what_has_a_test_split_takes_no_holdout(tmp_path, folder):
    prepare.prepare(datasets.load(str(folder)), tmp_path / "shards", side=8)
    for name in ("digits", "cifar10", "imagenet", str(tmp_path / "shards")):
        with pytest.raises(ValueError, match=f"holdout is for data without a test split, and {name} has one"):
            datasets.load(name, holdout=0.1)
    for share in (0, 1, -0.1, 10, float("nan")):
        with pytest.raises(ValueError, match=rf"holdout must lie between 0 and 1, as 0\.1 does, got {share}"):
            datasets.load(str(folder), holdout=share)
