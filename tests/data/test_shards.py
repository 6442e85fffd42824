import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_func import files, tensorfile
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
    for split, listed in zip(loaded[:2], source[:2], strict=True):
        expected = memory.decode(listed, 8).split
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
    with pytest.raises(FileNotFoundError, match=r"there is no shard .*00001\.safetensors: prepare it again"):
        datasets.load(str(prepared))
    shutil.copy(prepared / "train/00002.safetensors", shard)
    with pytest.raises(ValueError, match=r"00001\.safetensors is not the shard that .*manifest\.json lists"):
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
    assert not list(prepared.rglob(".*"))
    prepare.prepare(datasets.load(str(folder)), prepared, side=8)
    assert contents(prepared) == before


def test_a_test_split_alone_is_prepared_without_the_images_that_are_bad(folder, tmp_path):
    shutil.rmtree(folder / "train")
    (folder / "val" / "a" / "0.png").write_bytes(b"no image")
    found = prepare.prepare(datasets.load(str(folder)), tmp_path / "s", side=8, skip_bad=True)
    assert (found.counts, len(found.unreadable)) == ({"train": 0, "test": 5}, 1)
    loaded = datasets.load(str(tmp_path / "s"))
    assert (len(loaded.train.labels), loaded.test.labels.tolist()) == (0, [0, 0, 1, 1, 1])


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


def whole_or_refused(path, expected):
    """Whether everything that can be read is exactly what was written."""
    try:
        loaded = datasets.load(str(path))
        found = [(shards.read(split, torch.arange(len(split.labels))), split.labels) for split in loaded[:2]]
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    else:
        message = None
    if message is not None:
        assert str(path) in message
        return False
    assert loaded.classes == ("a", "b")
    for (images, labels), (expected_images, expected_labels) in zip(found, expected, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)
    return True


def altered(content, r):
    content = bytearray(content)
    match r.randrange(4):
        case 0:
            return content[: r.randrange(len(content))]
        case 1:
            content[r.randrange(len(content))] = r.choice(b"0123456789")
        case _:
            for _ in range(r.choice((1, 4))):
                content[r.randrange(len(content))] ^= 1 << r.randrange(8)
    return content


@pytest.mark.errors
@pytest.mark.parametrize("file", ["manifest.json", "train/00001.safetensors", "test/00000.safetensors"])
@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_whatever_is_altered_is_told_and_mended_by_the_same_call(folder, prepared, file, count):
    source = datasets.load(str(folder))
    expected = [memory.decode(part, 8).split for part in source[:2]]
    before, r = contents(prepared), random.Random(count)
    refused = 0
    for _ in range(count):
        (prepared / file).write_bytes(altered(before[file], r))
        refused += not whole_or_refused(prepared, expected)
        prepare.prepare(source, prepared, side=8)
        assert contents(prepared) == before
    assert refused > count / 2


def digest_of(manifest):
    return shards._digest({name: value for name, value in manifest.items() if name != "sha256"})


@pytest.mark.errors
@pytest.mark.parametrize("named", [True, False])
def test_manifests_and_shards_that_are_whole_but_lie_are_refused(folder, prepared, named):
    """Each field left out, or of another type, with checksums that are right."""
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["sha256"] == digest_of(manifest)
    first = manifest["splits"]["train"][0]
    places = [(manifest, "side"), (manifest, "classes"), (manifest, "splits"), (manifest["splits"], "test")]
    places += [(manifest["splits"], "train"), *((first, name) for name in first)]
    for place, name in places:
        for wrong in (None, 3, "x", [], {}, [3], {"a": 1}, 0.5):
            kept = place.pop(name)
            if named:
                place[name] = wrong
            (prepared / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest_of(manifest)}))
            place[name] = kept
            try:
                datasets.load(str(prepared))
            except (ValueError, FileNotFoundError):
                continue
            assert name in ("train", "test")  # which may be empty
            assert wrong == []
    prepare.prepare(datasets.load(str(folder)), prepared, side=8)
    tensors, config = tensorfile.mapped(prepared / "train/00000.safetensors")
    for name in config:
        for wrong in (None, 5, "x", [], {}, [3], 2.0):
            lying = {key: value for key, value in config.items() if key != name} | ({name: wrong} if named else {})
            if lying == config:
                continue
            tensorfile.write_mapped(prepared / "train/00000.safetensors", tensors, lying)
            with pytest.raises(ValueError, match=r"00000\.safetensors (is|was) "):
                datasets.load(str(prepared))
    for name, wrong in (("images", torch.zeros(2, 3, 8, 8)), ("labels", torch.zeros(2)), ("images", torch.tensor(1))):
        tensorfile.write_mapped(prepared / "train/00000.safetensors", {**tensors, name: wrong}, config)
        with pytest.raises(ValueError, match=r"00000\.safetensors is no shard"):
            datasets.load(str(prepared))


