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
    """Returns a schedule of the same `value` at every step.

    Examples:
        >>> af.optim.constant(0.1)(torch.tensor(1000))
        tensor(0.1000, dtype=torch.float64)
    """
    check_number("value", value)
    return lambda step: torch.zeros_like(step, dtype=torch.float64) + value


def step_decay(value: Number, boundaries: tuple[int, ...], factor: Number = 0.1) -> Schedule:
    """Multiplies `value` by `factor` at each of the `boundaries`.

    The rate is `value * factor^n`, n the number of boundaries b with b <= step: the paper divides by ten, three times.

    Examples:
        >>> rate = af.optim.step_decay(0.01, (10, 20))
        >>> [round(rate(torch.tensor(step)).item(), 4) for step in (0, 9, 10, 20)]
        [0.01, 0.01, 0.001, 0.0001]
    """
    check_number("value", value)
    check_number("factor", factor)

    def schedule(step: Tensor) -> Tensor:
        rate = constant(value)(step)
        for boundary in boundaries:
            rate = torch.where(step >= boundary, rate * factor, rate)
        return rate

    return schedule


def piecewise_constant(init_value: Number, boundaries_and_scales: Mapping[int, Number]) -> Schedule:
    """Multiplies `init_value` by the scales of all boundaries b with b <= step: `optax.piecewise_constant_schedule`.

    Examples:
        >>> rate = af.optim.piecewise_constant(1.0, {10: 0.5, 20: 0.1})
        >>> [round(rate(torch.tensor(step)).item(), 4) for step in (0, 10, 20)]
        [1.0, 0.5, 0.05]
    """
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

    Examples:
        >>> rate = af.optim.warmup_linear(1.0, warmup_steps=2, total_steps=6)
        >>> [round(rate(torch.tensor(step)).item(), 4) for step in (0, 1, 2, 4, 6)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    return _after_warmup(peak, warmup_steps, total_steps, lambda progress: 1 - progress)


def warmup_cosine(peak: Number, warmup_steps: int, total_steps: int) -> Schedule:
    """Rises to `peak` as `warmup_linear` does, then falls as half a cosine: Loshchilov and Hutter 2017, equation 5,
    without restarts.

    Examples:
        >>> rate = af.optim.warmup_cosine(1.0, warmup_steps=2, total_steps=6)
        >>> [round(rate(torch.tensor(step)).item(), 4) for step in (0, 1, 3, 4, 6)]
        [0.5, 1.0, 0.8536, 0.5, 0.0]
    """
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
