"""Keys and their bits: the cipher threefry2x32 in plain tensor operations, beneath `random`, which exposes the keys.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the counters and the words
of a key are those of JAX's partitionable generator.
"""

import importlib.util
import math
import numbers
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Integer
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from alexnet_func import tape

_HAS_TRITON = importlib.util.find_spec("triton") is not None

Key = Int32[Tensor, "2"]
Shape = int | Sequence[int]

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
# Temporaries of this many words stay in the cache: measured ten times faster on a CPU than one pass
# over ten million. A compiler fuses the rounds and a GPU wants few launches: neither chunks.
_EAGER_CHUNK = 1 << 18


def key(seed: Any, device: torch.device | str | None = None) -> Key:
    """Makes the key of a seed, as `jax.random.key(seed)` does, the words `[0, seed]`; or takes a key made elsewhere.

    A seed is a Python integer in [0, 2^32) or one integer in a tensor, which is taken modulo 2^32 as JAX takes it:
    `vmap(key)(seeds)` makes many. Anything else is what `wrap_key_data` accepts for a single key, such as
    `jax.random.key(0)` or its uint32 words `[2]`, and gives the same key here. Without `device` the key lies where the
    tensor or array lies, and that of a Python integer on the default device.

    Raises ValueError for a Python integer outside [0, 2^32): JAX in its 32-bit mode drops the upper bits without a
    word, so that seeds 5 and 2^32 + 5 would be one key. Raises TypeError for what is neither a seed nor a key.

    Examples:
        >>> af.random.key(7)
        tensor([0, 7], dtype=torch.int32)
        >>> torch.vmap(af.random.key)(torch.arange(3)).tolist()
        [[0, 0], [0, 1], [0, 2]]
    """
    if isinstance(seed, Tensor) and not seed.dim():
        word = _word("seed", seed)
        return torch.stack((torch.zeros_like(word), word)).to(device=device)
    if isinstance(seed, Tensor) or (not is_integer(seed) and _speaks_arrays(seed)):
        words = wrap_key_data(seed)
        check_key(words)
        return words.to(device=device)
    return torch.tensor([0, _as_int32("seed", seed)], dtype=torch.int32, device=device)


def key_data(keys: Int32[Tensor, "*n 2"]) -> Int32[Tensor, "*n 2"]:
    """Returns the words of keys: the keys themselves, int32 of the bits that `jax.random.key_data` gives as uint32.

    `jax.random.wrap_key_data(key_data(key).numpy().view("uint32"))` is the key in JAX. Raises TypeError and ValueError
    for what is no int32 tensor `[..., 2]`.

    Examples:
        >>> af.random.key_data(af.random.key(7)).numpy().view("uint32")
        array([0, 7], dtype=uint32)
    """
    _check_words("keys", keys, (torch.int32,))
    return keys


def wrap_key_data(key_bits_array: Any) -> Int32[Tensor, "*n 2"]:
    """Makes keys of the given words, copied: the inverse of `key_data` here and in JAX.

    Takes uint32 or int32 words of shape `[..., 2]` as a tensor or as an array of any library that speaks dlpack (the
    keys then lie on the array's device) or `__array__`, and JAX's typed threefry2x32 keys. Raises TypeError for other
    types and dtypes, ValueError for other shapes and for keys of JAX's other generators.

    Examples:
        >>> words = af.random.key_data(af.random.split(key, 3)).numpy().view("uint32")
        >>> torch.equal(af.random.wrap_key_data(words), af.random.split(key, 3))
        True
    """
    words = _as_tensor(key_bits_array)
    _check_words("key data", words, (torch.uint32, torch.int32))
    return words.view(torch.int32).clone()


def clone(keys: Int32[Tensor, "*n 2"]) -> Int32[Tensor, "*n 2"]:
    """Copies keys into memory of their own; the copies draw the same numbers. Errors are those of `key_data`.

    Examples:
        >>> copy = af.random.clone(key)
        >>> torch.equal(copy, key), copy.data_ptr() == key.data_ptr()
        (True, False)
    """
    return key_data(keys).clone()


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
        word = _word("data", data)
    else:
        word = torch.full((), _as_int32("data", data), dtype=torch.int32, device=key.device)
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


