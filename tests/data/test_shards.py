import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_func.data import datasets, memory, prepare, shards


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "SHARD", 2)


@pytest.fixture
def prepared(folder, tmp_path, small_shards):
    prepare.prepare(datasets.load(str(folder)), tmp_path / "shards", side=8)
    return tmp_path / "shards"


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_shards_hold_what_the_files_hold_with_their_labels(folder, prepared):
    source, loaded = datasets.load(str(folder)), datasets.load(str(prepared))
    assert loaded.classes == source.classes
    for split, files in zip(loaded[:2], source[:2], strict=True):
        expected = memory.decode(files, 8).split
        assert torch.equal(split.labels, expected.labels)
        order = torch.tensor([4, 0, 5, 5])
        assert torch.equal(shards.read(split, order), expected.images[order])


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_batches_come_in_the_order_asked_for(prepared, count):
    split = datasets.load(str(prepared)).train
    orders = [torch.tensor([i % 6, (i + 2) % 6]) for i in range(count)]
    found = list(shards.batches(split, orders))
    assert len(found) == count
    for order, (index, images) in zip(orders, found, strict=True):
        assert torch.equal(index, order)
        assert torch.equal(images, shards.read(split, order))


def test_orders_are_asked_for_only_a_little_ahead(prepared):
    asked = []

    def endless():
        while True:
            asked.append(torch.tensor([0]))
            yield asked[-1]

    found = shards.batches(datasets.load(str(prepared)).train, endless())
    for _ in range(3):
        next(found)
    found.close()
    assert len(asked) <= 6


def test_preparing_again_keeps_whole_shards_and_mends_others(folder, prepared):
    before = contents(prepared)
    assert sorted(before) == ["manifest.json"] + [
        f"{s}/0000{i}.safetensors" for s in ("test", "train") for i in (0, 1, 2)
    ]
    untouched = (prepared / "train/00000.safetensors").stat().st_mtime_ns
    (prepared / "train/00001.safetensors").write_bytes(before["train/00001.safetensors"][:-5])
    for name, position in (("test/00000.safetensors", -1), ("test/00001.safetensors", -390)):  # of a pixel, of a label
        altered = bytearray(before[name])
        altered[position] ^= 1
        (prepared / name).write_bytes(altered)
    (prepared / "test/00002.safetensors").unlink()
    (prepared / "manifest.json").unlink()
    prepare.prepare(datasets.load(str(folder)), prepared, side=8)
    assert contents(prepared) == before
    assert (prepared / "train/00000.safetensors").stat().st_mtime_ns == untouched


def test_what_was_loaded_before_keeps_its_images_and_labels(folder, prepared):
    split = datasets.load(str(prepared)).train
    before = shards.read(split, torch.arange(6))
    time.sleep(0.01)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "train/a/0.png")
    prepare.prepare(datasets.load(str(folder)), prepared, side=8)
    assert torch.equal(shards.read(split, torch.arange(6)), before)
    assert not torch.equal(shards.read(datasets.load(str(prepared)).train, torch.arange(6)), before)


def test_shards_of_two_preparations_are_never_listed_together(folder, prepared):
    time.sleep(0.01)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "train/a/0.png")
    (folder / "train/b/0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b/0\.png"):
        prepare.prepare(datasets.load(str(folder)), prepared, side=8)
    assert not (prepared / "manifest.json").exists()


def test_a_changed_image_is_prepared_anew(folder, prepared):
    time.sleep(0.01)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "train/a/0.png")
    prepare.prepare(datasets.load(str(folder)), prepared, side=8)
    images = shards.read(datasets.load(str(prepared)).train, torch.tensor([0]))
    assert images[0, :, 0, 0].tolist() == [1, 2, 3]


def test_bad_images_are_left_out_on_request(folder, tmp_path, small_shards):
    for name in ("0", "1"):
        (folder / f"train/a/{name}.png").write_bytes(b"no image")
    result = prepare.prepare(datasets.load(str(folder)), tmp_path / "s", side=8, skip_bad=True)
    assert result.counts == {"train": 4, "test": 6}
    assert [reason.split(" is not")[0].rsplit("/", 1)[1] for reason in result.unreadable] == ["0.png", "1.png"]
    assert datasets.load(str(tmp_path / "s")).train.labels.tolist() == [0, 1, 1, 1]


