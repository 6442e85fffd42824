"""Pictures turned by their EXIF tag, against Pillow's own `ImageOps.exif_transpose`."""

import io
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision import io as io_of_torchvision

from alexnet_func.data import datasets, images, memory, prepare, shards, stream
from tests.data.test_images import decoder  # noqa: F401, the fixture

FORMATS = [name for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") if name != "AVIF" or ".avif" in images.SUFFIXES]
# The fixtures hold nothing that one example leaves to the next.
QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encoded(kind, tag, width=9, height=6, mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    exif = Image.Exif()
    if tag is not None:
        exif[274] = tag
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, exif=exif, **options)
    return file.getvalue()


def middle(image, side):
    image = image.convert("RGB")  # of a TIFF file the size, too, is only then what it is
    left, top = ((length - side) // 2 for length in image.size)
    pixels = np.array(image)[top : top + side, left : left + side]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def check_is_pillows(path):
    # Not by name: Pillow 13 maps gray TIFF files into memory and then turns them wrongly.
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        side = min(image.size)
        stored = middle(image, side)
        turned = middle(ImageOps.exif_transpose(image), side)
    assert torch.equal(images.read(path, side), turned)
    assert torch.equal(images.read(path, side, orientation="exif"), turned)
    assert torch.equal(images.read(path, side, orientation="stored"), stored)


@QUICK
@given(
    st.sampled_from(FORMATS),
    st.sampled_from([None, *range(10), 65535]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["RGB", "L"]),
)
def test_pictures_are_turned_as_pillow_turns_them(tmp_path, decoder, kind, tag, width, height, mode):  # noqa: F811
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(kind, tag, width, height, mode))
    check_is_pillows(path)


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_decoder_that_turns_by_itself_does_not_turn_twice(tmp_path, monkeypatch, tag):
    """As torchcodec's does, unasked."""

    def decode(data):
        pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return io_of_torchvision.decode_jpeg(pixels, io_of_torchvision.ImageReadMode.RGB, apply_exif_orientation=True)

    monkeypatch.setattr(images, "decoder", lambda: ("turning", decode))
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", tag))
    check_is_pillows(tmp_path / "a.jpg")


@pytest.mark.parametrize("tag", range(1, 9))
def test_the_corner_that_a_camera_calls_the_first_comes_top_left(tmp_path, tag):
    """By the words of EXIF 2.3: where row 0 and column 0 of the stored picture are to be shown."""
    row_0 = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}[tag]
    column_0 = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[tag]
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, :, 0], pixels[:, 0, 1] = 255, 255
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    shown = images.read(tmp_path / "a.png", 8)
    edges = {"top": (0, slice(None)), "bottom": (7, slice(None)), "left": (slice(None), 0), "right": (slice(None), 7)}
    for channel, edge in enumerate((row_0, column_0)):
        expected = torch.zeros(8, 8, dtype=torch.uint8)
        expected[edges[edge]] = 255
        assert torch.equal(shown[channel], expected)


def test_an_orientation_that_only_xmp_tells_is_read_as_pillow_reads_it(tmp_path, decoder):  # noqa: F811
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", None, xmp=xmp))
    check_is_pillows(tmp_path / "a.jpg")
    assert not torch.equal(images.read(tmp_path / "a.jpg", 6), images.read(tmp_path / "a.jpg", 6, orientation="stored"))


@QUICK
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.binary(max_size=80), st.booleans())
def test_damaged_exif_is_no_error_and_no_warning(tmp_path, decoder, kind, garbage, begins_well):  # noqa: F811
    head = b"Exif\0\0MM\0*\0\0\0\x08\0\x03" if begins_well else b"Exif\0\0"
    file = io.BytesIO()
    Image.new("RGB", (9, 6), (200, 0, 0)).save(file, kind, exif=head + garbage)
    (tmp_path / "a").write_bytes(file.getvalue())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The image decoding and encoding capabilities of TorchVision")
        assert images.read(tmp_path / "a", 6)[0].min() > 150


def test_every_way_of_reading_turns_alike(tmp_path, folder):
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        path.write_bytes(encoded("JPEG", i % 8 + 1, 12, 8))
    dataset = datasets.load(str(folder))
    for orientation in ("exif", "stored"):
        files = dataset.train
        expected = torch.stack([images.read(path, 8, orientation=orientation) for path in files.paths])
        assert torch.equal(memory.decode(files, 8, orientation=orientation).split.images, expected)
        cached = memory.cached(tmp_path / "cache.safetensors", files, 8, orientation=orientation)
        assert torch.equal(cached.split.images, expected)
        streamed = stream.batches(files.paths, [torch.arange(6)], side=8, workers=0, orientation=orientation)
        assert torch.equal(next(streamed).images, expected)
        prepare.prepare(dataset, tmp_path / "shards", side=8, orientation=orientation)
        assert torch.equal(shards.read(shards.load(tmp_path / "shards")[0], torch.arange(6)), expected)
    assert memory.fingerprint(files, 8) != memory.fingerprint(files, 8, orientation="stored")


@pytest.mark.errors
@pytest.mark.parametrize("orientation", ["", "EXIF", "upright"])
def test_another_orientation_is_refused_before_a_file_is_blamed(tmp_path, folder, orientation):
    files = datasets.load(str(folder)).train
    message = re.escape(f"orientation must be one of exif, stored, got {orientation!r}")
    for read in (
        lambda: images.read(files.paths[0], 8, orientation=orientation),
        lambda: memory.decode(files, 8, orientation=orientation, skip_bad=True),
        lambda: stream.batches(files.paths, [], side=8, workers=0, orientation=orientation),
    ):
        with pytest.raises(ValueError, match=message):
            read()
