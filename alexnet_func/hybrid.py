"""Hybrid parallelism of Krizhevsky 2014, "One weird trick": convolutions data parallel, linear layers split.

    state = train.create_state(hybrid.split(params, arch), optimizer, key=key)
    step = train.make_step(None, optimizer, grad_fn=hybrid.grad_fn(partial(hybrid.loss_fn, arch=arch), arch))

The linear layers of ALEXNET hold 96 % of its parameters and do 8 % of its arithmetic. Here each rank of
`torch.distributed` holds the weights of some of their outputs, for everybody's examples, and activations travel instead
of gradients: each layer gathers all ranks' inputs, and each output goes home to its example's rank. What lies before,
between and after stays on that rank, so that losses, dropout and augmentation are those of `parallel`, key for key.
The trick is a table of layer functions, as those of `routes` are; its collectives have gradients, and no `vmap`.
"""

import functools
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int32
from torch import Tensor
from torch.func import grad_and_value

from alexnet_func import losses, model, parallel, random, tape
from alexnet_func.arch import ALEXNET, Arch, Linear, Placed, Shape, param_shapes, place
from alexnet_func.checks import check_named_tensors, visible
from alexnet_func.model import PLAIN, Params, Table
from alexnet_func.precision import in_precision_of
from alexnet_func.train import Graded, GradFn, Loss

if dist.is_available():
    from torch.distributed import _functional_collectives as collectives

    _all_gather: Any = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor

__all__ = ["forward", "grad_fn", "loss_fn", "split", "split_layers", "whole"]

Tree = TypeVar("Tree", bound=Mapping[str, Any])


def split(tree: Tree, arch: Arch) -> Tree:
    """Returns this rank's part of parameters, or of an optimiser's state, which has tensors of their names.

    The outputs of each linear layer, rows of its weight and of its bias, are divided among the ranks as evenly as may
    be; all else is whole on each. Raises ValueError for a tensor that is not as large as the arch's.
    """
    shapes = param_shapes(arch)

    def part(name: str, t: Tensor) -> Tensor:
        if t.shape != shapes[name]:
            raise ValueError(f"{name} of {arch.name} has the shape {list(shapes[name])}, got {list(t.shape)}")
        return t.split(_sizes(len(t)))[parallel.rank()].clone()

    return _of_linear_layers(part, tree, arch)


def whole(tree: Tree, arch: Arch) -> Tree:
    """Returns what `split` divided, gathered on every rank, all of which must call it.

    It is what a single rank would have, and what any number of them may `split` again.
    """

    def gathered(name: str, t: Tensor) -> Tensor:
        sizes = _sizes(param_shapes(arch)[name][0])
        padded = torch.cat([t, t.new_zeros(max(sizes) - len(t), *t.shape[1:])])
        parts = _all(padded).split(max(sizes))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    return _of_linear_layers(gathered, tree, arch)


