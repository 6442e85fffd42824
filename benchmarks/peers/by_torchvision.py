"""torchvision's module in a loop of its own kind: in place, fused SGD; and compiled as torch's tutorials have it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.cases import Case, Setting


def module(given: Setting) -> nn.Module:
    """`torchvision.models.alexnet` with these parameters, its dropout off."""
    net = torchvision.models.alexnet(dropout=0.0).to(given.x.device)
    net.load_state_dict(given.params)
    return net


def forward(case: Case, given: Setting, *, compiled: bool) -> Callable[[], Tensor]:
    """Logits, without gradients."""
    net = module(given).eval()
    run: Any = torch.compile(net) if compiled else net

    def call() -> Tensor:
        with torch.no_grad(), _lowered(case):
            return run(given.x)

    return call


def step(case: Case, given: Setting, rate: float, *, compiled: bool) -> Callable[[], Tensor]:
    """One step of SGD with momentum; gives the loss. Compiled: the module and the optimiser's step, a graph each."""
    net = module(given).train()
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9, fused=not compiled)
    run: Any = torch.compile(net) if compiled else net
    update: Any = torch.compile(optimizer.step) if compiled else optimizer.step

    def call() -> Tensor:
        optimizer.zero_grad()
        with _lowered(case):
            loss = nn.functional.cross_entropy(run(given.x), given.y)
        loss.backward()
        update()
        return loss.detach()

    return call


def _lowered(case: Case) -> AbstractContextManager:
    if case.precision != "bf16":
        return nullcontext()
    return torch.autocast(case.device, torch.bfloat16)
