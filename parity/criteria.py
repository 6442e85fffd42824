"""When two sets of named tensors count as equal: three criteria, and none has a tolerance tuned by hand."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class Verdict(NamedTuple):
    """Whether a comparison passed, by which share of what is allowed, in which tensor it was worst, and a line on it.

    `share` is 0 for equal bits and above 1 for a failure. `ulp` is the largest difference in units in the last place
    of the worst tensor's largest value, `cosine` that of the angle between the two worst tensors. `curves` are what a
    plot shows: relative errors by tensor, or losses by step.
    """

    passed: bool
    share: float
    worst: str
    detail: str
    ulp: float = 0.0
    cosine: float = 1.0
    curves: Mapping[str, Sequence[float]] = MappingProxyType({})


def bitwise(ours: Tensors, reference: Tensors) -> Verdict:
    """Every value equal: the same operations on the same device in the same order leave no room for rounding.

    Names, shapes, dtypes and the signs of zeros must match too; NaN equals nothing.
    """
    mismatch = _mismatch(ours, reference, dtypes=True)
    if mismatch:
        return Verdict(False, math.inf, "", mismatch)
    differing = {}
    for name, expected in reference.items():
        given = ours[name]
        if not torch.equal(given, expected) or not torch.equal(given.signbit(), expected.signbit()):
            differing[name] = (given.double() - expected.double()).abs().max().item()
    if differing:
        worst = max(differing, key=lambda name: differing[name])
        detail = f"{len(differing)} of {len(ours)} differ, worst {worst} by {differing[worst]:.3g}"
        return Verdict(False, math.inf, worst, detail, *_distances(ours[worst], reference[worst].double()))
    count = sum(t.numel() for t in ours.values())
    return Verdict(True, 0.0, "", f"{count:,} values in {len(ours)} tensors equal")


def budget(ours: Tensors, reference: Tensors, exact: Tensors) -> Verdict:
    """Ours is as near to the float64 result as the reference itself, up to chance and one rounding.

    `rmse(ours, exact) <= k rmse(reference, exact) + u rms(exact)`, u the unit roundoff of the reference's dtype: two
    orders of summation give errors of one size but not the same errors. k is 2, and 3 for tensors under 1,000 elements
    and bfloat16, where one error may be small by luck.
    """
    mismatch = _mismatch(ours, exact) or _mismatch(reference, exact)
    if mismatch:
        return Verdict(False, math.inf, "", mismatch)
    shares = {}
    for name, truth in exact.items():
        dtype = reference[name].dtype
        unit = torch.finfo(dtype).eps / 2
        k = 3 if truth.numel() < 1000 or dtype == torch.bfloat16 else 2
        allowed = k * _rms(reference[name].double() - truth) + unit * _rms(truth)
        error = _rms(ours[name].double() - truth)
        shares[name] = _share(error, allowed)
    curves = {
        side: [_rms(found[name].double() - truth) / max(_rms(truth), 1e-300) for name, truth in exact.items()]
        for side, found in (("ours", ours), ("reference", reference))
    }
    return _worst(shares, "of the error budget", ours, exact)._replace(curves=curves)


def close(ours: Tensors, exact: Tensors, tolerance: float = 1e-12) -> Verdict:
    """The distance to an independent float64 result, relative to its 2-norm, tensor by tensor.

    1e-12 is 4,500 float64 units: the sums here have up to 10^4 terms, so that two orders of summation stay far below,
    and any mistake in a formula far above.
    """
    mismatch = _mismatch(ours, exact)
    if mismatch:
        return Verdict(False, math.inf, "", mismatch)
    shares = {n: _share(_rms(ours[n].double() - truth), tolerance * _rms(truth)) for n, truth in exact.items()}
    return _worst(shares, f"of {tolerance:g} relative", ours, exact)


def band(ours: Tensor, reference: Tensor, perturbed: Sequence[Tensor]) -> Verdict:
    """Two runs that are equal but for rounding part no faster than the reference from itself.

    At each step the loss of ours may lie as far from the reference's as the farthest of the runs of the reference
    whose initial parameters were moved by one unit in the last place, up to then, times 3 for so few of them.
    """
    spread = torch.stack([(run.double() - reference.double()).abs() for run in perturbed]).amax(0).cummax(0).values
    unit = torch.finfo(reference.dtype).eps
    allowed = 3 * spread + unit * reference.double().abs()
    shares = ((ours.double() - reference.double()).abs() / allowed).nan_to_num(nan=math.inf)
    step = int(shares.argmax())
    share = float(shares[step])
    lines = {"ours": ours, "reference": reference, "low": reference - allowed, "high": reference + allowed}
    curves = {name: line.tolist() for name, line in lines.items()}
    detail = f"{share:.2g} of the band at its worst, step {step}"
    return Verdict(share <= 1, share, f"step {step}", detail, curves=curves)


def _mismatch(ours: Tensors, reference: Tensors, dtypes: bool = False) -> str:
    if set(ours) != set(reference):
        return f"names differ: {sorted(set(ours) ^ set(reference))}"
    for name, expected in reference.items():
        given = ours[name]
        if given.shape != expected.shape or (dtypes and given.dtype != expected.dtype):
            return f"{name}: {given.dtype} {list(given.shape)}, expected {expected.dtype} {list(expected.shape)}"
    return ""


def _worst(shares: Mapping[str, float], of: str, ours: Tensors, exact: Tensors) -> Verdict:
    worst = max(shares, key=lambda name: shares[name])
    detail = f"{shares[worst]:.2g} {of} at worst, {worst}"
    return Verdict(shares[worst] <= 1, shares[worst], worst, detail, *_distances(ours[worst], exact[worst]))


def _distances(given: Tensor, exact: Tensor) -> tuple[float, float]:
    a, b = given.double().flatten(), exact.double().flatten()
    unit = torch.finfo(given.dtype).eps if given.is_floating_point() else 1.0
    ulp = (a - b).abs().max() / (unit * b.abs().max()).clamp(min=torch.finfo(torch.float64).tiny)
    cosine = (a @ b) / (a.norm() * b.norm()).clamp(min=torch.finfo(torch.float64).tiny)
    return ulp.item(), cosine.item()


def _share(error: float, allowed: float) -> float:
    if math.isnan(error):
        return math.inf
    return error / allowed if allowed else (0.0 if error == 0 else math.inf)


def _rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()
