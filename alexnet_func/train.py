"""The training step as data: a pure function of a state and a batch, its precision and how it is compiled; evaluation.

    state = create_state(params, optimizer, key=key)
    step = compile_step(make_step(loss_fn, optimizer), donate=True)
    state, metrics = step(state, (x, y))

The key of step i is `fold_in(state.key, i)`: a run resumed at step i continues bit for bit. A step that is not compiled
is a function like any other: `grad`, `vmap`, `jvp` and autograd go through it, by the state, the batch, and whatever
the loss and the optimiser hold, such as a learning rate.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from alexnet_func import allocator, compiled, precision, random, tape
from alexnet_func.checks import check_tensors
from alexnet_func.compiled import compile_options
from alexnet_func.losses import Batch, accuracy, check_pair, cross_entropy
from alexnet_func.model import Params
from alexnet_func.optim import Optimizer, OptState, check_optimizer
from alexnet_func.precision import InPrecision, Precision, with_precision

__all__ = [
    "Metrics",
    "Precision",
    "Step",
    "TrainState",
    "compile_options",
    "compile_step",
    "create_state",
    "evaluate",
    "make_step",
    "with_precision",
]

Loss = Callable[..., Any] | InPrecision
# Named, since steps may be made within a compiled function, where Dynamo builds no generic types.
Graded = tuple[Params, dict[str, Tensor]]
GradFn = Callable[[Params, Any, Tensor], Graded] | InPrecision


class TrainState(NamedTuple):
    """Holds everything a run needs to go on: a pytree of tensors."""

    step: Int64[Tensor, ""]
    params: Params
    opt_state: OptState
    key: random.Key


Stepped = tuple[TrainState, dict[str, Tensor]]
StepFunction = Callable[[TrainState, Any], Stepped]


class Compilation(NamedTuple):
    """The compiled `run`, what it does with the state's buffers, and whether one CUDA graph replays it."""

    run: StepFunction
    donate: bool
    cudagraph: bool


class Step(NamedTuple):
    """Takes one training step when called: `step(state, batch) -> (state, metrics)`.

    The metrics are a dict of tensors, "loss" among them. `function` is the pure step, `precision` what it is computed
    in, where `with_precision` asked for one; `compilation` is None for an eager step.
    """

    function: StepFunction
    precision: Precision | None = None
    compilation: Compilation | None = None

    def __call__(self, state: TrainState, batch: Any) -> Stepped:
        """Returns the next state and the metrics of this step on a batch as the loss takes it, usually (x, y).

        Raises TypeError for what is no state; ValueError for a spent one, and for a compiled step under a transform.
        """
        if not isinstance(state, TrainState):
            raise TypeError(f"state must be a TrainState, as train.create_state makes it, got {type(state).__name__}")
        compiled.check_unspent(state.step)
        if self.compilation is None:
            if torch.compiler.is_compiling():  # a graph sets no switch: a loss that needs one looks how it stands
                return self.function(state, batch)
            with precision.scope(self.precision):
                return self.function(state, batch)
        _check_unwatched(self, state, batch)
        with precision.scope(self.precision):
            result = self.compilation.run(state, batch)
        _check_unwatched(self, result)
        return result


def create_state(params: Params, optimizer: Optimizer, *, key: random.Key) -> TrainState:
    """Returns the state before step 0, with copies of `params` and `key`: a donated step cannot overwrite the caller's.

    Gradients flow through the copy: parameters that require grad, as a module's do, make every step keep what
    autograd needs. Detach them first where nobody differentiates the training itself.

    Raises TypeError or ValueError for params that are no dict of tensors by name or empty, and for what is no key or
    no `optim.Optimizer`.

    Examples:
        >>> state = af.train.create_state(params, af.optim.sgd(0.1, momentum=0.9), key=key)
        >>> int(state.step), list(state.opt_state)
        (0, ['velocity'])
    """
    random.check_key(key)
    check_optimizer(optimizer)
    check_tensors(params, "params")
    if not params:
        raise ValueError("params are empty")
    copies = {name: p.clone() for name, p in params.items()}
    # An average of the params may start as the params themselves, which a donated step would then write twice.
    opt_state = pytree.tree_map(torch.clone, optimizer.init(copies))
    device = next(iter(copies.values())).device
    step = torch.zeros((), dtype=torch.int64, device=device)
    return TrainState(step, copies, opt_state, key.to(device, copy=True))


