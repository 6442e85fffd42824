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


def clip_by_global_norm(max_norm: Number) -> Transform:
    """Scales all gradients by `min(1, max_norm / norm)`, norm that of all together: Pascanu et al. 2013, algorithm 1.

    A norm that is not finite makes every gradient NaN or 0, as in optax. Raises ValueError for a negative or NaN
    `max_norm`, TypeError for what is no number.

    Examples:
        >>> clip, w = af.optim.clip_by_global_norm(1.0), {"a": torch.ones(1), "b": torch.ones(1)}
        >>> grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
        >>> clip.update(grads, clip.init(w), w, torch.tensor(0))[0]
        {'a': tensor([0.6000]), 'b': tensor([0.8000])}
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
    """Computes the 2-norm of all entries of all `tensors`, in float32 at least; its derivative at 0 counts as 0.

    Examples:
        >>> af.optim.global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
        tensor(5.)
    """
    check_tensors(tensors, "tensors")
    wide = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors.values())
    return square_root(torch.stack([t.square().sum() for t in wide]).sum())


def add_decayed_weights(weight_decay: Number) -> Transform:
    """Gives `g + weight_decay p` for each gradient g: an L2 penalty.

    Raises ValueError for a negative decay, TypeError for what is no number.

    Examples:
        >>> decay, w = af.optim.add_decayed_weights(0.1), {"w": torch.tensor([10.0, 20.0])}
        >>> decay.update({"w": torch.ones(2)}, decay.init(w), w, torch.tensor(0))[0]["w"]
        tensor([2., 3.])
    """
    check_number("weight_decay", weight_decay)

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        check_update(grads, opt_state, params)
        return add_scaled(grads, params, weight_decay), {}

    return Transform(lambda params: {}, update)


def ema(decay: Number) -> Transform:
    """Gives the exponential moving average of what goes in, weighted so that it is an average from the first step on.

    `a_t = a_{t-1} + (1 - decay) / (1 - decay^t) (x_t - a_{t-1})`, t = step + 1: optax's `ema` with its correction for
    the start at zero (Kingma and Ba 2015, section 3). In a `chain` it averages gradients; of parameters see `averaged`.
    Raises ValueError for a decay outside [0, 1), TypeError for what is no number.

    Examples:
        >>> average, w = af.optim.ema(0.5), {"w": torch.zeros(1)}
        >>> first, state = average.update({"w": torch.tensor([4.0])}, average.init(w), w, torch.tensor(0))
        >>> second, state = average.update({"w": torch.tensor([1.0])}, state, w, torch.tensor(1))
        >>> first["w"], second["w"]
        (tensor([4.]), tensor([2.]))
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


def masked(transform: Transform, mask: Callable[[str], bool]) -> Transform:
    """Applies `transform` to the parameters for whose name `mask` is True; the other gradients pass as they are.

    No decay on biases: `masked(add_decayed_weights(5e-4), lambda name: not name.endswith("bias"))`.

    Examples:
        >>> decay = af.optim.masked(af.optim.add_decayed_weights(0.1), lambda name: not name.endswith("bias"))
        >>> w = {"fc.weight": torch.ones(2), "fc.bias": torch.ones(2)}
        >>> decay.update(w, decay.init(w), w, torch.tensor(0))[0]
        {'fc.weight': tensor([1.1000, 1.1000]), 'fc.bias': tensor([1., 1.])}
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
    """Updates each parameter by `optimizers[label(name)]`, as one optimiser: what `optax.partition` is to optax.

    The states lie side by side, those of one moment in one dict. Raises ValueError for a label without an optimiser.

    Examples:
        >>> optimizers = {"weight": af.optim.sgd(0.1), "bias": af.optim.sgd(0.2)}
        >>> optimizer = af.optim.partition(lambda name: name.split(".")[-1], optimizers)
        >>> w = {"fc.weight": torch.ones(2), "fc.bias": torch.ones(2)}
        >>> optimizer.update(w, optimizer.init(w), w, torch.tensor(0))[0]
        {'fc.weight': tensor([0.9000, 0.9000]), 'fc.bias': tensor([0.8000, 0.8000])}
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
