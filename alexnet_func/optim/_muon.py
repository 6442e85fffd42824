"""Orthogonalised momentum for hidden weights."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from alexnet_func.checks import check_fraction, check_number
from alexnet_func.model import Params
from alexnet_func.optim.base import (
    Number,
    Optimizer,
    OptState,
    Rate,
    Updated,
    check_rate,
    check_update,
    interpolated,
    rate_at,
    zeros_like,
)
from alexnet_func.precision import rounds_products


def muon(
    learning_rate: Rate, momentum: Number = 0.95, weight_decay: Number = 0.0, dtype: torch.dtype | None = None
) -> Optimizer:
    """Returns Nesterov momentum, orthogonalised, at `learning_rate`: for hidden weights.

    Jordan et al. 2024, "Muon", as in `torch.optim.Muon`:
    `v <- momentum v + (1 - momentum) g; u = momentum v + (1 - momentum) g;
    p <- p - lr weight_decay p - lr sqrt(max(1, r / c)) orthogonalized(u)`, p an r x c matrix; the kernel of an output
    channel is a row. Every direction in which a layer's gradients lie then moves alike, however much larger some are,
    such as the mean that activations share after a ReLU. `dtype`, if given, is that of the products of
    `orthogonalized`, for which bfloat16 suffices. The first layer, the last and the biases want another optimiser: see
    `partition`. Settings may be scalar tensors.

    Raises ValueError for a negative rate or decay, a momentum outside [0, 1), and in `init` for a tensor of fewer than
    two axes; TypeError for a setting that is no number. `update` raises ValueError for gradients or a state that do
    not fit.

    Examples:
        >>> w, optimizer = {"w": torch.zeros(2, 2)}, af.optim.muon(0.1)
        >>> grads = {"w": torch.diag(torch.tensor([100.0, 1.0]))}
        >>> new, opt_state = optimizer.update(grads, optimizer.init(w), w, torch.tensor(0))
        >>> new["w"].diagonal().round(decimals=2)  # as far in both directions
        tensor([-0.0700, -0.0700])
    """
    check_rate(learning_rate)
    check_fraction("momentum", momentum)
    check_number("weight_decay", weight_decay)

    def init(params: Params) -> OptState:
        zeros = zeros_like(params)
        if flat := [name for name, p in params.items() if p.dim() < 2]:
            raise ValueError(f"muon is for matrices and convolutions, not for {', '.join(flat)}: see optim.partition")
        return {"velocity": zeros}

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        check_update(grads, opt_state, params, "velocity")
        velocity = interpolated(opt_state["velocity"], grads, 1 - momentum)
        ahead = interpolated(grads, velocity, momentum)
        rate = rate_at(learning_rate, step)

        def descended(name: str, p: Tensor) -> Tensor:
            lookahead = ahead[name].flatten(1)
            direction = orthogonalized(lookahead.to(dtype or p.dtype)).to(p.dtype).view_as(p)
            scale = math.sqrt(max(1, p.shape[0] / p[0].numel()))
            return p * (1 - rate * weight_decay).to(p.dtype) - (rate * scale).to(p.dtype) * direction

        return {name: descended(name, p) for name, p in params.items()}, {"velocity": velocity}

    return Optimizer(init, update)


def orthogonalized(matrix: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """Computes about U V^T of `matrix` = U S V^T, by five Newton-Schulz steps of Jordan et al. 2024.

    Of a zero matrix it is zero. Each step takes every singular value s to `3.4445 s - 4.7750 s^3 + 2.0315 s^5`, after a
    division by the root of the sum of their squares. What then lies above 0.002 ends between 0.68 and 1.21; smaller
    ones grow about 480-fold. A matrix twice as wide as high, or more, is multiplied twice, and all else is done with
    its Gram matrix: in float32 to 1e-3 of what direct steps give where singular values span five orders of magnitude.
    Half precision and TF32, where the Gram matrix's rounding would grow, take direct steps.

    Examples:
        >>> af.optim.orthogonalized(torch.diag(torch.tensor([100.0, 1.0]))).diagonal().round(decimals=1)
        tensor([0.7000, 0.7000])
    """
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    zero = (x == 0).all()  # where a norm has no second derivative
    x = x / x.masked_fill(zero, 1).norm().masked_fill(zero, 0).clamp(min=1e-7)
    wide = 2 * x.shape[0] <= x.shape[1]
    rounded = x.dtype.itemsize < 4 or (x.dtype == torch.float32 and rounds_products(x.device))
    x = _newton_schulz_of_gram(x) if wide and not rounded else _newton_schulz(x)
    return x.T if rows > columns else x


_A, _B, _C = 3.4445, -4.7750, 2.0315


def _newton_schulz(x: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    for _ in range(5):
        gram = x @ x.T
        # A product and a sum in one, rounded once: in bfloat16 half the error of two operations.
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x


def _newton_schulz_of_gram(x: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
    """The same steps as factors P = A I + B G + C G^2, which commute with G = x x^T: then x <- P x and G <- P G P."""
    gram = x @ x.T
    step = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)  # P less A I
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    product = torch.add(step, identity, alpha=_A)
    for _ in range(4):
        gram = torch.addmm(gram, step, gram, beta=_A)
        gram = torch.addmm(gram, gram, step, beta=_A)
        step = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
        product = torch.addmm(product, step, product, beta=_A)
    return product @ x
