"""What the library is held against, in its own ordinary style and sharing no code with it."""

import torch
import torchvision
from torch import Tensor


def torchvision_alexnet(dtype: torch.dtype) -> torch.nn.Module:
    """`torchvision.models.alexnet` with random weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.alexnet().to(dtype).eval()


def loss_and_gradients(module: torch.nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, mean cross-entropy, and its gradient by `loss.backward()` for every parameter, by name."""
    module.zero_grad()
    logits = module(x)
    loss = torch.nn.functional.cross_entropy(logits, y)
    loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return logits.detach(), loss.detach(), gradients
