import os

import pytest
import torch

from alexnet_func import tensorfile
from alexnet_func.data import datasets, images, memory


@pytest.fixture
def files(folder):
    return datasets.load(str(folder)).train


def cut_short(path):
    path.write_bytes(path.read_bytes()[:40])


def test_decoding_reads_every_file_in_order(files):
    (pixels, labels), unreadable, _ = memory.decode(files, 8)
    assert torch.equal(pixels, torch.stack([images.read(path, 8) for path in files.paths]))
    assert pixels[:, 0, 0, 0].tolist() == [0, 0, 0, 100, 100, 100]
    assert torch.equal(labels, files.labels)
    assert unreadable == ()


@pytest.mark.errors
def test_an_unreadable_file_stops_or_is_left_out(files):
    cut_short(files.paths[1])
    with pytest.raises(ValueError, match=r"train/a/1\.png is not a readable image"):
        memory.decode(files, 8)
    (pixels, labels), unreadable, _ = memory.decode(files, 8, skip_bad=True)
    assert pixels[:, 1, 0, 0].tolist() == [0, 2, 0, 1, 2]
    assert labels.tolist() == [0, 0, 1, 1, 1]
    assert len(unreadable) == 1
    for path in files.paths:
        cut_short(path)
    with pytest.raises(ValueError, match="none of 6 images is readable: "):
        memory.decode(files, 8, skip_bad=True)


def test_a_cache_is_read_while_the_files_are_the_same(files, tmp_path, monkeypatch):
    path, reads = tmp_path / "images.safetensors", []
    read = images.read
    monkeypatch.setattr(images, "read", lambda *given, **named: reads.append(given) or read(*given, **named))

    def reads_for(side=8, files=files):
        reads.clear()
        (pixels, labels), _, _ = memory.cached(path, files, side)
        assert torch.equal(pixels, torch.stack([read(path, side) for path in files.paths]))
        assert torch.equal(labels, files.labels)
        return len(reads)

    assert reads_for() == 6
    assert reads_for() == 0
    assert reads_for(side=4) == 6
    assert reads_for(side=4, files=files._replace(labels=1 - files.labels)) == 6
    os.utime(files.paths[0], ns=(1, 1))
    assert reads_for() == 6
    whole = path.read_bytes()
    for damaged in (b"", whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1]), b"not safetensors"):
        path.write_bytes(damaged)
        assert reads_for() == 6
        assert path.read_bytes() == whole


@pytest.mark.errors
def test_a_cache_does_not_hide_an_unreadable_file(files, tmp_path):
    cut_short(files.paths[4])
    path = tmp_path / "images.safetensors"
    first = memory.cached(path, files, 8, skip_bad=True)
    again = memory.cached(path, files, 8, skip_bad=True)
    assert again.unreadable == first.unreadable
    assert torch.equal(again.split.images, first.split.images)
    with pytest.raises(ValueError, match=r"b/1\.png is not a readable image"):
        memory.cached(path, files, 8)


def test_where_nothing_can_be_written_the_images_are_decoded_all_the_same(files, tmp_path, capsys):
    decoded = memory.cached(tmp_path / "missing" / "images.safetensors", files, 8)
    assert len(decoded.split.labels) == 6
    assert "the decoded images are not kept: " in capsys.readouterr().out


@pytest.mark.errors
@pytest.mark.parametrize("field", ["source", "unreadable", "images", "labels"])
def test_a_cache_that_lacks_something_or_may_not_be_read_is_written_anew(files, tmp_path, field, monkeypatch):
    path = tmp_path / "images.safetensors"
    expected = memory.cached(path, files, 8).split
    whole = path.read_bytes()
    tensors, about = tensorfile.read(path)
    for kept in (tensors, about):
        kept.pop(field, None)
    tensorfile.write(path, tensors, about)
    assert torch.equal(memory.cached(path, files, 8).split.images, expected.images)
    assert path.read_bytes() == whole
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert torch.equal(memory.cached(path, files, 8).split.images, expected.images)
