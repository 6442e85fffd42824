"""How near does each layer come to what the machine can do? Forward and backward, in float32 and bfloat16, plain and by
`routes.fused`: a layer with weights, and what follows it up to the next; then the whole network's loss and gradients.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

import alexnet_func as af
from alexnet_func.arch import Dropout, Placed, place
from alexnet_func.layers import Weighted
from benchmarks import ceilings, timing
from benchmarks.cases import Case, Setting, setting
from benchmarks.timing import Row
from benchmarks.train_step import without_dropout

CPU = (Case("alexnet_small", 250), Case("alexnet", 32))
CUDA = tuple(Case(name, 1024, "cuda") for name in ("alexnet_small", "alexnet"))

Route = Callable[[af.arch.Arch], af.model.Table]
ROUTES: Mapping[str, tuple[af.train.Precision, Route]] = {
    "float32": ("float32", lambda _: af.model.PLAIN),
    "float32, fused": ("float32", af.routes.fused),
    "bfloat16": ("bf16", lambda _: af.model.PLAIN),
    "bfloat16, fused": ("bf16", af.routes.fused),
}


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table for each stage of a network and one for all of it, beside the rate that the machine has been seen at."""
    cases = CUDA if device == "cuda" else CPU
    for case in [cases[0]._replace(n=2)] if quick else cases:
        given = setting(case)
        for i, stage in enumerate(stages(given.arch)):
            yield _stage(case, given, stage, i == 0, quick)
        yield _whole(case, given, quick)


def stages(arch: af.arch.Arch) -> list[list[Placed]]:
    """The layers of a network but dropout, from each that has weights up to the next; what comes before the first is
    the first's.
    """
    found: list[list[Placed]] = [[]]
    for at in place(arch, (arch.in_channels, arch.image_size, arch.image_size)):
        if isinstance(at.layer, Weighted) and any(isinstance(a.layer, Weighted) for a in found[-1]):
            found.append([])
        if not isinstance(at.layer, Dropout):
            found[-1].append(at)
    return found


def _stage(case: Case, given: Setting, stage: list[Placed], first: bool, quick: bool) -> list[Row]:
    at = next(at for at in stage if isinstance(at.layer, Weighted))
    x = af.random.normal(af.random.key(1, case.device), (case.n, *stage[0].in_shape))
    operands = [given.params[f"{at.name}.{kind}"] for kind in ("weight", "bias")]
    rivals = {name: _gradients(given.arch, stage, x, operands, first, *how) for name, how in ROUTES.items()}
    _assert_close(rivals)
    work = ceilings.macs(at, operands[0].shape)
    title = f"{case.title}: {at.name}, {work / 1e6:,.1f} million multiply-accumulates an image"
    return _timed(title, case, rivals, (3 - first) * work * case.n, quick)


def _gradients(
    arch: af.arch.Arch,
    stage: list[Placed],
    x: Tensor,
    operands: list[Tensor],
    first: bool,
    precision: af.train.Precision,
    route: Route,
) -> Callable[[], list[Tensor]]:
    """Gradients of the outputs' sum by the operands and, but for the network's first layer, by the input."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    table = route(arch)
    # A network hands maps on as its route lays them; images come as they are.
    given = x.to(dtype, copy=True)
    if not first and x.dim() == 4 and table is not af.model.PLAIN:
        given = given.contiguous(memory_format=torch.channels_last)
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in operands]
    given.requires_grad_(not first)

    def call() -> list[Tensor]:
        out = given
        for at in stage:
            out = table[type(at.layer)](at, out, *(leaves if isinstance(at.layer, Weighted) else ()))
        wanted = leaves if first else [*leaves, given]
        return list(torch.autograd.grad(out, wanted, torch.ones_like(out)))

    return call


def _whole(case: Case, given: Setting, quick: bool) -> list[Row]:
    def gradients(precision: af.train.Precision, route: Route) -> Callable[[], list[Tensor]]:
        loss = af.train.with_precision(without_dropout(given, route(given.arch)), precision)
        gradient = grad(lambda params: loss(params, (given.x, given.y)))
        return lambda: list(gradient(given.params).values())

    rivals = {name: gradients(*how) for name, how in ROUTES.items()}
    if not quick:
        options = af.train.compile_options()
        rivals |= {
            f"{name}, compiled": torch.compile(call, options=options, dynamic=False)
            for name, call in list(rivals.items())
        }
    _assert_close(rivals)
    title = f"{case.title}: loss and gradients of all layers"
    return _timed(title, case, rivals, case.n * ceilings.step_operations(given.arch) // 2, quick)


def _assert_close(rivals: Mapping[str, Callable[[], list[Tensor]]]) -> None:
    """Each gradient lies in the direction of float32's."""
    expected = rivals["float32"]()
    for name, rival in rivals.items():
        for found, one in zip(rival(), expected, strict=True):
            cosine = torch.cosine_similarity(found.float().flatten(), one.flatten(), dim=0)
            assert cosine > (0.9 if name.startswith("bfloat16") else 0.9999), f"{name}: cosine {cosine}"


def _timed(title: str, case: Case, rivals: Mapping[str, Callable[[], Any]], products: int, quick: bool) -> list[Row]:
    measured = timing.interleaved(rivals, repeats=1 if quick else 7, warmups=1, device=case.device)
    rows = []
    for name, taken in measured.items():
        rates = ceilings.measure(case.device, ROUTES[name.removesuffix(", compiled")][0])
        least = products / max(rates.convolution, rates.matmul)
        rows.append(Row(title, name, taken, measured["float32"], None, least))
    return rows
