"""How a CPU's tensors get their memory, and the two settings of it that pay.

`alexnet` makes both, `train.make_step` and `train.compile_step` the one that keeps freed memory.
"""

import ctypes
import os

__all__ = [
    "keep_freed_memory",
    "use_huge_pages",
]

# mallopt's parameters, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def use_huge_pages() -> None:
    """Makes torch ask for transparent huge pages: fresh large tensors are then filled several times faster.

    Must come before the process's first tensor; torch's own variable, THP_MEM_ALLOC_ENABLE, stays where the user set
    it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> bool:
    """Makes glibc keep the memory of freed tensors for the next ones, from now on and for the whole process.

    Without it every tensor above 32 MiB at the latest is mapped when it is made and unmapped when it is freed, and the
    kernel clears its pages anew each time. Pure functions, which return new tensors instead of writing into old ones,
    pay most. The process then holds on to its peak memory until it ends, and to a few times a large tensor's size more:
    an aligned allocation leaves fragments in the library's caches, at most ten or so for a size, behind which the heap
    grows before a freed tensor's place serves the next one.

    Returns whether it took effect: not without glibc, nor where the user's environment has a MALLOC_ variable or
    GLIBC_TUNABLES, which stay as they are.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # other C libraries have a mallopt that does something else
    except (OSError, AttributeError):
        return False
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1))
