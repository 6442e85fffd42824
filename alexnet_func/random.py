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
import numbers
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Float32, Int32, Integer, Real, Shaped
from torch import Tensor

from alexnet_func import distributions
from alexnet_func.threefry import (
    Key,
    Shape,
    as_shape,
    bits,
    check_key,
    clone,
    draw,
    fold_in,
    generate,
    key,
    key_data,
    split,
    split_each,
    threefry2x32,
    wrap_key_data,
)

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


def uniform(
    key: Key,
    shape: Shape = (),
    minval: float | int | Real[Tensor, "*#shape"] = 0.0,
    maxval: float | int | Real[Tensor, "*#shape"] = 1.0,
) -> Float32[Tensor, "*shape"]:
    """Draws uniform numbers on [minval, maxval), and minval where maxval is no larger: equal to JAX's bit for bit.

    On [0, 1) these are the upper 23 bits of `bits`, in steps of 2^-23. Elsewhere u * (maxval - minval) + minval is
    rounded once, as XLA contracts it to a fused multiply-add, under `jax.jit` or not (`jax.disable_jit` rounds twice);
    rounding may give maxval itself. XLA flushes subnormal numbers to zero, and we do not.

    Raises TypeError for bounds that are neither numbers nor real tensors, ValueError for those that do not broadcast
    to `shape`.

    Examples:
        >>> af.random.uniform(key, (3,))
        tensor([0.9477, 0.9786, 0.3323])
        >>> af.random.uniform(key, (3,), -1, 1)
        tensor([ 0.8953,  0.9572, -0.3354])
    """
    check_key(key)
    dims = as_shape(shape)
    if isinstance(minval, numbers.Real) and isinstance(maxval, numbers.Real) and (minval, maxval) == (0, 1):
        return draw(key, dims, distributions.to_unit)
    low, high = distributions.real("minval", minval, key, dims), distributions.real("maxval", maxval, key, dims)
    return _within(key, dims, low, high, distributions.affine)


def normal(key: Key, shape: Shape = ()) -> Float32[Tensor, "*shape"]:
    """Draws standard normals, `sqrt(2) erfinv(u)` with u uniform on (-1, 1); at most 5.42 in size.

    Within 1e-6, and on a CPU within 2 ulp, of the float64 value at JAX's uniforms. JAX's own normals differ by up to
    3e-5 (5e-5 at the two ends), the error of its float32 inverse error function.

    Examples:
        >>> af.random.normal(key, (3,))
        tensor([ 1.6226,  2.0253, -0.4336])
        >>> torch.vmap(lambda k: af.random.normal(k, (8,)))(af.random.split(key, 5)).shape
        torch.Size([5, 8])
    """
    return draw(key, shape, distributions.to_normal)


def truncated_normal(
    key: Key,
    lower: float | int | Real[Tensor, "*#shape"],
    upper: float | int | Real[Tensor, "*#shape"],
    shape: Shape | None = None,
) -> Float32[Tensor, "*shape"]:
    """Draws standard normals given that they lie in the open interval (lower, upper).

    `shape=None` means the bounds' own. Draws lie within 2 ulp of the float64 inverse distribution function at JAX's
    uniforms, also in tails as far out as 37, where JAX's float32 error function gives nothing but bounds from 5.5 on.
    As in JAX the lowest of the 2^23 uniforms gives the number next to `lower`: -3.4e38 where that is infinite.

    Raises TypeError and ValueError as `uniform`, and ValueError unless lower < upper; tensors are compared on a CPU
    outside transforms alone.

    Examples:
        >>> af.random.truncated_normal(key, -1.0, 1.0, (3,))
        tensor([ 0.8619,  0.9413, -0.2910])
    """
    check_key(key)
    dims = distributions.common_shape(lower=lower, upper=upper) if shape is None else as_shape(shape)
    low, high = distributions.real("lower", lower, key, dims), distributions.real("upper", upper, key, dims)
    distributions.check_order(lower, upper, low, high)
    return _within(key, dims, low, high, distributions.truncate)


def exponential(key: Key, shape: Shape = ()) -> Float32[Tensor, "*shape"]:
    """Draws exponentials of rate 1, `-log(1 - u)`, at most 15.95.

    They lie within 2 ulp of the float64 value at JAX's uniforms.

    Examples:
        >>> af.random.exponential(key, (3,))
        tensor([2.9501, 3.8434, 0.4039])
    """
    return draw(key, shape, lambda words: -torch.log1p(-distributions.to_unit(words)))


def gumbel(key: Key, shape: Shape = ()) -> Float32[Tensor, "*shape"]:
    """Draws standard Gumbels, `-log(-log(u))`, from -4.47 to 15.95.

    They lie within 2 ulp of the float64 value at JAX's uniforms. JAX's own float32 ones, of its default `mode="low"`,
    are within 1e-6 of these.

    Examples:
        >>> af.random.gumbel(key, (3,))
        tensor([ 2.9234,  3.8326, -0.0969])
    """
    return draw(key, shape, distributions.to_gumbel)


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


def uniform_segments(keys: Int32[Tensor, "*n 2"], sizes: Sequence[int]) -> Float32[Tensor, "*n total"]:
    """`uniform(fold_in(key, i), (sizes[i],))` for every i, joined along the last axis, for each of the keys.

    Two passes of the cipher whatever the number of keys and sizes, so that a compiled graph holds it twice.
    """
    derived = split_each(keys, len(sizes))

    def spread(words: Int32[Tensor, "*n m"]) -> Int32[Tensor, "*n total"]:
        columns = zip(words.unbind(-1), sizes, strict=True)
        return torch.cat([w[..., None].expand(*w.shape, size) for w, size in columns], -1)

    counters = torch.cat([torch.arange(size, dtype=torch.int32, device=keys.device) for size in sizes])
    words = (spread(derived[..., 0]), spread(derived[..., 1]), torch.zeros_like(counters), counters)
    return generate(*words, lambda a, b: distributions.to_unit(a ^ b))


def _within(
    key: Tensor, shape: tuple[int, ...], low: Tensor, high: Tensor, place: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Uniforms, placed between bounds: scalars' chunk by chunk while the words are in the cache."""
    if low.dim() == high.dim() == 0:
        return draw(key, shape, lambda words: place(distributions.to_unit(words), low, high))
    return place(draw(key, shape, distributions.to_unit), low, high)


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
