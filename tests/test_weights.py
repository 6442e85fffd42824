import argparse
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import alexnet_func as af
from alexnet_func import checkpoint, interop, optim, train, weights
from alexnet_func.arch import ALEXNET_2012, ALEXNET_CIFAR
from tests.conftest import TINY

PARAMS = af.init(af.random.key(3), TINY)
FIRST, LAST = "features.0.weight", "classifier.4.bias"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """In the place of the network that is looked for, whose files are of 240 MB."""
    monkeypatch.setattr(weights, "ALEXNET", TINY)


def module():
    return interop.to_module(PARAMS, TINY)


def example_archive():
    """As PyTorch's examples/imagenet saves AlexNet, whose features alone are wrapped."""
    model = module()
    model.features = nn.DataParallel(model.features)
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(2, 3, 15, 15)).sum().backward()
    optimizer.step()
    model.load_state_dict({k: PARAMS[k.replace("module.", "")] for k in model.state_dict()})
    state = {"epoch": 9, "arch": "alexnet", "state_dict": model.state_dict(), "best_acc1": torch.tensor(56.5)}
    return {**state, "optimizer": optimizer.state_dict(), "scheduler": {"last_epoch": 9}}


def prefixed(prefix):
    return {prefix + name: p for name, p in PARAMS.items()}


STRANGE = {
    name: p.t().contiguous().t() if p.dim() == 2 else p.flatten()[None].expand(3, -1)[1].view(p.shape)
    for name, p in PARAMS.items()
}
KINDS = {
    "state dict": (lambda: dict(PARAMS), "read 8 tensors from the state dict"),
    "module's state dict": (lambda: module().state_dict(), "read 8 tensors from the state dict"),
    "parameters": (lambda: dict(module().named_parameters()), "read 8 tensors from the state dict"),
    "parallel": (
        lambda: nn.DataParallel(module()).state_dict(),
        "read 8 tensors from the state dict, module. removed from their names",
    ),
    "example": (example_archive, "read 8 tensors from state_dict, module. removed from their names"),
    "model": (lambda: {"model": dict(PARAMS), "epoch": 3}, "read 8 tensors from model"),
    "model_state_dict": (lambda: {"model_state_dict": dict(PARAMS)}, "read 8 tensors from model_state_dict"),
    "nested": (lambda: {"state": {"net": dict(PARAMS)}}, "read 8 tensors from state.net"),
    "lightning": (
        lambda: {"state_dict": {**prefixed("model."), "loss.weight": torch.ones(5)}, "pytorch-lightning_version": "2"},
        "read 8 tensors from state_dict, model. removed from their names, 1 other left aside",
    ),
    "compiled": (
        lambda: torch.compile(module()).state_dict(),
        "read 8 tensors from the state dict, _orig_mod. removed from their names",
    ),
    "all at once": (
        lambda: {"state_dict": prefixed("net._orig_mod.module.")},
        "read 8 tensors from state_dict, net._orig_mod.module. removed from their names",
    ),
    "shared and strided": (lambda: STRANGE, "read 8 tensors from the state dict"),
}


def check_read(path, note, like=PARAMS):
    params, found = weights.read(path)
    assert found == note
    assert list(params) == list(PARAMS)
    for name, p in params.items():
        assert p.dtype == torch.float32
        assert p.is_contiguous()
        assert not p.requires_grad
        assert torch.equal(p, like[name].float())
    memory = {p.untyped_storage().data_ptr() for p in params.values()}
    assert len(memory) == len(params)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_people_save_is_read_and_said(kind, zipped, tmp_path):
    make, note = KINDS[kind]
    torch.save(make(), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    check_read(tmp_path / "w.pth", note)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_plain_safetensors_are_read_by_whatever_name(name, tmp_path):
    save_file(PARAMS, tmp_path / name)
    check_read(tmp_path / name, "read 8 tensors from the state dict")
    save_file(prefixed("module."), tmp_path / name)
    check_read(tmp_path / name, "read 8 tensors from the state dict, module. removed from their names")


def test_a_checkpoint_of_ours_is_read_by_whatever_name(tmp_path):
    state = train.create_state(PARAMS, optim.sgd(0.1, 0.9), key=af.random.key(0))
    checkpoint.save(tmp_path / "w.bin", state, {})
    check_read(tmp_path / "w.bin", "read 8 tensors from params")
    whole = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"w\.bin was altered"):
        weights.read(tmp_path / "w.bin")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_other_precisions_become_float32_and_that_is_said(dtype, save, tmp_path):
    other = {name: p.to(dtype) for name, p in PARAMS.items()}
    save(other, tmp_path / "w")
    name = str(dtype).removeprefix("torch.")
    check_read(tmp_path / "w", f"read 8 tensors from the state dict, {name} to float32", other)


