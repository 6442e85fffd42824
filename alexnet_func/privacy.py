"""DP-SGD: training whose result reveals little of any one example (Abadi et al. 2016).

    grad_fn = privacy.dp_grad_fn(max_norm=1.0, noise_multiplier=1.0, expected_batch_size=n * rate, arch=arch)
    step = train.make_step(None, optimizer, grad_fn=grad_fn)
    index, weights = privacy.poisson_sample(key, n, rate, privacy.padded_size(n, rate))
    state, metrics = step(state, (x[index], y[index], weights))
    privacy.epsilon(1.0, rate, steps, delta=1e-5, examples=n, size=privacy.padded_size(n, rate))

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
floating-point noise (Mironov 2012) are not defended against. Sums and norms are taken without TF32. Samples must be
drawn by keys of their own, not by any that follows from the state's, whose steps draw the noise.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from alexnet_func import parallel, per_sample, random
from alexnet_func.accounting import audit as audit
from alexnet_func.accounting import epsilon as epsilon
from alexnet_func.accounting import noise_for as noise_for
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.captures import Examples
from alexnet_func.checks import check_number, visible
from alexnet_func.model import Params
from alexnet_func.ops import square_root
from alexnet_func.precision import InPrecision, precision_of, scope
from alexnet_func.train import Graded, GradFn

_FINITE = "must be finite and not negative"
_LAST = 2**32 - 1  # of the numbers that can be folded in: no sample has so many examples


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
    frozen: Params | None = None,
) -> GradFn:
    """For `train.make_step`: `(sum_n w_n min(1, max_norm / |g_n|) g_n + noise) / expected_batch_size`.

    The noise of every entry is normal with standard deviation `noise_multiplier * max_norm`. A `max_norm` for each
    parameter, by name, clips each one's gradient by itself (per-layer clipping; McMahan et al. 2018, "Learning
    differentially private recurrent language models"); their sum's sensitivity, in place of `max_norm` in the noise, is
    the root of the sum of their squares. The batch is (x, y, w) with weights w [N] of 0 and 1, as `poisson_sample`
    gives them, or (x, y). Of the step's key's two halves one draws dropout, the other the noise: tensor i of the
    parameters from `fold_in(., i)`. `arch` to `frozen` as in `per_sample`: frozen parameters get no noise. The room's
    table says what examples give.

    Under torch.distributed every rank has its share of the sample (`parallel.share` of the index and the weights) and
    the same key: sums travel in one all-reduce, and every rank adds the same noise, once.

    Metrics, which are not private: "loss", the mean over the examples of weight 1 whose gradient is finite; "clipped",
    the share of the sampled whose gradient was longer than `max_norm`; "count", how many were sampled, and "nonfinite",
    how many of them had no finite gradient.

    Raises ValueError unless max_norm and expected_batch_size are positive and finite, noise_multiplier finite and not
    negative. The step raises ValueError for weights other than 0 and 1, TypeError for weights that are integers.
    """
    if precision_of(loss_fn) == "tf32":
        raise ValueError("private sums need full float32 products: a loss with_precision tf32 has none")
    bounds = max_norm if isinstance(max_norm, Mapping) else {"max_norm": max_norm}
    for name, value in (*bounds.items(), ("expected_batch_size", expected_batch_size)):
        check_number(name, value, lambda number: 0 < number < math.inf, "must be positive and finite")
    check_number("noise_multiplier", noise_multiplier, lambda number: 0 <= number < math.inf, _FINITE)
    # A number that is a tensor stays one.
    sensitivity = max_norm if not isinstance(max_norm, Mapping) else math.hypot(*(float(b) for b in max_norm.values()))

    def private(params: Params, batch: Any, key: Tensor) -> Graded:
        # A graph sets no switch: there the step does.
        with nullcontext() if torch.compiler.is_compiling() else scope("float32"):
            return summed(params, batch, key)

    def summed(params: Params, batch: Any, key: Tensor) -> Graded:
        x, y, weights = _weighted(batch)
        if isinstance(max_norm, Mapping) and set(max_norm) != set(params):
            raise ValueError(f"max_norm must name every parameter, {sorted(params)}, got {sorted(max_norm)}")
        loss_key, noise_key = random.split(key).unbind()
        keys = parallel.example_keys(loss_key, len(y))
        clipped: list[Tensor] = []
        options: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "method": method, "chunk_size": chunk_size}
        options |= {"key": keys, "views": views, "frozen": frozen}
        total, norms, losses = per_sample.scaled_sum(
            params, (x, y), _clipping(max_norm, clipped), weights=weights, **options
        )
        metrics = _sums(weights, norms, losses, torch.cat(clipped))
        *sums, loss, heard, long, count = parallel.summed([*total.values(), *metrics])
        totals = dict(zip(total, sums, strict=True))
        grads = _noised(params, totals, noise_key, noise_multiplier * sensitivity, expected_batch_size)
        shares = {"loss": loss / heard.clamp(min=1), "clipped": long / count.clamp(min=1)}
        return grads, {**shares, "count": count, "nonfinite": count - heard}

    return InPrecision(private, precision_of(loss_fn) or "float32")


def _clipping(max_norm: float | Mapping[str, float], clipped: list[Tensor]) -> per_sample.Scale:
    """The scales that keep every example within its bound; whom they shorten is added to `clipped`, [n] a chunk."""

    def scale(part: Examples, squares: Params) -> per_sample.Scaled:
        hidden = part.hidden()
        upper = {name: square + hidden[name] for name, square in squares.items()}
        keep = per_sample.total_norm(squares).isfinite()
        if isinstance(max_norm, Mapping):
            by_name = {name: per_sample.scale_to(square_root(u), max_norm[name]) for name, u in upper.items()}
            clipped.append(torch.stack([s < 1 for s in by_name.values()]).any(0))
            return by_name, keep
        scales = per_sample.scale_to(per_sample.total_norm(upper), max_norm)
        clipped.append(scales < 1)
        return scales, keep

    return scale


def _noised(params: Params, totals: Params, key: random.Key, deviation: Any, size: float) -> Params:
    """`(total + noise) / size` in the parameters' dtypes; tensor i of the parameters has the key `fold_in(key, i)`."""
    grads = {}
    for i, (name, p) in enumerate(params.items()):
        noise = random.normal(random.fold_in(key, i), tuple(p.shape)).to(totals[name].dtype)
        grads[name] = ((totals[name] + deviation * noise) / size).to(p.dtype)
    return grads


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


def _sums(weights: Tensor, norms: Tensor, losses: Tensor, clipped: Tensor) -> tuple[Tensor, ...]:
    """Over the examples: the losses of those whose gradient is finite, how many they are, how many are clipped, all."""
    finite = norms.isfinite()
    heard = weights * finite
    return (losses.where(heard > 0, 0) * heard).sum(), heard.sum(), ((clipped & finite) * weights).sum(), weights.sum()


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
        ranks = torch.where(sampled, random.uniform(random.fold_in(key, _LAST), (n,)), 2.0)
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
