"""When two sets of tensors count as equal."""

from typing import NamedTuple

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """Whether a comparison passed, and one line that says what was compared or what was worst."""

    passed: bool
    detail: str


def bitwise(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> Verdict:
    """Every value equal: the same operations on the same device in the same order leave no room for rounding.

    Names, shapes, dtypes and the signs of zeros must match too; NaN equals nothing.
    """
    if list(ours) != list(reference):
        return Verdict(False, f"names differ: {list(ours)} and {list(reference)}")
    differing = {}
    for name, expected in reference.items():
        given = ours[name]
        if given.shape != expected.shape or given.dtype != expected.dtype:
            return Verdict(
                False, f"{name}: {given.dtype} {list(given.shape)}, expected {expected.dtype} {list(expected.shape)}"
            )
        if not torch.equal(given, expected) or not torch.equal(given.signbit(), expected.signbit()):
            differing[name] = (given.double() - expected.double()).abs().max().item()
    if differing:
        worst = max(differing, key=lambda name: differing[name])
        return Verdict(False, f"{len(differing)} of {len(ours)} differ, worst {worst} by {differing[worst]:.3g}")
    count = sum(t.numel() for t in ours.values())
    return Verdict(True, f"{count:,} values in {len(ours)} tensors equal")
