"""Explicit randomness: `jax.random`'s default generator in plain tensor operations.

A key is an int32 tensor of shape [2] that holds the bit pattern of `jax.random.key_data`. The
same key always gives the same bits, on CPU and CUDA, eagerly, under `torch.func.vmap` over
keys and inside `torch.compile(fullgraph=True)`; nothing here reads or moves a global generator.

Bits, splits, folds, uniforms, bernoullis, integers and permutations equal JAX's (threefry2x32,
partitionable, 32-bit mode) bit for bit. Normals differ from JAX's by at most 3e-5, the error of
JAX's own float32 inverse error function; ours are within 1e-6 of the exact value.

Sources: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011) for
the cipher; JAX's "JEP 9263: typed keys" for the design of keys.
"""

import math
import operator
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Float32, Int, Int32
from torch import Tensor

Key = Int32[Tensor, "2"]

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
# Temporaries of this many words stay in the cache: measured ten times faster on a CPU than one pass
# over ten million. A compiler fuses the rounds and a GPU wants few launches: neither chunks.
_EAGER_CHUNK = 1 << 18


def key(seed: int, device: torch.device | str | None = None) -> Key:
    """The key of a seed, as `jax.random.key(seed)` makes it: the words `[0, seed]`.

    Raises ValueError for a seed outside [0, 2^32).
    """
    return torch.tensor([0, _as_int32("seed", seed)], dtype=torch.int32, device=device)


def split(key: Key, num: int = 2) -> Int32[Tensor, "num 2"]:
    """`num` independent keys, one a row. Row i does not depend on `num`: it is `fold_in(key, i)`."""
    check_key(key)
    if num < 0:
        raise ValueError(f"num must not be negative, got {num}")
    return _split(key, num)


def fold_in(key: Key, data: int | Int[Tensor, ""]) -> Key:
    """A key derived from `key` and one integer, for example a step or an example's index.

    A tensor is taken modulo 2^32; its range is not checked, since that would synchronise a GPU.
    Raises ValueError for a Python integer outside [0, 2^32).
    """
    check_key(key)
    if isinstance(data, Tensor):
        if data.dtype.is_floating_point or data.dim():
            raise TypeError(f"data must be one integer, got {data.dtype} {list(data.shape)}; map over more with vmap")
        word = data.to(torch.int32)
    else:
        word = torch.full((), _as_int32("data", data), dtype=torch.int32, device=key.device)
    return torch.stack(threefry2x32(key[0], key[1], torch.zeros_like(word), word), -1)


def bits(key: Key, shape: Sequence[int] = ()) -> Int32[Tensor, "*shape"]:
    """Uniform 32-bit patterns as int32, so values from 2^31 on appear negative."""
    check_key(key)
    return _draw(key, shape, lambda words: words)


def uniform(key: Key, shape: Sequence[int] = ()) -> Float32[Tensor, "*shape"]:
    """Uniform on [0, 1) in steps of 2^-23: the upper 23 bits of `bits`."""
    check_key(key)
    return _draw(key, shape, _to_unit)


def normal(key: Key, shape: Sequence[int] = ()) -> Float32[Tensor, "*shape"]:
    """Standard normals, `sqrt(2) erfinv(u)` with u uniform on (-1, 1); at most 5.42 in size."""
    check_key(key)
    return _draw(key, shape, _to_normal)


def bernoulli(
    key: Key, p: float | Float[Tensor, "*#shape"] = 0.5, shape: Sequence[int] | None = None
) -> Bool[Tensor, "*shape"]:
    """True with probability p, where `uniform(key, shape) < p`; `shape=None` means the shape of p.

    Raises ValueError for a Python number outside [0, 1] and for a tensor that does not broadcast to `shape`.
    """
    if not isinstance(p, Tensor):
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie in [0, 1], got {p}")
        return uniform(key, shape or ()) < p
    shape = p.shape if shape is None else shape
    if p.dim() > len(shape) or any(
        have not in (1, want) for have, want in zip(p.shape[::-1], shape[::-1], strict=False)
    ):
        raise ValueError(f"p of shape {list(p.shape)} does not broadcast to shape {list(shape)}")
    return uniform(key, shape) < p


def randint(key: Key, shape: Sequence[int], minval: int, maxval: int) -> Int32[Tensor, "*shape"]:
    """Integers on [minval, maxval), from two words each; biased by at most 2^-32, as in JAX.

    Raises ValueError unless -2^31 <= minval < maxval < 2^31.
    """
    check_key(key)
    if not -(2**31) <= minval < maxval < 2**31:
        raise ValueError(f"minval and maxval must satisfy -2^31 <= {minval} < {maxval} < 2^31")
    span = maxval - minval
    high, low = (bits(k, shape).to(torch.int64) & 0xFFFFFFFF for k in split(key).unbind())
    # 2^32 mod span as JAX forms it, from the square of 2^16 mod span in 32-bit arithmetic.
    carry = ((65536 % span) ** 2 & 0xFFFFFFFF) % span
    offset = ((high % span) * carry + low % span & 0xFFFFFFFF) % span
    return (minval + offset).to(torch.int32)


def permutation(key: Key, n: int) -> Int32[Tensor, "n"]:
    """A uniform permutation of 0 .. n-1: rounds of a stable sort on random words, as in JAX."""
    check_key(key)
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    order = torch.arange(n, dtype=torch.int32, device=key.device)
    rounds = math.ceil(3 * math.log(max(1, n)) / math.log(2**32 - 1))
    for _ in range(rounds):
        key, sort_key = split(key).unbind()
        unsigned = bits(sort_key, (n,)) ^ torch.iinfo(torch.int32).min
        order = order[torch.sort(unsigned, stable=True).indices]
    return order


