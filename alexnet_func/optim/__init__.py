"""Optimisers as pairs of pure functions, parts that combine into others, and learning-rate schedules.

    optimizer = chain(clip_by_global_norm(1.0), sgd(0.01, momentum=0.9))
    opt_state = optimizer.init(params)
    params, opt_state = optimizer.update(grads, opt_state, params, step)

`update` applies the step and returns the new parameters, where optax returns an increment to add. `step` counts
updates from 0, as an int64 scalar tensor. A learning rate is a number, a scalar tensor or a schedule: a function of
`step` that returns a float64 scalar tensor. Momentum, decay and the like are numbers or scalar tensors. Every update
can be differentiated, forward and backward, by all that goes in, and mapped; derivatives are finite where gradients
are zero. `init` and `update` raise ValueError or TypeError for tensors that do not fit one another.
"""

from alexnet_func.optim._adamw import adamw
from alexnet_func.optim._muon import muon, orthogonalized
from alexnet_func.optim._sgd import sgd
from alexnet_func.optim.base import Optimizer, OptState, Schedule, Transform, Updated, check_optimizer
from alexnet_func.optim.combinators import accumulate, averaged, chain
from alexnet_func.optim.partitions import masked, partition
from alexnet_func.optim.schedules import constant, piecewise_constant, step_decay, warmup_cosine, warmup_linear
from alexnet_func.optim.transforms import add_decayed_weights, clip_by_global_norm, ema, global_norm

__all__ = [
    "OptState",
    "Optimizer",
    "Schedule",
    "Transform",
    "Updated",
    "accumulate",
    "adamw",
    "add_decayed_weights",
    "averaged",
    "chain",
    "check_optimizer",
    "clip_by_global_norm",
    "constant",
    "ema",
    "global_norm",
    "masked",
    "muon",
    "orthogonalized",
    "partition",
    "piecewise_constant",
    "sgd",
    "step_decay",
    "warmup_cosine",
    "warmup_linear",
]
