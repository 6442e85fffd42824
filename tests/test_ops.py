import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

import alexnet_func as af
from alexnet_func.arch import LRN
from tests.conftest import within_budget

LAYERS = [
    LRN(5, 1e-4, 0.75, 2.0, "sum"),
    LRN(5, 1e-4, 0.75, 1.0, "mean"),
    LRN(4, 0.3, 0.5, 1.0, "sum"),
    LRN(1, 0.3, 0.5, 1.0, "mean"),
    *(LRN(size, 0.3, 0.5, 0.1, convention) for size in (18, 19, 21, 40) for convention in ("sum", "mean")),
]


def lrn_in_numpy(x, layer):
    """Krizhevsky et al. 2012, section 3.3, as a loop: the window is i - n/2 .. i + n/2 where channels exist."""
    alpha = layer.alpha if layer.convention == "sum" else layer.alpha / layer.size
    out = np.empty_like(x)
    channels = x.shape[0]
    for i in range(channels):
        low, high = max(0, i - layer.size // 2), min(channels, i - layer.size // 2 + layer.size)
        out[i] = x[i] / (layer.k + alpha * (x[low:high] ** 2).sum(0)) ** layer.beta
    return out


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_lrn_on_one_example_is_the_papers_formula(layer, channels):
    x = torch.randn(channels, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10
    expected = torch.from_numpy(lrn_in_numpy(x.numpy(), layer))
    torch.testing.assert_close(af.ops.local_response_norm(x, layer), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_lrn_on_a_batch_vmapped_and_unbatched_agree(layer):
    x = torch.randn(4, 9, 6, 6) * 10
    batched = af.ops.local_response_norm(x, layer)
    vmapped = vmap(lambda one: af.ops.local_response_norm(one, layer))(x)
    looped = torch.stack([af.ops.local_response_norm(one, layer) for one in x])
    for ours in (vmapped, looped):  # not bitwise: torch's vectorised power differs from its scalar one in the last bit
        torch.testing.assert_close(ours, batched, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_lrn_meets_torchs_error_on_a_batch(layer):
    alpha = layer.alpha * layer.size if layer.convention == "sum" else layer.alpha
    exact_x = torch.randn(4, 9, 6, 6, dtype=torch.float64) * 10
    exact = af.ops.local_response_norm(exact_x.float().double(), layer)
    theirs = F.local_response_norm(exact_x.float(), layer.size, alpha, layer.beta, layer.k)
    within_budget([af.ops.local_response_norm(exact_x.float(), layer)], [theirs], [exact])


def test_torchs_own_lrn_is_wrong_on_one_example():
    # The reason for ours; if torch mends it, the warning in the docstring can go.
    x = torch.randn(9, 6, 6) * 10
    batched = F.local_response_norm(x[None], 5, 1.0)[0]
    assert not torch.allclose(F.local_response_norm(x, 5, 1.0), batched, rtol=1e-2)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.99])
def test_dropout_keeps_where_bernoulli_does_and_divides(rate):
    key, x = af.random.key(4), torch.randn(50, 40)
    dropped = af.ops.dropout(x, af.random.uniform(key, x.shape), rate)
    keep = af.random.bernoulli(key, 1 - rate, x.shape)
    expected = np.where(keep.numpy(), x.numpy() / np.float32(1 - rate), np.float32(0))
    assert np.array_equal(dropped.numpy(), expected)


def test_dropout_drops_what_is_not_finite():
    x = torch.tensor([torch.inf, torch.nan, 1.0])
    assert torch.equal(af.ops.dropout(x, torch.tensor([0.9, 0.9, 0.1]), 0.5), torch.tensor([0.0, 0.0, 2.0]))