def uniform_segments(keys: Int32[Tensor, "*n 2"], sizes: Sequence[int]) -> Float32[Tensor, "*n total"]:
    """`uniform(fold_in(key, i), (sizes[i],))` for every i, joined along the last axis, for each of the keys.

    Two passes of the cipher whatever the number of keys and sizes, so that a compiled graph holds it twice.
    """
    derived = _split(keys, len(sizes))

    def spread(words: Int32[Tensor, "*n m"]) -> Int32[Tensor, "*n total"]:
        columns = zip(words.unbind(-1), sizes, strict=True)
        return torch.cat([w[..., None].expand(*w.shape, size) for w, size in columns], -1)

    counters = torch.cat([torch.arange(size, dtype=torch.int32, device=keys.device) for size in sizes])
    words = (spread(derived[..., 0]), spread(derived[..., 1]), torch.zeros_like(counters), counters)
    return _generate(*words, lambda a, b: _to_unit(a ^ b))


def threefry2x32(
    k0: Int32[Tensor, "*#n"], k1: Int32[Tensor, "*#n"], x0: Int32[Tensor, "*#n"], x1: Int32[Tensor, "*#n"]
) -> tuple[Int32[Tensor, "*n"], Int32[Tensor, "*n"]]:
    """Threefry-2x32 with 20 rounds: encrypts the words (x0, x1) under the key (k0, k1).

    All four broadcast. Source: Salmon et al. 2011, section 3.3 and the Random123 constants.
    """
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x1 = x1 + k1
    x0 = x0 + k0 + x1  # has the shape and batch axes of all four: from here on in place
    x1 = _rotate_left(x1, _ROTATIONS[0]) ^ x0
    for i in range(1, 20):
        x0 += x1
        x1 = _rotate_left(x1, _ROTATIONS[i % 8]).bitwise_xor_(x0)
        if i % 4 == 3:
            group = i // 4 + 1
            x0 += schedule[group % 3]
            x1 += schedule[(group + 1) % 3] + group
    return x0, x1


def check_key(key: object, rows: int | None = None) -> None:
    """Raises TypeError or ValueError unless `key` is an int32 tensor [2], or, given `rows`, [rows, 2]."""
    if not isinstance(key, Tensor) or key.dtype != torch.int32:
        given = f"a {key.dtype} tensor" if isinstance(key, Tensor) else type(key).__name__
        raise TypeError(f"key must be an int32 tensor from alexnet_func.random.key, got {given}")
    accepted = [(2,)] if rows is None else [(2,), (rows, 2)]
    if tuple(key.shape) not in accepted:
        shapes = " or ".join(str(list(shape)) for shape in accepted)
        raise ValueError(f"key must have shape {shapes}, got {list(key.shape)}; map over other axes with vmap")


def _rotate_left(x: Tensor, count: int) -> Tensor:
    # int32 shifts right arithmetically, hence the mask; x * 2^count wraps to a left shift, and
    # adding in place with `alpha` saves three passes over memory.
    wrapped = x >> (32 - count)
    return wrapped.bitwise_and_((1 << count) - 1).add_(x, alpha=1 << count)


def _to_unit(words: Tensor) -> Tensor:
    return ((words >> 9) & 0x7FFFFF).to(torch.float32) * 2.0**-23


def _to_normal(words: Tensor) -> Tensor:
    lowest = -1 + 2.0**-24
    return math.sqrt(2) * torch.erfinv((_to_unit(words) * 2 + lowest).clamp(min=lowest))


def _split(keys: Tensor, num: int) -> Tensor:
    # Row i of a key's split is fold_in(key, i): the partitionable generator encrypts the counter i.
    counters = _counters(num, keys.device)
    return _generate(keys[..., 0, None], keys[..., 1, None], *counters, lambda a, b: torch.stack((a, b), -1))


def _draw(key: Tensor, shape: Sequence[int], emit: Callable[[Tensor], Tensor]) -> Tensor:
    counters = _counters(math.prod(shape), key.device)
    return _generate(key[0], key[1], *counters, lambda a, b: emit(a ^ b)).reshape(tuple(shape))


def _counters(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The high and low words of 0 .. n-1."""
    if n > 2**31:
        return _words(torch.arange(n, device=device))
    return torch.zeros((), dtype=torch.int32, device=device), torch.arange(n, dtype=torch.int32, device=device)


def _words(index: Tensor) -> tuple[Tensor, Tensor]:
    return (index >> 32).to(torch.int32), index.to(torch.int32)


def _generate(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor, emit: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`emit(*threefry2x32(k0, k1, x0, x1))`, in cache-sized chunks of the first axis where that pays."""
    operands = (k0, k1, x0, x1)
    shape = torch.broadcast_shapes(*(t.shape for t in operands))
    total = math.prod(shape)
    if total <= _EAGER_CHUNK or k0.device.type != "cpu" or torch.compiler.is_compiling():
        return emit(*threefry2x32(*operands))
    rows = max(1, _EAGER_CHUNK * shape[0] // total)
    starts = range(0, shape[0], rows)

    def pieces(t: Tensor) -> Sequence[Tensor]:
        whole = t.dim() < len(shape) or t.shape[0] == 1
        return [t] * len(starts) if whole else t.split(rows)

    return torch.cat([emit(*threefry2x32(*chunk)) for chunk in zip(*map(pieces, operands), strict=True)])


def _as_int32(name: str, value: int) -> int:
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None
    if not 0 <= value < 2**32:
        raise ValueError(f"{name} must lie in [0, 2^32), got {value}")
    return value - 2**32 if value >= 2**31 else value
