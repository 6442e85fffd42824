"""Data-parallel training: a `grad_fn` over the ranks of torch.distributed, each with its slice of the batch.

    torchrun --nproc-per-node 2 -m alexnet_func train ...

Every rank holds the whole state and the same key. It differentiates its own examples, all-reduces sum gradients,
losses and counts, and each rank makes the same update: no rank sends parameters after the start. The process group is
torch's (NCCL on CUDA, gloo on a CPU) and may be made by any means of torch.distributed; `joined` is what the
application does. Without a group there is one rank, and everything here still holds.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int, Int32, Int64
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree

from alexnet_func import random, tape, train
from alexnet_func.losses import Batch, check_pair
from alexnet_func.model import Params
from alexnet_func.precision import in_precision_of
from alexnet_func.train import Graded, GradFn, Loss, Metrics

__all__ = [
    "Reduction",
    "broadcast",
    "counts",
    "evaluate",
    "example_keys",
    "first_rank_first",
    "gathered",
    "grad_fn",
    "joined",
    "rank",
    "share",
    "summed",
    "world_size",
]

if dist.is_available():
    # torch.func.grad imports this, and the defaults of its functions keep the process group of that moment. Kept beyond
    # its destruction, its threads may let go of a tensor while Python ends, which aborts the process.
    import torch.distributed.nn.functional
    from torch.distributed import _functional_collectives as collectives

_LARGE = 2**18  # bytes, from which a sum on its own costs less than it hides

Reduction = Literal["bf16"]
Tree = TypeVar("Tree")


def rank() -> int:
    """Returns the place of this process among the ranks, from 0."""
    return dist.get_rank() if _grouped() else 0


def world_size() -> int:
    """Returns the number of ranks."""
    return dist.get_world_size() if _grouped() else 1


def share(batch: Int[Tensor, "b"]) -> Int[Tensor, "n"]:
    """Returns this rank's examples of a global `batch`: the rank-th of `world_size` equal runs of its rows.

    Raises ValueError where the batch does not divide into equal ones.
    """
    if len(batch) % world_size():
        raise ValueError(f"a batch of {len(batch)} does not divide among {world_size()} ranks")
    return batch.chunk(world_size())[rank()]


def grad_fn(loss_fn: Loss, *, reduction: Reduction | None = None) -> GradFn:
    """Makes a `grad_fn` of `loss_fn` for `train.make_step`: the gradient and the mean loss over all ranks' examples.

    `batch = (x, y)` is this rank's share, and `loss_fn(params, batch, key=keys)` the mean over it, with a key for each
    example, the one it would have on a single rank: `random.split(key, number of all)` in the order of the ranks.
    Gradients agree with a single rank's up to the order of summation, and are weighted by counts: shares may be of
    different sizes.

    The sums travel in the parameters' dtype, or with `reduction="bf16"` rounded to bfloat16 (relative error 2^-9 a
    summand), losses and counts apart. In an eager step each gradient has an all-reduce of its own, in a compiled one
    each large one, which starts while the backward pass goes on and is waited for by the update; small ones share one.
    All ranks must differentiate by the same parameters; a loss may leave some of them out on some ranks.

    Raises ValueError for another reduction and, with several ranks, for parameters that require grad or are under a
    transform: a sum over ranks has no gradient here.
    """
    if reduction not in (None, "bf16"):
        raise ValueError(f'reduction must be None or "bf16", got {reduction!r}')

    def gradient(params: Params, batch: Batch, key: Tensor) -> Graded:
        n = len(check_pair(batch)[1])
        keys = example_keys(key, n)
        dtypes = {name: torch.bfloat16 if reduction == "bf16" else p.dtype for name, p in params.items()}
        if world_size() == 1 or torch.compiler.is_compiling():
            grads, loss = grad_and_value(lambda p: loss_fn(p, batch, key=keys))(params)
            sums = [(n * g).to(dtypes[name]) for name, g in grads.items()]
            counted = [n * loss, torch.full_like(loss, n)]
            if reduction is None:  # losses and counts travel with the small ones
                *sums, loss_sum, count = summed(sums + counted)
            else:
                sums, (loss_sum, count) = summed(sums), summed(counted)
        else:
            loss, sums = _summed_in_passing(lambda p: loss_fn(p, batch, key=keys), params, n, dtypes)
            loss_sum, count = summed([n * loss, torch.full_like(loss, n)])
        means = {name: s.to(p.dtype) / count.to(p.dtype) for (name, p), s in zip(params.items(), sums, strict=True)}
        return means, {"loss": loss_sum / count}

    return in_precision_of(loss_fn, gradient)


def _summed_in_passing(
    loss_fn: Callable[[Params], Tensor], params: Params, weight: int, dtypes: dict[str, torch.dtype]
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the sums over the ranks of `weight` times its gradients, each begun when the gradient is there."""
    _check_unwatched(params)
    sums: dict[str, Tensor] = {}
    begun: list[Any] = []
    order = list(reversed(params))  # of the sums, on every rank, whichever gradient is there first

    def have(name: str, g: Tensor) -> None:
        sums[name] = (weight * g).to(dtypes[name]).contiguous()
        while len(begun) < len(order) and order[len(begun)] in sums:
            begun.append(dist.all_reduce(sums[order[len(begun)]], async_op=True))

    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        loss = loss_fn(leaves)
        if loss.requires_grad:
            for name, leaf in leaves.items():
                leaf.register_hook(functools.partial(have, name))
            torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for name, p in params.items():
        if name not in sums:  # of no use to the loss
            have(name, torch.zeros_like(p))
    for work in begun:
        work.wait()
    return loss.detach(), [sums[name] for name in params]


