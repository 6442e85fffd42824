import csv
import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import alexnet_func as af
from alexnet_func import checkpoint, random
from alexnet_func.app import cli, fit, loop, models, recipes, runs
from alexnet_func.app.options import Run
from alexnet_func.arch import ALEXNET_SMALL
from alexnet_func.data import datasets, prepare, preprocess

SHORT = ["train", "--limit", "64", "--batch-size", "32", "--epochs", "3", "--device", "cpu"]


def test_a_short_run_reports_every_epoch_and_ends_with_the_test_accuracy(capsys):
    assert cli.main(["train", "--limit", "64", "--batch-size", "32", "--epochs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("alexnet_small on digits: 64 training and 355 test images, on ")
    epoch = r"epoch +(\d)/2  train loss \d+\.\d{4}  test loss \d+\.\d{4}  test accuracy +\d+\.\d\d%  [\d,]+ images/s"
    assert [re.fullmatch(epoch, line).group(1) for line in lines[1:3]] == ["1", "2"]
    assert re.fullmatch(r"test accuracy \d+\.\d\d % \(355 images\)", lines[-1])


def test_the_same_seed_gives_the_same_run_and_another_does_not(capsys):
    def run(seed):
        words = ["--limit", "32", "--batch-size", "32", "--epochs", "1", "--device", "cpu"]
        cli.main(["train", *words, "--seed", str(seed)])
        return re.search(r"train loss (\S+)  test loss (\S+)", capsys.readouterr().out).groups()

    first = run(0)
    assert run(0) == first
    assert run(1) != first


@pytest.mark.parametrize("augmentation", ["none", "shift", "shift-flip", "reflect-flip", "resized-flip", "paper"])
def test_an_images_augmentation_depends_on_key_and_index_alone(augmentation):
    images = datasets.load("digits").train.images
    components = torch.rand(3, 3) if augmentation == "paper" else None
    moments = preprocess.Moments((0.3,) * 3, (0.4,) * 3)
    prepare = preprocess.preparation(augmentation, ALEXNET_SMALL.image_size, moments, components)
    key, index = random.key(3), torch.tensor([5, 900, 17])
    batch = prepare(key, index, images[index])
    assert torch.equal(prepare(key, index[2:], images[17:18])[0], batch[2])
    depends = not torch.equal(prepare(random.key(4), index[2:], images[17:18])[0], batch[2])
    assert depends == (augmentation != "none")


@pytest.mark.usefixtures("few_digits")
def test_a_run_directory_holds_its_configuration_metrics_and_checkpoint(tmp_path, capsys):
    assert cli.main([*SHORT, "--out", str(tmp_path / "run")]) == 0
    pictures = ["confusion.png", "curves.png", "filters.png"]
    files = ["best.safetensors", "checkpoint.safetensors", "config.json", "metrics.jsonl"]
    assert sorted(os.listdir(tmp_path / "run")) == sorted([*files, *pictures])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["epochs"] == 3
    assert af.arch.Arch.from_json(config["arch"]) == ALEXNET_SMALL
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 2), (2, 4), (3, 6)]
    fields = {"train_loss", "test_loss", "test_accuracy", "images_per_second"}
    assert all(fields <= set(row) and 0 <= row["test_accuracy"] <= 1 for row in rows)
    final = capsys.readouterr().out.splitlines()[-1]
    assert cli.main(["eval", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == final


@pytest.mark.usefixtures("few_digits")
def test_a_run_stopped_anywhere_and_resumed_ends_with_the_same_bytes(tmp_path, monkeypatch, capsys):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    assert cli.main([*SHORT, "--out", whole]) == 0
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)  # a checkpoint after every step
    saves = runs.save
    for stop_after in (2, 2):  # in mid-epoch, and between checkpoint and next step; the first saves its start too
        left = [stop_after]

        def save_and_die(*arguments, left=left):
            saves(*arguments)
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        monkeypatch.setattr(runs, "save", save_and_die)
        assert cli.main([*SHORT, "--out", parts, "--resume"]) == 130
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "step"')  # a line that was cut off
    monkeypatch.setattr(runs, "save", saves)
    assert cli.main([*SHORT, "--out", parts, "--resume"]) == 0
    first, second = (tmp_path / name / "checkpoint.safetensors" for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()

    def rows(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]

    assert rows("parts") == rows("whole")


def test_streamed_and_in_memory_a_run_is_the_same_with_any_number_of_workers(tmp_path, folder, capsys):
    options = ["train", "--data", str(folder), "--arch", "alexnet_cifar", "--batch-size", "4", "--epochs", "2"]
    results = []
    for name, reading in (
        ("memory", ["--no-stream"]),
        ("alone", ["--stream", "--workers", "0"]),
        ("two", ["--stream"]),
    ):
        assert cli.main([*options, "--device", "cpu", *reading, "--out", str(tmp_path / name)]) == 0
        results.append((tmp_path / name / "checkpoint.safetensors").read_bytes())
    assert results[1] == results[0]
    assert results[2] == results[0]
    assert (tmp_path / "memory" / "images-train.safetensors").exists()
    assert not (tmp_path / "two" / "images-train.safetensors").exists()


def test_a_run_on_prepared_shards_is_the_run_on_the_files(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "SHARD", 4)
    shards = str(tmp_path / "shards")
    assert cli.main(["prepare", str(folder), shards, "--side", "32"]) == 0
    assert f"{shards} holds 8 training and 8 test images" in capsys.readouterr().out
    losses = []
    for name, data, how in (("files", str(folder), []), ("memory", shards, []), ("mapped", shards, ["--stream"])):
        options = ["--arch", "alexnet_cifar", "--epochs", "1", "--batch-size", "2", "--device", "cpu", "--limit", "5"]
        assert cli.main(["train", "--data", data, *options, *how, "--out", str(tmp_path / name)]) == 0
        losses.append(re.search(r"train loss (\S+)  test loss (\S+)", capsys.readouterr().out).groups())
    assert losses[0] == losses[1] == losses[2]
    files, *others = (
        checkpoint.load(tmp_path / name / "checkpoint.safetensors")[0] for name in ("files", "memory", "mapped")
    )
    for other in others:
        assert all(torch.equal(other.params[name], value) for name, value in files.params.items())
    assert cli.main(["train", "--data", shards, "--arch", "alexnet"]) == 1
    told = capsys.readouterr().err
    assert "the train images are 32x32, and the network needs 256x256: prepare them again with --side 256" in told


@pytest.mark.errors
@pytest.mark.parametrize("reading", [["--no-stream"], ["--stream", "--workers", "0"]])
def test_an_unreadable_image_stops_the_run_or_is_left_out_and_counted(tmp_path, folder, capsys, reading):
    bad = sorted((folder / "train" / "dark").iterdir())[2]
    bad.write_bytes(bad.read_bytes()[:100])
    options = [
        "train",
        "--data",
        str(folder),
        "--arch",
        "alexnet_cifar",
        "--batch-size",
        "4",
        "--epochs",
        "2",
        *reading,
    ]
    assert cli.main(options) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"alexnet: {bad} is not a readable image: ")
    assert "--skip-bad-images" in error
    assert cli.main([*options, "--skip-bad-images"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"left out: {bad} is not a readable image") for line in lines) == 1
    assert "1 unreadable image left out" in lines


@pytest.mark.errors
@pytest.mark.usefixtures("few_digits")
def test_runs_that_would_clobber_or_mix_are_refused(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert cli.main([*SHORT, *out, "--resume"]) == 0  # without a checkpoint: afresh
    for options, message in (
        ([], "holds a checkpoint: add --resume to go on with it, or choose another --out"),
        (["--resume", "--lr", "0.5"], "was trained otherwise: lr 0.05 -> 0.5"),
        (["--resume", "--seed", "3"], "was trained otherwise: seed 0 -> 3"),
    ):
        assert cli.main([*SHORT, *out, *options]) == 1
        assert message in capsys.readouterr().err
    assert cli.main([*SHORT, *out, "--resume", "--epochs", "4"]) == 0
    assert cli.main([*SHORT, "--resume"]) == 1
    assert capsys.readouterr().err == "alexnet: --resume needs --out: which run?\n"
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"")
    assert cli.main([*SHORT, *out, "--resume"]) == 1
    assert "checkpoint.safetensors is truncated, altered or no checkpoint" in capsys.readouterr().err


@pytest.mark.usefixtures("few_digits")
def test_init_from_a_run_keeps_its_parameters_and_draws_a_last_layer_of_another_size(tmp_path, capsys, folder):
    assert cli.main([*SHORT, "--out", str(tmp_path / "run")]) == 0
    start = ["--init", str(tmp_path / "run"), "--lr", "0", "--epochs", "1"]
    assert cli.main([*SHORT, *start, "--out", str(tmp_path / "same")]) == 0
    first, second = (checkpoint.load(tmp_path / name / "checkpoint.safetensors")[0] for name in ("run", "same"))
    assert all(torch.equal(first.params[n], p) for n, p in second.params.items())
    capsys.readouterr()
    there = ["train", "--data", str(folder), "--arch", "alexnet_small", "--batch-size", "4", *start]
    assert cli.main([*there, "--out", str(tmp_path / "other")]) == 0
    assert "drawn anew, as the classes differ: classifier.4.weight, classifier.4.bias" in capsys.readouterr().out
    other = checkpoint.load(tmp_path / "other" / "checkpoint.safetensors")[0].params
    assert torch.equal(other["classifier.2.weight"], first.params["classifier.2.weight"])
    assert other["classifier.4.bias"].shape == (2,)


def test_a_folder_is_trained_evaluated_and_predicted(tmp_path, folder, capsys):
    run = str(tmp_path / "run")
    options = ["--data", str(folder), "--arch", "alexnet_cifar", "--epochs", "3", "--batch-size", "4", "--lr", "0.001"]
    assert cli.main(["train", *options, "--out", run]) == 0
    assert cli.main(["eval", run, "--data", str(folder), "--ten-crop"]) == 0
    shown = capsys.readouterr().out
    assert "top-1" in shown
    assert "top-5" not in shown  # of two classes
    assert cli.main(["predict", run, str(folder / "test" / "bright" / "0.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r" +\d+\.\d\d%  (bright|dark)", lines[1])
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.02)


@pytest.mark.parametrize("arch", ["alexnet", "alexnet_cifar"])
def test_a_small_folder_is_shown_more_often_in_smaller_batches(arch):
    large = recipes.by_data("own", None, arch)
    for images in (4, 32, 200, 600, 2_000, 19_999):
        recipe = recipes.by_data("own", None, arch, images)
        steps = images // recipe.batch_size * recipe.epochs
        assert (recipe.optimizer, recipe.augmentation) == ("adamw", large.augmentation)
        assert steps >= 10 * (images // 32) if images > 3_200 else 400 <= steps <= 1_100
        assert 4 * recipe.batch_size <= images
    assert recipes.by_data("own", None, arch, 20_000) == large
    assert recipes.by_data("own", "paper", arch, 100) == recipes.PAPER
    assert recipes.by_data("digits", None, arch, 100) == recipes.DIGITS


@pytest.mark.errors
def test_the_command_line_counts_a_folders_images(tmp_path, folder):
    words = ["train", "--data", str(folder), "--arch", "alexnet_cifar"]
    images = sum(path.suffix == ".png" for path in (folder / "train").rglob("*"))
    recipe = cli._parsed(words).recipe
    assert vars(recipe) == vars(recipes.by_data("own", None, "alexnet_cifar", images))
    assert cli._parsed([*words, "--limit", "4"]).recipe.batch_size == 1
    assert cli._parsed([*words, "--epochs", "7", "--optimizer", "sgd"]).recipe.optimizer == "sgd"
    with pytest.raises(ValueError, match="no data set"):
        cli._parsed(["train", "--data", str(tmp_path / "nowhere")])


def test_photographs_go_through_the_papers_recipe(tmp_path, capsys):
    make_folder(tmp_path, (300, 260), 2)
    options = ["--data", str(tmp_path), "--recipe", "paper", "--epochs", "1", "--batch-size", "2"]
    assert cli.main(["train", *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("alexnet_2012 on ")
    assert "test accuracy" in out.splitlines()[-1]
    assert cli.main(["train", *options, "--optimizer", "adamw"]) == 1
    assert "the paper's recipe is one of SGD: it does not go with adamw" in capsys.readouterr().err


def make_folder(path, size, count):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, low in (("bright", 150), ("dark", 0)):
            (path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(low, low + 100, (*size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(path / split / name / f"{i}.png")
    return path


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "images", (40, 36), 4)


def test_inspect_ranks_training_images_by_gradient_norm(tmp_path, folder, capsys):
    run = tmp_path / "run"
    options = ["--data", str(folder), "--arch", "alexnet_cifar", "--epochs", "20", "--batch-size", "4", "--lr", "2e-4"]
    assert cli.main(["train", *options, "--out", str(run)]) == 0
    (folder / "train" / "bright" / "1.png").write_text("no image")
    shutil.copy(folder / "train" / "dark" / "0.png", folder / "train" / "bright" / "wrong.png")
    capsys.readouterr()
    assert cli.main(["inspect", str(run), "--data", str(folder)]) == 1
    assert "1.png is not a readable image" in capsys.readouterr().err
    assert cli.main(["inspect", str(run), "--data", str(folder), "--skip-bad-images"]) == 0
    out = capsys.readouterr().out
    assert "8 training images: gradient norm " in out
    assert "1 unreadable left out" in out
    assert re.search(r"classifier\.6 \d+\.\d%", out)
    assert "gradient noise scale" in out
    assert (run / "inspect.png").stat().st_size > 10_000

    with open(run / "inspect.csv") as file:
        rows = list(csv.DictReader(file))
    assert Path(rows[0]["file"]).name == "wrong.png"
    assert (rows[0]["label"], rows[0]["predicted"]) == ("bright", "dark")
    model = models.load_model(str(run), torch.device("cpu"))
    loss = functools.partial(af.loss_fn, arch=model.arch)
    norms = []
    for row in rows:
        image = af.data.images.read(Path(row["file"]), 32)
        x = af.data.augment.normalize(af.data.augment.to_float(image), *model.moments[:2])
        y = torch.tensor(["bright", "dark"].index(Path(row["file"]).parent.name))
        grads, value = torch.func.grad_and_value(loss)(model.params, (x, y))
        norms.append(sum(g.double().square().sum() for g in grads.values()).sqrt().item())
        assert float(row["loss"]) == pytest.approx(value.item(), rel=1e-4, abs=1e-6)
        assert float(row["gradient_norm"]) == pytest.approx(norms[-1], rel=1e-3, abs=1e-6)
    assert norms == sorted(norms, reverse=True)

    assert cli.main(["inspect", str(run), "--data", str(folder), "--skip-bad-images", "--limit", "2"]) == 0
    assert "too few to tell" in (out := capsys.readouterr().out) or "at least three" in out
    assert cli.main(["inspect", str(run)]) == 1
    assert "the network knows 2 classes (bright, dark), digits has 10" in capsys.readouterr().err


@pytest.mark.errors
def test_eval_and_predict_name_what_is_wrong(tmp_path, folder, capsys):
    assert cli.main([*SHORT, "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "text.png").write_text("no image")
    for arguments, message in (
        (["eval", str(tmp_path / "run"), "--data", str(folder)], "the network knows 10 classes (0, 1, 2, ...)"),
        (["eval", str(tmp_path / "none.safetensors")], "there is no checkpoint"),
        (["eval", str(tmp_path)], "there is no checkpoint"),
        (["eval", str(tmp_path / "none.pth")], "there is no checkpoint and no file of weights"),
        (["predict", str(tmp_path / "run"), str(tmp_path / "none.png")], "there is no image"),
        (["predict", str(tmp_path / "run"), str(tmp_path / "text.png")], "text.png is not a readable image"),
    ):
        assert cli.main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.errors
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data", "mnist"],
            "no data set 'mnist': there are digits, cifar10, cifar100, imagenet, or a folder with train/<class>/*",
        ),
        (
            ["--arch", "resnet"],
            "unknown arch 'resnet'; there are alexnet, alexnet_2012, caffenet, alexnet_cifar, alexnet_small",
        ),
        (["--arch", "alexnet"], "the train images are 32x32, and the network needs 256x256"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--limit", "-3"], "--limit must be at least 1, got -3"),
        (["--limit", "8"], "--batch-size 64 is larger than the 8 training images"),
        (["--seed", "-1"], "seed must lie in [0, 2^32), got -1"),
        (["--lr", "-0.1"], "--lr must be at least 0, got -0.1"),
        (["--lr", "1e30", "--limit", "64"], "in epoch 1: try a smaller --lr than 1e+30"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_1(options, message, capsys):
    assert cli.main(["train", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("alexnet: ")
    assert message in error
    assert error.count("\n") == 1


LACKING = {
    "DefaultCPUAllocator: can't allocate memory: you tried": "out of memory: DefaultCPUAllocator: can't",
    "DataLoader worker (pid 7) is killed by signal: Killed. ": "a process that decodes images has died, for want of",
}


@pytest.mark.errors
@pytest.mark.parametrize("words", LACKING)
def test_want_of_memory_is_a_line_and_our_own_mistakes_are_not_hidden(monkeypatch, capsys, words):
    def fails(*_):
        raise RuntimeError(words)

    monkeypatch.setattr(fit, "fit", fails)
    assert cli.main(["train"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"alexnet: {LACKING[words]}")
    assert error.count("\n") == 1
    monkeypatch.setattr(fit, "fit", lambda *_: (_ for _ in ()).throw(RuntimeError("a mistake of ours")))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main(["train"])


@pytest.mark.errors
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(capsys):
    assert cli.main(["train", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "alexnet: --device cuda: torch sees no CUDA device\n"


@pytest.mark.errors
@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["train", "--epochs", "x"], ["train", "--bogus", "1"], ["train", "--compile", "--no-compile"]],
)
def test_wrong_options_exit_with_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2


def test_python_m_is_the_same_program():
    run = subprocess.run([sys.executable, "-m", "alexnet_func", "--help"], capture_output=True, text=True, check=True)
    assert "usage: alexnet" in run.stdout


_VALUES = st.one_of(
    st.text(max_size=8),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["digits", "alexnet", "cpu", "none", "None", "/", "", "..", "true", "bf16", "torchvision", "cosine"]
    ),
)
FIELDS = [field for record in (Run, recipes.Recipe) for field in dataclasses.fields(record)]
_WORDS = st.sampled_from(
    [
        *(f"--{field.name.replace('_', '-')}" for field in FIELDS),
        "--recipe",
        "--debug",
        "--no-compile",
        "--ten-crop",
        "-h",
    ]
)


@pytest.mark.errors
@given(
    st.sampled_from(["train", "eval", "predict", "inspect", "fly"]), st.lists(st.one_of(_WORDS, _VALUES), max_size=8)
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fuzzed_command_lines_end_without_a_traceback(monkeypatch, command, words):
    # What the options say is read and checked in full; the training itself is left out, as are downloads.
    monkeypatch.setattr(fit, "fit", lambda run, recipe, console: af.train.Metrics(0.0, 1.0, 1.0, 1))
    monkeypatch.setattr(af.interop, "_download", lambda weights: af.init(random.key(0)))
    code = None
    try:
        code = cli.main([command, *words])
    except SystemExit as exit_:
        code = exit_.code
    assert code in (0, 1, 2)


@pytest.mark.slow
def test_the_readmes_first_command_reaches_98_percent_on_digits(capsys):
    assert cli.main(["train"]) == 0
    accuracy = re.search(r"test accuracy (\d+\.\d\d) % \(355 images\)\n$", capsys.readouterr().out)
    assert float(accuracy.group(1)) >= 98


@pytest.mark.slow
@pytest.mark.skipif("ALEXNET_DATA" not in os.environ, reason="ALEXNET_DATA names no folder of real images")
@pytest.mark.parametrize("network", [["--arch", "alexnet"], ["--recipe", "paper"]])
def test_real_photographs_are_trained_on_evaluated_and_named(tmp_path, capsys, network):
    with tarfile.open(Path(os.environ["ALEXNET_DATA"]) / "imagenet-sample.tar") as archive:
        archive.extractall(tmp_path / "all", filter="data")
    photographs = sorted((tmp_path / "all").rglob("*.JPEG"))
    assert len(photographs) == 100
    for path in photographs:
        for split in ("train", "val"):
            link = tmp_path / "data" / split / path.stem / path.name
            link.parent.mkdir(parents=True)
            link.symlink_to(path)
    run = str(tmp_path / "run")
    options = ["--data", str(tmp_path / "data"), "--device", "cpu"]
    assert cli.main(["train", *options, *network, "--batch-size", "50", "--epochs", "1", "--out", run]) == 0
    assert re.search(r"test accuracy +\d+\.\d\d % \(100 images\)\n$", capsys.readouterr().out)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["step"] == 2
    assert cli.main(["eval", run, *options, "--ten-crop"]) == 0
    assert re.search(r"top-1 +\d+\.\d\d%  top-5 +\d+\.\d\d%", capsys.readouterr().out)
    assert cli.main(["predict", run, *map(str, photographs[:2])]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12


@pytest.mark.slow
def test_twenty_kills_at_any_moment_change_nothing(tmp_path):
    words = ["--limit", "320", "--batch-size", "32", "--epochs", "80", "--device", "cpu"]
    command = [sys.executable, "-m", "alexnet_func", "train", *words]
    started = time.perf_counter()
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True)
    seconds = time.perf_counter() - started
    generator = np.random.default_rng(0)
    killed = [*command, "--out", str(tmp_path / "parts"), "--resume"]
    for _ in range(20):
        process = subprocess.Popen(killed)
        # From its first moment, imports included, to long enough for several epochs.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=generator.uniform(0, seconds / 10))
        process.kill()
        process.wait()
    survived = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert 0 < len(survived) < 80, "all kills are to fall within the run"
    subprocess.run(killed, check=True)
    first, second = (tmp_path / name / "checkpoint.safetensors" for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 81))
