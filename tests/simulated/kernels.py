"""What each kernel of a compiled graph moves, and how it was assembled."""

import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import triton
from torch._inductor import scheduler
from torch._inductor.virtualized import V


class Kernel(NamedTuple):
    """A kernel of Triton's: bytes that it reads and writes, and those of them that nothing can spare it.

    That is what library calls, the graph's inputs and its results are on the other side of.
    """

    operations: tuple[str, ...]
    writes: tuple[str, ...]
    moved: int
    least: int


class Graph(NamedTuple):
    """A compiled graph: its kernels, how many library calls stand between them, and the least that all must move."""

    kernels: list[Kernel]
    calls: int
    least: int


class Assembled(NamedTuple):
    """A kernel as ptxas made it: registers a thread, and bytes of stack or spilled registers a thread."""

    name: str
    registers: int
    spilled: int


@contextmanager
def recorded() -> Iterator[list[Graph]]:
    """Yields a list that gets every graph compiled in the block."""
    graphs: list[Graph] = []
    codegen = scheduler.Scheduler.codegen

    def recording(self: Any) -> Any:
        graphs.append(_graph(self))
        return codegen(self)

    scheduler.Scheduler.codegen = recording
    try:
        yield graphs
    finally:
        scheduler.Scheduler.codegen = codegen


def assembled(cache: Path) -> list[Assembled]:
    """Every kernel in Triton's cache, as CUDA's own tool tells of it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = []
    for cubin in sorted(cache.rglob("*.cubin")):
        text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
        for name, numbers in re.findall(r"Function (\S+):\s*\n(.*)", text):
            usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", numbers)}
            found.append(Assembled(name, usage["REG"], usage["STACK"] + usage["LOCAL"]))
    return found


def _graph(found: Any) -> Graph:
    nodes = [node for node in found.nodes if type(node).__name__ != "NopKernelSchedulerNode"]
    outside = [node for node in nodes if isinstance(node, scheduler.ExternKernelSchedulerNode)]
    ours = [node for node in nodes if node not in outside]
    given = set(V.graph.graph_inputs) | _names(outside, "writes")
    taken = set(V.graph.get_output_names()) | _names(outside, "reads")
    mutated = {out.get_name() for node in ours for out in node.get_outputs() if out.get_mutations()}
    read = _names(ours, "reads") & given
    written = _names(ours, "writes") & (taken | mutated)
    kernels = []
    for node in ours:
        parts = node.snodes if isinstance(node, scheduler.ForeachKernelSchedulerNode) else [node]
        moved = sum(part.get_read_write_buffers_sizes() for part in parts)
        least = _bytes(_names([node], "reads") & read) + _bytes(_names([node], "writes") & written)
        inner = [sub.node for sub in node.get_nodes() if sub.node is not None]
        operations = {str(origin.target).replace("aten.", "") for n in inner for origin in n.get_origins()}
        writes = [f"{list(n.layout.size)} {str(n.layout.dtype).removeprefix('torch.')}" for n in inner]
        kernels.append(Kernel(tuple(sorted(operations)), tuple(writes), int(moved), min(least, int(moved))))
    calls = sum(type(node.node).__name__ != "MultiOutput" for node in outside)
    return Graph(kernels, calls, _bytes(read) + _bytes(written))


def _names(nodes: Iterable[Any], which: str) -> set[str]:
    return {dependency.name for node in nodes for dependency in getattr(node.read_writes, which)}


def _bytes(names: Iterable[str]) -> int:
    return sum(int(V.graph.get_numel(name)) * V.graph.get_dtype(name).itemsize for name in names)
