import functools

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

import alexnet_func as af
from alexnet_func.data import augment


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 9))
@settings(max_examples=50)
def test_padded_crop_is_a_shift_by_the_drawn_offsets(seed, padding, side):
    key, image = af.random.key(seed), torch.arange(2 * side**2, dtype=torch.uint8).view(2, side, side) + 1
    top, left = (int(af.random.randint(k, (), 0, 2 * padding + 1)) for k in af.random.split(key))
    expected = torch.zeros_like(image)
    for i in range(side):
        for j in range(side):
            row, column = i + top - padding, j + left - padding
            if 0 <= row < side and 0 <= column < side:
                expected[:, i, j] = image[:, row, column]
    assert torch.equal(augment.padded_crop(key, image, padding), expected)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.data())
@settings(max_examples=50)
def test_a_shift_into_the_reflection_is_one_of_numpys_padding(seed, side, data):
    padding = data.draw(st.integers(0, side - 1))
    key, image = af.random.key(seed), torch.arange(2 * side**2, dtype=torch.uint8).view(2, side, side)
    top, left = (int(af.random.randint(k, (), 0, 2 * padding + 1)) for k in af.random.split(key))
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    expected = padded[:, top : top + side, left : left + side]
    assert np.array_equal(augment.padded_crop(key, image, padding, "reflect").numpy(), expected)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=30)
def test_random_crop_is_a_window_of_the_image(seed, size, more_rows, more_columns):
    height, width = size + more_rows, size + more_columns
    image = torch.arange(height * width, dtype=torch.uint8).view(1, height, width)
    crop = augment.random_crop(af.random.key(seed), image, size)
    top, left = divmod(int(crop[0, 0, 0]), width)
    assert torch.equal(crop, image[:, top : top + size, left : left + size])
    assert top <= more_rows
    assert left <= more_columns


def test_random_flip_mirrors_where_bernoulli_says():
    keys = af.random.split(af.random.key(1), 300)
    images = torch.randint(256, (300, 3, 4, 5), dtype=torch.uint8)
    flipped = vmap(augment.random_flip)(keys, images)
    chosen = torch.stack([af.random.bernoulli(key) for key in keys])
    assert torch.equal(flipped[chosen], images[chosen].flip(-1))
    assert torch.equal(flipped[~chosen], images[~chosen])
    assert 110 < chosen.sum() < 190


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 7), st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=30)
def test_crops_and_flips_of_a_batch_are_those_of_its_images(seed, count, size, more_rows, more_columns):
    keys = af.random.split(af.random.key(seed), count)
    shape = (count, 3, size + more_rows, size + more_columns)
    images = torch.arange(count * 3 * shape[2] * shape[3]).to(torch.uint8).view(shape)
    crops, flips = augment.random_crops(keys, images, size), augment.random_flips(keys, images)
    assert crops.shape == (count, 3, size, size)
    assert flips.shape == images.shape
    for i, key in enumerate(keys):
        assert torch.equal(crops[i], augment.random_crop(key, images[i], size))
        assert torch.equal(flips[i], augment.random_flip(key, images[i]))
    for border in ("black", "reflect"):
        padding = min(2, size - 1)
        square = augment.padded_crops(keys, crops, padding, border)
        for i, key in enumerate(keys):
            assert torch.equal(square[i], augment.padded_crop(key, crops[i], padding, border))


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 8), (9, 12, 6), (256, 256, 224)])
def test_ten_crop_is_torchvisions(height, width, size):
    images = torch.randint(256, (2, 3, height, width), dtype=torch.uint8)
    crops = augment.ten_crop(images, size)
    corners = [(0, 0), (0, width - size), (height - size, 0), (height - size, width - size)]
    windows = [images[..., top : top + size, left : left + size] for top, left in corners]
    for i, window in enumerate(windows):
        assert torch.equal(crops[:, i], window)
        assert torch.equal(crops[:, 5 + i], window.flip(-1))
    assert torch.equal(crops[:, 4], torchvision.transforms.functional.center_crop(images, [size, size]))
    assert torch.equal(crops[:, 9], crops[:, 4].flip(-1))


def test_channel_moments_are_numpys():
    images = torch.randint(256, (10, 3, 6, 5), dtype=torch.uint8)
    images[:, 2] = 7
    mean, std = augment.channel_moments(images)
    pixels = images.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(mean, pixels.mean(1), rtol=1e-12)
    np.testing.assert_allclose(std, [*pixels[:2].std(1), 1.0], rtol=1e-12)


def test_pca_noise_has_the_covariance_of_the_papers_formula():
    images = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
    images[:, 1] = images[:, 0] // 2
    components = augment.rgb_components(images)
    covariance = np.cov(images.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255)
    # Columns lambda_i p_i: their outer products sum to the square of the covariance.
    np.testing.assert_allclose(components @ components.T, covariance @ covariance, rtol=1e-4, atol=1e-7)
    keys = af.random.split(af.random.key(0), 4000)
    black = torch.zeros(3, 2, 2)
    noise = vmap(lambda key: augment.pca_noise(key, black, components))(keys)
    assert torch.equal(noise[:, :, 0, 0], noise[:, :, 1, 1])
    np.testing.assert_allclose(np.cov(noise[:, :, 0, 0].T), 0.01 * covariance @ covariance, rtol=0.15, atol=2e-6)


