"""Checkpoints: a training state and its configuration in one `tensorfile`, whole or not there at all.

The tensors are named `params/...`, `opt_state/...`, `step` and `key`. The same state gives the same bytes.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from alexnet_func import random, tensorfile
from alexnet_func.compiled import check_unspent
from alexnet_func.train import TrainState

__all__ = [
    "load",
    "save",
]


def save(path: str | os.PathLike[str], state: TrainState, config: Mapping[str, Any]) -> None:
    """Writes `state` and the JSON-able `config` to `path`.

    The file is written beside `path`, synced and renamed: whenever the process dies, `path` holds the old checkpoint or
    the new one. Raises OSError where it cannot be written; the old one then stays. Raises ValueError or TypeError for
    a state that was given to a donated step, and for one that `load` would refuse.

    Examples:
        >>> state = af.train.create_state(params, af.optim.sgd(0.1), key=key)
        >>> af.checkpoint.save("run.ckpt", state, {"arch": arch.to_json(), "epochs": 10})
    """
    flat = _flatten(state._asdict())
    _state(_unflatten(flat))
    tensorfile.write(path, flat, config)


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> tuple[TrainState, dict[str, Any]]:
    """Reads the state, onto `device`, and the configuration that `save` wrote to `path`.

    Raises FileNotFoundError for a missing file, PermissionError for one that may not be read; ValueError, naming the
    file and the reason, for one that is truncated, altered or no checkpoint, or holds no training state.

    Examples:
        >>> state = af.train.create_state({"weight": torch.ones(3)}, af.optim.sgd(0.1), key=key)
        >>> af.checkpoint.save("run.ckpt", state, {"epochs": 10})
        >>> state, config = af.checkpoint.load("run.ckpt")
        >>> state.params, config
        ({'weight': tensor([1., 1., 1.])}, {'epochs': 10})
    """
    tensors, config = tensorfile.read(path, "checkpoint")
    try:
        state = _state(_unflatten(tensors))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a training state: {error}") from error
    return pytree.tree_map(lambda t: t.to(device), state), config


def _state(fields: Mapping[str, Any]) -> TrainState:
    """Raises ValueError or TypeError unless `fields` are those of a state that a step can go on with."""
    if not {"step", "params", "key"} <= set(fields) <= set(TrainState._fields):
        raise ValueError(f"a state has step, params, opt_state and key, got {', '.join(sorted(fields)) or 'nothing'}")
    state = TrainState(**{"opt_state": {}, **fields})
    if not isinstance(state.step, Tensor) or state.step.dtype != torch.int64 or state.step.dim():
        raise ValueError("step must be an int64 scalar")
    check_unspent(state.step)
    random.check_key(state.key)
    if not isinstance(state.params, dict) or not isinstance(state.opt_state, dict):
        raise ValueError("params and opt_state must be dicts of tensors by name")
    for name, value in state.params.items():
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            raise ValueError(f"params/{name} must be a floating tensor, got {getattr(value, 'dtype', 'a dict')}")
    return state


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, value in tree.items():
        flat |= {prefix + name: value} if isinstance(value, Tensor) else _flatten(value, f"{prefix}{name}/")
    return flat


def _unflatten(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """Raises ValueError where a name is that of a tensor and of a dict."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise ValueError(f"{parent} of {name} is a tensor")
        if leaf in branch:
            raise ValueError(f"{name} is a dict")
        branch[leaf] = value
    return tree
