"""What does a second rank cost? Weak scaling on this machine: as many images on each rank, one thread each, gloo.

Rank 0's time of a step, while rank 1 is idle, steps on its own (which shows what the cores share), or takes part; and
of a sum of as many numbers as there are gradients: what the steps of two ranks take longer is what is not hidden of it.
A second table has what torch's profiler sees on rank 0: for how long a step's collectives are under way, and for how
long of it the step waits for one.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.profiler import ProfilerActivity, profile

import alexnet_func as af
from alexnet_func import allocator, hybrid, parallel
from benchmarks import train_step
from benchmarks.cases import Case, Setting, setting
from benchmarks.timing import Row, Timing, of

RANKS = 2
CASES = (Case("alexnet_cifar", 128), Case("alexnet", 32), Case("alexnet", 128))


Made = tuple[af.train.GradFn | None, af.model.Params]


class Mode(NamedTuple):
    """Whether the other rank is idle, and by which gradient both step from which parameters."""

    idle: bool
    made: Callable[[Setting], Made]


def _alone(given: Setting) -> Made:
    return None, given.params


def _together(given: Setting, reduction: parallel.Reduction | None = None) -> Made:
    return parallel.grad_fn(train_step.without_dropout(given), reduction=reduction), given.params


def _split(given: Setting) -> Made:
    def loss(params: dict, batch: tuple, *, key: Any = None) -> Any:
        return hybrid.loss_fn(params, batch, arch=given.arch)

    return hybrid.grad_fn(loss, given.arch), hybrid.split(given.params, given.arch)


MODES = {
    "one rank, the other idle": Mode(True, _alone),
    "two ranks, each on its own": Mode(False, _alone),
    "two ranks": Mode(False, _together),
    "two ranks, gradients summed in bfloat16": Mode(False, functools.partial(_together, reduction="bf16")),
    "two ranks, linear layers split": Mode(False, _split),
}
_SUM = "a sum of the gradients, nothing else"
_TRACED = ("two ranks", "two ranks, linear layers split")


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table for each network and number of images a rank; on CPU cores wherever else there is a device."""
    for case in CASES[:1] if quick else CASES:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (Path(folder), case, 1 if quick else 9)
            multiprocessing.start_processes(_rank, arguments, RANKS, start_method="spawn")
            seconds, traced = torch.load(Path(folder) / "seconds.pt")
        timed = {name: of(taken) for name, taken in seconds.items()}
        base: Timing = timed["one rank, the other idle"]
        yield [Row(f"{case.title} a rank: donated step", name, t, base) for name, t in timed.items()]
        yield [
            Row(f"{case.title} a rank: collectives of a step", f"{name}: {what}", of(taken), of(found["under way"]))
            for name, found in traced.items()
            for what, taken in found.items()
        ]


def _rank(rank: int, folder: Path, case: Case, repeats: int) -> None:
    torch.set_num_threads(1)
    allocator.use_huge_pages()
    allocator.keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    given = setting(case)
    calls = {name: _step(mode, given) for name, mode in MODES.items()}
    _assert_equal(calls)
    calls[_SUM] = functools.partial(parallel.summed, list(given.params.values()))
    idle = {name for name, mode in MODES.items() if mode.idle}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            dist.barrier()
            if rank == 0 or name not in idle:
                started = time.perf_counter()
                call()
                if repeat:
                    seconds[name].append(time.perf_counter() - started)
    traced = {name: _traced(calls[name], repeats) for name in _TRACED}
    if rank == 0:
        torch.save((seconds, traced), folder / "seconds.pt")
    dist.barrier()
    dist.destroy_process_group()


def _step(mode: Mode, given: Setting) -> Callable[[], Any]:
    loss = train_step.without_dropout(given)
    optimizer = af.optim.sgd(0.01, momentum=0.9)
    grad_fn, params = mode.made(given)
    step = af.train.compile_step(af.train.make_step(loss, optimizer, grad_fn=grad_fn), donate=True)
    state = af.train.create_state(params, optimizer, key=af.random.key(0))

    def call() -> float:
        nonlocal state
        state, metrics = step(state, (given.x, given.y))
        return float(metrics["loss"])

    return call


def _traced(call: Callable[[], Any], repeats: int) -> dict[str, list[float]]:
    """Seconds a step's collectives are under way, however many at once, and those that it waits for one, by repeat."""
    found: dict[str, list[float]] = {"under way": [], "waited for": []}
    for _ in range(repeats):
        dist.barrier()
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            call()
        spans = [(e.name, e.time_range.start, e.time_range.end) for e in trace.events() or []]
        under_way = [(start, end) for name, start, end in spans if name.startswith("gloo:")]
        waits = [(start, end) for name, start, end in spans if name == "_c10d_functional::wait_tensor"]
        found["under way"].append(union(under_way) / 1e6)
        found["waited for"].append(union(waits) / 1e6)
    return found


def union(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals from start to end."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _assert_equal(calls: dict[str, Callable[[], float]]) -> None:
    """All ranks have the same images here, so that every mode must find the same loss in its third step."""
    found = {name: [call() for _ in range(3)][-1] for name, call in calls.items()}
    first = next(iter(found.values()))
    assert all(abs(loss - first) < 1e-3 * abs(first) for loss in found.values()), found
