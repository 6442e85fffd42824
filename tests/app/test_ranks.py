"""The application on several ranks of torchrun, and what happens when one of them dies."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from alexnet_func import checkpoint, parallel, privacy
from alexnet_func.app import agreement, cli, private
from alexnet_func.data import datasets
from tests.app.test_private import SMALL
from tests.app.test_stopping import left_of

# At a rate at which rounding does not grow tenfold with every few steps.
ARGUMENTS = ["train", "--limit", "64", "--batch-size", "16", "--optimizer", "sgd", "--lr", "1e-3", "--device", "cpu"]


def on_ranks(ranks, *arguments, program=("-m", "alexnet_func"), **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [*program, *ARGUMENTS, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes, **options)


def saved_on_two_ranks(out, *arguments, **options):
    """A run of two ranks that goes on, after its first checkpoint."""
    process = on_ranks(2, "--epochs", "1000", "--out", str(out), *arguments, **options)
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


def test_two_ranks_with_split_layers_train_as_one_and_what_they_saved_goes_on(tmp_path, capsys):
    split, alone = str(tmp_path / "split"), str(tmp_path / "alone")
    process = on_ranks(2, "--parallel", "hybrid", "--epochs", "1", "--ema", "0.5", "--out", split)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert cli.main([*ARGUMENTS, "--epochs", "1", "--ema", "0.5", "--out", alone]) == 0
    assert distance(split, alone) < 1e-5
    rows = [json.loads((Path(path) / "metrics.jsonl").read_text()) for path in (split, alone)]
    assert rows[0]["test_loss"] == pytest.approx(rows[1]["test_loss"], rel=1e-4)
    for path in (split, alone):
        assert cli.main([*ARGUMENTS, "--epochs", "2", "--ema", "0.5", "--out", path, "--resume"]) == 0
    assert distance(split, alone) < 1e-4
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
@pytest.mark.parametrize("how", ["data", "hybrid"])
def test_what_a_scheduler_sends_to_torchrun_saves_and_ends_all_ranks(tmp_path, capsys, how):
    out = tmp_path / "run"
    process = saved_on_two_ranks(out, "--parallel", how)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert f"alexnet: stopped by SIGTERM; go on with the same command and --resume (--out {out})" in err
    with pytest.raises(AssertionError, match="no process of rank 1"):
        process_of_rank(1, process.pid)
    step = int(checkpoint.load(out / "checkpoint.safetensors")[0].step)
    assert cli.main([*ARGUMENTS, "--epochs", str(step // 4 + 1), "--out", str(out), "--resume"]) == 0
    assert f"epoch {step // 4 + 1:2d}/" in capsys.readouterr().out


def nothing_is_left_of(group):
    deadline = time.monotonic() + 30
    while left_of(group):
        assert time.monotonic() < deadline, left_of(group)
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes under /proc")
def test_ranks_end_when_torchrun_is_killed_and_the_first_one_saves(tmp_path):
    out = tmp_path / "run"
    process = saved_on_two_ranks(out, start_new_session=True)
    before = checkpoint.load(out / "checkpoint.safetensors")[0].step
    process.kill()
    nothing_is_left_of(process.pid)
    _, err = process.communicate(timeout=60)
    assert "alexnet: torchrun is gone: this step is finished and saved first" in err
    assert f"alexnet: stopped by SIGTERM; go on with the same command and --resume (--out {out})" in err
    assert checkpoint.load(out / "checkpoint.safetensors")[0].step > before


FAULTY = """
import os, signal, sys, time
from pathlib import Path
from alexnet_func.app import cli, loop, runs, setup
from alexnet_func.data import sources

phase, victim, call = Path(__file__).with_name("fault").read_text().split()
at, name = {
    "start": (setup, "prepared"),
    "decode": (sources, "open_split"),
    "step": (loop, "run_epoch"),
    "evaluate": (loop, "evaluate"),
    "save": (runs, "save"),
    "slow": (setup, "orders_from"),
}[phase]
sound, calls = getattr(at, name), []

