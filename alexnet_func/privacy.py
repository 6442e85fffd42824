"""DP-SGD: training whose result reveals little of any one example (Abadi et al. 2016).

    grad_fn = privacy.dp_grad_fn(max_norm=1.0, noise_multiplier=1.0, expected_batch_size=n * rate, arch=arch)
    step = train.make_step(None, optimizer, grad_fn=grad_fn)
    index, weights = privacy.poisson_sample(key, n, rate, privacy.padded_size(n, rate))
    state, metrics = step(state, (x[index], y[index], weights))
    privacy.epsilon(noise_multiplier=1.0, sampling_rate=rate, steps=steps, delta=1e-5)

The guarantee is (epsilon, delta)-differential privacy between data sets that differ by one example added or removed,
for what follows from the parameters alone: metrics of training examples, such as the loss, are not covered. It assumes
that no example's loss depends on another example, as one would by batch normalisation or a contrastive loss: then, in
a sum of clipped gradients, one example changes at most `max_norm`, whatever it holds.

| case | what the sum of a step gets |
|---|---|
| a gradient longer than `max_norm` | `max_norm` in its direction |
| one that is not finite, or whose square overflows | nothing; the metric "nonfinite" counts it |
| one whose terms cancel | norms are rounded up by what rounding may hide: see `factors` |
| weight 0 | nothing, whatever the example holds |
| a weight other than 0 and 1 | ValueError; on a GPU, where none is looked at, it is clamped to [0, 1] |
| nobody sampled | noise alone |

Noise is drawn by `random.normal`, in float32 and from a key that must stay secret; attacks on the rounding of
floating-point noise (Mironov 2012) are not defended against. Norms need full float32 products: no TF32.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from alexnet_func import per_sample, random
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.captures import Examples
from alexnet_func.checks import check_number, visible
from alexnet_func.model import Params
from alexnet_func.ops import square_root
from alexnet_func.train import Graded, GradFn, in_precision_of

_FINITE = "must be finite and not negative"
_WORTHLESS = 100.0  # an epsilon that protects nobody
_NO_NOISE = 1e-9
_ORDERS = [*range(2, 33), 64, 128, 256]  # of Renyi divergence; for fractions the library's series may not converge


def dp_grad_fn(
    max_norm: float | Mapping[str, float],
    noise_multiplier: float,
    expected_batch_size: float,
    *,
    arch: Arch = ALEXNET,
    loss_fn: per_sample.Loss | None = None,
    method: per_sample.Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
) -> GradFn:
    """For `train.make_step`: `(sum_n w_n min(1, max_norm / |g_n|) g_n + noise) / expected_batch_size`.

    The noise of every entry is normal with standard deviation `noise_multiplier * max_norm`. A `max_norm` for each
    parameter, by name, clips each one's gradient by itself (per-layer clipping; McMahan et al. 2018, "Learning
    differentially private recurrent language models"); their sum's sensitivity, in place of `max_norm` in the noise, is
    the root of the sum of their squares. The batch is (x, y, w) with weights w [N] of 0 and 1, as `poisson_sample`
    gives them, or (x, y). Of the step's key's two halves one draws dropout, the other the noise: tensor i of the
    parameters from `fold_in(., i)`. `arch` to `views` as in `per_sample`; the room's table says what examples give.

    Metrics, which are not private: "loss", the mean over the examples of weight 1 whose gradient is finite; "clipped",
    the share of the sampled whose gradient was longer than `max_norm`; "count", how many were sampled, and "nonfinite",
    how many of them had no finite gradient.

    Raises ValueError unless max_norm and expected_batch_size are positive and finite, noise_multiplier finite and not
    negative. The step raises ValueError for weights other than 0 and 1, TypeError for weights that are integers.
    """
    bounds = max_norm if isinstance(max_norm, Mapping) else {"max_norm": max_norm}
    for name, value in (*bounds.items(), ("expected_batch_size", expected_batch_size)):
        check_number(name, value, lambda number: 0 < number < math.inf, "must be positive and finite")
    check_number("noise_multiplier", noise_multiplier, lambda number: 0 <= number < math.inf, _FINITE)
    # A number that is a tensor stays one.
    sensitivity = max_norm if not isinstance(max_norm, Mapping) else math.hypot(*(float(b) for b in max_norm.values()))

    def private(params: Params, batch: Any, key: Tensor) -> Graded:
        x, y, weights = _weighted(batch)
        if isinstance(max_norm, Mapping) and set(max_norm) != set(params):
            raise ValueError(f"max_norm must name every parameter, {sorted(params)}, got {sorted(max_norm)}")
        loss_key, noise_key = random.split(key).unbind()
        clipped: list[Tensor] = []

        def scale(part: Examples, squares: Params) -> per_sample.Scaled:
            hidden = part.hidden()
            upper = {name: square_root(square + hidden[name]) for name, square in squares.items()}
            keep = per_sample.total_norm(squares).isfinite()
            if isinstance(max_norm, Mapping):
                by_name = {name: per_sample.scale_to(norm, max_norm[name]) for name, norm in upper.items()}
                clipped.append(torch.stack([s < 1 for s in by_name.values()]).any(0))
                return by_name, keep
            scales = per_sample.scale_to(per_sample.total_norm({n: u.square() for n, u in upper.items()}), max_norm)
            clipped.append(scales < 1)
            return scales, keep

        options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "method": method, "chunk_size": chunk_size}
        total, norms, losses = per_sample.scaled_sum(
            params, (x, y), scale, weights=weights, key=loss_key, views=views, **options
        )
        grads = {}
        for i, (name, g) in enumerate(total.items()):
            noise = random.normal(random.fold_in(noise_key, i), tuple(g.shape)).to(g.dtype)
            grads[name] = (g + noise_multiplier * sensitivity * noise) / expected_batch_size
        return grads, _metrics(weights, norms, losses, torch.cat(clipped))

    return in_precision_of(loss_fn, private)


def _weighted(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        given = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(f"batch must be (x, y) or (x, y, weights), got {given}")
    x, y, *rest = batch
    weights = rest[0] if rest else torch.ones(len(y), device=y.device)
    if not weights.dtype.is_floating_point:
        raise TypeError(f"weights must be floating-point zeros and ones, got {weights.dtype}")
    seen = visible(weights)
    if seen is not None and not bool(((seen == 0) | (seen == 1)).all()):
        raise ValueError(f"weights must be 0 or 1, as another one voids the guarantee, got {seen.tolist()}")
    return x, y, weights.nan_to_num(0.0).clamp(0, 1)


def _metrics(weights: Tensor, norms: Tensor, losses: Tensor, clipped: Tensor) -> dict[str, Tensor]:
    finite = norms.isfinite()
    count = weights.sum()
    heard = weights * finite
    return {
        "loss": (losses.where(heard > 0, 0) * heard).sum() / heard.sum().clamp(min=1),
        "clipped": ((clipped & finite) * weights).sum() / count.clamp(min=1),
        "count": count,
        "nonfinite": count - heard.sum(),
    }


def poisson_sample(
    key: random.Key, n: int, rate: float, size: int
) -> tuple[Int64[Tensor, "size"], Float32[Tensor, "size"]]:
    """A sample of 0 .. n-1, each in it with probability `rate` independently, as `size` indices and weights.

    Sampled indices come first, in ascending order, with weight 1; then others, with weight 0, so that batches have one
    shape and a compiled step is compiled once. Where more than `size` are sampled a random subset of so many is kept,
    which `epsilon(..., examples=n, size=size)` accounts for.

    Raises ValueError unless 0 <= rate <= 1 and 1 <= size <= n.
    """
    if not 1 <= size <= n:
        raise ValueError(f"size must lie in 1..{n}, the number of examples, got {size}")
    sampled = random.bernoulli(key, rate, (n,))
    if size < n:
        # In an order of their own: were the last left out, to come early would be a privilege.
        ranks = torch.where(sampled, random.uniform(random.fold_in(key, 0), (n,)), 2.0)
        sampled &= torch.zeros_like(sampled).scatter(0, ranks.argsort()[:size], True)
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


def epsilon(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    delta: float,
    *,
    examples: int | None = None,
    size: int | None = None,
) -> float:
    """The epsilon of `steps` steps at `delta`, by the privacy loss distribution of the Poisson-sampled Gaussian.

    With `examples` in the data set and samples that are cut to `size`, as `poisson_sample` does, it is that of the
    truncated sample (Ganesh et al. 2025, arXiv 2508.15089), which is a little larger. Computed by the `dp-accounting`
    library (extra `privacy`), rounded up; above 100, which protects nothing, it is the bound by Renyi divergence, which
    may be a multiple of it, or infinite for a truncated sample. 0 for no steps or infinite noise, infinite without.

    Raises ImportError without that library; ValueError for a rate outside [0, 1], a delta outside (0, 1), a negative
    number, and for one of `examples` and `size` without the other or out of order.
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
        return bound if examples is None else math.inf
    if examples is not None and size is not None and size < examples:
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
    """The least noise multiplier, to 1e-3 of it, with which `epsilon` is at most `target`.

    Raises ValueError for a target that is not positive, and as `epsilon` does.
    """
    if not target > 0:
        raise ValueError(f"the epsilon aimed at must be positive, got {target}")

    def enough(noise: float) -> bool:
        return epsilon(noise, sampling_rate, steps, delta, examples=examples, size=size) <= target

    high = 1.0
    while not enough(high):
        high *= 2
    low = high / 2
    while low > 1e-3 and enough(low):
        low, high = low / 2, low
    while high - low > 1e-3 * low and high > 2e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
