"""BackPACK: per-sample gradients and their norms as extensions of the backward pass (Dangel et al. 2020)."""

from collections.abc import Callable

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, BatchL2Grad
from torch import Tensor, nn


def norms(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Every example's gradient norm, [N]."""
    extended, criterion = extend(module), extend(nn.CrossEntropyLoss(reduction="sum"))

    def run(x: Tensor, y: Tensor) -> Tensor:
        with backpack(BatchL2Grad()):
            criterion(extended(x), y).backward()
        extended.zero_grad()
        return torch.stack([p.batch_l2 for p in extended.parameters()]).sum(0).sqrt()

    return run


def clipped_step(
    module: nn.Module, max_norm: float, rate: float, chunk: int
) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """A step of SGD with momentum on clipped gradients, `chunk` of them in memory at a time; gives the parameters."""
    extended, criterion = extend(module), extend(nn.CrossEntropyLoss(reduction="sum"))
    optimizer = torch.optim.SGD(module.parameters(), rate, momentum=0.9)

    def run(x: Tensor, y: Tensor) -> list[Tensor]:
        totals: list[Tensor] = []
        for part, labels in zip(x.split(chunk), y.split(chunk), strict=True):
            optimizer.zero_grad()
            with backpack(BatchGrad()):
                criterion(extended(part), labels).backward()
            grads = [p.grad_batch for p in extended.parameters()]
            norm = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
            scale = (max_norm / norm).clamp(max=1)
            clipped = [torch.tensordot(scale, g, 1) for g in grads]
            totals = [t + c for t, c in zip(totals, clipped, strict=True)] if totals else clipped
        for p, total in zip(extended.parameters(), totals, strict=True):
            p.grad = total / len(x)
            del p.grad_batch
        optimizer.step()
        return [p.detach() for p in module.parameters()]

    return run
