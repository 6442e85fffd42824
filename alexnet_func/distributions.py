"""What `random` makes of words: its distributions as functions without keys, and the checks of its arguments.

Uniforms here are on [0, 1) in steps of 2^-23, as `to_unit` makes them of words.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet_func.checks import visible
from alexnet_func.keys import is_integer

_INT32 = torch.iinfo(torch.int32)


def to_unit(words: Tensor) -> Tensor:
    """Uniforms on [0, 1): the upper 23 bits."""
    return ((words >> 9) & 0x7FFFFF).to(torch.float32) * 2.0**-23


def to_normal(words: Tensor) -> Tensor:
    """Standard normals of JAX's uniforms on (-1, 1)."""
    lowest = -1 + 2.0**-24
    u = (to_unit(words) * 2 + lowest).clamp(min=lowest)
    # The compiler's own float32 function is off by 4e-5 in the tails, CUDA's by 3 ulp; a CPU's is within an ulp.
    u = u.double() if torch.compiler.is_compiling() or u.is_cuda else u
    return (math.sqrt(2) * torch.erfinv(u)).to(torch.float32)


def to_gumbel(words: Tensor) -> Tensor:
    """Standard Gumbels. Both logarithms in float64: a result near zero is a difference that float32 has lost."""
    tiny = torch.finfo(torch.float32).tiny
    return -torch.log(-torch.log(to_unit(words).double().clamp(min=tiny))).to(torch.float32)