def changed(name, value):
    return {**PARAMS, name: value}


REFUSED = {
    "two": ({"model": dict(PARAMS), "ema": dict(PARAMS)}, r"holds 2 networks \(model, ema\): save the state dict of"),
    "twice": ({**PARAMS, **prefixed("module.")}, "holds 2 networks"),
    "in and out": (changed("features.module.0.weight", torch.ones(1)), "unexpected features.module.0.weight"),
    "none": ({"epoch": 3}, r"missing features\.0\.weight .*it holds no tensors by name"),
    "empty": ({}, r"missing features\.0\.weight"),
    "another": ({"conv1.weight": torch.ones(2), "fc.bias": torch.ones(3)}, r"it holds conv1\.weight, fc\.bias \(2"),
    "colours": ({"\x1b[31mred\n\udc80": torch.ones(2)}, r"it holds \\x1b\[31mred\\n\\udc80 \(1 tensors\)"),
    "less": ({FIRST: PARAMS[FIRST]}, r"missing features\.0\.bias"),
    "more": (changed("features.1.running_mean", torch.ones(8)), r"unexpected features\.1\.running_mean \[8\]"),
    "shape": (changed(LAST, torch.ones(5, 1)), r"classifier\.4\.bias must be \[5\], got \[5, 1\]"),
    "scalar": (changed(LAST, torch.tensor(1.0)), r"classifier\.4\.bias must be \[5\], got \[\]"),
    "huge": (changed(LAST, torch.ones(1).expand(2**50)), r"classifier\.4\.bias must be \[5\]"),
    "list": ([1, 2], "holds a list, not a state dict"),
    "tensor": (torch.ones(2), "holds a Tensor, not a state dict"),
    "int8": (changed(LAST, torch.ones(5).to(torch.int8)), r"classifier\.4\.bias must be a plain tensor .* and is int8"),
    "bool": (changed(LAST, torch.ones(5).bool()), "and is bool"),
    "complex": (changed(LAST, torch.ones(5) + 0j), "and is complex64"),
    "float8": (changed(LAST, torch.ones(5).to(torch.float8_e4m3fn)), "and is float8_e4m3fn"),
    "sparse": (changed(LAST, torch.ones(5).to_sparse()), "and is sparse"),
    "meta": (changed(LAST, torch.ones(5, device="meta")), "and is without values"),
    "not a tensor": (changed(LAST, [1.0] * 5), r"missing classifier\.4\.bias"),
    "numbers for names": (dict(enumerate(PARAMS.values())), r"missing features\.0\.weight"),
    "another of ours": (af.init(af.random.key(0), ALEXNET_CIFAR), "weights of alexnet_cifar: .*give the run"),
    "numpy": ({"model": PARAMS, "best": np.float64(3)}, "pickles numpy.*scalar; where it was made, torch.save"),
    "namespace": ({"model": PARAMS, "args": argparse.Namespace(lr=1)}, "pickles argparse.Namespace; where it was made"),
    "module": (
        nn.Sequential(nn.Linear(2, 2)),
        "without running code: it pickles torch.nn.modules.container.Sequential; where it was made, "
        r"torch.save\(model.state_dict\(\), 'weights.pth'\) writes",
    ),
}


@pytest.mark.errors
@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_refused_in_one_plain_line(kind, tmp_path):
    value, message = REFUSED[kind]
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message) as raised:
        weights.read(tmp_path / "w.pth")
    check_plain(str(raised.value))
    assert str(tmp_path / "w.pth") in str(raised.value)


def check_plain(message):
    assert message.isprintable()
    assert "`" not in message
    assert len(message) < 400


