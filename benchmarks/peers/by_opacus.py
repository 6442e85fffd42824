"""Opacus: per-sample gradients by hooks or expanded weights, and ghost clipping (Li et al. 2022)."""

from collections.abc import Callable

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping, wrap_model
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn


def grads(module: nn.Module, mode: str) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """Every example's gradient by parameter name; `mode` is "hooks" or "ew"."""
    wrapped = wrap_model(module, grad_sample_mode=mode, loss_reduction="sum")

    def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        nn.functional.cross_entropy(wrapped(x), y, reduction="sum").backward()
        found = {
            name: p.grad_sample  # type: ignore[attr-defined]
            for name, p in module.named_parameters()
        }
        wrapped.zero_grad()
        return found

    return run


def ghost_step(
    module: nn.Module, max_norm: float, batch_size: int, rate: float
) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """A step of SGD with momentum on clipped gradients, without noise; gives the parameters."""
    wrapped = GradSampleModuleFastGradientClipping(module, max_grad_norm=max_norm, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(wrapped.parameters(), rate, momentum=0.9),
        noise_multiplier=0.0,
        max_grad_norm=max_norm,
        expected_batch_size=batch_size,
    )
    criterion = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss())

    def run(x: Tensor, y: Tensor) -> list[Tensor]:
        criterion(wrapped(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        return [p.detach() for p in module.parameters()]

    return run
