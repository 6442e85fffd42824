"""Decoding and resizing, against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet_func as af
from alexnet_func.data import images

DECODERS = {"torchcodec": images._torchcodec, "torchvision": images._torchvision, "pillow": lambda: images._by_pillow}


@pytest.fixture(params=DECODERS)
def decoder(request, monkeypatch):
    if request.param == "torchcodec":
        pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    monkeypatch.setattr(images, "decoder", lambda: (request.param, DECODERS[request.param]()))


def save_jpeg(path, mode, width, height):
    coarse = af.random.uniform(af.random.key(0), (1, 4, 9, 12))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0] * 255
    pixels = smooth.to(torch.uint8).permute(1, 2, 0).numpy()
    channels = {"L": pixels[..., 0], "RGB": pixels[..., :3], "CMYK": pixels}[mode]
    Image.fromarray(np.ascontiguousarray(channels), mode).save(path, "JPEG", quality=90)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("width", "height"), [(50, 37), (33, 64), (8, 8)])
def test_every_decoder_gives_pillows_pixels(tmp_path, decoder, mode, width, height):
    save_jpeg(tmp_path / "a.jpg", mode, width, height)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.array(image.convert("RGB"))[top : top + side, left : left + side].transpose(2, 0, 1)
    found = images.read(tmp_path / "a.jpg", side)
    assert found.is_contiguous()
    assert torch.equal(found, torch.from_numpy(expected.copy()))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (90, 61), (20, 20)])
def test_resizing_is_pillows_to_two_levels(tmp_path, width, height):
    save_jpeg(tmp_path / "a.jpg", "RGB", width, height)
    side = 64
    scale = side / min(width, height)
    extent = [max(side, round(length * scale)) for length in (width, height)]
    left, top = ((length - side) // 2 for length in extent)
    with Image.open(tmp_path / "a.jpg") as image:
        resized = np.array(image.resize(extent, Image.Resampling.BILINEAR))[top : top + side, left : left + side]
    difference = images.read(tmp_path / "a.jpg", side).numpy().astype(int) - resized.transpose(2, 0, 1)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.98])
def test_a_file_that_ends_early_is_refused_by_every_decoder(tmp_path, decoder, kept):
    path = tmp_path / "a.jpg"
    save_jpeg(path, "RGB", 200, 150)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"a\.jpg is not a readable image"):
        images.read(path, 64)


def test_the_next_best_decoder_is_taken_where_one_does_not_work(monkeypatch):
    def broken():
        raise RuntimeError("built without libjpeg")

    names = []
    for loader in (None, "_torchcodec", "_torchvision"):
        if loader is not None:
            monkeypatch.setattr(images, loader, broken)
        names.append(images.decoder.__wrapped__()[0].split()[0])
    assert names[1:] == ["torchvision", "pillow"]
    assert names[0] in ("torchcodec", "torchvision")
