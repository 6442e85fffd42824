"""Rivals timed in one process: interleaved, warmed up, with their median, best and spread."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds a call over the repeats: median, best, worst."""

    median: float
    best: float
    worst: float


class Row(NamedTuple):
    """A line of a table: a rival's time, that of what it is compared with, and its memory, where they were measured."""

    title: str
    name: str
    seconds: Timing | None
    base: Timing | None
    mebibytes: float | None


def table(rows: Sequence[Row]) -> str:
    """Markdown, a part for each title; ratios are of medians."""
    lines: list[str] = []
    for title in dict.fromkeys(row.title for row in rows):
        part = [row for row in rows if row.title == title]
        lines += [
            f"### {title}",
            "",
            "| | median ms | best | worst | ratio | peak MiB |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for row in part:
            times = ["", "", "", ""]
            if row.seconds is not None and row.base is not None:
                times = [f"{second * 1e3:,.1f}" for second in row.seconds]
                times.append(f"{row.seconds.median / row.base.median:.2f}")
            peak = "" if row.mebibytes is None else f"{row.mebibytes:,.0f}"
            lines.append(f"| {row.name} | {' | '.join(times)} | {peak} |")
        lines.append("")
    return "\n".join(lines)


def interleaved(rivals: Mapping[str, Callable[[], object]], *, repeats: int = 9, warmups: int = 2) -> dict[str, Timing]:
    """Calls all rivals in turn, `repeats` times after `warmups`, so that a drift of the machine meets them all."""
    for _ in range(warmups):
        for call in rivals.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, call in rivals.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}


def header() -> str:
    """What a figure depends on: versions, processor, threads, and the variables that change allocation or kernels."""
    variables = ("THP_MEM_ALLOC_ENABLE", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = ", ".join(f"{name}={os.environ[name]}" for name in variables if name in os.environ) or "default"
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {_processor()}, "
        f"{torch.get_num_threads()} threads, environment {environment}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            names = [line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
