"""How much memory a call takes at its peak, measured in a process of its own."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def peak(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> tuple[float, float]:
    """MiB resident at the peak of a second call of `prepare(*arguments)()`, in all and above an idle process.

    `prepare` must be a function of a module, since the process imports it. What it makes (parameters, inputs) counts;
    torch and the code do not in the second number.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, prepare, arguments).result()


def _measure(prepare: Callable[..., Callable[[], object]], arguments: tuple) -> tuple[float, float]:
    import torch

    torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # the libraries' own buffers
    idle = _status("VmRSS")
    call = prepare(*arguments)
    call()
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark
    call()
    high = _status("VmHWM")
    return high, high - idle


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
