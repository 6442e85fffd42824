"""N models as one dict of stacked parameters, [M, *shape] by name: everything here is `vmap`.

    members = ensemble.init(random.split(key, 5), arch)
    logits = ensemble.forward(members, x, arch=arch)                 # [5, N, classes]
    optimizer = ensemble.optimizer(lambda rate: optim.sgd(rate, momentum=0.9), rates)
    step = train.make_step(None, optimizer, grad_fn=ensemble.grad_fn(loss_fn))

Member i computes what it would compute alone: its own parameters, key and learning rate, and either the batch that all
share or its own. Images [C, H, W] or [N, C, H, W] are shared; [M, N, C, H, W] are a batch for each member.

On a CPU a compiled call with a small `chunk_size` runs faster, and compiles longer: `vmap` turns convolutions into
grouped ones, and chunks are compiled one after the other.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree

from alexnet_func import model, random
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.checks import check_named_tensors, check_tensors, shapes_of
from alexnet_func.losses import Batch, check_pair
from alexnet_func.model import Params
from alexnet_func.optim import Optimizer, OptState, Updated
from alexnet_func.precision import in_precision_of
from alexnet_func.train import Graded, GradFn, Loss

__all__ = [
    "average",
    "forward",
    "grad_fn",
    "init",
    "optimizer",
    "stack",
    "unstack",
]

Keys = Int32[Tensor, "*m 2"]


def init(
    keys: Int32[Tensor, "m 2"],
    arch: Arch = ALEXNET,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Params:
    """Draws member i as `model.init(keys[i], arch)` does, bit for bit.

    Raises ValueError unless keys are [M, 2], as `random.split(key, M)` gives them; the rest as `model.init` raises it.

    Examples:
        >>> keys = af.random.split(key, 2)
        >>> members = af.ensemble.init(keys, arch)
        >>> members["classifier.6.weight"].shape
        torch.Size([2, 10, 1024])
        >>> torch.equal(members["classifier.6.weight"][1], af.init(keys[1], arch)["classifier.6.weight"])
        True
    """
    if not isinstance(keys, Tensor) or keys.dim() != 2:
        given = list(keys.shape) if isinstance(keys, Tensor) else type(keys).__name__
        raise ValueError(f"keys must be [M, 2], one a member, as random.split(key, M) gives them; got {given}")
    random.check_key(keys, rows=len(keys))
    keys = keys if device is None else keys.to(device)
    stacked = vmap(functools.partial(model.init, arch=arch, dtype=dtype))(keys)
    # What no key reaches, such as constant biases, vmap expands: a donated step could not write there.
    return {name: p.contiguous() for name, p in stacked.items()}


def stack(members: Sequence[Params]) -> Params:
    """Stacks the parameters of M `members`, models of one arch, as [M, *shape] by name; `unstack` is the inverse.

    Raises ValueError for no members, and for members of other names or shapes than the first.

    Examples:
        >>> af.ensemble.stack([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])["w"]
        tensor([[0., 0.],
                [1., 1.]])
    """
    if not members:
        raise ValueError("members must not be empty")
    check_tensors(members[0], "member 0")
    shapes = shapes_of(members[0])
    for i, member in enumerate(members):
        check_named_tensors(shapes, member, f"member {i}")
    return {name: torch.stack([member[name] for member in members]) for name in shapes}


def unstack(stacked: Params) -> list[Params]:
    """Returns each member's parameters, views into the `stacked` ones.

    Examples:
        >>> af.ensemble.unstack({"w": torch.tensor([[0.0, 0.0], [1.0, 1.0]])})
        [{'w': tensor([0., 0.])}, {'w': tensor([1., 1.])}]
    """
    return [{name: p[i] for name, p in stacked.items()} for i in range(_count(stacked))]


def forward(
    stacked: Params,
    x: Float[Tensor, "*b c h w"],
    *,
    arch: Arch = ALEXNET,
    key: Keys | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, "m *n classes"]:
    """Computes every member's logits of `x`, [M, N, classes] or [M, classes].

    With a key [2] member i has `split(key, M)[i]`, or row i of a key [M, 2]. `chunk_size` is `vmap`'s: so many members
    at once.

    Raises ValueError for stacked parameters or images that differ in M; the rest as `model.forward` raises it.

    Examples:
        >>> members = af.ensemble.stack([params, af.init(af.random.key(1), arch)])
        >>> af.ensemble.forward(members, batch[0], arch=arch).shape
        torch.Size([2, 4, 10])
    """
    count = _count(stacked)
    keys = None if key is None else _member_keys(key, count)
    in_dims = (0, _batch_dim(x, count), None if keys is None else 0)

    def one(params: Params, x: Tensor, key: Tensor | None) -> Tensor:
        return model.forward(params, x, arch=arch, key=key)

    return vmap(one, in_dims=in_dims, chunk_size=chunk_size)(stacked, x, keys)


def average(stacked: Params, x: Float[Tensor, "*n c h w"], *, arch: Arch = ALEXNET) -> Float[Tensor, "*n classes"]:
    """Computes the log of the members' mean probabilities for `x`: logits of the averaged prediction, [N, classes].

    Krizhevsky et al. 2012, table 2: five networks averaged err 16.4 % where one errs 18.2 %.

    Examples:
        >>> members = af.ensemble.stack([params, af.init(af.random.key(1), arch)])
        >>> log_p = af.ensemble.average(members, batch[0], arch=arch)
        >>> log_p.shape, torch.allclose(log_p.exp().sum(-1), torch.ones(4))
        (torch.Size([4, 10]), True)
    """
    log_p = forward(stacked, x, arch=arch).log_softmax(-1)
    return log_p.logsumexp(0) - math.log(len(log_p))


def grad_fn(loss_fn: Loss, *, chunk_size: int | None = None) -> GradFn:
    """Returns, for `train.make_step`, every member's own gradient of `loss_fn(params, batch, key=key)`.

    The batch is one for all, or (x [M, N, C, H, W], y [M, N]), one a member. Member i has the key `split(key, M)[i]`.
    Metrics: "losses" [M], and their mean, "loss". `chunk_size` is `vmap`'s: so many members at once.

    Examples:
        >>> members = af.ensemble.stack([params, af.init(af.random.key(1), arch)])
        >>> grad_fn = af.ensemble.grad_fn(lambda p, batch, key: af.loss_fn(p, batch, arch=arch, key=key))
        >>> grads, metrics = grad_fn(members, batch, key)
        >>> grads["features.0.weight"].shape, metrics["losses"].shape
        (torch.Size([2, 64, 3, 3, 3]), torch.Size([2]))
    """

    def gradients(stacked: Params, batch: Batch, key: Tensor) -> Graded:
        def one(params: Params, batch: Batch, key: Tensor) -> Any:  # Dynamo builds no generic types
            return grad_and_value(lambda p: loss_fn(p, batch, key=key))(params)

        count = _count(stacked)
        keys = _member_keys(key, count)
        in_dims = (0, _batch_dim(check_pair(batch)[0], count), 0)
        grads, losses = vmap(one, in_dims=in_dims, chunk_size=chunk_size)(stacked, batch, keys)
        return grads, {"loss": losses.mean(), "losses": losses}

    return in_precision_of(loss_fn, gradients)


def optimizer(make: Callable[[Tensor], Optimizer], rates: Float[Tensor, "m"]) -> Optimizer:
    """Applies `make(rates[i])` to member i, as one optimiser of stacked parameters.

    `make` is given a scalar tensor, and may use it for a learning rate or in a schedule:
    `lambda rate: optim.sgd(lambda step: rate * fall(step), momentum=0.9)`. Raises ValueError, from `init`, for
    parameters of another number of members than there are rates, or on another device: a copy in every step would be
    waited for.

    Examples:
        >>> sweep = af.ensemble.optimizer(lambda rate: af.optim.sgd(rate), torch.tensor([0.1, 0.5]))
        >>> members = {"w": torch.ones(2, 1)}
        >>> sweep.update(members, sweep.init(members), members, torch.tensor(0))[0]["w"]
        tensor([[0.9000],
                [0.5000]])
    """

    def check(stacked: Params) -> None:
        if _count(stacked) != len(rates):
            raise ValueError(f"rates must have shape [{_count(stacked)}], one a member, got {list(rates.shape)}")
        device = next(iter(stacked.values())).device
        if rates.device != device:
            raise ValueError(f"the members are on {device} but rates are on {rates.device}")

    def start(stacked: Params) -> OptState:
        check(stacked)
        state = vmap(lambda rate, params: make(rate).init(params))(rates, stacked)
        return pytree.tree_map(Tensor.contiguous, state)

    def update(grads: Params, opt_state: OptState, stacked: Params, step: Tensor) -> Updated:
        def one(rate: Tensor, grads: Params, opt_state: OptState, params: Params) -> Updated:
            return make(rate).update(grads, opt_state, params, step)

        check(stacked)
        return vmap(one)(rates, grads, opt_state, stacked)

    return Optimizer(start, update)


def _count(stacked: Params) -> int:
    check_tensors(stacked, "stacked parameters")
    counts = {len(p) if p.dim() else None for p in stacked.values()}
    if len(counts) != 1 or None in counts:
        shapes = ", ".join(f"{name} {list(p.shape)}" for name, p in stacked.items())
        raise ValueError(f"stacked parameters must share a leading axis, one entry a member, got {shapes}")
    return next(len(p) for p in stacked.values())


def _batch_dim(x: Tensor, count: int) -> int | None:
    if x.dim() != 5:
        return None
    if len(x) != count:
        raise ValueError(f"x {list(x.shape)} holds batches for {len(x)} members, and there are {count}")
    return 0


def _member_keys(key: Tensor, count: int) -> Tensor:
    random.check_key(key, rows=count)
    return random.split(key, count) if key.dim() == 1 else key
