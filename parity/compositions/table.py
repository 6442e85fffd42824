"""The table of compositions: one cell a function and a transform, with its outcome."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import alexnet_func as af
from parity.compositions.subjects import SIZE, Subject, subjects
from parity.compositions.transforms import OUTPUTS, TRANSFORMS, Given, given

# Of the largest number of either side: where differences of first and second order lie from the slope.
TOLERANCE = {0: 1e-12, 1: 1e-7, 2: 1e-4}


class Cell(NamedTuple):
    """What came of a function under a transform: "right", "refused", "left out" or "WRONG", and a line on it."""

    subject: str
    transform: str
    outcome: str
    detail: str
    seconds: float


def cells(quick: bool = False) -> Iterator[Cell]:
    """Every function under every transform; quickly the chosen functions, and none of them compiled."""
    for subject in subjects():
        if quick and not subject.quick:
            continue
        made = given(subject.function, SIZE, OUTPUTS)
        for transform in TRANSFORMS:
            if not (quick and transform == "compile(grad)"):
                yield cell(subject, transform, made)


def cell(subject: Subject, transform: str, made: Given) -> Cell:
    """One cell."""
    started = time.perf_counter()
    if transform in subject.left_out:
        return Cell(subject.name, transform, "left out", subject.left_out[transform], 0.0)
    try:
        found = TRANSFORMS[transform].route(made).detach()
    except Exception as error:
        if af.tape.transformed():
            raise RuntimeError(f"{transform} of {subject.name} left torch under a transform") from error
        outcome, detail = _refusal(subject.refused.get(transform), error)
    else:
        outcome, detail = _verdict(subject, transform, found, made)
    return Cell(subject.name, transform, outcome, detail, time.perf_counter() - started)


def _refusal(words: str | None, error: Exception) -> tuple[str, str]:
    message = str(error)
    if words is not None and words in message:
        return "refused", message.split("\n")[0]
    return "WRONG", f"{type(error).__name__}: {message}"


def _verdict(subject: Subject, transform: str, found: Tensor, made: Given) -> tuple[str, str]:
    if transform in subject.refused:
        return "WRONG", f"was to raise {subject.refused[transform]!r}"
    expected = TRANSFORMS[transform].value(made)
    if found.shape != expected.shape:
        return "WRONG", f"shape {list(found.shape)}, expected {list(expected.shape)}"
    # Differences of large values cannot tell a slope that is small beside them.
    size = torch.stack([found.abs().max(), expected.abs().max(), 1e-2 * made.values().abs().max()]).max()
    error = ((found - expected).abs().max() / size).item()
    right = error <= TOLERANCE[TRANSFORMS[transform].order]
    return "right" if right else "WRONG", f"{error:.1e} of {size.item():.3g}"


def counts(found: Sequence[Cell]) -> dict[str, int]:
    """How many cells ended how."""
    return {o: sum(c.outcome == o for c in found) for o in ("right", "refused", "left out", "WRONG")}
