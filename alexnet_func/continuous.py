"""Draws of real numbers from keys: uniform, normal, truncated normal, exponential, Gumbel. See `random`."""

import numbers
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float32, Int32, Real
from torch import Tensor

from alexnet_func import distributions
from alexnet_func.keys import Key, Shape, as_shape, check_key
from alexnet_func.threefry import draw, generate, split_each


def uniform(
    key: Key,
    shape: Shape = (),
    minval: float | int | Real[Tensor, "*#shape"] = 0.0,
    maxval: float | int | Real[Tensor, "*#shape"] = 1.0,
) -> Float32[Tensor, "*shape"]:
    """Draws uniform numbers on [minval, maxval), and minval where maxval is no larger: the bits of JAX on a CPU.

    On [0, 1) these are the upper 23 bits of `bits`, in steps of 2^-23. Elsewhere u * (maxval - minval) + minval is
    rounded once, as XLA contracts it to a fused multiply-add on a CPU, under `jax.jit` or not (`jax.disable_jit` rounds
    twice, and so does JAX 0.11 on an H200); rounding may give maxval itself. XLA flushes subnormal numbers to zero, and
    we do not.

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

    Within 2 ulp of the float64 value at JAX's uniforms. JAX's own normals differ by up to 3e-5 (5e-5 at the two ends),
    the error of its float32 inverse error function.

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
