"""`python -m benchmarks.gpu` (`make gpu`): the first half hour on a machine with a GPU, most telling parts first.

Correctness, what a short run learns, speed, and then the longer parts. Each part is a process of its own and writes
its results before the next one starts; what would not end in time, or lacks a package, is left out by name. Needs torch
2.11, torchvision and this repository; `pip install -e '.[app,test,peers]'` adds the tests, the command line and the
rivals.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from typing import NamedTuple

import torch

_OUT = ["--out", "benchmarks/results"]
_CUDA = ["--device", "cuda"]
_CIFAR10 = ["-m", "benchmarks.accuracy", "--data", "{cifar10}", "--recipe"]
_APP = ("tyro", "rich", "matplotlib", "sklearn")


class Part(NamedTuple):
    """A command of Python's, about how many minutes it takes, and what it imports.

    Those of tests, parity and a seed of CIFAR-10 were measured on an H200; the rest, of which compiling takes most, is
    estimated.
    """

    name: str
    command: list[str]
    minutes: float
    needs: tuple[str, ...] = ()


PARTS = (
    Part("tests", ["-m", "pytest", "-q", "-m", "gpu", "tests"], 2, ("pytest", "hypothesis", "jax", "scipy", "optax")),
    Part("parity, quick", ["-m", "parity", "--quick", *_CUDA], 3),
    Part("digits", ["-m", "benchmarks.accuracy", "--data", "digits", "--seeds", "1", *_CUDA, *_OUT], 1, _APP),
    Part("CIFAR-10, fast", [*_CIFAR10, "fast", "--name", "cifar10-fast", *_CUDA, *_OUT], 4, _APP),
    Part("training step", ["-m", "benchmarks", "--only", "train_step", *_CUDA, *_OUT], 8),
    Part("forward pass", ["-m", "benchmarks", "--only", "forward", *_CUDA, *_OUT], 3),
    Part("CIFAR-10, best", [*_CIFAR10, "best", "--name", "cifar10-best", *_CUDA, *_OUT], 6, _APP),
    Part("per-sample", ["-m", "benchmarks", "--only", "per_sample*", *_CUDA, *_OUT], 4),
    Part("memory", ["-m", "benchmarks", "--only", "memory", *_CUDA, *_OUT], 3),
    Part("input", ["-m", "benchmarks", "--only", "input_pipeline", *_CUDA, *_OUT], 2),
    Part("parity, whole", ["-m", "parity", *_CUDA], 10),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="no part starts that is not expected to end by then")
    parser.add_argument("--cifar10", default="cifar10", help="cifar10, or a folder with its images")
    parser.add_argument("--list", action="store_true", help="list the parts and stop")
    options = parser.parse_args()
    if options.list:
        for part in PARTS:
            print(f"{part.minutes:4.0f} min  {part.name}: python {' '.join(part.command)}")
        return 0
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    began, failed = time.monotonic(), 0
    for part in PARTS:
        why = _left_out(part, options.minutes - (time.monotonic() - began) / 60)
        if why is not None:
            print(f"== {part.name}: left out, {why}", flush=True)
            continue
        print(f"== {part.name}", flush=True)
        command = [word.format(cifar10=options.cifar10) for word in part.command]
        code = subprocess.run([sys.executable, *command], env={**os.environ, "PYTHONWARNINGS": "ignore"}).returncode
        failed += code != 0
        print(f"== {part.name}: exit {code} after {(time.monotonic() - began) / 60:.1f} min in all", flush=True)
    return min(failed, 1)


def _left_out(part: Part, minutes: float) -> str | None:
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if missing:
        return f"without {', '.join(missing)}: pip install -e '.[app,test,peers]'"
    return f"as {minutes:.0f} minutes are left" if part.minutes > minutes else None


if __name__ == "__main__":
    sys.exit(main())
