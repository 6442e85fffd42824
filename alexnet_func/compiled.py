"""How a training step is compiled: once for every shape of batch, and, donated, into the given state's own buffers.

A state whose buffers were given away is *spent*. That is written into its `step` tensor, as a number far below zero,
before anything else is overwritten: clones, copies, pickles and checkpoints of it carry the mark.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from alexnet_func import _onednn, checks

# Inductor writes a value of up to 30 operations out again wherever it is used, which for the rounds of the keys'
# cipher multiplies: with 8 a step with dropout compiles in 23 s instead of 53, and runs as fast.
_OPTIONS: dict[str, Any] = {"realize_opcount_threshold": 8}

# Added to a spent step: no run is so long that later additions bring it back above zero.
_SPENT = -(2**62)


def compile_options() -> dict[str, Any]:
    """Returns the `options` that `compile_step` gives `torch.compile`.

    They serve whatever else draws from keys or multiplies matrices. Compiling a step with dropout takes half as long
    with them; where `_onednn.pays()`, they hold `_onednn.options()`.

    Examples:
        >>> options = af.train.compile_options()  # for torch.compile(function, options=options)
        >>> options["realize_opcount_threshold"]
        8
    """
    return {**_OPTIONS, **(_onednn.options() if _onednn.pays() else {})}


def by_shape(function: Callable, **options: Any) -> Callable[..., Any]:
    """`function(state, batch)` compiled once for every shape of batch.

    torch.compile counts recompilations by code object and gives up after eight. Each shape of each compiled step gets
    a copy of the code of its own, so that a sweep over settings or shapes is not limited.
    """
    compiled: dict[tuple, Callable] = {}

    def call(state: Any, batch: Any) -> Any:
        return function(state, batch)

    def dispatch(state: Any, batch: Any) -> Any:
        leaves = pytree.tree_leaves(batch)
        signature = tuple((t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in leaves)
        if signature not in compiled:
            copy = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
            everything = {**compile_options(), **_overlapping(), **options}
            compiled[signature] = torch.compile(
                copy, fullgraph=True, dynamic=False, backend=_inductor, options=everything
            )
        return compiled[signature](state, batch)

    return dispatch


def _overlapping() -> dict[str, Any]:
    """With several ranks, sums between them start as soon as they can, and are waited for as late as may be."""
    if not (dist.is_available() and dist.is_initialized()):
        return {}
    passes = ["sink_waits", "raise_comms"]
    return {"reorder_for_compute_comm_overlap": True, "reorder_for_compute_comm_overlap_passes": passes}


def donating(function: Callable, cudagraph: bool) -> Callable[..., Any]:
    """The pure `function(state, batch) -> (state, metrics)`, compiled to write into the given state's buffers.

    The state is marked as spent before the compiled code runs, so that an interruption, after which some buffers hold
    new values and some old ones, leaves no state that looks whole. What the compiler refuses has run nothing, and
    leaves the state good.
    """

    def write_back(state: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        new, metrics = function(state, batch)
        _overwrite(state.params, new.params)
        _overwrite(state.opt_state, new.opt_state)
        return new.step, metrics

    # What is replayed has small kernels, of which the compiler joins those that do not wait for each other.
    compiled = by_shape(write_back, **{"triton.cudagraphs": cudagraph, "combo_kernels": cudagraph})

    def run(state: Any, batch: Any) -> tuple[Any, dict[str, Tensor]]:
        if cudagraph:
            _prepare_replay(state)
        ticket = state.step.clone()
        state.step.add_(_SPENT)
        try:
            result = compiled(state._replace(step=ticket), batch)
        except Exception as error:
            if isinstance(error, torch._dynamo.exc.TorchDynamoException):
                state.step.copy_(ticket)
            raise
        if cudagraph:  # a replay writes its outputs where the last one did
            result = pytree.tree_map(torch.clone, result)
        step, metrics = result
        return state._replace(step=step), metrics

    return run


def _inductor(graph: torch.fx.GraphModule, inputs: Sequence[Any], *, options: dict[str, Any]) -> Any:
    """The compiler of torch, but for max-pooling's gradient on CUDA, which it gathers.

    By default it scatters, by atomic additions: in no fixed order, and into a zeroed float32 map. On a CPU, where one
    thread adds in order, gathering took a quarter longer for a step of ALEXNET_CIFAR.
    """
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    if not any(isinstance(t, Tensor) and t.device.type == "cuda" for t in inputs):
        return compile_fx(graph, inputs, config_patches=options)
    decompositions = dict(select_decomp_table())
    decompositions.pop(torch.ops.aten.max_pool2d_with_indices_backward.default, None)
    return compile_fx(graph, inputs, config_patches=options, decompositions=decompositions)


def check_unspent(step: Tensor) -> None:
    """Raises ValueError for the step of a spent state.

    On a GPU, where looking at a number waits for it, one looks only at tensors that were written to since they were
    made, as the ticket itself is: there the copy of a spent step is found once it is on a CPU.
    """
    seen = checks.visible(step)
    if seen is None and step.device.type == "cuda" and not torch.compiler.is_compiling() and step._version:
        seen = step
    if seen is not None and bool((seen < 0).any()):
        raise ValueError(
            "this state was given to a donated step before, which wrote into its buffers, or was interrupted while it "
            "did; use the state that step returned, or start from a copy made before (tree_map(torch.clone, state))"
        )


def _overwrite(buffers: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Copies by name: two dicts of the same names need not have them in the same order."""
    if buffers.keys() != values.keys():
        raise ValueError(f"the step turned {sorted(buffers)} into {sorted(values)}: a donated state keeps its names")
    for name, buffer in buffers.items():
        if isinstance(buffer, Tensor):
            buffer.copy_(values[name])
        else:
            _overwrite(buffer, values[name])


def _prepare_replay(state: Any) -> None:
    if state.step.device.type != "cuda":
        raise ValueError(f"cudagraph=True needs a state on CUDA, got {state.step.device}")
    torch.compiler.cudagraph_mark_step_begin()
    for buffer in pytree.tree_leaves((state.params, state.opt_state, state.key)):
        torch._dynamo.mark_static_address(buffer)
