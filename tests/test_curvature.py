import functools

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev

import alexnet_func as af
from alexnet_func import curvature, factors
from alexnet_func.arch import LRN, Arch, Conv, HeNormal, Linear, MaxPool, Normal, ReLU
from parity import criteria
from tests.conftest import TINY, images, tiny_loss

# Few enough parameters for a dense Hessian.
SMALL = Arch(
    name="small",
    image_size=7,
    in_channels=2,
    num_classes=3,
    features=(Conv(4, 3, padding=1, groups=2, weight=HeNormal()), ReLU(), LRN(3, 0.1, 0.75, 1.0, "sum"), MaxPool(3, 2)),
    classifier=(Linear(4, weight=HeNormal()), ReLU(), Linear(None, weight=Normal(1.0))),
)


@pytest.fixture(scope="module")
def params(key):
    return af.init(key, SMALL, dtype=torch.float64)


@pytest.fixture(scope="module")
def batch():
    return images(SMALL, 6, torch.float64)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors.values()])


def unflat(vector, like):
    pieces = vector.split([p.numel() for p in like.values()])
    return {name: piece.view_as(p) for piece, (name, p) in zip(pieces, like.items(), strict=True)}


def close(ours, theirs, rtol=1e-10):
    assert (ours - theirs).norm() <= rtol * theirs.norm()


@pytest.fixture(scope="module")
def dense(params, batch):
    """The Hessian of the loss, by autograd twice over one vector, in the module."""
    module = af.interop.to_module(params, SMALL)

    def loss(vector):
        logits = functional_call(module, unflat(vector, params), batch[0])
        return torch.nn.functional.cross_entropy(logits, batch[1])

    return torch.autograd.functional.hessian(loss, flat(params)).detach()


@pytest.fixture(scope="module")
def jacobian(params, batch):
    """Of the logits, [N, classes, parameters]."""
    by_name = jacrev(lambda p: af.forward(p, batch[0], arch=SMALL))(params)
    return torch.cat([j.flatten(2) for j in by_name.values()], -1)


@pytest.fixture(scope="module")
def v(params, key):
    return unflat(af.random.normal(key, (len(flat(params)),)).double(), params)


def loss_of(batch, arch=SMALL):
    return functools.partial(af.loss_fn, batch=batch, arch=arch)


def test_hvp_is_the_dense_hessian_times_v(params, batch, dense, v):
    close(flat(curvature.hvp(loss_of(batch), params, v)), dense @ flat(v))


def test_ggn_is_jacobian_hessian_jacobian(params, batch, jacobian, v):
    x, y = batch

    def loss(logits):
        return af.losses.cross_entropy(logits, y)

    logits = af.forward(params, x, arch=SMALL)
    outer = hessian(loss)(logits).reshape(logits.numel(), logits.numel())
    j = jacobian.flatten(0, 1)
    ours = curvature.ggn_vp(functools.partial(af.forward, x=x, arch=SMALL), loss, params, v)
    close(flat(ours), j.T @ (outer @ (j @ flat(v))))


@pytest.mark.parametrize("options", [{}, {"method": "vmap"}, {"chunk_size": 4}])
def test_fisher_diagonal_is_the_mean_square_of_the_examples_gradients(key, options):
    params, (x, y) = af.init(key, TINY, dtype=torch.float64), images(TINY, 5, torch.float64)
    keys = af.random.split(key, 5)
    each = [grad(tiny_loss)(params, (a, b), key=k) for a, b, k in zip(x, y, keys, strict=True)]
    expected = {name: torch.stack([g[name] for g in each]).square().mean(0) for name in params}
    ours = curvature.fisher_diagonal(params, (x, y), arch=TINY, key=key, **options)
    assert criteria.close(ours, expected).passed


@pytest.mark.parametrize("k", [1, 4])
def test_top_eigenvalues_are_the_dense_hessians(params, batch, dense, key, k):
    expected = torch.linalg.eigvalsh(dense).flip(-1)[:k]
    ours = curvature.top_eigenvalues(loss_of(batch), params, k, key=key, iterations=60)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    few = curvature.top_eigenvalues(loss_of(batch), params, 1, key=key, iterations=8)
    assert few <= expected[0] * (1 + 1e-10)


