"""Products of all pairs of examples' gradients, whole or by layer, and projections that keep them.

`arch` to `frozen` are those of `per_sample`, where these functions stand too.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alexnet_func import random
from alexnet_func._captures import Examples
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.examples import Keys, Loss, Method, chunks, examples
from alexnet_func.model import Params


def gram(
    params: Params,
    batch: Any,
    other: Any = None,
    *,
    arch: Arch = ALEXNET,
    loss_fn: Loss | None = None,
    key: Keys | None = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> Float[Tensor, "n m"]:
    """Computes `<g_n, g_m>` of every example of `batch` with every one of `other`, [N, M].

    `other=None` means `batch`. By layer: a linear layer's gradients are not formed, a convolution's a few at a time.
    What else is in memory are the layers' inputs and output gradients of all N + M examples, or of `chunk_size` of
    each, whose passes are then done N / chunk_size times. Example m of `other` has the key that example m of `batch`
    has.

    Examples:
        >>> products = af.per_sample.gram(params, batch, arch=arch)
        >>> torch.allclose(products.diagonal().sqrt(), af.per_sample.norms(params, batch, arch=arch), rtol=1e-3)
        True
    """
    options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "key": key, "method": method, "views": views}
    options["frozen"] = frozen
    return _tiled(
        params, batch, other, lambda one, two: torch.stack(list(one.grams(two).values())).sum(0), chunk_size, options
    )


def layer_grams(
    params: Params,
    batch: Any,
    other: Any = None,
    *,
    arch: Arch = ALEXNET,
    loss_fn: Loss | None = None,
    key: Keys | None = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> dict[str, Float[Tensor, "n m"]]:
    """Computes the `gram` of the gradients by each of `params`, [N, M] by parameter name; their sum is `gram`.

    Examples:
        >>> head = {name: p for name, p in params.items() if name.startswith("classifier.6")}
        >>> body = {name: p for name, p in params.items() if name not in head}
        >>> products = af.per_sample.layer_grams(head, batch, arch=arch, frozen=body)
        >>> {name: list(product.shape) for name, product in products.items()}
        {'classifier.6.weight': [4, 4], 'classifier.6.bias': [4, 4]}
    """
    options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "key": key, "method": method, "views": views}
    options["frozen"] = frozen

    def of_layers(one: Examples, two: Examples) -> Tensor:
        grams = one.grams(two)
        return torch.stack([grams[name] for name in params], -1)

    stacked = _tiled(params, batch, other, of_layers, chunk_size, options)
    return dict(zip(params, stacked.unbind(-1), strict=True))


def project(
    params: Params,
    batch: Any,
    key: Keys,
    dim: int,
    *,
    dropout_key: Keys | None = None,
    arch: Arch = ALEXNET,
    loss_fn: Loss | None = None,
    method: Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> Float[Tensor, "n dim"]:
    """Multiplies every example's gradient by a random matrix [P, dim] that `key` stands for and that is never stored.

    Returns [N, dim]. Products of gradients are kept on average over keys, with a standard deviation of at most
    `sqrt(8 / dim) |g| |g'|`, for most `sqrt(2 / dim)`. By layer: a linear layer's gradients are not
    formed. `dropout_key` is what `key` is elsewhere. Raises ValueError for a `dim` below 1.

    Examples:
        >>> features = af.per_sample.project(params, batch, key, 256, arch=arch)
        >>> features.shape, (features @ features.mT).shape  # the second estimates af.per_sample.gram
        (torch.Size([4, 256]), torch.Size([4, 4]))
    """
    random.check_key(key)
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"dim must be an integer of at least 1, got {dim}")
    options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "key": dropout_key, "method": method, "views": views}
    options["frozen"] = frozen
    return torch.cat([part.sketch(key, dim) for part in examples(params, batch, chunk_size=chunk_size, **options)])


def _tiled(
    params: Params,
    batch: Any,
    other: Any,
    of: Callable[[Examples, Examples], Tensor],
    chunk_size: int | None,
    options: Any,
) -> Tensor:
    """`of` of all examples of one batch and all of the other, [N, M, ...], in tiles of chunks; None: the same batch."""
    rows = chunks(params, batch, chunk_size=chunk_size, **options)
    columns = rows if other is None else chunks(params, other, chunk_size=chunk_size, **options)
    tiles: list[list[Tensor]] = []
    for i, chunk in enumerate(rows):
        one = chunk()
        before = [tiles[j][i].transpose(0, 1) for j in range(i)] if other is None else []
        own = [of(one, one)] if other is None else []
        tiles.append(before + own + [of(one, column()) for column in columns[len(before) + len(own) :]])
    return torch.cat([torch.cat(row, 1) for row in tiles])
