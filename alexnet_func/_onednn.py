"""Matrix products by oneDNN inside compiled graphs, on processors where torch's own route is slow.

torch hands float32 products to MKL, which on AMD processors reaches about half of oneDNN's rate: ALEXNET's largest
linear layer takes 31 ms for 32 images on two cores of an EPYC where oneDNN takes 16. torch has no switch for it, so a
pass over the compiler's finished graph exchanges the products, those of forward, backward and optimiser alike, when
all transforms are through. Results are equal to rounding. `torch.compile` takes the pass as an option:

    torch.compile(f, options=_onednn.options())

"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

_LIBRARY = torch.library.Library("alexnet_func", "DEF")
_LIBRARY.define("onednn_mm(Tensor a, Tensor b, Tensor? bias) -> Tensor")

# Fewer rows than this times a row-major matrix are as fast or faster in MKL: it reads the matrix once, as it lies.
_FEW_ROWS = 8


def _onednn_mm(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")


_LIBRARY.impl("onednn_mm", _onednn_mm, "CPU")
torch.library.register_fake(
    "alexnet_func::onednn_mm", lambda a, b, bias: a.new_empty(a.shape[0], b.shape[1]), lib=_LIBRARY
)


def pays() -> bool:
    """Whether this machine has an AMD processor and a torch with both MKL and oneDNN."""
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and _is_amd()


@functools.cache
def options() -> dict[str, Any]:
    """Options of `torch.compile` that exchange the float32 matrix products of a CPU graph for oneDNN's.

    Raises RuntimeError for a torch without oneDNN. Costs the import of the compiler, which compiling does anyway.
    """
    if not torch.backends.mkldnn.is_available():
        raise RuntimeError("this torch was built without oneDNN")
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Exchange(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            _exchange(graph)

        def uuid(self) -> bytes:
            return get_hash_for_files((__file__,))

    return {"post_grad_custom_post_pass": Exchange()}


@functools.cache
def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()


def _exchange(graph: fx.Graph) -> None:
    aten = torch.ops.aten
    for node in graph.nodes:
        args: Any = node.args
        if node.target is aten.mm.default:
            (a, b), bias = args, None
        elif node.target is aten.addmm.default and not node.kwargs and args[0].meta["val"].dim() == 1:
            bias, a, b = args
            if bias.meta["val"].shape[0] != b.meta["val"].shape[1]:  # one number for all columns
                continue
        else:
            continue
        if _is_faster(a.meta["val"], b.meta["val"]):
            node.target, node.args, node.kwargs = torch.ops.alexnet_func.onednn_mm.default, (a, b, bias), {}


def _is_faster(a: Tensor, b: Tensor) -> bool:
    if a.dtype != torch.float32 or a.device.type != "cpu":
        return False
    if not all(isinstance(n, int) and n > 0 for n in (*a.shape, *b.shape)):
        return False
    return a.shape[0] >= _FEW_ROWS or b.stride(0) == 1
