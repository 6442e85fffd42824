import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from alexnet_func import files


def started(code, *arguments):
    """A process of that code, once it has printed a line."""
    command = [sys.executable, "-c", f"import sys, os, time; from pathlib import Path; {code}", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    return process


def killed(process):
    process.kill()
    process.wait()
    process.stdout.close()


def mode(path):
    return path.stat().st_mode & 0o777


WRITING = """
from alexnet_func import files
with files.replacing(Path(sys.argv[1]) / "f") as new:
    new.write_text("half")
    print("go", flush=True)
    time.sleep(600)
"""
LOCKING = """
from alexnet_func import files
with files.locked(Path(sys.argv[1])):
    {}
    print("go", flush=True)
    time.sleep(600)
"""


class TestReplacing:
    @pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
    def test_a_new_file_has_the_umasks_permissions_and_a_replaced_one_its_own(self, tmp_path, umask):
        before = os.umask(umask)
        try:
            files.write_text(tmp_path / "new", "1")
            assert mode(tmp_path / "new") == 0o666 & ~umask
            for own in (0o640, 0o604, 0o400):
                (tmp_path / "new").chmod(own)
                files.write_text(tmp_path / "new", "2")
                assert mode(tmp_path / "new") == own
        finally:
            os.umask(before)
        assert os.listdir(tmp_path) == ["new"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_error_or_interrupt_leaves_the_old_file_and_nothing_else(self, tmp_path, error):
        files.write_text(tmp_path / "f", "old")

        def stopped(new):
            new.write_text("half")
            raise error

        with pytest.raises(error), files.replacing(tmp_path / "f") as new:
            stopped(new)
        assert (tmp_path / "f").read_text() == "old"
        assert os.listdir(tmp_path) == ["f"]

    def test_several_writers_of_one_file_at_once_leave_it_whole(self, tmp_path):
        texts = [str(i) * 100_000 for i in range(4)]
        writers = [
            threading.Thread(target=lambda text=text: [files.write_text(tmp_path / "f", text) for _ in range(20)])
            for text in texts
        ]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            files.sweep(tmp_path)  # which leaves all of them alone
        assert (tmp_path / "f").read_text() in texts
        assert os.listdir(tmp_path) == ["f"]

    @pytest.mark.errors
    def test_what_cannot_be_written_is_named_with_its_errno(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere/f could not be written: No such file") as raised:
            files.write_text(tmp_path / "nowhere" / "f", "")
        assert raised.value.errno == errno.ENOENT
        (tmp_path / "f").mkdir()
        with pytest.raises(IsADirectoryError, match="f could not be written: Is a directory"):
            files.write_text(tmp_path / "f", "")
        assert os.listdir(tmp_path) == ["f"]


class TestSweep:
    def test_what_a_killed_writer_left_goes_and_what_one_at_work_has_stays(self, tmp_path):
        files.write_text(tmp_path / "f", "old")
        (tmp_path / ".writing-mine").write_text("a file of someone else")
        process = started(WRITING, tmp_path)
        try:
            files.sweep(tmp_path)
            (place,) = tmp_path.glob(".writing-????????")
            assert (place / "contents").read_text() == "half"
        finally:
            killed(process)
        assert place.exists()
        files.sweep(tmp_path)
        assert sorted(os.listdir(tmp_path)) == [".writing-mine", "f"]
        assert (tmp_path / "f").read_text() == "old"

    def test_a_directory_without_its_lock_file_goes_if_it_is_empty(self, tmp_path):
        (tmp_path / ".writing-abcdefgh").mkdir()
        (tmp_path / ".writing-12345678").mkdir()
        (tmp_path / ".writing-12345678" / "photo.jpg").write_text("of someone else")
        files.sweep(tmp_path)
        assert os.listdir(tmp_path) == [".writing-12345678"]

    def test_a_writer_that_is_swept_before_it_has_its_lock_begins_again(self, tmp_path, monkeypatch):
        flock, swept = files.fcntl.flock, []

        def late(descriptor, operation):
            if operation == files.fcntl.LOCK_EX and not swept:
                swept.append(True)
                files.sweep(tmp_path)
                assert os.listdir(tmp_path) == []
            return flock(descriptor, operation)

        monkeypatch.setattr(files.fcntl, "flock", late)
        files.write_text(tmp_path / "f", "new")
        assert swept
        assert (tmp_path / "f").read_text() == "new"


class TestLocked:
    @pytest.mark.errors
    def test_a_second_process_or_thread_is_refused_at_once(self, tmp_path):
        process = started(LOCKING.format("pass"), tmp_path)
        try:
            with (
                pytest.raises(BlockingIOError, match=f"{tmp_path} is in use by another process"),
                files.locked(tmp_path),
            ):
                pass
        finally:
            killed(process)
        with (
            files.locked(tmp_path),
            pytest.raises(BlockingIOError, match="is in use by another process"),
            files.locked(tmp_path),
        ):
            pass
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        "child",
        [
            "pass",
            "os.fork() or time.sleep(600)",
            "import subprocess; subprocess.Popen(['sleep', '600'])",
            "import multiprocessing as m; m.get_context('fork').Process(target=time.sleep, args=(600,)).start()",
            "import multiprocessing as m; m.get_context('spawn').Process(target=time.sleep, args=(600,)).start()",
        ],
        ids=["alone", "fork", "subprocess", "multiprocessing fork", "multiprocessing spawn"],
    )
    def test_a_killed_process_holds_nothing_even_where_its_child_lives_on(self, tmp_path, child):
        process = started(f"os.setsid()\n{LOCKING.format(child)}", tmp_path)
        try:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            with files.locked(tmp_path):
                assert os.listdir(tmp_path) == [".in-use"]
            assert os.listdir(tmp_path) == []
        finally:
            if child != "pass":
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()

    def test_children_that_end_or_come_later_change_nothing(self, tmp_path):
        code = f"""
import os, pathlib, sys
from alexnet_func import files

def child(leave):
    if not (pid := os.fork()):
        leave(0)
    assert os.waitpid(pid, 0)[1] == 0

path = pathlib.Path({str(tmp_path)!r})
with files.locked(path):
    child(os._exit)
    child(sys.exit)  # through the end of the block
    try:
        with files.locked(path):
            print("entered")
    except BlockingIOError:
        print("refused")
child(os._exit)
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout == "refused\n"

    def test_one_whose_holder_goes_between_opening_and_locking_is_taken_anew(self, tmp_path, monkeypatch):
        flock, removed = files.fcntl.flock, []

        def late(descriptor, operation):
            if not removed:
                removed.append(True)
                (tmp_path / ".in-use").unlink()
            return flock(descriptor, operation)

        monkeypatch.setattr(files.fcntl, "flock", late)
        with files.locked(tmp_path), pytest.raises(BlockingIOError), files.locked(tmp_path):
            pass
        assert removed

    @pytest.mark.errors
    def test_a_directory_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"), files.locked(tmp_path / "nowhere"):
            pass


def test_without_locks_files_are_written_directories_free_and_nothing_is_swept(tmp_path, monkeypatch):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    process = started(WRITING, tmp_path)
    killed(process)
    monkeypatch.setattr(files.fcntl, "flock", none)
    files.write_text(tmp_path / "f", "new")
    with files.locked(tmp_path), files.locked(tmp_path):
        files.sweep(tmp_path)
    assert (tmp_path / "f").read_text() == "new"
    assert len(os.listdir(tmp_path)) == 2
