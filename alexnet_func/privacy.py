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

`adaptive` finds the bound as it goes.

Noise is drawn by `random.normal`, in float32 and from a key that must stay secret; attacks on the rounding of
floating-point noise (Mironov 2012) are not defended against. Sums and norms are taken without TF32. Samples must be
drawn by keys of their own, not by any that follows from the state's, whose steps draw the noise.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alexnet_func import clipping, per_sample, random
from alexnet_func.accounting import audit, epsilon, noise_for
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.checks import check_number
from alexnet_func.model import Params
from alexnet_func.optim import Optimizer, OptState, Updated, check_optimizer
from alexnet_func.precision import InPrecision, precision_of
from alexnet_func.sampling import padded_size, poisson_sample
from alexnet_func.train import Graded, GradFn, Step, Stepped, TrainState

__all__ = [
    "adaptive",
    "audit",
    "dp_grad_fn",
    "epsilon",
    "noise_for",
    "padded_size",
    "poisson_sample",
]

_FINITE = "must be finite and not negative"


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
    """Returns a `grad_fn` of `train.make_step` for private training, which gives
    `(sum_n w_n min(1, max_norm / |g_n|) g_n + noise) / expected_batch_size`.

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

    Examples:
        >>> grad_fn = af.privacy.dp_grad_fn(1.0, noise_multiplier=1.0, expected_batch_size=4.0, arch=arch)
        >>> step = af.train.make_step(None, af.optim.sgd(0.1), grad_fn=grad_fn)
        >>> state = af.train.create_state(params, af.optim.sgd(0.1), key=key)
        >>> step(state, (*batch, torch.tensor([1.0, 1.0, 1.0, 0.0])))[1]["count"]
        tensor(3.)
    """
    clipping.check_precision(loss_fn)
    bounds = max_norm if isinstance(max_norm, Mapping) else {"max_norm": max_norm}
    _check_positive(**bounds, expected_batch_size=expected_batch_size)
    check_number("noise_multiplier", noise_multiplier, lambda number: 0 <= number < math.inf, _FINITE)
    # A number that is a tensor stays one.
    sensitivity = max_norm if not isinstance(max_norm, Mapping) else math.hypot(*(float(b) for b in max_norm.values()))
    how: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "method": method, "chunk_size": chunk_size}
    how |= {"views": views, "frozen": frozen}

    def private(params: Params, batch: Any, key: Tensor) -> Graded:
        found = clipping.sums(params, batch, key, max_norm, how)
        deviation = noise_multiplier * sensitivity
        return clipping.noised(params, found.totals, found.noise_key, deviation, expected_batch_size), found.metrics

    return InPrecision(private, precision_of(loss_fn) or "float32")


