"""What is asked of per-sample gradients, of a network with every layer of 2011 and 2012, against a loop."""

import functools

import pytest
import torch
from torch.func import grad

import alexnet_func as af
from alexnet_func import curvature, per_sample, sketches
from tests.conftest import OLD, images
from tests.test_factors import close, gram_of, looped, viewed
from tests.test_per_sample import ROUTES, norms_of


@pytest.fixture(scope="module")
def params(key):
    return af.init(key, OLD, dtype=torch.float64)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("method", ROUTES)
def test_gradients_norms_and_sums_are_those_of_a_loop(params, key, method, n, views):
    batch = viewed(OLD, n, views)
    each = looped(params, batch, key, OLD)
    norms = norms_of(each) if n else torch.zeros(0).double()
    options = {"arch": OLD, "key": key, "method": method, "views": views, "chunk_size": 3}
    close(per_sample.grads(params, batch, **options), each)
    close({"": per_sample.norms(params, batch, **options)}, {"": norms})
    close(per_sample.layer_norms(params, batch, **options), {n: g.flatten(1).norm(dim=1) for n, g in each.items()})
    along = sum((g * params[name]).flatten(1).sum(1) for name, g in each.items())
    close({"": per_sample.dots(params, batch, params, **options)}, {"": along})
    scale = (0.5 / norms).clamp(max=1)
    clipped, found = per_sample.clipped_sum(params, batch, 0.5, **options)
    close({"norms": found, **clipped}, {"norms": norms, **{k: torch.tensordot(scale, g, 1) for k, g in each.items()}})
    close(per_sample.layer_grams(params, batch, **options), gram_of(each, each))
    if n:
        diagonal = curvature.fisher_diagonal(params, batch, **options)
        close(diagonal, {name: g.square().mean(0) for name, g in each.items()})


@pytest.mark.parametrize("method", ROUTES)
def test_products_with_another_set_and_projections(params, key, method):
    one, other = images(OLD, 4, torch.float64), images(OLD, 3, torch.float64, seed=1)
    rows, columns = (per_sample.grads(params, b, arch=OLD, method="vmap") for b in (one, other))
    options = {"arch": OLD, "method": method, "chunk_size": 2}
    close(per_sample.layer_grams(params, one, other, **options), gram_of(rows, columns))
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
