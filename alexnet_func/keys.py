"""Keys: what one is, made of seeds and of other libraries' words, and told from what is none."""

import numbers
import operator
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

Key = Int32[Tensor, "2"]
Shape = int | Sequence[int]


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
        word = word_of("seed", seed)
        return torch.stack((torch.zeros_like(word), word)).to(device=device)
    if isinstance(seed, Tensor) or (not is_integer(seed) and _speaks_arrays(seed)):
        words = wrap_key_data(seed)
        check_key(words)
        return words.to(device=device)
    return torch.tensor([0, as_int32("seed", seed)], dtype=torch.int32, device=device)


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


def word_of(name: str, data: Tensor) -> Int32[Tensor, ""]:
    """One integer of any dtype modulo 2^32. TypeError for a float or an axis."""
    if data.dtype.is_floating_point or data.dtype.is_complex or data.dim():
        raise TypeError(f"{name} must be one integer, got {data.dtype} {list(data.shape)}; map over more with vmap")
    return data.to(torch.int32)


def as_int32(name: str, value: Any) -> int:
    """The value of int32 with the bits of an integer in [0, 2^32). TypeError for none, ValueError outside."""
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
