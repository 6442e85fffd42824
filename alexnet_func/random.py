"""Explicit randomness: `jax.random`'s default generator and its distributions in plain tensor operations.

A key is an int32 tensor of shape [2] that holds the bit pattern of `jax.random.key_data`. The
same key always gives the same bits, on CPU and CUDA, eagerly, under `torch.func.vmap` over
keys and inside `torch.compile(fullgraph=True)`; nothing here reads or moves a global generator.

Names, arguments and their order are JAX's; floats are float32 and integers int32, so there is no `dtype`. Where JAX
computes in integers, or in float32 without transcendental functions, the result is its own bit for bit (threefry2x32,
partitionable, 32-bit mode, JAX 0.10 on a CPU): keys, splits, folds, bits, uniforms, bernoullis, integers, permutations
and choices. What the others keep to instead, each says. A shape may be a bare integer. Draws differentiate by their
floating tensor arguments, forward and reverse.

Source: JAX's "JEP 9263: typed keys" for the design of keys; `threefry` names that of the cipher.
"""

import math

import torch
from jaxtyping import Bool, Float, Int32, Integer, Real, Shaped
from torch import Tensor

from alexnet_func import distributions
from alexnet_func.continuous import exponential, gumbel, normal, truncated_normal, uniform
from alexnet_func.keys import Key, Shape, as_shape, check_key, clone, key, key_data, wrap_key_data
from alexnet_func.threefry import bits, fold_in, split, threefry2x32

__all__ = [
    "Key",
    "bernoulli",
    "bits",
    "categorical",
    "choice",
    "clone",
    "exponential",
    "fold_in",
    "gumbel",
    "key",
    "key_data",
    "normal",
    "permutation",
    "randint",
    "split",
    "threefry2x32",
    "truncated_normal",
    "uniform",
    "wrap_key_data",
]


def bernoulli(
    key: Key, p: float | int | Real[Tensor, "*#shape"] = 0.5, shape: Shape | None = None
) -> Bool[Tensor, "*shape"]:
    """Draws True with probability p, where `uniform(key, shape) < p` in float32: equal to JAX's (`mode="low"`).

    `shape=None` means the shape of p. Raises TypeError for a p that is neither a number nor a real tensor, ValueError
    for a Python number outside [0, 1] and for a tensor that does not broadcast to `shape`.

    Examples:
        >>> af.random.bernoulli(key, torch.tensor([0.0, 0.5, 1.0]))
        tensor([False, False,  True])
        >>> round(float(af.random.bernoulli(key, 0.3, (10_000,)).float().mean()), 2)
        0.3
    """
    check_key(key)
    dims = distributions.common_shape(p=p) if shape is None else as_shape(shape)
    if isinstance(p, Tensor):
        return uniform(key, dims) < distributions.real("p", p, key, dims)
    distributions.check_real("p", p)
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p}")
    return uniform(key, dims) < float(p)


def randint(
    key: Key, shape: Shape, minval: int | Integer[Tensor, "*#shape"], maxval: int | Integer[Tensor, "*#shape"]
) -> Int32[Tensor, "*shape"]:
    """Draws integers on [minval, maxval), and minval where maxval is no larger: equal to JAX's.

    They are biased by at most 2^-32. A maxval of 2^31, above which int32 ends, is reached in JAX by a uint32 array.
    Tensors are clamped to -2^31 .. 2^31 - 1 and maxval to 2^31, as JAX clamps arrays. Raises ValueError for Python
    integers outside (JAX: OverflowError) and for tensors that do not broadcast to `shape`, TypeError for bounds that
    are no integers.

    Examples:
        >>> af.random.randint(key, (6,), 0, 10)
        tensor([9, 0, 2, 3, 1, 7], dtype=torch.int32)
    """
    check_key(key)
    dims = as_shape(shape)
    low = distributions.whole("minval", minval, key, dims, 2**31 - 1)
    high = distributions.whole("maxval", maxval, key, dims, 2**31)
    span = high - low
    span = span.clamp(min=1) if isinstance(span, Tensor) else max(1, span)
    upper, lower = (bits(k, dims).to(torch.int64) & 0xFFFFFFFF for k in split(key).unbind())
    # 2^32 mod span as JAX forms it, from the square of 2^16 mod span in 32-bit arithmetic.
    carry = ((65536 % span) ** 2 & 0xFFFFFFFF) % span
    offset = ((upper % span) * carry + lower % span & 0xFFFFFFFF) % span
    return (low + offset).to(torch.int32)


def permutation(
    key: Key, x: int | Shaped[Tensor, "..."], axis: int = 0, independent: bool = False
) -> Shaped[Tensor, "..."]:
    """Permutes 0 .. x-1, or a tensor x along an axis, uniformly: equal to JAX's bit for bit.

    Rounds of a stable sort on random words. A tensor's slices move as wholes, or with `independent` every vector along
    `axis` by a permutation of its own. Raises ValueError for a negative x, an axis that x does not have and a key on
    another device; TypeError for an x that is neither an integer nor a tensor with axes.

    Examples:
        >>> af.random.permutation(key, 5)
        tensor([0, 1, 4, 3, 2], dtype=torch.int32)
        >>> af.random.permutation(key, torch.tensor([10, 20, 30, 40, 50]))
        tensor([10, 20, 50, 40, 30])
    """
    check_key(key)
    if not isinstance(x, Tensor):
        count = distributions.length("x", x, axis)
        return _shuffle(key, torch.arange(count, dtype=torch.int32, device=key.device), 0)
    axis = distributions.axis_of("x", x, axis, key)
    if independent or x.dim() == 1:
        return _shuffle(key, x, axis)
    order = torch.arange(x.shape[axis], dtype=torch.int32, device=key.device)
    return x.index_select(axis, _shuffle(key, order, 0))


