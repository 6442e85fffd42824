"""What an optimiser is, the checks that all share, and their arithmetic over dicts of tensors."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from alexnet_func import tape
from alexnet_func.checks import check_named_tensors, check_number, check_tensors, shapes_of
from alexnet_func.model import Params

# Nested dicts whose innermost ones hold a tensor for each parameter, by its name.
OptState = dict[str, Any]
# Named, since an optimiser may be made within a compiled function, where Dynamo builds no generic types.
Updated = tuple[Params, OptState]
Schedule = Callable[[Int[Tensor, ""]], Float[Tensor, ""]]
Number = float | Float[Tensor, ""]
Rate = float | Tensor | Schedule


# Values whose intermediate results an update holds at once, or those of one tensor that has more.
_GROUP = 1 << 24


class Optimizer(NamedTuple):
    """Holds `init(params) -> opt_state` and `update(grads, opt_state, params, step) -> (params, opt_state)`."""

    init: Callable[[Params], OptState]
    update: Callable[[Params, OptState, Params, Tensor], Updated]


class Transform(NamedTuple):
    """Holds a part of `chain` that gives gradients: `update(grads, state, params, step) -> (grads, state)`."""

    init: Callable[[Params], OptState]
    update: Callable[[Params, OptState, Params, Tensor], Updated]


def check_optimizer(optimizer: Any) -> None:
    """Raises TypeError unless `optimizer` is an `Optimizer`.

    Examples:
        >>> af.optim.check_optimizer(af.optim.sgd(0.1))
        >>> af.optim.check_optimizer(af.optim.clip_by_global_norm(1.0))
        Traceback (most recent call last):
            ...
        TypeError: optimizer must be an optim.Optimizer, got Transform, which only transforms gradients: ...
    """
    if not isinstance(optimizer, Optimizer):
        hint = ", which only transforms gradients: optim.chain(it, optim.sgd(...)) is one" * isinstance(
            optimizer, Transform
        )
        raise TypeError(f"optimizer must be an optim.Optimizer, got {type(optimizer).__name__}{hint}")


def check_update(grads: Params, opt_state: OptState, params: Params, *moments: str) -> None:
    """Raises ValueError or TypeError unless grads, and the state's `moments` alone, fit the params."""
    check_tensors(params, "params")
    shapes = shapes_of(params)
    check_named_tensors(shapes, grads, "grads")
    if not isinstance(opt_state, Mapping) or set(opt_state) != set(moments):
        given = sorted(opt_state) if isinstance(opt_state, Mapping) else type(opt_state).__name__
        raise ValueError(f"opt_state must be what this optimizer's init makes, with {sorted(moments)}, got {given}")
    for moment in moments:
        check_named_tensors(shapes, opt_state[moment], f'opt_state["{moment}"]')


def check_rate(learning_rate: Rate) -> None:
    """Raises TypeError or ValueError unless it is a number or a scalar tensor, not negative, or a schedule."""
    if not callable(learning_rate):
        check_number("learning_rate", learning_rate)


def is_off(value: Number) -> bool:
    """Whether a setting is the number 0; a tensor, which may be differentiated or mapped, is always on."""
    return not isinstance(value, Tensor) and value == 0


def zeros_like(params: Params) -> Params:
    """A zero for every parameter."""
    check_tensors(params, "params")
    return {name: torch.zeros_like(p) for name, p in params.items()}


def rate_at(learning_rate: Rate, step: Tensor) -> Tensor:
    """The learning rate as a scalar tensor. Raises ValueError for a schedule that gives no scalar."""
    if callable(learning_rate):
        rate = learning_rate(step)
        if not isinstance(rate, Tensor) or rate.dim():
            given = list(rate.shape) if isinstance(rate, Tensor) else type(rate).__name__
            raise ValueError(f"a schedule must give a scalar tensor, got {given}")
        return rate
    if isinstance(learning_rate, Tensor):
        return learning_rate
    return torch.full_like(step, learning_rate, dtype=torch.float64)


def descend(params: Params, direction: Params, learning_rate: Rate, step: Tensor) -> Params:
    """`params - learning_rate * direction`, with one rounding."""
    return add_scaled(params, direction, -(rate_at(learning_rate, step) if callable(learning_rate) else learning_rate))


def add_scaled(a: Params, b: Params, scale: Number) -> Params:
    """`a + scale * b`, eagerly with one rounding as in torch.optim; the plain expression rounds twice."""
    if isinstance(scale, Tensor):
        return {name: _add_scaled_by_tensor(value, b[name], scale) for name, value in a.items()}
    if torch.compiler.is_compiling():
        # Inductor turns add(matmul, b, alpha=s) into addmm and loses s (seen in torch 2.11 to 2.14).
        return {name: value + scale * b[name] for name, value in a.items()}
    return each("add", a, b, alpha=scale)


def _add_scaled_by_tensor(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)  # a rate rounded to bfloat16 would be off by 0.4 %
    return torch.addcmul(a.to(wide), b.to(wide), scale.to(wide)).to(a.dtype)


def plus(a: Params, b: Params) -> Params:
    """`a + b`."""
    if torch.compiler.is_compiling():
        # Inductor turns a + matmul into addmm, which takes a buffer more; this has the same bits and fuses.
        return {name: value - -b[name] for name, value in a.items()}
    return each("add", a, b)


def groups(params: Params) -> list[Callable[[Params], Params]]:
    """Selections by name that share out the parameters: few launches for many small ones, no copies of all at once."""
    names: list[list[str]] = [[]]
    size = 0
    for name, p in params.items():
        if names[-1] and size + p.numel() > _GROUP:
            names.append([])
            size = 0
        names[-1].append(name)
        size += p.numel()
    return [functools.partial(_chosen, group) for group in names if group]


def _chosen(names: list[str], tensors: Params) -> Params:
    return {name: tensors[name] for name in names}


def each(operation: str, tensors: Params, *others: Params | Number, **options: float) -> Params:
    """`torch.<operation>(tensor, *others, **options)` for every tensor: with its namesakes, or one number for all.

    Where nothing traces or maps them and all have one dtype this is one `torch._foreach_` call: on CUDA a launch or two
    for all.
    """
    values = list(tensors.values())
    dtypes = {t.dtype for t in values}
    lists = [[other[name] for name in tensors] if isinstance(other, dict) else other for other in others]
    traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    if traced or len(dtypes) != 1 or tape.watched(values, lists):
        function = getattr(torch, operation)
        return {
            name: function(a, *(_namesake(other, name, a) for other in others), **options)
            for name, a in tensors.items()
        }
    arguments = [_wide(other, values[0]) if isinstance(other, Tensor) else other for other in lists]
    return dict(zip(tensors, getattr(torch, f"_foreach_{operation}")(values, *arguments, **options), strict=True))


def _namesake(other: Params | Number, name: str, tensor: Tensor) -> Tensor | float:
    if isinstance(other, dict):
        return other[name]
    return _wide(other, tensor) if isinstance(other, Tensor) else other


def _wide(number: Tensor, tensor: Tensor) -> Tensor:
    # Of the tensor's own dtype where that is wide enough, as a joined launch needs.
    return number.to(torch.promote_types(tensor.dtype, torch.float32))


def interpolated(start: Params, end: Params, weight: Number) -> Params:
    """`start + weight (end - start)`: `torch.lerp`, which takes a tensor for a weight in one dtype alone."""
    if isinstance(weight, Tensor):
        return {name: torch.lerp(s, end[name], weight.to(s.dtype)) for name, s in start.items()}
    return each("lerp", start, end, weight=weight)
