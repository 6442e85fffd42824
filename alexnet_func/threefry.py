"""The bits of keys: the cipher threefry2x32 in plain tensor operations, beneath `random`, which exposes the keys.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the counters and the words
of a key are those of JAX's partitionable generator.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int32, Integer
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from alexnet_func import tape
from alexnet_func.keys import Key, Shape, as_int32, as_shape, check_key, word_of

_HAS_TRITON = importlib.util.find_spec("triton") is not None

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
# Temporaries of this many words stay in the cache: measured ten times faster on a CPU than one pass
# over ten million. A compiler fuses the rounds and a GPU wants few launches: neither chunks.
_EAGER_CHUNK = 1 << 18


def split(key: Key, num: Shape = 2) -> Int32[Tensor, "*num 2"]:
    """Derives `num` independent keys from `key`, one a row.

    A tuple gives the shape of an array of keys, counted row by row. Row i does not depend on `num`: it is
    `fold_in(key, i)`. Raises ValueError for a negative `num`, TypeError for what is no integer or sequence of them.

    Examples:
        >>> init_key, data_key = af.random.split(key)
        >>> torch.equal(af.random.split(key, 5)[1], data_key)
        True
    """
    check_key(key)
    shape = as_shape(num, "num")
    return split_each(key, math.prod(shape)).reshape((*shape, 2))


def fold_in(key: Key, data: int | Integer[Tensor, ""]) -> Key:
    """Derives a key from `key` and one integer, for example a step or an example's index.

    A tensor is taken modulo 2^32; its range is not checked, since that would synchronise a GPU.
    Raises ValueError for a Python integer outside [0, 2^32).

    Examples:
        >>> step_keys = [af.random.fold_in(key, step) for step in range(3)]
        >>> torch.equal(torch.stack(step_keys), af.random.split(key, 3))
        True
    """
    check_key(key)
    if isinstance(data, Tensor):
        word = word_of("data", data)
    else:
        word = torch.full((), as_int32("data", data), dtype=torch.int32, device=key.device)
    return torch.stack(threefry2x32(key[0], key[1], torch.zeros_like(word), word), -1)


def bits(key: Key, shape: Shape = ()) -> Int32[Tensor, "*shape"]:
    """Draws uniform 32-bit patterns as int32, so values from 2^31 on appear negative; equal to JAX's bit for bit.

    Examples:
        >>> af.random.bits(key, (3,))
        tensor([-224768089,  -91998574, 1427181096], dtype=torch.int32)
    """
    return draw(key, shape, lambda words: words)


def threefry2x32(
    k0: Int32[Tensor, "*#n"], k1: Int32[Tensor, "*#n"], x0: Int32[Tensor, "*#n"], x1: Int32[Tensor, "*#n"]
) -> tuple[Int32[Tensor, "*n"], Int32[Tensor, "*n"]]:
    """Encrypts the words (x0, x1) under the key (k0, k1), by Threefry-2x32 with 20 rounds.

    All four broadcast. Source: Salmon et al. 2011, section 3.3 and the Random123 constants.

    Examples:
        >>> zero = torch.zeros((), dtype=torch.int32)
        >>> [hex(int(word) & 0xFFFFFFFF) for word in af.random.threefry2x32(zero, zero, zero, zero)]
        ['0x6b200159', '0x99ba4efe']
    """
    if k0.device.type == "cuda" and _has_kernel():
        from alexnet_func import threefry_kernel

        return threefry_kernel.threefry2x32(k0, k1, x0, x1)
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


def split_each(keys: Tensor, num: int) -> Tensor:
    """`num` keys of each key, along a new axis before the last."""
    # Row i of a key's split is fold_in(key, i): the partitionable generator encrypts the counter i.
    counters = _counters(num, keys.device)
    return generate(keys[..., 0, None], keys[..., 1, None], *counters, lambda a, b: torch.stack((a, b), -1))


def draw(key: Tensor, shape: Shape, emit: Callable[[Tensor], Tensor]) -> Tensor:
    """What `emit` makes of a word of `bits` each, in the given shape; `emit` sees the words flat and may see chunks."""
    check_key(key)
    dims = as_shape(shape)
    counters = _counters(math.prod(dims), key.device)
    return generate(key[0], key[1], *counters, lambda a, b: emit(a ^ b)).reshape(dims)


def generate(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor, emit: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
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


def _has_kernel() -> bool:
    """Whether there is a compiler for a kernel, and nothing maps or traces what it would read."""
    return _HAS_TRITON and not (torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or tape.mapped())


def _rotate_left(x: Tensor, count: int) -> Tensor:
    # int32 shifts right arithmetically, hence the mask; x * 2^count wraps to a left shift, and
    # adding in place with `alpha` saves three passes over memory.
    wrapped = x >> (32 - count)
    return wrapped.bitwise_and_((1 << count) - 1).add_(x, alpha=1 << count)


def _counters(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The high and low words of 0 .. n-1."""
    if n > 2**31:
        return _words(torch.arange(n, device=device))
    return torch.zeros((), dtype=torch.int32, device=device), torch.arange(n, dtype=torch.int32, device=device)


def _words(index: Tensor) -> tuple[Tensor, Tensor]:
    return (index >> 32).to(torch.int32), index.to(torch.int32)
