"""What is asked of per-sample gradients, of a network with every layer of 2011 and 2012, against a loop."""

import functools

import pytest
import torch
from torch.func import grad

import alexnet_func as af
from alexnet_func import curvature, per_sample, sketches
from tests.conftest import OLD, images
from tests.test_factors import close, gram_of, looped, viewed
from tests.test_per_sample import ROUTES


@pytest.fixture(scope="module")
def params(key):
    return af.init(key, OLD, dtype=torch.float64)


@pytest.mark.parametrize("method", ROUTES)
def test_products_with_another_set_and_projections(params, key, method):
    one, other = images(OLD, 4, torch.float64), images(OLD, 3, torch.float64, seed=1)
    rows, columns = (per_sample.grads(params, b, arch=OLD, method="vmap") for b in (one, other))
    options = {"arch": OLD, "method": method, "chunk_size": 2}
    close(per_sample.layer_grams(params, one, other, **options), gram_of(rows, columns))
    viewed_, with_key = viewed(OLD, 3, 4), {**options, "key": key, "views": 4}
    each = looped(params, viewed_, key, OLD)
    close(per_sample.layer_grams(params, viewed_, **with_key), gram_of(each, each))
    ours = per_sample.project(params, one, key, 32, **options)
    torch.testing.assert_close(ours, sketches.of_tensors(key, 32, rows), rtol=1e-9, atol=1e-10)


def test_the_tangent_kernel_is_that_of_the_lifted_module(params):
    (x, _), (other, _) = images(OLD, 3, torch.float64), images(OLD, 2, torch.float64, seed=1)
    forward, lifted, buffers = af.interop.from_module(af.interop.to_module(params, OLD))
    for of in ("classes", "sum", "trace"):
        theirs = curvature.empirical_ntk(
            lifted, x, other, forward=lambda p, one: forward(p, buffers, one[None])[0], of=of
        )
        torch.testing.assert_close(curvature.empirical_ntk(params, x, other, arch=OLD, of=of), theirs)


def test_clipped_sums_can_be_differentiated(params):
    batch = images(OLD, 3, torch.float64)

    def total(p, method):
        summed, norms = per_sample.clipped_sum(p, batch, 0.5, arch=OLD, method=method)
        return norms.sin().sum() + sum(g.sin().sum() for g in summed.values())

    ours, theirs = (grad(functools.partial(total, method=method))(params) for method in ROUTES)
    for name, g in theirs.items():
        torch.testing.assert_close(ours[name], g, rtol=1e-8, atol=1e-11)
