"""What private training reveals: the epsilon that it spends, the noise for a wanted one, and an audit of a run."""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from alexnet_func import random

_WORTHLESS = 100.0  # an epsilon that protects nobody
_NO_NOISE = 1e-9
_ORDERS = [*range(2, 33), 64, 128, 256]  # of Renyi divergence; for fractions the library's series may not converge


def epsilon(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    delta: float,
    *,
    examples: int | None = None,
    size: int | None = None,
) -> float:
    """Computes epsilon at `delta` for `steps` steps, by the privacy loss distribution of the Poisson-sampled Gaussian.

    With `examples` in the data set and samples that are cut to `size`, as `poisson_sample` does, it is that of the
    truncated sample (Ganesh et al. 2025, arXiv 2508.15089), which is a little larger. Computed by the `dp-accounting`
    library (extra `privacy`), rounded up; above 100, which protects nothing, it is the bound by Renyi divergence, which
    may be a multiple of it, or infinite for a truncated sample. 0 for no steps or infinite noise, infinite without.

    Raises ImportError without that library; ValueError for a rate outside [0, 1], a delta outside (0, 1), a negative
    number, and for one of `examples` and `size` without the other or out of order.

    Examples:
        >>> round(af.privacy.epsilon(4.0, 0.01, steps=1000, delta=1e-5), 2)
        0.27
    """
    if not (noise_multiplier >= 0 and 0 <= sampling_rate <= 1 and steps >= 0 and 0 < delta < 1):
        raise ValueError(
            "epsilon needs noise_multiplier >= 0, 0 <= sampling_rate <= 1, steps >= 0 and 0 < delta < 1, "
            f"got {noise_multiplier}, {sampling_rate}, {steps} and {delta}"
        )
    if (examples is None) != (size is None) or (
        examples is not None and size is not None and not 1 <= size <= examples
    ):
        raise ValueError(f"examples and size belong together, 1 <= size <= examples, got {examples} and {size}")
    truncated = examples is not None and size is not None and size < examples
    if steps == 0 or sampling_rate == 0 or noise_multiplier == math.inf:
        return 0.0
    if noise_multiplier < _NO_NOISE:
        return math.inf
    try:
        from dp_accounting import dp_event
        from dp_accounting.pld import PLDAccountant
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        message = "privacy.epsilon needs the package dp-accounting: pip install 'alexnet_func[privacy]'"
        raise ImportError(message, name="dp_accounting") from error
    sampled = dp_event.PoissonSampledDpEvent(sampling_rate, dp_event.GaussianDpEvent(noise_multiplier))
    # The distribution's memory grows with its largest loss: it is asked only for what may be worth it.
    bound = float(RdpAccountant(_ORDERS).compose(sampled, steps).get_epsilon(delta))
    if bound > _WORTHLESS:
        return math.inf if truncated else bound
    if truncated:
        sampled = dp_event.TruncatedSubsampledGaussianDpEvent(examples, sampling_rate, size, noise_multiplier)
    return float(PLDAccountant().compose(sampled, steps).get_epsilon(delta))


def noise_for(
    target: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    *,
    examples: int | None = None,
    size: int | None = None,
) -> float:
    """Finds the least noise multiplier, to 1e-3 of it but not below 2e-3, with which `epsilon` is at most `target`.

    Raises ValueError for a target that is not positive; errors else as `epsilon`.

    Examples:
        >>> round(af.privacy.noise_for(0.5, delta=1e-5, sampling_rate=0.01, steps=1000), 1)
        2.4
    """
    if not target > 0:
        raise ValueError(f"the epsilon aimed at must be positive, got {target}")

    def excess(noise: float, **sample: int | None) -> float:
        """How far epsilon lies above the target, as a logarithm; infinities and zero within bounds."""
        spent = epsilon(noise, sampling_rate, steps, delta, **sample)
        return max(-9.0, min(9.0, math.log(max(spent, 1e-9) / target)))

    whole = _root(excess)
    if examples == size:
        return whole
    # To account for a truncated sample takes longer, and little comes of it: a little more may be enough.
    slightly_more = 1.0004 * whole
    if excess(slightly_more, examples=examples, size=size) <= 0:
        return slightly_more
    return _root(lambda noise: excess(noise, examples=examples, size=size), whole)


