"""Per-sample gradients without materialising them: one forward, one backward, then algebra layer by layer.

A layer that is linear in its parameters has gradients made of two tensors, its input `a` and the gradient `g` of its
output. Both come out of a single backward pass with respect to *taps*: zeros added to the outputs of `Conv` and
`Linear` layers. A linear layer's gradient of one example is the outer product `g a^T`, whose norm is `|g| |a|`
(Goodfellow 2015, "Efficient per-example gradient computations"). A convolution's is `sum_t g_t u_t^T` over output
positions t with input patches u_t, so that its squared norm is `sum_{t,t'} (u_t . u_t')(g_t . g_t')` (Rochette et al.
2019; Li et al. 2022, "ghost clipping").
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor
from torch.func import grad_and_value, vjp, vmap
from torch.nn.grad import conv2d_weight

from alexnet_func.arch import Arch, Conv, Linear, Placed, place
from alexnet_func.losses import Batch, check_labels, check_pair, cross_entropy
from alexnet_func.model import PLAIN, LayerFn, Params, check_inputs, walk
from alexnet_func.tape import without_tape

# Adding up shifted maps is bound by memory: one addition takes as long as so many multiply-adds of a matrix product.
_ADDITION = 16
# Values of the pixel products that are formed at once: beyond the cache the additions take twice as long.
_CACHED = 1 << 20


class Examples(NamedTuple):
    """The gradient g_n of every example's own loss, known through what can be asked of it; losses [N] come along.

    `grads()` are the g_n themselves, [N, *shape] by name; `squares()` their squared norms, [N] by name; `dots(v)` the
    products `<g_n, v>`, [N]; `weighted_sum(w)` is `sum_n w_n g_n`, by name; `sum_of_squares()` is `sum_n g_n^2`
    element by element, by name.
    """

    losses: Float[Tensor, "n"]
    grads: Callable[[], Params]
    squares: Callable[[], Params]
    dots: Callable[[Params], Tensor]
    weighted_sum: Callable[[Tensor], Params]
    sum_of_squares: Callable[[], Params]


class Tapped(NamedTuple):
    """A forward pass [N, classes], each layer's input [N, ...] by layer name, and a way back to output gradients.

    `pull(cotangents [N, classes])` gives the gradient of every layer's output, [N, ...] by layer name.
    """

    logits: Float[Tensor, "n classes"]
    layers: dict[str, Placed]
    inputs: dict[str, Tensor]
    pull: Callable[[Tensor], dict[str, Tensor]]


def tap(params: Params, x: Float[Tensor, "n c h w"], *, arch: Arch, key: Int32[Tensor, "*k 2"] | None = None) -> Tapped:
    """`forward` with its layers' inputs kept and zeros tapped onto the outputs of `Conv` and `Linear` layers.

    Errors as `model.forward` raises them, and ValueError for an image without a batch axis.
    """
    check_inputs(arch, params, x, key)
    if x.dim() != 4:
        raise ValueError(f"x must be a batch [N, C, H, W], got {list(x.shape)}: one example is a batch of one, x[None]")
    x = x.to(next(iter(params.values())).dtype)
    layers = {at.name: at for at in place(arch, tuple(x.shape[1:])) if isinstance(at.layer, Conv | Linear)}
    taps = {name: x.new_zeros(()).expand(len(x), *at.out_shape) for name, at in layers.items()}

    def tapped(taps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}

        def with_tap(plain: LayerFn) -> LayerFn:
            def layer(at: Placed, a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                inputs[at.name] = a
                return plain(at, a, weight, bias) + taps[at.name]

            return layer

        table = {**PLAIN, Conv: with_tap(PLAIN[Conv]), Linear: with_tap(PLAIN[Linear])}
        return walk(arch, params, x, key, table), inputs

    logits, pull, inputs = vjp(tapped, taps, has_aux=True)  # type: ignore[misc]  # torch declares two results
    return Tapped(logits, layers, inputs, lambda cotangents: pull(cotangents)[0])


def captured(params: Params, batch: Batch, *, arch: Arch, key: Int32[Tensor, "*k 2"] | None) -> Examples:
    """The examples' gradients of `losses.loss_fn` by one forward and one backward pass.

    Parameters of half precision are passed through the network as they are; what follows is float32. Errors as
    `losses.loss_fn` raises them.
    """
    x, y = check_pair(batch)
    check_labels(y, arch.num_classes)
    with without_tape(params, batch):
        tapped = tap(params, x, arch=arch, key=key)
        cotangents, losses = vmap(grad_and_value(cross_entropy))(tapped.logits, y)
        by_output = tapped.pull(cotangents)
        return _examples(tapped.layers, wide(tapped.inputs), wide(by_output), losses)


def _examples(
    layers: dict[str, Placed], inputs: dict[str, Tensor], by_output: dict[str, Tensor], losses: Tensor
) -> Examples:
    instantiated: dict[str, Tensor] = {}

    def each(at: Placed) -> Tensor:
        # Kept, so that a clipped sum does not form again what its norms went through.
        if at.name not in instantiated:
            instantiated[at.name] = weight_grads(at, inputs[at.name], by_output[at.name])
        return instantiated[at.name]

    def named(of_weight: Callable[[Placed, Tensor, Tensor], Tensor], of_bias: Callable[[Tensor], Tensor]) -> Params:
        found = {}
        for name, at in layers.items():
            found[f"{name}.weight"] = of_weight(at, inputs[name], by_output[name])
            found[f"{name}.bias"] = of_bias(bias_grads(by_output[name]))
        return found

    def grad_of(at: Placed, a: Tensor, g: Tensor) -> Tensor:
        return weight_grads(at, a, g) if isinstance(at.layer, Linear) else each(at)

    def square_of(at: Placed, a: Tensor, g: Tensor) -> Tensor:
        if isinstance(at.layer, Linear):
            return a.square().sum(-1) * g.square().sum(-1)
        return _gram_squares(at, a, g) if _prefers_gram(at) else each(at).flatten(1).square().sum(1)

    def dot_with(direction: Params, at: Placed) -> Tensor:
        # Outputs are linear in the parameters: along `direction` they change by the layer with that for parameters.
        a, g = inputs[at.name], by_output[at.name]
        along = (direction[f"{at.name}.{kind}"].to(a.dtype) for kind in ("weight", "bias"))
        return (g * PLAIN[type(at.layer)](at, a, *along)).flatten(1).sum(1)

    def weighted_sum(weights: Tensor) -> Params:
        def sum_of(at: Placed, a: Tensor, g: Tensor) -> Tensor:
            if at.name in instantiated:
                return torch.tensordot(weights.to(a.dtype), instantiated[at.name], 1)
            scaled = _scaled(g, weights)
            return scaled.mT @ a if isinstance(at.layer, Linear) else _conv_weight_grad(at, a, scaled)

        return named(sum_of, lambda g: _scaled(g, weights).sum(0))

    def sum_of_squares_of(at: Placed, a: Tensor, g: Tensor) -> Tensor:
        return g.square().mT @ a.square() if isinstance(at.layer, Linear) else each(at).square().sum(0)

    return Examples(
        losses,
        grads=lambda: named(grad_of, lambda g: g),
        squares=lambda: named(square_of, lambda g: g.square().sum(1)),
        dots=lambda direction: torch.stack([dot_with(direction, at) for at in layers.values()]).sum(0),
        weighted_sum=weighted_sum,
        sum_of_squares=lambda: named(sum_of_squares_of, lambda g: g.square().sum(0)),
    )


def weight_grads(at: Placed, a: Float[Tensor, "n ..."], g: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """Every example's weight gradient [N, *shape] of a Linear or Conv layer with input `a` and output gradient `g`."""
    if isinstance(at.layer, Linear):
        return g[:, :, None] * a[:, None, :]
    if len(a) and a.device.type == "cpu" and not torch.compiler.is_compiling():
        # Measured: as fast as the gradient of the whole batch, where patches and products take two to four times that.
        return torch.stack([_conv_weight_grad(at, a[i : i + 1], g[i : i + 1]) for i in range(len(a))])
    conv = _conv(at)
    patches = F.unfold(a, conv.kernel_size, padding=conv.padding, stride=conv.stride)
    by_group = g.flatten(2).unflatten(1, (conv.groups, -1)) @ patches.unflatten(1, (conv.groups, -1)).mT
    return by_group.reshape(len(a), *_weight_shape(at))


