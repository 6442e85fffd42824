"""Learning rates as functions of the step: an int64 scalar tensor to a float64 one, so nothing leaves the device.

Their rates may be scalar tensors. Each raises ValueError for a negative rate, TypeError for what is no number.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from alexnet_func.checks import check_number
from alexnet_func.optim.base import Number, Schedule


def constant(value: Number) -> Schedule:
    """The same rate at every step."""
    check_number("value", value)
    return lambda step: torch.zeros_like(step, dtype=torch.float64) + value


def step_decay(value: Number, boundaries: tuple[int, ...], factor: Number = 0.1) -> Schedule:
    """`value * factor^n`, n the number of boundaries b with b <= step: the paper divides by ten, three times."""
    check_number("value", value)
    check_number("factor", factor)

    def schedule(step: Tensor) -> Tensor:
        rate = constant(value)(step)
        for boundary in boundaries:
            rate = torch.where(step >= boundary, rate * factor, rate)
        return rate

    return schedule


def piecewise_constant(init_value: Number, boundaries_and_scales: Mapping[int, Number]) -> Schedule:
    """`init_value` times the scales of all boundaries b with b <= step: `optax.piecewise_constant_schedule`."""
    check_number("init_value", init_value)
    for scale in boundaries_and_scales.values():
        check_number("a scale", scale)

    def schedule(step: Tensor) -> Tensor:
        rate = constant(init_value)(step)
        for boundary, scale in boundaries_and_scales.items():
            rate = torch.where(step >= boundary, rate * scale, rate)
        return rate

    return schedule


def warmup_linear(peak: Number, warmup_steps: int, total_steps: int) -> Schedule:
    """Rises linearly to `peak` over `warmup_steps`, then falls linearly to 0 at `total_steps` and stays there.

    The rate of step s < warmup_steps is `peak (s + 1) / warmup_steps`, so that the first step already moves.
    """
    return _after_warmup(peak, warmup_steps, total_steps, lambda progress: 1 - progress)


def warmup_cosine(peak: Number, warmup_steps: int, total_steps: int) -> Schedule:
    """As `warmup_linear`, but falls as half a cosine: Loshchilov and Hutter 2017, equation 5, without restarts."""
    return _after_warmup(peak, warmup_steps, total_steps, lambda progress: (1 + torch.cos(math.pi * progress)) / 2)


def _after_warmup(peak: Number, warmup_steps: int, total_steps: int, fall: Callable[[Tensor], Tensor]) -> Schedule:
    check_number("peak", peak)
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps must lie in 0..total_steps-1, got {warmup_steps} of {total_steps}")

    def schedule(step: Tensor) -> Tensor:
        progress = ((step.double() - warmup_steps) / (total_steps - warmup_steps)).clamp(0, 1)
        rise = (step.double() + 1) / max(1, warmup_steps)
        return peak * torch.where(step < warmup_steps, rise, fall(progress))

    return schedule