def _root(falling: Callable[[float], float], start: float = 1.0) -> float:
    """To 5e-4 of it, but not below 2e-3, the least positive number at which the function is not above 0."""
    high, above = start, falling(start)
    low, below = high, above
    while above > 0:
        low, below, high = high, above, 1.5 * high
        above = falling(high)
    while below <= 0 and low > 1e-3:
        high, above, low = low, below, low / 1.5
        below = falling(low)
    # The logarithm of epsilon is nearly straight in that of the noise: each guess, and a little to its other side,
    # closes in.
    while high - low > 5e-4 * low and high > 2e-3:
        guess = low * (high / low) ** max(0.05, min(0.95, below / (below - above)))
        for number in (guess * 1.0002, guess / 1.0002):
            if low < number < high:
                found = falling(number)
                low, below, high, above = (low, below, number, found) if found <= 0 else (number, found, high, above)
    return high


def audit(
    scores: Float[Tensor, "m"],
    included: Bool[Tensor, "m"],
    delta: float,
    *,
    guesses: int | None = None,
    confidence: float = 0.95,
) -> float:
    """Computes a lower bound of epsilon at `delta`, true with `confidence`, from the canaries of one training run.

    Each of m canaries, examples made to be remembered, was in the training set or not by a fair coin of its own:
    `included`. `scores` say how much each looks as if it was, the higher the more: for example its negative loss. The
    `guesses` / 2 highest are guessed to be in, as many lowest to be out, of the rest nothing is said; None: m / 4. Were
    training (epsilon, delta)-private, so many guesses would hardly be right: theorem 5.2 of Steinke, Nasr and Jagielski
    2023, "Privacy auditing with one (1) training run". `guesses` must be chosen before the scores are seen.

    Raises ImportError without scipy (extra `privacy`); ValueError unless scores and included have one length,
    2 <= guesses <= m, no score is NaN, delta lies in [0, 1) and confidence in (0, 1); TypeError for `included` that is
    not of booleans. Equal scores are ordered by a fixed key.

    Examples:
        >>> included = torch.arange(100) % 2 == 0
        >>> round(af.privacy.audit(included.float(), included, delta=1e-5), 1)  # every guess right
        2.0
        >>> af.privacy.audit(torch.arange(100.0), included, delta=1e-5)  # scores that tell nothing
        0.0
    """
    if included.dtype != torch.bool:
        raise TypeError(f"included must be a tensor of booleans, got {included.dtype}")
    m = len(scores)
    count = max(2, m // 4) if guesses is None else guesses
    if scores.shape != included.shape or scores.dim() != 1 or not 2 <= count <= m:
        raise ValueError(
            f"audit needs scores and included of one length m and 2 <= guesses <= m, got {list(scores.shape)}, "
            f"{list(included.shape)} and {count} guesses"
        )
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise ValueError(f"delta must lie in [0, 1) and confidence in (0, 1), got {delta} and {confidence}")
    if scores.isnan().any():
        raise ValueError("scores must not be NaN")
    shuffled = random.permutation(random.key(0, scores.device), m).long()
    order = shuffled[scores[shuffled].argsort(descending=True, stable=True)]
    high, low = order[: count // 2], order[m - count // 2 :]
    right = int(included[high].sum()) + int((~included[low]).sum())
    return _least_epsilon(m, 2 * (count // 2), right, delta, 1 - confidence)


def _least_epsilon(m: int, guesses: int, right: int, delta: float, level: float) -> float:
    """The largest epsilon that so many right guesses rule out at that level; 0 where they rule out none."""
    if _chance(m, guesses, right, 0.0, delta) > level:
        return 0.0
    low, high = 0.0, 1.0
    while _chance(m, guesses, right, high, delta) <= level and high < _WORTHLESS:
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if _chance(m, guesses, right, middle, delta) <= level else (low, middle)
    return low


def _chance(m: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """At most the probability of so many right guesses or more, of an (epsilon, delta)-private mechanism."""
    try:
        from scipy.stats import binom
    except ImportError as error:
        message = "privacy.audit needs scipy: pip install 'alexnet_func[privacy]'"
        raise ImportError(message, name="scipy") from error
    guessed = binom(guesses, 1 / (1 + math.exp(-epsilon)))
    fewer = np.arange(right + 1)
    at_least = guessed.sf(right - fewer - 1)  # right - i or more
    slope = ((at_least[1:] - at_least[0]) / fewer[1:]).max(initial=0.0)
    return float(min(1.0, at_least[0] + 2 * m * delta * slope))
