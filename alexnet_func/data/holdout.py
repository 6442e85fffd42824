"""A part of each class kept for testing, the same on every machine."""

from fractions import Fraction

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from alexnet_func import random

_SEED = 1797  # no run's seed by default: the split shares no key with a run


def check(share: float) -> None:
    """Raises ValueError unless something is held out and something left."""
    if not 0 < share < 1:
        raise ValueError(f"holdout must lie between 0 and 1, as 0.1 does, got {share}")


def stratified(labels: Int64[Tensor, "n"], share: float) -> Bool[Tensor, "n"]:
    """A mask of that share of each class, rounded down, though at least one of a class that has two.

    Which those are depends on the labels and on `share` alone, by a fixed key.
    """
    exact = Fraction(share).limit_denominator(10**6)  # 0.29 of 100 are 29, not 28.999...
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        order = random.permutation(random.fold_in(random.key(_SEED), label), len(members))
        count = min(max(1, int(len(members) * exact)), len(members) - 1)
        chosen[members[order[:count]]] = True
    return chosen
