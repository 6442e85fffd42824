"""Named tensors and a JSON configuration in one safetensors file, whole or not there at all.

The header's metadata has one entry, "checkpoint": a JSON object of the configuration, the order of the names, and a
SHA-256 of all, or, for files that are mapped, of all but the tensors' bytes. The same contents give the same bytes. Any
safetensors reader opens the file, and nothing in it is executed.
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

from alexnet_func import files

_ENTRY = "checkpoint"
_WHOLE, _HEADER = "sha256", "header_sha256"


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes `tensors` and the JSON-able `config` to `path`, which holds the old file or the new one at any moment.

    Raises OSError, naming `path`, where it cannot be written, ValueError or TypeError for what is not JSON-able.
    """
    on_cpu, as_json = _on_cpu(tensors), _as_json(config)
    _write(Path(path), on_cpu, as_json, {_WHOLE: _digest(on_cpu, as_json, _add_contents)})


def write_mapped(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """`write` for `mapped`: without a digest of the tensors' bytes, for which the caller keeps checksums of its own."""
    on_cpu, as_json = _on_cpu(tensors), _as_json(config)
    _write(Path(path), on_cpu, as_json, {_HEADER: _digest(on_cpu, as_json)})


def read(path: str | os.PathLike[str], kind: str = "tensor file") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the configuration that `write` wrote.

    Raises FileNotFoundError where there is no file; ValueError, naming the file and the reason, for one that is
    truncated, altered or not of `write`; PermissionError for one that may not be read. `kind` is its name in errors.
    """
    tensors, about = _open(Path(path), kind, _WHOLE)
    if about[_WHOLE] != _digest(tensors, about["config"], _add_contents):
        raise ValueError(f"{path} was altered: its contents do not have the SHA-256 in its header")
    return tensors, about["config"]


def mapped(path: str | os.PathLike[str], kind: str = "tensor file") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_mapped` wrote; errors as `read`. The tensors are mapped: their bytes come from the file when used.

    Names, shapes, dtypes and configuration are those that were written, and the length of the file is right; whether
    the tensors' bytes were altered remains the caller's to check.
    """
    tensors, about = _open(Path(path), kind, _HEADER)
    if about[_HEADER] != _digest(tensors, about["config"]):
        raise ValueError(f"{path} was altered: its header does not have the SHA-256 in it")
    return tensors, about["config"]


def is_one(path: str | os.PathLike[str]) -> bool:
    """Whether it is a file with the entry that `write` and `write_mapped` make, whatever became of the rest."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return _ENTRY in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each in memory of its own, as safetensors wants it."""
    plain: dict[str, Tensor] = {}
    memory = set()
    for name, value in tensors.items():
        t = value.detach().cpu().contiguous()
        plain[name] = t.clone() if t.untyped_storage().data_ptr() in memory else t
        memory.add(t.untyped_storage().data_ptr())
    return plain


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read: with strings for keys, which sort otherwise than numbers do."""
    return json.loads(json.dumps(dict(config)))


def _write(path: Path, tensors: dict[str, Tensor], config: dict[str, Any], digest: dict[str, str]) -> None:
    about = {"config": config, "names": list(tensors), **digest}
    # One entry, since safetensors writes several in an arbitrary order.
    metadata = {_ENTRY: json.dumps(about, sort_keys=True)}
    with files.replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def _open(path: Path, kind: str, digest: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} {path}")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} may not be read by this user")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            about = json.loads(metadata.get(_ENTRY, "{}"))
            # safetensors sorts the names; an update goes by the order of the dict.
            tensors = {name: file.get_tensor(name) for name in about.get("names", [])}
    except (SafetensorError, OSError, ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path} is truncated, altered or no {kind}: {error}") from error
    if not {"config", "names", digest} <= set(about) or not isinstance(about["config"], dict):
        raise ValueError(f"{path} is no {kind}: its header lacks the configuration, the names or the SHA-256")
    return tensors, about


def _digest(tensors: Mapping[str, Tensor], config: Mapping[str, Any], add: Any = None) -> str:
    digest = hashlib.sha256(json.dumps([config, list(tensors)], sort_keys=True).encode())
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        if add is not None:
            add(digest, value)
    return digest.hexdigest()


def _add_contents(digest: Any, value: Tensor) -> None:
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
