"""Files that are replaced whole or not at all, what killed writers leave behind, and directories in use.

All of it rests on `flock`, which the system takes back however a process dies. On a file system without such locks, as
some network mounts are, a directory counts as free, and nothing is swept.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WORKPLACE = ".writing-"  # and eight random characters: a directory beside the file that is written in it
_WRITER = "writer"  # the file in it that its writer holds a lock on
_IN_USE = ".in-use"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to; what is there when the block ends takes the place of `path`, synced, in one step.

    Whenever the process dies, `path` holds the old file or the new one, and `sweep` finds what else there is. Several
    processes may do this at once: the last one stays. The new file has the permissions of the old one, or those that
    the umask gives. Raises OSError, naming `path`, where it cannot be written; the old file then stays.
    """
    try:
        with _workplace(path.parent) as (folder, writer):
            temporary = folder / "contents"
            yield temporary
            _permit(temporary, path, writer)
            _sync(temporary)
            os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"{path} could not be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Replaces a file by one of this text, in UTF-8; errors as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep(directory: Path) -> None:
    """Removes from `directory` what writers who died while `replacing` a file left there; those at work stay."""
    for folder in directory.glob(f"{_WORKPLACE}????????"):
        try:
            writer = os.open(folder / _WRITER, os.O_RDWR)
        except FileNotFoundError:  # it died, or will find it gone, before it wrote anything
            _remove_empty(folder)
            continue
        except OSError:  # another user's
            continue
        try:
            fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # at work, or there are no locks here by which to tell
            continue
        finally:
            os.close(writer)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Within the block no other `locked` of the same directory is entered, by any process on any machine.

    The lock ends with this process, whatever becomes of its children. Raises BlockingIOError at once if the directory
    is in use, OSError where it is missing or may not be written.
    """
    path = directory / _IN_USE
    held = [_take(path, directory)]
    # A child made by fork would keep the lock. The hook cannot be taken back: it holds a number, and then nothing.
    os.register_at_fork(after_in_child=lambda: _close(held))
    try:
        yield
    finally:
        if held:  # not in a child made by fork, which may leave the block too
            path.unlink(missing_ok=True)
        _close(held)


def _close(held: list[int]) -> None:
    while held:
        os.close(held.pop())


def _take(path: Path, directory: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError(f"{directory} is in use by another process: wait for it or choose another") from None
        except OSError:
            return descriptor  # there are no locks here
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its last holder removed it after it was opened here


@contextmanager
def _workplace(parent: Path) -> Iterator[tuple[Path, int]]:
    """A directory of its own in `parent`, and a file in it that stays locked within the block."""
    folder, writer = _move_in(parent)
    try:
        yield folder, writer
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(writer)


def _move_in(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_WORKPLACE, dir=parent))
        try:
            writer = os.open(folder / _WRITER, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:
            continue  # swept before it was locked
        try:
            fcntl.flock(writer, fcntl.LOCK_EX)
        except OSError:
            return folder, writer  # there are no locks here
        if _is_at(folder / _WRITER, writer):
            return folder, writer
        os.close(writer)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _permit(temporary: Path, path: Path, fresh: int) -> None:
    """Gives the file the permissions of the one it replaces, or those of `fresh`, which the umask has formed."""
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        mode = os.fstat(fresh).st_mode & 0o777
    if temporary.stat().st_mode & 0o777 != mode:
        temporary.chmod(mode)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
