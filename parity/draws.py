"""What keys give: by `alexnet_func.random`, and by JAX."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

import alexnet_func as af
from parity.inputs import Tensors

KEY_SEEDS = (*range(62), 2**31, 2**32 - 1)


def both_draws() -> tuple[Tensors, Tensors]:
    import jax

    ours: Tensors = {}
    theirs: Tensors = {}
    for seed in KEY_SEEDS:
        ours |= {f"{seed} {name}": value for name, value in draws(af.random, af.random.key(seed)).items()}
        jax_key = np.array([0, seed], dtype=np.uint32)
        theirs |= {f"{seed} {name}": as_tensor(value) for name, value in draws(jax.random, jax_key).items()}
    return ours, theirs


def draws(r: Any, key: Any, names: Collection[str] | None = None) -> dict[str, Any]:
    """What a key gives, by `alexnet_func.random` or, from a raw uint32 key, by `jax.random`: the names are the same."""
    low, table = r.uniform(key, (300,)), r.randint(key, (6, 7), -50, 50)
    made: dict[str, Callable[[], Any]] = {
        "split": lambda: r.split(key, 7),
        "split 2x3": lambda: r.split(key, (2, 3)),
        "fold_in 0": lambda: r.fold_in(key, 0),
        "fold_in 1": lambda: r.fold_in(key, 1),
        "fold_in 2^31": lambda: r.fold_in(key, 2**31),
        "bits 3x5": lambda: r.bits(key, (3, 5)),
        "bits 1001": lambda: r.bits(key, (1001,)),
        "uniform": lambda: r.uniform(key, (1001,)),
        "uniform of a bare integer": lambda: r.uniform(key, 7),
        "uniform from -0.1": lambda: r.uniform(key, (1001,), minval=-0.1, maxval=0.3),
        "uniform from 3 to 3": lambda: r.uniform(key, (9,), minval=3, maxval=3),
        "uniform of bounds": lambda: r.uniform(key, (3, 300), minval=low, maxval=low + 1),
        "bernoulli 0.5": lambda: r.bernoulli(key, 0.5, (1001,)),
        "bernoulli 0.3": lambda: r.bernoulli(key, 0.3, (1001,)),
        "randint": lambda: r.randint(key, (1001,), -7, 1_000_003),
        "randint from 5 to 5": lambda: r.randint(key, (9,), 5, 5),
        "randint of bounds": lambda: r.randint(key, (9, 6, 7), table, 10),
        "permutation 1000": lambda: r.permutation(key, 1000),
        "permutation 5000": lambda: r.permutation(key, 5000),
        "permutation of rows": lambda: r.permutation(key, table),
        "permutation of columns": lambda: r.permutation(key, table, axis=-1),
        "permutation of each column": lambda: r.permutation(key, table, independent=True),
        "choice": lambda: r.choice(key, 1000, (1001,)),
        "choice without replacement": lambda: r.choice(key, 1000, (10, 3), replace=False),
        "choice of columns": lambda: r.choice(key, table, (2, 3), axis=1),
        "choice by weight": lambda: r.choice(key, 300, (1001,), p=low),
    }
    return {name: make() for name, make in made.items() if names is None or name in names}


def as_tensor(value: Any) -> Tensor:
    """A JAX array as a tensor; unsigned words as the int32 of the same bits."""
    array = np.array(value)
    return torch.from_numpy(array.view(np.int32) if array.dtype == np.uint32 else array)
