"""The table of compositions: one cell a function and a transform, with its outcome."""

import fnmatch
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import alexnet_func as af
from parity.compositions.setting import SIZE, Subject
from parity.compositions.subjects import subjects
from parity.compositions.transforms import OUTPUTS, TRANSFORMS, Given, given

# Of the largest number of either side: where differences of first and second order lie from the slope.
TOLERANCE = {0: 1e-12, 1: 1e-7, 2: 1e-4}


MARKS = {"right": ".", "refused": "R", "left out": "-", "WRONG": "W"}


class Cell(NamedTuple):
    """What came of a function under a transform: "right", "refused", "left out" or "WRONG", and a line on it."""

    subject: str
    transform: str
    outcome: str
    detail: str
    seconds: float


def chosen(pattern: str = "*", quick: bool = False) -> Iterator[tuple[Subject, list[str]]]:
    """The functions with the transforms under which `name` matches; quickly some of them, and none compiled."""
    for subject in subjects():
        if subject.quick or not quick:
            slow = {"compile(grad)"} if quick else set()
            found = [t for t in TRANSFORMS if t not in slow and fnmatch.fnmatchcase(name(subject, t), pattern)]
            if found:
                yield subject, found


def name(subject: Subject, transform: str) -> str:
    """One line, unique."""
    return f"{subject.name} under {transform}"


def row(subject: Subject, transforms: Sequence[str]) -> list[Cell]:
    """The cells of one function."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so little is computed that a second one makes the first wait
    try:
        made = given(subject.function, SIZE, OUTPUTS)
        return [cell(subject, transform, made) for transform in transforms]
    finally:
        torch.set_num_threads(threads)


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
    right = error <= max(TOLERANCE[TRANSFORMS[transform].order], subject.rounding)
    return "right" if right else "WRONG", f"{error:.1e} of {size.item():.3g}"


def summary(found: Sequence[Cell]) -> str:
    """How many cells ended how."""
    return ", ".join(f"{sum(c.outcome == outcome for c in found)} {outcome}" for outcome in MARKS)


def markdown(found: Sequence[Cell]) -> list[str]:
    """The table, a line a function, and below it every error and every reason, once each."""
    by_function: dict[str, dict[str, Cell]] = {}
    for c in found:
        by_function.setdefault(c.subject, {})[c.transform] = c
    lines = [
        *(f"## Compositions: {summary(found)}", ""),
        "A public function under a transform: `.` its value is right, R it raises the documented error, - it is left",
        "out. Derivatives against central differences in float64, maps against a loop, traces against plain calls.",
        "What compile(grad) traces runs as it is, in seconds; rows above hold what inductor makes of such graphs.",
        *("", "| | " + " | ".join(TRANSFORMS) + " |", "|---" * (len(TRANSFORMS) + 1) + "|"),
    ]
    for function, cells in by_function.items():
        marks = (MARKS[cells[t].outcome] if t in cells else "" for t in TRANSFORMS)
        lines.append(f"| {function} | " + " | ".join(marks) + " |")
    for outcome, heading in (("refused", "Errors"), ("left out", "Left out"), ("WRONG", "Wrong")):
        notes: dict[tuple[str, str], list[str]] = {}
        for c in found:
            if c.outcome == outcome:
                notes.setdefault((c.subject, c.detail), []).append(c.transform)
        if notes:
            lines += ["", f"{heading}:", ""]
            lines += [f"- {function} under {', '.join(ts)}: {detail}" for (function, detail), ts in notes.items()]
    return lines
