"""Settings that depend on the parameter, as functions of its name.

    decay = masked(add_decayed_weights(5e-4), lambda name: name.endswith("weight"))
    optimizer = partition(lambda name: name.split(".")[-1], {"weight": chain(decay, sgd(0.1)), "bias": sgd(0.2)})

`masked` leaves a transform out where the function is False, `partition` gives each parameter the optimiser of its
label.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from alexnet_func.checks import check_named_tensors, check_tensors, shapes_of
from alexnet_func.model import Params
from alexnet_func.optim.base import Optimizer, OptState, Transform, Updated, check_optimizer


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
