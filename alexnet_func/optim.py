"""Optimisers as (init, update) pairs of pure functions, and learning-rate schedules.

    optimizer = sgd(0.01, momentum=0.9)
    opt_state = optimizer.init(params)
    params, opt_state = optimizer.update(grads, opt_state, params, step)

`update` applies the step and returns the new parameters, where optax returns an increment to add. `step` counts
updates from 0, as an int64 scalar tensor. A learning rate is a number, a scalar tensor or a
schedule: a function of `step` that returns a float64 scalar tensor, so nothing has to leave the device.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alexnet_func.model import Params

OptState = dict[str, Params]
# Named, since an optimiser may be made within a compiled function, where Dynamo builds no generic types.
Updated = tuple[Params, OptState]
Schedule = Callable[[Int[Tensor, ""]], Float[Tensor, ""]]


class Optimizer(NamedTuple):
    """`init(params) -> opt_state` and `update(grads, opt_state, params, step) -> (params, opt_state)`."""

    init: Callable[[Params], OptState]
    update: Callable[[Params, OptState, Params, Tensor], Updated]


def sgd(
    learning_rate: float | Tensor | Schedule,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    form: Literal["torch", "paper"] = "torch",
) -> Optimizer:
    """Stochastic gradient descent with momentum; the decay `weight_decay * p` is added to the gradient g.

    `form="torch"`: `v <- momentum v + g; p <- p - lr v` (`p - lr (g + momentum v)` with Nesterov), with the bits of
    `torch.optim.SGD` in float32 and float64 on the same device. `form="paper"`: `v <- momentum v - lr g; p <- p + v`,
    Krizhevsky et al. 2012, section 5. The two differ once the rate changes: the paper's velocity remembers the old
    rate.

    Raises ValueError for a negative rate, momentum or decay, for Nesterov without momentum or in the paper's form.
    """
    _check_not_negative(learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay)
    if form not in ("torch", "paper"):
        raise ValueError(f'form must be "torch" or "paper", got {form!r}')
    if nesterov and (momentum == 0 or form == "paper"):
        raise ValueError('nesterov needs momentum > 0 and form="torch"')

    def init(params: Params) -> OptState:
        return {"velocity": {name: torch.zeros_like(p) for name, p in params.items()}} if momentum else {}

    def decayed(grads: Params, params: Params) -> Params:
        return _add_scaled(grads, params, weight_decay) if weight_decay else grads

    def update_torch(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        descent = decayed(grads, params)
        if momentum:
            velocity = _plus(_each("mul", opt_state["velocity"], momentum), descent)
            opt_state = {"velocity": velocity}
            descent = _add_scaled(descent, velocity, momentum) if nesterov else velocity
        return _descend(params, descent, learning_rate, step), opt_state

    def update_paper(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        zeros = {name: torch.zeros_like(p) for name, p in params.items()}
        kept = _each("mul", opt_state["velocity"], momentum) if momentum else zeros
        velocity = _descend(kept, decayed(grads, params), learning_rate, step)
        return _each("add", params, velocity), {"velocity": velocity} if momentum else {}

    return Optimizer(init, update_torch if form == "torch" else update_paper)


def adamw(
    learning_rate: float | Tensor | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay: Loshchilov and Hutter 2019, algorithm 2, as in `torch.optim.AdamW`.

    `p <- p - lr weight_decay p - lr m_hat / (sqrt(v_hat) + eps)` with bias-corrected moments m_hat and v_hat.

    Raises ValueError for a negative rate, eps or decay, or a b1 or b2 outside [0, 1).
    """
    _check_not_negative(learning_rate=learning_rate, eps=eps, weight_decay=weight_decay)
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise ValueError(f"b1 and b2 must lie in [0, 1), got {b1} and {b2}")

    def init(params: Params) -> OptState:
        return {moment: {name: torch.zeros_like(p) for name, p in params.items()} for moment in ("mu", "nu")}

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        first = {name: torch.lerp(m, grads[name], 1 - b1) for name, m in opt_state["mu"].items()}
        second = {name: v * b2 + (1 - b2) * grads[name] ** 2 for name, v in opt_state["nu"].items()}
        count = (step + 1).double()
        correction1, correction2 = 1 - b1**count, 1 - b2**count
        rate = _rate(learning_rate, step)

        def descended(name: str, p: Tensor) -> Tensor:
            scale = (second[name].sqrt() / correction2.sqrt().to(p.dtype)) + eps
            return p * (1 - rate * weight_decay).to(p.dtype) - (rate / correction1).to(p.dtype) * (first[name] / scale)

        return {name: descended(name, p) for name, p in params.items()}, {"mu": first, "nu": second}

    return Optimizer(init, update)


