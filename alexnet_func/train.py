"""The training step as a pure function of a state and a batch, its compiled form, and evaluation.

    state = create_state(params, optimizer, key=key)
    step = compile_step(make_step(loss_fn, optimizer), donate=True)
    state, metrics = step(state, (x, y))

The key of step i is `fold_in(state.key, i)`: a run resumed at step i continues bit for bit.
"""

import functools
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from alexnet_func import onednn, random
from alexnet_func import precision as _precision
from alexnet_func.losses import Batch, accuracy, cross_entropy
from alexnet_func.model import Params
from alexnet_func.optim import Optimizer, OptState

# Inductor writes a value of up to 30 operations out again wherever it is used, which for the rounds of the keys'
# cipher multiplies: with 8 a step with dropout compiles in 23 s instead of 53, and runs as fast.
_OPTIONS: dict[str, Any] = {"realize_opcount_threshold": 8}

Loss = Callable[..., Any]
GradFn = Callable[[Params, Batch, Tensor], tuple[Params, dict[str, Tensor]]]
Precision = Literal["float32", "tf32", "bf16"]


class TrainState(NamedTuple):
    """Everything a run needs to go on: a pytree of tensors."""

    step: Int64[Tensor, ""]
    params: Params
    opt_state: OptState
    key: random.Key


Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Tensor]]]


class Metrics(NamedTuple):
    """Means over `count` examples: loss in nats, top-1 and top-5 accuracy in 0..1 (top-K below five classes)."""

    loss: float
    top1: float
    top5: float
    count: int  # type: ignore[assignment]  # a tuple has a method of that name


def create_state(params: Params, optimizer: Optimizer, *, key: random.Key) -> TrainState:
    """The state before step 0. Copies `params` and `key`, so that a donated step cannot overwrite the caller's."""
    random.check_key(key)
    if not params:
        raise ValueError("params are empty")
    copies = {name: p.detach().clone() for name, p in params.items()}
    # An average of the params may start as the params themselves, which a donated step would then write twice.
    opt_state = pytree.tree_map(torch.clone, optimizer.init(copies))
    device = next(iter(copies.values())).device
    step = torch.zeros((), dtype=torch.int64, device=device)
    return TrainState(step, copies, opt_state, key.to(device, copy=True))


def make_step(
    loss_fn: Loss | None, optimizer: Optimizer, *, has_aux: bool = False, grad_fn: GradFn | None = None
) -> Step:
    """`step(state, batch) -> (state, metrics)`, pure: the given state is left as it was.

    `loss_fn(params, batch, *, key=None)` returns a scalar, or `(scalar, dict of tensors)` with `has_aux`, whose dict
    joins the metrics beside "loss". `grad_fn(params, batch, key) -> (grads, metrics)` replaces the plain gradient
    of `loss_fn`, which may then be None: private, data-parallel and ensemble training differ in that function alone.

    Raises ValueError without either function.
    """
    if grad_fn is None:
        if loss_fn is None:
            raise ValueError("make_step needs a loss_fn or a grad_fn")
        grad_fn = _plain_gradient(loss_fn, has_aux)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Tensor]]:
        grads, metrics = grad_fn(state.params, batch, random.fold_in(state.key, state.step))
        params, opt_state = optimizer.update(grads, state.opt_state, state.params, state.step)
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return _scoped(step, step, _tf32_of(loss_fn) if _tf32_of(grad_fn) is None else _tf32_of(grad_fn))


