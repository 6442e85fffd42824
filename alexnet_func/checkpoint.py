"""Checkpoints: a training state and its configuration in one safetensors file, whole or not there at all.

The tensors are named `params/...`, `opt_state/...`, `step` and `key`. The header's metadata has one entry,
"checkpoint": a JSON object of the configuration, the order of the names, and a SHA-256 of all. The same state gives
the same bytes. Any safetensors reader opens the file, and nothing in it is executed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alexnet_func.compiled import check_unspent
from alexnet_func.train import TrainState

_ENTRY = "checkpoint"


def save(path: str | os.PathLike[str], state: TrainState, config: Mapping[str, Any]) -> None:
    """Writes `state` and the JSON-able `config` to `path`.

    The file is written under a temporary name beside `path`, synced and renamed: whenever the process dies, `path`
    holds the old checkpoint or the new one. Raises OSError where it cannot be written; the old one then stays.
    Raises ValueError for a state that was given to a donated step.
    """
    check_unspent(state.step)
    write(path, _flatten(state._asdict()), config)


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> tuple[TrainState, dict[str, Any]]:
    """The state, on `device`, and the configuration that `save` wrote.

    Raises FileNotFoundError for a missing file; ValueError, naming the file and the reason, for one that is truncated,
    altered or no checkpoint.
    """
    tensors, config = read(path)
    fields = _unflatten({name: t.to(device) for name, t in tensors.items()})
    if not {"step", "params", "key"} <= set(fields) <= set(TrainState._fields):
        raise ValueError(f"{path} does not hold a training state but {', '.join(sorted(fields))}")
    return TrainState(**{"opt_state": {}, **fields}), config


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes any named tensors as `save` writes a state."""
    tensors = _on_cpu(tensors)
    _write(Path(path), tensors, config, _digest(tensors, config))


def write_mapped(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """`write` for `mapped`: without a digest of the tensors' bytes, for which the caller keeps checksums of its own."""
    _write(Path(path), _on_cpu(tensors), config, None)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _write(path: Path, tensors: dict[str, Tensor], config: Mapping[str, Any], digest: str | None) -> None:
    about = {"config": dict(config), "names": list(tensors), "sha256": digest}
    # One entry, since safetensors writes several in an arbitrary order.
    metadata = {_ENTRY: json.dumps(about, sort_keys=True)}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the configuration that `write` wrote; errors as `load`."""
    tensors, about = _mapped(Path(path))
    if about["sha256"] != _digest(tensors, about["config"]):
        raise ValueError(f"{path} was altered: its contents do not have the SHA-256 in its header")
    return tensors, about["config"]


def mapped(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`read` without looking at the tensors' bytes: they are mapped into memory, and come from the file when used.

    A file of the wrong length is refused; whether its contents were altered remains the caller's to check.
    """
    tensors, about = _mapped(Path(path))
    return tensors, about["config"]


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step: it holds the old text or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _mapped(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            about = json.loads(metadata.get(_ENTRY, "{}"))
            # safetensors sorts the names; an update goes by the order of the dict.
            tensors = {name: file.get_tensor(name) for name in about.get("names", [])}
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is truncated, altered or no checkpoint: {error}") from error
    if not {"config", "names", "sha256"} <= set(about):
        raise ValueError(f"{path} is no checkpoint: its header lacks the configuration, the names or the SHA-256")
    return tensors, about


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, value in tree.items():
        flat |= {prefix + name: value} if isinstance(value, Tensor) else _flatten(value, f"{prefix}{name}/")
    return flat


def _unflatten(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return tree


def _digest(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([config, list(tensors)], sort_keys=True).encode())
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync(path: str | os.PathLike[str]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