def muon(
    learning_rate: float | Tensor | Schedule,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Optimizer:
    """Nesterov momentum, orthogonalised: Jordan et al. 2024, "Muon", as in `torch.optim.Muon`. For hidden weights.

    `v <- momentum v + (1 - momentum) g; u = momentum v + (1 - momentum) g;
    p <- p - lr weight_decay p - lr sqrt(max(1, r / c)) orthogonalized(u)`, p an r x c matrix; the kernel of an output
    channel is a row. Every direction in which a layer's gradients lie then moves alike, however much larger some are,
    such as the mean that activations share after a ReLU. `dtype`, if given, is that of the products of
    `orthogonalized`, for which bfloat16 suffices. The first layer, the last and the biases want another optimiser: see
    `partition`.

    Raises ValueError for a negative rate or decay, a momentum outside [0, 1), and in `init` for a tensor of fewer than
    two axes.
    """
    _check_not_negative(learning_rate=learning_rate, weight_decay=weight_decay)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")

    def init(params: Params) -> OptState:
        if flat := [name for name, p in params.items() if p.dim() < 2]:
            raise ValueError(f"muon is for matrices and convolutions, not for {', '.join(flat)}: see optim.partition")
        return {"velocity": {name: torch.zeros_like(p) for name, p in params.items()}}

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        velocity = {name: torch.lerp(v, grads[name], 1 - momentum) for name, v in opt_state["velocity"].items()}
        rate = _rate(learning_rate, step)

        def descended(name: str, p: Tensor) -> Tensor:
            lookahead = torch.lerp(grads[name], velocity[name], momentum).flatten(1)
            direction = orthogonalized(lookahead.to(dtype or p.dtype)).to(p.dtype).view_as(p)
            scale = math.sqrt(max(1, p.shape[0] / p[0].numel()))
            return p * (1 - rate * weight_decay).to(p.dtype) - (rate * scale).to(p.dtype) * direction

        return {name: descended(name, p) for name, p in params.items()}, {"velocity": velocity}

    return Optimizer(init, update)


def orthogonalized(matrix: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """About U V^T of `matrix` = U S V^T, by five Newton-Schulz steps of Jordan et al. 2024; zero for a zero matrix.

    Each step takes every singular value s to `3.4445 s - 4.7750 s^3 + 2.0315 s^5`, after a division by the root of the
    sum of their squares. What then lies above 0.002 ends between 0.68 and 1.21; smaller ones grow about 480-fold.
    """
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return x.T if rows > columns else x


def partition(label: Callable[[str], str], optimizers: dict[str, Optimizer]) -> Optimizer:
    """Each parameter by `optimizers[label(name)]`, as one optimiser: what `optax.partition` is to optax.

    Raises ValueError for a label without an optimiser.
    """

    def part(tensors: Params, chosen: str) -> Params:
        return {name: t for name, t in tensors.items() if label(name) == chosen}

    def init(params: Params) -> OptState:
        _check_labels({label(name) for name in params}, optimizers)
        parts = {chosen: part(params, chosen) for chosen in optimizers}
        return _merged([optimizers[chosen].init(own) for chosen, own in parts.items() if own])

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        parts = []
        for chosen, optimizer in optimizers.items():
            if not part(params, chosen):
                continue
            own = {moment: part(tensors, chosen) for moment, tensors in opt_state.items()}
            parts.append(optimizer.update(part(grads, chosen), own, part(params, chosen), step))
        updated = {name: p for new, _ in parts for name, p in new.items()}
        return {name: updated[name] for name in params}, _merged([state for _, state in parts])

    return Optimizer(init, update)


def _check_labels(labels: set[str], optimizers: dict[str, Optimizer]) -> None:
    if unknown := labels - set(optimizers):
        raise ValueError(f"no optimizer for the labels {', '.join(sorted(unknown))}; there are {', '.join(optimizers)}")


def _merged(states: list[OptState]) -> OptState:
    """The moments of optimisers of disjoint parameters, by moment; those of one name lie side by side."""
    merged: OptState = {}
    for state in states:
        for moment, tensors in state.items():
            merged[moment] = merged.get(moment, {}) | tensors
    return merged


def constant(value: float) -> Schedule:
    """The same rate at every step."""
    _check_not_negative(value=value)
    return lambda step: torch.full_like(step, value, dtype=torch.float64)


def step_decay(value: float, boundaries: tuple[int, ...], factor: float = 0.1) -> Schedule:
    """`value * factor^n`, n the number of boundaries b with b <= step: the paper divides by ten, three times."""
    _check_not_negative(value=value, factor=factor)

    def schedule(step: Tensor) -> Tensor:
        rate = torch.full_like(step, value, dtype=torch.float64)
        for boundary in boundaries:
            rate = torch.where(step >= boundary, rate * factor, rate)
        return rate

    return schedule


def warmup_linear(peak: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Rises linearly to `peak` over `warmup_steps`, then falls linearly to 0 at `total_steps` and stays there.

    The rate of step s < warmup_steps is `peak (s + 1) / warmup_steps`, so that the first step already moves.
    """
    return _after_warmup(peak, warmup_steps, total_steps, lambda progress: 1 - progress)


def warmup_cosine(peak: float, warmup_steps: int, total_steps: int) -> Schedule:
    """As `warmup_linear`, but falls as half a cosine: Loshchilov and Hutter 2017, equation 5, without restarts."""
    return _after_warmup(peak, warmup_steps, total_steps, lambda progress: (1 + torch.cos(math.pi * progress)) / 2)


def _after_warmup(peak: float, warmup_steps: int, total_steps: int, fall: Callable[[Tensor], Tensor]) -> Schedule:
    _check_not_negative(peak=peak)
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps must lie in 0..total_steps-1, got {warmup_steps} of {total_steps}")

    def schedule(step: Tensor) -> Tensor:
        progress = ((step.double() - warmup_steps) / (total_steps - warmup_steps)).clamp(0, 1)
        rise = (step.double() + 1) / max(1, warmup_steps)
        return peak * torch.where(step < warmup_steps, rise, fall(progress))

    return schedule


def _rate(learning_rate: float | Tensor | Schedule, step: Tensor) -> Tensor:
    if isinstance(learning_rate, Tensor):
        return learning_rate
    return (learning_rate if callable(learning_rate) else constant(learning_rate))(step)


def _descend(params: Params, direction: Params, learning_rate: float | Tensor | Schedule, step: Tensor) -> Params:
    return _add_scaled(params, direction, -learning_rate(step) if callable(learning_rate) else -learning_rate)


def _add_scaled(a: Params, b: Params, scale: float | Tensor) -> Params:
    """`a + scale * b`, eagerly with one rounding as in torch.optim; the plain expression rounds twice."""
    if isinstance(scale, Tensor):
        return {name: _add_scaled_by_tensor(value, b[name], scale) for name, value in a.items()}
    if torch.compiler.is_compiling():
        # Inductor turns add(matmul, b, alpha=s) into addmm and loses s (seen in torch 2.11 to 2.14).
        return {name: value + scale * b[name] for name, value in a.items()}
    return _each("add", a, b, alpha=scale)


def _add_scaled_by_tensor(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)  # a rate rounded to bfloat16 would be off by 0.4 %
    return torch.addcmul(a.to(wide), b.to(wide), scale.to(wide)).to(a.dtype)


def _plus(a: Params, b: Params) -> Params:
    if torch.compiler.is_compiling():
        # Inductor turns a + matmul into addmm, which takes a buffer more; this has the same bits and fuses.
        return {name: value - -b[name] for name, value in a.items()}
    return _each("add", a, b)


def _each(operation: str, tensors: Params, other: Params | float, **options: float) -> Params:
    """`torch.<operation>(tensor, other, **options)` for every tensor and its namesake, or for all and one number.

    Where nothing traces or maps them this is one `torch._foreach_` call: on CUDA a launch or two for all.
    """
    others = [other[name] for name in tensors] if isinstance(other, dict) else [other] * len(tensors)
    values = list(tensors.values())
    if torch.compiler.is_compiling() or any(map(_is_wrapped, (*values, *others))):
        results = [getattr(torch, operation)(a, b, **options) for a, b in zip(values, others, strict=True)]
    else:
        results = getattr(torch, f"_foreach_{operation}")(values, others, **options)
    return dict(zip(tensors, results, strict=True))


def _is_wrapped(value: Tensor | float) -> bool:
    """By vmap or another transform: foreach has no rules for them."""
    return isinstance(value, Tensor) and torch.func.debug_unwrap(value) is not value


def _check_not_negative(**values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
