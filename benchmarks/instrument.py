"""What do views of an example, products of all pairs of gradients, and projections of them cost?

Views and projections against a plain step of the module on as many images; products against gradients that are formed,
`vmap(grad)` in tiles of 8 GB.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import alexnet_func as af
from benchmarks import peaks, per_sample, timing
from benchmarks.cases import Case, Setting, setting
from benchmarks.timing import Row

VIEWS = 16
DIM = 4096
STEPS = (Case("alexnet_cifar", 256), Case("alexnet", 256))
PROJECTED = (Case("alexnet_cifar", 256), Case("alexnet", 64))
# Of 8 GB: two sets of gradients of 7.5 and of 61 million parameters.
TILES = {Case("alexnet_cifar", 2000): 128, Case("alexnet", 256): 16}


def viewed_step(given: Setting) -> Callable[[], dict[str, Tensor]]:
    """A step on the clipped sum of N / 16 examples in 16 views each."""
    batch = given.x.unflatten(0, (-1, VIEWS)), given.y[::VIEWS].contiguous()

    def grad_fn(params: dict, batch: tuple, key: Tensor) -> tuple:
        total, norms = af.per_sample.clipped_sum(params, batch, per_sample.MAX_NORM, arch=given.arch, views=VIEWS)
        return total, {"loss": norms.mean()}

    optimizer = af.optim.sgd(per_sample.RATE, momentum=0.9)
    step = af.train.make_step(None, optimizer, grad_fn=grad_fn)
    state = af.train.create_state(given.params, optimizer, key=af.random.key(1))

    def run() -> dict[str, Tensor]:
        nonlocal state
        state, _ = step(state, batch)
        return state.params

    return run


def projection(given: Setting, method: af.per_sample.Method = "auto") -> Callable[[], Tensor]:
    key = af.random.key(2, given.x.device)
    return lambda: af.per_sample.project(given.params, (given.x, given.y), key, DIM, arch=given.arch, method=method)


def gram(given: Setting, chunk: int | None = None) -> Callable[[], Tensor]:
    """By layer; with a chunk by gradients that are formed."""
    how: dict[str, Any] = {} if chunk is None else {"method": "vmap", "chunk_size": chunk}
    return lambda: af.per_sample.gram(given.params, (given.x, given.y), arch=given.arch, **how)


CALLS: Mapping[str, Callable[[Setting], Callable[[], object]]] = {
    "plain step, nn.Module": per_sample.plain_step,
    "clipped sum of 16 views each, update": viewed_step,
    f"projection to {DIM:,}": projection,
}


def call(name: str, case: Case) -> Callable[[], object]:
    return CALLS[name](setting(case))


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table for each question and network."""
    for case in STEPS:
        yield _beside_a_step(case._replace(device=device), "clipped sum of 16 views each, update", quick)
    for case in PROJECTED:
        yield _beside_a_step(case._replace(device=device), f"projection to {DIM:,}", quick)
    for case, tile in TILES.items():
        yield _products(case._replace(device=device), tile, quick)


def _beside_a_step(case: Case, name: str, quick: bool) -> list[Row]:
    case = case._replace(n=2 * VIEWS) if quick else case
    given = setting(case)
    _assert_equal(given)
    rivals = {which: CALLS[which](given) for which in ("plain step, nn.Module", name)}
    measured = timing.interleaved(rivals, repeats=1 if quick else 5, warmups=1, device=case.device)
    highest = {} if quick else {which: peaks.peak(call, which, case)[1] for which in rivals}
    base = measured["plain step, nn.Module"]
    return [Row(case.title, which, timed, base, highest.get(which)) for which, timed in measured.items()]


def _products(case: Case, tile: int, quick: bool) -> list[Row]:
    """Each once, with what it takes above the parameters and images: they take minutes."""
    case, tile = (case._replace(n=6), 2) if quick else (case, tile)
    given = setting(case)
    few = given._replace(x=given.x[:5], y=given.y[:5])
    torch.testing.assert_close(gram(few)(), gram(few, 2)(), rtol=1e-3, atol=1e-5)
    rivals = {f"vmap(grad) in tiles of {tile}": gram(given, tile), "gram": gram(given)}
    high: dict[str, float] = {}

    def watched(name: str, call: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: high.update({name: peaks.above(call)})

    calls = {name: watched(name, call) for name, call in rivals.items()} if case.device == "cpu" else rivals
    measured = timing.interleaved(calls, repeats=1, warmups=0, device=case.device)
    base, title = next(iter(measured.values())), f"products of all pairs, {case.title}"
    return [Row(title, name, timed, base, high.get(name)) for name, timed in measured.items()]


def _assert_equal(given: Setting) -> None:
    """Of a few examples, by layer and by gradients that are formed."""
    x, y = given.x[: 2 * VIEWS].unflatten(0, (-1, VIEWS)), given.y[:2]
    ask = functools.partial(af.per_sample.clipped_sum, given.params, (x, y), 1.0, arch=given.arch, views=VIEWS)
    (ours, norms), (theirs, others) = ask(), ask(method="vmap")
    torch.testing.assert_close(norms, others, rtol=1e-4, atol=0)
    for name, g in theirs.items():
        torch.testing.assert_close(ours[name], g, rtol=1e-3, atol=1e-5)
    few = given._replace(x=given.x[:2], y=y)
    torch.testing.assert_close(projection(few)(), projection(few, "vmap")(), rtol=1e-3, atol=1e-4)