def test_products_go_through_a_squared_error(key):
    """Forward over reverse ends in torch's "ZeroTensors are immutable" there (pytorch#123996)."""
    x, y = torch.randn(6, 4).double(), torch.randn(6).double()
    params, v = (
        {"w": torch.randn(4).double(), "b": torch.randn(()).double()},
        {"w": torch.randn(4).double(), "b": torch.ones(()).double()},
    )

    def outputs(p):
        return torch.tanh(x @ p["w"] + p["b"])

    def error(outputs):
        return torch.nn.functional.mse_loss(outputs, y)

    def by_vector(vector):
        return error(outputs({"w": vector[:4], "b": vector[4]}))

    dense = torch.autograd.functional.hessian(by_vector, torch.cat([params["w"], params["b"][None]]))
    flat_v = torch.cat([v["w"], v["b"][None]])
    found = curvature.hvp(lambda p: error(outputs(p)), params, v)
    close(torch.cat([found["w"], found["b"][None]]), dense @ flat_v)
    jacobian = torch.autograd.functional.jacobian(
        lambda q: outputs({"w": q[:4], "b": q[4]}), torch.cat([params["w"], params["b"][None]])
    )
    product = curvature.ggn_vp(outputs, error, params, v)
    close(torch.cat([product["w"], product["b"][None]]), jacobian.T @ (2 / 6 * (jacobian @ flat_v)))
    top = curvature.top_eigenvalues(lambda p: error(outputs(p)), params, 2, key=key)
    close(top, torch.linalg.eigvalsh(dense).flip(-1)[:2])


def test_top_eigenvalues_of_a_matrix_with_few_distinct_ones(key):
    """Lanczos' vectors run out after three: it has to go on from new ones, and finds the multiplicities."""
    spectrum = torch.tensor([5.0, 5, 5, 2, 2, 0, 0, 0, -7]).double()
    q, _ = torch.linalg.qr(torch.randn(9, 9).double())
    matrix = q @ torch.diag(spectrum) @ q.T

    def loss(params):
        return params["w"] @ (matrix @ params["w"]) / 2

    params = {"w": torch.randn(9).double()}
    ours = curvature.top_eigenvalues(loss, params, 6, key=key, iterations=100)
    torch.testing.assert_close(ours, spectrum[:6], rtol=0, atol=1e-9)


@pytest.mark.parametrize("arch", [SMALL, TINY], ids=lambda arch: arch.name)
def test_ntk_by_captures_is_the_ntk_by_jacobians(key, arch):
    params = af.init(key, arch, dtype=torch.float64)
    x1, x2 = images(arch, 4, torch.float64)[0], images(arch, 3, torch.float64, seed=1)[0]

    def jacobian(x):
        by_name = jacrev(lambda p: af.forward(p, x, arch=arch))(params)
        return torch.cat([j.flatten(2) for j in by_name.values()], -1)

    expected = torch.einsum("nkp,mlp->nmkl", jacobian(x1), jacobian(x2))
    close(curvature.empirical_ntk(params, x1, x2, arch=arch), expected)
    symmetric = curvature.empirical_ntk(params, x1, arch=arch)
    close(symmetric, torch.einsum("nkp,mlp->nmkl", jacobian(x1), jacobian(x1)))
    alone = functools.partial(af.forward, arch=arch)
    for forward in (None, alone):
        ask = functools.partial(curvature.empirical_ntk, params, arch=arch, forward=forward)
        close(ask(x1, x2), expected)
        close(ask(x1, x2, of="trace"), torch.einsum("nmkk->nm", expected))
        close(ask(x1, x2, of="sum"), expected.sum((2, 3)))
        close(ask(x1, of="trace"), torch.einsum("nmkk->nm", symmetric))
        close(ask(x1, of="sum"), symmetric.sum((2, 3)))


