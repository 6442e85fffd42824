"""Epsilon, the noise for one, and audits, against exact values and simulated mechanisms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from alexnet_func import privacy


def test_epsilon_of_the_gaussian_mechanism_is_the_exact_one():
    """Balle and Wang 2018, theorem 8: delta(eps) = Phi(1/2s - eps s) - e^eps Phi(-1/2s - eps s)."""
    for sigma in (0.8, 2.0, 5.0):
        epsilon = privacy.epsilon(sigma, 1.0, 1, 1e-5)
        phi = stats.norm.cdf
        delta = phi(0.5 / sigma - epsilon * sigma) - np.exp(epsilon) * phi(-0.5 / sigma - epsilon * sigma)
        assert delta == pytest.approx(1e-5, rel=1e-2)
        assert privacy.epsilon(2 * sigma, 1.0, 4, 1e-5) == pytest.approx(epsilon, rel=1e-3)


def test_epsilon_of_abadis_example():
    """Abadi et al. 2016, section 3.1: q = 0.01, sigma = 4, 10,000 steps, delta = 1e-5: their bound is 1.26."""
    assert 0.9 < privacy.epsilon(4.0, 0.01, 10_000, 1e-5) < 1.26
    assert privacy.epsilon(0.0, 0.01, 10, 1e-5) == math.inf
    assert privacy.epsilon(1.0, 0.01, 0, 1e-5) == 0


def test_epsilon_accounts_for_truncated_samples_and_never_asks_for_much_memory():
    plain = privacy.epsilon(1.0, 0.01, 200, 1e-5)
    rare = privacy.epsilon(1.0, 0.01, 200, 1e-5, examples=10_000, size=200)
    often = privacy.epsilon(1.0, 0.01, 200, 1e-5, examples=10_000, size=90)
    assert rare == pytest.approx(plain, rel=1e-3)
    assert often > rare
    assert privacy.epsilon(math.inf, 0.01, 10, 1e-5) == 0
    small = [
        privacy.epsilon(noise, rate, steps, 1e-5) for noise, rate, steps in ((1e-3, 0.01, 10), (1e-2, 1.0, 10_000))
    ]
    assert all(100 < value < math.inf for value in small)
    # Mironov 2017, proposition 3 and corollary 3: an upper bound, and above the exact epsilon of one Gaussian.
    exact = 0.5 / 0.05**2 + stats.norm.isf(1e-5) / 0.05
    assert exact < privacy.epsilon(0.05, 1.0, 1, 1e-5) < 2 * exact


@pytest.mark.parametrize(("target", "rate", "steps"), [(3.0, 0.05, 300), (0.5, 0.01, 100)])
def test_noise_for_is_the_least_that_keeps_epsilon(target, rate, steps):
    noise = privacy.noise_for(target, 1e-5, rate, steps)
    assert privacy.epsilon(noise, rate, steps, 1e-5) <= target < privacy.epsilon(0.995 * noise, rate, steps, 1e-5)


def test_without_the_library_epsilon_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"pip install 'alexnet_func\[privacy\]'"):
        privacy.epsilon(1.0, 0.1, 10, 1e-5)


def rounds(epsilon, m, generator):
    """m bits told by randomised response, the mechanism that the bound is exact for, and the bits."""
    bits = torch.rand(m, generator=generator) < 0.5
    told = torch.where(torch.rand(m, generator=generator) < 1 / (1 + math.exp(-epsilon)), bits, ~bits)
    return told.float() + 0.01 * torch.rand(m, generator=generator), bits


def test_an_audits_bound_holds_and_is_near_for_randomised_response():
    generator = torch.Generator().manual_seed(0)
    found = [privacy.audit(*rounds(1.0, 2000, generator), 0.0, guesses=1000) for _ in range(100)]
    assert np.mean(np.array(found) > 1.0) < 0.1  # 5 % are promised
    assert 0.7 < np.median(found) < 1.0


def test_an_audit_finds_nothing_in_noise_and_much_where_all_is_told():
    generator = torch.Generator().manual_seed(1)
    bits = torch.rand(1000, generator=generator) < 0.5
    assert privacy.audit(torch.rand(1000, generator=generator), bits, 1e-5) < 0.6
    told = privacy.audit(bits.float(), bits, 1e-5, guesses=500)
    # By hand: of 500 right guesses (1 + e^-eps)^-500 <= 0.05 less the share of delta.
    assert told == pytest.approx(-math.log(0.05 ** (-1 / 500) - 1), rel=0.02)
    assert privacy.audit(bits.float(), bits, 1e-3, guesses=500) < told


def test_equal_scores_tell_nothing_in_whatever_order_the_canaries_come():
    assert privacy.audit(torch.zeros(200), torch.arange(200) < 100, 1e-5, guesses=100) < 0.6


def test_delta_counts_as_in_the_papers_theorem():
    """Its sum, term by term: Pr[right >= v] + 2 m delta max_i (Pr[right >= v - i] - Pr[right >= v]) / i."""
    from alexnet_func import accounting

    m, r, v, eps, delta = 60, 20, 17, 0.8, 1e-3
    p = math.exp(eps) / (1 + math.exp(eps))
    tail = [sum(math.comb(r, k) * p**k * (1 - p) ** (r - k) for k in range(t, r + 1)) for t in range(v + 1)]
    expected = tail[v] + 2 * m * delta * max((tail[v - i] - tail[v]) / i for i in range(1, v + 1))
    assert accounting._chance(m, r, v, eps, delta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.errors
def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"0 < delta < 1, got 1.0, 0.1, 10 and 0"):
        privacy.epsilon(1.0, 0.1, 10, 0)
    with pytest.raises(ValueError, match="examples and size belong together, 1 <= size <= examples, got 10 and None"):
        privacy.epsilon(1.0, 0.1, 10, 1e-5, examples=10)
    with pytest.raises(ValueError, match="the epsilon aimed at must be positive, got 0"):
        privacy.noise_for(0, 1e-5, 0.1, 10)
    scores, bits = torch.rand(8), torch.rand(8) < 0.5
    with pytest.raises(ValueError, match=r"one length m and 2 <= guesses <= m, got \[8\], \[7\] and 2 guesses"):
        privacy.audit(scores, bits[:7], 1e-5)
    with pytest.raises(ValueError, match=r"2 <= guesses <= m, got \[8\], \[8\] and 9 guesses"):
        privacy.audit(scores, bits, 1e-5, guesses=9)
    with pytest.raises(TypeError, match=r"included must be a tensor of booleans, got torch.uint8"):
        privacy.audit(scores, bits.byte(), 1e-5)
    with pytest.raises(ValueError, match="scores must not be NaN"):
        privacy.audit(scores * torch.nan, bits, 1e-5)
    with pytest.raises(ValueError, match=r"delta must lie in \[0, 1\) and confidence in \(0, 1\), got 1.0 and 0.95"):
        privacy.audit(scores, bits, 1.0)
