"""The programs of `examples/` do what they say, and the libraries they use compute the matrices that ours are."""

import importlib.util
from pathlib import Path

import pytest
import torch

import alexnet_func as af
from alexnet_func.arch import Arch, Linear
from tests.conftest import TINY, images

EXAMPLES = Path(__file__).parent.parent / "examples"
CURVLINOPS = "curvlinops is not installed: pip install -e '.[peers]'"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((EXAMPLES / "archs").glob("*.json")), ids=lambda path: path.stem)
def test_archs_of_the_examples_are_read_and_compute(path, key):
    arch = Arch.from_json(path.read_text())
    assert af.forward(af.init(key, arch), torch.zeros(2, 3, 32, 32), arch=arch).shape == (2, 10)


@pytest.fixture
def curvlinops():
    return pytest.importorskip("curvlinops", reason=CURVLINOPS)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_products_are_those_of_curvlinops(curvlinops, key, kind):
    params = af.init(key, TINY, dtype=torch.float64)
    x, y = images(TINY, 5, torch.float64)
    module = af.interop.to_module(params, TINY).eval()
    operator = {"ggn": curvlinops.GGNLinearOperator, "hessian": curvlinops.HessianLinearOperator}[kind]
    theirs = operator(module, torch.nn.CrossEntropyLoss(), list(module.parameters()), [(x, y)])
    v = {name: torch.randn_like(p) for name, p in params.items()}
    if kind == "ggn":
        ours = af.curvature.ggn_vp(
            lambda p: af.forward(p, x, arch=TINY), lambda logits: af.losses.cross_entropy(logits, y), params, v
        )
    else:
        ours = af.curvature.hvp(lambda p: af.loss_fn(p, (x, y), arch=TINY), params, v)
    for name, product in zip(params, theirs @ list(v.values()), strict=True):
        torch.testing.assert_close(ours[name], product, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_kfac_of_one_image_and_one_linear_layer_is_the_gauss_newton_matrix(curvlinops, key):
    """There the Kronecker product is exact, for the weight and for the bias each."""
    arch = Arch("linear", image_size=3, num_classes=4, features=(), classifier=(Linear(None),))
    params = af.init(key, arch, dtype=torch.float64)
    x, y = images(arch, 1, torch.float64)
    module = af.interop.to_module(params, arch)
    kfac = curvlinops.KFACLinearOperator(
        module, torch.nn.CrossEntropyLoss(), list(module.parameters()), [(x, y)], fisher_type="type-2"
    )
    for name, p in params.items():
        v = {n: torch.randn_like(q) if n == name else torch.zeros_like(q) for n, q in params.items()}
        ours = af.curvature.ggn_vp(
            lambda p: af.forward(p, x, arch=arch), lambda logits: af.losses.cross_entropy(logits, y), params, v
        )
        theirs = dict(zip(params, kfac @ list(v.values()), strict=True))
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12)
        assert p.shape == theirs[name].shape


@pytest.mark.filterwarnings("ignore")  # theirs
def test_the_example_of_curvature_finds_a_positive_spectrum_and_a_step_that_descends(curvlinops, capsys):
    largest, (before, *after) = example("curvature").main()
    assert largest > 0
    assert max(after) < 0.95 * before
    assert "largest eigenvalue of the GGN" in capsys.readouterr().out


def test_the_example_of_private_training_spends_what_it_may(capsys):
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: pip install -e '.[privacy]'")
    _, spent = example("dp_sgd").main(epsilon=0.1, steps=10)
    assert 0.0999 < spent <= 0.1
    assert "epsilon 0.10 and delta 1e-04" in capsys.readouterr().out


def test_the_example_of_maml_lowers_the_loss_after_adaption(capsys):
    before, after = example("maml").main(meta_steps=10, tests=10)
    assert after < 0.95 * before
    assert "after 10 meta steps" in capsys.readouterr().out


def test_the_example_of_a_learned_rate_finds_a_better_one(capsys):
    (start, before), (learned, after) = example("learned_rate").main(updates=8, batch_size=16)
    assert learned > 2 * start
    assert after < before - 0.01
    assert f"rate {start:.4f} gives a loss of {before:.2f}" in capsys.readouterr().out


def test_the_example_of_a_sweep_finds_the_rate_that_trains(capsys):
    accuracies = example("ensemble_sweep").main(rates=(1e-4, 0.01, 10.0), epochs=1)
    assert max(accuracies, key=accuracies.get) == 0.01
    assert accuracies[0.01] > 0.7
    assert f"rate 0.01: {accuracies[0.01]:.1%}" in capsys.readouterr().out


def test_the_example_of_influence_finds_images_that_are_missed(capsys):
    """More than others of their digits are, and the prediction was right before."""
    whole, without, without_others = example("influence").main(count=150, steps=100, dim=64)
    assert without > whole + 1
    assert without > without_others + 1
    assert f"without these images {without:.2f}" in capsys.readouterr().out


def test_the_example_of_a_tangent_kernel_gives_a_kernel_that_tells_digits_apart(capsys):
    kernel, by_kernel, _ = example("ntk").main(count=60, tests=50, steps=2)
    torch.testing.assert_close(kernel, kernel.T)
    eigenvalues = torch.linalg.eigvalsh(kernel)
    assert eigenvalues[0] > -1e-6 * eigenvalues[-1]
    assert by_kernel > 0.6
    assert f"right by kernel regression {by_kernel:.1%}" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_example_is_short_and_says_how_to_run_it(path):
    assert len(path.read_text().splitlines()) <= 80
    assert f"python examples/{path.name}" in path.read_text().split('"""')[1]