def slow(*given):
    for order in sound(*given):
        time.sleep(1)
        yield order

def dies(*given, **named):
    calls.append(1)
    if len(calls) == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return sound(*given, **named)

if os.environ["RANK"] == victim:
    setattr(at, name, slow if phase == "slow" else dies)
    loop.orders_from = setup.orders_from
sys.exit(cli.main(sys.argv[1:]))
"""


def with_fault(tmp_path, fault, *arguments):
    """Two ranks one of which has a fault: its phase, the rank, and at the how manieth call."""
    (tmp_path / "program.py").write_text(FAULTY)
    words = [*arguments, "--out", str(tmp_path / "run")]
    (tmp_path / "fault").write_text(fault)
    process = on_ranks(2, *words, program=[str(tmp_path / "program.py")], start_new_session=True)
    out, err = process.communicate(timeout=120)
    nothing_is_left_of(process.pid)
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes under /proc")
@pytest.mark.parametrize("fault", ["start 1 1", "decode 1 1", "step 1 2", "evaluate 1 1", "save 0 2", "save 0 3"])
def test_a_rank_killed_in_any_phase_ends_the_run_and_loses_nothing_that_was_saved(tmp_path, fault, capsys):
    victim = fault.split()[1]
    code, _, err = with_fault(tmp_path, fault, "--epochs", "2")
    assert code != 0
    assert re.search(rf"rank +: {victim} ", err)
    assert "Signal 9 (SIGKILL)" in err
    assert "Traceback" not in err.partition("torch/distributed/elastic")[0]
    alone, out = tmp_path / "alone", tmp_path / "run"
    assert cli.main([*ARGUMENTS, "--epochs", "2", "--out", str(out), "--resume"]) == 0
    assert cli.main([*ARGUMENTS, "--epochs", "2", "--out", str(alone)]) == 0
    assert distance(out, alone) < 1e-4
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes under /proc")
def test_a_slow_rank_is_waited_for(tmp_path, capsys):
    code, _, err = with_fault(tmp_path, "slow 1 1", "--epochs", "1")
    assert code == 0, err
    assert cli.main([*ARGUMENTS, "--epochs", "1", "--out", str(tmp_path / "alone")]) == 0
    assert distance(tmp_path / "run", tmp_path / "alone") < 1e-5
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes under /proc")
def test_a_second_job_on_the_same_directory_is_refused_and_leaves_the_first_alone(tmp_path):
    out = tmp_path / "run"
    first = saved_on_two_ranks(out, start_new_session=True)
    second = on_ranks(2, "--epochs", "1000", "--out", str(out), "--resume", start_new_session=True)
    _, err = second.communicate(timeout=60)
    assert second.returncode != 0
    assert f"alexnet: {out} is in use by another process" in err
    nothing_is_left_of(second.pid)
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM; go on" in first.communicate(timeout=60)[1]
    nothing_is_left_of(first.pid)


OTHERWISE = """
import os, sys
from alexnet_func.app import cli
sys.exit(cli.main(sys.argv[1:] + os.environ["OTHERWISE"].split() * (os.environ["RANK"] == "1")))
"""


def test_ranks_of_other_epochs_end_at_once_instead_of_waiting(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(OTHERWISE)
    monkeypatch.setenv("OTHERWISE", "--epochs 2")
    process = on_ranks(2, "--epochs", "1", program=[str(tmp_path / "program.py")])
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "alexnet: the ranks differ: --epochs, 1 on rank 0 and 2 on rank 1" in err


@pytest.mark.errors
@pytest.mark.parametrize("name", ["--lr", "--epochs", "--seed", "--patience", "--compile", "--precision", "torch"])
def test_a_rank_that_was_told_something_else_is_named(monkeypatch, capsys, name):
    monkeypatch.setattr(parallel, "gathered", lambda own: [own, own, own | {name: "'another'"} if name in own else own])
    assert cli.main(ARGUMENTS) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"alexnet: the ranks differ: {name}, ")
    assert err.endswith(" on rank 0 and 'another' on rank 2\n")


@pytest.mark.errors
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("change", ["one fewer", "another class", "other pixels"])
def test_a_rank_with_other_images_is_named(monkeypatch, capsys, tmp_path, split, change):
    """Each rank's own folder, read as that rank would read it."""
    configs = []
    for rank in range(2):
        folder = tmp_path / str(rank)
        for part, kind in itertools.product(("train", "test"), ("cat", "dog")):
            (folder / part / kind).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / part / kind / f"{kind}{number}.png")
        if rank == 1:
            changed = folder / split / "cat" / "cat0.png"
            match change:
                case "one fewer":
                    changed.unlink()
                case "another class":
                    changed.rename(folder / split / "dog" / "dog3.png")
                case "other pixels":
                    Image.effect_noise((8, 8), 50).convert("RGB").save(changed)
        dataset = datasets.load(str(folder))
        contents = dataset.train.contents(), dataset.test.contents()
        configs.append({"contents": contents, "classes": dataset.classes, "arch": "{}"})
    first = []
    monkeypatch.setattr(parallel, "gathered", lambda own: first.append(own) or [own])
    agreement.check_data(configs[0])
    monkeypatch.setattr(parallel, "gathered", lambda own: [*first, own])
    what = "training" if split == "train" else "test"
    with pytest.raises(ValueError, match=f"the ranks differ: SHA-256 of the {what} images, '.*' on rank 0 and"):
        agreement.check_data(configs[1])


