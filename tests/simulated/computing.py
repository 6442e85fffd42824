"""The simulated device computes: a pytest plugin, or an import before all others.

Each CUDA kernel of torch's dispatcher is the CPU's over the same memory, and Triton's kernels run in its interpreter.
While a CUDA graph is captured, what would be launched is kept instead; a replay runs it.
"""

import ctypes
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch.utils import _pytree as pytree
from triton.language import core
from triton.runtime import interpreter

from tests.simulated.counting import layout

# Of these torch's own CUDA functions serve, since they compute nothing, or they are not for us.
_OWN = (
    *("empty", "empty_strided", "set_", "resize_", "as_strided", "view", "_reshape_alias", "is_pinned", "_pin_memory"),
    *("pin_memory", "record_stream", "is_set_to", "_local_scalar_dense", "copy_", "_copy_from", "unfold", "alias"),
    *("_efficientzerotensor", "isin", "nonzero_static"),
)
_OTHERS = (
    *("cudnn", "_cudnn", "miopen", "_flash", "_efficient", "_scaled", "_transformer", "_fused", "sparse", "_sparse"),
    *("_nested", "to_sparse", "_cslt", "q", "fbgemm", "quant", "_empty", "_fft", "fft", "_thnn_fused"),
    *("_convert_weight", "_weight_int"),
)
_LIBRARY = torch.library.Library("aten", "IMPL")

_kept: list[Callable[[], Any]] | None = None  # of the graph that is being captured
_graphs: dict[int, list[Callable[[], Any]]] = {}


def host(t: Tensor) -> Tensor:
    """A CPU tensor over the memory of one on the simulated device."""
    size = t.untyped_storage().nbytes()
    if not size or not t.numel():
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)
    memory = (ctypes.c_byte * size).from_address(t.untyped_storage().data_ptr())
    flat = torch.frombuffer(memory, dtype=t.dtype, count=size // t.element_size())
    return flat.as_strided(t.shape, t.stride(), t.storage_offset())


def on_cuda(x: Any) -> bool:
    """Whether it is a tensor there."""
    return isinstance(x, Tensor) and x.device.type == "cuda"


def device(t: Tensor) -> Tensor:
    """A copy of a CPU tensor on the simulated device."""
    copy = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda:0")
    if t.numel():
        host(copy).copy_(t)
    return copy


def by_cpu(op: Any) -> Callable:
    """The operator on the device, by the CPU's over the same memory."""
    arguments = op._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]

    def call(*args: Any, **kwargs: Any) -> Any:
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def lowered(x: Any) -> Any:
            if on_cuda(x):
                return seen.setdefault(id(x), (x, host(x)))[1]
            return torch.device("cpu") if isinstance(x, torch.device) and x.type == "cuda" else x

        a, k = pytree.tree_map(lowered, (args, kwargs))
        number = any(str(s.type) == "Tensor" and isinstance(v, int | float) for s, v in zip(arguments, a, strict=False))
        run = functools.partial(op.overloadpacket if number else op, *a, **k)
        if _kept is not None and written:
            _kept.append(run)
            given = [args[i] if i < len(args) else kwargs[arguments[i].name] for i in written]
            return given[0] if len(given) == 1 else tuple(given)
        with torch.no_grad():
            result = run()
        originals = {id(h): x for x, h in seen.values()}
        for x, h in seen.values():
            if h.shape != x.shape:  # an `out` that was resized
                x.resize_(h.shape)
                host(x).copy_(h)

        def raised(o: Any) -> Any:
            if not isinstance(o, Tensor):
                return o
            return originals[id(o)] if id(o) in originals else device(o)

        outputs = pytree.tree_map(raised, result)
        if _kept is not None:
            _kept.append(functools.partial(_again, run, list(map(_maybe_host, _leaves(outputs)))))
        return outputs

    return call


def _again(run: Callable[[], Any], targets: list[Tensor | None]) -> None:
    for target, value in zip(targets, _leaves(run()), strict=True):
        if target is not None:
            target.copy_(value)


def _leaves(tree: Any) -> list[Any]:
    return pytree.tree_leaves(tree, is_leaf=lambda t: t is None)


def _maybe_host(x: Any) -> Tensor | None:
    return host(x) if on_cuda(x) else None