def make_step(
    loss_fn: Loss | None, optimizer: Optimizer, *, has_aux: bool = False, grad_fn: GradFn | None = None
) -> Step:
    """Makes a loss and an optimiser into a pure `step(state, batch) -> (state, metrics)`.

    The given state is left as it was.

    `loss_fn(params, batch, *, key=None)` returns a scalar, or `(scalar, dict of tensors)` with `has_aux`, whose dict
    joins the metrics beside "loss". `grad_fn(params, batch, key) -> (grads, metrics)` replaces the plain gradient
    of `loss_fn`, which may then be None: private, data-parallel and ensemble training differ in that function alone.

    A step returns a new state every time, and so frees an old one: unless there is CUDA the process keeps freed memory
    from now on, by `allocator.keep_freed_memory`, which leaves it be where the environment says how malloc works.

    Raises ValueError without either function, TypeError for what is no `optim.Optimizer`.

    Examples:
        >>> optimizer = af.optim.sgd(0.1)
        >>> step = af.train.make_step(lambda p, batch, key: af.loss_fn(p, batch, arch=arch, key=key), optimizer)
        >>> state, metrics = step(af.train.create_state(params, optimizer, key=key), batch)
        >>> int(state.step), list(metrics)
        (1, ['loss'])
    """
    check_optimizer(optimizer)
    if grad_fn is None:
        if loss_fn is None:
            raise ValueError("make_step needs a loss_fn or a grad_fn")
        grad_fn = _plain_gradient(loss_fn, has_aux)
    _keep_memory()

    def step(state: TrainState, batch: Any) -> Stepped:
        grads, metrics = grad_fn(state.params, batch, random.fold_in(state.key, state.step))
        params, opt_state = optimizer.update(grads, state.opt_state, state.params, state.step)
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return Step(step, precision.precision_of(grad_fn) or precision.precision_of(loss_fn))


def compile_step(step: StepFunction | Step, *, donate: bool = False, cudagraph: bool = False) -> Step:
    """Compiles `step` as one graph of forward, backward and update; it equals the eager step to rounding.

    Every batch shape is compiled once, so keep shapes fixed. With `donate` the results are written into the given
    state's buffers, which halves the memory of the state: the given state is spent, its `step` tensor was a ticket
    good for one call, and the returned state, over the same buffers, holds a fresh one. A state whose step was
    interrupted is spent too. Copies of a spent state are refused like itself, clones, pickles and checkpoints
    included; what cannot be seen is its `params` or `opt_state` alone, put into another state, and on CUDA the copy
    of its `step` until that is on a CPU. `cudagraph` also replays the whole step as one CUDA graph.

    It keeps freed memory as `make_step` does. A compiled step is the end of the line: under a transform, or with
    inputs that require grad, it raises ValueError. Transform the eager step, and compile the result:
    `torch.compile(grad(f))`.

    Raises ValueError for `cudagraph` without `donate`, and, when called, for a spent state or, with `cudagraph`, for
    one that is not on CUDA.

    Examples:
        >>> from functools import partial
        >>> step = af.train.make_step(partial(af.loss_fn, arch=arch), af.optim.sgd(0.1))
        >>> step = af.train.compile_step(step)  # called as before; the first call compiles
    """
    if cudagraph and not donate:
        raise ValueError("cudagraph=True needs donate=True: a graph replays into fixed buffers")
    _keep_memory()
    pure, asked = (step.function, step.precision) if isinstance(step, Step) else (step, None)
    run = compiled.donating(pure, cudagraph) if donate else compiled.by_shape(pure)
    return Step(pure, asked, Compilation(run, donate, cudagraph))


