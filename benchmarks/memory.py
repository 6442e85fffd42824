"""How much memory does a training step take at its peak? Every rival in a process of its own."""

from collections.abc import Iterator

from benchmarks import peaks, train_step
from benchmarks.cases import Case
from benchmarks.timing import Row


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table for each batch size. Parameters, momentum and inputs count; torch itself does not."""
    for n in (1,) if quick else (32, 128):
        case = Case("alexnet", n, device, "bf16" if device == "cuda" else "float32")
        yield [
            Row(f"{case.title}: training step", name, None, None, peaks.peak(train_step.call, name, case)[1])
            for name in train_step.names(case)
        ]
