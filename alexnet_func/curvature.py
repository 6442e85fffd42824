"""Second-order quantities and statistics of gradients: Hessian, Gauss-Newton, Fisher, tangent kernel, noise scale."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vjp
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from alexnet_func import per_sample, random, tape
from alexnet_func._ntk import empirical_ntk
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.checks import check_named_tensors, check_tensors, shapes_of
from alexnet_func.examples import count, examples
from alexnet_func.model import Params

__all__ = [
    "NoiseScale",
    "empirical_ntk",
    "fisher_diagonal",
    "ggn_vp",
    "gradient_noise_scale",
    "hvp",
    "top_eigenvalues",
]

Scalar = Callable[[Params], Tensor]


class NoiseScale(NamedTuple):
    """Holds `scale = trace / square`: the batch size, in examples, at which a mean gradient is as much noise as signal.

    `standard_error` is that of `scale`. `trace` estimates the trace of the covariance of the examples' gradients,
    `square` the squared norm of their mean over the distribution; both without bias, so that `square`, and with it
    `scale`, may come out negative where the batch is too small to tell.
    """

    scale: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    trace: Float[Tensor, ""]
    square: Float[Tensor, ""]


def hvp(loss: Scalar, params: Params, v: Params) -> Params:
    """Multiplies the Hessian of `loss(params) -> scalar` by `v`.

    It is the gradient of the loss's gradient times `v` (Pearlmutter 1994), for about four evaluations of the loss. It
    goes reverse over reverse, as forward over reverse fails in torch for losses such as `F.mse_loss` (pytorch#123996).
    Raises ValueError that lists every missing, unknown or misshapen tensor of `v`.

    Examples:
        >>> w, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.ones(2)}
        >>> af.curvature.hvp(lambda p: (p["w"] ** 4).sum(), w, v)  # 12 w^2
        {'w': tensor([12., 48.])}
    """
    _check_like(params, v)
    return grad(lambda p: _inner(grad(loss)(p), v))(params)


def ggn_vp(forward: Callable[[Params], Tensor], loss: Callable[[Tensor], Tensor], params: Params, v: Params) -> Params:
    """Multiplies the generalised Gauss-Newton matrix of `loss(forward(params))` by `v`: `J^T H J v` (Schraudolph 2002).

    `J` is the Jacobian of `forward(params) -> outputs` and `H` the Hessian of `loss(outputs) -> scalar`. For
    cross-entropy this is the Fisher matrix. Errors as `hvp`.

    Examples:
        >>> w, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.ones(2)}
        >>> af.curvature.ggn_vp(lambda p: p["w"] ** 2, lambda outputs: (outputs**2).sum(), w, v)  # 8 w^2
        {'w': tensor([ 8., 32.])}
    """
    _check_like(params, v)
    outputs, moved = jvp(forward, (params,), (v,))[:2]
    curved = grad(lambda o: (grad(loss)(o) * moved).sum())(outputs)
    return vjp(forward, params)[1](curved)[0]


def fisher_diagonal(
    params: Params,
    batch: Any,
    *,
    arch: Arch = ALEXNET,
    loss_fn: per_sample.Loss | None = None,
    key: per_sample.Keys | None = None,
    method: per_sample.Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> Params:
    """Computes the diagonal of the empirical Fisher matrix, `mean_n g_n^2`, by parameter name.

    Arguments are those of `per_sample`. Empirical: of the given labels, not of labels drawn from the model (Kunstner et
    al. 2019 on the difference). Raises ValueError for an empty batch, and what `per_sample` raises.

    Examples:
        >>> fisher = af.curvature.fisher_diagonal(params, batch, arch=arch)
        >>> norms = af.per_sample.norms(params, batch, arch=arch)
        >>> torch.allclose(sum(f.sum() for f in fisher.values()), norms.square().mean(), rtol=1e-3)
        True
    """
    n = count(batch)
    if n == 0:
        raise ValueError("fisher_diagonal needs at least one example")
    options: dict[str, Any] = {
        "arch": arch,
        "loss_fn": loss_fn,
        "key": key,
        "method": method,
        "views": views,
        "frozen": frozen,
    }
    parts = examples(params, batch, chunk_size=chunk_size, **options)
    sums = [part.sum_of_squares() for part in parts]
    return {name: torch.stack([part[name] for part in sums]).sum(0) / n for name in params}


def gradient_noise_scale(
    params: Params,
    batch: Any,
    *,
    arch: Arch = ALEXNET,
    loss_fn: per_sample.Loss | None = None,
    key: per_sample.Keys | None = None,
    method: per_sample.Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> NoiseScale:
    """Estimates the simple noise scale tr(Sigma) / |G|^2 of McCandlish et al. 2018, equation 2.9.

    Arguments are those of `per_sample`. With N gradients of mean G_N: `trace = N / (N - 1) (mean |g_n|^2 - |G_N|^2)`
    and `square = (N |G_N|^2 - mean |g_n|^2) / (N - 1)`, their appendix A.1 for batches of 1 and N. The standard error
    is the jackknife's: exact leave-one-out values follow from the norms and from `<g_n, G_N>`.

    Raises ValueError for fewer than three examples.

    Examples:
        >>> w, data = {"w": torch.tensor(0.0)}, (torch.tensor([1.0, 2.0, 3.0]), torch.arange(3))
        >>> found = af.curvature.gradient_noise_scale(w, data, loss_fn=lambda p, b, key=None: (p["w"] - b[0]) ** 2 / 2)
        >>> [round(float(part), 2) for part in (found.trace, found.square, found.scale)]  # of the gradients -1, -2, -3
        [1.0, 3.67, 0.27]
    """
    n = count(batch)
    if n < 3:
        raise ValueError(f"gradient_noise_scale needs at least three examples, got {n}")
    options: dict[str, Any] = {
        "arch": arch,
        "loss_fn": loss_fn,
        "key": key,
        "method": method,
        "views": views,
        "frozen": frozen,
    }
    options["chunk_size"] = chunk_size
    total, norms = per_sample.clipped_sum(params, batch, torch.inf, **options)
    mean = {name: g / n for name, g in total.items()}
    along = per_sample.dots(params, batch, mean, **options).double()
    squares = norms.double().square()
    mean_square = torch.stack([g.double().square().sum() for g in mean.values()]).sum()

    scale, trace, square = _noise_scale(n, squares.mean(), mean_square)
    others = (squares.sum() - squares) / (n - 1)
    others_mean_square = (n**2 * mean_square - 2 * n * along + squares) / (n - 1) ** 2
    without = _noise_scale(n - 1, others, others_mean_square)[0]
    error = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return NoiseScale(scale, error, trace, square)


def _noise_scale(n: int, square_mean: Tensor, mean_square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    trace = n / (n - 1) * (square_mean - mean_square)
    square = (n * mean_square - square_mean) / (n - 1)
    return trace / square, trace, square


def top_eigenvalues(
    loss: Scalar, params: Params, k: int, *, key: random.Key, iterations: int = 32
) -> Float[Tensor, "k"]:
    """Computes the `k` algebraically largest eigenvalues of the Hessian of `loss(params)`, descending.

    Lanczos' method from a random vector with full reorthogonalisation: `iterations` products with the Hessian, and as
    many vectors of the size of the parameters in memory. Values are Ritz values: never above the true ones but by
    rounding, the outermost the nearest. Exact once `iterations` reaches the number of parameters.

    Branches on values, so that it can be neither mapped nor compiled. Raises ValueError there, and unless
    1 <= k <= iterations.

    Examples:
        >>> loss = lambda p: (torch.tensor([1.0, 2.0, 3.0]) * p["w"] ** 2).sum() / 2
        >>> af.curvature.top_eigenvalues(loss, {"w": torch.ones(3)}, 2, key=key).round(decimals=3)
        tensor([3., 2.])
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or tape.mapped():
        raise ValueError("top_eigenvalues branches on values: call it in a loop, not under vmap, compile or a tracer")
    check_tensors(params, "params")
    size = sum(p.numel() for p in params.values())
    iterations = min(iterations, size)
    if not 1 <= k <= iterations:
        raise ValueError(f"k must lie in 1..{iterations}, the number of iterations or of parameters, got {k}")

    def product(vector: Tensor) -> Tensor:
        pieces = vector.split([p.numel() for p in params.values()])
        v = {name: piece.view_as(p) for piece, (name, p) in zip(pieces, params.items(), strict=True)}
        return torch.cat([h.flatten() for h in hvp(loss, params, v).values()])

    def orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
        for _ in range(2):  # once leaves what rounding left
            for b in basis:
                vector = vector - (vector @ b) * b
        return vector

    dtype = next(iter(params.values())).dtype
    basis: list[Tensor] = []
    diagonal, beside = [], []
    vector = random.normal(random.fold_in(key, 0), (size,)).to(dtype)
    vector = vector / vector.norm()
    for i in range(iterations):
        basis.append(vector)
        image = product(vector)
        diagonal.append(image @ vector)
        vector = orthogonal(image, basis)
        beside.append(vector.norm())
        if beside[-1] <= 100 * torch.finfo(dtype).eps * image.norm():
            # The basis spans an invariant subspace and the rest is rounding: go on from another random vector.
            beside[-1] = torch.zeros_like(beside[-1])
            vector = orthogonal(random.normal(random.fold_in(key, i + 1), (size,)).to(dtype), basis)
        vector = vector / vector.norm()
    off = torch.stack(beside[:-1]) if iterations > 1 else diagonal[0].new_zeros(0)
    tridiagonal = torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1)
    return torch.linalg.eigvalsh(tridiagonal.double()).flip(-1)[:k].to(dtype)


def _inner(a: Params, b: Params) -> Tensor:
    return torch.stack([(t * b[name]).sum() for name, t in a.items()]).sum()


def _check_like(params: Params, v: Params) -> None:
    check_tensors(params, "params")
    check_named_tensors(shapes_of(params), v, "v")
