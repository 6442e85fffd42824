import math

import pytest
import torch
from scipy import stats

import alexnet_func as af
from alexnet_func import privacy


def test_a_sample_holds_everyone_who_was_drawn_then_padding(key):
    for k in af.random.split(key, 20):
        index, weights = privacy.poisson_sample(k, 50, 0.2, 30)
        drawn = af.random.bernoulli(k, 0.2, (50,)).nonzero().flatten()
        assert index.shape == weights.shape == (30,)
        assert torch.equal(index[: len(drawn)], drawn)
        assert weights.tolist() == [1.0] * len(drawn) + [0.0] * (30 - len(drawn))
        assert len(set(index.tolist())) == 30


def test_everyone_is_sampled_equally_often(key):
    counts = torch.zeros(40)
    for k in af.random.split(key, 500):
        index, weights = privacy.poisson_sample(k, 40, 0.25, 30)
        counts.index_add_(0, index, weights)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert abs(counts.mean().item() / 500 - 0.25) < 0.02


@pytest.mark.parametrize(("n", "rate"), [(50, 0.2), (1437, 0.1), (60000, 0.01), (10, 1.0), (10, 0.9)])
@pytest.mark.parametrize("overflow", [1e-3, 1e-9])
def test_a_padded_size_is_exceeded_as_rarely_as_asked_and_is_not_wasteful(n, rate, overflow):
    size = privacy.padded_size(n, rate, overflow)
    assert stats.binom.sf(size, n, rate) <= overflow
    assert size == n or size <= n * rate + 8 * math.sqrt(n * rate) + 24


def test_a_truncated_sample_is_a_random_one_of_those_drawn(key):
    """Were the last ones left out, the first would be in every batch that they are drawn for."""
    counts, kept = torch.zeros(40), []
    for k in af.random.split(key, 600):
        index, weights = privacy.poisson_sample(k, 40, 0.5, 12)
        drawn = af.random.bernoulli(k, 0.5, (40,))
        assert drawn[index[weights > 0]].all()
        assert weights.sum() == min(12, int(drawn.sum()))
        assert (index[weights > 0].diff() > 0).all()
        counts.index_add_(0, index, weights)
        kept.append(int(weights.sum()))
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.errors
def test_mistakes_are_named(key):
    with pytest.raises(ValueError, match=r"size must lie in 1..10, the number of examples, got 11"):
        privacy.poisson_sample(key, 10, 0.1, 11)
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\], got 1.5"):
        privacy.poisson_sample(key, 10, 1.5, 5)
    with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\]"):
        privacy.padded_size(10, 0.0)
