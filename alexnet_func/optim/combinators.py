"""Optimisers made of parts, named and argued as in optax; all but `chain`'s last part are gradient transforms.

    decay = masked(add_decayed_weights(5e-4), lambda name: name.endswith("weight"))
    optimizer = averaged(chain(clip_by_global_norm(1.0), decay, sgd(0.1, momentum=0.9)), 0.999)

A setting that depends on the parameter is written as a function of its name: `masked` leaves a part out where it is
False, `partition` gives each parameter the optimiser of its label.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alexnet_func.checks import check_fraction, check_named_tensors, check_number, check_tensors, shapes_of, visible
from alexnet_func.model import Params
from alexnet_func.ops import square_root
from alexnet_func.optim.base import (
    Number,
    Optimizer,
    OptState,
    Transform,
    Updated,
    add_scaled,
    check_optimizer,
    check_update,
    zeros_like,
)


def chain(*parts: Transform | Optimizer) -> Optimizer:
    """The gradients go through all parts in turn; the last, an optimiser, applies what comes out.

    Part i keeps its state, if it has any, as `opt_state[str(i)]`. Raises TypeError for a part that is no `Transform`,
    and for a last one that is no `Optimizer`.
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


def clip_by_global_norm(max_norm: Number) -> Transform:
    """All gradients times `min(1, max_norm / norm)`, norm that of all together: Pascanu et al. 2013, algorithm 1.

    A norm that is not finite makes every gradient NaN or 0, as in optax. Raises ValueError for a negative or NaN
    `max_norm`, TypeError for what is no number.
    """
    check_number("max_norm", max_norm)

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        check_update(grads, opt_state, params)
        norm = global_norm(grads)
        within = norm <= max_norm
        scale = torch.where(within, 1.0, max_norm / norm.masked_fill(within, 1.0))
        return {name: g * scale.to(g.dtype) for name, g in grads.items()}, {}

    return Transform(lambda params: {}, update)


def global_norm(tensors: Params) -> Float[Tensor, ""]:
    """The 2-norm of all entries of all tensors, in float32 at least; its derivative at 0 counts as 0."""
    check_tensors(tensors, "tensors")
    wide = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors.values())
    return square_root(torch.stack([t.square().sum() for t in wide]).sum())


def add_decayed_weights(weight_decay: Number) -> Transform:
    """`g + weight_decay p`: an L2 penalty. Raises ValueError for a negative decay, TypeError for what is no number."""
    check_number("weight_decay", weight_decay)

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        check_update(grads, opt_state, params)
        return add_scaled(grads, params, weight_decay), {}

    return Transform(lambda params: {}, update)


def ema(decay: Number) -> Transform:
    """The exponential moving average of what it is given, weighted so that it is one from the first step on.

    `a_t = a_{t-1} + (1 - decay) / (1 - decay^t) (x_t - a_{t-1})`, t = step + 1: optax's `ema` with its correction for
    the start at zero (Kingma and Ba 2015, section 3). In a `chain` it averages gradients; of parameters see `averaged`.
    Raises ValueError for a decay outside [0, 1), TypeError for what is no number.
    """
    check_fraction("decay", decay)

    def init(params: Params) -> OptState:
        return {"ema": zeros_like(params)}

    def update(tensors: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        check_update(tensors, opt_state, params, "ema")
        weight = (1 - decay) / (1 - decay ** (step + 1).double())
        average = {name: a + weight.to(a.dtype) * (tensors[name] - a) for name, a in opt_state["ema"].items()}
        return average, {"ema": average}

    return Transform(init, update)


def averaged(optimizer: Optimizer, decay: Number) -> Optimizer:
    """`optimizer`, with the `ema` of its parameters beside: `train.evaluate(forward, state.opt_state["ema"], batches)`.

    The optimiser's own state is `opt_state["inner"]`. Polyak and Juditsky 1992 average all alike. Errors as `ema`.
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
    """`optimizer` once every `every` steps, on the mean of the gradients since: a batch so many times as large.

    It counts its own updates, so that schedules go by `step // every`. What optax calls `MultiSteps`. The mean so far
    is `opt_state["mean"]`, the optimiser's own state `opt_state["inner"]`. Raises ValueError for `every` below 1.
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


def masked(transform: Transform, mask: Callable[[str], bool]) -> Transform:
    """`transform` on the parameters for whose name `mask` is True; the other gradients pass as they are.

    No decay on biases: `masked(add_decayed_weights(5e-4), lambda name: not name.endswith("bias"))`.
    """
    if not isinstance(transform, Transform):
        raise TypeError(f"masked takes a gradient Transform, got {type(transform).__name__}; see optim.partition")

    def init(params: Params) -> OptState:
        return transform.init(_part(params, mask))

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        _check_grads(grads, params)
        changed, opt_state = transform.update(_part(grads, mask), opt_state, _part(params, mask), step)
        return {name: changed.get(name, g) for name, g in grads.items()}, opt_state

    return Transform(init, update)


def partition(label: Callable[[str], str], optimizers: Mapping[str, Optimizer]) -> Optimizer:
    """Each parameter by `optimizers[label(name)]`, as one optimiser: what `optax.partition` is to optax.

    The states lie side by side, those of one moment in one dict. Raises ValueError for a label without an optimiser.
    """
    for optimizer in optimizers.values():
        check_optimizer(optimizer)

    def part(tree: Mapping[str, Any], chosen: str) -> dict[str, Any]:
        return _part(tree, lambda name: label(name) == chosen)

    def init(params: Params) -> OptState:
        check_tensors(params, "params")
        if unknown := {label(name) for name in params} - set(optimizers):
            known = ", ".join(optimizers)
            raise ValueError(f"no optimizer for the labels {', '.join(sorted(unknown))}; there are {known}")
        owned = {chosen: part(params, chosen) for chosen in optimizers}
        return _merged([optimizers[chosen].init(own) for chosen, own in owned.items() if own])

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        _check_grads(grads, params)
        results = [
            optimizer.update(part(grads, chosen), part(opt_state, chosen), own, step)
            for chosen, optimizer in optimizers.items()
            if (own := part(params, chosen))
        ]
        updated = _merged([new for new, _ in results])
        return {name: updated[name] for name in params}, _merged([state for _, state in results])

    return Optimizer(init, update)


def _check_grads(grads: Params, params: Params) -> None:
    check_tensors(params, "params")
    check_named_tensors(shapes_of(params), grads, "grads")


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


def _part(tree: Mapping[str, Any], mask: Callable[[str], bool]) -> dict[str, Any]:
    """The tensors whose name `mask` takes, and the branches that hold any."""
    branches = {name: _part(value, mask) for name, value in tree.items() if isinstance(value, Mapping)}
    kept = {name: value for name, value in tree.items() if not isinstance(value, Mapping) and mask(name)}
    return {name: value for name, value in branches.items() if value} | kept


def _merged(trees: list[dict[str, Any]]) -> dict[str, Any]:
    """Trees of disjoint tensors as one, by the names of their branches."""
    merged: dict[str, Any] = {}
    for tree in trees:
        for name, value in tree.items():
            merged[name] = _merged([merged.get(name, {}), value]) if isinstance(value, dict) else value
    return merged
