"""What does it cost to draw from keys? Ten million eager uniforms against `torch.rand`."""

from collections.abc import Iterator

import torch

import alexnet_func as af
from benchmarks import timing
from benchmarks.timing import Row

COUNT = 10_000_000


def run(quick: bool) -> Iterator[list[Row]]:
    """One table."""
    key = af.random.key(0)
    chunked = af.random.uniform(key, (COUNT,))
    assert torch.equal(chunked[: 1 << 12], af.random.uniform(key, (1 << 12,))), "chunks must not change the numbers"
    seconds = timing.interleaved(
        {"torch.rand": lambda: torch.rand(COUNT), "af.random.uniform, eager": lambda: af.random.uniform(key, (COUNT,))},
        repeats=3 if quick else 9,
    )
    yield [Row(f"{COUNT:,} uniforms", name, timed, seconds["torch.rand"], None) for name, timed in seconds.items()]
