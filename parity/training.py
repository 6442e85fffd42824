"""Training as a function like any other, by us and by optax: its steps, and the derivatives of what comes out."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad
from torch.utils import _pytree as pytree

import alexnet_func as af
from alexnet_func.arch import LRN, Arch, Conv, Dropout, Linear, MaxPool, ReLU
from alexnet_func.losses import Batch
from alexnet_func.optim import Optimizer
from parity.inputs import MOMENTUM, SEED, Tensors

if TYPE_CHECKING:
    from parity.oracles import by_jax

# Every kind of layer in a network so small that JAX compiles whole runs of it in seconds.
SMALL = Arch(
    name="small",
    image_size=15,
    num_classes=5,
    pooled_size=2,
    features=(
        *(Conv(8, 3, stride=2, padding=1), ReLU(), LRN(5, 1e-2, 0.75, 2.0, "sum"), MaxPool(3, 2, ceil_mode=True)),
        *(Conv(12, 3, padding=1, groups=2), ReLU()),
    ),
    classifier=(Dropout(0.3), Linear(16), ReLU(), Dropout(0.5), Linear(None)),
)
EXAMPLES = 8
STEPS, INNER_STEPS = 5, 3
HYPER = {"sgd": (0.05, 5e-3), "adamw": (0.01, 0.1)}  # learning rate and weight decay
OPTIMIZERS: Mapping[str, Callable[[Tensor, Tensor], Optimizer]] = {
    "sgd": lambda rate, decay: af.optim.sgd(rate, momentum=MOMENTUM, weight_decay=decay),
    "adamw": lambda rate, decay: af.optim.adamw(rate, weight_decay=decay),
}
loss_fn = functools.partial(af.loss_fn, arch=SMALL)


class Task(NamedTuple):
    """Initial parameters, `batches` x [K, N, C, H, W] and y [K, N], a batch to judge the trained by, and a key."""

    params: Tensors
    batches: Batch
    query: Batch
    key: Tensor


def task(steps: int) -> Task:
    """The first `steps` batches of the same task for every number of them, in float64."""
    init_key, image_key, label_key, key = af.random.split(af.random.key(SEED), 4).unbind()
    x = af.random.normal(image_key, (1 + STEPS, EXAMPLES, SMALL.in_channels, SMALL.image_size, SMALL.image_size))
    y = af.random.randint(label_key, (1 + STEPS, EXAMPLES), 0, SMALL.num_classes).long()
    x, batches = x.double(), slice(1, 1 + steps)
    return Task(af.init(init_key, SMALL, dtype=torch.float64), (x[batches], y[batches]), (x[0], y[0]), key)


def trained(optimizer: Optimizer, given: Task) -> tuple[Tensors, Tensor]:
    """The parameters after a step on each of the batches, with dropout, and the loss of every step, [K]."""
    step = af.train.make_step(loss_fn, optimizer)
    state = af.train.create_state(given.params, optimizer, key=given.key)
    losses = []
    for batch in zip(*given.batches, strict=True):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    return state.params, torch.stack(losses)


def final_loss(params: Tensors, rate: Tensor, decay: Tensor, rule: str, given: Task) -> Tensor:
    """The loss, on the batch `query` and without dropout, of what training makes of `params`."""
    after, _ = trained(OPTIMIZERS[rule](rate, decay), given._replace(params=params))
    return loss_fn(after, given.query)


def both_steps(rule: str) -> tuple[Tensors, Tensors]:
    after, losses = trained(OPTIMIZERS[rule](*_hyper(rule)), task(STEPS))
    reference = theirs(rule, STEPS)
    return {"losses": losses, **after}, _tensors({"losses": reference.losses, **reference.params})


def both_meta_gradients(rule: str = "sgd", steps: int = INNER_STEPS) -> tuple[Tensors, Tensors]:
    """MAML's gradient, by the parameters before so many inner steps."""
    given = task(steps)
    ours = grad(final_loss)(given.params, *_hyper(rule), rule, given)
    return ours, _tensors(theirs(rule, steps).by_params)


def both_hypergradients(which: int) -> tuple[Tensors, Tensors]:
    """By rule, the derivative by the learning rate (0) or by the weight decay (1)."""
    given = task(STEPS)
    by_hyper = grad(final_loss, argnums=1 + which)
    ours = {rule: by_hyper(given.params, *_hyper(rule), rule, given) for rule in HYPER}
    return ours, _tensors({rule: theirs(rule, STEPS).by_hyper[which] for rule in HYPER})


BOTH: Mapping[str, Callable[[], tuple[Tensors, Tensors]]] = {
    "sgd steps": lambda: both_steps("sgd"),
    "adamw steps": lambda: both_steps("adamw"),
    "maml gradient": both_meta_gradients,
    "by learning rate": lambda: both_hypergradients(0),
    "by weight decay": lambda: both_hypergradients(1),
}


def _hyper(rule: str) -> tuple[Tensor, Tensor]:
    rate, decay = HYPER[rule]
    return torch.tensor(rate, dtype=torch.float64), torch.tensor(decay, dtype=torch.float64)


@functools.cache  # it compiles for seconds, and three quantities read one run
def theirs(rule: "by_jax.Rule", steps: int) -> "by_jax.Trained":
    from parity.oracles import by_jax

    params, batches, query, key = pytree.tree_map(Tensor.numpy, task(steps))
    return by_jax.training(SMALL, rule, HYPER[rule], params, batches, query, key.view(np.uint32))


def _tensors(arrays: Mapping[str, np.ndarray]) -> Tensors:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