def with_precision(loss_fn: Loss, precision: Precision) -> Loss:
    """`loss_fn` computed in `precision`, over float32 master weights and with float32 gradients.

    "bf16" casts parameters and floating inputs to bfloat16 for the forward and backward pass. "tf32" lets a CUDA
    device round the operands of float32 products to TF32, "float32" forbids it. As the backward pass runs after the
    loss has returned, these two hold for the steps that `make_step` builds from the result, or from a
    `functools.partial` of it, and are undone after each; wrap the loss in a function of your own before this one,
    not after. No global stays changed.

    Raises ValueError for another precision.
    """
    if precision not in ("float32", "tf32", "bf16"):
        raise ValueError(f'precision must be "float32", "tf32" or "bf16", got {precision!r}')

    def lowered(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(torch.bfloat16) if floating and precision == "bf16" else value

    @functools.wraps(loss_fn)
    def computed(params: Params, batch: Batch, *, key: Tensor | None = None) -> Any:
        return loss_fn(pytree.tree_map(lowered, params), pytree.tree_map(lowered, batch), key=key)

    computed.tf32 = {"float32": False, "tf32": True, "bf16": None}[precision]  # type: ignore[attr-defined]
    return computed


def in_precision_of(loss_fn: Callable | None, grad_fn: GradFn) -> GradFn:
    """`grad_fn`, marked with what `with_precision` asked for `loss_fn`, which `grad_fn` differentiates."""
    grad_fn.tf32 = _tf32_of(loss_fn)  # type: ignore[attr-defined]
    return grad_fn


def compile_step(step: Step, *, donate: bool = False, cudagraph: bool = False) -> Step:
    """`step` as one compiled graph of forward, backward and update; equal to the eager step to rounding.

    Every batch shape is compiled once, so keep shapes fixed. With `donate` the results are written into the given
    state's buffers, which halves the memory of the state: the given state is spent, its `step` tensor was a ticket
    good for one call, and the returned state, over the same buffers, holds a fresh one. `cudagraph` also replays the
    whole step as one CUDA graph.

    Raises ValueError for `cudagraph` without `donate`, and, when called, for a spent state or, with `cudagraph`, for
    one that is not on CUDA.
    """
    if cudagraph and not donate:
        raise ValueError("cudagraph=True needs donate=True: a graph replays into fixed buffers")
    pure, tf32 = _BUILT.get(step, (step, None))
    run = _donated(pure, cudagraph) if donate else _compiled_by_shape(pure)
    return _scoped(run, pure, tf32)


def compile_options() -> dict[str, Any]:
    """What `compile_step` gives `torch.compile` as `options`: for whatever else draws from keys or multiplies matrices.

    Compiling a step with dropout takes half as long with them; where `onednn.pays()`, they hold `onednn.options()`.
    """
    return {**_OPTIONS, **(onednn.options() if onednn.pays() else {})}


def evaluate(forward: Callable[[Params, Tensor], Tensor], params: Params, batches: Iterable[Batch]) -> Metrics:
    """Loss and accuracies of `forward(params, x)` over `batches` of (x, y), each example counted once.

    Raises ValueError where there is no example.
    """
    return metrics_of(totals(forward, params, batches))


def totals(
    forward: Callable[[Params, Tensor], Tensor], params: Params, batches: Iterable[Batch]
) -> Float64[Tensor, "4"]:
    """Sums over the examples of `batches`: losses, hits, hits among the best five, and their number.

    Those of parts of a test set add up to those of the whole. Zeros where there is no example, on the params' device.
    """
    sums: Tensor | None = None
    with torch.no_grad():
        for x, y in batches:
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
    """The means that `totals` are the sums of. Raises ValueError where there is no example."""
    loss, top1, top5, count = sums.tolist()
    if not count:
        raise ValueError("evaluate needs at least one example")
    return Metrics(loss / count, top1 / count, top5 / count, int(count))


def _plain_gradient(loss_fn: Loss, has_aux: bool) -> GradFn:
    def grad_fn(params: Params, batch: Batch, key: Tensor) -> tuple[Params, dict[str, Tensor]]:
        def scalar(p: Params) -> Any:
            return loss_fn(p, batch, key=key)

        grads, value = grad_and_value(scalar, has_aux=has_aux)(params)
        loss, aux = value if has_aux else (value, {})
        return grads, {**aux, "loss": loss}

    return grad_fn


def _tf32_of(function: Callable | None) -> bool | None:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "tf32", None)


# The function and the precision behind each step that `make_step` and `compile_step` built.
_BUILT: weakref.WeakKeyDictionary[Step, tuple[Step, bool | None]] = weakref.WeakKeyDictionary()


def _scoped(run: Step, pure: Step, tf32: bool | None) -> Step:
    """`run` without autograd's tape, which torch.func would otherwise keep in memory, and in its precision."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Tensor]]:
        if getattr(state.step, "spent", False):
            raise ValueError("this state was given to a donated step before; use the state that step returned")
        with torch.no_grad(), _precision.tf32(tf32):
            return run(state, batch)

    _BUILT[step] = (pure, tf32)
    return step


def _compiled_by_shape(function: Callable, **options: Any) -> Callable[..., Any]:
    """`function(state, batch)` compiled once for every shape of batch.

    torch.compile counts recompilations by code object and gives up after eight. Each shape of each compiled step gets
    a copy of the code of its own, so that a sweep over settings or shapes is not limited.
    """
    compiled: dict[tuple, Callable] = {}

    def call(state: TrainState, batch: Batch) -> Any:
        return function(state, batch)

    def dispatch(state: TrainState, batch: Batch) -> Any:
        leaves = pytree.tree_leaves(batch)
        signature = tuple((t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in leaves)
        if signature not in compiled:
            copy = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
            everything = {**compile_options(), **options}
            compiled[signature] = torch.compile(copy, fullgraph=True, dynamic=False, options=everything)
        return compiled[signature](state, batch)

    return dispatch


def _donated(pure: Step, cudagraph: bool) -> Step:
    def write_back(state: TrainState, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        new, metrics = pure(state, batch)
        _overwrite(state.params, new.params)
        _overwrite(state.opt_state, new.opt_state)
        return new.step, metrics

    compiled = _compiled_by_shape(write_back, **{"triton.cudagraphs": cudagraph})

    def donated(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Tensor]]:
        if cudagraph:
            _prepare_replay(state)
        result = compiled(state, batch)
        if cudagraph:  # a replay writes its outputs where the last one did
            result = pytree.tree_map(torch.clone, result)
        state.step.spent = True  # type: ignore[attr-defined]
        step, metrics = result
        return state._replace(step=step), metrics

    return donated


def _overwrite(buffers: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Copies by name: two dicts of the same names need not have them in the same order."""
    if buffers.keys() != values.keys():
        raise ValueError(f"the step turned {sorted(buffers)} into {sorted(values)}: a donated state keeps its names")
    for name, buffer in buffers.items():
        if isinstance(buffer, Tensor):
            buffer.copy_(values[name])
        else:
            _overwrite(buffer, values[name])


def _prepare_replay(state: TrainState) -> None:
    if state.step.device.type != "cuda":
        raise ValueError(f"cudagraph=True needs a state on CUDA, got {state.step.device}")
    torch.compiler.cudagraph_mark_step_begin()
    for buffer in pytree.tree_leaves((state.params, state.opt_state, state.key)):
        torch._dynamo.mark_static_address(buffer)
