"""Samples for private training: everyone is in one by chance alone, and all have one size."""

import math

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from alexnet_func import random

_LAST = 2**32 - 1  # of the numbers that can be folded in: no sample has so many examples


def poisson_sample(
    key: random.Key, n: int, rate: float, size: int
) -> tuple[Int64[Tensor, "size"], Float32[Tensor, "size"]]:
    """Draws a sample of 0 .. n-1, each in it with probability `rate` independently, as `size` indices and weights.

    Sampled indices come first, in ascending order, with weight 1; then others, with weight 0, so that batches have one
    shape and a compiled step is compiled once. Where more than `size` are sampled a random subset of so many is kept,
    which `epsilon(..., examples=n, size=size)` accounts for.

    Raises ValueError unless 0 <= rate <= 1 and 1 <= size <= n.

    Examples:
        >>> index, weights = af.privacy.poisson_sample(key, 1000, 0.005, size=8)
        >>> index
        tensor([288, 428, 526, 561, 699, 954,   0,   1])
        >>> weights
        tensor([1., 1., 1., 1., 1., 1., 0., 0.])
    """
    if not 1 <= size <= n:
        raise ValueError(f"size must lie in 1..{n}, the number of examples, got {size}")
    sampled = random.bernoulli(key, rate, (n,))
    if size < n:
        # In an order of their own: were the last left out, to come early would be a privilege.
        ranks = torch.where(sampled, random.uniform(random.fold_in(key, _LAST), (n,)), 2.0)
        sampled &= torch.zeros_like(sampled).scatter(0, ranks.argsort()[:size], True)
    index = torch.sort(sampled, descending=True, stable=True).indices[:size]
    return index, sampled[index].float()


def padded_size(n: int, rate: float, overflow: float = 1e-9) -> int:
    """Returns a size that a Poisson sample of `n` at `rate` exceeds with at most the probability `overflow`.

    It is the smallest k for which Chernoff's bound says so: `P(K >= k + 1) <= exp(-n KL((k + 1) / n || rate))`.
    Raises ValueError unless 0 < rate <= 1 and 0 < overflow < 1.

    Examples:
        >>> af.privacy.padded_size(50_000, 0.01)  # 500 are expected
        649
    """
    if not (0 < rate <= 1 and 0 < overflow < 1):
        raise ValueError(f"rate must lie in (0, 1] and overflow in (0, 1), got {rate} and {overflow}")

    def exceeded(k: int) -> float:
        p = (k + 1) / n
        if p <= rate:
            return 1.0
        return math.exp(-n * (p * math.log(p / rate) + (1 - p) * (math.log((1 - p) / (1 - rate)) if p < 1 else 0.0)))

    return next((k for k in range(max(1, int(n * rate)), n) if exceeded(k) <= overflow), n)