def test_the_ntk_of_a_lifted_module_is_that_of_its_jacobians(key):
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Flatten())
    module.append(torch.nn.LazyLinear(3)).double()
    x = images(SMALL, 4, torch.float64)[0]
    module(x)
    lifted, params, buffers = af.interop.from_module(module.eval())
    by_name = jacrev(lambda p: lifted(p, buffers, x))(params)
    jacobian = torch.cat([j.flatten(2) for j in by_name.values()], -1)
    ours = curvature.empirical_ntk(params, x[:3], x, forward=lambda p, image: lifted(p, buffers, image[None])[0])
    close(ours, torch.einsum("nkp,mlp->nmkl", jacobian[:3], jacobian))


def test_a_convolutions_jacobians_are_few_at_a_time(key, monkeypatch):
    params, x = af.init(key, TINY, dtype=torch.float64), images(TINY, 3, torch.float64)[0]
    expected = curvature.empirical_ntk(params, x, arch=TINY)
    monkeypatch.setattr(factors, "_FORMED", 1000)
    monkeypatch.setattr(factors, "_FORMED_AGAIN", 500)
    close(curvature.empirical_ntk(params, x, arch=TINY), expected)


@pytest.mark.parametrize("options", [{}, {"method": "vmap"}, {"chunk_size": 5}])
def test_gradient_noise_scale_is_its_formula_and_its_error_the_jackknifes(key, options):
    params, (x, y) = af.init(key, TINY, dtype=torch.float64), images(TINY, 12, torch.float64)
    g = torch.stack([flat(grad(tiny_loss)(params, (a, b))) for a, b in zip(x, y, strict=True)]).numpy()

    def by_definition(g):
        n = len(g)
        covariance_trace = g.var(0, ddof=1).sum()
        # E|mean|^2 = |G|^2 + trace / n
        return covariance_trace, (g.mean(0) ** 2).sum() - covariance_trace / n

    trace, square = by_definition(g)
    without = [np.divide(*by_definition(np.delete(g, i, 0))) for i in range(len(g))]
    error = np.sqrt((len(g) - 1) / len(g) * ((without - np.mean(without)) ** 2).sum())
    ours = curvature.gradient_noise_scale(params, (x, y), arch=TINY, **options)
    for found, expected in zip(ours, (trace / square, error, trace, square), strict=True):
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_gradient_noise_scale_finds_that_of_a_known_distribution(key):
    """Gradients g_n = w - u_n with u normal: trace = d sigma^2, |G|^2 = |w - mean|^2."""
    d, n, sigma = 20, 4000, 3.0
    params = {"w": torch.full((d,), 2.0).double()}
    u = sigma * af.random.normal(key, (n, d)).double()

    def loss(params, u):
        return (params["w"] - u).square().sum() / 2

    ours = curvature.gradient_noise_scale(params, u, loss_fn=loss)
    expected = d * sigma**2 / (4 * d)
    assert abs(ours.scale - expected) < 4 * ours.standard_error
    assert ours.standard_error < 0.1 * expected


@pytest.mark.errors
def test_mistakes_are_named(params, batch, v, key):
    missing = {name: t for name, t in v.items() if name != "classifier.0.bias"}
    with pytest.raises(ValueError, match=r"v: missing classifier\.0\.bias"):
        curvature.hvp(loss_of(batch), params, missing)
    with pytest.raises(ValueError, match=r"v: missing classifier\.0\.bias"):
        curvature.ggn_vp(functools.partial(af.forward, x=batch[0], arch=SMALL), torch.sum, params, missing)
    with pytest.raises(ValueError, match=r"k must lie in 1..32"):
        curvature.top_eigenvalues(loss_of(batch), params, 33, key=key)
    with pytest.raises(ValueError, match="at least three examples, got 2"):
        curvature.gradient_noise_scale(params, (batch[0][:2], batch[1][:2]), arch=SMALL)
    with pytest.raises(ValueError, match="at least one example"):
        curvature.fisher_diagonal(params, (batch[0][:0], batch[1][:0]), arch=SMALL)
    with pytest.raises(ValueError, match=r"x must be a batch \[N, C, H, W\], got \[2, 7, 7\]"):
        curvature.empirical_ntk(params, batch[0][0], arch=SMALL)
    with pytest.raises(ValueError, match='of must be "classes", "trace" or "sum", got \'all\''):
        curvature.empirical_ntk(params, batch[0], arch=SMALL, of="all")