def _convolution(op: Any, first: int) -> Callable:
    """With the layout of cuDNN's results; `first`: where input and weight stand among the arguments."""
    plain = by_cpu(op)

    def laid(t: Any, memory_format: torch.memory_format) -> Any:
        if not on_cuda(t) or t.dim() != 4:
            return t
        new = device(host(t).contiguous(memory_format=memory_format))
        if _kept is not None:
            _kept.append(functools.partial(host(new).copy_, host(t)))
        return new

    def call(*args: Any) -> Any:
        memory_format = layout(*args[first : first + 2])
        return pytree.tree_map(lambda t: laid(t, memory_format), plain(*args))

    return call


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    to, of = (host(t) if on_cuda(t) else t for t in (target, source))
    if _kept is None:
        to.copy_(of)
    else:
        _kept.append(functools.partial(to.copy_, of))
    return target


def _operators() -> Iterator[tuple[str, Any]]:
    for name in torch._C._dispatch_get_all_op_names():
        base, _, overload = name.removeprefix("aten::").partition(".")
        if not name.startswith("aten::") or not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"):
            continue
        packet = getattr(torch.ops.aten, base, None)
        op = getattr(packet, overload or "default", None)
        if base in _OWN or base.startswith(_OTHERS) or op is None:
            continue
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns)
        if not views and any("Tensor" in str(a.type) for a in op._schema.arguments):
            yield name.removeprefix("aten::"), op


def _install() -> None:
    with warnings.catch_warnings(action="ignore"):
        for name, op in _operators():
            _LIBRARY.impl(name, by_cpu(op), "CUDA")
        for name, first in (("convolution", 0), ("convolution_backward", 1)):
            _LIBRARY.impl(name, _convolution(getattr(torch.ops.aten, name).default, first), "CUDA", allow_override=True)
        _LIBRARY.impl("copy_", _copy, "CUDA")
        _LIBRARY.impl("_local_scalar_dense", lambda t: torch.ops.aten._local_scalar_dense(host(t)), "CUDA")


def _interpret() -> None:
    """Triton's interpreter reads the memory where it lies, and calls torch for the functions of CUDA's libdevice."""
    run = interpreter.GridExecutor.__call__

    def lowered(self: Any, args: Any, kwargs: Any) -> Any:
        return pytree.tree_map(lambda a: host(a) if on_cuda(a) else a, (list(args), dict(kwargs)))

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        if _kept is None:
            run(self, *args, **kwargs)
            return
        args, kwargs = lowered(self, args, kwargs)
        _kept.append(functools.partial(run, self, *args, **kwargs))

    interpreter.GridExecutor._init_args_hst = lowered
    interpreter.GridExecutor._restore_args_dev = lambda self, *args: None
    interpreter.GridExecutor.__call__ = call
    names = ("erfinv", "pow", "sqrt", "rsqrt", "exp", "log", "cos", "sin", "tanh", "log1p", "expm1", "floor", "ceil")
    for name in (*names, "trunc", "abs", "isnan", "isinf"):
        setattr(triton_helpers.libdevice, name, _by_torch(getattr(torch, name)))
    for name in ("nearbyint", "llrint"):
        setattr(triton_helpers.libdevice, name, _by_torch(torch.round))


def _in_large_blocks() -> None:
    """What the interpreter takes for a program does not depend on how many elements that has."""
    config = triton_heuristics.triton_config

    def large(size_hints: dict[str, int], x: int, y: int | None = None, z: int | None = None, **how: Any) -> Any:
        return config(size_hints, x if z else 1024 if y else 2**16, y if z else y and 64, z, **how)

    triton_heuristics.TRITON_MAX_BLOCK["X"] = 2**16
    triton_heuristics.triton_config = large


def _by_torch(function: Callable[..., Tensor]) -> Callable:
    def call(*operands: Any) -> Any:
        xs = [x if isinstance(x, core.tensor) else torch.tensor(getattr(x, "value", x)) for x in operands]
        like = next(x for x in xs if isinstance(x, core.tensor))
        arrays = (
            torch.from_numpy(np.ascontiguousarray(x.handle.data)) if isinstance(x, core.tensor) else x for x in xs
        )
        result = function(*arrays).numpy().astype(like.handle.data.dtype)
        return core.tensor(interpreter.TensorHandle(result, like.handle.dtype), like.type)

    return call


def _record_graphs() -> None:
    graph = torch.cuda.CUDAGraph
    begin, end, replay = graph.capture_begin, graph.capture_end, graph.replay

    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        global _kept
        begin(self, *args, **kwargs)
        _kept = []

    def capture_end(self: Any) -> None:
        global _kept
        assert _kept is not None
        _graphs[id(self)], _kept = _kept, None
        end(self)

    def replayed(self: Any) -> None:
        for call in _graphs[id(self)]:
            call()
        replay(self)

    graph.capture_begin, graph.capture_end, graph.replay = capture_begin, capture_end, replayed


_install()
_interpret()
_in_large_blocks()
_record_graphs()
