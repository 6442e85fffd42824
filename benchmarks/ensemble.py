"""What does an ensemble cost? Eight members as one compiled `vmap`, against a Python loop over eager modules."""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import alexnet_func as af
from benchmarks import timing
from benchmarks.cases import Case, setting
from benchmarks.timing import Row

MEMBERS = 8
RATE = 1e-4
CASES = (Case("alexnet_cifar", 256), Case("alexnet", 64))


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table of the forward pass and one of the training step, relative to the loop."""
    for case in CASES[:1] if quick else CASES:
        case = case._replace(n=8 if quick else case.n, device=device)
        given = setting(case)
        stacked = af.ensemble.init(af.random.split(af.random.key(1, device), MEMBERS), given.arch)
        for what, rivals in (("forward", _forwards), ("training step", _steps)):
            made = rivals(given.arch, stacked, given.x, given.y)
            measured = timing.interleaved(made, repeats=1 if quick else 7, warmups=1, device=device)
            base = measured["loop over eager modules"]
            title = f"{MEMBERS} members of {case.arch}, N = {case.n}: {what}"
            yield [Row(title, name, seconds, base) for name, seconds in measured.items()]


def _modules(arch: af.arch.Arch, stacked: dict[str, Tensor]) -> list[nn.Module]:
    return [af.interop.to_module(member, arch) for member in af.ensemble.unstack(stacked)]


def _forwards(arch: af.arch.Arch, stacked: dict, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    modules = _modules(arch, stacked)

    def compiled(chunk_size: int | None) -> Callable:
        forward = functools.partial(af.ensemble.forward, arch=arch, chunk_size=chunk_size)
        return torch.compile(lambda stacked, x: forward(stacked, x), fullgraph=True, options=af.train.compile_options())

    def loop() -> Tensor:
        with torch.no_grad():
            return torch.stack([module(x) for module in modules])

    def of(function: Callable) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.no_grad():
                return function(stacked, x)

        return call

    rivals = {
        "loop over eager modules": loop,
        "vmap, compiled": of(compiled(None)),
        "vmap in chunks of 1, compiled": of(compiled(1)),
    }
    for rival in rivals.values():
        torch.testing.assert_close(rival(), loop(), rtol=1e-3, atol=1e-4)
    return dict(rivals)


def _steps(arch: af.arch.Arch, stacked: dict, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    modules = _modules(arch, stacked)
    optimizers = [torch.optim.SGD(module.parameters(), RATE, momentum=0.9) for module in modules]

    def loop() -> Tensor:
        losses = []
        for module, optimizer in zip(modules, optimizers, strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    def loss_fn(params: dict, batch: tuple, *, key: Tensor) -> Tensor:  # without dropout, as the modules
        return af.loss_fn(params, batch, arch=arch)

    optimizer = af.optim.sgd(RATE, momentum=0.9)

    def of(chunk_size: int | None) -> Callable[[], Tensor]:
        grad_fn = af.ensemble.grad_fn(loss_fn, chunk_size=chunk_size)
        step = af.train.compile_step(af.train.make_step(None, optimizer, grad_fn=grad_fn), donate=True)
        state = af.train.create_state(stacked, optimizer, key=af.random.key(2))

        def call() -> Tensor:
            nonlocal state
            state, metrics = step(state, (x, y))
            return metrics["losses"]

        return call

    rivals = {
        "loop over eager modules": loop,
        "vmap, compiled, donated": of(None),
        "vmap in chunks of 2, compiled, donated": of(2),
    }
    first = loop()
    for name in list(rivals)[1:]:
        torch.testing.assert_close(rivals[name](), first, rtol=1e-4, atol=1e-4)
    return dict(rivals)
