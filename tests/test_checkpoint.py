import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

import alexnet_func as af
from alexnet_func import checkpoint, optim, tensorfile, train
from tests.conftest import TINY, images, tiny_loss

CONFIG = {"arch": TINY.to_json(), "epochs": 3, "lr": 0.05, "classes": ["a", "ß"]}
OPTIMIZERS = {"momentum": optim.sgd(0.05, 0.9), "none": optim.sgd(0.05), "adamw": optim.adamw(1e-3)}


def trained(optimizer, steps=2):
    key = af.random.key(9)
    state = train.create_state(af.init(key, TINY), optimizer, key=key)
    step = train.make_step(tiny_loss, optimizer)
    for i in range(steps):
        state, _ = step(state, images(TINY, 4, seed=i))
    return state


@pytest.fixture(scope="module")
def state():
    return trained(OPTIMIZERS["momentum"])


@pytest.fixture
def saved(state, tmp_path):
    checkpoint.save(tmp_path / "checkpoint.safetensors", state, CONFIG)
    return tmp_path / "checkpoint.safetensors"


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_state_comes_back_bit_for_bit_and_goes_on_so(optimizer, tmp_path):
    state = trained(optimizer)
    checkpoint.save(tmp_path / "c", state, CONFIG)
    again, config = checkpoint.load(tmp_path / "c")
    assert config == CONFIG
    assert pytree.tree_structure(again._asdict()) == pytree.tree_structure(state._asdict())
    step = train.make_step(tiny_loss, optimizer)
    for a, b in ((again, state), (step(again, images(TINY, 4))[0], step(state, images(TINY, 4))[0])):
        leaves = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
        assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in leaves)


def test_the_file_is_plain_safetensors_with_the_promised_names(saved, state):
    tensors = load_file(saved)
    assert torch.equal(tensors["params/features.0.weight"], state.params["features.0.weight"])
    assert torch.equal(
        tensors["opt_state/velocity/classifier.4.bias"], state.opt_state["velocity"]["classifier.4.bias"]
    )
    assert {"step", "key"} <= set(tensors)
    header = saved.read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    about = json.loads(metadata["checkpoint"])
    assert about["config"] == CONFIG
    assert len(about["sha256"]) == 64


def test_the_same_state_gives_the_same_bytes(saved, state):
    for _ in range(5):
        checkpoint.save(saved.parent / "again", state, CONFIG)
        assert (saved.parent / "again").read_bytes() == saved.read_bytes()


def test_layouts_and_dtypes_survive(state, tmp_path):
    odd = {"w": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "h": torch.randn(3).bfloat16()}
    checkpoint.save(tmp_path / "c", state._replace(params=odd), {})
    again = checkpoint.load(tmp_path / "c")[0].params
    assert all(torch.equal(again[n], t) and again[n].dtype == t.dtype for n, t in odd.items())


@pytest.mark.errors
def test_a_truncated_file_is_refused_wherever_it_ends(saved):
    whole = saved.read_bytes()
    for length in range(0, len(whole), 100):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors is truncated, altered or no checkpoint"):
            checkpoint.load(saved)


@pytest.mark.errors
def test_an_altered_byte_is_refused_wherever_it_is(saved):
    whole = saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in (*range(header), *range(header, len(whole), 97)):
        altered = bytearray(whole)
        altered[position] ^= 1
        saved.write_bytes(altered)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors "):
            checkpoint.load(saved)


@pytest.mark.errors
def test_what_is_missing_or_something_else_is_refused(state, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nothing"):
        checkpoint.load(tmp_path / "nothing")
    save_file({"a": torch.zeros(2)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="plain is no checkpoint: its header lacks the configuration"):
        checkpoint.load(tmp_path / "plain")
    torch.save(state.params, tmp_path / "pickle")
    with pytest.raises(ValueError, match="pickle is truncated, altered or no checkpoint"):
        checkpoint.load(tmp_path / "pickle")


def test_nothing_else_is_left_beside_the_checkpoint(saved):
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.errors
def test_a_full_disk_leaves_the_last_good_checkpoint(saved):
    before = saved.read_bytes()
    code = f"""
import resource, signal, sys
sys.path.insert(0, {os.getcwd()!r})
from alexnet_func import checkpoint
state, config = checkpoint.load({str(saved)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save({str(saved)!r}, state, config)
except OSError as error:
    print("refused:", error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "refused:" in run.stdout
    assert "checkpoint.safetensors could not be written" in run.stdout
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.errors
def test_a_folder_that_is_not_there(state, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        checkpoint.save(tmp_path / "nowhere" / "c", state, {})


@pytest.mark.errors
@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("step", torch.zeros(()), "step must be an int64 scalar"),
        ("step", torch.zeros(2, dtype=torch.int64), "step must be an int64 scalar"),
        ("step", torch.tensor(-5), "this state was given to a donated step before"),
        ("key", torch.zeros(2), r"key must be an int32 tensor from alexnet_func\.random\.key, got a torch\.float32"),
        ("key", torch.zeros(3, dtype=torch.int32), r"key must have shape \[2\]"),
        ("params", torch.zeros(3), "params and opt_state must be dicts of tensors by name"),
        ("params/x", torch.zeros(3, dtype=torch.int64), r"params/x must be a floating tensor, got torch\.int64"),
        ("params/x/y", torch.zeros(3), "params/x must be a floating tensor, got a dict"),
        ("params/features.0.weight/y", torch.zeros(3), r"features\.0\.weight of params/.* is a tensor"),
        ("opt_state", torch.zeros(3), "opt_state of .* is a tensor|opt_state is a dict|must be dicts"),
        ("more", torch.zeros(3), "got key, more, opt_state, params, step"),
        ("step", None, "got key, opt_state, params"),
        ("key", None, "got opt_state, params, step"),
        ("params", None, "got key, opt_state, step"),
    ],
)
def test_a_whole_file_that_holds_no_state_is_refused_by_name(saved, field, wrong, message):
    tensors, config = tensorfile.read(saved)
    kept = {name: t for name, t in tensors.items() if name != field and (field != "params" or name[:7] != "params/")}
    tensorfile.write(saved, kept if wrong is None else {**kept, field: wrong}, config)
    with pytest.raises(ValueError, match=rf"checkpoint\.safetensors does not hold a training state: .*({message})"):
        checkpoint.load(saved)


@pytest.mark.errors
def test_what_could_not_be_loaded_is_not_saved(saved, state):
    before = saved.read_bytes()
    for wrong in ({"a/b": torch.zeros(2)}, {"a": torch.zeros(2).int()}, {}):
        with pytest.raises(ValueError, match="params"):
            checkpoint.save(saved, state._replace(params=wrong), CONFIG)
    assert saved.read_bytes() == before


@pytest.mark.errors
def test_a_configuration_with_numbers_for_names_comes_back(saved, state):
    checkpoint.save(saved, state, {2: "two", 10: {3: 4, 20: 5}})
    assert checkpoint.load(saved)[1] == {"2": "two", "10": {"3": 4, "20": 5}}
