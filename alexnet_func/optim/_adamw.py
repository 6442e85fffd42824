"""Adam with decoupled weight decay."""

from torch import Tensor

from alexnet_func.checks import check_fraction, check_number
from alexnet_func.model import Params
from alexnet_func.ops import square_root
from alexnet_func.optim.base import (
    Number,
    Optimizer,
    OptState,
    Rate,
    Updated,
    check_rate,
    check_update,
    each,
    groups,
    interpolated,
    rate_at,
    zeros_like,
)


def adamw(
    learning_rate: Rate, b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-8, weight_decay: Number = 0.01
) -> Optimizer:
    """Returns Adam with decoupled weight decay at `learning_rate`.

    Loshchilov and Hutter 2019, algorithm 2, as in `torch.optim.AdamW`:
    `p <- p - lr weight_decay p - lr m_hat / (sqrt(v_hat) + eps)` with bias-corrected moments m_hat and v_hat. Settings
    may be scalar tensors, by which an update can be differentiated or mapped; where v is 0 the derivative of its root
    counts as 0, so that all are finite there.

    Raises ValueError for a negative rate, eps or decay, or a b1 or b2 outside [0, 1); TypeError for a setting that is
    no number. `update` raises ValueError for gradients or a state that do not fit.

    Examples:
        >>> w, optimizer = {"w": torch.ones(2)}, af.optim.adamw(0.1, weight_decay=0.0)
        >>> grads = {"w": torch.tensor([1.0, -100.0])}
        >>> optimizer.update(grads, optimizer.init(w), w, torch.tensor(0))[0]["w"]  # as far for either
        tensor([0.9000, 1.1000])
    """
    check_rate(learning_rate)
    check_fraction("b1", b1)
    check_fraction("b2", b2)
    check_number("eps", eps)
    check_number("weight_decay", weight_decay)

    def init(params: Params) -> OptState:
        return {"mu": zeros_like(params), "nu": zeros_like(params)}

    def update(grads: Params, opt_state: OptState, params: Params, step: Tensor) -> Updated:
        check_update(grads, opt_state, params, "mu", "nu")
        count = (step + 1).double()
        correction1, correction2 = 1 - b1**count, 1 - b2**count
        rate = rate_at(learning_rate, step)
        results: list[Params] = [{}, {}, {}]
        for of in groups(params):
            first = interpolated(of(opt_state["mu"]), of(grads), 1 - b1)
            kept = each("mul", of(opt_state["nu"]), b2)
            second = each("add", kept, each("mul", each("pow", of(grads), 2.0), 1 - b2))
            descent = {name: square_root(v) for name, v in second.items()}
            descent = each("add", each("div", descent, correction2.sqrt()), eps)
            descent = each("mul", each("div", first, descent), rate / correction1)
            kept = each("mul", of(params), 1 - rate * weight_decay)
            for result, part in zip(results, (each("sub", kept, descent), first, second), strict=True):
                result.update(part)
        return results[0], {"mu": results[1], "nu": results[2]}

    return Optimizer(init, update)
