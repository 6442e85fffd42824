"""Optimisers made of optimisers and gradient transforms, named and argued as in optax.

    optimizer = averaged(chain(clip_by_global_norm(1.0), add_decayed_weights(5e-4), sgd(0.1, momentum=0.9)), 0.999)

All but `chain`'s last part are transforms.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alexnet_func.checks import check_tensors, visible
from alexnet_func.model import Params
from alexnet_func.optim.base import (
    Number,
    Optimizer,
    OptState,
    Transform,
    Updated,
    check_optimizer,
    check_update,
    zeros_like,
)
from alexnet_func.optim.transforms import ema


def chain(*parts: Transform | Optimizer) -> Optimizer:
    """Passes the gradients through all `parts` in turn; the last, an optimiser, applies what comes out.

    Part i keeps its state, if it has any, as `opt_state[str(i)]`. Raises TypeError for a part that is no `Transform`,
    and for a last one that is no `Optimizer`.

    Examples:
        >>> optimizer = af.optim.chain(af.optim.clip_by_global_norm(1.0), af.optim.sgd(0.1))
        >>> w, grads = {"w": torch.ones(2)}, {"w": torch.tensor([3.0, 4.0])}
        >>> optimizer.update(grads, optimizer.init(w), w, torch.tensor(0))[0]["w"]
        tensor([0.9400, 0.9200])
    """
    check_optimizer(parts[-1] if parts else None)
    for i, part in enumerate(parts[:-1]):
        if not isinstance(part, Transform):
            raise TypeError(f"part {i} of a chain must be a gradient Transform, got {type(part).__name__}")

    def init(params: Params) -> OptState:
        check_tensors(params, "params")
        states = {str(i): part.init(params) for i, part in enumerate(parts)}
        return {name: state for name, state in states.items() if state}  # a file holds no empty ones

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        _check_keys(opt_state, {str(i) for i in range(len(parts))})
        states, tensors = {}, grads
        for i, part in enumerate(parts):
            tensors, states[str(i)] = part.update(tensors, opt_state.get(str(i), {}), params, step)
        return tensors, {name: state for name, state in states.items() if state}

    return Optimizer(init, update)


def averaged(optimizer: Optimizer, decay: Number) -> Optimizer:
    """Updates as `optimizer` does and keeps the `ema` of its parameters beside.

    `train.evaluate(forward, state.opt_state["ema"], batches)` evaluates the average. The optimiser's own state is
    `opt_state["inner"]`. Polyak and Juditsky 1992 average all alike. Errors as `ema`.

    Examples:
        >>> w, optimizer = {"w": torch.ones(1)}, af.optim.averaged(af.optim.sgd(1.0), decay=0.5)
        >>> w, state = optimizer.update({"w": torch.ones(1)}, optimizer.init(w), w, torch.tensor(0))
        >>> w, state = optimizer.update({"w": torch.ones(1)}, state, w, torch.tensor(1))
        >>> w["w"], state["ema"]["w"]
        (tensor([-1.]), tensor([-0.6667]))
    """
    check_optimizer(optimizer)
    average = ema(decay)

    def init(params: Params) -> OptState:
        return {**average.init(params), "inner": optimizer.init(params)}

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        _check_keys(opt_state, {"ema", "inner"})
        params, inner = optimizer.update(grads, opt_state.get("inner", {}), params, step)
        _, state = average.update(params, {"ema": opt_state.get("ema")}, params, step)
        return params, {**state, "inner": inner}

    return Optimizer(init, update)


def accumulate(optimizer: Optimizer, every: int) -> Optimizer:
    """Applies `optimizer` once every `every` steps, to the mean of the gradients since: a batch so many times as large.

    It counts its own updates, so that schedules go by `step // every`. What optax calls `MultiSteps`. The mean so far
    is `opt_state["mean"]`, the optimiser's own state `opt_state["inner"]`. Raises ValueError for `every` below 1.

    Examples:
        >>> w, optimizer = {"w": torch.ones(2)}, af.optim.accumulate(af.optim.sgd(0.1), every=2)
        >>> one, state = optimizer.update({"w": torch.tensor([1.0, 1.0])}, optimizer.init(w), w, torch.tensor(0))
        >>> two, state = optimizer.update({"w": torch.tensor([3.0, 5.0])}, state, one, torch.tensor(1))
        >>> one["w"], two["w"]
        (tensor([1., 1.]), tensor([0.8000, 0.7000]))
    """
    check_optimizer(optimizer)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every must be a positive integer, got {every!r}")

    def init(params: Params) -> OptState:
        return {"mean": zeros_like(params), "inner": optimizer.init(params)}

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        _check_keys(opt_state, {"mean", "inner"})
        check_update(grads, {"mean": opt_state.get("mean")}, params, "mean")
        inner = opt_state.get("inner", {})
        position = step % every
        mean = {name: m + (grads[name] - m) / (position + 1).to(m.dtype) for name, m in opt_state["mean"].items()}
        due = position == every - 1
        seen = visible(due)
        if seen is not None and not seen.any():
            return params, {"mean": mean, "inner": inner}
        updated, new = optimizer.update(mean, inner, params, step // every)
        started = {"mean": zeros_like(params), "inner": new}
        return _where(due, updated, params), _where(due, started, {"mean": mean, "inner": inner})

    return Optimizer(init, update)


def _check_keys(opt_state: OptState, accepted: set[str]) -> None:
    if not isinstance(opt_state, Mapping) or not set(opt_state) <= accepted:
        given = sorted(opt_state) if isinstance(opt_state, Mapping) else type(opt_state).__name__
        raise ValueError(f"opt_state must be what this optimizer's init makes, within {sorted(accepted)}, got {given}")


def _where(condition: Tensor, new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """`torch.where` on the leaves of two trees of the same names."""
    pairs = {name: (value, old[name]) for name, value in new.items()}
    return {
        n: _where(condition, a, b) if isinstance(a, Mapping) else torch.where(condition, a, b)
        for n, (a, b) in pairs.items()
    }
