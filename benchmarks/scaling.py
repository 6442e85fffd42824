"""What does a second rank cost? Weak scaling on this machine: as many images on each rank, one thread each, gloo.

Rank 0's time of a step, while rank 1 is idle, steps on its own (which shows what the cores share), or takes part.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

import alexnet_func as af
from alexnet_func import allocator, parallel
from benchmarks import train_step
from benchmarks.cases import Case, setting
from benchmarks.timing import Row, Timing, of

RANKS = 2
CASES = (Case("alexnet_cifar", 128), Case("alexnet", 32), Case("alexnet", 128))


class Mode(NamedTuple):
    """Who steps, and by which gradient."""

    idle: bool
    grad_fn: Callable[[af.train.Loss], af.train.GradFn] | None


MODES = {
    "one rank, the other idle": Mode(True, None),
    "two ranks, each on its own": Mode(False, None),
    "two ranks": Mode(False, parallel.grad_fn),
    "two ranks, gradients summed in bfloat16": Mode(False, functools.partial(parallel.grad_fn, reduction="bf16")),
}


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table for each network and number of images a rank; on CPU cores wherever else there is a device."""
    for case in CASES[:1] if quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (Path(folder), case, 1 if quick else 9)
            multiprocessing.start_processes(_rank, arguments, RANKS, start_method="spawn")
            seconds = torch.load(Path(folder) / "seconds.pt")
        timed = {name: of(taken) for name, taken in seconds.items()}
        base: Timing = timed["one rank, the other idle"]
        yield [Row(f"{case.title} a rank: donated step", name, t, base) for name, t in timed.items()]


def _rank(rank: int, folder: Path, case: Case, repeats: int) -> None:
    torch.set_num_threads(1)
    allocator.use_huge_pages()
    allocator.keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    calls = {name: _step(mode, case) for name, mode in MODES.items()}
    _assert_equal(calls)
    seconds: dict[str, list[float]] = {name: [] for name in MODES}
    for repeat in range(repeats + 1):
        for name, mode in MODES.items():
            dist.barrier()
            if rank == 0 or not mode.idle:
                started = time.perf_counter()
                calls[name]()
                if repeat:
                    seconds[name].append(time.perf_counter() - started)
    if rank == 0:
        torch.save(seconds, folder / "seconds.pt")
    dist.barrier()
    dist.destroy_process_group()


def _step(mode: Mode, case: Case) -> Callable[[], Any]:
    given = setting(case)
    loss = train_step.without_dropout(given)
    optimizer = af.optim.sgd(0.01, momentum=0.9)
    grad_fn = None if mode.grad_fn is None else mode.grad_fn(loss)
    step = af.train.compile_step(af.train.make_step(loss, optimizer, grad_fn=grad_fn), donate=True)
    state = af.train.create_state(given.params, optimizer, key=af.random.key(0))

    def call() -> float:
        nonlocal state
        state, metrics = step(state, (given.x, given.y))
        return float(metrics["loss"])

    return call


def _assert_equal(calls: dict[str, Callable[[], float]]) -> None:
    """All ranks have the same images here, so that every mode must find the same loss in its third step."""
    found = {name: [call() for _ in range(3)][-1] for name, call in calls.items()}
    first = next(iter(found.values()))
    assert all(abs(loss - first) < 1e-3 * abs(first) for loss in found.values()), found
