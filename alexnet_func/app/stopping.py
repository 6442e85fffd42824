"""Ctrl-C and what schedulers send: SIGINT, SIGTERM and SIGHUP stop a command in the same way.

    with at_once():                       # a signal raises StoppedError, wherever the program is
        ...
        with after_a_step() as asked:     # the first one is only noted, a second one raises
            while not asked(): ...

A signal that was ignored when the program started, as SIGHUP is under nohup, stays ignored. Only the main thread hears
signals; in another one both blocks change nothing.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from alexnet_func import parallel

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StoppedError(KeyboardInterrupt):
    """A signal has stopped the program. `exit_code` is what shells expect of it: 128 and the signal's number."""

    def __init__(self, number: int, how_to_go_on: str = "") -> None:
        self.exit_code = 128 + number
        what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        super().__init__(what + (how_to_go_on and f"; {how_to_go_on}"))


@contextmanager
def at_once() -> Iterator[None]:
    """Within the block a signal raises StoppedError.

    But for the SIGTERM by which torchrun ends its ranks when one has died: it ends the process, which may be waiting
    for that rank where Python sees no signal.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise StoppedError(number)

    with _handled(stop, SIGNALS if not _under_torchrun() else tuple(n for n in SIGNALS if n != signal.SIGTERM)):
        yield


@contextmanager
def after_a_step(parent: int) -> Iterator[Callable[[], int | None]]:
    """Yields a function that gives the number of the first signal in the block, which it answers with a line at once.

    A second signal raises StoppedError. Of several ranks the first alone heeds signals: it saves, and the others,
    waiting for its part of a sum, stop with it. A torchrun that was killed sends none: that `parent`, the process that
    started this one, is no longer there, is as good as SIGTERM.
    """
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if asked and parallel.rank() == 0:
            raise StoppedError(number)
        asked.append(number)
        if parallel.rank() == 0:
            _say(f"{signal.Signals(number).name}: this step is finished and saved first; once more ends at once")

    def first() -> int | None:
        if parallel.rank() > 0:
            return None
        if not asked and _under_torchrun() and os.getppid() != parent:
            asked.append(signal.SIGTERM)
            _say("torchrun is gone: this step is finished and saved first")
        return asked[0] if asked else None

    with _handled(note, SIGNALS):
        yield first


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _say(line: str) -> None:
    """Not by print, which a signal may have interrupted."""
    with suppress(OSError):  # the terminal may be gone, which is what SIGHUP says
        os.write(2, f"alexnet: {line}\n".encode())


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], numbers: Sequence[int]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with ExitStack() as stack:
        for number in numbers:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                signal.signal(number, handler)
                stack.callback(signal.signal, number, before)
        yield
