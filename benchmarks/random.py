"""What does it cost to draw from keys? Ten million uniforms against `torch.rand`, and dropout against `F.dropout`."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import alexnet_func as af
from benchmarks import timing
from benchmarks.timing import Row

COUNT = 10_000_000


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table of uniforms and one of dropout on as many values."""
    key = af.random.key(0, device)
    repeats = 3 if quick else 9

    def uniform(key: Tensor) -> Tensor:
        return af.random.uniform(key, (COUNT,))

    def dropout(key: Tensor, x: Tensor) -> Tensor:
        return af.ops.dropout(x, uniform(key), 0.5)

    chunked = uniform(key)
    assert torch.equal(chunked[: 1 << 12], af.random.uniform(key, (1 << 12,))), "chunks must not change the numbers"
    compiled = _compiled(uniform)
    assert torch.equal(compiled(key), chunked), "nor must the compiler"
    uniforms: dict[str, Callable[[], Tensor]] = {
        "torch.rand": lambda: torch.rand(COUNT, device=device),
        "af.random.uniform, eager": lambda: uniform(key),
        "af.random.uniform, compiled": lambda: compiled(key),
    }
    yield _rows(f"{COUNT:,} uniforms", uniforms, repeats, device)

    x, fused = torch.ones(COUNT, device=device), _compiled(dropout)
    assert torch.equal(fused(key, x), dropout(key, x))
    dropouts = {"F.dropout": lambda: F.dropout(x), "af.ops.dropout from a key, compiled": lambda: fused(key, x)}
    yield _rows(f"dropout of {COUNT:,} values", dropouts, repeats, device)


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, dynamic=False, options=af.train.compile_options())


def _rows(title: str, rivals: dict[str, Callable[[], Tensor]], repeats: int, device: str) -> list[Row]:
    measured = timing.interleaved(rivals, repeats=repeats, device=device)
    base = next(iter(measured.values()))
    return [Row(title, name, timed, base) for name, timed in measured.items()]
