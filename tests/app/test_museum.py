"""The recipes of 2011, 2012 and Caffe: rates, decays, mean image, shared crops and colour noise, each by hand."""

import fnmatch
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import alexnet_func as af
from alexnet_func import checkpoint
from alexnet_func.app import cli, loop, models, optimizers, recipes
from alexnet_func.data import augment, preprocess
from alexnet_func.data.preprocess import Moments

STEPS = 2  # an epoch


def rates_145(epoch):
    """`layer-params-145.cfg`: of conv1's weights, of its biases, of other weights; other biases have 0.02."""
    others = 1e-2 if epoch < 25 else 1e-3 if epoch < 51 else 1e-4 if epoch < 79 else 1e-5
    conv1 = others if epoch < 67 else 1e-5 if epoch < 72 else 0.0
    return conv1, 0.02 if epoch < 72 else 0.0, others


# By recipe: a parameter and its (rate, decay) at each epoch.
def table_145(name, epoch):
    conv1, conv1_bias, others = rates_145(epoch)
    if name.endswith("bias"):
        return (conv1_bias if name == "features.1.bias" else 0.02), 0.0
    return (conv1 if name == "features.1.weight" else others), 5e-4


def table_caffe(name, epoch):
    rate = 0.01 * 0.1 ** (epoch // 20)
    return (2 * rate, 0.0) if name.endswith("bias") else (rate, 5e-4)


def table_cuda_convnet(first, total, decays):
    def table(name, epoch):
        if name.endswith("bias"):
            return 0.002, 0.0
        rate = 1e-3 if epoch < first else 1e-4 if total == 10 or epoch < first + 10 else 1e-5
        return rate, next(decay for layers, decay in decays.items() if fnmatch.fnmatchcase(name, layers))

    return table


TABLES = {
    "145": table_145,
    "caffe": table_caffe,
    "cuda_convnet_26": table_cuda_convnet(8, 10, {"features.*": 0.004, "classifier.*": 0.03}),
    "cuda_convnet_19": table_cuda_convnet(120, 140, {"features.*": 0.004, "classifier.*": 3.0}),
    "cuda_convnet_18": table_cuda_convnet(120, 140, {"features.*": 0.004, "classifier.*": 1.0}),
    "cuda_convnet_13": table_cuda_convnet(
        120, 140, {"features.0.*": 0, "features.3.*": 0, "features.*": 0.004, "classifier.*": 0.004}
    ),
    "cuda_convnet_11": table_cuda_convnet(
        430, 450, {"features.0.*": 0, "features.4.*": 0, "features.*": 0.004, "classifier.*": 0.01}
    ),
}


def test_patterns_are_read_before_the_update(monkeypatch):
    """torch.compile follows an update: on Python 3.12 it cannot follow `fnmatch`, as an H100's machine told."""
    optimizer = optimizers.optimizer(recipes.BY_NAME["145"], af.arch.ALEXNET_145, STEPS)
    params = {
        "features.1.weight": torch.ones(2),
        "features.1.bias": torch.ones(2),
        "classifier.1.weight": torch.ones(2),
    }
    state = optimizer.init(params)
    for name in ("fnmatch", "fnmatchcase", "filter", "translate"):
        monkeypatch.setattr(fnmatch, name, None)
    new, _ = optimizer.update(params, state, params, torch.tensor(0))
    assert {name: round(1 - float(p[0]), 4) for name, p in new.items()} == {
        "features.1.weight": 0.01,
        "features.1.bias": 0.02,
        "classifier.1.weight": 0.01,
    }


@pytest.mark.parametrize("name", TABLES)
def test_each_parameter_is_trained_at_the_rate_and_decay_of_its_file(name):
    recipe = recipes.by_data("cifar10", name)
    network = af.arch.get(recipe.arch)
    shapes = af.arch.param_shapes(network)
    generator = torch.Generator().manual_seed(0)
    params = {n: torch.randn(3, generator=generator, dtype=torch.float64) for n in shapes}
    optimizer = optimizers.optimizer(recipe, network, STEPS)
    state, expected = optimizer.init(params), {n: (p.numpy().copy(), np.zeros(3)) for n, p in params.items()}
    for step in range(STEPS * recipe.epochs):
        grads = {n: 0.1 * torch.cos(p + step) for n, p in params.items()}
        params, state = optimizer.update(grads, state, params, torch.tensor(step))
        for n, (w, v) in expected.items():
            rate, decay = TABLES[name](n, step // STEPS)
            v = 0.9 * v - rate * 0.1 * np.cos(w + step) - rate * decay * w
            expected[n] = (w + v, v)
    for n, p in params.items():
        np.testing.assert_allclose(p.numpy(), expected[n][0], rtol=1e-9, atol=1e-12, err_msg=n)


def test_colour_noise_ends_where_conv1_is_slowed():
    assert optimizers.noise_until(recipes.SOURCE_145, 1000) == 67_000
    assert optimizers.noise_until(recipes.PAPER, 1000) is None


def pixels(n, side=32):
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_a_mean_image_is_the_mean_of_the_middles_and_survives_a_configuration():
    images = pixels(300)
    middles = images.numpy()[:, :, 4:28, 4:28].astype(np.float64) / 255
    moments = preprocess.statistics(images, "mean-image", 24)
    np.testing.assert_allclose(moments.image.numpy(), middles.mean(0), rtol=1e-6)
    again = preprocess.decoded_image(json.loads(json.dumps(preprocess.encoded_image(moments.image))), (3, 24, 24))
    assert torch.equal(again, moments.image)
    x = preprocess.middle(images[:5], af.arch.CUDA_CONVNET_13, moments)
    np.testing.assert_allclose(x.numpy(), 255 * (middles[:5] - middles.mean(0)), rtol=1e-4, atol=1e-4)


def test_the_source_crops_32_images_alike_and_adds_colours_as_its_code_does(key):
    one = pixels(1)
    images, index = one.expand(70, 3, 32, 32), torch.arange(70)
    moments = preprocess.statistics(pixels(40), "mean-image", 24)
    components = augment.rgb_components(pixels(40))
    prepare = preprocess.preparation("source", 24, moments, components, noise_until=5)
    late = prepare(key, index, images, torch.tensor(5))
    groups = [late[0:32], late[32:64], late[64:70]]
    for group in groups:
        assert torch.equal(group, group[:1].expand_as(group))
    assert not torch.equal(groups[0][0], groups[1][0])
    views = {v.numpy().tobytes() for v in (late[0], late[32], late[64])}
    crops = [one[0, :, t : t + 24, c : c + 24] for t in range(9) for c in range(9)]
    possible = {
        preprocess.Moments.normalized(moments, augment.to_float(view)).numpy().tobytes()
        for crop in crops
        for view in (crop, crop.flip(-1))
    }
    assert views <= possible
    # Noise: (x + 0.1 * colour) / 1.1 on 0..255, each image its own colour, along the components times deviations.
    early = prepare(key, index, images, torch.tensor(4))
    assert torch.equal(early, prepare(key, index, images))
    colours = (early * 1.1 - late).double()
    flat = colours.flatten(2)
    assert (flat - flat.mean(2, keepdim=True)).abs().max() < 1e-3
    lengths, covariance = (
        components.double().norm(dim=0),
        np.cov(pixels(40).numpy().transpose(1, 0, 2, 3).reshape(3, -1)),
    )
    amounts = torch.linalg.solve(components.double() / lengths, flat.mean(2).T) / (255 * lengths.sqrt()[:, None])
    np.testing.assert_allclose(255 * lengths.sqrt(), np.sqrt(np.linalg.eigvalsh(covariance)), rtol=1e-4)
    drawn = [af.random.normal(af.random.split(af.random.fold_in(key, i), 3)[2], (3,)) for i in range(70)]
    np.testing.assert_allclose(amounts.T, 0.1 * torch.stack(drawn), rtol=1e-2, atol=1e-3)


def test_nets_of_24_pixels_are_trained_on_crops_of_32():
    assert [preprocess.stored_side(arch) for arch in (af.arch.CUDA_CONVNET_11, af.arch.CUDA_CONVNET_18)] == [32, 32]


@pytest.mark.usefixtures("few_digits")
def test_a_run_with_a_mean_image_is_evaluated_with_it(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "--recipe", "cuda_convnet_26", "--limit", "64", "--epochs", "1", "--batch-size", "32"]
    assert cli.main([*words, "--out", str(out), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert cli.main(["eval", str(out), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == told.splitlines()[-1]
    model = models.load_model(str(out), torch.device("cpu"))
    assert model.moments.image is not None
    assert model.moments.std == (1 / 255,) * 3
    assert cli.main(["eval", str(out), "--device", "cpu", "--ten-crop"]) == 0
    assert cli.main(["inspect", str(out), "--device", "cpu", "--limit", "32"]) == 0


@pytest.mark.errors
@pytest.mark.usefixtures("few_digits")
def test_a_mean_image_that_is_none_is_told(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "--recipe", "cuda_convnet_26", "--limit", "64", "--epochs", "1", "--batch-size", "32"]
    assert cli.main([*words, "--out", str(out), "--device", "cpu"]) == 0
    path = out / "checkpoint.safetensors"
    state, config = checkpoint.load(path)
    for bad, told in (("%", "base64"), (3, "base64"), ("AAAA", "base64"), ("AAAAAA==", r"[3, 32, 32] finite values")):
        checkpoint.save(path, state, {**config, "run": {**config["run"], "mean_image": bad}})
        capsys.readouterr()
        assert cli.main(["eval", str(out), "--device", "cpu"]) == 1
        assert "mean_image must be" in (error := capsys.readouterr().err)
        assert told in error


@pytest.mark.errors
def test_what_a_recipe_of_groups_does_not_go_with_is_told(capsys):
    for words, told in (
        (["--recipe", "145", "--freeze", "features.*"], "--freeze does not go with a recipe that trains groups"),
        (["--recipe", "145", "--optimizer", "adamw"], "the paper's recipe is one of SGD"),
        (["--recipe", "145", "--dp-epsilon", "3"], "does not go with the paper's colour noise"),
        (["--recipe", "cuda_convnet_18", "--dp-epsilon", "3"], "does not go with the mean image"),
    ):
        assert cli.main(["train", *words, "--device", "cpu"]) in (1, 2)
        assert told in capsys.readouterr().err.replace("\n", " ").replace("│", " ")


def test_runs_without_them_are_recorded_as_before(tmp_path, photographs):
    out = tmp_path / "run"
    words = ["train", "--data", str(photographs), "--arch", "alexnet_cifar", "--batch-size", "16", "--epochs", "1"]
    assert cli.main([*words, "--out", str(out), "--device", "cpu"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert [config[name] for name in ("normalization", "groups", "noise_share")] == [None] * 3
    assert "mean_image" not in config
    assert Moments(tuple(config["mean"]), tuple(config["std"])).image is None


@pytest.fixture
def hundred(tmp_path):
    """The photographs of 100 classes, each class its own to train on and, in a link, to test on."""
    with tarfile.open(Path(os.environ["ALEXNET_DATA"]) / "imagenet-sample.tar") as archive:
        archive.extractall(tmp_path / "flat", filter="data")
    for file in (tmp_path / "flat").rglob("*.JPEG"):
        folder = tmp_path / "photographs" / "train" / file.name.partition("_")[0]
        folder.mkdir(parents=True)
        file.rename(folder / file.name)
    (tmp_path / "photographs" / "test").symlink_to(tmp_path / "photographs" / "train")
    return tmp_path / "photographs"


@pytest.mark.slow
@pytest.mark.skipif("ALEXNET_DATA" not in os.environ, reason="ALEXNET_DATA names no folder of real images")
def test_an_epoch_of_net_145_that_is_killed_goes_on_to_the_same_bits(tmp_path, hundred, monkeypatch):
    words = [
        "train",
        "--recipe",
        "145",
        "--data",
        str(hundred),
        "--epochs",
        "1",
        "--batch-size",
        "20",
        "--device",
        "cpu",
    ]
    assert cli.main([*words, "--out", str(tmp_path / "whole")]) == 0
    run_epoch, halted = loop.run_epoch, []

    def killed(job, start, steps, fetched, record, advance, asked):
        if not halted:  # as by SIGKILL after the third of five steps, of which the second is saved
            halted.append(run_epoch(job, start, 2, fetched, record, advance, asked))
            record.save(halted[0])
            job.step(halted[0].state, (job.data_key, *next(iter(fetched)), job.images.labels[:20]))
            raise KeyboardInterrupt
        return run_epoch(job, start, steps, fetched, record, advance, asked)

    monkeypatch.setattr(loop, "run_epoch", killed)
    assert cli.main([*words, "--out", str(tmp_path / "parts")]) == 130
    assert cli.main([*words, "--out", str(tmp_path / "parts"), "--resume"]) == 0
    whole, parts = (checkpoint.load(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "parts"))
    assert whole.step == parts.step == 5
    for one, other in zip(pytree.tree_leaves(whole), pytree.tree_leaves(parts), strict=True):
        assert torch.equal(one, other)
