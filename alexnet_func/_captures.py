"""Per-sample gradients without materialising them: one forward, one backward, then algebra layer by layer.

Both factors of a layer's gradients, its input `a` and the gradient `g` of its output, come out of a single backward
pass with respect to *taps*: zeros added to the outputs of the layers with weights. What follows from them is in
`factors`.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.func import grad_and_value, vjp, vmap

from alexnet_func import factors, sketches
from alexnet_func.arch import Arch, Conv, Placed, place
from alexnet_func.factors import Factors
from alexnet_func.layers import Weighted
from alexnet_func.losses import Batch, check_labels, check_pair, cross_entropy
from alexnet_func.model import PLAIN, LayerFn, Params, check_inputs, walk
from alexnet_func.tape import without_tape

# Named, since Dynamo, which traces what is made within a call, builds no generic types. [N], or [N] by parameter name.
Weights = Tensor | Mapping[str, Tensor]
OfLayer = Callable[[Factors], Tensor]


class Examples(NamedTuple):
    """The gradient g_n of every example's own loss, known through what can be asked of it; losses [N] come along.

    By parameter name: `grads()` are the g_n themselves, [N, *shape]; `squares()` their squared norms, [N], and
    `hidden()` what rounding may hide of those; `weighted_sum(w, keep)` is `sum_n w_n g_n`, w [N] or [N] by name, over
    the examples of the mask `keep` [N], whatever the others' gradients are, or over all for None; `sum_of_squares()`
    is `sum_n g_n^2` element by element; `grams(other)` are the products with another one's, [N, M].
    `dots(v)` are the products `<g_n, v>`, [N], and `sketch(key, dim)` is `sketches.of_tensors` of `grads()`, [N, dim].
    """

    losses: Float[Tensor, "n"]
    grads: Callable[[], Params]
    squares: Callable[[], Params]
    hidden: Callable[[], Params]
    dots: Callable[[Params], Tensor]
    weighted_sum: Callable[[Weights, Tensor | None], Params]
    sum_of_squares: Callable[[], Params]
    grams: Callable[["Examples"], Params]
    sketch: Callable[[Tensor, int], Tensor]
    factors: Mapping[str, Factors]


class Tapped(NamedTuple):
    """A forward pass [N, classes], each layer's input [N, ...] by layer name, and a way back to output gradients.

    `pull(cotangents [N, classes])` gives the gradient of every layer's output, [N, ...] by layer name.
    """

    logits: Float[Tensor, "n classes"]
    layers: dict[str, Placed]
    inputs: dict[str, Tensor]
    pull: Callable[[Tensor], dict[str, Tensor]]


def tap(
    params: Params,
    x: Float[Tensor, "n c h w"],
    *,
    arch: Arch,
    key: Int32[Tensor, "*k 2"] | None = None,
    only: Collection[str] | None = None,
) -> Tapped:
    """`forward` with its layers' inputs kept and zeros tapped onto the outputs of the layers with weights.

    `only` the layers of these names, if given: what lies below the lowest of them is not differentiated. Errors as
    `model.forward` raises them, and ValueError for an image without a batch axis.
    """
    check_inputs(arch, params, x, key)
    if x.dim() != 4:
        raise ValueError(f"x must be a batch [N, C, H, W], got {list(x.shape)}: one example is a batch of one, x[None]")
    x = x.to(next(iter(params.values())).dtype)
    linear = [at for at in place(arch, tuple(x.shape[1:])) if isinstance(at.layer, Weighted)]
    layers = {at.name: at for at in linear if only is None or at.name in only}
    taps = {name: x.new_zeros(()).expand(len(x), *at.out_shape) for name, at in layers.items()}

    def tapped(taps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}

        def with_tap(plain: LayerFn) -> LayerFn:
            def layer(at: Placed, a: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                if at.name not in layers:
                    return plain(at, a, weight, bias)
                inputs[at.name] = a
                return plain(at, a, weight, bias) + taps[at.name]

            return layer

        table = {**PLAIN, **{kind: with_tap(PLAIN[kind]) for kind in get_args(Weighted)}}
        return walk(arch, params, x, key, table), inputs

    logits, pull, inputs = vjp(tapped, taps, has_aux=True)  # type: ignore[misc]  # torch declares two results
    return Tapped(logits, layers, inputs, lambda cotangents: pull(cotangents)[0])


def captured(
    params: Params,
    batch: Batch,
    key: Int32[Tensor, "*k 2"] | None,
    views: int = 1,
    *,
    arch: Arch,
    frozen: Params,
) -> Examples:
    """The examples' gradients of `losses.loss_fn` by one forward and one backward pass, by `params`, not by `frozen`.

    Of so many views in a row, with a label each, an example's loss is the mean. Parameters of half precision are passed
    through the network as they are; what follows is float32. Errors as `losses.loss_fn` raises them.
    """
    x, y = check_pair(batch)
    check_labels(y, arch.num_classes)
    with without_tape(params, batch, frozen):
        only = {name.rpartition(".")[0] for name in params} if frozen else None
        tapped = tap({**frozen, **params}, x, arch=arch, key=key, only=only)
        cotangents, losses = vmap(grad_and_value(cross_entropy))(tapped.logits, y)
        by_output = wide(tapped.pull(cotangents / views))
        inputs = wide(tapped.inputs)
        found = {name: Factors(at, inputs[name], by_output[name], views) for name, at in tapped.layers.items()}
        return _examples(found, list(params), losses.view(-1, views).mean(1))


def _examples(layers: dict[str, Factors], names: list[str], losses: Tensor) -> Examples:
    instantiated: dict[str, Tensor] = {}

    def formed(f: Factors) -> Tensor:
        # Kept, so that a clipped sum does not form again what its norms went through.
        name = f.at.name
        if name not in instantiated:
            instantiated[name] = factors.weight_grads(f)
        return instantiated[name]

    def named(of_weight: OfLayer, of_bias: OfLayer) -> Params:
        ways = {f"{name}.{kind}": (of, f) for name, f in layers.items() for kind, of in _kinds(of_weight, of_bias)}
        return {name: of(f) for name, (of, f) in ways.items() if name in names}

    def grad_of(f: Factors) -> Tensor:
        return formed(f) if isinstance(f.at.layer, Conv) else factors.weight_grads(f)

    def square_of(f: Factors) -> Tensor:
        return factors.weight_squares(f) if _unformed(f) else formed(f).flatten(1).square().sum(1)

    def hidden_of(f: Factors) -> Tensor:
        # What is formed is what is summed.
        return factors.hidden_weight_squares(f) if _unformed(f) else f.g.new_zeros(factors.count(f))

    def sum_of_squares_of(f: Factors) -> Tensor:
        return formed(f).square().sum(0) if isinstance(f.at.layer, Conv) else factors.sum_of_squares(f)

    return Examples(
        losses,
        grads=lambda: named(grad_of, factors.bias_grads),
        squares=lambda: named(square_of, factors.bias_squares),
        hidden=lambda: named(hidden_of, factors.hidden_bias_squares),
        dots=lambda direction: _dots(layers, direction),
        weighted_sum=lambda weights, keep: named(*_weighted(weights, keep, instantiated)),
        sum_of_squares=lambda: named(sum_of_squares_of, lambda f: factors.bias_grads(f).square().sum(0)),
        grams=lambda other: named(*_grams(other.factors)),
        sketch=lambda key, dim: sketches.of_layers(key, dim, layers, names),
        factors=layers,
    )


def _kinds(of_weight: OfLayer, of_bias: OfLayer) -> tuple[tuple[str, OfLayer], ...]:
    return ("weight", of_weight), ("bias", of_bias)


def _unformed(f: Factors) -> bool:
    """Whether the layer's norms are taken without its examples' weight gradients."""
    return not isinstance(f.at.layer, Conv) or factors.by_products(f.at, f.views)


def _weighted(weights: Weights, keep: Tensor | None, instantiated: Mapping[str, Tensor]) -> tuple[OfLayer, OfLayer]:
    def of_weight(f: Factors) -> Tensor:
        own = factors.of_name(weights, f"{f.at.name}.weight")
        if f.at.name in instantiated:
            return factors.weighted(instantiated[f.at.name], own, keep)
        return factors.weighted_weight_grad(f, own, keep)

    def of_bias(f: Factors) -> Tensor:
        return factors.weighted_bias_grad(f, factors.of_name(weights, f"{f.at.name}.bias"), keep)

    return of_weight, of_bias


def _grams(other: Mapping[str, Factors]) -> tuple[OfLayer, OfLayer]:
    return (
        lambda f: factors.weight_gram(f, other[f.at.name]),
        lambda f: factors.bias_gram(f, other[f.at.name]),
    )


def _dots(layers: Mapping[str, Factors], direction: Params) -> Tensor:
    each = [factors.along(f, direction.get(f"{n}.weight"), direction.get(f"{n}.bias")) for n, f in layers.items()]
    return torch.stack(each).sum(0)


def wide(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of half precision as float32: three digits are too few for what follows from gradients."""
    return {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in tensors.items()}
