"""What recipes say is what is trained: which parameters by which optimiser, and on which loss."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import alexnet_func as af
from alexnet_func import checkpoint, losses
from alexnet_func.app import cli, optimizers, recipes
from alexnet_func.arch import ALEXNET_CIFAR, ALEXNET_SMALL
from alexnet_func.data import datasets, preprocess
from parity.references import MODULES


@pytest.mark.parametrize("network", [ALEXNET_CIFAR, ALEXNET_SMALL], ids=lambda arch: arch.name)
def test_muon_trains_all_weights_but_the_last(network):
    shapes = af.arch.param_shapes(network)
    state = optimizers.optimizer(recipes.FAST, network, 100).init({n: torch.zeros(s) for n, s in shapes.items()})
    last = [name for name in shapes if name.startswith("classifier")][-2]
    assert last.endswith(".weight")
    assert set(state["velocity"]) == {name for name in shapes if name.endswith(".weight")} - {last}
    assert set(state["mu"]) == set(shapes) - set(state["velocity"])


def test_the_recipes_train_one_network_for_longer_and_longer():
    assert recipes.BY_NAME["fast"].epochs < recipes.by_data("cifar10").epochs < recipes.BY_NAME["best"].epochs
    assert {r.arch for r in (recipes.FAST, recipes.CIFAR, recipes.BEST)} == {"alexnet_small"}


def chosen(*words):
    return vars(cli._parsed(["train", *words]).recipe)


def test_another_optimiser_comes_with_what_suits_it():
    digits = recipes.choose("digits")
    assert chosen() == vars(digits)
    by_sgd = replace(digits, optimizer="sgd", lr=0.02, momentum=0.9, weight_decay=5e-4, schedule="cosine")
    assert chosen("--optimizer=sgd", "--lr", "0.5") == vars(replace(by_sgd, lr=0.5))
    assert chosen("--parallel", "hybrid") == vars(by_sgd)
    private = recipes.choose("cifar10", dp_epsilon=3.0)
    assert (private.optimizer, private.label_smoothing) == ("sgd", 0.0)
    assert chosen("--data", "cifar10", "--dp-epsilon", "3") == vars(private)
    by_adamw = recipes.choose("cifar10", optimizer="adamw")
    assert (by_adamw.lr, by_adamw.label_smoothing) == (1e-3, 0.2)
    assert chosen("--data", "cifar10", "--optimizer", "adamw") == vars(by_adamw)
    assert chosen("--recipe", "fast", "--optimizer", "sgd") == vars(replace(recipes.FAST, optimizer="sgd"))


def test_bfloat16_comes_to_about_the_same_loss(tmp_path):
    losses = []
    for precision in ("float32", "bf16"):
        out = tmp_path / precision
        words = ["train", "--recipe", "fast", "--limit", "64", "--batch-size", "16", "--epochs", "1", "--lr", "0.01"]
        assert cli.main([*words, "--device", "cpu", "--precision", precision, "--out", str(out)]) == 0
        losses.append(json.loads((out / "metrics.jsonl").read_text())["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


@pytest.mark.parametrize("smoothing", ["0", "0.3"])
def test_a_runs_loss_is_that_of_smoothed_labels(tmp_path, smoothing):
    """The first loss of a run, whose parameters do not move, against torch's on the module."""
    words = ["train", "--arch", "alexnet_small", "--limit", "40", "--batch-size", "40", "--epochs", "1", "--lr", "0"]
    words += ["--augmentation", "none", "--weight-decay", "0", "--label-smoothing", smoothing]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    module = MODULES["alexnet_small"]()
    module.load_state_dict(checkpoint.load(tmp_path / "run" / "checkpoint.safetensors")[0].params)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["label_smoothing"] == (float(smoothing) or None)
    images = preprocess.limited(datasets.load("digits").train, 40)
    moments = preprocess.Moments(tuple(config["mean"]), tuple(config["std"]))
    x = preprocess.middle(images.images, ALEXNET_SMALL, moments)
    expected = nn.functional.cross_entropy(module(x), images.labels, label_smoothing=float(smoothing))
    told = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert told["train_loss"] == pytest.approx(expected.item(), rel=1e-5)
    plain = losses.cross_entropy(module(x), images.labels)
    assert (abs(told["train_loss"] - plain.item()) > 1e-4) == (smoothing != "0")