def _check_unwatched(*trees: Any) -> None:
    """Raises ValueError where somebody differentiates or maps what ranks would sum."""
    if tape.transformed() or tape.watched(*trees):
        raise ValueError(
            "sums over several ranks have no gradient and no vmap: detach the parameters, or transform on one rank"
        )


def example_keys(key: random.Key, n: int) -> Int32[Tensor, "n 2"]:
    """Returns the keys of this rank's n examples: those rows of `random.split(key, number of all)` that are its own.

    The ranks tell each other how many they have, so that a last batch may be smaller on some.
    """
    if world_size() == 1:
        return random.split(key, n)
    before = counts(n, key.device)[: rank()].sum()
    return vmap(random.fold_in, in_dims=(None, 0))(key, before + torch.arange(n, device=key.device))


def counts(n: int, device: torch.device | None = None) -> Int64[Tensor, "w"]:
    """Returns how many examples each rank has, of which this one has n; all ranks must call it."""
    own = torch.arange(world_size(), device=device) == rank()
    return summed([n * own.long()])[0]


def evaluate(forward: Callable[[Params, Tensor], Tensor], params: Params, batches: Iterable[Batch]) -> Metrics:
    """Computes `train.evaluate` over the examples of all ranks, of which `batches` are this rank's, or none.

    Raises ValueError where no rank has an example.
    """
    with torch.no_grad():
        return train.metrics_of(summed([train.totals(forward, params, batches)])[0])


def broadcast(tree: Tree) -> Tree:
    """Returns `tree` with rank 0's tensors in place of this rank's, which have the same names and shapes.

    Dicts may have their names in another order.
    """
    if world_size() == 1:
        return tree
    leaves, structure = pytree.tree_flatten_with_path(tree)
    received = dict(leaves)
    for path in sorted(received, key=pytree.keystr):
        if isinstance(received[path], Tensor):
            received[path] = received[path].clone()
            dist.broadcast(received[path], src=0)
    return pytree.tree_unflatten([received[path] for path, _ in leaves], structure)


def gathered(value: Tree) -> list[Tree]:
    """Returns what the ranks have as `value`, which can be pickled, in their order."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Rank 0 runs the block before the others do: it downloads or writes what they then find, for up to a day.

    No rank leaves it before all have run it.
    """
    if world_size() == 1:
        yield
        return
    # NCCL's own barrier would give up after ten minutes.
    waiting: Any = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    if rank() > 0:
        dist.barrier(waiting)
    yield
    if rank() == 0:
        dist.barrier(waiting)
    dist.barrier(waiting)


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Within the block this process is one of torchrun's ranks, on the yielded device: cuda:LOCAL_RANK for CUDA.

    Where torchrun did not start the process it stays the only rank, on `device`. Raises ConnectionError where another
    rank has stopped, which torchrun's own report names; on CUDA NCCL's watchdog may end the process before.
    """
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    on_cuda = device.type == "cuda"
    dist.init_process_group("nccl" if on_cuda else "gloo", device_id=device if on_cuda else None)
    try:
        yield device
        dist.barrier()  # a rank that leaves early takes the others' connections with it
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ConnectionError(f"rank {rank()} stops, as another one has") from error
        raise
    finally:
        dist.destroy_process_group()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def summed(tensors: list[Tensor]) -> list[Tensor]:
    """Sums each tensor over the ranks, those of a dtype by one all-reduce.

    In a graph that is compiled large ones have one of their own. Those start from the last tensor on, as a backward
    pass has gradients, each as soon as its tensor is there, and are waited for where their sums are used.

    Raises TypeError for truth values, which have no sum, and ValueError as `grad_fn` does.
    """
    if any(t.dtype == torch.bool for t in tensors):
        raise TypeError("truth values have no sum: turn them into numbers")
    if world_size() == 1:
        return tensors
    compiling = torch.compiler.is_compiling()
    if not compiling:
        _check_unwatched(tensors)
    large = [i for i, t in enumerate(tensors) if compiling and t.numel() * t.element_size() >= _LARGE]
    sums = {i: _all_reduced(tensors[i]) for i in reversed(large)}
    small = [i for i in range(len(tensors)) if i not in sums]
    for dtype in dict.fromkeys(tensors[i].dtype for i in small):
        together = [i for i in small if tensors[i].dtype == dtype]
        flat = _all_reduced(torch.cat([tensors[i].reshape(-1) for i in together]))
        pieces = flat.split([tensors[i].numel() for i in together])
        sums |= {i: piece.view(tensors[i].shape) for i, piece in zip(together, pieces, strict=True)}
    return [sums[i] for i in range(len(tensors))]


def _all_reduced(t: Tensor) -> Tensor:
    """The sum over the ranks; an eager one is written into `t`."""
    everyone: Any = dist.group.WORLD
    if torch.compiler.is_compiling():
        return collectives.all_reduce(t, "sum", everyone)
    dist.all_reduce(t)
    return t