@pytest.mark.errors
@pytest.mark.filterwarnings("ignore")  # torch's, as it makes them
def test_quantised_nested_and_scripted_ones_are_refused(tmp_path):
    torch.save(changed(LAST, torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8)), tmp_path / "q")
    with pytest.raises(ValueError, match=r"classifier\.4\.bias must be a plain tensor .* and is quantised"):
        weights.read(tmp_path / "q")
    torch.save(changed(LAST, torch.nested.nested_tensor([torch.ones(5)])), tmp_path / "n")
    with pytest.raises(ValueError, match=r"classifier\.4\.bias must be a plain tensor .* and is nested"):
        weights.read(tmp_path / "n")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "s")
    with pytest.raises(ValueError, match=r"is a TorchScript module: torch\.save\(torch\.jit\.load"):
        weights.read(tmp_path / "s")


@pytest.mark.errors
def test_networks_whose_names_and_shapes_two_variants_share_are_named(tmp_path):
    """Of shapes alone: their values would be 240 MB."""
    shapes = af.arch.param_shapes(ALEXNET_2012.replace(num_classes=7))
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, tmp_path / "w")
    with pytest.raises(ValueError, match="weights of alexnet_2012 or caffenet"):
        weights.read(tmp_path / "w")


@pytest.mark.errors
def test_no_file_and_other_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing"):
        weights.read(tmp_path / "nothing")
    for content in (b"", b"text", b"\x80\x02", b"PK\x03\x04", b"x" * 8 + b"{", bytes(100), b"\x80\x04\x95" + bytes(50)):
        (tmp_path / "w").write_bytes(content)
        with pytest.raises(ValueError, match=r"/w is ") as raised:
            weights.read(tmp_path / "w")
        check_plain(str(raised.value))
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match="w may not be read by this user"):
        weights.read(tmp_path / "w")


def refuse(path, mode):
    raise PermissionError


def damaged(whole, r):
    content = bytearray(whole)
    match r.randrange(4):
        case 0:
            return content[: r.randrange(len(content))]
        case 1:
            for _ in range(r.choice((1, 3))):
                content[r.randrange(len(content))] ^= 1 << r.randrange(8)
        case 2:  # where the names and the numbers are
            start = whole.index(b"data.pkl") if b"data.pkl" in whole else 0
            content[start + r.randrange(min(2000, len(content) - start))] = r.randrange(256)
        case 3:
            at = r.randrange(len(content))
            content[at : at + r.randrange(1, 600)] = bytes(r.randrange(600))
    return content


@pytest.mark.errors
@pytest.mark.parametrize("count", [60, pytest.param(800, marks=pytest.mark.slow)])
def test_damaged_archives_are_refused_or_read_right(count, tmp_path):
    r = random.Random(count)
    wholes = []
    for kind in ("state dict", "example", "lightning"):
        torch.save(KINDS[kind][0](), tmp_path / "w")
        wholes.append((tmp_path / "w").read_bytes())
    refused = []
    for i in range(count):
        (tmp_path / "w").write_bytes(damaged(wholes[i % 3], r))
        try:
            params = weights.read(tmp_path / "w").params
        except ValueError as error:
            refused.append(str(error))
        else:
            assert all(torch.equal(params[name], p) for name, p in PARAMS.items())
    assert len(refused) > count / 2
    for message in refused:
        check_plain(message)


@pytest.mark.errors
@pytest.mark.parametrize("count", [60, pytest.param(800, marks=pytest.mark.slow)])
@pytest.mark.parametrize("save", [save_file, lambda v, path: torch.save(v, path, _use_new_zipfile_serialization=False)])
def test_of_formats_without_checksums_damaged_files_are_refused_or_whole_networks(save, count, tmp_path):
    r = random.Random(count)
    save(PARAMS, tmp_path / "w")
    whole, refused = (tmp_path / "w").read_bytes(), []
    for _ in range(count):
        (tmp_path / "w").write_bytes(damaged(whole, r))
        try:
            params = weights.read(tmp_path / "w").params
        except ValueError as error:
            refused.append(str(error))
        else:
            assert af.checks.shapes_of(params) == af.arch.param_shapes(TINY)
            assert {p.dtype for p in params.values()} == {torch.float32}
    assert refused
    assert all(message.startswith(f"{tmp_path}/w") and message.isprintable() for message in refused)
