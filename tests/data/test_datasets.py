import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from alexnet_func.data import datasets


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


@pytest.mark.errors
def test_an_unknown_data_set_and_labels_out_of_range(monkeypatch):
    with pytest.raises(ValueError, match="unknown data set 'mnist'; there is digits"):
        datasets.load("mnist")
    split = datasets.Split(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([2]))
    monkeypatch.setitem(datasets._LOADERS, "bad", lambda: datasets.Dataset(split, split, ("a", "b")))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1, got 2\.\.2"):
        datasets.load("bad")
