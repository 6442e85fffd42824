"""What do per-sample gradients cost? Norms, clipped sums and all gradients, against plain steps and other libraries."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

import alexnet_func as af
from benchmarks import peaks, timing
from benchmarks.cases import Case, Setting, setting
from benchmarks.timing import Row

RATE = 0.01
MAX_NORM = 1.0
CHUNK = 4  # examples whose gradients of the 224x224 network are materialised at once: 1 GB


LARGE, SMALL, ALL_GRADIENTS = Case("alexnet", 64), Case("alexnet_cifar", 256), Case("alexnet", 16)


def module_of(given: Setting) -> nn.Module:
    """The same network as a plain sequence without dropout or in-place layers, as all libraries take it."""
    module = af.interop.to_module(given.params, given.arch)
    layers = [*module.features, *module.avgpool, nn.Flatten(), *module.classifier]  # type: ignore[misc]
    plain = [
        nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in layers if not isinstance(layer, nn.Dropout)
    ]
    return nn.Sequential(*plain).train()


def plain_step(given: Setting) -> Callable[[], None]:
    """An ordinary step of the module in torchvision's layout: what the others are held against."""
    module = af.interop.to_module(given.params, given.arch)
    optimizer = torch.optim.SGD(module.parameters(), RATE, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(given.x), given.y).backward()
        optimizer.step()

    return run


def clipped_step(
    given: Setting,
    method: af.per_sample.Method,
    chunk: int | None = None,
    build: Callable[[af.train.Step], af.train.Step] = lambda step: step,
) -> Callable[[], dict[str, Tensor]]:
    """A step on clipped gradients without noise; returns the parameters."""
    options: dict[str, Any] = {"arch": given.arch, "method": method, "chunk_size": chunk}

    shares = torch.full((len(given.y),), 1 / len(given.y), device=given.x.device)

    def grad_fn(params: dict, batch: tuple, key: Tensor) -> tuple:
        mean, norms = af.per_sample.clipped_sum(params, batch, MAX_NORM, weights=shares, **options)
        return mean, {"loss": norms.mean()}

    optimizer = af.optim.sgd(RATE, momentum=0.9)
    step = build(af.train.make_step(None, optimizer, grad_fn=grad_fn))
    state = af.train.create_state(given.params, optimizer, key=af.random.key(1))

    def run() -> dict[str, Tensor]:
        nonlocal state
        state, _ = step(state, (given.x, given.y))
        return state.params

    return run


def norms(given: Setting, chunk: int | None = None) -> Callable[[], Tensor]:
    return lambda: af.per_sample.norms(given.params, (given.x, given.y), arch=given.arch, chunk_size=chunk)


def compiled_norms(given: Setting) -> Callable[[], Tensor]:
    function = functools.partial(af.per_sample.norms, arch=given.arch)
    compiled: Any = torch.compile(function, fullgraph=True, dynamic=False, options=af.train.compile_options())
    return lambda: compiled(given.params, (given.x, given.y))


def layerwise_grads(given: Setting) -> Callable[[], dict[str, Tensor]]:
    return lambda: af.per_sample.grads(given.params, (given.x, given.y), arch=given.arch, method="layerwise")


def vmapped_grads(given: Setting) -> Callable[[], dict[str, Tensor]]:
    """As torch.func's tutorial has it."""
    each = vmap(grad(functools.partial(af.loss_fn, arch=given.arch)), in_dims=(None, (0, 0)))

    def run() -> dict[str, Tensor]:
        with torch.no_grad():
            return each(given.params, (given.x, given.y))

    return run


def one_gradient(given: Setting) -> Callable[[], None]:
    """The plain gradient of the module's mean loss."""
    module = af.interop.to_module(given.params, given.arch)

    def run() -> None:
        module.zero_grad()
        nn.functional.cross_entropy(module(given.x), given.y).backward()

    return run


