"""What a layer's two factors, its inputs and the gradients of its outputs, tell of every example's own gradient.

A layer that is linear in its parameters has gradients made of those two. A linear layer's of one example is the outer
product `g a^T`, whose norm is `|g| |a|` (Goodfellow 2015, "Efficient per-example gradient computations"). A
convolution's is `sum_t g_t u_t^T` over output positions t with input patches u_t, so that its squared norm is
`sum_{t,t'} (u_t . u_t')(g_t . g_t')` (Rochette et al. 2019; Li et al. 2022, "ghost clipping"). An example that is seen
in several views has the sum of their gradients: views are more positions. Locally connected layers are in `local`.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.grad import conv2d_weight

from alexnet_func import local
from alexnet_func.arch import Conv, Linear, LocallyConnected, Placed
from alexnet_func.model import PLAIN
from alexnet_func.ops import square_root

# Adding up shifted maps is bound by memory: one addition takes as long as so many multiply-adds of a matrix product.
_ADDITION = 16
# Values of the pixel products that are formed at once: beyond the cache the additions take twice as long.
_CACHED = 1 << 20
# Values of the weight gradients that are formed at once where two sets of examples are multiplied: of one set as many
# as may be, 1 GiB of float32, since those of the other, 512 MiB, are formed again for each of its parts.
_FORMED, _FORMED_AGAIN = 1 << 28, 1 << 27
# Rounding errors of a sum, in units of the roundoff of its absolute terms' sum: blocked sums stay below a few.
_ROUNDED = 16


class Factors(NamedTuple):
    """A layer's inputs `a` and output gradients `g`, for N examples of so many views in a row each."""

    at: Placed
    a: Float[Tensor, "nk ..."]
    g: Float[Tensor, "nk ..."]
    views: int = 1

    def among(self, first: int, last: int) -> "Factors":
        """Those of examples first .. last - 1."""
        rows = slice(first * self.views, last * self.views)
        return self._replace(a=self.a[rows], g=self.g[rows])


def weight_grads(f: Factors) -> Float[Tensor, "n ..."]:
    """Every example's weight gradient, [N, *shape]."""
    if isinstance(f.at.layer, Linear):
        return f.g[:, :, None] * f.a[:, None, :] if f.views == 1 else _by_example(f.g, f).mT @ _by_example(f.a, f)
    if isinstance(f.at.layer, LocallyConnected):
        return local.weight_grads(*_by_position(f)).view(-1, *_weight_shape(f.at))
    if len(f.a) and f.a.device.type == "cpu" and not torch.compiler.is_compiling():
        # Measured: as fast as the gradient of the whole batch, where patches and products take two to four times that.
        parts = zip(f.a.split(f.views), f.g.split(f.views), strict=True)
        return torch.stack([_conv_weight_grad(f.at, *part) for part in parts])
    conv = _conv(f.at)
    patches = F.unfold(f.a, conv.kernel_size, padding=conv.padding, stride=conv.stride)
    gs = _by_example(f.g.flatten(2).unflatten(1, (conv.groups, -1)), f).movedim(1, -2).flatten(-2)
    us = _by_example(patches.unflatten(1, (conv.groups, -1)), f).movedim(1, -2).flatten(-2)
    return (gs @ us.mT).reshape(-1, *_weight_shape(f.at))


def bias_grads(f: Factors) -> Float[Tensor, "n ..."]:
    """Every example's bias gradient: the output gradients, summed over the positions that share it, and views."""
    summed = _over_shared(f, f.g)
    return summed if f.views == 1 else _by_example(summed, f).sum(1)


def bias_squares(f: Factors) -> Float[Tensor, "n"]:
    """Their squared norms."""
    return bias_grads(f).flatten(1).square().sum(1)


def bias_gram(one: Factors, other: Factors) -> Float[Tensor, "n m"]:
    """The products of every example's bias gradient of one set with every one of the other."""
    return bias_grads(one).flatten(1) @ bias_grads(other).flatten(1).mT


