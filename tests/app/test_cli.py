import re
import subprocess
import sys

import pytest
import torch

from alexnet_func import random
from alexnet_func.app import cli, fit
from alexnet_func.data import datasets


def test_a_short_run_reports_every_epoch_and_ends_with_the_test_accuracy(capsys):
    assert cli.main(["train", "--limit", "64", "--epochs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("alexnet_cifar on digits: 64 training and 355 test images, on ")
    epoch = r"epoch +(\d)/2  train loss \d+\.\d{4}  test loss \d+\.\d{4}  test accuracy +\d+\.\d\d%  [\d,]+ images/s"
    assert [re.fullmatch(epoch, line).group(1) for line in lines[1:3]] == ["1", "2"]
    assert re.fullmatch(r"test accuracy \d+\.\d\d % \(355 images\)", lines[-1])


def test_the_same_seed_gives_the_same_run_and_another_does_not(capsys):
    def run(seed):
        cli.main(["train", "--limit", "32", "--epochs", "1", "--seed", str(seed), "--device", "cpu"])
        return re.search(r"train loss (\S+)  test loss (\S+)", capsys.readouterr().out).groups()

    first = run(0)
    assert run(0) == first
    assert run(1) != first


def test_an_images_augmentation_depends_on_key_and_index_alone():
    images, recipe = datasets.load("digits").train.images, fit.RECIPES["digits"]
    key = random.key(3)
    batch = fit.augmented(key, torch.tensor([5, 900, 17]), images, recipe)
    assert torch.equal(fit.augmented(key, torch.tensor([17]), images, recipe)[0], batch[2])
    assert not torch.equal(fit.augmented(random.key(4), torch.tensor([17]), images, recipe)[0], batch[2])


@pytest.mark.errors
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "mnist"], "unknown data set 'mnist'; there is digits"),
        (["--arch", "resnet"], "unknown arch 'resnet'; there are alexnet, alexnet_2012, caffenet, alexnet_cifar"),
        (["--arch", "alexnet"], "images of 32x32 are too small for alexnet: the smallest square is 63"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--limit", "-3"], "--limit must be at least 1, got -3"),
        (["--limit", "8"], "--batch-size 32 is larger than the 8 training images"),
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


@pytest.mark.errors
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(capsys):
    assert cli.main(["train", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "alexnet: --device cuda: torch sees no CUDA device\n"


@pytest.mark.errors
@pytest.mark.parametrize("arguments", [[], ["fly"], ["train", "--epochs", "x"], ["train", "--bogus", "1"]])
def test_wrong_options_exit_with_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2


def test_python_m_is_the_same_program():
    run = subprocess.run([sys.executable, "-m", "alexnet_func", "--help"], capture_output=True, text=True, check=True)
    assert "usage: alexnet" in run.stdout


@pytest.mark.slow
def test_the_readmes_first_command_reaches_98_percent_on_digits(capsys):
    assert cli.main(["train"]) == 0
    accuracy = re.search(r"test accuracy (\d+\.\d\d) % \(355 images\)\n$", capsys.readouterr().out)
    assert float(accuracy.group(1)) >= 98
