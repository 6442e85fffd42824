"""Which training examples pull a prediction, and how alike examples' gradients are: short formulas over `per_sample`.

    features = per_sample.project(params, batch, key, 4096, arch=arch)       # [N, 4096], once
    asked = per_sample.project(params, test, key, 4096, arch=arch)           # [M, 4096], with the same key
    scores = influence.influence(features, asked, damping=1e-3)              # [M, N]: how much n lowers m's loss

`keywords` are those of `per_sample`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alexnet_func import per_sample
from alexnet_func.examples import count
from alexnet_func.model import Params
from alexnet_func.ops import square_root

__all__ = [
    "coherence",
    "cosines",
    "gradient_diversity",
    "influence",
    "relative_influence",
    "tracin",
]


def cosines(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Computes the cosines of the angles between the vectors whose products are `gram`; 0 beside a zero vector.

    Examples:
        >>> af.influence.cosines(torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    norms = square_root(gram.diagonal().clamp(min=0))
    return _over(gram, norms.outer(norms))


def gradient_diversity(params: Params, batch: Any, **keywords: Any) -> Float[Tensor, ""]:
    """Computes `sum_n |g_n|^2 / |sum_n g_n|^2` of `batch`: 1 / N where all gradients are alike, 1 where orthogonal.

    N times it bounds the batch size up to which SGD speeds up (Yin et al. 2018, definition 1 and theorem 3).

    Examples:
        >>> alike = (batch[0][:1].expand(4, 3, 32, 32), batch[1][:1].expand(4))
        >>> round(float(af.influence.gradient_diversity(params, alike, arch=arch)), 3)
        0.25
    """
    total, norms = per_sample.clipped_sum(params, batch, torch.inf, **keywords)
    return norms.square().sum() / torch.stack([g.square().sum() for g in total.values()]).sum()


def coherence(params: Params, batch: Any, **keywords: Any) -> Float[Tensor, ""]:
    """Computes `|mean_n g_n|^2 / mean_n |g_n|^2`, the share of gradients that all of `batch` have in common, 0 to 1.

    Chatterjee and Zielinski 2020, "Making coherence out of nothing at all", equation 1 on a sample; 1 over N times
    `gradient_diversity`.

    Examples:
        >>> alike = (batch[0][:1].expand(4, 3, 32, 32), batch[1][:1].expand(4))
        >>> round(float(af.influence.coherence(params, alike, arch=arch)), 3)
        1.0
    """
    return 1 / (count(batch) * gradient_diversity(params, batch, **keywords))


def tracin(
    checkpoints: Iterable[tuple[Params, float]], batch: Any, other: Any, **keywords: Any
) -> Float[Tensor, "n m"]:
    """Computes `sum_t lr_t <g_n(params_t), g_m(params_t)>` over `checkpoints`, each with its learning rate, [N, M].

    How much training example n of `batch` has lowered the loss of example m of `other`, to first order: TracInCP of
    Pruthi et al. 2020. Raises ValueError without a checkpoint.

    Examples:
        >>> test = (batch[0][:2], batch[1][:2])
        >>> af.influence.tracin([(params, 0.1)], batch, test, arch=arch).shape
        torch.Size([4, 2])
    """
    products = [rate * per_sample.gram(params, batch, other, **keywords) for params, rate in checkpoints]
    if not products:
        raise ValueError("tracin needs at least one checkpoint")
    return torch.stack(products).sum(0)


def influence(train: Float[Tensor, "n d"], asked: Float[Tensor, "m d"], damping: float = 1e-3) -> Float[Tensor, "m n"]:
    """Computes `<h_m, (F + damping tr(F) / d I)^-1 g_n> / N`: by how much the loss of m would rise without example n.

    Koh and Liang 2017, equation 2, with the empirical Fisher matrix `F = sum_n g_n g_n^T / N` for the Hessian, of
    gradients that `per_sample.project` has made short by one key (Park et al. 2023, TRAK; Schioppa et al. 2022), or of
    whole ones: [N, P] of a small network. `damping` is relative to F's mean eigenvalue. Solved in float64 in the
    smaller of N and d dimensions. One vector that is not finite leaves no score finite.

    Raises ValueError unless both have one dimension d, N >= 1 and damping is positive.

    Examples:
        >>> train, asked = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> af.influence.influence(train, asked).round(decimals=2)
        tensor([[1., 0.]])
    """
    inverse = _by_fisher(train, asked, damping)
    return (inverse @ train.double().mT / len(train)).to(asked.dtype)


def relative_influence(
    train: Float[Tensor, "n d"], asked: Float[Tensor, "m d"], damping: float = 1e-3
) -> Float[Tensor, "m n"]:
    """Computes the cosine of h_m and g_n in the metric of `influence`'s inverse matrix, [M, N].

    It lies in -1 to 1, and is 0 beside a zero vector. For one m it ranks as `influence` over
    `sqrt(g_n^T (F + ...)^-1 g_n)` does: the l-relative influence of Barshan et al. 2020, RelatIF, which asks for
    examples that pull this prediction more than they pull others, where `influence` finds the same few outliers for
    all. A copy of m's own example comes first. Errors as `influence`.

    Examples:
        >>> train, asked = torch.tensor([[9.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> af.influence.influence(train, asked).argmax()  # the outlier
        tensor(0)
        >>> af.influence.relative_influence(train, asked).argmax()  # the copy
        tensor(1)
    """
    g, h = train.double(), asked.double()
    by_g, by_h = _by_fisher(train, train, damping), _by_fisher(train, asked, damping)
    of_h, of_g = (square_root((by * vectors).sum(1).clamp(min=0)) for by, vectors in ((by_h, h), (by_g, g)))
    return _over(by_h @ g.mT, of_h.outer(of_g)).to(asked.dtype)


def _over(products: Tensor, lengths: Tensor) -> Tensor:
    """Cosines, 0 beside a zero vector; there nothing is divided by, as the derivative of that counts too."""
    zero = lengths == 0
    return (products / lengths.masked_fill(zero, 1)).masked_fill(zero, 0).clamp(-1, 1)


def _by_fisher(train: Tensor, vectors: Tensor, damping: float) -> Tensor:
    """The vectors [M, d] times the damped inverse, in float64."""
    if train.dim() != 2 or vectors.dim() != 2 or train.shape[1] != vectors.shape[1] or not len(train):
        shapes = f"{list(train.shape)} and {list(vectors.shape)}"
        raise ValueError(f"train [N, d] and asked [M, d] must fit, N >= 1, got {shapes}")
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}")
    n, d = train.shape
    g, v = train.double(), vectors.double()
    trace = g.square().sum() / n
    ridge = damping * torch.where(trace > 0, trace / d, 1.0)
    if d <= n:
        return torch.linalg.solve(g.mT @ g / n + ridge * torch.eye(d, dtype=g.dtype, device=g.device), v.mT).mT
    # Woodbury: (G^T G / n + r I)^-1 = (I - G^T (G G^T + n r I)^-1 G) / r.
    kernel = g @ g.mT + n * ridge * torch.eye(n, dtype=g.dtype, device=g.device)
    return (v - torch.linalg.solve(kernel, g @ v.mT).mT @ g) / ridge