def weight_squares(f: Factors) -> Float[Tensor, "n"]:
    """Every example's squared norm of the weight gradient, which is not formed. A convolution needs `by_products`."""
    if isinstance(f.at.layer, LocallyConnected):
        return local.weight_squares(*_by_position(f))
    if isinstance(f.at.layer, Conv):
        step = _products_at_once(f)
        return torch.cat([_patch_products(f.among(at, at + step)) for at in range(0, max(1, count(f)), step)])
    if f.views == 1:
        return f.a.square().sum(-1) * f.g.square().sum(-1)
    a, g = _by_example(f.a, f), _by_example(f.g, f)
    return ((a @ a.mT) * (g @ g.mT)).sum((1, 2)).clamp(min=0)  # terms of both signs: a zero may come out as less


def hidden_weight_squares(f: Factors) -> Float[Tensor, "n"]:
    """What rounding may hide of `weight_squares`, [N].

    Its terms may cancel, of which `(sum_t |u_t| |g_t|)^2` are all; and squares below the smallest normal number may
    count as 0 beside factors however large.
    """
    if isinstance(f.at.layer, Linear):
        inputs, outputs = f.a.square().sum(-1)[:, None], f.g.square().sum(-1)[:, None]
    elif isinstance(f.at.layer, LocallyConnected):
        inputs, outputs = local.patches(f.at, f.a).square().sum(-1), f.g.flatten(2).square().sum(1)
    else:
        conv = _conv(f.at)
        squares = f.a.square().unflatten(1, (conv.groups, -1)).sum(2)
        ones = squares.new_ones(conv.groups, 1, conv.kernel_size, conv.kernel_size)
        inputs = F.conv2d(squares, ones, stride=conv.stride, padding=conv.padding, groups=conv.groups).flatten(1)
        outputs = f.g.square().unflatten(1, (conv.groups, -1)).sum(2).flatten(1)
    u, g = square_root(inputs), square_root(outputs)
    tiny = torch.finfo(u.dtype).tiny
    values = math.prod(_weight_shape(f.at))  # at least those of a patch, and of an output
    all_u, all_g = (_by_example(sizes.sum(1), f).sum(1) for sizes in (u, g))
    vanished = values * tiny * (all_u.square() + all_g.square() + (u.shape[1] * f.views) ** 2)
    return _hidden((u * g).sum(1), f) + vanished


def hidden_bias_squares(f: Factors) -> Float[Tensor, "n"]:
    """What rounding may hide of the squared norms of `bias_grads`, [N]: `(sum_t |g_t|)^2` is all of their terms."""
    sizes = square_root(f.g.square().sum(1))
    return _hidden(sizes.flatten(1).sum(1) if sizes.dim() > 1 else sizes, f)


def _hidden(terms: Float[Tensor, "nk"], f: Factors) -> Float[Tensor, "n"]:
    if not isinstance(f.at.layer, Conv) and f.views == 1:
        return terms * 0  # products of which nothing cancels
    return _ROUNDED * torch.finfo(f.g.dtype).eps * _by_example(terms, f).sum(1).square()


def along(f: Factors, weight: Tensor | None, bias: Tensor | None) -> Float[Tensor, "n"]:
    """Every example's product of its gradient with that direction, of which None is zero.

    Outputs are linear in the parameters: they change by the layer with the direction for parameters.
    """
    weight = f.a.new_zeros(_weight_shape(f.at)) if weight is None else weight.to(f.a.dtype)
    bias = f.a.new_zeros(_over_shared(f, f.g[:0]).shape[1:]) if bias is None else bias.to(f.a.dtype)
    moved = PLAIN[type(f.at.layer)](f.at, f.a, weight, bias)
    return _by_example((f.g * moved).flatten(1).sum(1), f).sum(1)


def weighted_weight_grad(f: Factors, weights: Float[Tensor, "n"], keep: Tensor | None) -> Tensor:
    """`sum_n w_n g_n` of the weight gradients, which are not formed, over the examples of the mask [N], or all."""
    scaled, a = _scaled_outputs(f, weights, keep), _kept(f.a, f, keep)
    if isinstance(f.at.layer, LocallyConnected):
        return local.weighted_weight_grad(*_by_position(f._replace(a=a, g=scaled))).view(_weight_shape(f.at))
    return scaled.mT @ a if isinstance(f.at.layer, Linear) else _conv_weight_grad(f.at, a, scaled)


