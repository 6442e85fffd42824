"""What schedulers and people send, and when: a run is saved, resumed to the same bytes, and leaves nothing behind."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet_func import checkpoint
from alexnet_func.app import cli, loop, runs, stopping

pytestmark = pytest.mark.usefixtures("few_digits")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
COMMAND = [sys.executable, "-m", "alexnet_func", "train", "--limit", "64", "--batch-size", "32", "--device", "cpu"]


def started(*options, **how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *options], env=environment, start_new_session=True, **pipes, **how)


def left_of(group):
    """Processes of the group that are still there."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(directory.name))
    return found


@pytest.fixture
def asked_after(monkeypatch):
    """Sends this process a signal when the loop asks for the n-th time whether there was one."""

    def arrange(number, n):
        count = []
        train = loop.train

        def counted(job, start, record, show, asked):
            def asked_and_sent():
                count.append(1)
                if len(count) == n:
                    signal.raise_signal(number)
                return asked()

            return train(job, start, record, show, asked_and_sent)

        monkeypatch.setattr(loop, "train", counted)

    return arrange


SHORT = ["train", "--limit", "96", "--batch-size", "32", "--epochs", "2", "--device", "cpu"]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_saves_says_how_to_go_on_and_exits_with_its_number(tmp_path, asked_after, capfd, number):
    out = tmp_path / "run"
    asked_after(number, 3)
    assert cli.main([*SHORT, "--out", str(out)]) == 128 + number
    word, last = capfd.readouterr().err.splitlines()
    assert word.startswith(f"alexnet: {signal.Signals(number).name}: this step is finished and saved first")
    what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    assert last == f"alexnet: {what}; go on with the same command and --resume (--out {out})"
    assert checkpoint.load(out / "checkpoint.safetensors")[0].step > 0


def test_stopped_anywhere_in_steps_and_evaluation_a_run_ends_with_the_same_bytes(tmp_path, asked_after, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main([*SHORT, "--out", str(whole)]) == 0
    stops = 0
    for n in (1, 2, 1, 3, 4, 100):
        train = loop.train
        asked_after(signal.SIGTERM, n)
        code = cli.main([*SHORT, "--out", str(parts), "--resume"])
        monkeypatch.setattr(loop, "train", train)
        assert code in (0, 143)
        stops += code == 143
        if code == 0:
            break
    assert stops >= 4
    for name in ("checkpoint.safetensors", "best.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    rows = [(run / "metrics.jsonl").read_text().splitlines() for run in (whole, parts)]
    without_rate = [[row.rpartition(", ")[0] for row in run] for run in rows]
    assert without_rate[0] == without_rate[1]


def test_a_signal_while_the_last_epoch_is_saved_is_not_forgotten(tmp_path, monkeypatch, capfd):
    append = runs.append_metrics
    monkeypatch.setattr(runs, "append_metrics", lambda *row: (append(*row), signal.raise_signal(signal.SIGTERM)))
    assert cli.main([*SHORT, "--epochs", "1", "--out", str(tmp_path)]) == 143
    assert capfd.readouterr().err.splitlines()[-1] == "alexnet: stopped by SIGTERM; the run had ended and is saved"
    assert (tmp_path / "confusion.png").exists()


@pytest.mark.parametrize("gone", ["terminal", "stderr"])
def test_where_nobody_can_be_told_the_step_is_saved_all_the_same(tmp_path, gone):
    out = tmp_path / "run"
    command = [*COMMAND, "--limit", "1280", "--batch-size", "8", "--epochs", "50", "--out", str(out)]
    ours, theirs = pty.openpty()
    told, stderr = os.pipe() if gone == "stderr" else (None, theirs)
    streams = {"stdin": theirs, "stdout": theirs, "stderr": stderr}
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, env={**buffered, "TERM": "xterm"}, preexec_fn=_in_terminal, **streams)
    for end in {theirs, stderr}:
        os.close(end)
    seen = b""
    while not re.search(rb"[^0-9][1-9]\d*/8000", seen):  # no epoch ends soon: none is saved, nor told
        assert select.select([ours], [], [], 120)[0], seen
        seen += os.read(ours, 65536)
    os.close(ours if gone == "terminal" else told)  # the first sends SIGHUP
    if gone == "stderr":
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):  # the terminal's end, as the process ends
            while os.read(ours, 65536):
                pass
        os.close(ours)
    number = signal.SIGHUP if gone == "terminal" else signal.SIGTERM
    assert process.wait(timeout=60) == 128 + number
    assert checkpoint.load(out / "checkpoint.safetensors")[0].step > 0  # the run began with one of step 0
    assert not (out / "best.safetensors").exists()


def _in_terminal():
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_second_signal_ends_at_once_and_keeps_what_was_saved(tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    assert cli.main([*SHORT, "--epochs", "1", "--out", str(out)]) == 0
    before = (out / "checkpoint.safetensors").read_bytes()
    evaluate = loop.evaluate

    def twice(*arguments):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", twice)
    assert cli.main([*SHORT, "--out", str(out), "--resume"]) == 143
    assert (out / "checkpoint.safetensors").read_bytes() == before
    assert not list(out.glob(".writing-*"))


def test_before_the_first_step_a_signal_ends_at_once(monkeypatch, capsys):
    monkeypatch.setattr("alexnet_func.app.setup.prepared", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert cli.main(SHORT) == 143
    assert capsys.readouterr().err == "alexnet: stopped by SIGTERM\n"


def test_what_a_signal_to_the_whole_group_broke_is_no_error_of_its_own(monkeypatch, capfd):
    def broken(job, start, record, show, asked):
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("g++ was terminated")

    monkeypatch.setattr(loop, "train", broken)
    assert cli.main(SHORT) == 143
    assert capfd.readouterr().err.splitlines()[-1].startswith("alexnet: stopped by SIGTERM; nothing was saved")


@pytest.mark.parametrize(
    "error", [FloatingPointError("the loss is nan"), OSError("no space left")], ids=["nan", "disk"]
)
def test_a_run_that_could_not_be_saved_is_not_told_to_go_on(monkeypatch, capfd, error):
    def failed(job, start, record, show, asked):
        signal.raise_signal(signal.SIGTERM)
        raise error

    monkeypatch.setattr(loop, "train", failed)
    assert cli.main(SHORT) == 1
    assert capfd.readouterr().err.splitlines()[-1] == f"alexnet: {error}"


def test_ignored_signals_stay_ignored_and_handlers_come_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    try:
        with stopping.at_once(), stopping.after_a_step(os.getppid()) as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(stopping.StoppedError, match="stopped by SIGTERM"), stopping.at_once():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_in_another_thread_signals_are_left_alone():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main([*SHORT, "--limit", "32", "--epochs", "1"])))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes under /proc")
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
@pytest.mark.parametrize("options", [["--stream", "--workers", "2"], ["--compile"], []], ids=lambda o: "".join(o))
def test_at_thirty_random_moments_nothing_is_lost_or_left(tmp_path, photographs, number, options):
    data = ["--data", str(photographs), "--arch", "alexnet_cifar", "--batch-size", "8", "--epochs", "30", *options]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    begun = time.monotonic()
    process = started(*data, "--out", str(whole))
    assert process.communicate()[1] == ""  # no library's warnings either
    seconds = time.monotonic() - begun
    generator = np.random.default_rng(number)
    codes, step = [], 0
    for _ in range(30):
        process = started(*data, "--out", str(parts), "--resume")
        try:
            process.wait(timeout=generator.uniform(0, min(seconds / 3, 20)))
        except subprocess.TimeoutExpired:
            # To the whole group, as a terminal and most schedulers do.
            os.killpg(process.pid, number)
        _, error = process.communicate(timeout=120)
        codes.append(process.returncode)
        assert process.returncode in (0, 128 + number, -number), error  # by the signal itself while torch loads
        assert "Traceback" not in error or process.returncode == -number
        limit = time.monotonic() + 15
        while left_of(process.pid) and time.monotonic() < limit:
            time.sleep(0.1)
        assert left_of(process.pid) == []
        assert not list(parts.glob(".writing-*"))
        if (parts / "checkpoint.safetensors").exists():
            reached = int(checkpoint.load(parts / "checkpoint.safetensors")[0].step)
            assert reached >= step
            step = reached
    assert codes.count(128 + number) >= 5, "too few fell into the run"
    process = started(*data, "--out", str(parts), "--resume")
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert (whole / "checkpoint.safetensors").read_bytes() == (parts / "checkpoint.safetensors").read_bytes()


@pytest.mark.parametrize("file", ["/dev/full", "closed pipe"])
def test_an_output_that_nobody_can_read_loses_nothing(tmp_path, file):
    out = tmp_path / "run"
    command = [*COMMAND, "--epochs", "2", "--out", str(out)]
    if file == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(file, os.O_WRONLY)
    with os.fdopen(writing, "w") as stdout:
        run = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("alexnet: standard output cannot be written: ")
    assert run.stderr.count("\n") == 1


def test_an_epoch_is_saved_before_it_is_told(tmp_path, monkeypatch, capsys):
    def full(self, text):
        if text.startswith("epoch"):
            raise OSError("standard output cannot be written: No space left on device")

    monkeypatch.setattr("alexnet_func.app.progress.Show.line", full)
    out = tmp_path / "run"
    assert cli.main([*SHORT, "--out", str(out)]) == 1
    state, _ = checkpoint.load(out / "checkpoint.safetensors")
    assert state.step == 3
    assert (out / "metrics.jsonl").read_text().count("\n") == 1
    assert all(torch.isfinite(p).all() for p in state.params.values())
