"""Gradient transforms: what happens to gradients before an optimiser applies them, named and argued as in optax."""

import torch
from jaxtyping import Float
from torch import Tensor

from alexnet_func.checks import check_fraction, check_number, check_tensors
from alexnet_func.model import Params
from alexnet_func.ops import square_root
from alexnet_func.optim.base import Number, OptState, Transform, Updated, add_scaled, check_update, zeros_like


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
