"""Checks of arguments, made before any arithmetic: each names what was given and what is accepted.

Values of tensors are looked at only where that costs nothing and means something: see `visible`.
"""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Shape = tuple[int, ...]


def visible(value: Tensor) -> Tensor | None:
    """The plain tensor behind `value`, or None where its numbers may not be looked at.

    On a GPU looking would wait for it, and while code is traced there are no numbers. Under `torch.func` transforms it
    is the tensor inside the wrappers: all of those that a `vmap` maps over at once.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or value.device.type != "cpu":
        return None
    inner = torch.func.debug_unwrap(value, recurse=True)
    return inner.detach() if type(inner) in (Tensor, torch.nn.Parameter) else None  # a fake tensor has no numbers


def check_number(
    name: str,
    value: Any,
    fits: Callable[[float], bool] = lambda number: number >= 0,
    accepted: str = "must not be negative",
) -> None:
    """Raises TypeError unless `value` is a number or a scalar tensor, and ValueError unless it `fits`.

    `accepted` says in the error what does. The number in a tensor is looked at where it is `visible`.
    """
    if isinstance(value, Tensor):
        if value.dim() or value.is_complex() or value.dtype == torch.bool:
            raise _not_a_number(name, f"a tensor {value.dtype} {list(value.shape)}")
        seen = visible(value)
        numbers = [] if seen is None else seen.flatten().tolist()
    elif isinstance(value, Real) and not isinstance(value, bool):
        numbers = [float(value)]
    else:
        raise _not_a_number(name, f"{value!r}" if value is None or isinstance(value, bool) else type(value).__name__)
    for number in numbers:
        if not fits(number):
            raise ValueError(f"{name} {accepted}, got {number}")


def check_fraction(name: str, value: Any) -> None:
    """`check_number` for [0, 1)."""
    check_number(name, value, lambda number: 0 <= number < 1, "must lie in [0, 1)")


def _not_a_number(name: str, given: str) -> TypeError:
    return TypeError(f"{name} must be a number or a scalar tensor, got {given}")


def check_tensors(given: Any, what: str) -> None:
    """Raises TypeError unless `given` is a dict of tensors by name."""
    if not isinstance(given, Mapping):
        hint = ": use interop.from_module(module)" if isinstance(given, torch.nn.Module) else ""
        raise TypeError(f"{what} must be a dict of tensors by name, got {type(given).__name__}{hint}")
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{what}: {name} must be a tensor, got {type(value).__name__}")


def check_named_tensors(expected: Mapping[str, Shape], given: Any, what: str) -> None:
    """Raises ValueError that lists every missing, unexpected and misshapen name; TypeError as `check_tensors`."""
    check_tensors(given, what)
    problems = [f"missing {name} {list(expected[name])}" for name in expected if name not in given]
    problems += [f"unexpected {name} {list(given[name].shape)}" for name in given if name not in expected]
    problems += [
        f"{name} must be {list(shape)}, got {list(given[name].shape)}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    if problems:
        raise ValueError(f"{what}: " + "; ".join(problems))


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shape of every tensor, by name."""
    return {name: tuple(t.shape) for name, t in tensors.items()}