def adaptive(
    optimizer: Optimizer,
    noise_multiplier: float,
    expected_batch_size: float,
    *,
    max_norm: float = 0.1,
    quantile: float = 0.5,
    rate: float = 0.2,
    count_deviation: float | None = None,
    arch: Arch = ALEXNET,
    loss_fn: per_sample.Loss | None = None,
    method: per_sample.Method = "auto",
    chunk_size: int | None = None,
    views: int | None = None,
    frozen: Params | None = None,
) -> tuple[Optimizer, Step]:
    """Makes private training whose bound follows the gradients: `optimizer`, holding the bound, and the step.

        optimizer, step = privacy.adaptive(optim.sgd(0.1), 1.0, n * rate, arch=arch)
        state = train.create_state(params, optimizer, key=key)

    The bound is `opt_state["max_norm"]`, at first `max_norm`. A step is that of `dp_grad_fn`; after it the bound is
    multiplied by `exp(-rate (share - quantile))`, where `share` is a noisy one of the expected batch whose gradients
    the bound held: it goes to that quantile of the norms (Andrew et al. 2021, "Differentially private learning with
    adaptive clipping", algorithm 1). Their number gets noise of the standard deviation `count_deviation` (None: a
    twentieth of the expected batch), and the gradients so much more that epsilon is that of `noise_multiplier` without
    adaption, by theorem 1. Metrics are those of `dp_grad_fn` and "max_norm", the step's bound. Errors as `dp_grad_fn`,
    and ValueError unless 0 <= quantile <= 1, rate is positive, and count_deviation above half of noise_multiplier.

    Examples:
        >>> optimizer, step = af.privacy.adaptive(af.optim.sgd(0.1), 0.2, 4.0, max_norm=0.1, arch=arch)
        >>> state, metrics = step(af.train.create_state(params, optimizer, key=key), batch)
        >>> metrics["max_norm"], bool(state.opt_state["max_norm"] > 0.1)  # the gradients were longer
        (tensor(0.1000), True)
    """
    _check_positive(max_norm=max_norm, rate=rate, expected_batch_size=expected_batch_size)
    check_number("quantile", quantile, lambda number: 0 <= number <= 1, "must lie in [0, 1]")
    clipping.check_precision(loss_fn)
    counting, for_gradients = _deviations(noise_multiplier, count_deviation, expected_batch_size)
    holding = _holding(optimizer, max_norm)
    how: dict[str, Any] = {"arch": arch, "loss_fn": loss_fn, "method": method, "chunk_size": chunk_size}
    how |= {"views": views, "frozen": frozen}

    def step(state: TrainState, batch: Any) -> Stepped:
        bound = _held(state.opt_state)
        found = clipping.sums(state.params, batch, random.fold_in(state.key, state.step), bound, how)
        grads = clipping.noised(state.params, found.totals, found.noise_key, for_gradients * bound, expected_batch_size)
        params, opt_state = holding.update(grads, state.opt_state, state.params, state.step)
        noise = counting * random.normal(random.fold_in(found.noise_key, len(params)), ())
        # Counted from 1/2, one example changes the number by a half.
        share = (found.held - found.metrics["count"] / 2 + noise) / expected_batch_size + 0.5
        moved = {"max_norm": bound * torch.exp(-rate * (share - quantile)).to(bound.dtype)}
        after = TrainState(state.step + 1, params, {**opt_state, **moved}, state.key)
        return after, {**found.metrics, "max_norm": bound}

    return holding, Step(step, precision_of(loss_fn) or "float32")


def _check_positive(**numbers: Any) -> None:
    for name, value in numbers.items():
        check_number(name, value, lambda number: 0 < number < math.inf, "must be positive and finite")


def _deviations(noise_multiplier: float, count_deviation: float | None, size: float) -> tuple[float, float]:
    """Of the count, and z_g of the gradients, of a whole z: `1 / z^2 = 1 / z_g^2 + 1 / (2 counting)^2`."""
    check_number("noise_multiplier", noise_multiplier, lambda number: 0 <= number < math.inf, _FINITE)
    counting = size / 20 if count_deviation is None else count_deviation
    if not noise_multiplier < 2 * counting < math.inf:
        raise ValueError(f"count_deviation must lie above half of noise_multiplier {noise_multiplier}, got {counting}")
    return counting, noise_multiplier / math.sqrt(1 - (noise_multiplier / (2 * counting)) ** 2)


def _holding(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """`optimizer`, with a bound that its updates leave as it is."""
    check_optimizer(optimizer)

    def init(params: Params) -> OptState:
        device = next((p.device for p in params.values()), None)
        return {**optimizer.init(params), "max_norm": torch.tensor(max_norm, dtype=torch.float32, device=device)}

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        bound = _held(opt_state)
        inner = {name: part for name, part in opt_state.items() if name != "max_norm"}
        params, inner = optimizer.update(grads, inner, params, step)
        return params, {**inner, "max_norm": bound}

    return Optimizer(init, update)


def _held(opt_state: OptState) -> Tensor:
    if not isinstance(opt_state, Mapping) or "max_norm" not in opt_state:
        raise ValueError("opt_state has no max_norm: make the state with the optimizer that privacy.adaptive returns")
    return opt_state["max_norm"]
