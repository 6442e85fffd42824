"""What of the machine is this process's: memory and processors within the limits of containers and schedulers."""

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def memory(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process may use: the machine's, or the least that a control group above it allows.

    `root` is where cgroups (version 1 or 2) are mounted, and `own` lists those of this process.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for group in _groups(own, ""):
        limits += _number(root / group / "memory.max")
    for group in _groups(own, "memory"):
        limits += _number(root / "memory" / group / "memory.limit_in_bytes")
    return min(limits)


def processors(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that this process may use: by its affinity, and by the quota of the control groups above it."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [float(count)]
    for group in _groups(own, ""):
        limits += _share(_words(root / group / "cpu.max"))
    for group in _groups(own, "cpu"):
        folder = root / "cpu" / group
        limits += _share(_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"))
    return max(1, int(min(limits)))


def is_want_of_memory(error: Exception) -> bool:
    """Whether it says that memory is lacking, for which torch on a CPU has no class of errors of its own."""
    words = ("allocate memory", "Storage size calculation overflowed")
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _groups(own: Path, controller: str) -> list[str]:
    """Paths below the mount of the group with that controller and of all above it; "" is that of version 2.

    A container may see its own group as "/".
    """
    found = [""]
    for line in _lines(own):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            parts = [part for part in path.split("/") if part]
            found += ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return found


def _share(words: list[str]) -> list[float]:
    """The quotient of a quota and a period, if both are positive numbers."""
    numbers = [int(word) for word in words if word.isdecimal()]
    return [numbers[0] / numbers[1]] if len(numbers) == 2 and min(numbers) > 0 else []


def _number(path: Path) -> list[int]:
    return [int(word) for word in _words(path) if word.isdecimal()]


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # no such limit, or not ours to see
        return []