def choice(
    key: Key,
    a: int | Shaped[Tensor, "..."],
    shape: Shape = (),
    replace: bool = True,
    p: Real[Tensor, "n"] | None = None,
    axis: int = 0,
) -> Shaped[Tensor, "..."]:
    """Draws elements of 0 .. a-1, or of a tensor a along an axis, with or without replacement: `shape` of them.

    The result of a tensor has `shape` in place of `axis` (JAX drops the other axes where nothing is drawn). `p` gives
    weights, which need not sum to 1. Equal to JAX's bit for bit; with `p` and replacement to those of JAX on a CPU,
    which sums in tiles of 16; with `p` and without replacement they are the largest of `gumbel + log(p)`, whose order
    differs from JAX's only where two lie within its rounding.

    Raises ValueError for an empty population, for more draws than it holds without replacement, for `p` of another
    length and, on a CPU outside transforms, for weights that are negative, not finite, or too few of them positive.

    Examples:
        >>> af.random.choice(key, 5, (3,), replace=False)
        tensor([0, 1, 4], dtype=torch.int32)
        >>> af.random.choice(key, torch.tensor([10, 20, 30]), (4,), p=torch.tensor([0.0, 1.0, 3.0]))
        tensor([20, 20, 30, 30])
    """
    check_key(key)
    dims, count = as_shape(shape), math.prod(as_shape(shape))
    if isinstance(a, Tensor):
        axis = distributions.axis_of("a", a, axis, key)
        n = a.shape[axis]
    else:
        n = distributions.length("a", a, axis)
    if count > (n * count if replace else n):
        how = "with" if replace else "without"
        raise ValueError(f"a must hold enough for {count} draws {how} replacement, got {n} elements")
    if p is not None:
        distributions.check_weights(p, key, n, count, replace)
        index = _weighted(key, p.to(torch.float32), dims, replace)
    else:
        index = randint(key, dims, 0, n) if replace else permutation(key, n)[:count].reshape(dims)
    if not isinstance(a, Tensor):
        return index
    return a.index_select(axis, index.flatten()).reshape((*a.shape[:axis], *dims, *a.shape[axis + 1 :]))


def categorical(
    key: Key, logits: Float[Tensor, "..."], axis: int = -1, shape: Shape | None = None, replace: bool = True
) -> Int32[Tensor, "*shape"]:
    """Draws indices along `axis`, each with the probability that softmax gives its logit.

    It is that of the largest logit plus Gumbel. `shape` ends in the other axes of the logits and draws anew for what
    stands before them; `replace=False` draws different indices along those. Scores are float32 whatever the logits are,
    with the Gumbels of `gumbel`: an index differs from JAX's only where the two largest scores lie within rounding of
    each other. Indices have no derivative.

    Raises TypeError for logits that are no floating tensor, ValueError for an axis that is missing or empty, for a
    shape that does not fit and, without replacement, for more draws than there are logits.

    Examples:
        >>> af.random.categorical(key, torch.tensor([0.0, 1.0, 2.0]), shape=(6,))
        tensor([1, 1, 2, 1, 2, 2], dtype=torch.int32)
        >>> af.random.categorical(key, af.forward(params, batch[0], arch=arch)).shape
        torch.Size([4])
    """
    check_key(key)
    if not isinstance(logits, Tensor) or not logits.dtype.is_floating_point:
        raise TypeError(f"logits must be a floating tensor, got {distributions.given(logits)}")
    axis = distributions.axis_of("logits", logits, axis, key)
    n, batch = logits.shape[axis], (*logits.shape[:axis], *logits.shape[axis + 1 :])
    if not n:
        raise ValueError(f"logits must not be empty along axis {axis}, got {distributions.given(logits)}")
    dims = batch if shape is None else as_shape(shape)
    prefix, rest = dims[: len(dims) - len(batch)], dims[len(dims) - len(batch) :]
    if not distributions.broadcasts(batch, dims) or not (replace or rest == batch):
        raise ValueError(f"shape must end in {list(batch)}, the logits' other axes, got {list(dims)}")
    logits = logits.to(torch.float32)
    if replace:
        scores = logits + gumbel(key, (*prefix, *rest[:axis], n, *rest[axis:]))
        return scores.argmax(len(prefix) + axis).to(torch.int32)
    if math.prod(prefix) > n:
        raise ValueError(f"shape asks for {math.prod(prefix)} different indices, and there are {n} logits")
    order = distributions.descending((logits + gumbel(key, logits.shape)).movedim(axis, -1))
    return order[..., : math.prod(prefix)].movedim(-1, 0).reshape(dims)


def _shuffle(key: Tensor, x: Tensor, axis: int) -> Tensor:
    rounds = math.ceil(3 * math.log(max(1, x.numel())) / math.log(2**32 - 1))
    for _ in range(rounds):
        key, sort_key = split(key).unbind()
        unsigned = bits(sort_key, x.shape) ^ torch.iinfo(torch.int32).min
        x = x.gather(axis, unsigned.sort(dim=axis, stable=True).indices)
    return x


def _weighted(key: Tensor, weights: Tensor, shape: tuple[int, ...], replace: bool) -> Tensor:
    """Indices of weights, each drawn with a probability in proportion to its own."""
    if replace and len(weights):
        sums = distributions.running_sums(weights)
        return distributions.first_reaching(sums, sums[-1] * (1 - uniform(key, shape)))
    order = distributions.descending(gumbel(key, weights.shape) + weights.log())
    return order[: math.prod(shape)].reshape(shape)
