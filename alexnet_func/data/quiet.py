"""What decoders say of damaged files, as errors and as warnings, of which the latter are dropped: words are our own."""

import struct
import threading
import warnings
import zlib

from PIL import Image

# What decoders raise for damaged bytes; RuntimeError is torch's, which is also its word for want of memory.
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError),
)


class Muted:
    """A context in which nothing that Pillow warns of is heard; any number of threads may be inside at once.

    The filters of `warnings` belong to the process, not to a thread: they are changed by the first thread that enters
    and restored by the last that leaves, since threads that each did so would restore one another's changes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._outer = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._outer = warnings.catch_warnings()
                self._outer.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._outer.__exit__(None, None, None)
