"""What is compared, as data: each problem makes our tensors and the reference's, by name."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

import alexnet_func as af
from parity import references

Pair = tuple[dict[str, Tensor], dict[str, Tensor]]


class Problem(NamedTuple):
    """A named comparison; `run` computes both sides."""

    name: str
    run: Callable[[], Pair]


IMAGES = ((1, 224, 224), (2, 224, 224), (8, 224, 224), (2, 63, 63), (2, 300, 260))
KEY_SEEDS = (*range(62), 2**31, 2**32 - 1)


def problems() -> Iterator[Problem]:
    """The list, in the order of the report."""
    for dtype in (torch.float32, torch.float64):
        for n, height, width in IMAGES:
            name = f"alexnet {str(dtype).removeprefix('torch.')} {n}x3x{height}x{width} vs torchvision"
            yield Problem(name, functools.partial(_module, dtype, (n, 3, height, width)))
    yield Problem(f"random {len(KEY_SEEDS)} keys vs jax.random", _keys)


def _module(dtype: torch.dtype, shape: tuple[int, ...]) -> Pair:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    y = torch.randint(1000, shape[:1], generator=generator)
    module = references.torchvision_alexnet(dtype)
    params = {name: p.detach() for name, p in module.state_dict().items()}
    logits, loss, gradients = references.loss_and_gradients(module, x, y)
    with torch.no_grad():
        ours = {"logits": af.forward(params, x), "loss": af.loss_fn(params, (x, y))}
        ours |= grad(af.loss_fn)(params, (x, y))
    return ours, {"logits": logits, "loss": loss, **gradients}


def _keys() -> Pair:
    import jax

    ours: dict[str, Tensor] = {}
    theirs: dict[str, Tensor] = {}
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
