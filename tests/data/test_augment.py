import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

import alexnet_func as af
from alexnet_func.data import augment


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_padded_crop_is_a_shift_by_the_drawn_offsets(seed, padding, height, width):
    key, image = af.random.key(seed), torch.arange(2 * height * width, dtype=torch.uint8).view(2, height, width) + 1
    top, left = af.random.randint(key, (2,), 0, 2 * padding + 1).tolist()
    expected = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            row, column = i + top - padding, j + left - padding
            if 0 <= row < height and 0 <= column < width:
                expected[:, i, j] = image[:, row, column]
    assert torch.equal(augment.padded_crop(key, image, padding), expected)


def test_vmapped_crops_are_single_crops_and_shift_every_way():
    images = torch.randint(256, (200, 3, 8, 8), dtype=torch.uint8)
    keys = af.random.split(af.random.key(0), 200)
    crops = vmap(functools.partial(augment.padded_crop, padding=2))(keys, images)
    for key, image, crop in zip(keys, images, crops, strict=True):
        assert torch.equal(augment.padded_crop(key, image, 2), crop)
    offsets = vmap(lambda key: af.random.randint(key, (2,), 0, 5))(keys)
    assert len({tuple(pair) for pair in offsets.tolist()}) == 25


def test_normalize_is_its_formula():
    images = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    ours = augment.normalize(images, mean, std)
    assert ours.dtype == torch.float32
    for c in range(3):
        expected = (images[:, c].double() / 255 - mean[c]) / std[c]
        torch.testing.assert_close(ours[:, c].double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(augment.normalize(images[0], mean, std), ours[0])


@pytest.mark.errors
def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding must not be negative, got -1"):
        augment.padded_crop(af.random.key(0), torch.zeros(3, 4, 4, dtype=torch.uint8), -1)
