"""Rivals timed in one process: interleaved, warmed up, with their median, best and spread."""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from alexnet_func import _onednn
from parity.report import processor

_REST = 0.05  # seconds


class Timing(NamedTuple):
    """Seconds a call over the repeats: median, best, worst."""

    median: float
    best: float
    worst: float


class Row(NamedTuple):
    """A line of a table: a rival's time, that of what it is compared with, and its memory, where they were measured.

    `ceiling` is the least time in seconds that the machine's measured rates allow for the work.
    """

    title: str
    name: str
    seconds: Timing | None
    base: Timing | None
    mebibytes: float | None = None
    ceiling: float | None = None


def interleaved(
    rivals: Mapping[str, Callable[[], object]], *, repeats: int = 9, warmups: int = 2, device: str = "cpu"
) -> dict[str, Timing]:
    """Calls all rivals in turn, `repeats` times after `warmups`, so that a drift of the machine meets them all.

    Every turn has an order of its own, the same in every run, and every call a short rest before it: what a rival
    leaves behind (JAX's threads go on spinning for a while) must not meet the next one.

    On CUDA the clock starts and stops with the device idle: events of torch's streams would not see JAX's.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(warmups):
        for call in rivals.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    turns = random.Random(0)
    for _ in range(repeats):
        for name, call in turns.sample(list(rivals.items()), len(rivals)):
            wait()
            time.sleep(_REST)
            started = time.perf_counter()
            call()
            wait()
            seconds[name].append(time.perf_counter() - started)
    return {name: of(taken) for name, taken in seconds.items()}


def of(seconds: Sequence[float]) -> Timing:
    """What those repeats amount to."""
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def header(device: str = "cpu") -> str:
    """What a figure depends on: versions, device, threads, and the variables that change allocation or kernels."""
    variables = ("THP_MEM_ALLOC_ENABLE", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = ", ".join(f"{name}={os.environ[name]}" for name in variables if name in os.environ) or "default"
    on_cpu = f"{processor()} with {torch.backends.cpu.get_cpu_capability()}"
    chip = torch.cuda.get_device_name() if device == "cuda" else on_cpu
    products = "oneDNN" if device == "cpu" and _onednn.pays() else "torch's own route"
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {chip}, "
        f"{torch.get_num_threads()} threads, environment {environment}; our compiled matrix products by {products}"
    )