KILLED = """
import sys
from pathlib import Path
from alexnet_func.data import datasets, prepare
prepare.SHARD = 16
print("go", flush=True)
prepare.prepare(datasets.load(sys.argv[1]), Path(sys.argv[2]), side=64)
"""


def test_killed_at_any_moment_and_run_again_it_ends_with_the_same_bytes(tmp_path):
    pixels = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 20)):
        for name in ("a", "b"):
            (tmp_path / "src" / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(pixels.integers(256, size=(90, 120, 3), dtype=np.uint8))
                image.save(tmp_path / "src" / split / name / f"{i}.jpg")
    source = datasets.load(str(tmp_path / "src"))
    before, prepare.SHARD = prepare.SHARD, 16
    try:
        prepare.prepare(source, tmp_path / "whole", side=64)
        for delay in (0.02, 0.07, 0.2):
            command = [sys.executable, "-c", KILLED, str(tmp_path / "src"), str(tmp_path / "killed")]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        prepare.prepare(source, tmp_path / "killed", side=64)
    finally:
        prepare.SHARD = before
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.errors
def test_a_truncated_missing_or_foreign_shard_is_told_at_once(prepared):
    shard = prepared / "train/00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"train/00001\.safetensors is truncated, altered"):
        datasets.load(str(prepared))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.safetensors"):
        datasets.load(str(prepared))
    shard.write_bytes(whole)
    for manifest in ("{}", '{"side": 8, "classes": [], "splits": {}}', "no JSON"):
        (prepared / "manifest.json").write_text(manifest)
        with pytest.raises(ValueError, match="is not a manifest that alexnet prepare wrote"):
            datasets.load(str(prepared))


@pytest.mark.errors
def test_an_altered_image_or_label_is_told_when_it_is_read(prepared):
    shard = prepared / "train/00001.safetensors"
    content = bytearray(shard.read_bytes())
    header = int.from_bytes(content[:8], "little")
    described = json.loads(content[8 : 8 + header])
    at = {name: 8 + header + described[name]["data_offsets"][0] for name in ("images", "labels")}
    content[at["images"]] ^= 1
    shard.write_bytes(content)
    split = datasets.load(str(prepared)).train
    shards.read(split, torch.tensor([0, 1, 3, 4, 5]))
    with pytest.raises(ValueError, match=r"00001\.safetensors was altered: image 0"):
        shards.read(split, torch.tensor([2]))
    content[at["labels"]] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"00001\.safetensors was altered: its labels"):
        datasets.load(str(prepared))


@pytest.mark.errors
def test_a_full_disk_is_told_and_what_was_written_stays(folder, prepared, tmp_path, monkeypatch):
    before = contents(prepared)
    (prepared / "train/00001.safetensors").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"00001\.safetensors") as raised:
            prepare.prepare(datasets.load(str(folder)), prepared, side=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.errno in (None, errno.EFBIG, errno.ENOSPC)
    assert not list(prepared.rglob("*.tmp"))
    prepare.prepare(datasets.load(str(folder)), prepared, side=8)
    assert contents(prepared) == before


@pytest.mark.errors
def test_bad_images_images_in_memory_and_no_workers_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="only image files are prepared"):
        prepare.prepare(datasets.load("digits"), tmp_path / "s")
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        prepare.prepare(datasets.load(str(folder)), tmp_path / "s", workers=0)
    for file in sorted((folder / "val").rglob("*.png")):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"val/a/0\.png is not a readable image"):
        prepare.prepare(datasets.load(str(folder)), tmp_path / "s", side=8)
    with pytest.raises(ValueError, match=r"none of the images of a split is readable: .*val/a/0\.png"):
        prepare.prepare(datasets.load(str(folder)), tmp_path / "s", side=8, skip_bad=True)
    assert not os.path.exists(tmp_path / "s" / "manifest.json")