def bias_grads(g: Float[Tensor, "n o *t"]) -> Float[Tensor, "n o"]:
    """Every example's bias gradient: the output gradient, summed over positions."""
    return g.flatten(2).sum(-1) if g.dim() > 2 else g


def wide(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of half precision as float32: three digits are too few for what follows from gradients."""
    return {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in tensors.items()}


def _gram_squares(at: Placed, a: Tensor, g: Tensor) -> Tensor:
    """`sum_{t,t'} (u_t . u_t')(g_t . g_t')` of every example, [N], without forming the patches u.

    `u_t . u_t'` is the sum, over the kernel's offsets d, of the products of pixels `a_{t+d} . a_{t'+d}`: one product of
    all pixels with all, then sums of its shifts, rows first and columns then.
    """
    conv = _conv(at)
    margins = (conv.padding,) * 4
    height, width = (side + 2 * conv.padding for side in at.in_shape[1:])
    group = max(1, _CACHED // (height * width) ** 2)
    step = len(a) if torch.compiler.is_compiling() else group

    def of(a: Tensor, g: Tensor) -> Tensor:
        pixels = F.pad(a, margins).flatten(2).unflatten(1, (conv.groups, -1))
        products = (pixels.mT @ pixels).unflatten(-1, (height, width)).unflatten(-3, (height, width))
        patches = _sum_of_shifts(_sum_of_shifts(products, conv, at.out_shape[1], -4), conv, at.out_shape[2], -3)
        outputs = g.flatten(2).unflatten(1, (conv.groups, -1))
        products = ((outputs.mT @ outputs).view_as(patches) * patches).flatten(1).sum(1)
        return products.clamp(min=0)  # terms of both signs: a zero may come out as less

    return torch.cat([of(*part) for part in zip(a.split(step), g.split(step), strict=True)])


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


def _prefers_gram(at: Placed) -> bool:
    """Whether products of pixels and of output gradients take less than forming the weight gradient, from shapes."""
    conv = _conv(at)
    (channels, height, width), (out_channels, *outputs) = at.in_shape, at.out_shape
    positions = math.prod(outputs)
    padded = (height + 2 * conv.padding) * (width + 2 * conv.padding)
    additions = conv.groups * conv.kernel_size * positions * (padded + positions)
    gram = padded**2 * channels + positions**2 * out_channels + _ADDITION * additions
    return gram < out_channels * channels // conv.groups * conv.kernel_size**2 * positions


def _conv_weight_grad(at: Placed, a: Tensor, g: Tensor) -> Tensor:
    conv = _conv(at)
    return conv2d_weight(a, list(_weight_shape(at)), g, conv.stride, conv.padding, groups=conv.groups)


def _weight_shape(at: Placed) -> tuple[int, ...]:
    conv = _conv(at)
    return (at.out_shape[0], at.in_shape[0] // conv.groups, conv.kernel_size, conv.kernel_size)


def _conv(at: Placed) -> Conv:
    assert isinstance(at.layer, Conv)
    return at.layer


def _scaled(g: Tensor, weights: Tensor) -> Tensor:
    return g * weights.to(g.dtype).view(-1, *[1] * (g.dim() - 1))
