"""What of the machine is this process's: memory and processors within the limits of containers and schedulers."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def memory(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process may use: the machine's, or the least that a control group above it allows.

    `root` is where cgroups (version 1 or 2) are mounted, and `own` lists those of this process.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder, file in ((root, "memory.max"), (root / "memory", "memory.limit_in_bytes")):
        for group in _groups(own, folder == root):
            limits += _number(folder / group / file)
    return min(limits)


def processors(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that this process may use: by its affinity, and by the quota of the control groups above it."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [float(count)]
    for group in _groups(own, True):
        limits += _share(_words(root / group / "cpu.max"))
    for group in _groups(own, False):
        folder = root / "cpu" / group
        limits += _share(_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"))
    return max(1, int(min(limits)))


def _groups(own: Path, unified: bool) -> list[str]:
    """Paths below the mount of the control group and of all above it; a container may see its own as "/"."""
    found = [""]
    for line in _lines(own):
        number, _, path = line.partition(":")
        controllers, _, path = path.partition(":")
        if (number == "0" and not controllers) if unified else controllers:
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
