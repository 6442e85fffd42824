"""In what precision float32 matrix products and convolutions run, by a switch of the process or of one loss."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from alexnet_func import tape

__all__ = [
    "InPrecision",
    "Precision",
    "same_sums",
    "tf32",
    "with_precision",
]

Precision = Literal["float32", "tf32", "bf16"]


class InPrecision(NamedTuple):
    """Wraps a loss or a `grad_fn`, called as it is, and asks whoever differentiates it for a precision."""

    function: "Function"
    precision: Precision

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what `function` gives."""
        return self.function(*args, **kwargs)


Function = Callable[..., Any] | InPrecision


def with_precision(loss_fn: Function, precision: Precision) -> InPrecision:
    """Returns `loss_fn` as computed in `precision`, over float32 master weights and with float32 gradients.

    "bf16" casts parameters and floating inputs to bfloat16 for the forward and backward pass, wherever the loss is
    used. "tf32" lets a CUDA device round the operands of float32 products to TF32, "float32" forbids it. That is a
    switch of the process, and the backward pass runs after the loss has returned: `train.make_step` reads it from the
    result, from a `functools.partial` of it and from a `grad_fn` that the library makes of it, sets it around the
    whole step and leaves no global changed. Wrapped in a function of your own the loss still computes, but where it
    is differentiated while the switch stands otherwise it refuses, by a ValueError, rather than be ignored: wrap before
    `with_precision`, or call within `precision.tf32(...)`.

    Raises ValueError for another precision.

    Examples:
        >>> from functools import partial
        >>> loss = af.train.with_precision(partial(af.loss_fn, arch=arch), "bf16")
        >>> af.train.make_step(loss, af.optim.sgd(0.1)).precision
        'bf16'
    """
    if precision not in ("float32", "tf32", "bf16"):
        raise ValueError(f'precision must be "float32", "tf32" or "bf16", got {precision!r}')

    lost = (
        f'with_precision(loss, "{precision}") is differentiated where its precision would be lost: give the result, or '
        "a functools.partial of it, to train.make_step, or differentiate within "
        f"alexnet_func.precision.tf32({precision == 'tf32'})"
    )

    def lowered(value: Any) -> Any:
        return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value

    def in_bf16(params: Any, batch: Any, *, key: Tensor | None = None) -> Any:
        return loss_fn(pytree.tree_map(lowered, params), pytree.tree_map(lowered, batch), key=key)

    def switched(params: Any, batch: Any, *, key: Tensor | None = None) -> Any:
        if _stands(precision):
            return loss_fn(params, batch, key=key)
        if torch.compiler.is_compiling() or tape.transformed():
            raise ValueError(lost)
        with tf32(precision == "tf32"):
            value = loss_fn(params, batch, key=key)
        if tape.watched(value):  # autograd will go back when the switch stands otherwise again
            raise ValueError(lost)
        return value

    return InPrecision(in_bf16 if precision == "bf16" else switched, precision)


def precision_of(function: Any) -> Precision | None:
    """What `with_precision` asked for a loss, or for the one in a `functools.partial` or a `grad_fn` of the library."""
    while isinstance(function, functools.partial):
        function = function.func
    return function.precision if isinstance(function, InPrecision) else None


def in_precision_of(loss_fn: Any, grad_fn: Function) -> Function:
    """`grad_fn`, which asks for the precision that is asked for `loss_fn`, which it differentiates."""
    precision = precision_of(loss_fn)
    return grad_fn if precision is None else InPrecision(grad_fn, precision)


@contextmanager
def scope(precision: Precision | None) -> Iterator[None]:
    """Within the block the process' switch stands as `precision` wants it; only "tf32" and "float32" want anything."""
    with tf32({"tf32": True, "float32": False}.get(precision or "")):
        yield


@contextmanager
def same_sums() -> Iterator[None]:
    """Within the block cuDNN takes only algorithms that add up in the same order every time."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@contextmanager
def tf32(allowed: bool | None) -> Iterator[None]:
    """Within the block float32 products and convolutions on CUDA may (True) or may not (False) round to TF32.

    None leaves the flags as they are. Restores every flag it changes.
    """
    if allowed is None:
        yield
        return
    # torch keeps this twice, in global settings and as a string for each operator, and a getter of the first raises
    # where the two disagree. So the global ones are set while they can be read, and on the way out the strings again.
    backends: Any = torch.backends  # some attributes are made at run time
    operators = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    strings = [op.fp32_precision for op in operators]
    settings = _global_settings()
    try:
        if settings is None:
            for operator in operators[:3]:
                operator.fp32_precision = "tf32" if allowed else "ieee"
        else:
            _set_globally("high" if allowed else "highest", allowed)
        yield
    finally:
        if settings is not None:
            _set_globally(*settings)
        for operator, string in zip(operators, strings, strict=True):
            operator.fp32_precision = string


def rounds_products(device: torch.device) -> bool:
    """Whether a product of float32 matrices on `device` may round them to TF32."""
    return device.type == "cuda" and _allowed()[0]


def _stands(precision: Precision) -> bool:
    """Whether the switch already stands as "tf32" or "float32" wants it, for products and convolutions alike."""
    return _allowed() == (precision == "tf32",) * 2


def _allowed() -> tuple[bool, bool]:
    """Whether TF32 is, for matrix products and for convolutions on CUDA."""
    backends: Any = torch.backends
    if torch.compiler.is_compiling():  # which reads these, but not the strings
        return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    return backends.cuda.matmul.fp32_precision == "tf32", backends.cudnn.conv.fp32_precision == "tf32"


def _global_settings() -> tuple[str, bool] | None:
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_globally(matmul: str, convolution: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution
