"""The application on several ranks of torchrun, and what happens when one of them dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from alexnet_func import checkpoint, privacy
from alexnet_func.app import cli, private
from tests.app.test_private import SMALL

# At a rate at which rounding does not grow tenfold with every few steps.
ARGUMENTS = ["train", "--limit", "64", "--batch-size", "16", "--lr", "1e-3", "--device", "cpu"]


def on_ranks(ranks, *arguments, program=("-m", "alexnet_func"), **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [*program, *ARGUMENTS, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes, **options)


def saved_on_two_ranks(out):
    """A run of two ranks that goes on, after its first checkpoint."""
    process = on_ranks(2, "--epochs", "1000", "--out", str(out))
    while not (out / "checkpoint.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    return process


def distance(run, other):
    a, b = (checkpoint.load(Path(path) / "checkpoint.safetensors")[0].params for path in (run, other))
    difference = sum((a[name] - b[name]).double().square().sum() for name in b)
    return (difference / sum(p.double().square().sum() for p in b.values())).sqrt().item()


def test_two_ranks_train_as_one_and_one_goes_on_where_they_stopped(tmp_path, capsys):
    together, alone = str(tmp_path / "together"), str(tmp_path / "alone")
    process = on_ranks(2, "--epochs", "1", "--out", together)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("test accuracy") == 2  # of the epoch and of the run, by rank 0 alone
    assert cli.main([*ARGUMENTS, "--epochs", "1", "--out", alone]) == 0
    assert distance(together, alone) < 1e-5
    rows = [json.loads((Path(path) / "metrics.jsonl").read_text()) for path in (together, alone)]
    assert rows[0]["train_loss"] == pytest.approx(rows[1]["train_loss"], rel=1e-4)
    assert rows[0]["test_loss"] == pytest.approx(rows[1]["test_loss"], rel=1e-4)
    for path in (together, alone):
        assert cli.main([*ARGUMENTS, "--epochs", "2", "--out", path, "--resume"]) == 0
    assert distance(together, alone) < 1e-4
    capsys.readouterr()


KNOWN_NOISE = """
import sys
from alexnet_func import privacy
from alexnet_func.app import cli, private
private.secrets.randbits = lambda count: 7
privacy.noise_for = lambda *plan, **sample: 0.5
sys.exit(cli.main(sys.argv[1:]))
"""


def test_two_ranks_train_privately_as_one(tmp_path, monkeypatch):
    """Each has its part of a sample, and all add the same noise, of a key that the first one draws."""
    (tmp_path / "program.py").write_text(KNOWN_NOISE)
    (tmp_path / "small.json").write_text(SMALL.to_json())
    words = ["--arch", str(tmp_path / "small.json"), "--epochs", "1", "--dp-epsilon", "8", "--dp-quantile", "0.5"]
    words += ["--ema", "0.5", "--out"]
    process = on_ranks(2, *words, str(tmp_path / "together"), program=[str(tmp_path / "program.py")])
    monkeypatch.setattr(private.secrets, "randbits", lambda count: 7)
    monkeypatch.setattr(privacy, "noise_for", lambda *plan, **sample: 0.5)
    alone = cli.main([*ARGUMENTS, *words, str(tmp_path / "alone")])
    _, err = process.communicate(timeout=120)
    assert (process.returncode, alone) == (0, 0), err
    assert distance(tmp_path / "together", tmp_path / "alone") < 1e-5


@pytest.mark.slow
def test_gradients_rounded_on_their_way_train_nearly_as_well(tmp_path):
    arguments = [*ARGUMENTS, "--epochs", "1", "--out"]
    process = on_ranks(2, "--epochs", "1", "--reduction", "bf16", "--out", str(tmp_path / "rounded"))
    assert cli.main([*arguments, str(tmp_path / "alone")]) == 0
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert 1e-6 < distance(tmp_path / "rounded", tmp_path / "alone") < 1e-2


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a rank's process under /proc")
def test_a_rank_that_dies_stops_the_others_and_is_named(tmp_path, capsys):
    out = tmp_path / "run"
    process = saved_on_two_ranks(out)
    os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 45
    assert process.returncode != 0
    assert re.search(r"rank +: 1 ", err)
    assert "Signal 9 (SIGKILL)" in err
    epoch = int(checkpoint.load(out / "checkpoint.safetensors")[0].step) // 4
    assert cli.main([*ARGUMENTS, "--epochs", str(epoch + 1), "--out", str(out), "--resume"]) == 0
    assert f"epoch {epoch + 1:2d}/" in capsys.readouterr().out


def process_of_rank(rank, parent):
    for directory in Path("/proc").iterdir():
        try:
            status, environment = ((directory / name).read_text() for name in ("status", "environ"))
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in status and f"\0RANK={rank}\0" in f"\0{environment}\0":
            return int(directory.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a rank's process under /proc")
def test_what_a_scheduler_sends_to_torchrun_saves_and_ends_all_ranks(tmp_path, capsys):
    out = tmp_path / "run"
    process = saved_on_two_ranks(out)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert f"alexnet: stopped by SIGTERM; go on with the same command and --resume (--out {out})" in err
    with pytest.raises(AssertionError, match="no process of rank 1"):
        process_of_rank(1, process.pid)
    step = int(checkpoint.load(out / "checkpoint.safetensors")[0].step)
    assert cli.main([*ARGUMENTS, "--epochs", str(step // 4 + 1), "--out", str(out), "--resume"]) == 0
    assert f"epoch {step // 4 + 1:2d}/" in capsys.readouterr().out


@pytest.mark.errors
def test_settings_that_do_not_fit_several_ranks_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("alexnet_func.parallel.world_size", lambda: 3)
    assert cli.main(ARGUMENTS) == 1
    assert "--batch-size 16 does not divide among 3 ranks" in capsys.readouterr().err
    assert cli.main([*ARGUMENTS, "--batch-size", "15", "--skip-bad-images"]) == 1
    assert "let alexnet prepare leave such files out" in capsys.readouterr().err


@pytest.mark.errors
def test_a_lost_rank_is_an_error_of_one_line(monkeypatch, capsys):
    def lost(*_):
        raise RuntimeError("[pair.cc:5] gloo: connection closed by peer")

    monkeypatch.setattr("alexnet_func.app.setup.prepared", lost)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    assert cli.main(ARGUMENTS) == 1
    assert capsys.readouterr().err.startswith("alexnet: rank 0 stops, as another one has")
    assert not torch.distributed.is_initialized()
