"""Stochastic gradient descent, in torch's form and in that of the 2012 paper."""

from typing import Literal

from torch import Tensor

from alexnet_func.checks import check_number
from alexnet_func.model import Params
from alexnet_func.optim.base import (
    Number,
    Optimizer,
    OptState,
    Rate,
    Updated,
    add_scaled,
    check_rate,
    check_update,
    descend,
    each,
    is_off,
    plus,
    zeros_like,
)


def sgd(
    learning_rate: Rate,
    momentum: Number = 0.0,
    weight_decay: Number = 0.0,
    nesterov: bool = False,
    form: Literal["torch", "paper"] = "torch",
) -> Optimizer:
    """Returns stochastic gradient descent with `momentum`; the decay `weight_decay * p` is added to the gradient g.

    `form="torch"`: `v <- momentum v + g; p <- p - lr v` (`p - lr (g + momentum v)` with Nesterov), with the bits of
    `torch.optim.SGD` in float32 and float64 on the same device. `form="paper"`: `v <- momentum v - lr g; p <- p + v`,
    Krizhevsky et al. 2012, section 5. The two differ once the rate changes: the paper's velocity remembers the old
    rate. Settings may be scalar tensors, by which an update can be differentiated or mapped.

    Raises ValueError for a negative rate, momentum or decay, for Nesterov without momentum or in the paper's form;
    TypeError for a setting that is no number. `update` raises ValueError for gradients or a state that do not fit.

    Examples:
        >>> w, optimizer = {"w": torch.ones(2)}, af.optim.sgd(0.1, momentum=0.9)
        >>> grads = {"w": torch.tensor([1.0, 2.0])}
        >>> new, opt_state = optimizer.update(grads, optimizer.init(w), w, torch.tensor(0))
        >>> new["w"], opt_state["velocity"]["w"]
        (tensor([0.9000, 0.8000]), tensor([1., 2.]))
    """
    check_rate(learning_rate)
    check_number("momentum", momentum)
    check_number("weight_decay", weight_decay)
    if form not in ("torch", "paper"):
        raise ValueError(f'form must be "torch" or "paper", got {form!r}')
    if nesterov and (is_off(momentum) or form == "paper"):
        raise ValueError('nesterov needs momentum > 0 and form="torch"')
    moments = () if is_off(momentum) else ("velocity",)

    def init(params: Params) -> OptState:
        zeros = zeros_like(params)
        return dict.fromkeys(moments, zeros)

    def decayed(grads: Params, params: Params) -> Params:
        return grads if is_off(weight_decay) else add_scaled(grads, params, weight_decay)

    def update_torch(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        check_update(grads, opt_state, params, *moments)
        descent = decayed(grads, params)
        if moments:
            velocity = plus(each("mul", opt_state["velocity"], momentum), descent)
            opt_state = {"velocity": velocity}
            descent = add_scaled(descent, velocity, momentum) if nesterov else velocity
        return descend(params, descent, learning_rate, step), opt_state

    def update_paper(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        check_update(grads, opt_state, params, *moments)
        kept = each("mul", opt_state["velocity"], momentum) if moments else zeros_like(params)
        velocity = descend(kept, decayed(grads, params), learning_rate, step)
        return each("add", params, velocity), dict.fromkeys(moments, velocity)

    return Optimizer(init, update_torch if form == "torch" else update_paper)
