"""What does a training step cost whoever calls the library and sets nothing? Every rival in a process of its own, since
how freed memory is treated is a setting of the process: `make_step` and `compile_step` make it, a module does not.
"""

import contextlib
import functools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

from benchmarks import timing, train_step
from benchmarks.cases import Case
from benchmarks.timing import Row

BASE = "torchvision, eager, fused SGD"

_prepared: list[Callable[[], object]] = []  # of this process, which measures one rival


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table for each batch size, relative to torchvision's module with fused SGD. Called in turn, one at a time."""
    for n in (1,) if quick else (1, 32):
        case = Case("alexnet", n, device)
        with contextlib.ExitStack() as stack:
            rivals = {name: _in_a_process(stack, name, case) for name in train_step.names(case)}
            train_step.assert_equal(rivals, "float32")
            measured = timing.interleaved(rivals, repeats=1 if quick else 15, warmups=1)
        title = f"{case.title}: training step, nothing set"
        yield [Row(title, name, t, measured[BASE]) for name, t in measured.items()]


def _in_a_process(stack: contextlib.ExitStack, name: str, case: Case) -> Callable[[], object]:
    spawn = multiprocessing.get_context("spawn")
    pool = stack.enter_context(ProcessPoolExecutor(1, spawn, initializer=_prepare, initargs=(name, case)))
    return functools.partial(_result, pool)


def _result(pool: ProcessPoolExecutor) -> object:
    return pool.submit(_loss).result()


def _prepare(name: str, case: Case) -> None:
    _prepared.append(train_step.call(name, case))


def _loss() -> float:
    return float(_prepared[0]())  # type: ignore[arg-type]
