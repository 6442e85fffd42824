import itertools
import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from alexnet_func import tensorfile

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor([1, 2, 3]), "none": torch.empty(0, 2)}


def test_tensors_and_configuration_come_back_in_their_order_both_ways(tmp_path):
    config = {"x": [1, None, "ß \udc80"], "y": {"z": 0.1}}
    for write, read in (
        (tensorfile.write, tensorfile.read),
        (tensorfile.write_mapped, tensorfile.mapped),
    ):
        write(tmp_path / "f", TENSORS, config)
        tensors, again = read(tmp_path / "f")
        assert again == config
        assert list(tensors) == list(TENSORS)
        assert all(torch.equal(tensors[name], t) and tensors[name].dtype == t.dtype for name, t in TENSORS.items())
        assert set(load_file(tmp_path / "f")) == set(TENSORS)
        assert tensorfile.is_one(tmp_path / "f")


def test_tensors_that_share_memory_are_written_each(tmp_path):
    a = torch.arange(6.0)
    tensorfile.write(tmp_path / "f", {"a": a, "same": a, "part": a[2:], "turned": a.view(2, 3).t()}, {})
    tensors, _ = tensorfile.read(tmp_path / "f")
    assert [tensors[name].tolist() for name in ("same", "part")] == [a.tolist(), a[2:].tolist()]
    assert torch.equal(tensors["turned"], a.view(2, 3).t())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.floats(allow_nan=False), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.mark.errors
@given(st.dictionaries(st.text() | st.integers(), JSON, max_size=4))
@settings(max_examples=25)
def test_whatever_json_takes_is_read_as_json_gives_it(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("f") / "f"
    tensorfile.write(path, {}, config)
    assert tensorfile.read(path)[1] == json.loads(json.dumps(config))


@pytest.mark.errors
def test_each_reader_wants_its_own_kind_and_names_it(tmp_path):
    tensorfile.write(tmp_path / "whole", TENSORS, {})
    tensorfile.write_mapped(tmp_path / "mapped", TENSORS, {})
    save_file(TENSORS, tmp_path / "plain")
    assert not tensorfile.is_one(tmp_path / "plain")
    assert not tensorfile.is_one(tmp_path / "nothing")
    for read, name in itertools.product((tensorfile.read, tensorfile.mapped), ("whole", "mapped", "plain")):
        if read.__name__ != name and (read, name) != (tensorfile.read, "whole"):
            with pytest.raises(ValueError, match=f"{name} is no shard: its header lacks"):
                read(tmp_path / name, "shard")
    with pytest.raises(FileNotFoundError, match=r"there is no cache .*nothing"):
        tensorfile.read(tmp_path / "nothing", "cache")
    with pytest.raises(FileNotFoundError, match="there is no tensor file"):
        tensorfile.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match=r"there is no tensor file .*pipe"):
        tensorfile.mapped(tmp_path / "pipe")


@pytest.mark.errors
def test_a_file_that_may_not_be_read_is_told_as_that(tmp_path, monkeypatch):
    tensorfile.write(tmp_path / "f", TENSORS, {})
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may read anything
    with pytest.raises(PermissionError, match="f may not be read by this user"):
        tensorfile.read(tmp_path / "f")


@pytest.mark.errors
def test_every_byte_of_a_mapped_files_header_counts(tmp_path):
    tensorfile.write_mapped(tmp_path / "f", TENSORS, {"count": 12, "side": 8})
    whole, messages = (tmp_path / "f").read_bytes(), []
    for position in range(8 + int.from_bytes(whole[:8], "little")):
        for bit in (0, 5):
            altered = bytearray(whole)
            altered[position] ^= 1 << bit
            (tmp_path / "f").write_bytes(altered)
            try:
                tensors, config = tensorfile.mapped(tmp_path / "f")
            except ValueError as error:
                messages.append(str(error))
                continue
            assert config == {"count": 12, "side": 8}
            assert all(torch.equal(tensors[name], t) for name, t in TENSORS.items())
    assert messages
    assert all(str(tmp_path / "f") in message for message in messages)


@pytest.mark.errors
@pytest.mark.parametrize(
    "entry",
    [
        *("[]", "3", "null", "{", "[" * 100_000, '{"names": 5}', '{"names": [["a"]]}', '{"names": [3]}'),
        *('{"names": ["b"]}', '{"config": [], "names": [], "sha256": ""}', '{"config": {}, "names": [], "sha256": 3}'),
    ],
)
def test_an_entry_that_someone_else_wrote_is_refused(tmp_path, entry):
    save_file({"a": torch.zeros(2)}, tmp_path / "f", metadata={"checkpoint": entry})
    with pytest.raises(ValueError, match=r"f (is|was) "):
        tensorfile.read(tmp_path / "f")
