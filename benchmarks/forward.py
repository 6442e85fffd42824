"""What does the compiled forward pass cost? Against torchvision's module and jitted JAX, all with the same logits."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import alexnet_func as af
from benchmarks import ceilings, timing
from benchmarks.cases import Case, Setting, setting
from benchmarks.peers import by_torchvision
from benchmarks.timing import Row

CPU = tuple(Case("alexnet", n) for n in (1, 32, 128))
CUDA = tuple(Case("alexnet", n, "cuda", "bf16") for n in (128, 1024))


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table for each batch size, relative to torchvision's module."""
    cases = CUDA if device == "cuda" else CPU
    for case in cases[:1] if quick else cases:
        given = setting(case)
        rivals = _rivals(case, given)
        tolerance = 0.05 if case.precision == "bf16" else 1e-4
        expected = torch.as_tensor(rivals["torchvision, eager"]()).float().cpu()
        for name, rival in rivals.items():
            error = (_tensor(rival()) - expected).norm() / expected.norm()
            assert error < tolerance, f"{name}: logits differ by {error:.1e}"
        rates = ceilings.measure(device, case.precision)
        measured = timing.interleaved(rivals, repeats=1 if quick else 15, device=device)
        least = ceilings.forward_seconds(given.arch, case.n, rates)
        base = measured["torchvision, eager"]
        yield [Row(f"{case.title}: forward", name, timed, base, None, least) for name, timed in measured.items()]


def _rivals(case: Case, given: Setting) -> dict[str, Callable[[], Any]]:
    lower = {"params": given.params, "x": given.x}
    if case.precision == "bf16":
        lower = {"params": {name: p.bfloat16() for name, p in given.params.items()}, "x": given.x.bfloat16()}

    def ours(forward: Callable) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.no_grad():
                return forward(**lower)

        return call

    pure = functools.partial(af.forward, arch=given.arch)
    rivals: dict[str, Callable[[], Any]] = {
        "torchvision, eager": by_torchvision.forward(case, given, compiled=False),
        "torchvision, compiled": by_torchvision.forward(case, given, compiled=True),
        "af.forward, eager": ours(pure),
        "af.forward, compiled": ours(
            torch.compile(pure, fullgraph=True, dynamic=False, options=af.train.compile_options())
        ),
    }
    try:
        from benchmarks.peers import by_jax

        by_jax.check_device(case)
        rivals["JAX, jitted"] = by_jax.forward(case, given)
    except ImportError as error:
        print(f"without JAX ({error}): pip install -e '.[peers]'")
    return rivals


def _tensor(logits: Any) -> Tensor:
    return (logits if isinstance(logits, Tensor) else torch.tensor(logits.tolist())).float().cpu()
