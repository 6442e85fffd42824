"""Files that are no images, hold too much or are damaged: a ValueError that names them, and no warning."""

import io
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from alexnet_func.data import images, memory, prepare, quiet, stream
from alexnet_func.data.datasets import Dataset, Files

pytestmark = pytest.mark.errors


UNREADABLE = {
    "a named pipe": (os.mkfifo, "it is no file but a named pipe"),
    "a socket": (lambda path: os.mknod(path, stat.S_IFSOCK | 0o600), "it is no file but a socket"),
    "a folder": (lambda path: path.mkdir(), "it is no file but a folder"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is no file but a device"),
    "a dangling link": (lambda path: path.symlink_to("nowhere"), "its link leads nowhere"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "nothing": (lambda path: None, "there is no such file"),
    "an empty file": (lambda path: path.touch(), "it is empty"),
    "text": (lambda path: path.write_text("<html>404</html>"), "it begins as none of the formats known"),
    "HEIC": (
        lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40)),
        "it begins as HEIC does, which is not read: convert it",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_one_rule_holds_wherever_images_are_read(tmp_path, folder, kind):
    files = Files(tuple(sorted((folder / "train").rglob("*.png"))), torch.tensor([0, 0, 0, 1, 1, 1]))
    path = files.paths[4]
    path.unlink()
    make, reason = UNREADABLE[kind]
    make(path)
    message = re.escape(f"{path} is not a readable image: {reason}")
    dataset = Dataset(files, files, ("a", "b"))
    for read in (
        lambda **options: memory.decode(files, 8, **options),
        lambda **options: memory.cached(tmp_path / "cache.safetensors", files, 8, **options),
        lambda **options: prepare.prepare(dataset, tmp_path / "shards", side=8, **options),
    ):
        with pytest.raises(ValueError, match=message):
            read()
        assert re.match(message, read(skip_bad=True).unreadable[0])
    (fetched,) = stream.batches(files.paths, [torch.arange(6)], side=8, workers=0)
    assert re.match(message, fetched.unreadable[0])
    assert fetched.indices.tolist() == [0, 1, 2, 3, 5]


def test_a_cache_is_made_anew_once_a_dangling_link_leads_somewhere(tmp_path, folder):
    files = Files(tuple(sorted((folder / "train").rglob("*.png"))), torch.tensor([0, 0, 0, 1, 1, 1]))
    target = files.paths[4].rename(tmp_path / "moved.png")
    files.paths[4].symlink_to(tmp_path / "later.png")
    cache = tmp_path / "cache.safetensors"
    assert len(memory.cached(cache, files, 8, skip_bad=True).split.labels) == 5
    target.rename(tmp_path / "later.png")
    assert len(memory.cached(cache, files, 8, skip_bad=True).split.labels) == 6


def header_only_png(path, width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(13_378, 13_378), (20_000, 20_000), (100_000, 100_000)])
def test_more_pixels_than_the_limit_are_refused_by_number(tmp_path, width, height):
    header_only_png(tmp_path / "a.png", width, height)
    with pytest.raises(ValueError, match=r"a\.png is not a readable image: it has .* pixels, and 178,956,970 in all"):
        images.read(tmp_path / "a.png", 8)


def test_fewer_pixels_than_the_limit_pass_without_a_word(tmp_path, monkeypatch):
    """108 megapixels and Pillow's 89, made small: Pillow warns of what is above its limit, refuses twice as much."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (15, 10)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.read(tmp_path / "a.png", 8).shape == (3, 8, 8)
    Image.new("RGB", (15, 20)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="it has more pixels, and"):
        images.read(tmp_path / "a.png", 8)


def test_the_limit_holds_where_pillow_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    Image.new("RGB", (11, 10)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="it has 11x10 pixels, and 100 in all are the most that are read"):
        images.read(tmp_path / "a.png", 8)


@pytest.mark.parametrize(("width", "height"), [(1, 60_000), (60_000, 1)])
def test_a_picture_too_narrow_to_be_resized_is_refused(tmp_path, width, height):
    Image.new("L", (width, height)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"a\.png is not a readable image: resized from {width}x{height} it has 1?"):
        images.read(tmp_path / "a.png", 256)
    assert images.read(tmp_path / "a.png", 1).shape == (3, 1, 1)


def test_a_file_of_many_bytes_is_not_read(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # a hole: it takes no place
    with pytest.raises(ValueError, match=r"a\.jpg is not a readable image: it has 1,431,655,761 bytes, and"):
        images.read(tmp_path / "a.jpg", 8)


@pytest.mark.parametrize("side", [-1, 0, 2049, 1_000_000])
def test_sides_out_of_range_are_refused_before_anything_is_made(tmp_path, folder, side):
    files = Files(tuple(sorted((folder / "train").rglob("*.png"))), torch.tensor([0, 0, 0, 1, 1, 1]))
    dataset = Dataset(files, files, ("a", "b"))
    for refused in (
        lambda: images.read(files.paths[0], side),
        lambda: memory.decode(files, side, skip_bad=True),
        lambda: stream.batches(files.paths, [], side=side, workers=0),
        lambda: prepare.prepare(dataset, tmp_path / "shards", side=side),
    ):
        with pytest.raises(ValueError, match=rf"side must lie in 1\.\.2048 pixels, got {side}"):
            refused()
    assert not (tmp_path / "shards").exists()


def test_no_files_are_nothing_to_decode():
    with pytest.raises(ValueError, match="there are no image files to decode"):
        memory.decode(Files((), torch.empty(0, dtype=torch.int64)), 8)


def whole(kind, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


# Not JPEG in torchvision's decoder: libjpeg there writes what it corrects to the terminal, past Python.
WHOLE = {kind: whole(kind) for kind in ("PNG", "TIFF", "GIF", "BMP", "PPM", "WEBP")}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
    st.floats(0.2, 1),
)
def test_a_damaged_file_is_an_image_or_a_named_error(tmp_path, kind, changes, kept):
    data = bytearray(WHOLE[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    (tmp_path / "a").write_bytes(data[: int(kept * len(data))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = images.read_or_reason(tmp_path / "a", 8)
    if isinstance(result, str):
        assert result.startswith(f"{tmp_path / 'a'} is not a readable image: ")
        assert "\n" not in result
    else:
        assert result.shape == (3, 8, 8)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=repr)
def test_a_lack_of_memory_is_no_fault_of_the_file(tmp_path, monkeypatch, error):
    (tmp_path / "a.png").write_bytes(WHOLE["PNG"])

    def short(_image):
        raise error

    monkeypatch.setattr(images, "_pixels", short)
    with pytest.raises(type(error)):
        images.read_or_reason(tmp_path / "a.png", 8)


def warn_as(module):
    warnings.warn_explicit("corrupt", UserWarning, "file.py", 1, module=module)


def test_pillow_alone_is_muted_by_threads_that_come_and_go():
    before = list(warnings.filters)
    muted, barrier = quiet.Muted(), threading.Barrier(4)

    def work(i):
        barrier.wait()
        for _ in range(100):
            with muted:
                warn_as("PIL.TiffImagePlugin")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert warnings.filters == before
    with muted, pytest.raises(UserWarning):
        warn_as("PILs.neighbour")
    with pytest.raises(UserWarning):
        warn_as("PIL.TiffImagePlugin")