def check_key(key: object, rows: int | None = None) -> None:
    """Raises TypeError or ValueError unless `key` is an int32 tensor [2], or, given `rows`, [rows, 2]."""
    if not isinstance(key, Tensor) or key.dtype != torch.int32:
        given = f"a {key.dtype} tensor" if isinstance(key, Tensor) else type(key).__name__
        raise TypeError(f"key must be an int32 tensor from alexnet_func.random.key, got {given}")
    accepted = [(2,)] if rows is None else [(2,), (rows, 2)]
    if tuple(key.shape) not in accepted:
        shapes = " or ".join(str(list(shape)) for shape in accepted)
        raise ValueError(f"key must have shape {shapes}, got {list(key.shape)}; map over other axes with vmap")


def as_shape(shape: Shape, name: str = "shape") -> tuple[int, ...]:
    """A shape as a tuple, of one axis for a bare integer. TypeError unless integers, ValueError for negative ones."""
    dims: Any = (shape,) if is_integer(shape) else shape
    if isinstance(dims, Tensor) or not hasattr(dims, "__iter__") or not all(map(is_integer, dims)):
        raise TypeError(f"{name} must be an int or a sequence of ints, got {shape!r}")
    dims = tuple(d if isinstance(d, int | torch.SymInt) else operator.index(d) for d in dims)
    if any(d < 0 for d in dims):
        raise ValueError(f"{name} must not be negative, got {shape}")
    return dims


def is_integer(value: Any) -> bool:
    """Whether it is of `numbers.Integral`, as NumPy's are, or an integer array without axes; a tensor is none.

    Its value may lie on a GPU.
    """
    if isinstance(value, numbers.Integral | torch.SymInt):
        return True
    scalar = not isinstance(value, Tensor) and getattr(value, "shape", None) == () and hasattr(value, "__index__")
    return scalar and getattr(getattr(value, "dtype", None), "kind", None) in ("i", "u")


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


def _word(name: str, data: Tensor) -> Tensor:
    if data.dtype.is_floating_point or data.dtype.is_complex or data.dim():
        raise TypeError(f"{name} must be one integer, got {data.dtype} {list(data.shape)}; map over more with vmap")
    return data.to(torch.int32)


def _as_int32(name: str, value: Any) -> int:
    if not is_integer(value):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    value = operator.index(value)
    if not 0 <= value < 2**32:
        raise ValueError(f"{name} must lie in [0, 2^32), got {value}")
    return value - 2**32 if value >= 2**31 else value


def _check_words(name: str, words: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    accepted = f"{' or '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)} of shape [..., 2]"
    if not isinstance(words, Tensor):
        raise TypeError(f"{name} must be {accepted}, got {type(words).__name__}")
    if words.dtype not in dtypes:
        raise TypeError(f"{name} must be {accepted}, got {words.dtype} {list(words.shape)}")
    if words.shape[-1:] != (2,):
        raise ValueError(f"{name} must be {accepted}, got {words.dtype} {list(words.shape)}")


def _speaks_arrays(data: Any) -> bool:
    return _is_typed_jax_key(data) or hasattr(data, "__dlpack__") or hasattr(data, "__array__")


def _is_typed_jax_key(data: Any) -> bool:
    # These alone among JAX's arrays speak no array protocol.
    return (
        type(data).__module__.partition(".")[0] == "jax" and hasattr(data, "dtype") and not hasattr(data, "__dlpack__")
    )


def _as_tensor(data: Any) -> Tensor:
    """The array as a tensor, which may share its memory."""
    if isinstance(data, Tensor):
        return data
    if not _speaks_arrays(data):
        raise TypeError(f"key data must be a tensor, an array or a JAX key, got {type(data).__name__}")
    if _is_typed_jax_key(data):
        random = sys.modules["jax"].random  # the caller's: importing JAX here would load it for everyone
        if random.key_impl(data) != "threefry2x32":
            raise ValueError(f"key data must be of JAX's threefry2x32, got a key of {random.key_impl(data)}")
        data = random.key_data(data)
    # NumPy hands out no read-only array by dlpack.
    if hasattr(data, "__dlpack__") and not isinstance(data, np.ndarray | np.generic):
        return torch.from_dlpack(data)
    array = np.array(data)
    if array.dtype not in (np.uint32, np.int32):
        raise TypeError(f"key data must be uint32 or int32 of shape [..., 2], got {array.dtype} {list(array.shape)}")
    return torch.from_numpy(array)