ELSEWHERE = """
import os, sys
from alexnet_func.app import cli
os.chdir("machine" + os.environ["RANK"])
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("change", ["none at all", "one fewer"])
def test_a_machine_without_the_data_set_or_with_another_ends_the_run_with_a_line(tmp_path, change):
    """Each rank reads `photographs` in a working directory of its own."""
    for rank in range(2):
        for part, kind in itertools.product(("train", "test"), ("cat", "dog")):
            folder = tmp_path / f"machine{rank}" / "photographs" / part / kind
            folder.mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{kind}{number}.png")
    last = tmp_path / "machine1" / "photographs"
    (last / "train" / "cat" / "cat0.png").unlink() if change == "one fewer" else shutil.rmtree(last)
    (tmp_path / "program.py").write_text(ELSEWHERE)
    words = ["--data", "photographs", "--arch", "alexnet_cifar", "--batch-size", "4", "--epochs", "1"]
    process = on_ranks(2, *words, program=[str(tmp_path / "program.py")], cwd=tmp_path, start_new_session=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    told = {
        "none at all": "alexnet: no data set 'photographs'",
        "one fewer": "alexnet: the ranks differ: SHA-256 of the",
    }
    assert told[change] in err
    nothing_is_left_of(process.pid)


@pytest.mark.errors
def test_settings_that_do_not_fit_several_ranks_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("alexnet_func.parallel.world_size", lambda: 3)
    monkeypatch.setattr(parallel, "gathered", lambda own: [own] * 3)
    assert cli.main(ARGUMENTS) == 1
    assert "--batch-size 16 does not divide among 3 ranks" in capsys.readouterr().err
    assert cli.main([*ARGUMENTS, "--batch-size", "15", "--skip-bad-images"]) == 1
    assert "let alexnet prepare leave such files out" in capsys.readouterr().err
    hybrid = [*ARGUMENTS, "--batch-size", "15", "--parallel", "hybrid"]
    assert cli.main([*hybrid, "--reduction", "bf16"]) == 1
    assert "--reduction is of gradients, which --parallel hybrid" in capsys.readouterr().err
    assert cli.main([*hybrid, "--dp-epsilon", "1"]) == 1
    assert "as a whole: not with --parallel hybrid" in capsys.readouterr().err
    assert cli.main([*hybrid, "--optimizer", "muon"]) == 1
    assert "each weight as a whole: not with --parallel hybrid" in capsys.readouterr().err


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
