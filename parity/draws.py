"""What keys give: by `alexnet_func.random`, and by JAX."""

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


def draws(r: Any, key: Any) -> dict[str, Any]:
    """What a key gives, by `alexnet_func.random` or, from a raw uint32 key, by `jax.random`: the names are the same."""
    return {
        "split": r.split(key, 7),
        **{f"fold_in {data}": r.fold_in(key, data) for data in (0, 1, 2**31)},
        "bits 3x5": r.bits(key, (3, 5)),
        "bits 1001": r.bits(key, (1001,)),
        "uniform": r.uniform(key, (1001,)),
        "bernoulli 0.5": r.bernoulli(key, 0.5, (1001,)),
        "bernoulli 0.3": r.bernoulli(key, 0.3, (1001,)),
        "randint": r.randint(key, (1001,), -7, 1_000_003),
        "permutation 1000": r.permutation(key, 1000),
        "permutation 5000": r.permutation(key, 5000),
    }


def as_tensor(value: Any) -> Tensor:
    """A JAX array as a tensor; unsigned words as the int32 of the same bits."""
    array = np.array(value)
    return torch.from_numpy(array.view(np.int32) if array.dtype == np.uint32 else array)
