"""Where examples' gradients come from: layer by layer of an `Arch`, or by `vmap(grad)` of any pure loss.

What all of `per_sample` is told, see there, is checked and carried out here.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Int32
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree

from alexnet_func import _captures, factors, losses, random, sketches
from alexnet_func._captures import Examples
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.checks import check_tensors
from alexnet_func.model import Params
from alexnet_func.threefry import split_each

Method = Literal["auto", "layerwise", "vmap"]
Loss = Callable[..., Tensor]
Keys = Int32[Tensor, "*k 2"]


def examples(params: Params, batch: Any, **options: Any) -> Iterator[Examples]:
    """What can be asked about the examples' gradients, a chunk at a time: see `_captures.Examples`."""
    return (chunk() for chunk in chunks(params, batch, **options))


def chunks(
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
) -> list[Callable[[], Examples]]:
    """A call for each chunk of the examples, which passes them through the network."""
    if method not in ("auto", "layerwise", "vmap"):
        raise ValueError(f'method must be "auto", "layerwise" or "vmap", got {method!r}')
    if method == "layerwise" and loss_fn is not None:
        raise ValueError('method="layerwise" serves the loss of an arch; a loss_fn of your own needs "vmap" or "auto"')
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    check_tensors(params, "params")
    n = count(batch)
    if views is not None:
        _check_views(batch, views)
    check_tensors(frozen or {}, "frozen")
    if not params:
        raise ValueError("params are empty: there is nothing to differentiate by")
    if both := sorted(params.keys() & (frozen or {}).keys()):
        raise ValueError(f"a parameter is trained or frozen, and these are both: {', '.join(both)}")
    if key is not None:
        random.check_key(key, rows=n)
        key = random.split(key, n) if key.dim() == 1 else key
    by_vmap = method == "vmap" or loss_fn is not None
    loss = functools.partial(losses.loss_fn, arch=arch) if loss_fn is None else loss_fn
    step = max(1, n) if chunk_size is None else chunk_size

    def chunk(first: int) -> Examples:
        part = pytree.tree_map(lambda t: t[first : first + step], batch)
        keys = None if key is None else key[first : first + step]
        if by_vmap:
            whole = functools.partial(_beside, frozen, loss) if frozen else loss
            return materialised(params, part, whole if views is None else _mean_over_views(whole), keys)
        flat, own = (part, keys) if views is None else one_by_one(part, keys, views)
        return _captures.captured(params, flat, own, views or 1, arch=arch, frozen=frozen or {})

    return [functools.partial(chunk, first) for first in range(0, max(1, n), step)]


def materialised(params: Params, batch: Any, loss_fn: Loss, keys: Int32[Tensor, "n 2"] | None) -> Examples:
    """What `_captures.captured` knows, of any pure loss, from all gradients by `vmap(grad(loss_fn))`."""

    def loss(params: Params, example: Any, key: Tensor | None) -> Tensor:
        return loss_fn(params, example) if key is None else loss_fn(params, example, key=key)

    in_dims = (None, 0, None if keys is None else 0)
    if count(batch):
        by_name, values = vmap(grad_and_value(loss), in_dims=in_dims)(params, batch, keys)
    else:  # which vmap does not take
        by_name = {name: p.new_zeros(0, *p.shape) for name, p in params.items()}
        values = next(iter(params.values())).new_zeros(0)
    by_name = _captures.wide(by_name)

    def sum_each(products: Tensor) -> Tensor:
        return _rows(products).sum(1)

    def dot(direction: Params) -> Tensor:
        return torch.stack([sum_each(g * direction[name].to(g.dtype)) for name, g in by_name.items()]).sum(0)

    return Examples(
        values,
        grads=lambda: by_name,
        squares=lambda: {name: sum_each(g.square()) for name, g in by_name.items()},
        hidden=lambda: {name: g.new_zeros(len(g)) for name, g in by_name.items()},
        dots=dot,
        weighted_sum=lambda weights, keep: {
            name: factors.weighted(g, factors.of_name(weights, name), keep) for name, g in by_name.items()
        },
        sum_of_squares=lambda: {name: g.square().sum(0) for name, g in by_name.items()},
        grams=lambda other: {name: _rows(by_name[name]) @ _rows(g).mT for name, g in other.grads().items()},
        sketch=lambda key, dim: sketches.of_tensors(key, dim, by_name),
        factors={},
    )


def _rows(grads: Tensor) -> Tensor:
    return grads[..., None].flatten(1)  # the gradients of a scalar parameter have no axis but the first


def count(batch: Any) -> int:
    """N of a batch. Raises ValueError where its tensors do not share a leading axis."""
    leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    counts = {len(leaf) if leaf.dim() else None for leaf in leaves}
    if len(counts) != 1 or None in counts:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        raise ValueError(
            f"batch must be tensors with one leading axis of N examples, got shapes {shapes}; "
            "one example, as vmap over examples sees it, is a batch of one: x[None]"
        )
    (count,) = counts
    assert count is not None
    return count


def _check_views(batch: Any, views: int) -> None:
    x, _ = losses.check_pair(batch)
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}")
    if x.dim() < 2 or x.shape[1] != views:
        raise ValueError(f"with views={views} x must be [N, {views}, ...], every example's views, got {list(x.shape)}")


def one_by_one(batch: losses.Batch, keys: Tensor | None, views: int) -> tuple[losses.Batch, Tensor | None]:
    """Views [N, K, C, H, W] as one batch of N K, each with its label and its own key, of the examples' keys [N, 2]."""
    x, y = batch
    own = None if keys is None else split_each(keys, views).flatten(0, 1)
    return (x.flatten(0, 1), y.repeat_interleave(views)), own


def _beside(frozen: Params, loss: Loss, params: Params, example: Any, **key: Tensor) -> Tensor:
    return loss({**frozen, **params}, example, **key)


def _mean_over_views(loss: Loss) -> Loss:
    def of_example(params: Params, example: losses.Batch, key: Tensor | None = None) -> Tensor:
        x, y = example
        if key is None:
            return vmap(lambda view: loss(params, (view, y)))(x).mean()
        return vmap(lambda view, own: loss(params, (view, y), key=own))(x, random.split(key, len(x))).mean()

    return of_example
