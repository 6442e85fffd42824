"""The gradient of every example's own loss: whole, its norms, its products with a direction, and clipped sums.

    norms = per_sample.norms(params, (x, y))                        # [N]: one forward, one backward pass
    total, norms = per_sample.clipped_sum(params, (x, y), 1.0)      # sum_n min(1, 1 / norm_n) g_n

All functions share their arguments. `params` and `batch = (x, y)`, x [N, C, H, W] and y [N], are those of `loss_fn`;
g_n is the gradient of example n's own loss, without the 1/N of a mean.

- `arch`: whose `losses.loss_fn` is differentiated, unless
- `loss_fn(params, (x_n, y_n), key=None) -> scalar` is given: any pure loss of one unbatched example, for example of a
  module lifted by `interop.from_module`. The batch may then be any pytree of tensors with a leading axis N.
- `key`: dropout as in `forward`: example n has the key `split(key, N)[n]`, or row n of a key [N, 2].
- `method`: "layerwise" for an arch: one forward and one backward pass and algebra by layer, which
  never forms all gradients of a linear layer unless asked for `grads`. "vmap": `vmap(grad(loss_fn))`, which forms them
  all; a `loss_fn` implies it. "auto": the measured faster one that serves. They agree to rounding.
- `chunk_size`: so many examples at a time, for less memory; the results are those of the whole batch to rounding.
- `views`: every example comes in so many views, x [N, K, C, H, W], and its loss is the mean over them: augmentation
  multiplicity (De et al. 2022). View k of an example whose key is e has the key `split(e, K)[k]`. K examples' gradients
  are never formed for one. A `loss_fn` is still one of a single view and its label; None: there is no such axis.
- `frozen`: the parameters that are not trained, beside `params`, which are: gradients, norms and sums are of `params`
  alone, and layers below the lowest of them are not differentiated.

Guarantees. Results are those of a loop of `grad` over the examples, to rounding: norms within 1e-5 relative in float32.
They have float32 for parameters of half precision, else the parameters' dtype. Pure, and differentiable and mappable
themselves: `grad` and `vmap` over parameters work, and `torch.compile` takes them whole.

| case | what holds |
|---|---|
| N = 0 | results of shape [0, ...]; the clipped sum is zero |
| N = 1 | a batch as any other; an image [C, H, W] without N is a ValueError |
| zero gradient | norm 0, scale 1 |
| `max_norm` 0 | a sum of zeros |
| `max_norm` inf | the plain sum: N times the gradient of the mean loss |
| `max_norm` negative or NaN | ValueError (a tensor on a GPU is not looked at) |
| a non-finite example | its norm is not finite; the clipped sum is NaN in every entry its gradient may touch |
| the same, `nonfinite="zero"` | its norm is not finite; the clipped sum is that of the others |
| views=1 | of x [N, 1, C, H, W], without a key the same as without views |

Raises, besides what `loss_fn` raises: ValueError for an unknown method, for "layerwise" with a `loss_fn`, for a
`chunk_size` below 1, for parts of a batch that differ in N, for `views` that x has not, for params that are empty or
frozen too; TypeError for a `max_norm` that is no number.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alexnet_func import _captures
from alexnet_func._captures import Examples
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.checks import check_named_tensors, check_number, check_tensors, shapes_of, visible
from alexnet_func.examples import Keys, Loss, Method, count, examples
from alexnet_func.model import Params
from alexnet_func.ops import square_root
from alexnet_func.pairs import gram, layer_grams, project

__all__ = [
    "Keys",
    "Loss",
    "Method",
    "clipped_sum",
    "dots",
    "grads",
    "gram",
    "layer_grams",
    "layer_norms",
    "norms",
    "project",
    "scaled_sum",
]

# Of examples and their squared norms by name: each one's weight in a sum, also by name, and who may be in it at all.
Scaled = tuple[_captures.Weights, Tensor | None]
Scale = Callable[[Examples, Params], Scaled]


def grads(
    params: Params,
    batch: Any,
    *,
    arch: Arch = ALEXNET,
    loss_fn: Loss | None = None,
    key: Keys | None = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> Params:
    """Computes every example's gradient, [N, *shape] by parameter name: N times the memory of the parameters.

    Row n is `grad(loss)` of example n alone, to rounding; what is not finite in it is not finite here. N = 0 gives
    [0, *shape].

    Examples:
        >>> af.per_sample.grads(params, batch, arch=arch)["features.0.weight"].shape
        torch.Size([4, 64, 3, 3, 3])
        >>> w, data = {"w": torch.tensor(2.0)}, (torch.tensor([1.0, 3.0]), torch.tensor([0.0, 6.0]))
        >>> af.per_sample.grads(w, data, loss_fn=lambda p, one, key=None: (p["w"] * one[0] - one[1]) ** 2)
        {'w': tensor([4., 0.])}
    """
    options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "key": key, "method": method, "views": views}
    parts = examples(params, batch, chunk_size=chunk_size, frozen=frozen, **options)
    return _joined([part.grads() for part in parts])


def norms(
    params: Params,
    batch: Any,
    *,
    arch: Arch = ALEXNET,
    loss_fn: Loss | None = None,
    key: Keys | None = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> Float[Tensor, "n"]:
    """Computes the 2-norm of every example's gradient over all `params`, [N].

    It is within 1e-5 relative in float32 of the norm of the gradients that such a forward and backward pass gives.
    Another pass, compiled or in float64, may round a ReLU or a maximum to its other side: 1e-3 was seen for single
    examples. 0 for a zero gradient; inf or NaN for an example whose gradient is not finite, or whose squares overflow,
    and for no other. N = 0 gives [0].

    Examples:
        >>> af.per_sample.norms(params, batch, arch=arch).shape
        torch.Size([4])
    """
    options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "key": key, "method": method, "views": views}
    parts = examples(params, batch, chunk_size=chunk_size, frozen=frozen, **options)
    return torch.cat([total_norm(part.squares()) for part in parts])


def layer_norms(
    params: Params,
    batch: Any,
    *,
    arch: Arch = ALEXNET,
    loss_fn: Loss | None = None,
    key: Keys | None = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> dict[str, Float[Tensor, "n"]]:
    """Computes the 2-norm of every example's gradient by each of `params`, [N] by parameter name.

    Their squares add up to the squares of `norms`, and the same holds for each of them.

    Examples:
        >>> layers = af.per_sample.layer_norms(params, batch, arch=arch)
        >>> whole = sum(norms.square() for norms in layers.values()).sqrt()
        >>> torch.allclose(whole, af.per_sample.norms(params, batch, arch=arch))
        True
    """
    options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "key": key, "method": method, "views": views}
    parts = examples(params, batch, chunk_size=chunk_size, frozen=frozen, **options)
    return _joined([{name: square_root(square) for name, square in part.squares().items()} for part in parts])


def dots(
    params: Params,
    batch: Any,
    direction: Params,
    *,
    arch: Arch = ALEXNET,
    loss_fn: Loss | None = None,
    key: Keys | None = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> Float[Tensor, "n"]:
    """Computes `<g_n, direction>` for every example, [N]: how fast its loss rises along `direction`, like `params`.

    Not finite for an example whose gradient is not. Raises ValueError that lists every missing, unknown or misshapen
    tensor of `direction`.

    Examples:
        >>> mean = torch.func.grad(af.loss_fn)(params, batch, arch=arch)
        >>> along = af.per_sample.dots(params, batch, mean, arch=arch)
        >>> torch.allclose(along.mean(), af.optim.global_norm(mean).square(), rtol=1e-3)
        True
    """
    check_tensors(params, "params")
    check_named_tensors(shapes_of(params), direction, "direction")
    options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "key": key, "method": method, "views": views}
    parts = examples(params, batch, chunk_size=chunk_size, frozen=frozen, **options)
    return torch.cat([part.dots(direction) for part in parts])


def clipped_sum(
    params: Params,
    batch: Any,
    max_norm: float | Float[Tensor, ""],
    *,
    weights: Float[Tensor, "n"] | None = None,
    nonfinite: Literal["propagate", "zero"] = "propagate",
    arch: Arch = ALEXNET,
    loss_fn: Loss | None = None,
    key: Keys | None = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> tuple[Params, Float[Tensor, "n"]]:
    """Computes `sum_n w_n min(1, max_norm / |g_n|) g_n` by parameter name, and the norms |g_n| before clipping, [N].

    Abadi et al. 2016, algorithm 1, without an epsilon: nothing is scaled up, and no clipped gradient is longer than
    `max_norm` but by rounding. `weights` w_n are 1 unless given; 0 leaves an example out, as padding needs, if its
    gradient is finite. A zero gradient has scale 1; `max_norm` 0 gives zeros and inf the plain sum, N times the
    gradient of the mean loss. An example whose norm is not finite makes the sum NaN, or contributes nothing to it with
    `nonfinite="zero"`. N = 0 gives zeros.

    Examples:
        >>> total, norms = af.per_sample.clipped_sum(params, batch, 1.0, arch=arch)
        >>> norms.shape, bool(af.optim.global_norm(total) <= 4)
        (torch.Size([4]), True)
    """
    check_number("max_norm", max_norm, accepted="must not be negative or NaN")
    if nonfinite not in ("propagate", "zero"):
        raise ValueError(f'nonfinite must be "propagate" or "zero", got {nonfinite!r}')

    def scale(part: Examples, squares: Params) -> Scaled:
        norms = total_norm(squares)
        if nonfinite == "zero":
            return scale_to(norms, max_norm), norms.isfinite()
        return scale_to(norms, max_norm).where(norms.isfinite(), torch.nan), None

    options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "key": key, "method": method, "views": views}
    options["frozen"] = frozen
    total, found, _ = scaled_sum(params, batch, scale, weights=weights, chunk_size=chunk_size, **options)
    return total, found


def scaled_sum(
    params: Params,
    batch: Any,
    scale: Scale,
    *,
    weights: Float[Tensor, "n"] | None = None,
    arch: Arch = ALEXNET,
    loss_fn: Loss | None = None,
    key: Keys | None = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> tuple[Params, Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Computes `sum_n w_n s_n g_n`; the norms; and the losses, which the forward pass gives.

    s is the first of the pair `scale(examples, squares)`, given the squared norms by parameter name: [N], or so by
    name. The second is None, or booleans [N] by which an example is in the sum at all.

    Examples:
        >>> unit = lambda examples, squares: (sum(squares.values()).rsqrt(), None)  # every gradient at length 1
        >>> total, norms, losses = af.per_sample.scaled_sum(params, batch, unit, arch=arch)
        >>> losses.shape, bool(af.optim.global_norm(total) < 4.001)
        (torch.Size([4]), True)
    """
    if weights is not None and weights.shape != (count(batch),):
        raise ValueError(f"weights must have shape [{count(batch)}], one an example, got {list(weights.shape)}")
    totals: Params = {}
    norm_parts: list[Tensor] = []
    loss_parts: list[Tensor] = []
    first = 0
    options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "key": key, "method": method, "views": views}
    options["frozen"] = frozen
    for part in examples(params, batch, chunk_size=chunk_size, **options):
        squares = part.squares()
        norm = total_norm(squares)
        scales, keep = scale(part, squares)
        if keep is not None and (seen := visible(keep)) is not None and bool(seen.all()):
            keep = None  # where nobody is left out nothing need be masked
        if weights is not None:
            own = weights[first : first + len(norm)]
            scales = scales * own if isinstance(scales, Tensor) else {name: s * own for name, s in scales.items()}
        first += len(norm)
        summed = part.weighted_sum(scales, keep)
        totals = {name: totals[name] + total for name, total in summed.items()} if totals else summed
        norm_parts.append(norm)
        loss_parts.append(part.losses)
    return totals, torch.cat(norm_parts), torch.cat(loss_parts)


def scale_to(norms: Float[Tensor, "n"], max_norm: float | Tensor) -> Float[Tensor, "n"]:
    """`min(1, max_norm / norm)`, 1 for a zero norm, with a derivative that is finite everywhere."""
    # Where nothing is scaled no norm is divided by, as the derivative of a quotient that is not taken counts too.
    longer = norms > max_norm
    return torch.where(longer, max_norm / norms.where(longer, 1.0), 1.0)


def total_norm(squares: Params) -> Float[Tensor, "n"]:
    """The root of the sum of squared norms by name."""
    return square_root(torch.stack(list(squares.values())).sum(0))


def _joined(parts: list[Params]) -> Params:
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
