"""How much memory a call takes at its peak, measured in a process of its own."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def peak(prepare: Callable[..., Callable[[], object]], name: str, case: Any) -> tuple[float, float]:
    """MiB at the peak of a third call of `prepare(name, case)()`, in all and above an idle process.

    On a CPU what is resident, on CUDA what torch's allocator holds, the private pools of CUDA graphs among it.
    `prepare` must be a function of a module, since the process imports it. What it makes (parameters, inputs) counts;
    torch and the code do not in the second number.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, prepare, name, case).result()


def above(call: Callable[[], object]) -> float:
    """MiB at the peak of one call in this process, above what is resident before it. On a CPU."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark
    call()
    return _status("VmHWM") - before


def _measure(prepare: Callable[..., Callable[[], object]], name: str, case: Any) -> tuple[float, float]:
    import torch

    torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # the libraries' own buffers
    idle = 0.0 if case.device == "cuda" else _status("VmRSS")
    call = prepare(name, case)
    for _ in range(2):  # the first may compile
        call()
    if case.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        call()
        high = torch.cuda.max_memory_reserved() / 2**20
        return high, high
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark
    call()
    high = _status("VmHWM")
    return high, high - idle


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