def _keep_memory() -> None:
    # A step may be made within a compiled function, which has no business with the process.
    if not (torch.compiler.is_compiling() or torch.cuda.is_available()):
        allocator.keep_freed_memory()


def _check_unwatched(step: Step, *trees: Any) -> None:
    """Of the results too: an optimiser may hold a learning rate that requires grad."""
    tracing = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    if tracing or tape.transformed() or tape.watched(trees):
        assert step.compilation is not None
        kind = "donated" if step.compilation.donate else "compiled"
        raise ValueError(
            f"a {kind} step cannot be differentiated, mapped or traced, and some tensor here requires grad or is under "
            "a transform: use the eager step of train.make_step there, and compile the whole, as in "
            "torch.compile(grad(f)); or detach what nobody differentiates"
        )


class Metrics(NamedTuple):
    """Holds means over `count` examples: loss in nats, top-1 and top-5 accuracy in 0..1 (top-K below five classes)."""

    loss: float
    top1: float
    top5: float
    count: int  # type: ignore[assignment]  # a tuple has a method of that name


def evaluate(forward: Callable[[Params, Tensor], Tensor], params: Params, batches: Iterable[Batch]) -> Metrics:
    """Computes loss and accuracies of `forward(params, x)` over `batches` of (x, y), each example counted once.

    Gives Python numbers: `totals` is what transforms go through. Raises ValueError where there is no example, where a
    batch is no pair, and under a transform.

    Examples:
        >>> metrics = af.train.evaluate(lambda p, x: af.forward(p, x, arch=arch), params, [batch, batch])
        >>> metrics.count, 0 <= metrics.top1 <= metrics.top5 <= 1
        (8, True)
    """
    with torch.no_grad():
        return metrics_of(totals(forward, params, batches))


def totals(
    forward: Callable[[Params, Tensor], Tensor], params: Params, batches: Iterable[Batch]
) -> Float64[Tensor, "4"]:
    """Sums over the examples of `batches`: losses, hits, hits among the best five, and their number.

    Those of parts of a test set add up to those of the whole; the first can be differentiated. Zeros where there is no
    example, on the params' device.
    """
    sums: Tensor | None = None
    for batch in batches:
        x, y = check_pair(batch)
        if not len(y):
            continue
        logits = forward(params, x)
        top5 = min(5, logits.shape[-1])
        means = (cross_entropy(logits, y), accuracy(logits, y), accuracy(logits, y, k=top5), logits.new_ones(()))
        batch_sums = torch.stack([mean.double() for mean in means]) * len(y)
        sums = batch_sums if sums is None else sums + batch_sums
    if sums is None:
        device = next((p.device for p in params.values()), None)
        return torch.zeros(4, dtype=torch.float64, device=device)
    return sums


def metrics_of(sums: Float64[Tensor, "4"]) -> Metrics:
    """The means that `totals` are the sums of. Raises ValueError where there is no example, and under a transform."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or tape.watched(sums):
        raise ValueError("an evaluation gives Python numbers, which no transform goes through: use train.totals there")
    loss, top1, top5, count = sums.tolist()
    if not count:
        raise ValueError("evaluate needs at least one example")
    return Metrics(loss / count, top1 / count, top5 / count, int(count))


def _plain_gradient(loss_fn: Loss, has_aux: bool) -> GradFn:
    def grad_fn(params: Params, batch: Any, key: Tensor) -> Graded:
        def scalar(p: Params) -> Any:
            return loss_fn(p, batch, key=key)

        grads, value = grad_and_value(scalar, has_aux=has_aux)(params)
        loss, aux = value if has_aux else (value, {})
        return grads, {**aux, "loss": loss}

    return grad_fn
