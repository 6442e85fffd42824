"""What does it cost to draw from keys? Ten million eager uniforms against `torch.rand`."""

import torch

import alexnet_func as af
from benchmarks import timing

COUNT = 10_000_000


def run() -> str:
    """The table as text."""
    key = af.random.key(0)
    chunked = af.random.uniform(key, (COUNT,))
    assert torch.equal(chunked[: 1 << 12], af.random.uniform(key, (1 << 12,))), "chunks must not change the numbers"
    seconds = timing.interleaved(
        {"torch.rand": lambda: torch.rand(COUNT), "af.random.uniform, eager": lambda: af.random.uniform(key, (COUNT,))}
    )
    base = seconds["torch.rand"].median
    rows = [f"{COUNT:,} uniforms{'':<12} median ms   best  worst  ratio to torch.rand"]
    for name, (median, best, worst) in seconds.items():
        rows.append(f"  {name:<26} {median * 1e3:9.1f} {best * 1e3:6.1f} {worst * 1e3:6.1f}  {median / base:6.2f}")
    return "\n".join(rows)