def test_vmapped_crops_are_single_crops_and_shift_every_way():
    images = torch.randint(256, (200, 3, 8, 8), dtype=torch.uint8)
    keys = af.random.split(af.random.key(0), 200)
    crops = vmap(functools.partial(augment.padded_crop, padding=2))(keys, images)
    for key, image, crop in zip(keys, images, crops, strict=True):
        assert torch.equal(augment.padded_crop(key, image, 2), crop)
    corners = torch.zeros(1, 5, 5, dtype=torch.uint8)
    corners[0, 2, 2] = 1
    shifted = vmap(lambda key: augment.padded_crop(key, corners, padding=2))(keys)
    assert len(shifted.nonzero()[:, 2:].unique(dim=0)) == 25


def test_a_box_is_resized_as_torchvision_resizes_it():
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 12), (61, 83), mode="bicubic")[0]
    image = (image.clamp(0, 1) * 255).to(torch.uint8)
    for box in ([0, 0, 61, 83], [3, 10, 50, 40], [60, 82, 1, 1], [7, 0, 9, 70], [30, 30, 16, 16]):
        ours = augment._resized(image, torch.tensor(box, dtype=torch.int32), 16)
        theirs = torchvision.transforms.functional.resized_crop(image, *box, [16, 16], antialias=True)
        assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("extent", "scale"), [((40, 60), (0.08, 1.0)), ((20, 200), (0.3, 1.0)), ((30, 30), (0.5, 0.9))]
)
def test_random_boxes_are_distributed_as_torchvisions(extent, scale):
    ratio = (3 / 4, 4 / 3)
    keys = af.random.split(af.random.key(0), 4000)
    ours = vmap(lambda key: augment._random_box(key, extent, scale, ratio))(keys)
    image = torch.empty(3, *extent)
    params = [torchvision.transforms.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)]
    theirs = torch.tensor(params)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor(extent)).all()
    for column in range(4):
        # Two-sample Kolmogorov-Smirnov: a distance above this has a probability below 1e-5.
        a, b = ours[:, column].sort().values, theirs[:, column].sort().values
        values = torch.cat([a, b]).unique()
        ranks = [torch.searchsorted(sample, values, right=True) / 4000 for sample in (a, b)]
        assert (ranks[0] - ranks[1]).abs().max() < 2.47 * (2 / 4000) ** 0.5


def test_vmapped_resized_crops_are_single_ones():
    images = torch.randint(256, (8, 3, 20, 30), dtype=torch.uint8)
    keys = af.random.split(af.random.key(1), 8)
    crops = vmap(functools.partial(augment.resized_crop, size=12))(keys, images)
    for key, image, crop in zip(keys, images, crops, strict=True):
        assert (augment.resized_crop(key, image, 12).int() - crop.int()).abs().max() <= 1
    flat = torch.full((3, 9, 14), 201, dtype=torch.uint8)
    assert torch.equal(augment.resized_crop(keys[0], flat, 21), torch.full((3, 21, 21), 201, dtype=torch.uint8))


@pytest.mark.errors
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"size": 4, "scale": (0.0, 1.0)}, r"scale must be positive bounds in order, got \(0.0, 1.0\)"),
        ({"size": 4, "ratio": (2.0, 1.0)}, r"ratio must be positive bounds in order, got \(2.0, 1.0\)"),
    ],
)
def test_resized_crops_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        augment.resized_crop(af.random.key(0), torch.zeros(3, 8, 8, dtype=torch.uint8), **options)


def test_normalize_is_its_formula():
    images = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    ours = augment.normalize(augment.to_float(images), mean, std)
    assert ours.dtype == torch.float32
    for c in range(3):
        expected = (images[:, c].double() / 255 - mean[c]) / std[c]
        torch.testing.assert_close(ours[:, c].double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(augment.normalize(augment.to_float(images[0]), mean, std), ours[0])


@pytest.mark.errors
def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding must not be negative, got -1"):
        augment.padded_crop(af.random.key(0), torch.zeros(3, 4, 4, dtype=torch.uint8), -1)
    with pytest.raises(ValueError, match="padding must not be negative, got -1"):
        augment.padded_crops(af.random.split(af.random.key(0), 1), torch.zeros(1, 3, 4, 4, dtype=torch.uint8), -1)
    with pytest.raises(ValueError, match="below the side of 4 to be reflected, got 4"):
        augment.padded_crop(af.random.key(0), torch.zeros(3, 4, 4, dtype=torch.uint8), 4, "reflect")


@pytest.mark.errors
def test_crops_larger_than_the_image_are_refused():
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    for crop in (
        lambda: augment.random_crop(af.random.key(0), image, 5),
        lambda: augment.random_crops(af.random.split(af.random.key(0), 1), image[None], 5),
        lambda: augment.center_crop(image, 5),
    ):
        with pytest.raises(ValueError, match=r"size must lie in 1\.\.4 for .* 4x6, got 5"):
            crop()