@pytest.mark.errors
def test_a_manifest_of_an_earlier_version_is_told_and_made_anew(folder, prepared):
    before = contents(prepared)
    manifest = json.loads(before["manifest.json"])
    del manifest["sha256"]
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json is of an earlier version, .*: prepare it again"):
        datasets.load(str(prepared))
    for split in ("train", "test"):
        for shard in (prepared / split).iterdir():
            shard.write_bytes(b"as an earlier version wrote it")
    prepare.prepare(datasets.load(str(folder)), prepared, side=8)
    assert contents(prepared) == before


FOREIGN = {
    "manifest.json": '{"name": "web", "icons": [], "side": 8}',
    "train/00000.safetensors": "of a language model",
    "train/cat/0.jpg": "a photograph",
    "train/model.safetensors": "weights",
    "notes.txt": "notes",
    "train": "a file",
    "manifest.json/a": "in a folder of that name",
}


@pytest.mark.errors
@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("beside", [False, True])
def test_what_prepare_has_not_written_is_not_replaced(folder, tmp_path, small_shards, name, beside):
    target = tmp_path / "there"
    if beside and name not in ("manifest.json", "train", "train/00000.safetensors", "manifest.json/a"):
        prepare.prepare(datasets.load(str(folder)), target, side=8)
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_text(FOREIGN[name])
    before = contents(target)
    with pytest.raises(ValueError, match=re.escape(str(target / name.removesuffix("/0.jpg").removesuffix("/a")))):
        prepare.prepare(datasets.load(str(folder)), target, side=8)
    assert contents(target) == before


@pytest.mark.errors
def test_the_source_itself_and_a_file_are_no_place_for_shards(folder, tmp_path):
    before = contents(folder)
    with pytest.raises(ValueError, match=r"/val is not of alexnet prepare: choose a directory that holds nothing else"):
        prepare.prepare(datasets.load(str(folder)), folder, side=8)
    assert contents(folder) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, and shards need a directory"):
        prepare.prepare(datasets.load(str(folder)), tmp_path / "file", side=8)


def test_hidden_files_and_what_a_killed_writer_left_are_no_obstacle(folder, tmp_path, small_shards):
    left = [tmp_path / "s" / name / ".writing-01234567" for name in (".", "train", "test")]
    for place in left:
        place.mkdir(parents=True)
        (place / "writer").write_text("")
        (place / "contents").write_text("half")
    (tmp_path / "s" / ".DS_Store").write_text("")
    prepare.prepare(datasets.load(str(folder)), tmp_path / "s", side=8)
    assert not any(place.exists() for place in left)
    assert [name for name in sorted(contents(tmp_path / "s")) if name[0] == "."] == [".DS_Store"]


@pytest.mark.errors
def test_one_at_a_time(folder, prepared):
    with files.locked(prepared), pytest.raises(BlockingIOError, match="shards is in use by another process"):
        prepare.prepare(datasets.load(str(folder)), prepared, side=8)


def test_shards_may_be_read_by_whom_the_umask_lets(prepared):
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in prepared.rglob("*.*")} == {0o666 & ~umask}