def weighted_bias_grad(f: Factors, weights: Float[Tensor, "n"], keep: Tensor | None) -> Float[Tensor, "..."]:
    """`sum_n w_n g_n` of the bias gradients, over the examples of the mask [N], or all."""
    return _over_shared(f, _scaled_outputs(f, weights, keep)).sum(0)


def sum_of_squares(f: Factors) -> Tensor:
    """`sum_n g_n^2` of the weight gradients of a layer that is no convolution, element by element."""
    if isinstance(f.at.layer, LocallyConnected):
        return local.sum_of_squares(*_by_position(f)).view(_weight_shape(f.at))
    if f.views == 1:
        return f.g.square().mT @ f.a.square()
    parts = zip(_by_example(f.g, f), _by_example(f.a, f), strict=True)  # one example's gradient at a time
    return sum(((g.mT @ a).square() for g, a in parts), start=f.g.new_zeros(_weight_shape(f.at)))


def some_at_a_time(f: Factors, values: int) -> list[Factors]:
    """The factors in parts of so many examples that their weight gradients have about so many values in all."""
    step = max(1, values // math.prod(_weight_shape(f.at)))
    return [f.among(first, first + step) for first in range(0, max(1, count(f)), step)]


def weight_gram(one: Factors, other: Factors) -> Float[Tensor, "n m"]:
    """The products of every example's weight gradient of one set with every one of the other.

    A linear layer's are `(a_n . a_m)(g_n . g_m)`; a convolution's gradients are formed, some examples at a time.
    """
    if isinstance(one.at.layer, Linear):
        products = (one.a @ other.a.mT) * (one.g @ other.g.mT)
        shape = (len(one.a) // one.views, one.views, len(other.a) // other.views, other.views)
        return products if one.views == other.views == 1 else products.view(shape).sum((1, 3))
    if isinstance(one.at.layer, LocallyConnected):
        return local.weight_gram(_by_position(one), _by_position(other))
    rows: list[Tensor] = []
    done = 0
    for part in some_at_a_time(one, _FORMED):
        row = weight_grads(part).flatten(1)
        # A symmetric matrix' half, and its diagonal blocks without forming them again.
        known = [above[:, done : done + len(row)].mT for above in rows] + [row @ row.mT] if one is other else []
        done += len(row)
        rest = other.among(done, count(other)) if one is other else other
        columns = [] if one is other and done == count(other) else some_at_a_time(rest, _FORMED_AGAIN)
        rows.append(torch.cat([*known, *(row @ weight_grads(some).flatten(1).mT for some in columns)], 1))
    return torch.cat(rows)


def gram(one: Factors, other: Factors) -> Float[Tensor, "n m"]:
    """The products of every example's gradient by both parameters with every one of the other set."""
    return weight_gram(one, other) + bias_gram(one, other)


def count(f: Factors) -> int:
    """N."""
    return len(f.a) // f.views


def by_products(at: Placed, views: int) -> bool:
    """Whether products of pixels and of output gradients take less than forming the weight gradient, from shapes."""
    conv = _conv(at)
    (channels, height, width), (out_channels, *outputs) = at.in_shape, at.out_shape
    positions = math.prod(outputs)
    padded = (height + 2 * conv.padding) * (width + 2 * conv.padding)
    additions = conv.groups * conv.kernel_size * positions * (padded + positions)
    gram = padded**2 * channels + positions**2 * out_channels + _ADDITION * additions
    return views * gram < out_channels * channels // conv.groups * conv.kernel_size**2 * positions


def weighted(grads: Float[Tensor, "n *s"], weights: Float[Tensor, "n"], keep: Tensor | None) -> Float[Tensor, "*s"]:
    """`sum_n w_n g_n` of gradients that are formed, over the examples of the mask, or all."""
    if keep is not None:
        grads = grads.where(keep.view(-1, *[1] * (grads.dim() - 1)), 0)
    return torch.tensordot(weights.to(grads.dtype), grads, 1)


def of_name(weights: Tensor | Mapping[str, Tensor], name: str) -> Tensor:
    """Weights [N] that are the same for all parameters, or given for each by name."""
    return weights if isinstance(weights, Tensor) else weights[name]


def _scaled_outputs(f: Factors, weights: Float[Tensor, "n"], keep: Tensor | None) -> Float[Tensor, "nk ..."]:
    by_view = weights if f.views == 1 else weights.repeat_interleave(f.views)
    return _kept(f.g, f, keep) * by_view.to(f.g.dtype).view(-1, *[1] * (f.g.dim() - 1))


def _kept(t: Tensor, f: Factors, keep: Tensor | None) -> Tensor:
    """With zeros for examples outside the mask: nothing of those is left, not even a NaN."""
    if keep is None:
        return t
    by_view = keep if f.views == 1 else keep.repeat_interleave(f.views)
    return t.where(by_view.view(-1, *[1] * (t.dim() - 1)), 0)


def _by_position(f: Factors) -> tuple[Tensor, Tensor]:
    return local.by_position(f.at, f.a, f.g, f.views)


def _over_shared(f: Factors, g: Tensor) -> Tensor:
    """Output gradients [NK, ...], summed over the positions that share a bias."""
    return g.flatten(2).sum(-1) if isinstance(f.at.layer, Conv) else g


def _by_example(t: Tensor, f: Factors) -> Tensor:
    return t.unflatten(0, (-1, f.views)) if len(t) else t.view(0, f.views, *t.shape[1:])


def _products_at_once(f: Factors) -> int:
    if torch.compiler.is_compiling():
        return max(1, count(f))
    conv = _conv(f.at)
    height, width = (side + 2 * conv.padding for side in f.at.in_shape[1:])
    return max(1, _CACHED // (f.views * height * width) ** 2)


def _patch_products(f: Factors) -> Tensor:
    """`sum_{t,t'} (u_t . u_t')(g_t . g_t')` of every example, [N], without forming the patches u.

    `u_t . u_t'` is the sum, over the kernel's offsets d, of the products of pixels `a_{t+d} . a_{t'+d}`: one product of
    all pixels with all, then sums of its shifts, rows first and columns then.
    """
    conv = _conv(f.at)
    pixels = _products(F.pad(f.a, (conv.padding,) * 4), conv.groups, f.views)
    patches = _sum_of_shifts(_sum_of_shifts(pixels, conv, f.at.out_shape[1], -4), conv, f.at.out_shape[2], -3)
    products = (_products(f.g, conv.groups, f.views) * patches).flatten(1).sum(1)
    return products.clamp(min=0)  # terms of both signs: a zero may come out as less


def _products(maps: Float[Tensor, "nk c h w"], groups: int, views: int) -> Float[Tensor, "n gr k l h w h w"]:
    """Of all positions of an example's maps with all."""
    height, width = maps.shape[-2:]
    positions = maps.reshape(-1, views, groups, maps.shape[1] // groups, height * width)
    flat = positions.movedim(1, -2).flatten(-2)  # [n, groups, channels, views * positions]
    products = (flat.mT @ flat).unflatten(-1, (views, height, width)).unflatten(2, (views, height, width))
    return products.movedim(-3, 3)


def _sum_of_shifts(products: Tensor, conv: Conv, count: int, axis: int) -> Tensor:
    """Over the kernel's offsets: `products` at `count` positions of `axis` and of its counterpart two axes on."""

    def shifted(offset: int) -> Tensor:
        kept: list[Any] = [slice(None)] * 4
        kept[axis] = kept[axis + 2] = slice(offset, offset + conv.stride * (count - 1) + 1, conv.stride)
        return products[(..., *kept)]

    total = shifted(0)
    for offset in range(1, conv.kernel_size):
        total = total + shifted(offset)
    return total


def _conv_weight_grad(at: Placed, a: Tensor, g: Tensor) -> Tensor:
    conv = _conv(at)
    return conv2d_weight(a, list(_weight_shape(at)), g, conv.stride, conv.padding, groups=conv.groups)


def _weight_shape(at: Placed) -> tuple[int, ...]:
    if isinstance(at.layer, Linear):
        return (at.out_shape[0], at.in_shape[0])
    if isinstance(at.layer, LocallyConnected):
        return (*at.out_shape[1:], at.out_shape[0], at.in_shape[0], at.layer.kernel_size, at.layer.kernel_size)
    conv = _conv(at)
    return (at.out_shape[0], at.in_shape[0] // conv.groups, conv.kernel_size, conv.kernel_size)


def _conv(at: Placed) -> Conv:
    assert isinstance(at.layer, Conv)
    return at.layer