def split_layers(table: Table = PLAIN) -> Table:
    """Returns `table` with linear layers for weights as `split` leaves them."""

    def linear(at: Placed, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        there, back = functools.partial(_home, outputs=at.out_shape[0]), functools.partial(_away, own=len(weight))
        return _Moved.apply(table[Linear](at, _Moved.apply(x, _all, _summed_home), weight, bias), there, back)

    return {**table, Linear: linear} if parallel.world_size() > 1 else table


def forward(
    params: Params,
    x: Float[Tensor, "n c h w"],
    *,
    arch: Arch = ALEXNET,
    key: Int32[Tensor, "*k 2"] | None = None,
    table: Table = PLAIN,
) -> Float[Tensor, "n classes"]:
    """Computes `model.forward` of this rank's images by parameters as `split` leaves them; all ranks must call it.

    Each must have as many images. Raises ValueError for parameters that are no such part, on a CPU where the ranks have
    other numbers of images, and as `model.forward` does for images and a key.
    """
    _check_part(arch, params)
    model.check_images(arch, params, x, key)
    if not tape.transformed():
        _check_shares(len(x), x.device)
    dtype = next(iter(params.values())).dtype
    return model.walk(arch, params, x.to(dtype), key, split_layers(table))


def loss_fn(
    params: Params,
    batch: losses.Batch,
    *,
    arch: Arch = ALEXNET,
    key: Int32[Tensor, "*k 2"] | None = None,
    table: Table = PLAIN,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Computes `losses.loss_fn` of this rank's examples, by `forward`. Errors as it and `check_labels` raise them."""
    x, y = losses.check_pair(batch)
    losses.check_labels(y, arch.num_classes)
    return losses.cross_entropy(forward(params, x, arch=arch, key=key, table=table), y, label_smoothing)


def grad_fn(loss_fn: Loss, arch: Arch) -> GradFn:
    """Makes a `grad_fn` for `train.make_step`: the mean over all ranks' examples, each for the parameters it holds.

    `loss_fn(params, batch, key=keys)` is the mean over this rank's examples, by `forward`; keys are those of
    `parallel.grad_fn`. Gradients of convolutions are summed as there; that of a split layer is of all examples
    already, as their activations were here. Each rank must have as many. An optimiser that looks at a split tensor as a
    whole (`muon`), or at all of them (`clip_by_global_norm`), would see this rank's part: convolutions, of which each
    rank has a copy, would then become different ones.

    Raises ValueError for parameters that are no part of the arch's, and on a CPU where the ranks have other numbers of
    examples.
    """
    linear = _names(arch)

    def gradient(params: Params, batch: losses.Batch, key: random.Key) -> Graded:
        _check_part(arch, params, only=params)  # others may be frozen
        n = len(losses.check_pair(batch)[1])
        _check_shares(n, key.device)
        keys = parallel.example_keys(key, n)
        grads, loss = grad_and_value(lambda p: loss_fn(p, batch, key=keys))(params)
        names = [name for name in grads if name not in linear]
        *sums, total = parallel.summed([*(grads[name] for name in names), loss])
        grads |= dict(zip(names, sums, strict=True))
        ranks = parallel.world_size()
        return {name: g / ranks for name, g in grads.items()}, {"loss": total / ranks}

    return in_precision_of(loss_fn, gradient)


class _Moved(torch.autograd.Function):
    """`there(x)`, whose gradient goes `back`: the two are each other's transpose."""

    @staticmethod
    def forward(x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        return there(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.there, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        return _Moved.apply(d, ctx.back, ctx.there), None, None


def _all(x: Tensor) -> Tensor:
    """[n, ...] of each rank to [W n, ...]."""
    everyone: Any = dist.group.WORLD
    return collectives.wait_tensor(_all_gather(x.contiguous(), 0, everyone))


def _home(y: Tensor, outputs: int) -> Tensor:
    """[W n, own outputs] to [n, outputs]: each example's to its rank."""
    n, sizes = len(y) // parallel.world_size(), _sizes(outputs)
    received = _exchanged(y.reshape(-1), [n * y.shape[1]] * len(sizes), [n * size for size in sizes])
    parts = received.split([n * size for size in sizes])
    return torch.cat([part.view(n, size) for part, size in zip(parts, sizes, strict=True)], dim=1)


def _away(dy: Tensor, own: int) -> Tensor:
    """[n, outputs] to [W n, own outputs], the way back of `_home`."""
    n, sizes = len(dy), _sizes(dy.shape[1])
    sent = torch.cat([part.reshape(-1) for part in dy.split(sizes, dim=1)])
    received = _exchanged(sent, [n * size for size in sizes], [n * own] * len(sizes))
    return received.view(len(sizes) * n, own)


def _summed_home(dx: Tensor) -> Tensor:
    """[W n, in], each rank's summand for everybody's examples, to the sums [n, in] of the own ones."""
    ranks = parallel.world_size()
    shares = [dx.numel() // ranks] * ranks
    return _exchanged(dx.reshape(-1), shares, shares).view(ranks, -1, dx.shape[1]).sum(0)


def _exchanged(flat: Tensor, sent: list[int], received: list[int]) -> Tensor:
    everyone: Any = dist.group.WORLD
    return collectives.wait_tensor(collectives.all_to_all_single(flat.contiguous(), received, sent, everyone))


def _sizes(outputs: int) -> list[int]:
    """How many of a layer's outputs each rank has."""
    ranks = parallel.world_size()
    return [outputs // ranks + (rank < outputs % ranks) for rank in range(ranks)]


def _names(arch: Arch) -> frozenset[str]:
    layers = place(arch, (arch.in_channels, arch.image_size, arch.image_size))
    linear = [at.name for at in layers if isinstance(at.layer, Linear)]
    return frozenset(f"{name}.{kind}" for name in linear for kind in ("weight", "bias"))


def _check_part(arch: Arch, params: Params, only: Container[str] | None = None) -> None:
    """Raises ValueError unless `params` are this rank's part, or those of it whose names are in `only`."""
    expected = {name: shape for name, shape in _part_shapes(arch).items() if only is None or name in only}
    check_named_tensors(expected, params, f"rank {parallel.rank()}'s part of the params of {arch.name}")


def _check_shares(n: int, device: torch.device) -> None:
    """Raises ValueError where the ranks have other numbers of examples and their numbers can be looked at."""
    if parallel.world_size() == 1 or torch.compiler.is_compiling():
        return
    seen = visible(parallel.counts(n, device))
    if seen is not None and bool((seen != n).any()):
        raise ValueError(f"split layers need as many examples on each rank, got {seen.tolist()}")


def _part_shapes(arch: Arch) -> dict[str, Shape]:
    linear = _names(arch)
    shapes = param_shapes(arch).items()
    return {name: (_sizes(s[0])[parallel.rank()], *s[1:]) if name in linear else s for name, s in shapes}


def _of_linear_layers(function: Callable[[str, Tensor], Tensor], tree: Any, arch: Arch) -> Any:
    """The tree with the function's results for the tensors of linear layers, wherever in it their names are."""
    if parallel.world_size() == 1:
        return tree
    linear = _names(arch)

    def walked(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: walked(inner, each) for inner, each in value.items()}
        return function(name, value) if name in linear else value

    return walked("", tree)