# By name, so that a process of its own can measure their memory.
CALLS: Mapping[str, Callable[[Setting], Callable[[], object]]] = {
    "plain step, nn.Module": plain_step,
    "norms": norms,
    "norms in two chunks": lambda given: norms(given, -(-len(given.y) // 2)),
    "norms, compiled": compiled_norms,
    "clipped sum, update": lambda given: clipped_step(given, "auto"),
    "clipped sum, update, compiled": lambda given: clipped_step(
        given, "auto", build=functools.partial(af.train.compile_step, donate=True)
    ),
    "vmap(grad) in chunks, update": lambda given: clipped_step(given, "vmap", CHUNK if given.x.shape[-1] > 32 else 32),
    "one gradient, nn.Module": one_gradient,
    "all gradients": layerwise_grads,
    "all gradients, vmap(grad)": vmapped_grads,
}
STEPS = (
    "plain step, nn.Module",
    *("norms", "norms in two chunks", "norms, compiled"),
    *("clipped sum, update", "clipped sum, update, compiled", "vmap(grad) in chunks, update"),
)
GRADIENTS = ("one gradient, nn.Module", "all gradients", "all gradients, vmap(grad)")


def call(name: str, case: Case) -> Callable[[], object]:
    return CALLS[name](setting(case))


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table for each of two networks, relative to a plain step."""
    for case in (LARGE, SMALL):
        yield _measured(case._replace(device=device), STEPS, quick)


def run_gradients(quick: bool, device: str) -> Iterator[list[Row]]:
    """All gradients of 16 images, relative to one gradient; and memory by N."""
    yield _measured(ALL_GRADIENTS._replace(device=device), GRADIENTS, quick)
    if not quick:
        yield _memory_rows(device)


def _measured(case: Case, names: tuple[str, ...], quick: bool) -> list[Row]:
    case = case._replace(n=4) if quick else case
    given = setting(case)
    rivals = {name: CALLS[name](given) for name in names}
    rivals |= _peers(case, given, gradients=names is GRADIENTS)
    _assert_equal(given, rivals)
    measured = timing.interleaved(rivals, repeats=1 if quick else 7, warmups=1, device=case.device)
    highest = {} if quick else {name: peaks.peak(call, name, case)[1] for name in names}
    return [Row(case.title, name, timed, measured[names[0]], highest.get(name)) for name, timed in measured.items()]


def _memory_rows(device: str) -> list[Row]:
    rows = []
    for n in (1, 4, 16, 64, 256):
        for name in ("all gradients", "norms", "clipped sum, update"):
            # 64 materialised gradients are 16 GB, 256 are 63.
            fits = name != "all gradients" or n <= 16
            peak = peaks.peak(call, name, Case("alexnet", n, device))[1] if fits else None
            rows.append(Row(f"memory, alexnet 224x224, N = {n}", name, None, None, peak))
    return rows


def _peers(case: Case, given: Setting, gradients: bool) -> dict[str, Callable[[], object]]:
    """Those that are installed."""
    found: dict[str, Callable[[], object]] = {}

    def of(run: Callable[[Tensor, Tensor], object]) -> Callable[[], object]:
        return lambda: run(given.x, given.y)

    try:
        from benchmarks.peers import by_opacus

        if gradients:
            found["all gradients, Opacus hooks"] = of(by_opacus.grads(module_of(given), "hooks"))
            found["all gradients, Opacus ew"] = of(by_opacus.grads(module_of(given), "ew"))
        else:
            found["Opacus ghost clipping, update"] = of(by_opacus.ghost_step(module_of(given), MAX_NORM, case.n, RATE))
    except ImportError:
        print("opacus is not installed: pip install -e '.[peers]'")
    try:
        from benchmarks.peers import by_backpack

        if not gradients:
            chunk = CHUNK if given.x.shape[-1] > 32 else 32
            found["BackPACK norms"] = of(by_backpack.norms(module_of(given)))
            found["BackPACK in chunks, update"] = of(by_backpack.clipped_step(module_of(given), MAX_NORM, RATE, chunk))
    except ImportError:
        print("backpack is not installed: pip install -e '.[peers]'")
    return found


def _assert_equal(given: Setting, rivals: Mapping[str, Callable[[], object]]) -> None:
    """The routes agree on a few of the examples, before anything is timed."""
    few = given._replace(x=given.x[:4], y=given.y[:4])
    expected = vmapped_grads(few)()
    for name, g in layerwise_grads(few)().items():
        torch.testing.assert_close(g, expected[name], rtol=1e-3, atol=1e-5)
    squares = torch.stack([g.double().flatten(1).square().sum(1) for g in expected.values()]).sum(0)
    torch.testing.assert_close(norms(few)().double(), squares.sqrt(), rtol=1e-5, atol=0)
    for name in ("norms in two chunks", "BackPACK norms"):
        if name in rivals:
            torch.testing.assert_close(norms(given)(), rivals[name](), rtol=1e-4, atol=0)
    by_layer, by_vmap = (clipped_step(few, method)() for method in ("layerwise", "vmap"))
    for name, p in by_layer.items():
        torch.testing.assert_close(p, by_vmap[name], rtol=1e-5, atol=1e-7)
    ours: Any = clipped_step(given, "layerwise")()
    for name in ("Opacus ghost clipping, update", "BackPACK in chunks, update"):
        theirs: Any = rivals[name]() if name in rivals else list(ours.values())
        for p, q, start in zip(ours.values(), theirs, given.params.values(), strict=True):
            # Of the change: the parameters themselves hardly move. Opacus adds 1e-6 to the norms it divides by.
            torch.testing.assert_close(
                p - start, q - start, rtol=0.01, atol=1e-8 + 2e-3 * float((p - start).abs().max())
            )
    if "norms, compiled" in rivals:
        _assert_compiled_equal(given, few, rivals)


def _assert_compiled_equal(given: Setting, few: Setting, rivals: Mapping[str, Callable[[], Any]]) -> None:
    """Element by element in float64. In float32 the compiler rounds otherwise, and a ReLU at zero may fall either way:
    that changes single examples, so that there the median example and the sum are looked at.
    """
    exact = few._replace(params={name: p.double() for name, p in few.params.items()}, x=few.x.double())
    clipped = "clipped sum, update"
    for name in ("norms", clipped):
        torch.testing.assert_close(CALLS[f"{name}, compiled"](exact)(), CALLS[name](exact)(), rtol=1e-9, atol=1e-13)
    assert (rivals["norms, compiled"]() / norms(given)() - 1).abs().median() < 1e-5
    ours, found = clipped_step(given, "auto")(), rivals[f"{clipped}, compiled"]()
    for name, start in given.params.items():
        assert (found[name] - ours[name]).norm() < 0.01 * (ours[name] - start).norm() + 1e-7 * start.norm(), name
