"""oneDNN's matrix products in compiled graphs, against NumPy in float64 and the graph without the exchange."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap

import alexnet_func as af
from alexnet_func import _onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")

SIDES = st.integers(1, 40)


def drawn(shape, transposed, seed):
    values = torch.randn(shape[::-1] if transposed else shape, generator=torch.Generator().manual_seed(seed))
    return values.t() if transposed else values


@given(SIDES, SIDES, SIDES, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_product_of_any_layout(m, k, n, a_transposed, b_transposed, biased, seed):
    a, b = drawn((m, k), a_transposed, seed), drawn((k, n), b_transposed, seed + 1)
    bias = drawn((1, n), False, seed + 2)[0] if biased else None
    found = torch.ops.alexnet_func.onednn_mm(a, b, bias)
    expected = a.double().numpy() @ b.double().numpy() + (0 if bias is None else bias.double().numpy())
    bound = np.abs(a.double().numpy()) @ np.abs(b.double().numpy()) + (1 if bias is None else np.abs(bias.numpy()) + 1)
    assert (np.abs(found.numpy() - expected) <= 2e-7 * k * bound).all()
    assert found.is_contiguous()


def compiled_with(function, *args):
    """The compiled function's result, and how many products oneDNN was called for."""
    compiled = torch.compile(function, fullgraph=True, dynamic=False, options=_onednn.options())
    compiled(*args)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        result = compiled(*args)
    counts = {event.key: event.count for event in profiled.key_averages()}
    return result, counts.get("alexnet_func::onednn_mm", 0)


def two_layers(params, x):
    hidden = torch.nn.functional.linear(x, params["first"], params["bias"]).relu()
    return (hidden @ params["second"].t()).square().sum()


def small_params(dtype=torch.float32):
    key = af.random.key(0)
    shapes = {"first": (16, 24), "bias": (16,), "second": (12, 16)}
    return {
        name: af.random.normal(af.random.fold_in(key, i), shape).to(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("rows", "dtype", "expected"),
    [
        (32, torch.float32, {5}),  # two products forward, two for weights, one for the hidden layer's gradient
        (1, torch.float32, {2, 3, 4}),  # not the latter: one row times a matrix as it lies; outer products may be fused
        (32, torch.float64, {0}),
        (32, torch.bfloat16, {0}),
    ],
)
def test_gradients_are_equal_to_rounding_and_products_are_exchanged(rows, dtype, expected):
    params, x = small_params(dtype), af.random.normal(af.random.key(1), (rows, 24)).to(dtype)
    found, count = compiled_with(grad(two_layers), params, x)
    assert count in expected
    reference = grad(two_layers)({name: p.double() for name, p in params.items()}, x.double())
    for name, g in found.items():
        error = (g.double() - reference[name]).norm() / reference[name].norm()
        assert error < (0.05 if dtype == torch.bfloat16 else 1e-5), name


@pytest.mark.compiled
def test_transforms_are_through_before_the_exchange():
    params, x = small_params(), af.random.normal(af.random.key(1), (4, 9, 24))
    found, count = compiled_with(vmap(grad(two_layers), in_dims=(None, 0)), params, x)
    assert count > 0
    for i in range(4):
        for name, g in grad(two_layers)(params, x[i]).items():
            torch.testing.assert_close(found[name][i], g, rtol=1e-4, atol=1e-3)


@pytest.mark.compiled
def test_a_bias_of_one_number_is_left_to_torch():
    x, second = (af.random.normal(af.random.key(i), (32, 16)) for i in range(2))
    bias = torch.tensor([3.0])
    found, count = compiled_with(lambda b, x, w: torch.addmm(b, x, w.t()), bias, x, second)
    assert count == 0
    torch.testing.assert_close(found.double(), 3 + x.double() @ second.double().t(), rtol=1e-5, atol=1e-5)


def test_compiled_steps_use_it_where_it_pays(monkeypatch):
    for pays in (True, False):
        monkeypatch.setattr(_onednn, "pays", lambda pays=pays: pays)
        assert ("post_grad_custom_post_pass" in af.train.compile_options()) == pays


def test_torch_without_onednn_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not _onednn.pays()
    with pytest.raises(RuntimeError, match="without oneDNN"):
        _onednn.options.__wrapped__()
