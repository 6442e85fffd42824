"""Memory, stream and shards are one protocol: the same images for the same indices."""

import pytest
import torch

from alexnet_func import machine
from alexnet_func.data import datasets, prepare, preprocess, sources

CPU = torch.device("cpu")
ORDERS = torch.tensor([3, 0, 5, 1, 1, 2, 4]).split(3)


@pytest.fixture
def opened(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD", 4)
    monkeypatch.setattr(sources, "_READ", 2)
    files = datasets.load(str(folder)).train
    prepare.prepare(datasets.load(str(folder)), tmp_path / "shards", side=8)
    prepared = datasets.load(str(tmp_path / "shards")).train
    how = sources.Reading(CPU, workers=0, stream=False)
    return {
        "memory": sources.open_split(files, 8, how, "train"),
        "stream": sources.open_split(files, 8, how._replace(stream=True), "train"),
        "shards in memory": sources.open_split(prepared, 8, how, "train"),
        "shards": sources.open_split(prepared, 8, how._replace(stream=True), "train"),
    }


def test_every_source_gives_the_same(opened):
    kinds = {name: type(source).__name__ for name, source in opened.items()}
    assert kinds == {"memory": "InMemory", "stream": "Streamed", "shards in memory": "InMemory", "shards": "Mapped"}
    expected = [images for _, images in opened["memory"].fetch(ORDERS)]
    for source in opened.values():
        assert isinstance(source, sources.Source)
        assert (source.side, source.unreadable, source.labels.tolist()) == (8, [], [0, 0, 0, 1, 1, 1])
        fetched = list(source.fetch(iter(ORDERS)))
        assert all(torch.equal(index, order) for (index, _), order in zip(fetched, ORDERS, strict=True))
        assert all(torch.equal(images, e) for (_, images), e in zip(fetched, expected, strict=True))
        assert torch.equal(preprocess.sample(source), preprocess.sample(opened["memory"]))


def test_shards_that_do_not_fit_are_read_as_they_are_asked_for(folder, tmp_path, monkeypatch):
    prepare.prepare(datasets.load(str(folder)), tmp_path / "shards", side=8)
    prepared = datasets.load(str(tmp_path / "shards")).train
    whole = 6 * 3 * 8**2
    for memory, kind in ((4 * whole, "InMemory"), (4 * whole - 1, "Mapped")):
        monkeypatch.setattr(machine, "memory", lambda memory=memory: memory)
        assert type(sources.open_split(prepared, 8, sources.Reading(CPU), "train")).__name__ == kind


def test_some_of_the_images_of_shards_are_those_in_memory_too(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD", 4)
    prepare.prepare(datasets.load(str(folder)), tmp_path / "shards", side=8)
    some = datasets.load(str(tmp_path / "shards")).train.take(torch.tensor([5, 0, 3]))
    order = [torch.tensor([2, 0, 1])]
    found = [sources.open_split(some, 8, sources.Reading(CPU, stream=stream), "train") for stream in (False, True)]
    ((index, pixels),), ((same, expected),) = (list(source.fetch(order)) for source in found)
    assert torch.equal(index, same)
    assert torch.equal(pixels, expected)


def test_an_altered_image_of_shards_is_told_when_it_is_read(folder, tmp_path):
    prepare.prepare(datasets.load(str(folder)), tmp_path / "shards", side=8)
    prepared = datasets.load(str(tmp_path / "shards")).train
    (file,) = (tmp_path / "shards" / "train").glob("*.safetensors")
    contents = bytearray(file.read_bytes())
    contents[contents.index(prepared.pixels[0][4].numpy().tobytes())] ^= 1
    file.write_bytes(contents)
    altered, told = datasets.load(str(tmp_path / "shards")).train, "was altered: image 4 does not have its CRC-32"
    with pytest.raises(ValueError, match=told):
        sources.open_split(altered, 8, sources.Reading(CPU), "train")
    mapped = sources.open_split(altered, 8, sources.Reading(CPU, stream=True), "train")
    with pytest.raises(ValueError, match=told):
        list(mapped.fetch(ORDERS))


def test_a_source_is_frozen(opened):
    for source in opened.values():
        with pytest.raises(AttributeError):
            source.labels = None


@pytest.mark.errors
@pytest.mark.parametrize("stream", [False, True])
def test_an_unreadable_image_is_missing_from_its_batch_whichever_way(folder, stream):
    files = datasets.load(str(folder)).train
    files.paths[4].write_bytes(b"")
    told = []
    how = sources.Reading(CPU, workers=0, stream=stream, tell=told.append)
    with pytest.raises(ValueError, match=r"b/1\.png is not a readable image.*; --skip-bad-images leaves"):
        list(sources.open_split(files, 8, how, "train").fetch(ORDERS))
    source = sources.open_split(files, 8, how._replace(skip_bad=True), "train")
    fetched = list(source.fetch([torch.tensor([5, 4, 3]), torch.tensor([0])]))
    assert [index.tolist() for index, _ in fetched] == [[5, 3], [0]]
    assert [len(images) for _, images in fetched] == [2, 1]
    assert len(source.labels) == 6
    assert len(told) == len(source.unreadable) == 1
    (index, pixels), _ = source.fetch([torch.tensor([4]), torch.tensor([0])])
    assert index.tolist() == []
    assert pixels.shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match=r"none of the images of a batch is readable: .*1\.png"):
        sources.check_any(0, source, "a batch")


@pytest.mark.parametrize(("ranks", "spare", "kind"), [(1, 0, "InMemory"), (1, -1, "Streamed"), (2, 0, "Streamed")])
def test_what_takes_more_than_a_quarter_of_a_ranks_memory_is_streamed(folder, monkeypatch, ranks, spare, kind):
    monkeypatch.setattr(machine, "memory", lambda: 4 * 6 * 3 * 8 * 8 + spare)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    files = datasets.load(str(folder)).train
    assert type(sources.open_split(files, 8, sources.Reading(CPU), "train")).__name__ == kind


@pytest.mark.parametrize(
    ("few", "ranks", "given", "workers"), [(6, 1, None, 0), (5, 1, None, 6), (5, 4, None, 1), (5, 1, 3, 3)]
)
def test_a_stream_has_a_worker_a_processor_of_its_rank(folder, monkeypatch, few, ranks, given, workers):
    monkeypatch.setattr(machine, "processors", lambda: 6)
    monkeypatch.setattr(sources, "_FEW", few)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    files = datasets.load(str(folder)).train
    how = sources.Reading(CPU, stream=True, workers=given)
    assert sources.open_split(files, 8, how, "train").workers == workers


@pytest.mark.errors
def test_only_an_unreadable_image_is_told_how_to_be_left_out(folder):
    files = datasets.load(str(folder)).train
    for how, side in ((sources.Reading(CPU, orientation="EXIF"), 8), (sources.Reading(CPU), 4096)):
        with pytest.raises(ValueError, match=r"(one of exif, stored, got 'EXIF'|1\.\.2048 pixels, got 4096)$"):
            sources.open_split(files, side, how, "train")


@pytest.mark.errors
def test_another_size_is_refused():
    test = datasets.load("digits").test
    with pytest.raises(ValueError, match="the test images are 32x32, and the network needs 256x256"):
        sources.open_split(test, 256, sources.Reading(CPU), "test")
