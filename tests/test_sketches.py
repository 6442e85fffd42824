"""Projections of gradients: by the definition, entry by entry, and what they keep."""

import math

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

import alexnet_func as af
from alexnet_func import per_sample, sketches
from tests.conftest import TINY, images
from tests.test_per_sample import ROUTES, close


@pytest.fixture(scope="module")
def params(key):
    return af.init(key, TINY, dtype=torch.float64)


@pytest.fixture(scope="module")
def batch():
    return images(TINY, 4, torch.float64)


def by_entry(key, grads, dim):
    """The oracle: entry (i, j) of a parameter as a matrix goes to bucket h(i) + h'(j), with the sign s(i) s'(j)."""
    result = np.zeros((len(next(iter(grads.values()))), dim))
    for place, name in enumerate(sorted(grads)):
        g = grads[name].numpy()
        matrix = g.reshape(len(g), 1, -1) if g.ndim == 2 else g.reshape(len(g), g.shape[1], -1)
        hashed = sketches.hashes(af.random.fold_in(key, place), *matrix.shape[1:], dim)
        blocks = len(hashed.shifts)
        for i in range(matrix.shape[1]):
            for j in range(matrix.shape[2]):
                column = (j % dim + (int(hashed.shifts[j // dim]) if blocks > 1 else 0)) % dim
                sign = float(hashed.row_signs[i] * hashed.column_signs[j])
                result[:, (int(hashed.rows[i]) + column) % dim] += sign * matrix[:, i, j]
    return torch.from_numpy(result)


@pytest.mark.parametrize("dim", [1, 7, 64, 512])
@pytest.mark.parametrize("method", ROUTES)
def test_every_entry_goes_to_its_bucket_with_its_sign(params, batch, key, method, dim):
    grads = per_sample.grads(params, batch, arch=TINY, method="vmap")
    ours = per_sample.project(params, batch, key, dim, arch=TINY, method=method, chunk_size=3)
    torch.testing.assert_close(ours, by_entry(key, grads, dim), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("views", [1, 3, 16])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_views_and_dropout(params, key, n, views):
    x, y = images(TINY, max(1, n) * views, torch.float64)
    batch = (x.unflatten(0, (-1, views))[:n], y[:n])
    options = {"arch": TINY, "dropout_key": key, "views": views}
    ours, theirs = (per_sample.project(params, batch, key, 64, method=method, **options) for method in ROUTES)
    assert ours.shape == (n, 64)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    grads = per_sample.grads(params, batch, arch=TINY, key=key, views=views)
    torch.testing.assert_close(ours, by_entry(key, grads, 64) if n else ours, rtol=1e-9, atol=1e-10)


def test_products_are_kept_on_average_and_within_the_error_that_is_promised(params, batch, key):
    grads = per_sample.grads(params, batch, arch=TINY)
    flat = torch.cat([g.flatten(1) for g in grads.values()], 1)
    exact, sizes = flat @ flat.T, flat.norm(dim=1)
    dim, keys = 256, af.random.split(key, 100)
    found = torch.stack([(z := per_sample.project(params, batch, k, dim, arch=TINY)) @ z.T for k in keys])
    errors = (found - exact) / torch.outer(sizes, sizes)
    deviation = errors.square().mean(0).sqrt()
    assert (errors.mean(0).abs() < 4 * deviation / math.sqrt(len(keys))).all()  # four standard errors
    assert deviation.max() < math.sqrt(8 / dim)


@pytest.mark.parametrize("rows_and_columns", [(1, 200), (200, 1), (14, 14)])
def test_a_worst_case_matrix_keeps_its_norm_too(rows_and_columns, key):
    """One entry, two entries of a row or of a column, all entries alike: whatever collides, the variance holds."""
    r, c = rows_and_columns
    x = torch.zeros(4, r, c).double()
    x[0, 0, 0] = 1
    x[1].flatten()[[0, -1]] = 1
    x[2, : r // 2 + 1, 0] = 1
    x[3] = 1
    squares = x.flatten(1).square().sum(1)
    found = torch.stack([sketches.of_tensor(k, x, 64).square().sum(1) for k in af.random.split(key, 200)])
    errors = found / squares - 1
    assert (errors.mean(0).abs() < 4 * (errors.std(0) + 1e-12) / math.sqrt(200)).all()
    assert (errors.square().mean(0) < 8 / 64 * 1.5).all()


def test_a_projection_can_be_differentiated_mapped_and_does_not_depend_on_the_order_of_names(params, batch, key):
    def total(p, method="layerwise"):
        return per_sample.project(p, batch, key, 32, arch=TINY, method=method).sin().sum()

    ours, theirs = grad(total)(params), grad(lambda p: total(p, "vmap"))(params)
    for name, g in theirs.items():
        torch.testing.assert_close(ours[name], g, rtol=1e-9, atol=1e-12)
    members = {name: torch.stack([p, 0.5 * p]) for name, p in params.items()}
    both = vmap(lambda p: per_sample.project(p, batch, key, 32, arch=TINY))(members)
    alone = per_sample.project(params, batch, key, 32, arch=TINY)
    torch.testing.assert_close(both[0], alone, rtol=1e-9, atol=1e-11)
    other = dict(reversed(params.items()))
    close({"": per_sample.project(other, batch, key, 32, arch=TINY, method="vmap")}, {"": alone})


@pytest.mark.errors
def test_mistakes_are_named(params, batch, key):
    with pytest.raises(ValueError, match="dim must be an integer of at least 1, got 0"):
        per_sample.project(params, batch, key, 0, arch=TINY)
    with pytest.raises(ValueError, match="key must have shape"):
        per_sample.project(params, batch, af.random.split(key), 8, arch=TINY)
