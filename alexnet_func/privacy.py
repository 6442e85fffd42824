"""DP-SGD: training whose result reveals little of any one example (Abadi et al. 2016).

    grad_fn = privacy.dp_grad_fn(max_norm=1.0, noise_multiplier=1.0, expected_batch_size=n * rate, arch=arch)
    step = train.make_step(None, optimizer, grad_fn=grad_fn)
    index, weights = privacy.poisson_sample(key, n, rate, privacy.padded_size(n, rate))
    state, metrics = step(state, (x[index], y[index], weights))
    privacy.epsilon(noise_multiplier=1.0, sampling_rate=rate, steps=steps, delta=1e-5)

The guarantee is (epsilon, delta)-differential privacy between data sets that differ by one example added or removed,
for what follows from the parameters alone: metrics of training examples, such as the loss, are not covered. Noise is
drawn by `random.normal`, in float32 and from a key that must stay secret; attacks on the rounding of floating-point
noise (Mironov 2012) are not defended against.
"""

import math
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from alexnet_func import per_sample, random
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.checks import check_number
from alexnet_func.model import Params
from alexnet_func.train import Graded, GradFn, in_precision_of

_FINITE = "must be finite and not negative"


def dp_grad_fn(
    max_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    *,
    arch: Arch = ALEXNET,
    loss_fn: per_sample.Loss | None = None,
    method: per_sample.Method = "auto",
    chunk_size: int | None = None,
) -> GradFn:
    """For `train.make_step`: `(sum_n w_n min(1, max_norm / |g_n|) g_n + noise) / expected_batch_size`.

    The noise of every entry is normal with standard deviation `noise_multiplier * max_norm`. The batch is (x, y, w)
    with weights w [N] of 0 and 1, as `poisson_sample` gives them, or (x, y). Of the step's key's two halves one draws
    dropout, the other the noise: tensor i of the parameters from `fold_in(., i)`. `arch` to `chunk_size` as in
    `per_sample`.

    Metrics, which are not private: "loss", the mean over the examples of weight 1; "clipped", the share of them whose
    gradient was longer than `max_norm`; "count", how many they are.

    Raises ValueError unless max_norm and expected_batch_size are positive and finite, noise_multiplier finite and not
    negative.
    """
    for name, value in (("max_norm", max_norm), ("expected_batch_size", expected_batch_size)):
        check_number(name, value, lambda number: 0 < number < math.inf, "must be positive and finite")
    check_number("noise_multiplier", noise_multiplier, lambda number: 0 <= number < math.inf, _FINITE)

    def private(params: Params, batch: Any, key: Tensor) -> Graded:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            given = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
            raise ValueError(f"batch must be (x, y) or (x, y, weights), got {given}")
        x, y, *rest = batch
        weights = rest[0] if rest else torch.ones(len(y), device=y.device)
        loss_key, noise_key = random.split(key).unbind()
        total, norms, losses = per_sample.clipped_sum_and_losses(
            params,
            (x, y),
            max_norm,
            weights=weights,
            arch=arch,
            loss_fn=loss_fn,
            key=loss_key,
            method=method,
            chunk_size=chunk_size,
        )
        grads = {}
        for i, (name, g) in enumerate(total.items()):
            noise = random.normal(random.fold_in(noise_key, i), tuple(g.shape)).to(g.dtype)
            grads[name] = (g + noise_multiplier * max_norm * noise) / expected_batch_size
        count = weights.sum()
        examples = count.clamp(min=1)
        metrics = {
            "loss": (losses * weights).sum() / examples,
            "clipped": ((norms > max_norm) * weights).sum() / examples,
            "count": count,
        }
        return grads, metrics

    return in_precision_of(loss_fn, private)


def poisson_sample(
    key: random.Key, n: int, rate: float, size: int
) -> tuple[Int64[Tensor, "size"], Float32[Tensor, "size"]]:
    """A sample of 0 .. n-1, each in it with probability `rate` independently, as `size` indices and weights.

    Sampled indices come first, in ascending order, with weight 1; then others, with weight 0, so that batches have one
    shape and a compiled step is compiled once. Where more than `size` are sampled the last are left out: choose
    `size` by `padded_size`, and add the probability it allows, times the number of steps, to delta.

    Raises ValueError unless 0 <= rate <= 1 and 1 <= size <= n.
    """
    if not 1 <= size <= n:
        raise ValueError(f"size must lie in 1..{n}, the number of examples, got {size}")
    sampled = random.bernoulli(key, rate, (n,))
    index = torch.sort(sampled, descending=True, stable=True).indices[:size]
    return index, sampled[index].float()


def padded_size(n: int, rate: float, overflow: float = 1e-9) -> int:
    """A size that a Poisson sample of n at `rate` exceeds with at most the probability `overflow`.

    The smallest k for which Chernoff's bound says so: `P(K >= k + 1) <= exp(-n KL((k + 1) / n || rate))`.
    Raises ValueError unless 0 < rate <= 1 and 0 < overflow < 1.
    """
    if not (0 < rate <= 1 and 0 < overflow < 1):
        raise ValueError(f"rate must lie in (0, 1] and overflow in (0, 1), got {rate} and {overflow}")

    def exceeded(k: int) -> float:
        p = (k + 1) / n
        if p <= rate:
            return 1.0
        return math.exp(-n * (p * math.log(p / rate) + (1 - p) * (math.log((1 - p) / (1 - rate)) if p < 1 else 0.0)))

    return next((k for k in range(max(1, int(n * rate)), n) if exceeded(k) <= overflow), n)


def epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """The epsilon of `steps` steps at `delta`, by the privacy loss distribution of the Poisson-sampled Gaussian.

    Computed by the `dp-accounting` library (extra `privacy`); 0 for no steps, infinite without noise. Raises
    ImportError without that library; ValueError for a rate outside [0, 1], a delta outside (0, 1) or a negative number.
    """
    if not (noise_multiplier >= 0 and 0 <= sampling_rate <= 1 and steps >= 0 and 0 < delta < 1):
        raise ValueError(
            "epsilon needs noise_multiplier >= 0, 0 <= sampling_rate <= 1, steps >= 0 and 0 < delta < 1, "
            f"got {noise_multiplier}, {sampling_rate}, {steps} and {delta}"
        )
    if steps == 0 or sampling_rate == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    try:
        from dp_accounting import dp_event
        from dp_accounting.pld import PLDAccountant
    except ImportError as error:
        message = "privacy.epsilon needs the package dp-accounting: pip install 'alexnet_func[privacy]'"
        raise ImportError(message, name="dp_accounting") from error
    step = dp_event.PoissonSampledDpEvent(sampling_rate, dp_event.GaussianDpEvent(noise_multiplier))
    return float(PLDAccountant().compose(step, steps).get_epsilon(delta))