def affine(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The float32 of u * (high - low) + low, rounded once as in a fused multiply-add; low where high is lower."""
    # The product has 47 bits, exact in float64. Rounding their sum there and then to float32 differs from rounding once
    # only where the first gives the middle between two float32 numbers and has lost something (2Sum, Knuth): there it
    # takes one step towards what was lost. Steps have no gradient; that of the plain sum remains.
    span = (high - low).where(~(high < low), 0)
    product, base = u.double() * span.double(), low.double()
    total = (product + base).clamp(-1e300, 1e300)  # inf - inf is no number
    seen, back = total.detach(), (total - product).detach()
    lost = (product.detach() - (seen - back)).add_(base.detach() - back)
    near = seen.to(torch.float32).double()
    mirrored = 2 * seen - near  # a float32 number too, where `seen` is in the middle
    tie = (lost != 0) & (mirrored != near) & (mirrored.to(torch.float32).double() == mirrored)
    beyond = torch.nextafter(seen, torch.full_like(seen, math.inf).copysign(lost))
    return (total + (beyond.where(tie, seen) - seen)).to(torch.float32)


def truncate(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The inverse distribution function of a standard normal on the open interval (low, high), by float64."""
    # Around zero the error function keeps small values exact. Farther out the tail's own probability does: that of the
    # lower tail, to which positive intervals are mirrored, since near 1 the float64 numbers are too coarse.
    central, mirrored = (low < 1) & (high > -1), low >= 1
    ends = [x.double() * math.sqrt(0.5) for x in (low, high)]
    between = _mix(u, *map(torch.erf, ends))
    tail = _mix(u, *(torch.special.erfc(torch.where(mirrored, x, -x)) / 2 for x in ends))
    inner = math.sqrt(2) * _inverse(torch.erfinv, between, central & (between.abs() < 1))
    outer = _inverse(torch.special.ndtri, tail, ~central & (tail > 1e-300))
    x = torch.where(central, inner, torch.where(mirrored, -outer, outer)).to(torch.float32)
    infinity = torch.full_like(low, math.inf)
    return x.clamp(torch.nextafter(low.detach(), infinity), torch.nextafter(high.detach(), -infinity))


def _mix(u: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return start + u.double() * (end - start)


def _inverse(function: Callable[[Tensor], Tensor], p: Tensor, inside: Tensor) -> Tensor:
    # Outside, a harmless 0.5 takes the place of p: an infinite derivative times a zero gradient is no number.
    return function(p.where(inside, 0.5)).where(inside, -math.inf)


def running_sums(x: Tensor) -> Tensor:
    """Running float32 sums in the order of XLA's on a CPU: within tiles of 16, plus those over the tiles' sums."""
    tiles = F.pad(x, (0, -len(x) % 16)).view(-1, 16)
    within = torch.stack(list(itertools.accumulate(tiles.unbind(-1))), -1)
    if len(within) > 1:
        within = within + F.pad(running_sums(within[:, -1])[:-1], (1, 0))[:, None]
    return within.flatten()[: len(x)]


def first_reaching(sums: Tensor, targets: Tensor) -> Tensor:
    """The first index whose running sum reaches each target, by JAX's bisection."""
    # Rounding may let running sums fall by an ulp from tile to tile, and there the steps of the search decide:
    # torch.searchsorted takes others.
    low, high = torch.zeros_like(targets, dtype=torch.int64), torch.full_like(targets, len(sums), dtype=torch.int64)
    for _ in range(len(sums).bit_length()):
        middle = (low + high) // 2
        reaches = targets <= sums[middle]
        low, high = torch.where(reaches, low, middle), torch.where(reaches, middle, high)
    return high.to(torch.int32)


def descending(scores: Tensor) -> Tensor:
    """Indices along the last axis from the largest score to the smallest, the first of equals first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices.to(torch.int32)


def given(value: Any) -> str:
    """What an error says that it got."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def real(name: str, value: Any, key: Tensor, shape: Sequence[int]) -> Tensor:
    """A number or a real tensor as a float32 tensor that broadcasts to `shape` beside the key; else an error."""
    check_real(name, value)
    if not isinstance(value, Tensor):
        return torch.full((), float(value), dtype=torch.float64, device=key.device).to(torch.float32)
    check_operand(name, value, key, shape)
    return value.to(torch.float32)


def check_real(name: str, value: Any) -> None:
    """Raises TypeError unless it is a real number or a tensor of them."""
    is_tensor = isinstance(value, Tensor)
    if not (is_tensor or isinstance(value, Real)) or (is_tensor and (value.is_complex() or value.dtype == torch.bool)):
        raise TypeError(f"{name} must be a number or a real tensor, got {given(value)}")


def common_shape(**values: Any) -> tuple[int, ...]:
    """The shape to which the tensors among named values broadcast; ValueError where there is none."""
    shapes = {name: list(value.shape) for name, value in values.items() if isinstance(value, Tensor)}
    try:
        return tuple(torch.broadcast_shapes(*shapes.values()))
    except RuntimeError:
        shown = " and ".join(f"{name} of shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"{shown} do not broadcast to one shape") from None


def whole(name: str, value: Any, key: Tensor, shape: Sequence[int], most: int) -> Any:
    """An integer in -2^31 .. `most`, or an integer tensor clamped there, as int64; else an error."""
    if not isinstance(value, Tensor):
        if not is_integer(value):
            raise TypeError(f"{name} must be an integer or an integer tensor, got {given(value)}")
        if not _INT32.min <= value <= most:
            raise ValueError(f"{name} must lie in {_INT32.min}..{most}, got {value}")
        return int(value)
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer or an integer tensor, got {given(value)}")
    check_operand(name, value, key, shape)
    return value.to(torch.int64).clamp(_INT32.min, most)


def length(name: str, value: Any, axis: int) -> int:
    """The length of a range that is given by an integer, whose one axis is 0; else an error."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer or a tensor, got {given(value)}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    if axis not in (0, -1):
        raise ValueError(f"axis must be 0 where {name} is an integer, got {axis}")
    return int(value)


def axis_of(name: str, value: Tensor, axis: int, key: Tensor) -> int:
    """The axis counted from the front, of a tensor that has it and lies beside the key; else an error."""
    if not value.dim():
        raise TypeError(f"{name} must have an axis, got {given(value)}; a number of elements is a Python integer")
    if not -value.dim() <= axis < value.dim():
        raise ValueError(
            f"axis must lie in {-value.dim()}..{value.dim() - 1} for {name} {list(value.shape)}, got {axis}"
        )
    _check_device(name, value, key)
    return axis % value.dim()


def check_operand(name: str, value: Tensor, key: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError unless the tensor broadcasts to `shape` and lies beside the key, or is a scalar."""
    if not broadcasts(value.shape, shape):
        raise ValueError(f"{name} of shape {list(value.shape)} does not broadcast to shape {list(shape)}")
    if value.dim():
        _check_device(name, value, key)


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of `shape` broadcasts to the shape `to`."""
    pairs = zip(shape[::-1], to[::-1], strict=False)
    return len(shape) <= len(to) and all(have in (1, want) for have, want in pairs)


def check_order(lower: Any, upper: Any, low: Tensor, high: Tensor) -> None:
    """Raises ValueError unless lower < upper: of numbers as given, of plain tensors on a CPU as float32."""
    seen = plain(low), plain(high)
    if isinstance(lower, Tensor) or isinstance(upper, Tensor):
        ordered = seen[0] is None or seen[1] is None or bool((seen[0] < seen[1]).all())
    else:
        ordered = lower < upper
    if not ordered:
        raise ValueError(f"lower must lie below upper, got {lower} and {upper}")


def check_weights(p: Any, key: Tensor, n: int, draws: int, replace: bool) -> None:
    """Raises TypeError or ValueError unless p is `[n]` and, where it may be looked at, fit for as many draws."""
    if not isinstance(p, Tensor) or p.is_complex() or p.dtype == torch.bool:
        raise TypeError(f"p must be a real tensor, got {given(p)}")
    if p.shape != (n,):
        raise ValueError(f"p must have shape [{n}], one weight an element, got {list(p.shape)}")
    _check_device("p", p, key)
    weights = plain(p)
    if weights is None:
        return
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError(f"p must hold finite weights that are not negative, got {weights.min()} to {weights.max()}")
    positive, needed = int((weights > 0).sum()), min(1, draws) if replace else draws
    if positive < needed:
        raise ValueError(f"p must hold at least {needed} positive weights, got {positive}")


def plain(value: Tensor) -> Tensor | None:
    """The tensor where its numbers may be looked at (`checks.visible`) and no transform wraps it, else None."""
    seen = visible(value)
    return None if seen is None or torch.func.debug_unwrap(value) is not value else seen


def _check_device(name: str, value: Tensor, key: Tensor) -> None:
    if value.device != key.device:
        raise ValueError(f"{name} is on {value.device} but key is on {key.device}")
