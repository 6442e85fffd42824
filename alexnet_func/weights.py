"""Weights as people have them: what others saved of an AlexNet, as parameters of ours.

    params, note = weights.read("model_best.pth.tar")
    # note: "read 16 tensors from state_dict, module. removed from their names, float16 to float32"

A network is recognised by the names and shapes of its tensors, in whatever dict of an archive it lies and with whatever
wrappers put before and between the names. No pickled code is run.
"""

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from alexnet_func import checkpoint, tensorfile
from alexnet_func.arch import ALEXNET, ALEXNET_2012, ALEXNET_CIFAR, ALEXNET_SMALL, CAFFENET, param_shapes
from alexnet_func.checks import check_named_tensors, shapes_of
from alexnet_func.model import Params

_FIRST, _LAST = "features.0.weight", "classifier.6.bias"
# DataParallel's and torch.compile's, around the whole or, as PyTorch's ImageNet example has it, around `features`.
_INNER_WRAPPER = re.compile(r"(?<=\.)(?:module|_orig_mod)\.")
_FIRST_WRAPPED = re.compile(r"((?:.*\.)?)features\.(?:(?:module|_orig_mod)\.)*0\.weight")
_OTHERS = (ALEXNET_2012, CAFFENET, ALEXNET_CIFAR, ALEXNET_SMALL)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # what torch.save began with before 1.6
_NOT_LOADED = "is not a state dict that loads without running code"


class Weights(NamedTuple):
    """The parameters of an `ALEXNET` with so many classes, float32 on the CPU, and how they were found."""

    params: Params
    note: str


class _Network(NamedTuple):
    """The tensors of one dict that lie under one prefix, by their plain names."""

    where: str
    removed: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    others: int


def read(path: str | os.PathLike[str]) -> Weights:
    """The one AlexNet in a file of `torch.save`, of safetensors, or in a checkpoint of ours, with any classes.

    Read are a state dict, and an archive that holds one under a name such as "state_dict" or "model", of the module
    itself or of one that wraps it (DataParallel, torch.compile, Lightning's). Half and double precision become float32.
    Values may be non-finite.

    Raises FileNotFoundError for a missing file, PermissionError for one that may not be read; ValueError, naming the
    file and the reason, for one that is damaged, has no network or several, another network, or tensors that are no
    plain floating ones, and for pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return _network_of(path, _loaded(path))
    except ValueError as error:  # which may quote names in the file
        raise ValueError("".join(c if c.isprintable() else _escaped(c) for c in str(error))) from error


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _network_of(path: Path, held: Any) -> Weights:
    if not isinstance(held, Mapping):
        raise ValueError(f"{path} holds a {type(held).__name__}, not a state dict")
    networks = list(_networks(held))
    found = [network for network in networks if _FIRST in network.tensors]
    if len(found) > 1:
        places = ", ".join(network.where or "the top" for network in found)
        raise ValueError(f"{path} holds {len(found)} networks ({places}): save the state dict of one alone")
    if not found:
        raise ValueError(f"{path}: missing {_FIRST} {list(param_shapes(ALEXNET)[_FIRST])}; {_contents(networks)}")
    network = found[0]
    _check_tensors(path, network.tensors)
    shapes = param_shapes(ALEXNET.replace(num_classes=_classes(network.tensors)))
    if other := _other_arch(network.tensors):
        raise ValueError(
            f"{path} holds weights of {other}: of bare files only those of alexnet are read, since the images' "
            "statistics are missing; give the run that trained them, or its checkpoint"
        )
    check_named_tensors(shapes, network.tensors, str(path))
    params = {name: network.tensors[name].detach().to(torch.float32, copy=True).contiguous() for name in shapes}
    return Weights(params, _note(network))


def _loaded(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except PermissionError as error:
        raise PermissionError(f"{path} may not be read by this user") from error
    if tensorfile.is_one(path):
        return {"params": checkpoint.load(path)[0].params}
    if start[8:9] == b"{":
        return _safetensors(path)
    if start.startswith(b"PK"):
        _check_archive(path)
    elif not start.startswith(_LEGACY):
        raise ValueError(f"{path} {_NOT_LOADED}: neither torch.save nor safetensors wrote it")
    return _unpickled(path)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or no file of safetensors: {error}") from error


def _check_archive(path: Path) -> None:
    """Raises ValueError unless every record of the archive has its CRC-32, which torch does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            names, altered = archive.namelist(), archive.testzip()
    # On a damaged file zipfile fails in a dozen ways, NotImplementedError and UnicodeDecodeError among them.
    except Exception as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if altered is not None:
        raise ValueError(f"{path} is damaged: its record {altered} does not have its CRC-32")
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"{path} is a TorchScript module: torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth') "
            "writes a file that is read"
        )


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what a damaged file asks for
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler runs on whatever the file says, and fails in as many ways
        if code := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
            raise ValueError(
                f"{path} {_NOT_LOADED}: it pickles {code[1]}; where it was made, "
                "torch.save(model.state_dict(), 'weights.pth') writes a file that is read"
            ) from error
        raise ValueError(f"{path} {_NOT_LOADED}: {_plain(error)}") from error


def _plain(error: Exception) -> str:
    """The first sentence of what is particular in torch's message, without its advice and its colours."""
    text = re.sub(r"\x1b\[[0-9;]*m|\[enforce fail at [^]]*\] [^.]*\. ", "", str(error))
    text = text.rpartition("WeightsUnpickler error:")[2]
    return text.strip().split("\n")[0].split(". ")[0] or type(error).__name__


def _networks(value: Any, where: str = "", depth: int = 2) -> Iterator[_Network]:
    """For `value` and the dicts in it, to some depth, the tensors under each prefix of a first layer, or all."""
    if not isinstance(value, Mapping):
        return
    named = {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)}
    yield from _by_prefix(named, where)
    for name, item in value.items():
        if depth and isinstance(name, str):
            yield from _networks(item, f"{where}.{name}" if where else name, depth - 1)


def _by_prefix(named: Mapping[str, Tensor], where: str) -> Iterator[_Network]:
    prefixes = dict.fromkeys(match[1] for match in map(_FIRST_WRAPPED.fullmatch, named) if match)
    if not prefixes:
        yield _Network(where, (), named, 0)
    for prefix in prefixes:
        under = [name.removeprefix(prefix) for name in named if name.startswith(prefix)]
        wrappers = {wrapper for name in under for wrapper in _INNER_WRAPPER.findall(name)}
        tensors: dict[str, Tensor] = {}
        for name in under:
            plain = _INNER_WRAPPER.sub("", name)
            tensors[name if plain in tensors else plain] = named[prefix + name]  # twice under one name: one is too many
        yield _Network(where, (*filter(None, [prefix]), *sorted(wrappers)), tensors, len(named) - len(under))


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, t in tensors.items():
        kinds = {
            "quantised": t.is_quantized,
            "without values": t.is_meta,
            "sparse": t.layout != torch.strided,
            "nested": t.is_nested,
            f"a {type(t).__name__}": type(t) not in (Tensor, torch.nn.Parameter),
            _name(t.dtype): t.dtype not in _DTYPES,
        }
        if kind := next((kind for kind, holds in kinds.items() if holds), None):
            accepted = " or ".join(map(_name, _DTYPES))
            raise ValueError(f"{path}: {name} must be a plain tensor of {accepted}, and is {kind}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _classes(tensors: Mapping[str, Tensor]) -> int:
    bias = tensors.get(_LAST)
    return len(bias) if bias is not None and bias.dim() == 1 and len(bias) else ALEXNET.num_classes


def _other_arch(tensors: Mapping[str, Tensor]) -> str:
    """The named variants that have tensors of just these names and shapes, if any."""
    shapes, classes = shapes_of(tensors), _classes(tensors)
    return " or ".join(a.name for a in _OTHERS if param_shapes(a.replace(num_classes=classes)) == shapes)


def _contents(networks: list[_Network]) -> str:
    """Of what else there is, the dict with the most tensors."""
    tensors = max((network.tensors for network in networks), key=len, default={})
    if not tensors:
        return "it holds no tensors by name"
    some = ", ".join(list(tensors)[:3])
    return f"it holds {some}{', ...' if len(tensors) > 3 else ''} ({len(tensors)} tensors)"


def _note(network: _Network) -> str:
    dtypes = {_name(t.dtype) for t in network.tensors.values()} - {"float32"}
    parts = [f"read {len(network.tensors)} tensors from {network.where or 'the state dict'}"]
    parts += [f"{' and '.join(network.removed)} removed from their names"] if network.removed else []
    parts += [f"{' and '.join(sorted(dtypes))} to float32"] if dtypes else []
    parts += [f"{network.others} other{'s' if network.others > 1 else ''} left aside"] if network.others else []
    return ", ".join(parts)
