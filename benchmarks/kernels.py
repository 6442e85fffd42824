"""`python -m benchmarks.kernels`: what a training step's kernels move through a GPU's memory, without a GPU.

The step is compiled for a simulated device (`tests/simulated`) by torch's own compiler and NVIDIA's assembler: bytes,
kernels, registers and spills are those of a real one; time is not known. Library calls are counted, not weighed.
"""

import argparse
import functools
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet_func.data import preprocess
from alexnet_func.train import Precision
from tests.simulated import device


class Case(NamedTuple):
    """A donated step with dropout, and with the preparation of its batch by `augmentation` in the same graph."""

    arch: str
    images: int
    precision: Precision = "bf16"
    capability: int = 90
    replayed: bool = False
    route: str = "fused"
    augmentation: preprocess.Augmentation | None = None

    def __str__(self) -> str:
        """As it stands in the table."""
        how = "one CUDA graph" if self.replayed else "launched"
        augmented = "" if self.augmentation is None else f", {self.augmentation}"
        return f"{self.arch}, N = {self.images}, {self.precision}, {self.route}{augmented}, {how}, sm_{self.capability}"


CASES = (
    *(Case("alexnet", 1024, route=route) for route in ("plain", "fused")),
    *(Case("alexnet", 128, replayed=True), Case("alexnet_2012", 128, replayed=True)),
    *(Case("alexnet_cifar", 1024, route=route) for route in ("plain", "fused")),
    Case("alexnet_cifar", 128, replayed=True),
    *(Case("alexnet_cifar", 128, replayed=True, augmentation=name) for name in ("shift", "shift-flip")),
    *(Case("alexnet", 128, replayed=True, augmentation=name) for name in ("crop-flip", "resized-flip", "paper")),
    *(Case(name, 1024, p, c) for name in ("alexnet", "alexnet_cifar") for p in ("bf16", "tf32") for c in (80, 90, 100)),
)


class Answer(NamedTuple):
    """Bytes of Triton's kernels and the least of them, launches a step, the largest kernels, and what ptxas made."""

    moved: int
    least: int
    kernels: int
    calls: int
    launches: int
    largest: list[tuple[int, int, str]]
    assembled: int
    registers: int
    spilling: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--out", metavar="DIR", type=Path, help="write DIR/kernels.md and .json")
    parser.add_argument("--quick", action="store_true", help="the first case alone")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(_answered(Case(*json.loads(options.case)))))
        return
    if why := device.missing():
        parser.error(why)
    cases = list(dict.fromkeys(CASES))[: 1 if options.quick else None]
    with tempfile.TemporaryDirectory() as folder:
        built = device.build(Path(folder))
        answers = [asked(case, built) for case in cases]
    text = report(cases, answers)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "kernels.md").write_text(text)
        rows = [{"case": case._asdict(), **answer._asdict()} for case, answer in zip(cases, answers, strict=True)]
        (options.out / "kernels.json").write_text(json.dumps(rows, indent=1) + "\n")


def asked(case: Case, built: Path) -> Answer:
    """The answer of a process of its own on the simulated device. Raises RuntimeError where that fails."""
    with tempfile.TemporaryDirectory() as cache:
        arguments = ["-m", "benchmarks.kernels", "--case", json.dumps(case)]
        result = device.run(
            arguments,
            built,
            SIMULATED_CAPABILITY=str(case.capability),
            TRITON_CACHE_DIR=f"{cache}/triton",
            TORCHINDUCTOR_CACHE_DIR=f"{cache}/inductor",
        )
    if result.returncode:
        raise RuntimeError(f"{case}: {result.stdout[-2000:]}")
    return Answer(*json.loads(result.stdout.splitlines()[-1]))


def report(cases: Sequence[Case], answers: Sequence[Answer]) -> str:
    """Markdown."""
    import torch
    import triton

    lines = [
        "# kernels",
        "",
        "Made by `python -m benchmarks.kernels --out benchmarks/results`, on a simulated device: no GPU was used.",
        "",
        f"torch {torch.__version__}, triton {triton.__version__}. Donated steps with dropout, SGD with momentum. Bytes",
        "are what Triton's kernels read and write; the least is what library calls (convolutions, products), the",
        "graph's inputs and its results are on the other side of, each read and written once.",
        "",
        "| step | GB moved | least | kernels | library calls | launches | most registers | spilling |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case, found in zip(cases, answers, strict=True):
        sizes = f"{found.moved / 1e9:.2f} | {found.least / 1e9:.2f}"
        counts = f"{found.kernels} | {found.calls} | {found.launches}"
        lines.append(
            f"| {case} | {sizes} | {counts} | {found.registers} | {len(found.spilling)} of {found.assembled} |"
        )
    for case, found in zip(cases, answers, strict=True):
        if case.capability != 90 or case.precision != "bf16":
            continue
        lines += ["", f"## The largest of {case}", "", "| MB moved | least | kernel |", "|---:|---:|---|"]
        lines += [f"| {moved / 1e6:,.0f} | {least / 1e6:,.0f} | {name} |" for moved, least, name in found.largest]
    return "\n".join(lines) + "\n"


def _answered(case: Case) -> Answer:
    import torch

    import alexnet_func as af
    from tests.simulated import counting, kernels  # first: there the device is simulated

    arch = af.arch.get(case.arch)
    key = af.random.key(0, "cuda")
    shapes = af.arch.param_shapes(arch)
    params = {name: torch.empty(shape, device="cuda") for name, shape in shapes.items()}
    optimizer = af.optim.sgd(0.01, momentum=0.9, weight_decay=5e-4)
    table = af.routes.fused(arch) if case.route == "fused" else af.model.PLAIN
    loss = af.train.with_precision(functools.partial(af.loss_fn, arch=arch, table=table), case.precision)
    plain = af.train.make_step(loss, optimizer)
    labels = torch.zeros(case.images, dtype=torch.int64, device="cuda")
    batch: tuple[torch.Tensor, ...]
    if case.augmentation is None:
        batch = torch.empty(case.images, 3, arch.image_size, arch.image_size, device="cuda"), labels
    else:
        components = torch.empty(3, 3, device="cuda") if case.augmentation == "paper" else None
        moments = preprocess.Moments((0.5,) * 3, (0.25,) * 3)
        plain = preprocess.prepared_step(
            plain, preprocess.preparation(case.augmentation, arch.image_size, moments, components)
        )
        side = preprocess.stored_side(arch)
        pixels = torch.empty(case.images, 3, side, side, dtype=torch.uint8, device="cuda")
        batch = key, torch.arange(case.images, device="cuda"), pixels, labels
    step = af.train.compile_step(plain, donate=True, cudagraph=case.replayed)
    state = af.train.create_state(params, optimizer, key=key)
    with kernels.recorded() as graphs:
        state, _ = step(state, batch)
    (graph,) = graphs
    _, found = counting.counted(lambda: step(state, batch))
    made = kernels.assembled(Path(os.environ["TRITON_CACHE_DIR"]))
    largest = sorted(graph.kernels, key=lambda kernel: -kernel.moved)[:12]
    return Answer(
        moved=sum(kernel.moved for kernel in graph.kernels),
        least=graph.least,
        kernels=len(graph.kernels),
        calls=graph.calls,
        launches=found.get("launches", 0),
        largest=[(k.moved, k.least, f"{', '.join(k.operations[:6])} -> {', '.join(k.writes[:3])}") for k in largest],
        assembled=len(made),
        registers=max((kernel.registers for kernel in made), default=0),
        spilling=[kernel.name for kernel in made if kernel.spilled],
    )


if __name__ == "__main__":
    main()
