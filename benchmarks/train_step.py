"""What does a pure training step cost? Against torchvision's module trained in place and jitted JAX, all with the same
losses. Dropout is off on all sides, so that every rival computes the same; `random` measures what it costs.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import alexnet_func as af
from benchmarks import ceilings, timing
from benchmarks.cases import Case, Setting, setting
from benchmarks.peers import by_torchvision
from benchmarks.timing import Row

RATE = 0.01
CPU = tuple(Case("alexnet", n) for n in (1, 32, 128))
CUDA = (
    *(Case("alexnet", n, "cuda", "bf16") for n in (128, 1024)),
    *(Case("alexnet", 128, "cuda", precision) for precision in ("float32", "tf32")),
    Case("alexnet", 512, "cuda", "bf16"),
)


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table for each batch size and precision, relative to torchvision's module with fused SGD."""
    cases = CUDA if device == "cuda" else CPU
    for case in cases[:1] if quick else cases:
        with af.precision.tf32(case.precision == "tf32"):
            yield _measured(case, setting(case), quick)


def _measured(case: Case, given: Setting, quick: bool) -> list[Row]:
    rivals = {name: RIVALS[name](case, given) for name in names(case)}
    try:
        from benchmarks.peers import by_jax

        by_jax.check_device(case)
        rivals["JAX, jitted, donated"] = by_jax.step(case, given, RATE)
    except ImportError as error:
        print(f"without JAX ({error}): pip install -e '.[peers]'")
    assert_equal(rivals, case.precision)
    rates = ceilings.measure(case.device, case.precision)
    measured = timing.interleaved(rivals, repeats=1 if quick else 9, warmups=1, device=case.device)
    least = ceilings.step_seconds(given.arch, case.n, rates)
    base = measured["torchvision, eager, fused SGD"]
    return [Row(f"{case.title}: training step", name, t, base, None, least) for name, t in measured.items()]


def without_dropout(given: Setting, table: af.model.Table = af.model.PLAIN) -> af.train.Loss:
    """The network's loss, whatever key it is given."""

    def loss(params: dict, batch: tuple, *, key: Any = None) -> Any:
        return af.loss_fn(params, batch, arch=given.arch, table=table)

    return loss


def _ours(
    case: Case,
    given: Setting,
    *,
    build: Callable[[af.train.Step], af.train.Step],
    route: Callable[[af.arch.Arch], af.model.Table] = lambda _: af.model.PLAIN,
) -> Callable[[], Any]:
    optimizer = af.optim.sgd(RATE, momentum=0.9)
    loss = af.train.with_precision(without_dropout(given, route(given.arch)), case.precision)
    step = build(af.train.make_step(loss, optimizer))
    state = af.train.create_state(given.params, optimizer, key=af.random.key(0))

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, (given.x, given.y))
        return metrics["loss"]

    return call


def _eager(step: af.train.Step) -> af.train.Step:
    return step


_DONATED = functools.partial(af.train.compile_step, donate=True)


# By name, so that a process of its own can measure their memory.
RIVALS: Mapping[str, Callable[[Case, Setting], Callable[[], Any]]] = {
    "torchvision, eager, fused SGD": functools.partial(by_torchvision.step, rate=RATE, compiled=False),
    "torchvision and SGD, compiled": functools.partial(by_torchvision.step, rate=RATE, compiled=True),
    "af, eager": functools.partial(_ours, build=_eager),
    "af, compiled": functools.partial(_ours, build=af.train.compile_step),
    "af, compiled, donated": functools.partial(_ours, build=_DONATED),
    "af, compiled, donated, fused": functools.partial(_ours, build=_DONATED, route=af.routes.fused),
    "af, compiled, donated, fused, SPACE_TO_DEPTH": functools.partial(
        _ours, build=_DONATED, route=lambda arch: af.routes.fused(arch, af.routes.SPACE_TO_DEPTH)
    ),
    "af, compiled, donated, fused, CUDA graph": functools.partial(
        _ours, build=functools.partial(af.train.compile_step, donate=True, cudagraph=True), route=af.routes.fused
    ),
}
_CUDA_ALONE = frozenset(name for name in RIVALS if "fused, " in name or name.endswith(", fused"))


def names(case: Case) -> list[str]:
    """The rivals that have a part in a case."""
    return [name for name in RIVALS if case.device == "cuda" or name not in _CUDA_ALONE]


def call(name: str, case: Case) -> Callable[[], Any]:
    """A rival by name; for `peaks.peak`."""
    return RIVALS[name](case, setting(case))


def assert_equal(rivals: Mapping[str, Callable[[], Any]], precision: af.train.Precision) -> None:
    """The losses of three steps, to within a share of their fall: the later ones follow from the updates.

    In bfloat16 the fall of steps so small drowns in rounding: a quarter of its unit roundoff, 2^-9, times the loss is
    allowed besides.
    """
    losses = {name: [float(rival()) for _ in range(3)] for name, rival in rivals.items()}
    expected = losses["torchvision, eager, fused SGD"]
    fall = expected[0] - expected[2]
    allowed = {"float32": 0.02, "tf32": 0.1, "bf16": 0.5}[precision] * fall
    allowed += expected[0] * 2**-11 if precision == "bf16" else 0
    for name, found in losses.items():
        for ours, theirs in zip(found, expected, strict=True):
            assert abs(ours - theirs) < allowed, f"{name}: losses {found}, expected {expected}"
