"""Sums of clipped gradients that no example changes by more than its bound, and the noise that hides one.

What `privacy` promises of every example is kept here; its table says what each gives.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet_func import parallel, per_sample, random
from alexnet_func._captures import Examples
from alexnet_func.checks import visible
from alexnet_func.model import Params
from alexnet_func.ops import square_root
from alexnet_func.precision import precision_of, scope

# Named, since steps may be made within a compiled function, where Dynamo builds no union of generic types.
Bound = float | Tensor | Mapping[str, float]


class Sums(NamedTuple):
    """Sums of clipped gradients over all ranks, not yet noised; how many gradients the bound held; what noise is of."""

    totals: Params
    held: Tensor
    metrics: dict[str, Tensor]
    noise_key: Tensor


def sums(params: Params, batch: Any, key: Tensor, max_norm: Bound, how: dict[str, Any]) -> Sums:
    """The sums of a step with that key; `max_norm` may be by parameter name, and `how` is for `per_sample`."""
    x, y, weights = _weighted(batch)
    if isinstance(max_norm, Mapping) and set(max_norm) != set(params):
        raise ValueError(f"max_norm must name every parameter, {sorted(params)}, got {sorted(max_norm)}")
    loss_key, noise_key = random.split(key).unbind()
    keys = parallel.example_keys(loss_key, len(y))
    clipped: list[Tensor] = []
    # A graph sets no switch: there the step does.
    with nullcontext() if torch.compiler.is_compiling() else scope("float32"):
        total, norms, losses = per_sample.scaled_sum(
            params, (x, y), _clipping(max_norm, clipped), weights=weights, key=keys, **how
        )
    own = _counts(weights, norms, losses, torch.cat(clipped))
    *sums, loss, heard, long, count = parallel.summed([*total.values(), *own])
    metrics = {"loss": loss / heard.clamp(min=1), "clipped": long / count.clamp(min=1), "count": count}
    totals = dict(zip(total, sums, strict=True))
    return Sums(totals, heard - long, metrics | {"nonfinite": count - heard}, noise_key)


def _clipping(max_norm: Bound, clipped: list[Tensor]) -> per_sample.Scale:
    """The scales that keep every example within its bound; whom they shorten is added to `clipped`, [n] a chunk."""

    def scale(part: Examples, squares: Params) -> per_sample.Scaled:
        hidden = part.hidden()
        upper = {name: square + hidden[name] for name, square in squares.items()}
        keep = per_sample.total_norm(squares).isfinite()
        if isinstance(max_norm, Mapping):
            by_name = {name: per_sample.scale_to(square_root(u), max_norm[name]) for name, u in upper.items()}
            clipped.append(torch.stack([s < 1 for s in by_name.values()]).any(0))
            return by_name, keep
        scales = per_sample.scale_to(per_sample.total_norm(upper), max_norm)
        clipped.append(scales < 1)
        return scales, keep

    return scale


def noised(params: Params, totals: Params, key: random.Key, deviation: Any, size: float) -> Params:
    """`(total + noise) / size` in the parameters' dtypes; tensor i of the parameters has the key `fold_in(key, i)`."""
    grads = {}
    for i, (name, p) in enumerate(params.items()):
        noise = random.normal(random.fold_in(key, i), tuple(p.shape)).to(totals[name].dtype)
        grads[name] = ((totals[name] + deviation * noise) / size).to(p.dtype)
    return grads


def _weighted(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        given = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(f"batch must be (x, y) or (x, y, weights), got {given}")
    x, y, *rest = batch
    weights = rest[0] if rest else torch.ones(len(y), device=y.device)
    if not weights.dtype.is_floating_point:
        raise TypeError(f"weights must be floating-point zeros and ones, got {weights.dtype}")
    seen = visible(weights)
    if seen is not None and not bool(((seen == 0) | (seen == 1)).all()):
        raise ValueError(f"weights must be 0 or 1, as another one voids the guarantee, got {seen.tolist()}")
    return x, y, weights.nan_to_num(0.0).clamp(0, 1)


def _counts(weights: Tensor, norms: Tensor, losses: Tensor, clipped: Tensor) -> tuple[Tensor, ...]:
    """Over the examples: the losses of those whose gradient is finite, how many they are, how many are clipped, all."""
    finite = norms.isfinite()
    heard = weights * finite
    return (losses.where(heard > 0, 0) * heard).sum(), heard.sum(), ((clipped & finite) * weights).sum(), weights.sum()


def check_precision(loss_fn: per_sample.Loss | None) -> None:
    """Raises ValueError for a loss in TF32, whose rounding may hide more of a norm than is allowed for."""
    if precision_of(loss_fn) == "tf32":
        raise ValueError("private sums need full float32 products: a loss with_precision tf32 has none")
